//! A leader that no majority answers is silent for a while. It can decide nothing, and as long as the others
//! hear it they elect nobody: a broken link may carry one way only. openraft holds its heartbeats back then
//! (`quorum_loss_probe_interval`), and what it would send again of its log is held back here, in the same
//! turns: it is silent for longer than an election takes, and then speaks for as long, since it may be that
//! nobody else can lead.

use std::sync::OnceLock;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::Tuning;
use crate::types::{Metrics, Raft, TypeConfig};

type Seen = openraft::type_config::alias::WatchReceiverOf<TypeConfig, Metrics>;

/// How long a leader speaks, and how long it is silent. Others see its lease end, and then elect.
pub(crate) fn turn(tuning: &Tuning) -> Duration {
    2 * tuning.election_max
}

/// Whether the leader of one group, if it is this node, is silent.
pub(crate) struct Silence {
    lease: Duration,
    turn: Duration,
    seen: OnceLock<Seen>,
    /// The term in which something was sent last, and since when.
    term: Mutex<(u64, Instant)>,
}

impl Silence {
    pub(crate) fn new(tuning: &Tuning) -> Silence {
        let term = Mutex::new((0, Instant::now()));
        let (lease, turn) = (tuning.election_max, turn(tuning));
        Silence { lease, turn, seen: OnceLock::new(), term }
    }

    /// From now on it hears who answers.
    pub(crate) fn listen(&self, raft: &Raft) {
        // A group runs once.
        let _ = self.seen.set(raft.metrics());
    }

    /// Whether nothing is to be sent of the log now, in this term.
    pub(crate) fn holds(&self, term: u64) -> bool {
        let begun = {
            let mut last = self.term.lock();
            if last.0 != term {
                *last = (term, Instant::now());
            }
            last.1
        };
        let Some(seen) = self.seen.get() else { return false };
        let seen = seen.borrow_watched();
        // A sole voter has its majority, whether those that it fills answer or not.
        if seen.membership_config.voter_ids().all(|voter| voter == seen.id) {
            return false;
        }
        let (sent_for, answered) = (begun.elapsed(), seen.last_quorum_acked);
        let unanswered_for =
            answered.map_or(sent_for, |answered| answered.into_inner().elapsed().min(sent_for));
        is_silent(unanswered_for, self.lease, self.turn)
    }
}

fn is_silent(unanswered_for: Duration, lease: Duration, turn: Duration) -> bool {
    let Some(without) = unanswered_for.checked_sub(lease) else { return false };
    (without.as_millis() / turn.as_millis().max(1)).is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_silent_after_its_lease_and_speaks_in_turn() {
        let silent = |millis| {
            let [lease, turn] = [900, 1_800].map(Duration::from_millis);
            is_silent(Duration::from_millis(millis), lease, turn)
        };
        assert!([0, 899, 2_700, 4_499, 6_300].into_iter().all(|millis| !silent(millis)));
        assert!([900, 2_699, 4_500, 6_299].into_iter().all(silent));
    }
}
