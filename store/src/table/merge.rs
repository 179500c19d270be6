//! Reads a range through the layers: the upper layer hides the lower one, both hide the store.
//! It holds no lock; [`super::Table`] sees to it that what is merged belongs together.

use std::cmp::Ordering;

use bytes::Bytes;

use super::layer::Layer;
use super::{row_key, rows_end, without_group};
use crate::{KeyRange, Order, Row, Store, StoreError, key_after};

/// Rows asked of the store beyond those wanted, since some may be hidden.
const SPARE_ROWS_MAX: usize = 64;

/// Changed rows in scan order, each key once; `None`: deleted.
pub(super) struct Overlay {
    rows: Vec<(Bytes, Option<Bytes>)>,
    /// True if `rows` ends before the range does, because it alone fills the scan.
    full: bool,
}

/// Takes the changed rows of a range that is not empty, until `limit` of them are not deleted.
pub(super) fn overlay(
    active: &Layer,
    frozen: Option<&Layer>,
    range: KeyRange<'_>,
    order: Order,
    limit: usize,
) -> Overlay {
    let mut upper = active.range(range, order).peekable();
    let mut lower = frozen.into_iter().flat_map(|layer| layer.range(range, order)).peekable();
    let mut rows = Vec::new();
    let mut present = 0;
    while present < limit {
        let first = match (upper.peek(), lower.peek()) {
            (Some((up, _)), Some((low, _))) => in_order(up, low, order),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return Overlay { rows, full: false },
        };
        let taken = match first {
            Ordering::Less => upper.next(),
            Ordering::Greater => lower.next(),
            Ordering::Equal => {
                lower.next();
                upper.next()
            }
        };
        if let Some((key, value)) = taken {
            present += usize::from(value.is_some());
            rows.push((key.clone(), value.clone()));
        }
    }
    Overlay { rows, full: true }
}

/// Merges the changed rows with the group's rows in the store.
pub(super) fn with_store(
    overlay: Overlay,
    store: &dyn Store,
    group: u32,
    range: KeyRange<'_>,
    order: Order,
    limit: usize,
) -> Result<Vec<Row>, StoreError> {
    let mut pages = Pages::new(store, group, range, order, &overlay);
    let mut changed = overlay.rows.into_iter().peekable();
    let mut merged = Vec::new();
    while merged.len() < limit {
        let wanted = limit - merged.len();
        let spare = changed.len().min(SPARE_ROWS_MAX.max(wanted));
        let stored = pages.peek(wanted.saturating_add(spare))?;
        let first = match (changed.peek(), stored) {
            (Some((up, _)), Some(low)) => in_order(up, &low.key, order),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => break,
        };
        if first != Ordering::Less {
            let stored = pages.next();
            if first == Ordering::Greater {
                merged.extend(stored);
            }
        }
        if first != Ordering::Greater {
            let present = changed.next().and_then(|(key, value)| Some(Row { key, value: value? }));
            merged.extend(present);
        }
    }
    Ok(merged)
}

fn in_order(left: &[u8], right: &[u8], order: Order) -> Ordering {
    match order {
        Order::Ascending => left.cmp(right),
        Order::Descending => right.cmp(left),
    }
}

/// The group's stored rows in a range, read as they are needed.
struct Pages<'a> {
    store: &'a dyn Store,
    order: Order,
    start: Bytes,
    end: Bytes,
    page: std::iter::Peekable<std::vec::IntoIter<Row>>,
    exhausted: bool,
}

impl<'a> Pages<'a> {
    fn new(
        store: &'a dyn Store,
        group: u32,
        range: KeyRange<'_>,
        order: Order,
        overlay: &Overlay,
    ) -> Pages<'a> {
        let mut start = row_key(group, range.start);
        let mut end = match range.end {
            Some(end) => row_key(group, end),
            None => Bytes::copy_from_slice(&rows_end(group)),
        };
        // A full overlay fills the scan by itself up to its last row; beyond it nothing is wanted.
        if let (true, Some((last, _))) = (overlay.full, overlay.rows.last()) {
            match order {
                Order::Ascending => end = row_key(group, last),
                Order::Descending => start = row_key(group, last),
            }
        }
        Pages {
            store,
            order,
            start,
            end,
            page: Vec::new().into_iter().peekable(),
            exhausted: false,
        }
    }

    /// The next row, without its group; reads at most `rows` more from the store if none is there.
    fn peek(&mut self, rows: usize) -> Result<Option<&Row>, StoreError> {
        if self.page.peek().is_none() && !self.exhausted {
            let range = KeyRange::new(&self.start, &self.end);
            let page = self.store.scan(range, self.order, rows)?;
            self.exhausted = page.len() < rows;
            if let Some(last) = page.last() {
                match self.order {
                    Order::Ascending => self.start = key_after(&last.key),
                    Order::Descending => self.end = last.key.clone(),
                }
            }
            let page: Vec<Row> = page.into_iter().map(without_group).collect();
            self.page = page.into_iter().peekable();
        }
        Ok(self.page.peek())
    }

    fn next(&mut self) -> Option<Row> {
        self.page.next()
    }
}
