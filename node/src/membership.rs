//! How a node comes into a cluster and stays known in it: founding, joining, saying where it is, and
//! following where the others are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use piton_raft::NodeId;
use piton_shard::{
    Carrier, Cluster, MetaError, MetaState, NodeHealth, NodeRecord, NodeState, Unanswered,
    feature_level,
};
use piton_store::codec::Kind;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::{Config, ConfigError};
use crate::identity::{Identity, KeptIdentity, Peers};
use crate::operator::{self, OperatorCall};
use crate::peer::{Answerer, AskError, PeerAddress, PeerNet, Stranger, TlsError};
use crate::refill;
use crate::telemetry::Ready;

/// How long one member may take to let this node in.
const KNOCK_WAIT: Duration = Duration::from_secs(10);
/// Before all addresses are asked again: at first, and at most.
const JOIN_PAUSE: Duration = Duration::from_millis(250);
const JOIN_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A node that was not let in by then ends, so that whoever looks after it sees that.
const JOIN_WAIT: Duration = Duration::from_secs(600);
/// Before a node says again where it is, where nobody heard it.
const SAY_PAUSE: Duration = Duration::from_millis(500);

/// Why a node does not come into a cluster.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Address(#[from] ConfigError),
    #[error("secure connections to other nodes")]
    Tls(#[from] TlsError),
    /// It is known why, and asking again will not help.
    #[error("the cluster does not let this node in: {0}")]
    Refused(String),
    #[error(
        "this node was of cluster {before}, and was let into {cluster_id}: it is not given the right nodes to ask"
    )]
    OtherCluster { before: String, cluster_id: String },
    #[error("no node has let this one into its cluster for {} s: {why}", JOIN_WAIT.as_secs())]
    NotInTime { why: String },
}

/// What is asked by who is no member.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Knock {
    Join(JoinRequest),
    Operate(OperatorCall),
    /// A node whose log was damaged asks to be let in as another one.
    Return(ReturnRequest),
}

/// What a node that wants to join says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JoinRequest {
    record: NodeRecord,
}

/// What a node says that comes in the place of another one, which is no more.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReturnRequest {
    record: NodeRecord,
    instead_of: NodeId,
}

/// What it has to know to be one of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) cluster_id: String,
    pub(crate) shards: u32,
    /// Where the nodes of the cluster are.
    pub(crate) peers: Peers,
}

/// Why a node is not let in.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Denied {
    /// Not now: it asks again.
    Later(String),
    /// Not as it is.
    Never(String),
}

type JoinAnswer = Result<Welcome, Denied>;

pub(crate) const KNOCK: Kind<Knock> = Kind::new("a request of a stranger", &[]);
const JOIN_ANSWER: Kind<JoinAnswer> = Kind::new("an answer to a request to join", &[]);

/// The way in: the members that are named in the configuration, and those that were known before.
pub(crate) struct Door {
    node: NodeId,
    addresses: Vec<PeerAddress>,
    stranger: Stranger,
    request: Bytes,
}

impl Door {
    /// # Errors
    /// See [`JoinError`].
    pub(crate) fn new(
        config: &Config,
        identity: &Identity,
        record: &NodeRecord,
    ) -> Result<Self, JoinError> {
        let known = identity.peers().into_values();
        let addresses = config.cluster.join.iter().cloned().chain(known);
        // All nodes may be given the same list. Asked before it answers, this one would be waited for in vain.
        let others = addresses.filter(|address| *address != record.peer_address);
        let addresses = others.map(|address| address.parse());
        let addresses = addresses.collect::<Result<Vec<_>, ConfigError>>()?;
        let stranger = Stranger::new(&config.peer, record.id, feature_level())?;
        let record = record.clone();
        let node = record.id;
        let knock = match identity.instead_of() {
            Some(instead_of) => Knock::Return(ReturnRequest { record, instead_of }),
            None => Knock::Join(JoinRequest { record }),
        };
        let request = KNOCK.encode(&knock);
        let request = request.map_err(|error| JoinError::Refused(error.to_string()))?;
        Ok(Self { node, addresses, stranger, request })
    }

    /// The same for a node that cannot do without.
    ///
    /// # Errors
    /// When there is nobody to ask, too.
    pub(crate) fn of_joiner(
        config: &Config,
        identity: &Identity,
        record: &NodeRecord,
    ) -> Result<Self, JoinError> {
        let door = Self::new(config, identity, record)?;
        if door.addresses.is_empty() {
            return Err(JoinError::Refused("it is told of no node but itself".to_owned()));
        }
        Ok(door)
    }

    /// Asks each member in turn to be let in, until one of them does, or knows that none will. A node
    /// that was let in before may ask again: it learns where the others are, and they where it is.
    async fn knock(&self) -> JoinAnswer {
        let mut reasons = Vec::new();
        for address in &self.addresses {
            let asked = self.stranger.ask(address, self.request.clone(), KNOCK_WAIT).await;
            let answer = match asked {
                Ok(answer) => match JOIN_ANSWER.decode(&answer) {
                    Ok(answer) => answer,
                    Err(error) => return Err(Denied::Never(error.to_string())),
                },
                Err(error) => Err(Denied::Later(error.to_string())),
            };
            match answer {
                Ok(welcome) if welcome.peers.keys().all(|node| *node == self.node) => {
                    reasons.push(format!("{address} names no other node"));
                }
                Err(Denied::Later(why)) => reasons.push(format!("{address}: {why}")),
                settled => return settled,
            }
        }
        Err(Denied::Later(reasons.join("; ")))
    }

    /// Asks until this node is let in.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub(crate) async fn join(&self, ready: &Ready) -> Result<Welcome, JoinError> {
        ready.set(Err("waiting to be let into the cluster"));
        let (until, mut pause) = (Instant::now() + JOIN_WAIT, JOIN_PAUSE);
        loop {
            let why = match self.knock().await {
                Ok(welcome) => return Ok(welcome),
                Err(Denied::Never(why)) => return Err(JoinError::Refused(why)),
                Err(Denied::Later(why)) => why,
            };
            if Instant::now() >= until {
                return Err(JoinError::NotInTime { why });
            }
            tracing::warn!(why, "waits to be let into the cluster");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(JOIN_PAUSE_MAX);
        }
    }
}

/// What this node says of itself.
pub(crate) fn record(
    config: &Config,
    node: NodeId,
    peer: std::net::SocketAddr,
    api: std::net::SocketAddr,
    http: std::net::SocketAddr,
    joined: piton_core::time::Timestamp,
) -> NodeRecord {
    NodeRecord {
        id: node,
        peer_address: config.peer.told(peer),
        api_address: api.to_string(),
        http_address: http.to_string(),
        zone: config.cluster.zone.clone(),
        state: NodeState::Up,
        level: feature_level(),
        joined,
    }
}

/// Answers the other nodes.
pub(crate) struct Answers {
    pub(crate) cluster: Cluster,
    pub(crate) cluster_id: String,
    pub(crate) shards: u32,
    /// What this node says of itself.
    pub(crate) record: NodeRecord,
}

impl Answerer for Answers {
    fn answer(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        let cluster = self.cluster.clone();
        Box::pin(async move { cluster.answer_bytes(from, &request).await })
    }

    fn answer_stranger(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        let (cluster, cluster_id) = (self.cluster.clone(), self.cluster_id.clone());
        let (shards, this) = (self.shards, self.record.clone());
        Box::pin(async move {
            let answer: JoinAnswer = match KNOCK.decode(&request) {
                Ok(Knock::Join(JoinRequest { record })) if record.id == from => {
                    let peers = let_in(&cluster, &this, record).await;
                    peers.map(|peers| Welcome { cluster_id, shards, peers })
                }
                Ok(Knock::Join(JoinRequest { record })) => {
                    Err(Denied::Never(format!("node {from} asks for node {}", record.id)))
                }
                Ok(Knock::Return(ReturnRequest { record, instead_of })) if record.id == from => {
                    let peers = let_return(&cluster, &this, record, instead_of).await;
                    peers.map(|peers| Welcome { cluster_id, shards, peers })
                }
                Ok(Knock::Return(ReturnRequest { record, .. })) => {
                    Err(Denied::Never(format!("node {from} asks for node {}", record.id)))
                }
                Ok(Knock::Operate(call)) => {
                    return operator::answer(&cluster, &cluster_id, call).await;
                }
                Err(error) => Err(Denied::Never(error.to_string())),
            };
            JOIN_ANSWER.encode(&answer).unwrap_or_default()
        })
    }
}

async fn let_in(cluster: &Cluster, this: &NodeRecord, record: NodeRecord) -> Result<Peers, Denied> {
    cluster.meta().put_node(record).await.map_err(|error| match error {
        MetaError::Invalid(why) => Denied::Never(why),
        error => Denied::Later(error.to_string()),
    })?;
    Ok(members_known_to(this, &cluster.meta().state()))
}

/// Lets a node in that comes in the place of another one, whose replicas go to whoever has room for them.
async fn let_return(
    cluster: &Cluster,
    this: &NodeRecord,
    record: NodeRecord,
    gone: NodeId,
) -> Result<Peers, Denied> {
    // A copy of its directory that is started elsewhere does not drive out a node that is well, nor one
    // that this node has not listened for long enough to hear, nor this node.
    if cluster.health(gone) == NodeHealth::Heard {
        return Err(Denied::Later(format!("node {gone}, whose place it wants, was just heard of")));
    }
    let peers = let_in(cluster, this, record).await?;
    let state = cluster.meta().state().node(gone).map(|node| node.state);
    if state.is_some_and(|state| state.is_member() && state != NodeState::Leaving) {
        let left = cluster.meta().set_node_state(gone, NodeState::Leaving).await;
        left.map_err(|error| Denied::Later(error.to_string()))?;
    }
    Ok(peers)
}

/// Where the members are. This node is one that can tell, whether its own record is committed yet or not.
fn members_known_to(this: &NodeRecord, state: &MetaState) -> Peers {
    let members = state.nodes().filter(|node| node.state.is_member());
    let mut peers: Peers = members.map(|node| (node.id, node.peer_address.clone())).collect();
    peers.insert(this.id, this.peer_address.clone());
    peers
}

/// The network as shards ask through it.
pub(crate) struct NetCarrier(pub(crate) Arc<PeerNet>);

#[async_trait]
impl Carrier for NetCarrier {
    async fn ask(
        &self,
        node: NodeId,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, Unanswered> {
        self.0.ask(node, request, timeout).await.map_err(|error| match error {
            AskError::NotSent(why) => Unanswered::NotSent { node, why: why.to_string() },
            AskError::Unknown(why) => Unanswered::Lost { node, why: why.to_string() },
        })
    }
}

/// Why the cluster has no place for this node, once that is known.
pub(crate) type Unwanted = watch::Sender<Option<String>>;

/// Keeps the network's members those of the meta state, and this node's record there what it is.
pub(crate) struct Membership {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Membership {
    /// `door` is where to ask, if it is known, while the other nodes cannot be reached.
    pub(crate) fn start(
        cluster: &Cluster,
        net: &Arc<PeerNet>,
        record: NodeRecord,
        identity: &KeptIdentity,
        door: Option<Door>,
        unwanted: &Unwanted,
    ) -> Self {
        let (stop, stopping) = watch::channel(false);
        let (found, known) = watch::channel(identity.now().peers());
        let following = Following {
            node: record.id,
            states: cluster.meta().watch(),
            known,
            net: Arc::clone(net),
            identity: identity.clone(),
            unwanted: unwanted.clone(),
        };
        let cluster_id = identity.now().cluster_id;
        let saying = say_where(cluster.clone(), record, cluster_id, door, found, unwanted.clone());
        let mut said = stopping.clone();
        let saying = tokio::spawn(async move {
            tokio::select! {
                () = saying => {}
                // A sender that is gone says the same.
                _ = said.wait_for(|stop| *stop) => {}
            }
        });
        Self { stop, tasks: vec![tokio::spawn(following.run(stopping)), saying] }
    }

    /// When this returns, nothing is written to the node's identity any more.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            // One that panicked has stopped too.
            let _ = task.await;
        }
    }
}

/// Follows where the others are.
struct Following {
    node: NodeId,
    states: watch::Receiver<Arc<MetaState>>,
    /// Where they are as far as the meta state does not say it.
    known: watch::Receiver<Peers>,
    net: Arc<PeerNet>,
    identity: KeptIdentity,
    unwanted: Unwanted,
}

impl Following {
    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        loop {
            let state = self.states.borrow_and_update().clone();
            let peers = self.peers(&state);
            self.keep(peers.clone()).await;
            let parsed = peers.into_iter().filter_map(|(node, address)| match address.parse() {
                Ok(address) => Some((node, address)),
                Err(_) => {
                    tracing::warn!(%node, address, "a node's address cannot be used");
                    None
                }
            });
            let removed = state.nodes().filter(|node| !node.state.is_member()).map(|node| node.id);
            let removed: BTreeSet<NodeId> = removed.collect();
            if removed.contains(&self.node) {
                say_unwanted(&self.unwanted, removed_text(self.node));
            }
            self.net.set_peers(parsed.collect(), removed);
            self.end_replacement(&state).await;
            tokio::select! {
                changed = self.states.changed() => if changed.is_err() { return },
                Ok(()) = self.known.changed() => {}
                _ = stopping.wait_for(|stop| *stop) => return,
            }
        }
    }

    fn peers(&mut self, state: &MetaState) -> Peers {
        let mut peers = self.known.borrow_and_update().clone();
        for node in state.nodes() {
            if node.state.is_member() {
                peers.insert(node.id, node.peer_address.clone());
            } else {
                peers.remove(&node.id);
            }
        }
        peers
    }

    /// What was kept of the node in whose place this one came goes once the cluster has let go of it:
    /// all that it held is whole elsewhere by then.
    async fn end_replacement(&self, state: &MetaState) {
        let Some(gone) = self.identity.now().instead_of() else { return };
        let is_gone = state.node(gone).is_some_and(|node| !node.state.is_member());
        if !is_gone {
            return;
        }
        let identity = self.identity.clone();
        let ended = tokio::task::spawn_blocking(move || refill::end(&identity));
        match ended.await {
            Ok(Ok(())) => {
                tracing::info!(%gone, "the damaged node was replaced, what was set aside is removed")
            }
            Ok(Err(error)) => tracing::warn!(%error, "what was set aside stays"),
            Err(error) => tracing::warn!(%error, "what was set aside stays"),
        }
    }

    /// Keeps them for the next start, which may come before this node has its copy of the meta state.
    async fn keep(&self, peers: Peers) {
        let identity = self.identity.clone();
        if identity.now().is_with(&peers) {
            return;
        }
        let kept = tokio::task::spawn_blocking(move || {
            identity.change(|identity| identity.set_peers(&peers))
        });
        match kept.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "where the other nodes are is not kept"),
            Err(error) => tracing::warn!(%error, "where the other nodes are is not kept"),
        }
    }
}

/// Where a node is may have changed since its last start. Where nobody of the cluster hears it, it asks
/// whom it was told to ask.
async fn say_where(
    cluster: Cluster,
    record: NodeRecord,
    cluster_id: String,
    door: Option<Door>,
    found: watch::Sender<Peers>,
    unwanted: Unwanted,
) {
    loop {
        match cluster.meta().put_node(record.clone()).await {
            Ok(()) => return,
            Err(MetaError::Invalid(why)) => return say_unwanted(&unwanted, why),
            Err(error) => tracing::debug!(%error, "cannot say where this node is yet"),
        }
        if let Some(door) = &door {
            match door.knock().await {
                Ok(welcome) if welcome.cluster_id == cluster_id => {
                    found.send_replace(welcome.peers);
                }
                Ok(Welcome { cluster_id: other, .. }) => {
                    tracing::warn!(other, "the node that is given to join is of another cluster");
                }
                Err(Denied::Never(why)) => return say_unwanted(&unwanted, why),
                Err(Denied::Later(why)) => tracing::debug!(why, "cannot ask for the others yet"),
            }
        }
        tokio::time::sleep(SAY_PAUSE).await;
    }
}

/// The first reason stays.
pub(crate) fn say_unwanted(unwanted: &Unwanted, why: String) {
    unwanted.send_if_modified(|now| {
        let is_first = now.is_none();
        now.get_or_insert(why);
        is_first
    });
}

/// What a node is told that was removed.
fn removed_text(node: NodeId) -> String {
    format!(
        "node {node} was removed from its cluster; to come back, it joins as another node: start it \
         with --join and an empty data directory"
    )
}

/// What an empty data directory is to become.
pub(crate) enum Origin {
    /// The first node of a cluster.
    Founder,
    /// One more.
    Joiner,
}

/// A node that has an identity goes on; one that has none must be told what it is to be.
pub(crate) fn origin(
    config: &Config,
    kept: Option<&Identity>,
) -> Result<Option<Origin>, ConfigError> {
    let may_join = !config.cluster.join.is_empty();
    match kept {
        Some(identity) if identity.is_joining && (may_join || !identity.peers().is_empty()) => {
            Ok(Some(Origin::Joiner))
        }
        Some(identity) if identity.is_joining => Err(ConfigError::Refused(
            "this node asked to be let into a cluster and does not know the answer: start it with \
             --join HOST:PORT again, or with another data directory",
        )),
        Some(_) => Ok(None),
        None if may_join => Ok(Some(Origin::Joiner)),
        None if config.cluster.bootstrap => Ok(Some(Origin::Founder)),
        None => Err(ConfigError::Refused(
            "the data directory is empty: start the first node of a cluster with --bootstrap, and \
             each further one with --join HOST:PORT, the peer address of one that runs",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a founder that lets somebody in before its own record is committed is named all the same.
    #[test]
    fn the_answer_to_a_joiner_names_who_gives_it() {
        let clock = piton_shard::Clock::start();
        let any = "127.0.0.1:7234".parse().unwrap();
        let this = record(&Config::default(), NodeId(1), any, any, any, clock.now());
        let peers = members_known_to(&this, &MetaState::default());
        assert_eq!(peers, Peers::from([(NodeId(1), "127.0.0.1:7234".to_owned())]));
    }
}
