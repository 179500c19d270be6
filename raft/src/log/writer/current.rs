//! The segment being written: appends to it, ends it, begins the next one, and frees old ones.
//! Owns the order in which a segment's bytes and its name become durable.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Writer;
use crate::log::disk::{Disk, DiskFile};
use crate::log::record::{Content, Place, RecordKind};
use crate::log::segment::{BatchBuilder, Head, Previous, SegmentIndex, segment_path, spare_path};
use crate::log::shared::{GroupHead, Segment};
use crate::log::{EntryId, GroupId, LogError};

/// The segment being written.
pub(in crate::log) struct Current {
    pub(in crate::log) number: u64,
    pub(in crate::log) path: PathBuf,
    pub(in crate::log) file: Arc<dyn DiskFile>,
    /// Where the next batch goes.
    pub(in crate::log) end: u32,
    /// The file's length.
    pub(in crate::log) allocated: u64,
    pub(in crate::log) index: SegmentIndex,
    /// Whether a batch follows the opening one.
    pub(in crate::log) grown: bool,
}

impl Current {
    /// Writes a batch at the end and syncs it.
    pub(in crate::log) fn append(
        &mut self,
        bytes: &[u8],
        preallocate_bytes: u32,
    ) -> Result<Duration, LogError> {
        let failed = |error| LogError::disk(WRITE, &self.path, error);
        self.file.write_at(bytes, u64::from(self.end)).map_err(failed)?;
        let end = self.end as usize + bytes.len();
        if preallocate_bytes > 0 && end as u64 > self.allocated {
            let allocated = (end as u64).next_multiple_of(u64::from(preallocate_bytes));
            let zeros = vec![0; allocated as usize - end];
            match self.file.write_at(&zeros, end as u64) {
                Ok(()) => self.allocated = allocated,
                // What counts is written.
                Err(error) if lacks_room(&error) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let begin = Instant::now();
        self.file.sync().map_err(|error| LogError::disk("sync", &self.path, error))?;
        self.end = u32::try_from(end).expect("what may wait for the disk is less than 4 GiB");
        Ok(begin.elapsed())
    }
}

/// What may be done again when there is room.
const WRITE: &str = "write batch to";
/// How often the writer looks whether there is room.
const ROOM_CHECK: Duration = Duration::from_millis(100);

/// Whether it is no fault of the disk, and may be different in a moment: a full disk, a full quota,
/// too few file handles.
fn lacks_room(error: &io::Error) -> bool {
    const TOO_MANY_FILES: [i32; 2] = [23, 24];
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || error.raw_os_error().is_some_and(|code| TOO_MANY_FILES.contains(&code))
}

impl Writer {
    /// Writes a batch and syncs it. While the disk is full it waits: nobody was told of anything, and
    /// the same bytes go to the same place once there is room.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<Duration, LogError> {
        loop {
            match self.current.append(bytes, self.shared.config.preallocate_bytes) {
                Err(LogError::Disk { action: WRITE, source, .. })
                    if lacks_room(&source) && self.wait_for_room(&source) => {}
                done => return done,
            }
        }
    }

    /// Waits a little; false where nobody may wait, or the log closes.
    fn wait_for_room(&self, error: &io::Error) -> bool {
        let mut state = self.shared.state.lock();
        if !self.may_block || state.closing {
            return false;
        }
        if !state.is_full {
            tracing::error!(dir = %self.shared.dir.display(), %error, "the log waits for room");
        }
        state.is_full = true;
        self.shared.wake.thread.wait_for(&mut state, ROOM_CHECK);
        !state.closing
    }

    /// Ends the current segment with its footer.
    pub(super) fn seal(&mut self) -> Result<(), LogError> {
        let footer = self.current.end;
        let start = Place { segment: self.current.number, offset: footer };
        let mut builder = BatchBuilder::new(start, self.next_batch);
        self.next_batch += 1;
        let payload = self.current.index.encode();
        builder.push(Content { payload: &payload, ..bare(RecordKind::Footer, GroupId(0), 0) });
        self.append(&builder.finish())?;
        let (segment, end) = (self.current.number, self.current.end);
        self.previous = Some(Previous { segment, end, footer: Some(footer) });
        if let Some(segment) = self.shared.state.lock().segments.get_mut(&segment) {
            segment.end = end;
        }
        Ok(())
    }

    /// Makes the next segment the current one, under a name that recovery ignores.
    pub(super) fn begin_segment(&mut self) -> Result<(), LogError> {
        let number = self.current.number + 1;
        let (path, file) = match self.spares.pop() {
            Some(spare) => spare,
            None => {
                let path = spare_path(&self.shared.dir, number);
                let file = loop {
                    match self.disk.create(&path) {
                        Ok(file) => break file,
                        Err(error) if lacks_room(&error) && self.wait_for_room(&error) => {}
                        Err(error) => return Err(LogError::disk("create segment", &path, error)),
                    }
                };
                (path, file)
            }
        };
        let failed = |error| LogError::disk("read length of", &path, error);
        let allocated = file.length().map_err(failed)?;
        let index = SegmentIndex::default();
        self.current = Current { number, path, file, end: 0, allocated, index, grown: false };
        Ok(())
    }

    /// Gives the segment its name, now that its opening batch is durable.
    pub(super) fn publish_segment(&mut self) -> Result<(), LogError> {
        let path = segment_path(&self.shared.dir, self.current.number);
        publish(self.disk.as_ref(), &mut self.current, path)?;
        let segment = Segment {
            path: self.current.path.clone(),
            file: self.current.file.clone(),
            end: self.current.end,
            live_entries: 0,
            live_bytes: 0,
        };
        self.shared.state.lock().segments.insert(self.current.number, segment);
        self.shared.stats.add(&self.shared.stats.segments, 1);
        Ok(())
    }

    /// Keeps a freed segment's file for reuse, or removes it. Its contents no longer count, so a
    /// failure only costs space until the log is opened again.
    pub(super) fn free(&mut self, number: u64, segment: Segment) {
        let stats = &self.shared.stats;
        stats.add(&stats.segments_freed, 1);
        let Segment { path, file, .. } = segment;
        // A reader that still holds the file must not see it overwritten.
        let unread = Arc::strong_count(&file) == 1;
        let freed = if unread && self.spares.len() < self.shared.config.spare_segments_max {
            let spare = spare_path(&self.shared.dir, number);
            let renamed = self.disk.rename(&path, &spare);
            renamed.map(|()| self.spares.push((spare, file)))
        } else {
            self.disk.remove(&path)
        };
        if let Err(error) = freed {
            tracing::warn!(path = %path.display(), %error, "cannot free a segment of the log");
        }
    }
}

/// A record without term and payload.
pub(in crate::log) fn bare(kind: RecordKind, group: GroupId, index: u64) -> Content<'static> {
    Content { kind, group, index, term: 0, payload: &[] }
}

/// Says how far a group had come before it was forgotten.
pub(in crate::log) fn push_floor(
    builder: &mut BatchBuilder,
    group: GroupId,
    floor: Option<EntryId>,
) {
    if let Some(EntryId { index, term }) = floor {
        builder.push(Content { term, ..bare(RecordKind::Floor, group, index) });
    }
}

/// Begins a segment's opening batch: all that is known of a group but its entries, so that older
/// segments can go.
pub(in crate::log) fn push_heads<'a>(
    builder: &mut BatchBuilder,
    head: &Head,
    heads: impl IntoIterator<Item = &'a GroupHead>,
) {
    let payload = head.encode();
    builder.push(Content { payload: &payload, ..bare(RecordKind::Head, GroupId(0), 0) });
    for GroupHead { group, vote, purged, committed, is_forgotten, floor } in heads {
        if let Some(vote) = vote {
            builder.push(Content { payload: vote, ..bare(RecordKind::Vote, *group, 0) });
        }
        if *is_forgotten {
            builder.push(bare(RecordKind::Forgotten, *group, 0));
        }
        push_floor(builder, *group, *floor);
        if let Some(purged) = purged {
            let purge = bare(RecordKind::Purge, *group, purged.index);
            builder.push(Content { payload: &purged.bytes, ..purge });
        }
        if let Some(committed) = committed {
            builder.push(Content { payload: committed, ..bare(RecordKind::Committed, *group, 0) });
        }
    }
}

/// Gives a segment with a durable opening batch its name.
pub(in crate::log) fn publish(
    disk: &dyn Disk,
    current: &mut Current,
    path: PathBuf,
) -> Result<(), LogError> {
    // ORDER: contents are durable before the name is. So a segment with its name and without a
    // whole opening batch was damaged, not torn.
    disk.rename(&current.path, &path).map_err(|error| LogError::disk("name", &path, error))?;
    let dir = path.parent().unwrap_or(&path);
    disk.sync_dir(dir).map_err(|error| LogError::disk("sync directory", dir, error))?;
    current.path = path;
    Ok(())
}
