//! Space given back: a fresh engine is built beside the one in use by copying its rows, caught up,
//! and swapped in (D13). Readers and the writer go on meanwhile.
//!
//! Owns when that is worth it and the copy's progress; where the files lie is the engines'
//! business. A crash before the swap leaves files that the next opening removes, and one amid it
//! leaves the old engine, the new one, or none, which means that the store is rebuilt.
//!
//! ```text
//! rows of the engine   |--- copied: each write goes to both ---|--- not yet: to the old one ---|
//!                                                              next
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::frame::{Engine, View};
use crate::{Compacted, KeyRange, Order, Row, StoreError, Write, key_after};

/// Files up to this size are left alone.
pub(crate) const FLOOR_BYTES: u64 = 64 << 20;
/// Rows copied at once; the writer waits for them. A row has at most 8 KiB.
const STEP_ROWS: usize = 256;
/// Steps after which the copy is synced, so that what it rewrote can be used again.
const STEPS_PER_SYNC: usize = 64;

/// An engine that can be built anew beside itself.
pub trait Beside: Engine + Sized {
    /// What the files may take up for each live byte: well above what they do where rows are
    /// overwritten all the time (docs/benchmarks.md), or it would be built anew for ever.
    const FILES_PER_LIVE_MAX: u64;

    /// An empty engine beside this one. What an earlier one left there is removed.
    fn beside(&self) -> Result<Self, StoreError>;

    /// Takes the place of `old`, which holds the same rows and is closed by it. This one is synced.
    fn take_place(self, old: &Self) -> Result<Self, StoreError>;

    /// Removes this one, which was not to take a place after all.
    fn give_up(self) -> Result<(), StoreError>;
}

/// An engine whose space can be given back.
pub struct Compacting<E> {
    /// ORDER: taken after `copying`.
    engine: RwLock<E>,
    /// Held by whoever writes.
    copying: Mutex<Option<Copying<E>>>,
    floor_bytes: u64,
    /// The size of the files when it was last looked how much of it is live.
    measured: AtomicU64,
    /// Losses of the engines whose place was taken.
    losses_before: AtomicU64,
    /// Held by the one compaction.
    turn: Mutex<()>,
}

struct Copying<E> {
    fresh: E,
    /// Keys below it are copied.
    next: Bytes,
}

impl<E: Beside> Compacting<E> {
    /// Files up to `floor_bytes` are left alone.
    pub fn over(engine: E, floor_bytes: u64) -> Compacting<E> {
        Compacting {
            engine: RwLock::new(engine),
            copying: Mutex::new(None),
            floor_bytes,
            measured: AtomicU64::new(0),
            losses_before: AtomicU64::new(0),
            turn: Mutex::new(()),
        }
    }

    /// Whether the files take up too much, by the size at which it was last looked: reading all
    /// that is live is too much to do it for nothing.
    fn is_due(&self, go_on: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let files = self.bytes_on_disk()?;
        let measured = self.measured.load(Ordering::Relaxed);
        if files <= self.floor_bytes.max(measured + measured / 4) {
            return Ok(false);
        }
        let mut live = 0;
        let mut next = Bytes::new();
        loop {
            let rows = self.scan(KeyRange::from(&next), Order::Ascending, STEP_ROWS)?;
            let sizes = rows.iter().map(|row| (row.key.len() + row.value.len()) as u64);
            live += sizes.sum::<u64>();
            let Some(last) = rows.last().filter(|_| rows.len() == STEP_ROWS) else { break };
            next = key_after(&last.key);
            if live * E::FILES_PER_LIVE_MAX >= files || !go_on() {
                break;
            }
        }
        self.measured.store(files, Ordering::Relaxed);
        Ok(live * E::FILES_PER_LIVE_MAX < files && go_on())
    }

    fn copy(&self, go_on: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let fresh = self.engine.read().beside()?;
        *self.copying.lock() = Some(Copying { fresh, next: Bytes::new() });
        for step in 1.. {
            if !go_on() {
                return Ok(false);
            }
            let mut copying = self.copying.lock();
            let Some(Copying { fresh, next }) = copying.as_mut() else { return Ok(false) };
            let rows =
                self.engine.read().scan(KeyRange::from(next), Order::Ascending, STEP_ROWS)?;
            let is_last = rows.len() < STEP_ROWS;
            if let Some(last) = rows.last() {
                *next = key_after(&last.key);
            }
            fresh.write(rows.into_iter().map(|row| Write::put(row.key, row.value)).collect())?;
            if is_last || step % STEPS_PER_SYNC == 0 {
                fresh.sync()?;
            }
            if is_last && let Some(Copying { fresh, .. }) = copying.take() {
                // ORDER: `copying` is held until the end, so nothing is written in between.
                let mut engine = self.engine.write();
                self.losses_before.fetch_add(engine.losses(), Ordering::Relaxed);
                *engine = fresh.take_place(&engine)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl<E: Beside> View for Compacting<E> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.engine.read().get(key)
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        self.engine.read().scan(range, order, limit)
    }
}

impl<E: Beside> Engine for Compacting<E> {
    fn view<T>(&self, read: impl Fn(&dyn View) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.engine.read().view(read)
    }

    fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let mut copying = self.copying.lock();
        let to_copy: Vec<Write> = match &*copying {
            Some(Copying { next, .. }) => {
                writes.iter().filter(|write| write.key() < next).cloned().collect()
            }
            None => Vec::new(),
        };
        let result = self.engine.read().write(writes);
        if let Some(Copying { fresh, .. }) = &*copying {
            let copied = if result.is_ok() { fresh.write(to_copy) } else { Ok(()) };
            if let Err(error) = &copied {
                tracing::warn!(%error, "the store's copy is not written");
            }
            if result.is_err() || copied.is_err() {
                give_up(copying.take());
            }
        }
        result
    }

    fn sync(&self) -> Result<(), StoreError> {
        // ORDER: nothing is copied meanwhile. A sync that fails may lose writes that the copy has.
        let mut copying = self.copying.lock();
        let synced = self.engine.read().sync();
        if synced.is_err() {
            give_up(copying.take());
        }
        synced
    }

    fn losses(&self) -> u64 {
        let engine = self.engine.read();
        self.losses_before.load(Ordering::Relaxed) + engine.losses()
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        self.engine.read().bytes_on_disk()
    }

    fn compact(&self, go_on: &dyn Fn() -> bool) -> Result<Option<Compacted>, StoreError> {
        let Some(_turn) = self.turn.try_lock() else { return Ok(None) };
        if !self.is_due(go_on)? {
            return Ok(None);
        }
        let before = self.bytes_on_disk()?;
        let copied = self.copy(go_on);
        give_up(self.copying.lock().take());
        if !copied? {
            return Ok(None);
        }
        let after = self.bytes_on_disk()?;
        self.measured.store(after, Ordering::Relaxed);
        Ok(Some(Compacted { before, after }))
    }

    fn close(&self) {
        give_up(self.copying.lock().take());
        self.engine.read().close();
    }
}

fn give_up<E: Beside>(copying: Option<Copying<E>>) {
    if let Some(Copying { fresh, .. }) = copying
        && let Err(error) = fresh.give_up()
    {
        tracing::warn!(%error, "the store's copy stays until the next start");
    }
}
