//! Reads what lies on the disk before somebody needs it, slowly and again and again: the entries of the log and
//! the snapshots. What turns out damaged is replaced while the state that it stands for is whole.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use piton_store::with_causes;

use crate::error::SnapshotError;
use crate::execution::blocking;
use crate::group::Running;
use crate::log::{GroupId, LogError};
use crate::snapshot::Rows;

/// What is read at once.
const STEP_BYTES: usize = 1 << 20;

/// What is counted of damage; read by telemetry at any time, without a lock.
#[derive(Debug, Default)]
pub struct DamageStats {
    /// Bytes of log and snapshots that were read for this alone.
    pub scrubbed_bytes: AtomicU64,
    /// How often something was found damaged, at a start or later.
    pub found: AtomicU64,
    /// Groups whose state was given up, to be filled anew by other nodes.
    pub refilled: AtomicU64,
}

impl DamageStats {
    pub(crate) fn note(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// What was found damaged is replaced, since the group's state is whole.
    pub(crate) fn found(&self, group: GroupId, error: &dyn std::error::Error) {
        Self::note(&self.found, 1);
        let damage = with_causes(error);
        tracing::error!(%group, damage, "damaged on the disk; the state is whole, and a snapshot of it takes its place");
    }
}

/// How fast a pass goes, and where it counts.
#[derive(Clone)]
pub(crate) struct Pace {
    pub(crate) bytes_per_second: u64,
    pub(crate) stats: Arc<DamageStats>,
}

impl Pace {
    fn found(&self, group: &Weak<Running>, error: &dyn std::error::Error) {
        let Some(group) = group.upgrade() else { return };
        self.stats.found(group.id, error);
    }

    async fn after(&self, bytes: u64) {
        DamageStats::note(&self.stats.scrubbed_bytes, bytes);
        let millis = bytes.saturating_mul(1_000) / self.bytes_per_second.max(1);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

/// Reads everything of a group once. A group that is gone meanwhile is left.
pub(crate) async fn scrub(group: Weak<Running>, pace: &Pace) {
    if let Some(error) = scrub_snapshot(&group, pace).await {
        pace.found(&group, &error);
    }
    let Some(error) = scrub_log(&group, pace).await else { return };
    pace.found(&group, &error);
    let Some(group) = group.upgrade() else { return };
    // What is damaged is purged behind it.
    let mended = async { group.let_go(group.take_snapshot().await?).await };
    if let Err(error) = mended.await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(group = %group.id, error, "what is damaged stays for now");
    }
}

/// Why the group's snapshot cannot be read; another is taken in its place.
async fn scrub_snapshot(group: &Weak<Running>, pace: &Pace) -> Option<SnapshotError> {
    let snapshots = Arc::clone(&group.upgrade()?.snapshots);
    let file = snapshots.current()?;
    let error = match snapshots.rows(&file) {
        Err(error) => error,
        Ok(rows) => {
            let rows = read_slowly(rows, group, pace).await?;
            rows.take_error()?
        }
    };
    snapshots.note_damage(&file).then_some(error)
}

/// Reads to the end or to an error; `None` where the group went meanwhile.
async fn read_slowly(mut rows: Rows, group: &Weak<Running>, pace: &Pace) -> Option<Rows> {
    loop {
        let before = rows.offset();
        let read = blocking(move || {
            let ended = loop {
                if rows.next().is_none() {
                    break true;
                }
                if rows.offset() >= before + STEP_BYTES as u64 {
                    break false;
                }
            };
            (rows, ended)
        });
        let (read, ended) = read.await.ok()?;
        pace.after(read.offset() - before).await;
        if ended {
            return Some(read);
        }
        if group.strong_count() == 0 {
            return None;
        }
        rows = read;
    }
}

/// Why an entry of the group cannot be read. What is in memory still is not read from the disk.
async fn scrub_log(group: &Weak<Running>, pace: &Pace) -> Option<LogError> {
    let mut next = 0;
    loop {
        let (id, log) = group.upgrade().map(|group| (group.id, group.log.clone()))?;
        let state = log.state(id);
        next = next.max(state.first?.index);
        if next > state.last?.index {
            return None;
        }
        let entries = blocking(move || log.read(id, next..u64::MAX, STEP_BYTES)).await.ok()?;
        match entries {
            Ok(entries) => {
                next = entries.last()?.index + 1;
                pace.after(entries.iter().map(|entry| entry.bytes.len() as u64).sum()).await;
            }
            // It may have been purged meanwhile, and its place overwritten.
            Err(_)
                if group.upgrade()?.log.state(id).first.is_none_or(|first| first.index > next) => {}
            Err(error) => return Some(error),
        }
    }
}
