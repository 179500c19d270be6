//! One term of a shard's leader: its parts, which the other files of this wing work with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use piton_core::id::{ShardId, WorkflowKey};
use piton_raft::Group;
use ractor::{ActorRef, SpawnErr};

use crate::clock::Clock;
use crate::config::ShardConfig;
use crate::error::ShardError;
use crate::leader::errand_lines::ErrandLines;
use crate::leader::hosting::{LostWorkflows, WorkflowHandle, Workflows};
use crate::leader::mailbox::Notice;
use crate::leader::queues::Queues;
use crate::leader::wakeups::Wakeups;
use crate::metrics::ShardMetrics;
use crate::replica::proposer::Proposer;
use crate::route::cluster::Cluster;
use crate::route::host::LocalReplica;
use crate::rows::WorkflowRows;
use crate::rows::keys::EntityKind;

/// Starts the actor of a workflow. The workflow wing, which lies above this one, brings it.
pub(crate) type StartWorkflow =
    fn(Arc<ShardRuntime>, WorkflowKey, Arc<WorkflowHandle>) -> Result<ActorRef<Notice>, SpawnErr>;

/// A term's numbers begin here: it has four billion of them.
const TERM_SHIFT: u32 = 32;

/// The leader's duties of one shard in one term.
pub(crate) struct ShardRuntime {
    pub(crate) id: ShardId,
    pub(crate) term: u64,
    pub(crate) group: Group,
    pub(crate) rows: WorkflowRows,
    pub(crate) cluster: Cluster,
    pub(crate) config: Arc<ShardConfig>,
    pub(crate) clock: Clock,
    pub(crate) metrics: ShardMetrics,
    pub(crate) proposer: Proposer,
    pub(crate) start_workflow: StartWorkflow,
    pub(crate) workflows: Workflows,
    pub(crate) lost: LostWorkflows,
    pub(crate) wakeups: Wakeups,
    pub(crate) queues: Queues,
    pub(crate) errands: ErrandLines,
    /// What expired is being deleted.
    pub(crate) expiring: AtomicBool,
    stopped: AtomicBool,
    /// How often the rows were looked through for tasks to offer.
    pub(crate) offer_rounds: AtomicU64,
    /// Numbers of the workflow tasks and the queries of this term, which it is a part of.
    numbers: AtomicU64,
}

impl ShardRuntime {
    pub(crate) fn new(
        cluster: &Cluster,
        (id, replica): (ShardId, &LocalReplica),
        term: u64,
        start_workflow: StartWorkflow,
    ) -> Self {
        let host = cluster.host();
        let (group, metrics) = (replica.group.clone(), host.metrics().clone());
        let checkpoints = host.checkpoints().clone();
        let states = host.meta().watch();
        let level = Box::new(move || states.borrow().settings().level);
        let (of, config) = (group.clone(), host.config());
        let proposer = Proposer::start(of, config, checkpoints, metrics.clone(), level);
        let workflows_max = host.config().in_memory_max / host.shard_ids().count().max(1);
        let began = host.clock().now();
        Self {
            id,
            term,
            rows: replica.rows.clone(),
            cluster: cluster.clone(),
            config: Arc::clone(host.config()),
            clock: host.clock(),
            proposer,
            group,
            metrics,
            start_workflow,
            workflows: Workflows::new(EntityKind::Workflow, workflows_max),
            lost: LostWorkflows::default(),
            wakeups: Wakeups::default(),
            queues: Queues::new(Arc::clone(host.config()), began),
            errands: ErrandLines::default(),
            expiring: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            offer_rounds: AtomicU64::new(0),
            numbers: AtomicU64::new(term << TERM_SHIFT),
        }
    }

    /// Ends the term: nothing is decided or offered in it any more.
    ///
    /// ORDER: actors stop before anything else, in key order, so that a repeated run stops the
    /// same way (D4).
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let workflows = self.workflows.take_all();
        self.metrics.actors(-(workflows.len() as i64));
        for workflow in workflows {
            workflow.stop(&self.cluster, &self.gone());
        }
        self.queues.stop();
        self.wakeups.stop();
        self.errands.stop();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn gone(&self) -> ShardError {
        let leader = self.group.leadership().borrow().leader;
        let leader = leader.filter(|&leader| leader != self.cluster.host().node());
        ShardError::NotLeader { shard: self.id, leader }
    }

    /// Whether a commit may well take long: there is no majority, or the store cannot keep up.
    pub(crate) fn commits_stand_still(&self) -> bool {
        let host = self.cluster.host();
        host.is_alone(self.id) || host.checkpoints().is_admission_slowed()
    }

    /// A number that no other workflow task or query of the shard has. What comes late names one of an
    /// earlier term, which must not be taken for one of this.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Confirms that this node still leads, for answers that no commit stands behind.
    pub(crate) async fn confirm(&self) -> Result<(), ShardError> {
        self.group.read_index().await.map_err(|e| ShardError::Unavailable(e.to_string()))
    }
}
