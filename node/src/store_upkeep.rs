//! Gives space back while the node runs: a thread that looks now and then whether the store's files
//! take up far more than what is live in them. Where they do, the store builds itself anew.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use piton_store::{Compacted, Store};

/// How often the size of the files is looked at.
const EVERY: Duration = Duration::from_secs(60);

/// The thread; ends when told to.
pub(crate) struct StoreUpkeep {
    /// Dropped to end the thread.
    running: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl StoreUpkeep {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(store: Arc<dyn Store>) -> io::Result<StoreUpkeep> {
        let (running, ended) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("store-upkeep".to_owned()).spawn(move || {
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let go_on = || ended.try_recv() == Err(TryRecvError::Empty);
                match store.compact(&go_on) {
                    Ok(Some(Compacted { before, after })) => {
                        tracing::info!(before, after, "the store gave space back");
                    }
                    Ok(None) => {}
                    // If the store itself has failed, whoever uses it next tells.
                    Err(error) => tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the store gives no space back"
                    ),
                }
            }
        })?;
        Ok(StoreUpkeep { running, thread })
    }

    /// Ends the thread, giving up what it does. Blocks for a moment.
    pub(crate) fn stop(self) {
        let StoreUpkeep { running, thread } = self;
        drop(running);
        if thread.join().is_err() {
            tracing::error!("the store's upkeep panicked");
        }
    }
}
