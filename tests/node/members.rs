//! Three nodes of one cluster in this process, without gRPC: shards, Raft and storage are real, the
//! network and the disks are in memory, and what shards of different nodes say to each other goes
//! through its bytes. Nodes can be killed, cut off and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use piton_core::id::ShardId;
use piton_core::time::Span;
use piton_raft::log::FaultyDisk;
use piton_raft::{Group, GroupId, Groups, MemoryNetwork, NodeConfig, NodeId, Tuning};
use piton_shard::{
    Call, Carrier, Clock, Cluster, Forwarded, HostParts, Ids, META_GROUP, Namespace, NewNamespace,
    NodeRecord, NodeState, PeerAnswer, PeerRequest, Serving, ShardConfig, ShardError, ShardHost,
    ShardMetrics, Unanswered, WallTime, WirePeer, WorkflowCall, feature_level,
};
use piton_store::{KeyRange, MemoryStore, Order, Row, Store};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::client::{Api, NAMESPACE};
use crate::members_client::{MembersClient, key};
use crate::worker::await_until;

pub(crate) const SHARDS: u32 = 4;

/// Which nodes can be reached: what a peer's connection is made of.
#[derive(Default)]
pub(crate) struct Links {
    pub(crate) clusters: RwLock<BTreeMap<NodeId, (Cluster, watch::Receiver<bool>)>>,
    cut_off: RwLock<BTreeSet<NodeId>>,
    /// Calls to these nodes are carried out, and their answers are lost.
    unheard: RwLock<BTreeSet<NodeId>>,
    /// Answers to requests for a run that were lost so.
    unheard_answers: AtomicUsize,
    /// The next request for a run of another node panics where it is sent.
    has_bug: AtomicBool,
    /// Requests to these nodes are neither carried out nor answered.
    silent: RwLock<BTreeSet<NodeId>>,
    /// The next start that is sent to the first of these is refused, and the other one named.
    misdirected: RwLock<BTreeMap<NodeId, NodeId>>,
    /// The nodes that starts were sent to.
    started_at: RwLock<Vec<NodeId>>,
}

impl Links {
    fn reach(&self, from: NodeId, to: NodeId) -> Option<(Cluster, watch::Receiver<bool>)> {
        let cut_off = self.cut_off.read().unwrap();
        let is_cut = from != to && (cut_off.contains(&from) || cut_off.contains(&to));
        drop(cut_off);
        self.clusters.read().unwrap().get(&to).filter(|_| !is_cut).cloned()
    }
}

/// A call as another node sends it on.
pub(crate) fn forwarded(shard: ShardId, call: impl Into<Call>) -> Forwarded {
    Forwarded { shard, timeout: Duration::from_secs(10), meta_version: 0, call: call.into() }
}

/// A node's way to the others.
struct LinkedPeer {
    node: NodeId,
    links: Arc<Links>,
}

#[async_trait]
impl Carrier for LinkedPeer {
    async fn ask(&self, node: NodeId, request: Bytes, _: Duration) -> Result<Bytes, Unanswered> {
        let not_sent = || Unanswered::NotSent { node, why: "it is not there".to_owned() };
        let (cluster, mut gone) = self.links.reach(self.node, node).ok_or_else(not_sent)?;
        let call = match PeerRequest::decode(&request).unwrap() {
            PeerRequest::Call(forwarded) => Some(forwarded.call),
            PeerRequest::Deliver { .. } | PeerRequest::Node(_) => None,
        };
        if self.links.silent.read().unwrap().contains(&node) {
            std::future::pending::<()>().await;
        }
        if matches!(call, Some(Call::Workflow(WorkflowCall::Start { .. }))) {
            self.links.started_at.write().unwrap().push(node);
            if let Some(leader) = self.links.misdirected.write().unwrap().remove(&node) {
                let refusal = ShardError::NotLeader { shard: ShardId(0), leader: Some(leader) };
                return Ok(PeerAnswer::Call(Err(refusal)).encode());
            }
        }
        let is_of_run = matches!(call, Some(Call::Workflow(WorkflowCall::Run { .. })));
        if is_of_run && self.links.has_bug.swap(false, Ordering::SeqCst) {
            panic!("a bug that the test put here");
        }
        let answer = tokio::select! {
            answer = cluster.answer_bytes(self.node, &request) => answer,
            // A connection that breaks tells nothing about what became of the call.
            _ = gone.wait_for(|gone| *gone) => {
                return Err(Unanswered::Lost { node, why: "it went away".to_owned() });
            }
        };
        if call.is_some() && self.links.unheard.read().unwrap().contains(&node) {
            self.links.unheard_answers.fetch_add(usize::from(is_of_run), Ordering::Relaxed);
            return Err(Unanswered::Lost { node, why: "its answer was lost".to_owned() });
        }
        Ok(answer)
    }
}

/// What of a node outlives its process.
struct Member {
    disk: FaultyDisk,
    store: Arc<MemoryStore>,
    /// What its clock is set by; `None`: the system's.
    wall: Option<&'static WallTime>,
    /// It has been started: what it has goes on, and nothing is founded any more.
    has_past: bool,
    running: Option<RunningMember>,
}

struct RunningMember {
    cluster: Cluster,
    groups: Groups,
    serving: Serving,
    metrics: Registry,
    gone: watch::Sender<bool>,
}

/// The nodes of a cluster: three, or as many as join.
pub(crate) struct Members {
    network: MemoryNetwork,
    links: Arc<Links>,
    config: ShardConfig,
    seed: u64,
    founders: BTreeSet<NodeId>,
    members: BTreeMap<NodeId, Member>,
}

impl Members {
    /// Starts three new nodes, and waits until the namespace is known to each.
    pub(crate) async fn start(seed: u64) -> Self {
        Self::start_with(seed, shard_config()).await
    }

    pub(crate) async fn start_with(seed: u64, config: ShardConfig) -> Self {
        Self::found(seed, config, 3).await
    }

    /// Starts a cluster of one, which records what it has, as it grows.
    pub(crate) async fn start_alone(seed: u64) -> Self {
        let mut alone = Self::found(seed, shard_config(), 1).await;
        alone.put_node(NodeId(1), "").await;
        alone
    }

    async fn found(seed: u64, config: ShardConfig, nodes: u64) -> Self {
        println!("seed {seed}");
        let mut started = Self {
            network: MemoryNetwork::new(),
            links: Arc::default(),
            config,
            seed,
            founders: (1..=nodes).map(NodeId).collect(),
            members: BTreeMap::new(),
        };
        for node in started.founders.clone() {
            started.start_node(node).await;
        }
        started.await_ready().await;
        started.bootstrap().await;
        started
    }

    /// Starts a new node and has it join the cluster.
    pub(crate) async fn join(&mut self, node: NodeId, zone: &str) {
        self.start_node(node).await;
        self.put_node(node, zone).await;
    }

    async fn put_node(&mut self, node: NodeId, zone: &str) {
        let (_, running) = self.running().next().unwrap();
        let record = NodeRecord {
            id: node,
            peer_address: String::new(),
            api_address: String::new(),
            http_address: String::new(),
            zone: zone.to_owned(),
            state: NodeState::Up,
            level: feature_level(),
            joined: running.cluster.host().clock().now(),
        };
        running.cluster.meta().put_node(record).await.unwrap();
    }

    /// Waits until each shard is held by exactly these nodes, and each of them leads something.
    pub(crate) async fn await_voters(&self, voters: &[u64]) {
        let voters: BTreeSet<NodeId> = voters.iter().copied().map(NodeId).collect();
        await_until(&format!("all is held by {voters:?}"), || async {
            let statuses: Vec<_> = self.running().map(|(_, r)| r.cluster.status()).collect();
            let leaders = statuses.iter().flat_map(|status| {
                let serving = status.shards.values().filter(|shard| shard.serves);
                serving.map(|shard| (status.node, shard))
            });
            let as_wanted = leaders.clone().filter(|(_, shard)| {
                shard.voters == voters && shard.learners.is_empty() && !shard.is_changing
            });
            let lead: BTreeSet<NodeId> = leaders.map(|(node, _)| node).collect();
            (as_wanted.count() == SHARDS as usize && lead == voters).then_some(())
        })
        .await;
    }

    /// The shards of which a node has a replica.
    pub(crate) fn held_by(&self, node: NodeId) -> usize {
        self.members[&node].running.as_ref().unwrap().cluster.status().shards.len()
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.members.keys().copied().collect()
    }

    /// Starts a node that does not run, on what it has on its disk.
    pub(crate) async fn start_node(&mut self, node: NodeId) {
        let seed = self.seed;
        let member = self.members.entry(node).or_insert_with(|| Member {
            disk: FaultyDisk::new(seed.wrapping_mul(31).wrapping_add(node.0)),
            store: Arc::new(MemoryStore::new()),
            wall: None,
            has_past: false,
            running: None,
        });
        let is_founder = !member.has_past && self.founders.contains(&node);
        member.has_past = true;
        let Member { disk, store, wall, .. } = &self.members[&node];
        let config = NodeConfig {
            node,
            dir: PathBuf::from("/node"),
            disk: Arc::new(disk.clone()),
            transport: self.network.transport(node),
            states: piton_store::marks(store.as_ref())
                .unwrap()
                .into_iter()
                .map(|(group, mark)| (piton_raft::GroupId(group), mark))
                .collect(),
            tuning: tuning(),
        };
        let groups = tokio::task::spawn_blocking(move || Groups::open(config));
        let groups = groups.await.unwrap().unwrap();
        let mut metrics = Registry::default();
        let parts = HostParts {
            node,
            founders: is_founder.then(|| self.founders.clone()),
            config: self.config.clone(),
            groups: groups.clone(),
            store: Arc::clone(store) as Arc<dyn Store>,
            clock: wall.map_or_else(Clock::start, Clock::start_on),
            ids: Ids::random(),
            metrics: ShardMetrics::register(&mut metrics),
            peer: Arc::new(WirePeer(LinkedPeer { node, links: Arc::clone(&self.links) })),
        };
        let host = ShardHost::start(parts).await.unwrap();
        let cluster = Cluster::new(host);
        let serving = cluster.serve().await.unwrap();
        let (gone, watch_gone) = watch::channel(false);
        self.links.cut_off.write().unwrap().remove(&node);
        self.links.clusters.write().unwrap().insert(node, (cluster.clone(), watch_gone));
        let running = RunningMember { cluster, groups, serving, metrics, gone };
        self.members.get_mut(&node).unwrap().running = Some(running);
    }

    /// Waits until every running node knows a leader of every group, and leaders serve.
    pub(crate) async fn await_ready(&self) {
        await_until("every group has a leader", || async {
            let knows = |running: &RunningMember| {
                let meta = running.groups.group(META_GROUP);
                let leader = meta.and_then(|group| group.leadership().borrow().leader);
                leader.is_some() && running.cluster.is_ready()
            };
            self.running().all(|(_, running)| knows(running)).then_some(())
        })
        .await;
    }

    async fn bootstrap(&self) {
        // On any node: changes of the meta state find their leader.
        let (_, running) = self.running().next_back().unwrap();
        let meta = running.cluster.meta();
        meta.bootstrap_routes(SHARDS).await.unwrap();
        let new = NewNamespace {
            name: NAMESPACE.to_owned(),
            retention: Span::from_secs(86_400),
            created: running.cluster.host().clock().now(),
            ..NewNamespace::default()
        };
        meta.register_namespace(new).await.unwrap();
        await_until("every node knows the namespace", || async {
            let knows = |running: &RunningMember| {
                let meta = running.cluster.meta();
                meta.namespace(NAMESPACE).is_some() && meta.shards() == SHARDS as usize
            };
            self.running().all(|(_, running)| knows(running)).then_some(())
        })
        .await;
    }

    fn running(&self) -> impl DoubleEndedIterator<Item = (NodeId, &RunningMember)> {
        let members = self.members.iter();
        members.filter_map(|(node, member)| Some((*node, member.running.as_ref()?)))
    }

    /// The leader of a workflow's shard, as the nodes that run know it.
    pub(crate) async fn leader_of(&self, workflow_id: &str) -> NodeId {
        self.leader_by(|running| group_of(running, workflow_id)).await
    }

    /// The leader of the meta group.
    pub(crate) async fn meta_leader(&self) -> NodeId {
        self.leader_by(|running| running.groups.group(META_GROUP)).await
    }

    /// The node that leads a group and serves.
    async fn leader_by(&self, group: impl Fn(&RunningMember) -> Option<Group>) -> NodeId {
        await_until("the group has a leader", || async {
            self.running().find_map(|(node, running)| {
                let leadership = *group(running)?.leadership().borrow();
                (leadership.serving && leadership.leader == Some(node)).then_some(node)
            })
        })
        .await
    }

    /// The leader of a workflow's shard, as nodes other than `without` know it.
    pub(crate) fn leader_of_majority(&self, workflow_id: &str, without: NodeId) -> Option<NodeId> {
        let (_, running) = self.running().find(|(node, _)| *node != without)?;
        let leadership = group_of(running, workflow_id)?.leadership();
        leadership.borrow().leader
    }

    /// Hands the leadership of a workflow's shard to a node.
    pub(crate) async fn lead(&self, workflow_id: &str, to: NodeId) {
        await_until("the leadership is handed over", || async {
            let from = self.leader_of(workflow_id).await;
            if from == to {
                return Some(());
            }
            let running = self.members[&from].running.as_ref()?;
            group_of(running, workflow_id)?.transfer_leader(&[to]).await;
            None
        })
        .await;
    }

    /// Ends a node as SIGKILL and a power cut together would: what it did not sync is lost. With
    /// `noticed`, the others hear at once that its process is gone.
    pub(crate) async fn kill(&mut self, node: NodeId, noticed: bool) {
        let member = self.members.get_mut(&node).unwrap();
        let running = member.running.take().expect("only a node that runs is killed");
        // ORDER: nothing leaves the node any more before its disk loses what it may have promised.
        self.network.isolate(node);
        self.links.clusters.write().unwrap().remove(&node);
        running.gone.send_replace(true);
        member.disk = member.disk.cut_power();
        running.serving.stop().await;
        let host = Arc::clone(running.cluster.host());
        tokio::task::spawn_blocking(move || host.stop_checkpoints()).await.unwrap();
        running.groups.shutdown().await;
        member.store.crash();
        self.network.remove(node);
        for other in self.nodes() {
            self.network.heal(node, other);
        }
        if noticed {
            for (_, other) in self.running() {
                other.groups.peer_lost(node);
            }
        }
    }

    /// Cuts a node off from the others; clients may still reach it.
    pub(crate) fn cut_off(&self, node: NodeId) {
        self.network.isolate(node);
        self.links.cut_off.write().unwrap().insert(node);
    }

    /// What the others send to a node is lost; what it sends arrives.
    pub(crate) fn deafen(&self, node: NodeId) {
        for other in self.nodes().into_iter().filter(|&other| other != node) {
            self.network.cut_one_way(other, node);
        }
    }

    /// What other nodes ask of a node is carried out, and they never hear of it.
    pub(crate) fn lose_answers_of(&self, node: NodeId) {
        self.links.unheard.write().unwrap().insert(node);
    }

    /// A node takes requests of other nodes, and does nothing about them.
    pub(crate) fn silence(&self, node: NodeId) {
        self.links.silent.write().unwrap().insert(node);
    }

    /// The next start that is sent to a node is refused, and another one named as the leader.
    pub(crate) fn misdirect(&self, node: NodeId, named: NodeId) {
        self.links.misdirected.write().unwrap().insert(node, named);
    }

    /// The nodes that starts were sent to by others, in order.
    pub(crate) fn started_at(&self) -> Vec<NodeId> {
        self.links.started_at.read().unwrap().clone()
    }

    /// The next request that a node sends to a run of another one panics there.
    pub(crate) fn panic_once(&self) {
        self.links.has_bug.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_panicked(&self) -> bool {
        !self.links.has_bug.load(Ordering::SeqCst)
    }

    /// Answers to requests for a run that were lost since the start.
    pub(crate) fn lost_answers(&self) -> usize {
        self.links.unheard_answers.load(Ordering::Relaxed)
    }

    /// A node's way into the cluster, for what the clients here do not ask.
    pub(crate) fn cluster_of(&self, node: NodeId) -> (Cluster, Arc<Namespace>) {
        let cluster = self.members[&node].running.as_ref().unwrap().cluster.clone();
        let namespace = cluster.meta().namespace(NAMESPACE).unwrap();
        (cluster, namespace)
    }

    /// How long ago the leader of a workflow's shard last heard of another node.
    pub(crate) fn last_heard(&self, workflow_id: &str, node: NodeId) -> Option<Duration> {
        let heard = |running| group_of(running, workflow_id)?.last_heard(node);
        self.running().find_map(|(_, running)| heard(running))
    }

    /// The groups of all shards, on one node.
    pub(crate) fn shard_groups(&self, node: NodeId) -> Vec<Group> {
        let groups = groups_of(self.members[&node].running.as_ref().unwrap());
        groups.into_iter().filter(|group| group.id() != META_GROUP).collect()
    }

    /// The last entry in each node's log of a workflow's shard.
    pub(crate) fn last_indices(&self, workflow_id: &str) -> BTreeMap<NodeId, u64> {
        let last =
            |running: &RunningMember| Some(group_of(running, workflow_id)?.metrics().last_index);
        self.running().filter_map(|(node, running)| Some((node, last(running)?))).collect()
    }

    /// The figures of a node's shards, as they are scraped.
    pub(crate) fn metrics(&self, node: NodeId) -> String {
        let running = self.members[&node].running.as_ref().unwrap();
        running.cluster.refresh_metrics();
        let mut text = String::new();
        encode(&mut text, &running.metrics).unwrap();
        text
    }

    /// Transitions that a node has proposed in vain.
    pub(crate) fn failed_transitions(&self, node: NodeId) -> u64 {
        let value = |line: &str| line.strip_prefix("transition_failures_total ")?.parse().ok();
        self.metrics(node).lines().find_map(value).unwrap()
    }

    /// Takes back what was done to the network, and to calls from and to a node.
    pub(crate) fn heal(&self, node: NodeId) {
        self.network.heal_all();
        self.links.cut_off.write().unwrap().remove(&node);
        self.links.unheard.write().unwrap().remove(&node);
    }

    /// Makes all that the nodes sync wait, or lets it go on.
    pub(crate) fn hold_syncs(&self, hold: bool) {
        for member in self.members.values() {
            member.disk.hold_syncs(hold);
        }
    }

    /// Sets a node's clock, which it looks at when it is started.
    pub(crate) fn set_clock(&mut self, node: NodeId, wall: &'static WallTime) {
        self.members.get_mut(&node).unwrap().wall = Some(wall);
    }

    /// Empties a node's store, as if its files were lost; the node must not run.
    pub(crate) fn empty_store(&mut self, node: NodeId) {
        let member = self.members.get_mut(&node).unwrap();
        assert!(member.running.is_none(), "the store of a node that runs is in use");
        member.store = Arc::new(MemoryStore::new());
    }

    /// Writes a snapshot of every group of a node, and purges its log as far as that allows.
    pub(crate) async fn snapshot(&self, node: NodeId) {
        let running = self.members[&node].running.as_ref().unwrap();
        for group in groups_of(running) {
            await_until("a snapshot covers the log", || async {
                let index = group.snapshot_now().await.unwrap();
                (index > 0 && group.metrics().purged_index > 0).then_some(())
            })
            .await;
        }
    }

    pub(crate) fn purged(&self, node: NodeId) -> u64 {
        let running = self.members[&node].running.as_ref().unwrap();
        groups_of(running).iter().map(|group| group.metrics().purged_index).sum()
    }

    /// Waits until all replicas have applied the same entries, and there are no more. Each has them
    /// on its own disk as well: its checkpoints go no further.
    pub(crate) async fn await_same_index(&self) {
        await_until("all replicas have applied the same", || async {
            let places = |running: &RunningMember| -> Vec<(u64, u64)> {
                let place = |group: &Group| {
                    let metrics = group.metrics();
                    (metrics.applied_index, metrics.last_index)
                };
                groups_of(running).iter().map(place).collect()
            };
            let places: Vec<_> = self.running().map(|(_, running)| places(running)).collect();
            let is_settled = places.iter().flatten().all(|(applied, last)| applied == last);
            let is_synced = self.running().all(|(_, running)| {
                let log = running.groups.log();
                let is_at_end = |g: &Group| log.synced_index(g.id()) >= g.metrics().last_index;
                groups_of(running).iter().all(is_at_end)
            });
            let first = places.first()?;
            (is_settled && is_synced && places.iter().all(|other| other == first)).then_some(())
        })
        .await;
    }

    /// Stops all nodes in order, and answers the rows in each one's store.
    pub(crate) async fn stop(mut self) -> BTreeMap<NodeId, Vec<Row>> {
        for member in self.members.values_mut() {
            let Some(running) = member.running.take() else { continue };
            running.serving.stop().await;
            let host = Arc::clone(running.cluster.host());
            tokio::task::spawn_blocking(move || host.stop_checkpoints()).await.unwrap();
            running.gone.send_replace(true);
            running.groups.shutdown().await;
        }
        let rows = |member: &Member| {
            member.store.scan(KeyRange::all(), Order::Ascending, usize::MAX).unwrap()
        };
        self.members.iter().map(|(node, member)| (*node, rows(member))).collect()
    }

    /// A client that knows all nodes; each of its requests goes to the next one that runs.
    pub(crate) fn client(&self) -> Arc<dyn Api> {
        self.client_to(None)
    }

    /// A client that knows one node only.
    pub(crate) fn client_of(&self, node: NodeId) -> Arc<dyn Api> {
        self.client_to(Some(node))
    }

    fn client_to(&self, only: Option<NodeId>) -> Arc<dyn Api> {
        let links = Arc::clone(&self.links);
        Arc::new(MembersClient::new(links, only))
    }
}

/// The group of a workflow's shard.
fn group_of(running: &RunningMember, workflow_id: &str) -> Option<Group> {
    let namespace = running.cluster.meta().namespace(NAMESPACE)?;
    let shard = running.cluster.shard_of(&key(&namespace, workflow_id));
    running.groups.group(GroupId(shard.0 + 1))
}

fn groups_of(running: &RunningMember) -> Vec<Group> {
    (0..=SHARDS).filter_map(|group| running.groups.group(GroupId(group))).collect()
}

/// Quick elections, but not so quick that a busy machine elects all the time.
fn tuning() -> Tuning {
    Tuning {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(900),
        propose_timeout: Duration::from_secs(3),
        ..Tuning::default()
    }
}

pub(crate) fn shard_config() -> ShardConfig {
    ShardConfig {
        shards: SHARDS,
        checkpoint_interval: Duration::from_millis(50),
        ..ShardConfig::default()
    }
}
