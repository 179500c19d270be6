//! Gathers the transitions of a shard's workflows into Raft entries. One entry is under way at a
//! time: what comes meanwhile shares the next, so that the more there is to do, the less each costs.

use std::time::Duration;

use piton_raft::{Group, NodeId, ProposeError};
use tokio::sync::{mpsc, oneshot};

use crate::config::ShardConfig;
use crate::metrics::ShardMetrics;
use crate::replica::checkpoint::Checkpoints;
use crate::replica::entry::{self, TransitionRecord, Verdict};

/// How often a proposer that waits for checkpoints looks again.
const SLOWED_PAUSE: Duration = Duration::from_millis(1);

/// The cluster's feature level, as far as this node knows.
pub(crate) type Level = Box<dyn Fn() -> u32 + Send + Sync>;

/// What became of a transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Replicated and applied.
    Committed,
    /// Certainly not proposed, since another node leads, or none: the actor must go.
    NotLed { leader: Option<NodeId> },
    /// Not applied, or nobody knows: the actor must go.
    Failed(String),
}

struct Proposal {
    transition: TransitionRecord,
    bytes: usize,
    done: oneshot::Sender<Outcome>,
}

/// The way from a shard's actors to its Raft group.
#[derive(Clone)]
pub(crate) struct Proposer {
    proposals: mpsc::UnboundedSender<Proposal>,
}

impl Proposer {
    pub(crate) fn start(
        group: Group,
        config: &ShardConfig,
        checkpoints: Checkpoints,
        metrics: ShardMetrics,
        level: Level,
    ) -> Self {
        let (proposals, waiting) = mpsc::unbounded_channel();
        let gather =
            Gather { group, entry_bytes_max: config.entry_bytes_max, checkpoints, metrics, level };
        tokio::spawn(gather.run(waiting));
        Self { proposals }
    }

    /// Replicates one transition. Memory is bounded by the actors: each waits for its own.
    pub(crate) async fn propose(&self, transition: TransitionRecord) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let bytes = transition.encoded_len();
        let stopped = || Outcome::Failed("the shard's leader has changed".into());
        if self.proposals.send(Proposal { transition, bytes, done }).is_err() {
            return stopped();
        }
        outcome.await.unwrap_or_else(|_| stopped())
    }
}

/// Takes whatever waits, up to an entry's size, and proposes it; no delay when alone.
struct Gather {
    group: Group,
    entry_bytes_max: usize,
    checkpoints: Checkpoints,
    metrics: ShardMetrics,
    level: Level,
}

impl Gather {
    async fn run(self, mut waiting: mpsc::UnboundedReceiver<Proposal>) {
        let mut next = waiting.recv().await;
        while let Some(first) = next.take() {
            // Behind whatever is ready to run: other actors whose requests have come as well get to
            // propose into the same entry. When nothing is, it takes a microsecond.
            tokio::task::yield_now().await;
            self.wait_for_checkpoints().await;
            let mut bytes = first.bytes;
            let mut batch = vec![first];
            while let Ok(proposal) = waiting.try_recv() {
                if bytes + proposal.bytes > self.entry_bytes_max {
                    next = Some(proposal);
                    break;
                }
                bytes += proposal.bytes;
                batch.push(proposal);
            }
            self.replicate(batch).await;
            if next.is_none() {
                next = waiting.recv().await;
            }
        }
    }

    /// While too much waits for the store nothing new is proposed (D13): requests
    /// pile up in the bounded queues before it, and are refused there.
    async fn wait_for_checkpoints(&self) {
        while self.checkpoints.is_admission_slowed() {
            tokio::time::sleep(SLOWED_PAUSE).await;
        }
    }

    async fn replicate(&self, batch: Vec<Proposal>) {
        let began = tokio::time::Instant::now();
        let (transitions, waiters): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|p| (p.transition, p.done)).unzip();
        let entry = entry::encode_entry((self.level)(), &transitions);
        let outcomes: Vec<_> = match self.group.propose(entry).await {
            Ok(committed) => match entry::decode_verdicts(&committed.verdict) {
                Ok(verdicts) => verdicts.into_iter().map(outcome_of).collect(),
                Err(error) => vec![Outcome::Failed(error.to_string()); waiters.len()],
            },
            Err(error) => vec![outcome_of_refusal(&error); waiters.len()],
        };
        let committed = outcomes.iter().filter(|outcome| **outcome == Outcome::Committed).count();
        self.metrics.proposed(committed, waiters.len() - committed, began.elapsed());
        for (waiter, outcome) in waiters.into_iter().zip(outcomes) {
            // Whoever does not wait any more has gone, and its state with it.
            let _ = waiter.send(outcome);
        }
    }
}

fn outcome_of(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Applied => Outcome::Committed,
        fenced @ (Verdict::WrongTerm | Verdict::Moved | Verdict::SlotNotHere) => {
            Outcome::Failed(format!("the transition was fenced: {fenced:?}"))
        }
    }
}

fn outcome_of_refusal(error: &ProposeError) -> Outcome {
    match error {
        ProposeError::NotLeader { leader } => Outcome::NotLed { leader: *leader },
        error => Outcome::Failed(format!("the commit has failed: {error}")),
    }
}
