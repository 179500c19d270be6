//! How a value lies in an engine: with a checksum at its end, and cut into chunks when it is large.
//!
//! Owns the byte layout below and the check on every read. [`Framed`] turns an [`Engine`], which is
//! any ordered map with atomic batches, into a [`Store`]; it never knows which engine that is.
//!
//! ```text
//! engine key                  engine value
//! 'r' | key                   0 | value | crc                                   (a small value)
//! 'r' | key                   1 | length (8, big endian) | crc of value | crc   (a large value)
//! 'c' | key | n (4, big end.) chunk n of the value | crc
//! ```
//! Each `crc` at an end is the CRC32C (4 bytes, big endian) of the engine key and of all before it
//! in the value, so a value found under another key is refused as well.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

use crate::{Batch, Compacted, KeyRange, Order, Row, Store, StoreError, Write, prefix_end};

/// Values up to this size are stored whole; larger ones in chunks of this size. sled splits a leaf
/// at 16 rows whatever their size and puts a leaf of over 128 KiB into a file of its own, so 17
/// such rows have to fit in one.
pub const CHUNK_BYTES: usize = 7 * 1024;

const ROW: u8 = b'r';
const CHUNK: u8 = b'c';
const WHOLE: u8 = 0;
const CHUNKED: u8 = 1;
const CRC_BYTES: usize = 4;
const CHUNK_NUMBER_BYTES: usize = 4;
/// Rows read, then deleted, in one step of `clear_prefix`.
const CLEAR_ROWS: usize = 1024;

/// Reads an engine's rows.
pub trait View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;
    fn scan(&self, range: KeyRange<'_>, order: Order, limit: usize)
    -> Result<Vec<Row>, StoreError>;
}

/// An ordered map with atomic batches, values up to 8 KiB. The contract is [`Store`]'s, but each
/// key occurs once in a batch, and reads that belong together go through one `view`.
pub trait Engine: View + Send + Sync + 'static {
    /// Runs `read` over rows that stand between two batches, the same two for all it reads.
    fn view<T>(&self, read: impl Fn(&dyn View) -> Result<T, StoreError>) -> Result<T, StoreError>;
    fn write(&self, writes: Vec<Write>) -> Result<(), StoreError>;
    fn sync(&self) -> Result<(), StoreError>;
    /// See [`Store::losses`].
    fn losses(&self) -> u64 {
        0
    }
    fn bytes_on_disk(&self) -> Result<u64, StoreError>;
    /// See [`Store::compact`].
    fn compact(&self, _go_on: &dyn Fn() -> bool) -> Result<Option<Compacted>, StoreError> {
        Ok(None)
    }
    fn close(&self);
}

/// A [`Store`] over an engine.
pub struct Framed<E> {
    engine: E,
    /// Held by the one writer, from looking up what a batch replaces until it is written.
    writer: Mutex<()>,
}

impl<E: Engine> Framed<E> {
    pub fn over(engine: E) -> Framed<E> {
        Framed { engine, writer: Mutex::new(()) }
    }

    /// The engine itself: its rows as laid out above, unchecked. Writing to it is for tests of
    /// damage.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    pub fn into_engine(self) -> E {
        self.engine
    }

    fn clear_tagged(&self, tag: u8, prefix: &[u8]) -> Result<(), StoreError> {
        let mut start = tagged(tag, prefix);
        let end = prefix_end(&start).map(Bytes::from);
        loop {
            let range = KeyRange { start: &start, end: end.as_deref() };
            let rows = self.engine.scan(range, Order::Ascending, CLEAR_ROWS)?;
            let Some(last) = rows.last() else { return Ok(()) };
            start = Bytes::from([last.key.as_ref(), &[0]].concat());
            // A shorter key's chunk number may look like the rest of the prefix.
            let suffix = if tag == CHUNK { CHUNK_NUMBER_BYTES } else { 0 };
            let belongs = |row: &Row| row.key.len() > prefix.len() + suffix;
            let writes = rows.into_iter().filter(belongs);
            let writes = writes.map(|row| Write::Delete { key: row.key }).collect();
            self.engine.write(writes)?;
        }
    }
}

impl<E: Engine> Store for Framed<E> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let key = tagged(ROW, key);
        self.engine.view(|view| match view.get(&key)? {
            Some(value) => value_of(view, Row { key: key.clone(), value }).map(Some),
            None => Ok(None),
        })
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if limit == 0 || range.is_empty() {
            return Ok(Vec::new());
        }
        let start = tagged(ROW, range.start);
        let end = range.end.map_or(Bytes::from_static(&[ROW + 1]), |end| tagged(ROW, end));
        self.engine.view(|view| {
            let rows = view.scan(KeyRange::new(&start, &end), order, limit)?;
            rows.into_iter()
                .map(|row| Ok(Row { key: row.key.slice(1..), value: value_of(view, row)? }))
                .collect()
        })
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let last_of_each_key: BTreeMap<Bytes, Write> =
            batch.writes.into_iter().map(|write| (write.key().clone(), write)).collect();
        let _writer = self.writer.lock();
        let writes = self.engine.view(|view| {
            let mut writes = Vec::with_capacity(last_of_each_key.len());
            for write in last_of_each_key.values() {
                lay_out(view, write, &mut writes)?;
            }
            Ok(writes)
        })?;
        self.engine.write(writes)
    }

    fn clear_prefix(&self, prefix: &[u8]) -> Result<(), StoreError> {
        let _writer = self.writer.lock();
        // ORDER: rows before chunks, so that a crash between leaves no row without its chunks.
        self.clear_tagged(ROW, prefix)?;
        self.clear_tagged(CHUNK, prefix)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.engine.sync()
    }

    fn losses(&self) -> u64 {
        self.engine.losses()
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        self.engine.bytes_on_disk()
    }

    fn compact(&self, go_on: &dyn Fn() -> bool) -> Result<Option<Compacted>, StoreError> {
        self.engine.compact(go_on)
    }

    fn close(&self) {
        self.engine.close();
    }
}

/// How many chunks a key's value has now, and whether it has a value at all.
fn replaced(view: &dyn View, row_key: &Bytes) -> Result<Option<u32>, StoreError> {
    let Some(value) = view.get(row_key)? else { return Ok(None) };
    // A damaged row is replaced like any other; its chunks, if any, are left over until the
    // group is cleared.
    let head = open_head(row_key, value).ok();
    Ok(Some(head.and_then(|head| head.chunked).map_or(0, |chunked| chunked.chunks())))
}

/// The engine's writes for one write.
fn lay_out(view: &dyn View, write: &Write, out: &mut Vec<Write>) -> Result<(), StoreError> {
    let key = write.key().clone();
    let row_key = tagged(ROW, &key);
    let replaced = replaced(view, &row_key)?;
    let mut chunks = 0;
    match write {
        Write::Put { value, .. } if value.len() <= CHUNK_BYTES => {
            let value = seal(&row_key, &[&[WHOLE], value]);
            out.push(Write::Put { key: row_key, value });
        }
        Write::Put { value, .. } => {
            for chunk in value.chunks(CHUNK_BYTES) {
                let key = chunk_key(&key, chunks);
                let value = seal(&key, &[chunk]);
                out.push(Write::Put { key, value });
                chunks += 1;
            }
            let length = (value.len() as u64).to_be_bytes();
            let crc = crc32c::crc32c(value).to_be_bytes();
            let value = seal(&row_key, &[&[CHUNKED], &length, &crc]);
            out.push(Write::Put { key: row_key, value });
        }
        Write::Delete { .. } if replaced.is_none() => return Ok(()),
        Write::Delete { .. } => out.push(Write::Delete { key: row_key }),
    }
    for number in chunks..replaced.unwrap_or(0) {
        let key = chunk_key(&key, number);
        // The length passed its checksum, but is not trusted with so many deletes.
        if view.get(&key)?.is_none() {
            break;
        }
        out.push(Write::Delete { key });
    }
    Ok(())
}

/// The value whose first engine row is `row`.
fn value_of(view: &dyn View, row: Row) -> Result<Bytes, StoreError> {
    let Head { value, chunked } = open_head(&row.key, row.value)?;
    let Some(chunked) = chunked else { return Ok(value) };
    let key = &row.key[1..];
    // The length passed its checksum, but a value is never trusted with an allocation.
    let mut whole = BytesMut::new();
    for number in 0..chunked.chunks() {
        let chunk_key = chunk_key(key, number);
        let chunk = view.get(&chunk_key)?;
        let chunk = chunk.ok_or_else(|| corrupt(&chunk_key, "a chunk is missing"))?;
        whole.put_slice(&unseal(&chunk_key, chunk)?);
    }
    if whole.len() as u64 != chunked.length || crc32c::crc32c(&whole) != chunked.crc {
        return Err(corrupt(&row.key, "the chunks do not make up the value"));
    }
    Ok(whole.freeze())
}

/// What a key's own engine row says.
struct Head {
    value: Bytes,
    chunked: Option<Chunked>,
}

struct Chunked {
    length: u64,
    crc: u32,
}

impl Chunked {
    fn chunks(&self) -> u32 {
        // A length that is out of reach fails at the first chunk that is missing.
        u32::try_from(self.length.div_ceil(CHUNK_BYTES as u64)).unwrap_or(u32::MAX)
    }
}

fn open_head(key: &Bytes, value: Bytes) -> Result<Head, StoreError> {
    let body = unseal(key, value)?;
    match body.split_first() {
        Some((&WHOLE, _)) => Ok(Head { value: body.slice(1..), chunked: None }),
        Some((&CHUNKED, rest)) => {
            let (length, rest) =
                rest.split_first_chunk().ok_or_else(|| corrupt(key, "the length is cut short"))?;
            let crc = rest.try_into().map_err(|_| corrupt(key, "the checksum is cut short"))?;
            let (length, crc) = (u64::from_be_bytes(*length), u32::from_be_bytes(crc));
            Ok(Head { value: Bytes::new(), chunked: Some(Chunked { length, crc }) })
        }
        Some(_) | None => Err(corrupt(key, "the layout is unknown")),
    }
}

fn tagged(tag: u8, key: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + key.len());
    bytes.put_u8(tag);
    bytes.put_slice(key);
    bytes.freeze()
}

fn chunk_key(key: &[u8], number: u32) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + key.len() + CHUNK_NUMBER_BYTES);
    bytes.put_u8(CHUNK);
    bytes.put_slice(key);
    bytes.put_u32(number);
    bytes.freeze()
}

/// Puts the parts one after another and their checksum at the end.
pub(crate) fn seal(key: &[u8], parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = BytesMut::with_capacity(length + CRC_BYTES);
    for part in parts {
        bytes.put_slice(part);
    }
    bytes.put_u32(checksum(key, &bytes));
    bytes.freeze()
}

/// Checks the checksum at the end and takes it off.
fn unseal(key: &[u8], value: Bytes) -> Result<Bytes, StoreError> {
    let Some((body, crc)) = value.split_last_chunk::<CRC_BYTES>() else {
        return Err(corrupt(key, "the value is cut short"));
    };
    if checksum(key, body) != u32::from_be_bytes(*crc) {
        return Err(corrupt(key, "the checksum does not match"));
    }
    Ok(value.slice(..body.len()))
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), body)
}

/// Names the caller's key (a chunk's number goes with it).
fn corrupt(engine_key: &[u8], what: &'static str) -> StoreError {
    let key = engine_key.get(1..).unwrap_or_default();
    StoreError::Corrupt { key: Bytes::copy_from_slice(key), what }
}
