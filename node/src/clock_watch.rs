//! Compares this node's clock with those of the others (D12). What fires too early cannot be taken back, and
//! times that are wrong stay in histories, so a node whose clock is far from most others' fires no timers and
//! leads nothing until it is near again. And has it follow this machine's time, little by little.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use piton_core::time::Span;
use piton_raft::NodeId;
use piton_shard::Cluster;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often they are compared, and how often before that could be done first.
const EVERY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(50);
/// A clock that is off by more is not to be relied on (D12).
pub const CLOCK_OFF_MAX: Duration = Duration::from_millis(250);
/// A node that starts waits so long for a majority to compare its clock with.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// How long it may take to hand over what is led by a clock that is off.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);

/// Compares, until it is dropped.
pub struct ClockWatch {
    task: JoinHandle<()>,
}

impl ClockWatch {
    /// `offset_of` answers by how many nanoseconds a node's clock is ahead of this one's, if it is reached.
    pub fn start(
        cluster: &Cluster,
        offset_of: impl Fn(NodeId) -> Option<i64> + Send + Sync + 'static,
        registry: &mut Registry,
    ) -> Self {
        let ahead = Gauge::<f64, AtomicU64>::default();
        let help = "By how much this node's clock is ahead of the median of all that are reached";
        registry.register_with_unit("clock_ahead", help, Unit::Seconds, ahead.clone());
        let behind = Gauge::<f64, AtomicU64>::default();
        let help =
            "By how much this machine's time is ahead of this node's clock, which works it off";
        registry.register_with_unit("clock_slew", help, Unit::Seconds, behind.clone());
        let cluster = cluster.clone();
        let task = tokio::spawn(async move {
            let (began, clock) = (Instant::now(), cluster.host().clock());
            let mut is_judged = false;
            loop {
                clock.slew();
                behind.set(clock.wall_is_ahead().as_nanos() as f64 / 1e9);
                let (offsets, members) = offsets(&cluster, &offset_of);
                let waited = (!is_judged).then(|| began.elapsed());
                if let Some(nanos) = compare(&offsets, members, waited) {
                    ahead.set(nanos as f64 / 1e9);
                    cluster.host().set_clock_ahead(Some(Span::from_nanos(nanos)));
                    judge(&cluster, nanos).await;
                    is_judged = true;
                }
                tokio::time::sleep(if is_judged { EVERY } else { SOON }).await;
            }
        });
        Self { task }
    }

    /// Before anything is led: a node that has others to compare its clock with relies on it only then.
    pub fn begin(cluster: &Cluster) {
        let this = cluster.host().node();
        if members(cluster).iter().any(|node| *node != this) {
            cluster.host().trust_clock(false);
        }
    }
}

impl Drop for ClockWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn members(cluster: &Cluster) -> Vec<NodeId> {
    let state = cluster.meta().state();
    let members = state.nodes().filter(|node| node.state.is_member());
    members.map(|node| node.id).collect()
}

/// Nanoseconds by which each other member's clock is ahead of this one's, and how many members there are.
fn offsets(cluster: &Cluster, offset_of: impl Fn(NodeId) -> Option<i64>) -> (Vec<i64>, usize) {
    let (this, members) = (cluster.host().node(), members(cluster));
    let others = members.iter().filter(|node| **node != this);
    let offsets = others.filter_map(|node| offset_of(*node));
    (offsets.collect(), members.len())
}

async fn judge(cluster: &Cluster, ahead: i64) {
    let is_off = Duration::from_nanos(ahead.unsigned_abs()) > CLOCK_OFF_MAX;
    let milliseconds = ahead / 1_000_000;
    if cluster.trust_clock(!is_off, HAND_OVER_MAX).await {
        if is_off {
            tracing::error!(
                milliseconds,
                "this node's clock is ahead of most others' by so much, or behind where it is less \
                 than 0: it fires no timers and leads nothing. It follows the time of this machine by \
                 10 ms in a second; a restart takes it over at once"
            );
        } else {
            tracing::debug!(milliseconds, "this node's clock is near the others'");
        }
    }
}

/// By how much this node's clock is ahead of most of the `members`' clocks, of which the others are at these
/// offsets. `None`: with fewer than a majority, or where half of them say this and half that, nobody can tell
/// which clocks are right, and what was found before stays. A node that starts has found nothing, and has
/// `waited`: when that was for long, it relies on what it has.
fn compare(offsets: &[i64], members: usize, waited: Option<Duration>) -> Option<i64> {
    let is_compared = offsets.len() + 1 > members / 2 && !is_torn(middle(offsets));
    let waits_no_more = waited.is_some_and(|waited| waited >= FIRST_WAIT);
    (is_compared || waits_no_more).then(|| ahead_of_median(offsets))
}

/// By how much this node's clock, which is 0 here, is ahead of the median of all: for an even number the mean of
/// the two in the middle, so that all nodes are held against the same. Of two that are too far apart it is the
/// one that is nearer to this node's, since nobody can tell which of them is right.
fn ahead_of_median(others: &[i64]) -> i64 {
    let (low, high) = middle(others);
    let median = match () {
        () if !is_torn((low, high)) => low + (high - low) / 2,
        () if low.unsigned_abs() < high.unsigned_abs() => low,
        () => high,
    };
    median.saturating_neg()
}

fn is_torn((low, high): (i64, i64)) -> bool {
    Duration::from_nanos(low.abs_diff(high)) > CLOCK_OFF_MAX
}

/// The two offsets in the middle of all, this node's 0 among them; the same twice where their number is odd.
fn middle(others: &[i64]) -> (i64, i64) {
    let mut all = [others, &[0]].concat();
    all.sort_unstable();
    (all[(all.len() - 1) / 2], all[all.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_starts_relies_on_its_clock_once_a_majority_has_been_heard() {
        const OFF: i64 = 400_000_000;
        let (at_once, waited) = (Some(Duration::ZERO), Some(FIRST_WAIT));
        assert_eq!(compare(&[], 1, at_once), Some(0), "it is alone");
        // It does not know of its cluster yet.
        assert_eq!(compare(&[], 0, at_once), Some(0));
        assert_eq!(compare(&[], 3, at_once), None);
        assert_eq!(compare(&[-OFF], 5, at_once), None);
        assert_eq!(compare(&[-OFF, -OFF], 5, at_once), Some(OFF));
        // The others are down, and nobody else could tell.
        assert_eq!(compare(&[], 3, waited), Some(0));
        assert_eq!(compare(&[-OFF, -OFF], 9, waited), Some(OFF));
    }

    /// Goal: of two clocks that differ neither is relied on for being one's own, while a third can tell.
    #[test]
    fn clocks_that_are_torn_say_nothing() {
        const OFF: i64 = 400_000_000;
        for torn in [&[-OFF] as &[i64], &[-OFF, 7, -OFF], &[OFF, OFF, -7]] {
            assert_eq!(compare(torn, torn.len() + 1, Some(Duration::ZERO)), None);
            assert_eq!(compare(torn, torn.len() + 1, None), None, "what was found stays");
            // So long nobody else has come who could tell.
            assert!(compare(torn, torn.len() + 1, Some(FIRST_WAIT)).is_some());
        }
        assert_eq!(compare(&[8], 3, None), Some(-4), "they agree");
        assert_eq!(compare(&[-OFF, -OFF], 3, None), Some(OFF));
    }

    #[test]
    fn the_clock_that_differs_from_most_is_the_one_that_is_off() {
        const OFF: i64 = 400_000_000;
        // Three nodes, of which one is ahead.
        assert_eq!(ahead_of_median(&[-OFF, -OFF]), OFF);
        assert_eq!(ahead_of_median(&[OFF, 3]), -3);
        // Whoever asks, it is the same that each is held against.
        assert_eq!(ahead_of_median(&[100, 300, 400]), -200);
        assert_eq!(ahead_of_median(&[-100, 200, 300]), -100);
        // Of two nobody knows which; alone there is nothing to compare with.
        assert_eq!(ahead_of_median(&[OFF]), 0);
        assert_eq!(ahead_of_median(&[-OFF]), 0);
        assert_eq!(ahead_of_median(&[]), 0);
        // Five, of which one cannot be reached.
        assert_eq!(ahead_of_median(&[OFF, OFF + 1, OFF + 2]), -OFF);
        assert_eq!(ahead_of_median(&[i64::MIN, i64::MIN]), i64::MAX);
    }
}
