//! The order to stop: SIGINT, SIGTERM, and the end of whoever holds this process on a leash.

use std::io::Read;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Listens for the order to stop.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    leash: Option<watch::Receiver<bool>>,
}

impl Signals {
    /// # Errors
    /// When signals cannot be listened for.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            leash: None,
        })
    }

    /// The end of standard input is the order to stop, too.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn on_leash(mut self) -> anyhow::Result<Self> {
        let (slip, leash) = watch::channel(false);
        // A thread of its own, which nobody waits for: it may read for ever.
        let thread = std::thread::Builder::new().name("leash".to_owned());
        let reading = thread.spawn(move || {
            let mut stdin = std::io::stdin().lock();
            let mut bytes = [0; 64];
            while stdin.read(&mut bytes).is_ok_and(|read| read > 0) {}
            slip.send_replace(true);
        });
        reading.context("start the thread that watches standard input")?;
        self.leash = Some(leash);
        Ok(self)
    }

    /// Returns at the next order to stop.
    pub(crate) async fn asked_to_stop(&mut self) {
        let slipped = async {
            match &mut self.leash {
                Some(leash) => {
                    // The thread is gone: so is the other side.
                    let _ = leash.changed().await;
                    self.leash = None;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = slipped => {}
        }
    }
}
