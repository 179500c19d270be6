//! What happened in a run, in order, as one hash: two runs that did the same have the same one.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Notes what happens. Clones write to the same trace.
#[derive(Clone)]
pub(crate) struct Trace {
    began: Instant,
    hash: Arc<Mutex<(u64, u64)>>,
    is_printed: bool,
}

impl Trace {
    pub(crate) fn begin(is_printed: bool) -> Self {
        Self { began: Instant::now(), hash: Arc::default(), is_printed }
    }

    pub(crate) fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>7} {what}", self.began.elapsed().as_millis());
        let mut hash = self.hash.lock();
        hash.0 = xxh3_64_with_seed(line.as_bytes(), hash.0);
        hash.1 += 1;
        if self.is_printed {
            println!("{line}");
        }
    }

    /// The hash, and how much was noted.
    pub(crate) fn hash(&self) -> (u64, u64) {
        *self.hash.lock()
    }

    /// Milliseconds of virtual time since the run began.
    pub(crate) fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}
