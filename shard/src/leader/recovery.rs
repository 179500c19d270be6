//! What becomes of a workflow whose actor gave up while its shard goes on: the commit's outcome was
//! unknown, so the effects of what may have been committed were carried out by nobody.
//!
//! An empty entry goes through the group. Once it is applied, everything this leader has proposed
//! before is applied or never will be, and the rows tell what the workflow owes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use piton_core::id::{RunId, WorkflowKey};

use crate::leader::term::ShardRuntime;
use crate::replica::entry;
use crate::workflow::actor::{Ask, Envelope, ReplyTo};

/// Wait before the empty entry is proposed again. The group refused it, so it has no quorum now.
const PAUSE: Duration = Duration::from_millis(20);

/// A workflow whose actor gave up.
#[derive(Default)]
pub(crate) struct Lost {
    /// The runs that it had in memory.
    pub(crate) runs: BTreeSet<RunId>,
    /// Requests of our own that it did not come to.
    pub(crate) requests: Vec<Ask>,
}

/// The workflows of a shard that wait for their recovery. While there is no quorum each request to
/// one costs it another actor, so it stands here once.
#[derive(Default)]
pub(crate) struct LostWorkflows {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<WorkflowKey, Lost>,
    running: bool,
}

impl LostWorkflows {
    /// True: somebody has to begin to recover them.
    fn add(&self, key: WorkflowKey, lost: Lost) -> bool {
        let mut state = self.state.lock();
        let known = state.waiting.entry(key).or_default();
        known.runs.extend(lost.runs);
        for ask in lost.requests {
            match ask {
                Ask::Resume { run_id } => drop(known.runs.insert(run_id)),
                other => known.requests.push(other),
            }
        }
        !std::mem::replace(&mut state.running, true)
    }

    fn take(&self) -> Option<BTreeMap<WorkflowKey, Lost>> {
        let mut state = self.state.lock();
        state.running = !state.waiting.is_empty();
        state.running.then(|| std::mem::take(&mut state.waiting))
    }
}

impl ShardRuntime {
    /// Has a workflow recovered, together with others that wait for it.
    pub(crate) fn recover(self: &Arc<Self>, key: WorkflowKey, lost: Lost) {
        if self.lost.add(key, lost) {
            let shard = Arc::clone(self);
            tokio::spawn(async move { run(&shard).await });
        }
    }
}

/// Recovers those who wait, together, until nobody does. A new leader finds all of it in the rows,
/// so it ends when the shard stops.
async fn run(shard: &Arc<ShardRuntime>) {
    // ORDER: those who wait are taken before the empty entry is proposed: theirs came before it.
    while let Some(lost) = shard.lost.take() {
        while let Err(error) = shard.group.propose(entry::encode_entry(&[])).await {
            if shard.is_stopped() {
                return;
            }
            tracing::debug!(shard = %shard.id, %error, "workflows wait to be recovered");
            tokio::time::sleep(PAUSE).await;
        }
        for (key, Lost { runs, requests }) in lost {
            let resume = runs.into_iter().map(|run_id| Ask::Resume { run_id });
            for ask in requests.into_iter().chain(resume) {
                shard.ask(&key, Envelope { ask, reply: ReplyTo::nobody() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workflow_that_is_lost_again_and_again_waits_once() {
        let lost = LostWorkflows::default();
        let key = |id: &str| WorkflowKey { namespace: "n".into(), workflow_id: id.into() };
        let of = |run: &str| Lost { runs: [RunId::from(run)].into(), requests: Vec::new() };
        assert!(lost.add(key("a"), of("first")), "somebody has to begin");
        for _ in 0..1_000 {
            let resume = Ask::Resume { run_id: RunId::from("first") };
            let lost_again = Lost { requests: vec![resume], ..of("second") };
            assert!(!lost.add(key("a"), lost_again));
        }
        assert!(!lost.add(key("b"), of("other")));
        let taken = lost.take().expect("two wait");
        assert_eq!(taken.len(), 2);
        let a = &taken[&key("a")];
        assert!(a.runs.iter().map(RunId::as_str).eq(["first", "second"]));
        assert_eq!(a.requests.len(), 0, "what a run owes is resumed once");
        assert!(lost.take().is_none());
        assert!(lost.add(key("a"), of("first")), "nobody is at it any more");
    }
}
