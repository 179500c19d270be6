//! What befalls the cluster, one fault after the other, as drawn from the seed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, IteratorRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::Client;
use crate::cluster::{Cluster, READY_MAX};
use crate::journal::Journal;
use crate::kinds::Kind;
use crate::rot;
use crate::storm;

/// How long nodes are paused, in ms: less than an election takes, more, and much more.
const PAUSES: [u64; 3] = [1_000, 5_000, 12_000];
/// By how much clocks are ahead that are wrong.
const CLOCKS_MS: [i64; 4] = [-10_000, -400, 400, 10_000];
/// Until the timers of a storm come due, beside the time that it takes to start so many.
const STORM_IN: Duration = Duration::from_secs(3);
const STORM_STARTED_PER_SECOND: u64 = 4_000;
const STOP_MAX: Duration = Duration::from_secs(30);

/// A fault that was.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) node: usize,
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
    /// When a node that lacked much by then was there again, to catch up.
    pub(crate) back_us: Option<u64>,
    /// When all nodes were ready again, or had caught up.
    pub(crate) ready_us: u64,
    /// Shards that the node led.
    pub(crate) led: Vec<u32>,
    pub(crate) in_flight: u64,
}

pub(crate) struct Nemesis<'a> {
    cluster: &'a Cluster,
    client: &'a Client,
    journal: &'a Journal,
    random: SmallRng,
    plan: Plan,
    drawn: Vec<Kind>,
    pub(crate) faults: Vec<Fault>,
}

/// What is asked of the nemesis.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kinds: Vec<Kind>,
    /// How often each of them is to hit; it goes on for longer where that takes longer.
    pub(crate) least: usize,
    /// Between two of them, on average.
    pub(crate) calm: Duration,
    /// How long a node is away that needs a snapshot then, on average.
    pub(crate) away: Duration,
    pub(crate) storm_timers: u64,
    pub(crate) seed: u64,
}

impl<'a> Nemesis<'a> {
    pub(crate) fn new(cluster: &'a Cluster, client: &'a Client, plan: Plan) -> Self {
        let (journal, random) = (&client.journal, SmallRng::seed_from_u64(plan.seed));
        Self { cluster, client, journal, random, plan, drawn: Vec::new(), faults: Vec::new() }
    }

    /// Hurts the cluster until the time is over and each kind has hit, and leaves it whole.
    ///
    /// # Errors
    /// When a node does not come back.
    pub(crate) async fn rage(&mut self, end: Instant) -> Result<()> {
        while Instant::now() < end || !self.is_done() {
            let calm = self.about(self.plan.calm);
            sleep(calm).await;
            self.check_alive()?;
            let Some(kind) = self.draw() else { continue };
            if Instant::now() >= end && self.is_done() {
                break;
            }
            self.inflict(kind).await?;
        }
        Ok(())
    }

    /// Whether each kind was there so often.
    fn is_done(&self) -> bool {
        let of = |kind: &Kind| self.faults.iter().filter(|fault| fault.kind == *kind).count();
        self.plan.kinds.iter().all(|kind| of(kind) >= self.plan.least)
    }

    /// Half as long to half as long again.
    fn about(&mut self, span: Duration) -> Duration {
        span.mul_f64(self.random.random_range(0.5..1.5))
    }

    /// Each kind in turn, in an order that is drawn anew.
    fn draw(&mut self) -> Option<Kind> {
        if self.drawn.is_empty() {
            self.drawn.clone_from(&self.plan.kinds);
            self.drawn.shuffle(&mut self.random);
        }
        self.drawn.pop()
    }

    fn check_alive(&self) -> Result<()> {
        for node in self.cluster.members.all() {
            if let Some(how) = self.cluster.ended(node) {
                bail!("node {node} ended by itself: {how}");
            }
        }
        Ok(())
    }

    /// Mostly the node that leads most.
    fn victim(&mut self, leaders: &BTreeMap<u32, usize>) -> usize {
        let led = |node: usize| leaders.values().filter(|leader| **leader == node).count();
        let members = self.cluster.members.all();
        if self.random.random_range(0..100) < 75 {
            members.into_iter().max_by_key(|node| led(*node)).unwrap_or_default()
        } else {
            self.cluster.members.at(self.random.random_range(0..members.len()))
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
        let (to_us, ready_us, back_us) = (0, 0, None);
        self.faults.push(Fault { kind, node, from_us, to_us, back_us, ready_us, led, in_flight });
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
        for node in self.cluster.members.all() {
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
                let away = self.about(self.plan.away);
                self.kill(&[node], away).await?;
                self.is_back();
                self.cluster.await_ready(node).await?;
                self.cluster.await_whole().await?;
            }
            Kind::RotStore => self.rot(node, "store").await?,
            Kind::RotLog => self.rot(node, "log").await?,
            Kind::RotSnapshot => self.rot(node, "snapshot").await?,
            Kind::KillMost => {
                let most = self.others_with(node, self.cluster.members.count() / 2 + 1);
                let away = self.millis(1_000, 4_000);
                self.kill(&most, away).await?;
            }
            Kind::KillAll => {
                let all = self.cluster.members.all();
                let away = self.millis(100, 2_000);
                self.kill(&all, away).await?;
            }
            Kind::Restart => self.restart(node).await?,
            Kind::RollingRestart => {
                for node in self.cluster.members.all() {
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
            Kind::Drain => self.drain(node).await?,
            Kind::Transfer => self.transfer(node).await?,
            Kind::Swap => self.swap(node).await?,
            Kind::Replace => self.replace(node).await?,
            Kind::Storm => self.storm(node).await?,
            Kind::PowerCut => self.cut_power().await?,
            Kind::Clock => self.set_clock(node).await?,
            _ => self.hurt_links(kind, node).await,
        }
        Ok(())
    }

    /// Members but this one.
    fn others(&self, node: usize) -> Vec<usize> {
        self.cluster.members.all().into_iter().filter(|other| *other != node).collect()
    }

    /// So many nodes, with this one among them.
    fn others_with(&mut self, node: usize, count: usize) -> Vec<usize> {
        let mut others = self.others(node);
        others.shuffle(&mut self.random);
        others.truncate(count - 1);
        others.push(node);
        others
    }

    async fn kill(&self, nodes: &[usize], away: Duration) -> Result<()> {
        self.cluster.kill_all(nodes).await;
        sleep(away).await;
        for node in nodes {
            self.cluster.start(*node).await?;
        }
        Ok(())
    }

    /// From now on a node catches up.
    fn is_back(&mut self) {
        let now = self.journal.now_us();
        if let Some(fault) = self.faults.last_mut() {
            fault.back_us = Some(now);
        }
    }

    async fn rot(&mut self, node: usize, what: &str) -> Result<()> {
        self.cluster.kill(node).await;
        let damaged = rot::flip(&self.cluster.data(node).join(what), &mut self.random)?;
        self.journal.note(&format!("bits of {damaged:?} are flipped"));
        self.cluster.start(node).await?;
        self.cluster.await_ready(node).await?;
        // What it had to give up is filled anew by the others.
        self.cluster.await_whole().await?;
        let (found, refilled) = self.cluster.damage(node).await;
        self.note(&format!(
            "node {node} found damage {found} times, {refilled} groups were refilled"
        ));
        Ok(())
    }

    async fn restart(&self, node: usize) -> Result<()> {
        if !self.cluster.stop(node, STOP_MAX).await {
            bail!("node {node} does not stop within {STOP_MAX:?} of SIGTERM");
        }
        self.cluster.start(node).await
    }

    async fn drain(&self, node: usize) -> Result<()> {
        let id = self.cluster.id_of(node).await?;
        self.cluster.order_patiently(&["drain", &id]).await?;
        self.restart(node).await?;
        self.cluster.await_ready(node).await?;
        self.cluster.order_patiently(&["drain", "--undo", &id]).await
    }

    /// One of the shards that a node leads is led by another one from now on.
    async fn transfer(&mut self, from: usize) -> Result<()> {
        let (status, from) = (self.cluster.status().await?, self.cluster.id_of(from).await?);
        let led = status.shards().iter().filter(|shard| shard.leader.as_ref() == Some(&from));
        let Some(shard) = led.choose(&mut self.random) else { return Ok(()) };
        let others: Vec<&String> = shard.placed.iter().filter(|id| **id != from).collect();
        let to = others.choose(&mut self.random).context("a shard has one replica alone")?;
        self.note(&format!("shard {} goes from {from} to {to}", shard.name));
        self.cluster.order(&["transfer", &shard.name, to]).await
    }

    async fn swap(&mut self, gone: usize) -> Result<()> {
        let cluster = self.cluster;
        let spare = cluster.spare().context("all nodes are members")?;
        cluster.join(spare, &cluster.members.all()).await?;
        cluster.members.add(spare);
        self.note(&format!("node {spare} has joined"));
        let id = cluster.id_of(gone).await?;
        if self.random.random_bool(0.5) {
            self.move_by_hand(&id, spare).await?;
        }
        cluster.order_patiently(&["remove", &id]).await?;
        self.note(&format!("node {gone} is removed"));
        cluster.members.remove(gone);
        cluster.kill(gone).await;
        cluster.wipe(gone)?;
        cluster.await_whole().await
    }

    /// A replica of one shard goes from one node to another, which leads it then.
    async fn move_by_hand(&mut self, from: &str, to: usize) -> Result<()> {
        let cluster = self.cluster;
        cluster.order(&["rebalance", "pause"]).await?;
        let to = cluster.id_of(to).await?;
        let held = cluster.status().await?.held_by(from);
        let may_move = held.iter().filter(|shard| !shard.placed.contains(&to));
        if let Some(shard) = may_move.choose(&mut self.random) {
            self.note(&format!("a replica of shard {} goes from {from} to {to}", shard.name));
            cluster.order_patiently(&["move", &shard.name, from, &to]).await?;
            cluster.order(&["transfer", &shard.name, &to]).await?;
        }
        cluster.order(&["rebalance", "resume"]).await
    }

    async fn replace(&mut self, node: usize) -> Result<()> {
        let cluster = self.cluster;
        let id = cluster.id_of(node).await?;
        cluster.kill(node).await;
        cluster.wipe(node)?;
        sleep(self.millis(0, 4_000)).await;
        self.is_back();
        cluster.join(node, &self.others(node)).await?;
        self.note(&format!("node {node} has joined anew"));
        cluster.order_patiently(&["replace", &id]).await?;
        cluster.await_whole().await
    }

    async fn storm(&mut self, node: usize) -> Result<()> {
        let starting = Duration::from_secs(self.plan.storm_timers / STORM_STARTED_PER_SECOND);
        let due = Instant::now() + STORM_IN + starting;
        storm::brew(self.client, self.plan.storm_timers, due).await;
        sleep_until(due - self.millis(0, 500)).await;
        let away = self.millis(300, 3_000);
        self.kill(&[node], away).await
    }

    /// A machine that comes back may have to do without its store.
    async fn cut_power(&mut self) -> Result<()> {
        let all = self.cluster.members.all();
        self.cluster.kill_all(&all).await;
        for node in all {
            if self.random.random_bool(0.5) {
                rot::lose_store(&self.cluster.data(node))?;
            }
            self.cluster.start(node).await?;
        }
        Ok(())
    }

    /// The clock is set while the node runs, or was wrong when it started.
    async fn set_clock(&mut self, node: usize) -> Result<()> {
        let ahead = CLOCKS_MS[self.random.random_range(0..CLOCKS_MS.len())];
        let is_wrong_at_start = self.random.random_bool(0.5);
        self.note(&format!("ahead by {ahead} ms, at its start: {is_wrong_at_start}"));
        for ahead in [ahead, 0] {
            self.cluster.set_clock(node, ahead)?;
            if is_wrong_at_start {
                self.restart(node).await?;
                self.cluster.await_ready(node).await?;
            }
            sleep(self.millis(1_000, 5_000)).await;
        }
        Ok(())
    }

    fn note(&self, what: &str) {
        println!("   {:7.1} s    {what}", self.seconds());
        self.journal.note(what);
    }

    async fn hurt_links(&mut self, kind: Kind, node: usize) {
        let others = self.others(node);
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
    let members = cluster.members.all();
    for node in &members {
        cluster.resume(*node);
    }
    let end = Instant::now() + READY_MAX;
    for node in members {
        cluster.await_ready(node).await?;
        if Instant::now() > end {
            bail!("the nodes are not ready after {READY_MAX:?}");
        }
    }
    Ok(())
}
