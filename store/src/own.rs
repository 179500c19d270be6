//! What a store says of itself beside the rows of its groups: where each group stands, and whose
//! it is.
//!
//! ```text
//! store key of a mark      ff ff ff ff | group (4, big endian); see [`crate::table`]
//! store key of the owner   ff ff ff ff | "owner"
//! value of the owner       the node's id (8, big endian)
//! ```

use crate::table::{RESERVED_GROUP, decode_mark};
use crate::{Batch, KeyRange, Mark, Order, Store, StoreError, Write};

const OWNER: &[u8] = b"owner";
/// Marks read at once.
const MARKS: usize = 1024;

/// Where every group stands that has a state here.
///
/// # Errors
/// When the store cannot be read.
pub fn marks(store: &dyn Store) -> Result<Vec<(u32, Mark)>, StoreError> {
    let prefix = RESERVED_GROUP.to_be_bytes();
    let mut marks = Vec::new();
    let mut next = prefix.to_vec();
    loop {
        let rows = store.scan(KeyRange::from(&next), Order::Ascending, MARKS)?;
        for row in &rows {
            if let Some(group) = row.key.strip_prefix(&prefix)
                && let Ok(group) = <[u8; 4]>::try_from(group)
            {
                let group = u32::from_be_bytes(group);
                marks.push((group, decode_mark(group, &row.value)?));
            }
        }
        match rows.last() {
            Some(last) if rows.len() == MARKS => next = [last.key.as_ref(), &[0]].concat(),
            Some(_) | None => return Ok(marks),
        }
    }
}

/// The node that the store belongs to; `None` for one that has not been told.
///
/// # Errors
/// When the store cannot be read.
pub fn owner(store: &dyn Store) -> Result<Option<u64>, StoreError> {
    let key = owner_key();
    match store.get(&key)? {
        None => Ok(None),
        Some(value) => match <[u8; 8]>::try_from(value.as_ref()) {
            Ok(node) => Ok(Some(u64::from_be_bytes(node))),
            Err(_) => Err(StoreError::Corrupt { key: key.into(), what: "it is no node's id" }),
        },
    }
}

/// Tells the store whose it is, durably.
///
/// # Errors
/// When it cannot be written.
pub fn set_owner(store: &dyn Store, node: u64) -> Result<(), StoreError> {
    store.write(Batch { writes: vec![Write::put(owner_key(), node.to_be_bytes().to_vec())] })?;
    store.sync()
}

fn owner_key() -> Vec<u8> {
    [&RESERVED_GROUP.to_be_bytes(), OWNER].concat()
}
