//! All groups on this node: start, stop, one log, one switch and one runtime for all of them.
//!
//! Owns what survives a restart: which state, log and snapshot fit together when a group starts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Notify, oneshot, watch};

use crate::config::{NodeConfig, NodeId, Tuning};
use crate::error::{RaftError, ReplicaError};
use crate::execution::{Execution, blocking};
use crate::fit;
use crate::floor::elect_above_floor;
use crate::group::{Group, Leadership, Running, admission, watch_leadership};
use crate::halt::Halts;
use crate::log::{Disk, EntryRecord, GroupId, Log, LogError};
use crate::log_store::LogStore;
use crate::network::{Network, Sendings};
use crate::purge::{HeldLogs, KeptFrom, watch_log_size};
use crate::replica::Replica;
use crate::replica_thread::ReplicaThread;
use crate::rounds::Rounds;
use crate::scrub::{DamageStats, Pace, scrub};
use crate::snapshot::{SnapshotStats, Snapshots};
use crate::state_machine::StateMachine;
use crate::switch::{Member, Switch, SwitchInbox};
use crate::takeover::replace_lost;
use crate::types::{Entry, LogId, Membership, Payload, Raft, log_id, term_of};
use crate::wire;

mod leave;
mod refill;
mod slot;
mod state;

use state::Applied;

/// Where the log lies in a node's directory.
pub const LOG_DIRECTORY: &str = "log";
/// Where the snapshots lie.
pub const SNAPSHOT_DIRECTORY: &str = "snapshot";

/// All groups of this node.
#[derive(Clone)]
pub struct Groups {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    tuning: Tuning,
    openraft: Arc<openraft::Config>,
    log: Log,
    switch: Arc<Switch>,
    handle: Handle,
    snapshot_turn: Arc<tokio::sync::Mutex<()>>,
    snapshot_stats: Arc<SnapshotStats>,
    damage: Arc<DamageStats>,
    failed: watch::Sender<Option<String>>,
    halts: Halts,
    half_forgotten: Vec<GroupId>,
    held: Arc<HeldLogs>,
    /// `None` for a group that is being started, stopped or forgotten.
    groups: Mutex<BTreeMap<GroupId, Option<Group>>>,
    /// `None` where everything runs on a caller's.
    runtime: Mutex<Option<Runtime>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A runtime must not be waited for in asynchronous code, where this may well run.
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Groups {
    /// Opens the node's log; no group runs yet. Blocks while the log is recovered.
    ///
    /// # Errors
    /// When the log cannot be opened, lacks what is known beside it (nothing is written then), or the
    /// tuning contradicts itself.
    ///
    /// # Panics
    /// With `Execution::Inline` outside of a runtime, since there is none to run on.
    pub fn open(config: NodeConfig) -> Result<Groups, RaftError> {
        let NodeConfig { node, dir, disk, transport, states, tuning } = config;
        let openraft = Arc::new(tuning.to_openraft()?);
        let open = match tuning.execution {
            Execution::Threads => Log::open,
            Execution::Inline { .. } => Log::open_inline,
        };
        let log_error = |source| RaftError::OpenLog { node, source };
        fit::check(&*disk, &dir, &tuning.log, &states, log_error)?;
        let (log, recovered) =
            open(disk.clone(), dir.join(LOG_DIRECTORY), tuning.log.clone()).map_err(log_error)?;
        let forgotten = log.forgotten();
        let left = states.iter().filter(|(group, _)| forgotten.contains(group));
        let half_forgotten = left.map(|(group, _)| *group).collect();
        tracing::info!(%node, groups = recovered.groups.len(), entries = recovered.entries,
            torn_bytes = recovered.torn_bytes, "log opened");
        let runtime = own_runtime(&tuning);
        let runtime = runtime.map_err(|source| RaftError::BuildRuntime { node, source })?;
        let own = runtime.as_ref().map(|own| own.handle().clone());
        let handle = own.or_else(|| tuning.runtime.clone()).unwrap_or_else(Handle::current);
        // Numbers of two lives of a node must not meet: a late answer would be taken for another's.
        let first_number = tuning.execution.draw(node.0);
        let switch = Switch::new(node, transport.clone(), handle.clone(), first_number);
        transport.listen(Arc::new(SwitchInbox(Arc::downgrade(&switch))));
        let inner = Inner {
            node,
            dir,
            disk,
            tuning,
            openraft,
            log,
            switch,
            handle,
            snapshot_turn: Arc::default(),
            snapshot_stats: Arc::default(),
            damage: Arc::default(),
            failed: watch::Sender::new(None),
            halts: Halts::default(),
            half_forgotten,
            held: Arc::default(),
            groups: Mutex::new(BTreeMap::new()),
            runtime: Mutex::new(runtime),
        };
        let inner = Arc::new(inner);
        inner.handle.spawn(watch_stalls(Arc::downgrade(&inner)));
        let (every, met) = (inner.tuning.scrub_every, inner.log.damage_met());
        inner.handle.spawn(scrub_all(Arc::downgrade(&inner), every, met));
        Ok(Groups { inner })
    }

    /// Starts the group's replica here. Where the group has a past on this node it goes on; without
    /// one it is empty and waits for a leader elsewhere to fill it, and never elects itself. Returns
    /// before a leader is known.
    ///
    /// # Errors
    /// When the log, the snapshot or the replica cannot be used.
    pub async fn start(
        &self,
        group: GroupId,
        replica: Box<dyn Replica>,
    ) -> Result<Group, RaftError> {
        self.run(group, None, replica).await
    }

    /// Founds a group, with this node as its only voter, and starts its replica.
    ///
    /// # Errors
    /// [`RaftError::HasPast`] where this node knows the group: a second founding would fork it. Else
    /// as [`Groups::start`].
    pub async fn bootstrap(
        &self,
        group: GroupId,
        replica: Box<dyn Replica>,
    ) -> Result<Group, RaftError> {
        if self.has_past(group) {
            return Err(RaftError::HasPast { group });
        }
        self.run(group, Some(BTreeSet::from([self.inner.node])), replica).await
    }

    /// Founds a group with several voters at once, or has one with a past go on. Each of them must be
    /// told the same set, and nothing checks that: lists that differ fork the group. So this is for
    /// tests and simulations, which say it once for all nodes; a cluster grows from one node.
    ///
    /// # Errors
    /// As [`Groups::start`].
    pub async fn bootstrap_with(
        &self,
        group: GroupId,
        members: &BTreeSet<NodeId>,
        replica: Box<dyn Replica>,
    ) -> Result<Group, RaftError> {
        if members.is_empty() {
            return Err(RaftError::Members { group, reason: "there are none" });
        }
        let founders = (!self.has_past(group)).then(|| members.clone());
        self.run(group, founders, replica).await
    }

    /// Whether this node's log knows the group: it has voted in it, holds some of it, or forgot it.
    pub fn has_past(&self, group: GroupId) -> bool {
        let state = self.inner.log.state(group);
        state.last.is_some() || state.vote.is_some() || state.purged.is_some() || state.is_forgotten
    }

    /// Whether this node holds something of the group: entries, or a snapshot that stands for them.
    pub fn holds(&self, group: GroupId) -> bool {
        let state = self.inner.log.state(group);
        state.last.is_some() || state.purged.is_some()
    }

    /// Starts a group, which has a past here unless its `founders` are named.
    fn run(
        &self,
        group: GroupId,
        founders: Option<BTreeSet<NodeId>>,
        replica: Box<dyn Replica>,
    ) -> BoxFuture<'_, Result<Group, RaftError>> {
        Box::pin(async move {
            let slot = self.inner.take_slot(group).ok_or(RaftError::AlreadyStarted { group })?;
            // On Raft's runtime: what openraft spawns has to live there. And a caller who goes away leaves
            // a group that runs like any other.
            let started = self.inner.handle.spawn(async move {
                let started = slot.inner.start(group, founders, replica).await?;
                slot.fill(started.clone());
                Ok(started)
            });
            started.await.unwrap_or_else(|error| {
                Err(RaftError::Stopped { group, reason: error.to_string() })
            })
        })
    }

    /// A group that runs here.
    pub fn group(&self, group: GroupId) -> Option<Group> {
        self.inner.groups.lock().get(&group).cloned().flatten()
    }

    /// To be told when a peer's connection broke and a new one was refused: its process is gone, as
    /// far as this node can see. Groups that it led elect at once instead of waiting for their
    /// timeout, if a majority of their voters was told the same.
    pub fn peer_lost(&self, peer: NodeId) {
        self.inner.switch.lose(peer);
        for group in self.inner.running() {
            self.inner.handle.spawn(replace_lost(Arc::clone(group.running()), peer));
        }
    }

    /// Stops all groups and then the log. What was acknowledged is durable.
    pub fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let inner = self.inner.clone();
            let stopped = self.inner.handle.spawn(async move {
                let members = inner.switch.clear();
                let groups = inner.running();
                futures::future::join_all(groups.iter().map(|group| group.running().stop())).await;
                futures::future::join_all(members.iter().map(|member| member.ended())).await;
                let log = inner.log.clone();
                blocking(move || log.shutdown()).await
            });
            if !matches!(stopped.await, Ok(Ok(()))) {
                tracing::warn!(node = %self.inner.node, "groups did not stop in order");
            }
        })
    }

    /// Becomes `Some` when the log can no longer sync: nothing is acknowledged any more, and the
    /// node must stop.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.inner.log.failed()
    }

    /// Becomes `Some` when a group has stopped here by itself, and may go on when the node has started
    /// anew.
    pub fn group_failed(&self) -> watch::Receiver<Option<String>> {
        self.inner.failed.subscribe()
    }

    /// Groups that have stopped here since their replica met what it cannot go past, each with what that
    /// was. The node goes on without them; another release may go past it.
    pub fn halted(&self) -> watch::Receiver<BTreeMap<GroupId, String>> {
        self.inner.halts.subscribe()
    }

    /// Where this node's work runs.
    pub fn execution(&self) -> Execution {
        self.inner.tuning.execution
    }

    /// The node's log: the synced index that bounds checkpoints, and its figures.
    pub fn log(&self) -> &Log {
        &self.inner.log
    }

    /// What is counted of damage that was found on the disk.
    pub fn damage_stats(&self) -> &Arc<DamageStats> {
        &self.inner.damage
    }

    /// What is counted of the groups' snapshots.
    pub fn snapshot_stats(&self) -> &Arc<SnapshotStats> {
        &self.inner.snapshot_stats
    }
}

/// Raft's own runtime, if it is to have one.
fn own_runtime(tuning: &Tuning) -> std::io::Result<Option<Runtime>> {
    if tuning.execution != Execution::Threads || tuning.runtime.is_some() {
        return Ok(None);
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(tuning.threads).thread_name("raft").enable_all();
    builder.on_thread_park(tuning.on_idle).build().map(Some)
}

/// How often to look whether the log's writer goes on.
const STALL_CHECK: Duration = Duration::from_millis(50);

/// A node whose disk hangs can acknowledge nothing: it gives its leaderships away and stays silent
/// until a sync completes (D9).
async fn watch_stalls(groups: Weak<Inner>) {
    let mut stalled = false;
    loop {
        tokio::time::sleep(STALL_CHECK).await;
        let Some(inner) = groups.upgrade() else { return };
        let now = inner.log.stalled_for() > inner.tuning.stall_limit;
        if now == stalled {
            continue;
        }
        stalled = now;
        if stalled {
            tracing::warn!(node = %inner.node, "log is stalled, leaderships are handed over");
        } else {
            tracing::warn!(node = %inner.node, "log goes on");
        }
        for group in inner.running() {
            group.running().set_stalled(stalled).await;
        }
    }
}

/// How long after its start a node reads what it has on the disk for the first time.
const FIRST_SCRUB: Duration = Duration::from_secs(60);

/// Reads what the groups have on the disk, one after the other, in passes. Where damage was met
/// meanwhile, the next one begins at once.
async fn scrub_all(groups: Weak<Inner>, every: Duration, met: Arc<Notify>) {
    // One that is started anew more often than that has its passes, too.
    let mut wait = every.min(FIRST_SCRUB);
    loop {
        // Either way it is time.
        let _ = tokio::time::timeout(wait, met.notified()).await;
        wait = every;
        let Some(inner) = groups.upgrade() else { return };
        let running = inner.running();
        let running: Vec<_> = running.iter().map(|group| Arc::downgrade(group.running())).collect();
        let bytes_per_second = inner.tuning.scrub_bytes_per_second;
        let pace = Pace { bytes_per_second, stats: Arc::clone(&inner.damage) };
        // ORDER: before the pass. The node may stop meanwhile.
        drop(inner);
        for group in running {
            scrub(group, &pace).await;
        }
    }
}

impl Inner {
    fn running(&self) -> Vec<Group> {
        self.groups.lock().values().flatten().cloned().collect()
    }

    async fn start(
        &self,
        group: GroupId,
        founders: Option<BTreeSet<NodeId>>,
        replica: Box<dyn Replica>,
    ) -> Result<Group, RaftError> {
        let holds_commits = !replica.is_read_everywhere();
        let replica = Arc::new(self.start_replica(group, replica)?);
        if self.log.state(group).is_forgotten {
            self.clear_forgotten(group, &replica).await?;
        }
        let store = LogStore::new(self.log.clone(), group, self.tuning.read_bytes_max);
        let (snapshots, applied) = self.find_state(group, &store, &replica).await?;
        let goes_ahead = self.found(group, &applied, founders).await?;
        self.cover_start_of_log(group, &replica, &snapshots).await?;

        let machine =
            StateMachine::new(self.node, group, replica.clone(), snapshots.clone(), applied);
        let running =
            self.run_raft(group, store.clone(), machine, replica, snapshots, holds_commits).await?;
        let raft = &running.raft;
        if (goes_ahead || self.is_alone(raft)) && store.may_stand() {
            let elected = raft.trigger().elect(false).await;
            if let Err(error) = elected {
                self.stop(&running).await;
                return Err(RaftError::Stopped { group, reason: error.to_string() });
            }
        }
        Ok(Group::new(running))
    }

    async fn run_raft(
        &self,
        group: GroupId,
        store: LogStore,
        machine: StateMachine,
        replica: Arc<ReplicaThread>,
        snapshots: Arc<Snapshots>,
        holds_commits: bool,
    ) -> Result<Arc<Running>, RaftError> {
        let (membership, halt) = (Arc::clone(machine.membership()), machine.halt().clone());
        let (sendings, kept_from) = (Arc::new(Sendings::default()), Arc::new(KeptFrom::default()));
        let network = Network::new(
            self.switch.clone(),
            group,
            &self.tuning,
            snapshots.clone(),
            sendings.clone(),
            kept_from.clone(),
            holds_commits,
        );
        let may_stand = store.may_stand();
        let config = openraft::Config { enable_elect: may_stand, ..(*self.openraft).clone() };
        let silence = Arc::clone(network.silence());
        let raft = Raft::new(self.node, Arc::new(config), network, store.clone(), machine).await;
        let raft = raft.map_err(|error| {
            // What is committed here is applied before anything else.
            halt.tell(group, &self.halts);
            match halt.reason().map(str::to_owned) {
                Some(reason) => RaftError::Halted { group, reason },
                None => RaftError::Stopped { group, reason: error.to_string() },
            }
        })?;
        silence.listen(&raft);
        if !may_stand {
            self.handle.spawn(elect_above_floor(raft.clone(), store.clone()));
        }
        let (log, stall_limit) = (self.log.clone(), self.tuning.stall_limit);
        let member = Member::new(raft.clone(), snapshots.clone(), store, log, stall_limit);
        self.switch.add(group, Arc::new(member));

        let (tx, leadership) = watch::channel(Leadership::default());
        let running = Arc::new(Running {
            id: group,
            node: self.node,
            raft,
            replica,
            snapshots,
            switch: Arc::clone(&self.switch),
            log: self.log.clone(),
            tuning: self.tuning.clone(),
            runtime: self.handle.clone(),
            leadership,
            rounds: Rounds::default(),
            admission: admission(&self.tuning),
            snapshot_turn: Arc::clone(&self.snapshot_turn),
            at_work: tokio::sync::Mutex::default(),
            sendings,
            held: Arc::clone(&self.held),
            kept_from,
            membership,
            failed: self.failed.clone(),
            halt,
            halts: self.halts.clone(),
            stopping: AtomicBool::new(false),
        });
        self.handle.spawn(watch_leadership(Arc::downgrade(&running), tx));
        let every = self.tuning.snapshot_check;
        self.handle.spawn(watch_log_size(Arc::downgrade(&running), every));
        Ok(running)
    }

    fn start_replica(
        &self,
        group: GroupId,
        replica: Box<dyn Replica>,
    ) -> Result<ReplicaThread, RaftError> {
        let Tuning { execution, on_idle, .. } = self.tuning;
        ReplicaThread::start(execution, on_idle, group, replica).map_err(|source| {
            let source = ReplicaError::new("start its thread", source);
            RaftError::Replica { group, source }
        })
    }

    async fn open_snapshots(&self, group: GroupId) -> Result<Arc<Snapshots>, RaftError> {
        let (disk, dir) = (self.disk.clone(), self.dir.join(SNAPSHOT_DIRECTORY));
        let stats = Arc::clone(&self.snapshot_stats);
        let opened = blocking(move || Snapshots::open(disk, dir, group, stats)).await;
        let opened =
            opened.map_err(|error| RaftError::Stopped { group, reason: error.to_string() })?;
        Ok(Arc::new(opened.map_err(|source| RaftError::Snapshot { group, source })?))
    }

    fn log_id(
        &self,
        group: GroupId,
        id: std::io::Result<Option<LogId>>,
    ) -> Result<Option<LogId>, RaftError> {
        id.map_err(|error| RaftError::Stopped { group, reason: error.to_string() })
    }

    /// Gives a group without a past its first entry: who its members are. Every founder writes the
    /// same one, so it does not matter whose is replicated. Answers whether this one goes ahead of
    /// the others, which wait for it as for any leader.
    async fn found(
        &self,
        group: GroupId,
        applied: &Applied,
        founders: Option<BTreeSet<NodeId>>,
    ) -> Result<bool, RaftError> {
        let Some(founders) = founders else { return Ok(false) };
        if applied.is_some() {
            return Err(RaftError::HasPast { group });
        }
        if !founders.contains(&self.node) {
            return Ok(false);
        }
        let goes_ahead = founders.first() == Some(&self.node);
        let membership = Membership::new_with_defaults(vec![founders], []);
        let id = log_id(0, 0);
        let entry = Entry { log_id: id, payload: Payload::Membership(membership) };
        let bytes = wire::entry_to_record(&entry);
        let (tx, rx) = oneshot::channel();
        let records = vec![EntryRecord { index: id.index, term: term_of(&id), bytes }];
        self.log.append(group, records, move |result| {
            // The receiver is gone only if the start was given up.
            let _ = tx.send(result);
        });
        let written = rx.await.unwrap_or(Err(LogError::Closed));
        written.map_err(|source| RaftError::Log { group, source })?;
        Ok(goes_ahead)
    }

    /// A sole voter need not wait for anybody.
    fn is_alone(&self, raft: &Raft) -> bool {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.voter_ids();
        voters.next() == Some(self.node) && voters.next().is_none()
    }
}

#[cfg(test)]
impl Groups {
    pub(crate) fn switch(&self) -> &Arc<Switch> {
        &self.inner.switch
    }
}
