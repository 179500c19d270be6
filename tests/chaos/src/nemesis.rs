//! What befalls the cluster, one fault after the other, as drawn from the seed.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, READY_MAX};
use crate::journal::Journal;
use crate::rot;

/// How long nodes are paused, in ms: less than an election takes, more, and much more.
const PAUSES: [u64; 3] = [1_000, 5_000, 12_000];
const STOP_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// SIGKILL of a node, started again a little later.
    Kill,
    /// SIGKILL of so many that there is no majority.
    KillMost,
    /// SIGKILL of all at once.
    KillAll,
    /// SIGTERM, and a new start.
    Restart,
    /// SIGTERM of all nodes, one after the other.
    RollingRestart,
    /// SIGSTOP, then SIGCONT.
    Pause,
    /// A node cut off from all others.
    Partition,
    /// What a node sends is lost, or what is sent to it.
    OneWay,
    /// Two nodes that do not reach each other, while others reach both.
    Bridge,
    /// Delay and little bandwidth from and to a node.
    Slow,
    /// All connections between nodes broken at once, several times.
    Reset,
    /// Connections break again and again.
    Flaky,
    /// A node that is away for so long that it needs a snapshot.
    Away,
    /// Bits flip in the state store of a node that was killed.
    RotStore,
    /// The same in its log. Not among `all`, as long as a damaged log is not refilled from peers.
    RotLog,
    /// The same in a snapshot.
    RotSnapshot,
}

impl Kind {
    pub(crate) const ALL: &[Kind] = &[
        Kind::Kill,
        Kind::KillMost,
        Kind::KillAll,
        Kind::Restart,
        Kind::RollingRestart,
        Kind::Pause,
        Kind::Partition,
        Kind::OneWay,
        Kind::Bridge,
        Kind::Slow,
        Kind::Reset,
        Kind::Flaky,
        Kind::Away,
        Kind::RotStore,
    ];

    /// Whether it takes the node's shards away from it, so that there is a failover to measure.
    pub(crate) fn fails_over(self) -> bool {
        matches!(self, Self::Kill | Self::Restart | Self::Pause | Self::Partition | Self::Away)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("?", |value| value.get_name()))
    }
}

/// Kinds of faults, by commas.
#[derive(Clone, Debug)]
pub(crate) struct Kinds(pub(crate) Vec<Kind>);

impl FromStr for Kinds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self(Kind::ALL.to_vec())),
            "none" => Ok(Self(Vec::new())),
            _ => text
                .split(',')
                .map(|name| Kind::from_str(name, false))
                .collect::<Result<_, _>>()
                .map(Self),
        }
    }
}

/// A fault that was.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) node: usize,
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
    /// When all nodes were ready again.
    pub(crate) ready_us: u64,
    /// Shards that the node led.
    pub(crate) led: Vec<u32>,
    pub(crate) in_flight: u64,
}

pub(crate) struct Nemesis<'a> {
    cluster: &'a Cluster,
    journal: &'a Journal,
    random: SmallRng,
    kinds: Vec<Kind>,
    drawn: Vec<Kind>,
    pub(crate) faults: Vec<Fault>,
}

impl<'a> Nemesis<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        journal: &'a Journal,
        kinds: Vec<Kind>,
        seed: u64,
    ) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self { cluster, journal, random, kinds, drawn: Vec::new(), faults: Vec::new() }
    }

    /// Hurts the cluster until the time is over, and leaves it whole.
    ///
    /// # Errors
    /// When a node does not come back.
    pub(crate) async fn rage(&mut self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            let calm = Duration::from_millis(self.random.random_range(2_000..6_000));
            sleep(calm.min(end.saturating_duration_since(Instant::now()))).await;
            self.check_alive()?;
            let Some(kind) = self.draw() else { continue };
            if Instant::now() >= end {
                break;
            }
            self.inflict(kind).await?;
        }
        Ok(())
    }

    /// Each kind in turn, in an order that is drawn anew.
    fn draw(&mut self) -> Option<Kind> {
        if self.drawn.is_empty() {
            self.drawn.clone_from(&self.kinds);
            self.drawn.shuffle(&mut self.random);
        }
        self.drawn.pop()
    }

    fn check_alive(&self) -> Result<()> {
        for node in 0..self.cluster.len() {
            if let Some(how) = self.cluster.ended(node) {
                bail!("node {node} ended by itself: {how}");
            }
        }
        Ok(())
    }

    /// Mostly the node that leads most.
    fn victim(&mut self, leaders: &BTreeMap<u32, usize>) -> usize {
        let led = |node: usize| leaders.values().filter(|leader| **leader == node).count();
        if self.random.random_range(0..100) < 75 {
            (0..self.cluster.len()).max_by_key(|node| led(*node)).unwrap_or_default()
        } else {
            self.random.random_range(0..self.cluster.len())
        }
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.random.random_range(from..to))
    }

    async fn inflict(&mut self, kind: Kind) -> Result<()> {
        let leaders = self.cluster.leaders().await;
        let node = self.victim(&leaders);
        let led = leaders.iter().filter(|(_, leader)| **leader == node).map(|(s, _)| *s).collect();
        let in_flight = self.journal.in_flight();
        self.journal.note(&format!("{kind} of node {node}, which leads {led:?}"));
        println!("   {:7.1} s  {kind} of node {node}, {in_flight} calls in flight", self.seconds());
        let from_us = self.journal.now_us();
        let fault = Fault { kind, node, from_us, to_us: 0, ready_us: 0, led, in_flight };
        self.faults.push(fault);
        let done = self.carry_out(kind, node).await;
        let to_us = self.journal.now_us();
        self.journal.note(&format!("{kind} of node {node} is over"));
        let ready = match done {
            Ok(()) => self.await_all_ready().await,
            Err(error) => Err(error),
        };
        if let Some(fault) = self.faults.last_mut() {
            (fault.to_us, fault.ready_us) = (to_us, self.journal.now_us());
        }
        ready.map_err(|error| error.context(format!("after {kind} of node {node}")))
    }

    fn seconds(&self) -> f64 {
        self.journal.now_us() as f64 / 1e6
    }

    async fn await_all_ready(&self) -> Result<()> {
        for node in 0..self.cluster.len() {
            self.cluster.await_ready(node).await?;
        }
        Ok(())
    }

    async fn carry_out(&mut self, kind: Kind, node: usize) -> Result<()> {
        match kind {
            Kind::Kill => {
                let away = self.millis(300, 6_000);
                self.kill(&[node], away).await?;
            }
            Kind::Away => {
                let away = self.millis(20_000, 30_000);
                self.kill(&[node], away).await?;
            }
            Kind::RotStore => self.rot(node, "store").await?,
            Kind::RotLog => self.rot(node, "log").await?,
            Kind::RotSnapshot => self.rot(node, "snapshot").await?,
            Kind::KillMost => {
                let most = self.others_with(node, self.cluster.len() / 2 + 1);
                let away = self.millis(1_000, 4_000);
                self.kill(&most, away).await?;
            }
            Kind::KillAll => {
                let all: Vec<usize> = (0..self.cluster.len()).collect();
                let away = self.millis(100, 2_000);
                self.kill(&all, away).await?;
            }
            Kind::Restart => self.restart(node).await?,
            Kind::RollingRestart => {
                for node in 0..self.cluster.len() {
                    self.restart(node).await?;
                    self.cluster.await_ready(node).await?;
                }
            }
            Kind::Pause => {
                let span = PAUSES[self.random.random_range(0..PAUSES.len())];
                self.cluster.pause(node);
                sleep(Duration::from_millis(span)).await;
                self.cluster.resume(node);
            }
            _ => self.hurt_links(kind, node).await,
        }
        Ok(())
    }

    /// So many nodes, with this one among them.
    fn others_with(&mut self, node: usize, count: usize) -> Vec<usize> {
        let mut others: Vec<usize> = (0..self.cluster.len()).filter(|n| *n != node).collect();
        others.shuffle(&mut self.random);
        others.truncate(count - 1);
        others.push(node);
        others
    }

    async fn kill(&self, nodes: &[usize], away: Duration) -> Result<()> {
        for node in nodes {
            self.cluster.kill(*node).await;
        }
        sleep(away).await;
        for node in nodes {
            self.cluster.start(*node).await?;
        }
        Ok(())
    }

    async fn rot(&mut self, node: usize, what: &str) -> Result<()> {
        self.cluster.kill(node).await;
        let damaged = rot::flip(&self.cluster.data(node).join(what), &mut self.random)?;
        self.journal.note(&format!("bits of {damaged:?} are flipped"));
        self.cluster.start(node).await
    }

    async fn restart(&self, node: usize) -> Result<()> {
        if !self.cluster.stop(node, STOP_MAX).await {
            bail!("node {node} does not stop within {STOP_MAX:?} of SIGTERM");
        }
        self.cluster.start(node).await
    }

    async fn hurt_links(&mut self, kind: Kind, node: usize) {
        let others: Vec<usize> = (0..self.cluster.len()).filter(|n| *n != node).collect();
        let links = &self.cluster.links;
        let is_inward = self.random.random_bool(0.5);
        let delay = Duration::from_millis(self.random.random_range(50..300));
        let rate = self.random.random_range(100_000..1_000_000);
        let one = others[self.random.random_range(0..others.len())];
        let span = Duration::from_millis(self.random.random_range(2_000..12_000));
        match kind {
            Kind::OneWay => {
                for other in others {
                    let (from, to) = if is_inward { (other, node) } else { (node, other) };
                    links.change(from, to, |condition| condition.is_cut = true);
                }
            }
            Kind::Bridge => {
                links.change(node, one, |condition| condition.is_cut = true);
                links.change(one, node, |condition| condition.is_cut = true);
            }
            Kind::Reset => {
                for _ in 0..5 {
                    for from in 0..self.cluster.len() {
                        for to in 0..self.cluster.len() {
                            links.change(from, to, |condition| condition.resets += 1);
                        }
                    }
                    sleep(span / 10).await;
                }
            }
            _ => {
                for (from, to) in others.iter().flat_map(|o| [(node, *o), (*o, node)]) {
                    links.change(from, to, |condition| match kind {
                        Kind::Slow => {
                            condition.delay = delay;
                            condition.bytes_per_second = Some(rate);
                        }
                        Kind::Flaky => condition.break_permille = 20,
                        _ => condition.is_cut = true,
                    });
                }
            }
        }
        sleep(span).await;
        links.heal();
    }
}

/// Ends all faults, whatever is under way.
///
/// # Errors
/// When a node does not come back.
pub(crate) async fn make_whole(cluster: &Cluster) -> Result<()> {
    cluster.links.heal();
    for node in 0..cluster.len() {
        cluster.resume(node);
    }
    let end = Instant::now() + READY_MAX;
    for node in 0..cluster.len() {
        cluster.await_ready(node).await?;
        if Instant::now() > end {
            bail!("the nodes are not ready after {READY_MAX:?}");
        }
    }
    Ok(())
}
