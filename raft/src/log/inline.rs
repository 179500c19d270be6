//! The writer as a task instead of a thread, for simulation: virtual time passes where a disk would
//! be waited for, and nothing decides the order of things but the runtime.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::disk::Disk;
use super::shared::Shared;
use super::writer::Writer;

/// The writer, shared by its task and by who closes the log.
pub(super) struct Task {
    writer: Arc<Mutex<Writer>>,
}

/// Starts the task on the caller's runtime.
pub(super) fn start(shared: Arc<Shared>, writer: Writer, disk: Arc<dyn Disk>) -> Task {
    let writer = Arc::new(Mutex::new(writer));
    tokio::spawn(run(shared, Arc::clone(&writer), disk));
    Task { writer }
}

impl Task {
    /// Writes what waits. The log is closing, so that nothing comes after it.
    pub(super) fn finish(&self) {
        // A callback of the writer may hold the last handle; then the writer is at work already.
        if let Some(mut writer) = self.writer.try_lock() {
            writer.step_now();
        }
    }
}

/// Works until the log closes or fails.
async fn run(shared: Arc<Shared>, writer: Arc<Mutex<Writer>>, disk: Arc<dyn Disk>) {
    let idle_after = shared.config.idle_after;
    loop {
        let is_idle = {
            let mut state = shared.state.lock();
            if state.closing {
                return;
            }
            if state.queue.is_empty() {
                state.wake_at = Some(1);
            }
            state.queue.is_empty()
        };
        if is_idle {
            let woken = shared.wake.task.get_or_init(Notify::new).notified();
            let is_woken = timeout(idle_after, woken).await.is_ok();
            // The log closes, or what woke it has been written already.
            if is_woken && shared.state.lock().queue.is_empty() {
                continue;
            }
        }
        sleep(disk.next_sync_takes()).await;
        if !writer.lock().step_now() {
            return;
        }
    }
}
