//! A group's view of the node's log, as openraft wants it.
//!
//! Owns nothing: entries, vote, committed id and purge point lie in [`Log`]. It never waits for the
//! disk except for a vote; an append is acknowledged by the writer thread through openraft's
//! callback, so that leader and followers sync at the same time.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};

use futures::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::execution::blocking;
use crate::log::{EntryRecord, GroupId, Log, LogError};
use crate::types::{Entry, LogId, TypeConfig, Vote, log_id, term_of};
use crate::wire;

/// One group's entries, vote and purge point in the node's log.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: Log,
    group: GroupId,
    read_bytes_max: usize,
}

impl LogStore {
    pub(crate) fn new(log: Log, group: GroupId, read_bytes_max: usize) -> LogStore {
        LogStore { log, group, read_bytes_max }
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group
    }

    /// The last purged entry.
    pub(crate) fn purged(&self) -> io::Result<Option<LogId>> {
        let purged = self.log.state(self.group).purged;
        purged.map(|purged| wire::log_id_from_bytes(purged.bytes)).transpose().map_err(invalid)
    }

    /// The last entry, or the purge point if there is none after it.
    pub(crate) fn last(&self) -> io::Result<Option<LogId>> {
        match self.log.state(self.group).last {
            Some(last) => Ok(Some(log_id(last.term, last.index))),
            None => self.purged(),
        }
    }

    /// The last entry that this node has held of the group, be it before it forgot it.
    pub(crate) fn reached(&self) -> io::Result<Option<LogId>> {
        let floor = self.log.state(self.group).floor.map(|floor| log_id(floor.term, floor.index));
        Ok(self.last()?.max(floor))
    }

    /// Some of the entries in `start..end`, in order and without a gap: at least the first one.
    /// What is no longer in memory is read on a storage thread (D11).
    async fn read_some(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let bytes_max = self.read_bytes_max;
        let records = match self.log.read_in_memory(self.group, start..end, bytes_max) {
            Some(records) => records,
            None => {
                let (log, group) = (self.log.clone(), self.group);
                let read = move || log.read(group, start..end, bytes_max);
                blocking(read).await?.map_err(io::Error::other)?
            }
        };
        records.into_iter().map(|record| wire::entry_from_log(record).map_err(invalid)).collect()
    }

    fn bounds(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        (start, end)
    }
}

fn invalid(error: wire::WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        let (mut start, end) = self.bounds(&range);
        let mut entries = Vec::new();
        while start < end {
            let some = self.read_some(start, end).await?;
            let Some(last) = some.last() else { break };
            start = last.log_id.index + 1;
            entries.extend(some);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read_some(start, end).await
    }

    /// Reads in pieces, so that catching up on a long log does not hold all of it in memory.
    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = self.bounds(&range);
        let store = self.clone();
        let pieces = stream::unfold(Some(start), move |start| {
            let store = store.clone();
            async move {
                let start = start.filter(|start| *start < end)?;
                match store.read_some(start, end).await {
                    Ok(entries) => {
                        let next = entries.last()?.log_id.index + 1;
                        let items: Vec<_> = entries.into_iter().map(Ok).collect();
                        Some((stream::iter(items), Some(next)))
                    }
                    Err(error) => Some((stream::iter(vec![Err(error)]), None)),
                }
            }
        });
        pieces.flatten()
    }

    /// Asked when the group starts. The index knows them; of the entries, which are on the disk, many would be read.
    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<LogId>,
    ) -> Result<Vec<LogId>, io::Error> {
        let (first, last) = range.into_inner();
        let between = self.log.last_of_terms(self.group, first.index + 1..last.index);
        let between = between.into_iter().map(|id| log_id(id.term, id.index));
        let mut found = vec![first];
        for id in between.chain([last]) {
            // The last of each term stands for it.
            if found.last().is_some_and(|before| term_of(before) == term_of(&id)) {
                found.pop();
            }
            found.push(id);
        }
        Ok(found)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let vote = self.log.state(self.group).vote;
        vote.map(wire::vote_from_bytes).transpose().map_err(invalid)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        Ok(LogState { last_purged_log_id: self.purged()?, last_log_id: self.last()? })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    // ORDER: the vote is durable before this returns, and so before any entry of its term is
    // appended. If a crash kept the entry but lost the vote, this node would forget the term, obey
    // an older leader, and overwrite committed entries.
    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (tx, rx) = oneshot::channel();
        self.log.save_vote(self.group, wire::vote_to_bytes(vote), move |result| {
            // The receiver is gone only if the group was dropped meanwhile.
            let _ = tx.send(result);
        });
        durable(rx).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.log.save_committed(self.group, wire::log_id_to_bytes(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let Some(bytes) = self.log.state(self.group).committed else { return Ok(None) };
        let committed = wire::log_id_from_bytes(bytes).map_err(invalid)?;
        // A follower may learn of a commit before the entries it covers are durable here.
        let last = self.last()?;
        Ok(last.map(|last| if last.index < committed.index { last } else { committed }))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records: Vec<EntryRecord> = entries
            .into_iter()
            .map(|entry| EntryRecord {
                index: entry.log_id.index,
                term: entry.log_id.leader_id.term,
                bytes: wire::entry_to_record(&entry),
            })
            .collect();
        // A slow disk slows the group down; it never ends it.
        let room = self.log.room(records.iter().map(|record| record.bytes.len()).sum()).await;
        self.log.append(self.group, records, move |result| {
            drop(room);
            callback.io_completed(result.map_err(io::Error::other));
        });
        Ok(())
    }

    // ORDER: the truncation is durable before this returns. What is appended later comes after it
    // anyway, but a snapshot has files of its own: if a crash kept one that takes the place of the
    // entries, and the entries too, state and log would contradict each other.
    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        let (tx, rx) = oneshot::channel();
        self.log.truncate(self.group, from, move |result| {
            // The receiver is gone only if the group was dropped meanwhile.
            let _ = tx.send(result);
        });
        durable(rx).await
    }

    // A purge that is lost in a crash is done again later; it frees space and promises nothing.
    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        let bytes = wire::log_id_to_bytes(&through);
        let done = warn_unless_durable(self.group, "purge");
        self.log.purge(self.group, through.index, bytes, done);
        Ok(())
    }
}

/// Waits until the writer has said what became of an operation.
pub(crate) async fn durable(
    done: oneshot::Receiver<Result<(), LogError>>,
) -> Result<(), io::Error> {
    match done.await {
        Ok(result) => result.map_err(io::Error::other),
        Err(_) => Err(io::Error::other(LogError::Closed)),
    }
}

/// A failed log stops the node through [`Log::failed`]; this only says what it was doing.
fn warn_unless_durable(group: GroupId, what: &'static str) -> impl FnOnce(Result<(), LogError>) {
    move |result| {
        if let Err(error) = result {
            tracing::warn!(%group, what, error = &error as &dyn std::error::Error, "log refused");
        }
    }
}

#[cfg(test)]
mod tests;
