//! Looks after the node's disk: how much room there is, and whether the data directory is still the
//! one that was opened. Tells the shards when room runs short, and the node when its files are gone.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use piton_raft::{Disk, LOG_DIRECTORY, log};
use piton_shard::Room;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::telemetry::Ready;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(500);
/// A warning comes when less than so many times the least room is left.
const WARN_FACTOR: u64 = 4;

/// The size of a file system, and what this user may still write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub size_bytes: u64,
    pub free_bytes: u64,
}

/// Measures the file system that a directory lies on.
pub type MeasureSpace = Arc<dyn Fn(&Path) -> io::Result<Space> + Send + Sync>;

/// What the system says.
pub(crate) fn measure(directory: &Path) -> io::Result<Space> {
    let found = rustix::fs::statvfs(directory)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Space { size_bytes: bytes(found.f_blocks), free_bytes: bytes(found.f_bavail) })
}

/// What is looked at, and who is told.
pub(crate) struct DiskWatch {
    pub(crate) directory: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) measure: MeasureSpace,
    /// With less room than this, new work is refused.
    pub(crate) free_bytes_min: u64,
    pub(crate) room: Room,
    pub(crate) ready: Ready,
    size: Gauge,
    free: Gauge,
    level: Level,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Enough,
    Low,
    Short,
}

impl DiskWatch {
    pub(crate) fn new(
        directory: PathBuf,
        disk: Arc<dyn Disk>,
        measure: MeasureSpace,
        free_bytes_min: u64,
        room: Room,
        ready: Ready,
        registry: &mut Registry,
    ) -> Self {
        let (size, free) = (Gauge::default(), Gauge::default());
        registry.register(
            "disk_size_bytes",
            "Size of the file system that the data directory lies on",
            size.clone(),
        );
        registry.register(
            "disk_free_bytes",
            "What is free there for this user; below data.free_bytes_min new work is refused",
            free.clone(),
        );
        let level = Level::Enough;
        Self { directory, disk, measure, free_bytes_min, room, ready, size, free, level }
    }

    /// Looks until told to stop. The receiver becomes `Some(reason)` when the files are gone: the node
    /// is not ready any more, and must end.
    pub(crate) fn start(
        mut self,
        mut stopping: watch::Receiver<bool>,
    ) -> watch::Receiver<Option<String>> {
        let (gone, told) = watch::channel(None);
        tokio::spawn(async move {
            let mut looks = tokio::time::interval(EVERY);
            loop {
                tokio::select! {
                    _ = looks.tick() => {}
                    _ = stopping.wait_for(|stop| *stop) => return,
                }
                let looked = tokio::task::spawn_blocking(move || {
                    self.look();
                    let missing = self.missing();
                    (self, missing)
                });
                let Ok((watch, missing)) = looked.await else { return };
                self = watch;
                if let Some(reason) = missing {
                    self.ready.set(Err("the data directory is gone"));
                    gone.send_replace(Some(reason));
                    return;
                }
            }
        });
        told
    }

    fn look(&mut self) {
        let space = match (self.measure)(&self.directory) {
            Ok(space) => space,
            Err(error) => {
                tracing::warn!(%error, "the disk's free space is not known");
                return;
            }
        };
        let Space { size_bytes, free_bytes } = space;
        let shown = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.size.set(shown(size_bytes));
        self.free.set(shown(free_bytes));
        let level = match free_bytes {
            free if free < self.free_bytes_min => Level::Short,
            free if free / WARN_FACTOR < self.free_bytes_min => Level::Low,
            _ => Level::Enough,
        };
        self.room.set(free_bytes, level == Level::Short);
        if level == self.level {
            return;
        }
        self.level = level;
        match level {
            Level::Short => {
                tracing::error!(free_bytes, "the disk is nearly full, new work is refused");
            }
            Level::Low => tracing::warn!(free_bytes, "the disk fills up"),
            Level::Enough => tracing::info!(free_bytes, "there is enough room on the disk"),
        }
    }

    /// Why the data directory is not what it was, if it is not.
    fn missing(&self) -> Option<String> {
        let identity = self.directory.join(crate::identity::FILE);
        if matches!(identity.try_exists(), Ok(false)) {
            return Some(format!("{} is gone while the node runs", identity.display()));
        }
        let log = self.directory.join(LOG_DIRECTORY);
        let is_gone = matches!(log::is_there(self.disk.as_ref(), &log), Ok(false));
        is_gone.then(|| format!("the log in {} is gone while the node runs", log.display()))
    }
}
