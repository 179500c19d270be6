//! A replica that was forgotten here and begins anew: until its log has come as far as before, it
//! neither votes for a candidate with less nor stands for election.
//!
//! It acknowledged what it forgot, so a majority may rest on it. A vote for a candidate that lacks an
//! acknowledged entry would elect a leader without it; so would its own, cast for itself with a log
//! that is filled in part, in which an early membership may even name it as the only voter.

use std::io;

use openraft::async_runtime::watch::WatchReceiver;

use crate::group::Running;
use crate::log_store::LogStore;
use crate::switch::Member;
use crate::types::{LogId, Raft, VoteRequest, VoteResponse};

impl LogStore {
    /// How far the log had come before, where it has not come as far again.
    pub(crate) fn floor(&self) -> io::Result<Option<LogId>> {
        let last = self.last()?;
        Ok(self.reached()?.filter(|reached| last.as_ref() < Some(reached)))
    }

    /// Whether its replica may stand for election. Where the log cannot tell, it may not.
    pub(crate) fn may_stand(&self) -> bool {
        matches!(self.floor(), Ok(None))
    }
}

impl Member {
    /// The answer to a candidate that has less than this replica had once.
    pub(crate) fn refuse_below_floor(&self, request: &VoteRequest) -> Option<VoteResponse> {
        let floor = match self.store.floor() {
            Ok(floor) => floor.filter(|floor| request.last_log_id.as_ref() < Some(floor))?,
            // Openraft meets the same damage.
            Err(_) => return None,
        };
        let vote = self.raft.metrics().borrow_watched().vote;
        Some(VoteResponse::new(vote, Some(floor), false))
    }
}

impl Running {
    pub(crate) fn may_stand(&self) -> bool {
        LogStore::new(self.log.clone(), self.id, self.tuning.read_bytes_max).may_stand()
    }
}

/// Lets a replica stand for election by itself once its log has come as far as before.
pub(crate) async fn elect_above_floor(raft: Raft, store: LogStore) {
    let mut data = raft.data_metrics();
    while !store.may_stand() {
        if data.changed().await.is_err() {
            return;
        }
    }
    raft.runtime_config().elect(true);
}
