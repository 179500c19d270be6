//! What a node's shards measure. Registered into the node's registry; every name ends in its unit.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use piton_core::id::ShardId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// All figures of this crate. Clones share them.
#[derive(Clone)]
pub struct ShardMetrics(Arc<Metrics>);

/// Names of types that get a series of their own; clients choose them, so that they have to be bounded.
const TYPES_MAX: usize = 500;
/// The label of all types beyond.
const OTHER_TYPES: &str = "other";

struct Metrics {
    types: Mutex<HashSet<String>>,
    workflow_starts: Family<TypeLabels, Counter>,
    workflow_task_failures: Family<FailureLabels, Counter>,
    timer_lag: Histogram,
    polls: Family<QueueLabels, Gauge>,
    workflow_latency: Histograms<WorkflowLabels>,
    workflow_task_latency: Histograms<TypeLabels>,
    activity_latency: Histograms<TypeLabels>,
    activity_retries: Family<TypeLabels, Counter>,
    activity_failures: Family<TypeLabels, Counter>,
    task_matches: Family<MatchLabels, Counter>,
    queue_depth: Family<QueueLabels, Gauge>,
    queue_age: Family<QueueLabels, Gauge<f64, AtomicU64>>,
    commit_latency: Histogram,
    transitions: Counter,
    transition_failures: Counter,
    entries: Counter,
    checkpoint_latency: Histogram,
    actors: Gauge,
    leads: Family<ShardLabels, Gauge>,
    placements_overdue: Gauge,
    nodes_down: Gauge,
    groups_stopped: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkflowLabels {
    namespace: String,
    workflow_type: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabels {
    namespace: String,
    r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    namespace: String,
    r#type: String,
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    namespace: String,
    task_queue: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MatchLabels {
    /// Who was there first.
    waited: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShardLabels {
    shard: u32,
}

/// 0.1 ms to some 50 s.
fn quick() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 20))
}

/// 1 ms to some 70 minutes.
fn slow() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 12))
}

/// One queue for [`ShardMetrics::show_queues`].
pub(crate) struct QueueFigure {
    pub(crate) namespace: String,
    pub(crate) task_queue: String,
    pub(crate) kind: &'static str,
    pub(crate) depth: u64,
    pub(crate) age: Duration,
    pub(crate) polls: u64,
}

impl Metrics {
    fn register_works(&self, registry: &mut Registry) {
        let s = || Unit::Seconds;
        registry.register_with_unit(
            "workflow",
            "From start to close of a run",
            s(),
            self.workflow_latency.clone(),
        );
        registry.register_with_unit(
            "workflow_task",
            "From schedule to answer",
            s(),
            self.workflow_task_latency.clone(),
        );
        registry.register_with_unit(
            "activity",
            "From schedule to close, all attempts",
            s(),
            self.activity_latency.clone(),
        );
        registry.register_with_unit(
            "task_queue_age",
            "Age of the oldest waiting task",
            s(),
            self.queue_age.clone(),
        );
        registry.register_with_unit(
            "checkpoint",
            "Writing a shard's changes to the store",
            s(),
            self.checkpoint_latency.clone(),
        );
        registry.register(
            "activity_retries",
            "Attempts that will be repeated",
            self.activity_retries.clone(),
        );
        registry.register(
            "activity_failures",
            "Activities that failed or timed out for good",
            self.activity_failures.clone(),
        );
        registry.register(
            "task_queue_depth",
            "Tasks that wait for a worker",
            self.queue_depth.clone(),
        );
        registry.register("actors", "Workflows in memory", self.actors.clone());
        registry.register("shard_leader", "1 where this node leads the shard", self.leads.clone());
    }

    fn register_course(&self, registry: &mut Registry) {
        registry.register("workflow_starts", "Runs begun", self.workflow_starts.clone());
        registry.register(
            "workflow_task_failures",
            "Workflow tasks that failed, by the cause that their event names, or timed out",
            self.workflow_task_failures.clone(),
        );
        let (help, lag) = ("From a timer's due time to its firing", self.timer_lag.clone());
        registry.register_with_unit("timer_lag", help, Unit::Seconds, lag);
        registry.register(
            "task_matches",
            "Tasks that met a poll; waited=poll: at once, since a worker was waiting for one",
            self.task_matches.clone(),
        );
        let help =
            "Shards that have not been held as recorded for minutes, on the meta group's leader";
        registry.register("placements_overdue", help, self.placements_overdue.clone());
        let help = "Other nodes that this one has not heard of for as long as the settings say";
        registry.register("nodes_down", help, self.nodes_down.clone());
        let help = "Groups that this node cannot go on with; the others of them go on";
        registry.register("groups_stopped", help, self.groups_stopped.clone());
        let help = "Polls that wait for a task";
        registry.register("task_queue_polls", help, self.polls.clone());
    }

    fn type_labels(&self, namespace: &str, name: &str) -> TypeLabels {
        TypeLabels { namespace: namespace.to_owned(), r#type: self.bounded(name) }
    }

    /// The name of a type, or that it is one too many.
    fn bounded(&self, name: &str) -> String {
        let mut types = self.types.lock();
        if !types.contains(name) {
            if types.len() >= TYPES_MAX {
                return OTHER_TYPES.to_owned();
            }
            types.insert(name.to_owned());
        }
        name.to_owned()
    }

    fn register_commits(&self, registry: &mut Registry) {
        let latency = self.commit_latency.clone();
        registry.register_with_unit("commit", "From proposal to applied", Unit::Seconds, latency);
        registry.register("transitions", "Transitions committed", self.transitions.clone());
        registry.register(
            "transition_failures",
            "Transitions refused, or whose outcome is unknown",
            self.transition_failures.clone(),
        );
        registry.register("entries", "Raft entries proposed", self.entries.clone());
    }
}

impl ShardMetrics {
    /// Figures that nobody reads.
    #[cfg(test)]
    pub(crate) fn unseen() -> Self {
        Self::register(&mut Registry::default())
    }

    /// Makes the figures and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Metrics {
            types: Mutex::default(),
            workflow_starts: Family::default(),
            workflow_task_failures: Family::default(),
            timer_lag: quick(),
            polls: Family::default(),
            workflow_latency: Family::new_with_constructor(slow),
            workflow_task_latency: Family::new_with_constructor(quick),
            activity_latency: Family::new_with_constructor(slow),
            activity_retries: Family::default(),
            activity_failures: Family::default(),
            task_matches: Family::default(),
            queue_depth: Family::default(),
            queue_age: Family::default(),
            commit_latency: quick(),
            transitions: Counter::default(),
            transition_failures: Counter::default(),
            entries: Counter::default(),
            checkpoint_latency: quick(),
            actors: Gauge::default(),
            leads: Family::default(),
            placements_overdue: Gauge::default(),
            nodes_down: Gauge::default(),
            groups_stopped: Gauge::default(),
        };
        metrics.register_works(registry);
        metrics.register_commits(registry);
        metrics.register_course(registry);
        Self(Arc::new(metrics))
    }

    /// Notes what became of the transitions of one entry.
    pub(crate) fn proposed(&self, committed: usize, failed: usize, latency: Duration) {
        self.0.entries.inc();
        self.0.transitions.inc_by(committed as u64);
        self.0.transition_failures.inc_by(failed as u64);
        if committed > 0 {
            self.0.commit_latency.observe(latency.as_secs_f64());
        }
    }

    /// Notes one checkpoint of one shard.
    pub fn checkpointed(&self, latency: Duration) {
        self.0.checkpoint_latency.observe(latency.as_secs_f64());
    }

    pub(crate) fn actors(&self, change: i64) {
        self.0.actors.inc_by(change);
    }

    pub(crate) fn leads(&self, shard: ShardId, leads: bool) {
        self.0.leads.get_or_create(&ShardLabels { shard: shard.0 }).set(i64::from(leads));
    }

    /// So many shards have not been where they are to be for long.
    pub(crate) fn placements_overdue(&self, count: usize) {
        self.0.placements_overdue.set(count as i64);
    }

    /// So many of the other nodes are down.
    pub(crate) fn nodes_down(&self, count: usize) {
        self.0.nodes_down.set(count as i64);
    }

    /// This node cannot go on with so many groups.
    pub(crate) fn groups_stopped(&self, count: usize) {
        self.0.groups_stopped.set(count as i64);
    }

    pub(crate) fn workflow_started(&self, namespace: &str, workflow_type: &str) {
        self.0.workflow_starts.get_or_create(&self.0.type_labels(namespace, workflow_type)).inc();
    }

    pub(crate) fn workflow_task_failed(
        &self,
        namespace: &str,
        workflow_type: &str,
        cause: &'static str,
    ) {
        let labels = FailureLabels {
            namespace: namespace.to_owned(),
            r#type: self.0.bounded(workflow_type),
            cause,
        };
        self.0.workflow_task_failures.get_or_create(&labels).inc();
    }

    /// A task that came met a poll that waited.
    pub(crate) fn task_met_poll(&self) {
        self.0.task_matches.get_or_create(&MatchLabels { waited: "poll" }).inc();
    }

    /// A poll that came met a task that waited.
    pub(crate) fn poll_met_task(&self) {
        self.0.task_matches.get_or_create(&MatchLabels { waited: "task" }).inc();
    }

    /// Notes how late a timer fires.
    pub(crate) fn timer_fired(&self, lag: Duration) {
        self.0.timer_lag.observe(lag.as_secs_f64());
    }

    pub(crate) fn workflow_closed(
        &self,
        namespace: &str,
        workflow_type: &str,
        outcome: &'static str,
        latency: Duration,
    ) {
        let labels = WorkflowLabels {
            namespace: namespace.to_owned(),
            workflow_type: self.0.bounded(workflow_type),
            outcome,
        };
        self.0.workflow_latency.get_or_create(&labels).observe(latency.as_secs_f64());
    }

    pub(crate) fn workflow_task_done(
        &self,
        namespace: &str,
        workflow_type: &str,
        latency: Duration,
    ) {
        let labels = self.0.type_labels(namespace, workflow_type);
        self.0.workflow_task_latency.get_or_create(&labels).observe(latency.as_secs_f64());
    }

    pub(crate) fn activity_closed(
        &self,
        namespace: &str,
        activity_type: &str,
        latency: Duration,
        failed: bool,
    ) {
        let labels = self.0.type_labels(namespace, activity_type);
        self.0.activity_latency.get_or_create(&labels).observe(latency.as_secs_f64());
        if failed {
            self.0.activity_failures.get_or_create(&labels).inc();
        }
    }

    pub(crate) fn activity_retried(&self, namespace: &str, activity_type: &str) {
        self.0.activity_retries.get_or_create(&self.0.type_labels(namespace, activity_type)).inc();
    }

    /// Replaces what is shown of the task queues; called before each scrape.
    pub(crate) fn show_queues(&self, queues: Vec<QueueFigure>) {
        self.0.queue_depth.clear();
        self.0.queue_age.clear();
        self.0.polls.clear();
        for queue in queues {
            let labels = QueueLabels {
                namespace: queue.namespace,
                task_queue: queue.task_queue,
                kind: queue.kind,
            };
            self.0.queue_depth.get_or_create(&labels).set(queue.depth as i64);
            self.0.queue_age.get_or_create(&labels).set(queue.age.as_secs_f64());
            self.0.polls.get_or_create(&labels).set(queue.polls as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_beyond_the_limit_share_one_name() {
        let metrics = ShardMetrics::unseen();
        for number in 0..TYPES_MAX {
            assert_eq!(metrics.0.bounded(&number.to_string()), number.to_string());
        }
        assert_eq!(metrics.0.bounded("one more"), OTHER_TYPES);
        assert_eq!(metrics.0.bounded("0"), "0");
    }
}
