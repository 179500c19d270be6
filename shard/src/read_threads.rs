//! Where rows are read for callers: on a few threads that may wait for the disk, never on those that
//! serve the API and run the actors (docs/design.md, D11). Knows nothing of rows.

use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use parking_lot::Mutex;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, oneshot};

use crate::error::ShardError;

/// How much a scan gives way to whatever else wants a core: with 10, the kernel gives it a tenth of
/// what a thread gets that serves the API. Alone, it is as quick as any.
#[cfg(target_os = "linux")]
const SCAN_NICENESS: i32 = 10;

type Work = Box<dyn FnOnce() + Send>;

/// The threads that read. Who finds none free waits in line. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct ReadThreads {
    /// How many of the runtime's threads for what blocks may look up.
    lookups: Arc<Semaphore>,
    scans: Arc<Semaphore>,
    scans_max: usize,
    /// The scans' own threads, which begin with the first scan and end with the last handle. `None`: they
    /// could not be started, and the runtime's do it.
    scanners: Arc<OnceLock<Option<mpsc::Sender<Work>>>>,
}

impl ReadThreads {
    pub(crate) fn new(lookups_max: usize, scans_max: usize) -> Self {
        let bound = |max: usize| max.clamp(1, Semaphore::MAX_PERMITS);
        let line = |max| Arc::new(Semaphore::new(bound(max)));
        Self {
            lookups: line(lookups_max),
            scans: line(scans_max),
            scans_max: bound(scans_max),
            scanners: Arc::default(),
        }
    }

    /// Reads a few rows: a page of history, what one workflow has.
    ///
    /// # Errors
    /// When the work panicked.
    ///
    /// # Cancel safety
    /// Dropped in line, it is not done at all; later, its outcome is lost.
    pub(crate) async fn look_up<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ShardError> {
        run(&self.lookups, work, |work| drop(tokio::task::spawn_blocking(work))).await
    }

    /// Reads a slice of a range. Scans stand in a line of their own and at its end again for each slice,
    /// so that neither a look-up nor a short scan waits for a long one; and they give way to all else.
    ///
    /// # Errors
    /// When the work panicked.
    ///
    /// # Cancel safety
    /// As [`Self::look_up`].
    pub(crate) async fn scan<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ShardError> {
        let start = |work| {
            match self.scanners.get_or_init(|| start_scanners(self.scans_max)) {
                // They are there as long as there is a sender.
                Some(scanners) => drop(scanners.send(work)),
                None => drop(tokio::task::spawn_blocking(work)),
            }
        };
        run(&self.scans, work, start).await
    }
}

async fn run<T: Send + 'static>(
    line: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
    start: impl FnOnce(Work),
) -> Result<T, ShardError> {
    let permit = Arc::clone(line).acquire_owned().await;
    let permit = permit.expect("it is never closed");
    // A runtime of one thread, which is a simulation's or a test's, does it in place.
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    let (tell, told) = oneshot::channel();
    start(Box::new(move || {
        // INVARIANT: given back by the thread, not by the caller: one that goes away leaves a thread
        // at work, which counts until it is done.
        let _permit = permit;
        // The caller may have gone away.
        let _ = tell.send(work());
    }));
    told.await.map_err(|_| ShardError::Internal("reading rows panicked".to_owned()))
}

fn start_scanners(count: usize) -> Option<mpsc::Sender<Work>> {
    let (scanners, work) = mpsc::channel();
    let work = Arc::new(Mutex::new(work));
    let start = || {
        let work = Arc::clone(&work);
        let started = thread::Builder::new().name("scan".to_owned()).spawn(move || scan_all(&work));
        started
            .inspect_err(|error| tracing::error!(%error, "cannot start a thread for scans"))
            .is_ok()
    };
    (0..count).filter(|_| start()).count().gt(&0).then_some(scanners)
}

/// Does what comes, until nobody can send any more.
fn scan_all(work: &Mutex<mpsc::Receiver<Work>>) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(SCAN_NICENESS) {
        tracing::debug!(%error, "scans are as urgent as all else");
    }
    loop {
        let next = work.lock().recv();
        let Ok(next) = next else { return };
        // A panic is a bug of ours in one read: it has been logged, and its caller hears of it.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(next));
    }
}

#[cfg(test)]
mod tests;
