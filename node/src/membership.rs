//! How a node comes into a cluster and stays known in it: founding, joining, saying where it is, and
//! following where the others are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use piton_raft::NodeId;
use piton_shard::{Carrier, Cluster, FEATURE_LEVEL, NodeRecord, Unanswered};
use piton_store::codec::Kind;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::{Config, ConfigError};
use crate::identity::Identity;
use crate::operator::{self, OperatorCall};
use crate::peer::{Answerer, AskError, PeerAddress, PeerNet, Stranger, TlsError};

/// How long one member may take to let this node in.
const JOIN_WAIT: Duration = Duration::from_secs(10);
/// Before all addresses are asked again.
const JOIN_PAUSE: Duration = Duration::from_millis(500);
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
}

/// What is asked by who is no member.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Knock {
    Join(JoinRequest),
    Operate(OperatorCall),
}

/// What a node that wants to join says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JoinRequest {
    record: NodeRecord,
}

/// What it has to know to be one of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) cluster_id: String,
    pub(crate) shards: u32,
    /// Where the nodes of the cluster are.
    pub(crate) peers: Vec<(NodeId, String)>,
}

/// Words for who is not let in.
type JoinAnswer = Result<Welcome, String>;

pub(crate) const KNOCK: Kind<Knock> = Kind::new("a request of a stranger", &[]);
const JOIN_ANSWER: Kind<JoinAnswer> = Kind::new("an answer to a request to join", &[]);

/// Asks the members that are named in the configuration to be let in, until one of them does.
///
/// # Errors
/// See [`JoinError`].
pub(crate) async fn join(config: &Config, record: &NodeRecord) -> Result<Welcome, JoinError> {
    let addresses = config.cluster.join.iter().map(|address| address.parse());
    let addresses: Vec<PeerAddress> = addresses.collect::<Result<_, ConfigError>>()?;
    let stranger = Stranger::new(&config.peer, record.id, FEATURE_LEVEL)?;
    let request = KNOCK.encode(&Knock::Join(JoinRequest { record: record.clone() }));
    let request = request.map_err(|error| JoinError::Refused(error.to_string()))?;
    loop {
        for address in &addresses {
            match stranger.ask(address, request.clone(), JOIN_WAIT).await {
                Ok(answer) => match JOIN_ANSWER.decode(&answer) {
                    Ok(Ok(welcome)) => return Ok(welcome),
                    Ok(Err(why)) => return Err(JoinError::Refused(why)),
                    Err(error) => return Err(JoinError::Refused(error.to_string())),
                },
                Err(error) => tracing::warn!(%address, %error, "cannot join through this node yet"),
            }
        }
        tokio::time::sleep(JOIN_PAUSE).await;
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
    let advertised = &config.peer.advertised;
    let peer_address = if advertised.is_empty() { peer.to_string() } else { advertised.clone() };
    NodeRecord {
        id: node,
        peer_address,
        api_address: api.to_string(),
        http_address: http.to_string(),
        zone: config.cluster.zone.clone(),
        state: piton_shard::NodeState::Up,
        level: FEATURE_LEVEL,
        joined,
    }
}

/// Answers the other nodes.
pub(crate) struct Answers {
    pub(crate) cluster: Cluster,
    pub(crate) cluster_id: String,
    pub(crate) shards: u32,
}

impl Answerer for Answers {
    fn answer(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        let cluster = self.cluster.clone();
        Box::pin(async move { cluster.answer_bytes(from, &request).await })
    }

    fn answer_stranger(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        let (cluster, cluster_id) = (self.cluster.clone(), self.cluster_id.clone());
        let shards = self.shards;
        Box::pin(async move {
            let answer: JoinAnswer = match KNOCK.decode(&request) {
                Ok(Knock::Join(JoinRequest { record })) if record.id == from => {
                    let peers = let_in(&cluster, record).await;
                    peers.map(|peers| Welcome { cluster_id, shards, peers })
                }
                Ok(Knock::Join(JoinRequest { record })) => {
                    Err(format!("node {from} asks for node {}", record.id))
                }
                Ok(Knock::Operate(call)) => {
                    return operator::answer(&cluster, &cluster_id, call).await;
                }
                Err(error) => Err(error.to_string()),
            };
            JOIN_ANSWER.encode(&answer).unwrap_or_default()
        })
    }
}

async fn let_in(cluster: &Cluster, record: NodeRecord) -> Result<Vec<(NodeId, String)>, String> {
    cluster.meta().put_node(record).await.map_err(|error| error.to_string())?;
    let state = cluster.meta().state();
    let members = state.nodes().filter(|node| node.state.is_member());
    Ok(members.map(|node| (node.id, node.peer_address.clone())).collect())
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

/// Keeps the network's members those of the meta state, and this node's record there what it is.
pub(crate) struct Membership {
    tasks: Vec<JoinHandle<()>>,
}

impl Membership {
    /// `known` is where the others are, as long as the meta state does not say so.
    pub(crate) fn start(
        cluster: &Cluster,
        net: &Arc<PeerNet>,
        record: NodeRecord,
        known: Vec<(NodeId, String)>,
    ) -> Self {
        let (states, net) = (cluster.meta().watch(), Arc::clone(net));
        let following = tokio::spawn(follow_peers(states, net, known));
        let saying = tokio::spawn(say_where(cluster.clone(), record));
        Self { tasks: vec![following, saying] }
    }

    pub(crate) async fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            // An abort is what was asked for.
            let _ = task.await;
        }
    }
}

async fn follow_peers(
    mut states: watch::Receiver<Arc<piton_shard::MetaState>>,
    net: Arc<PeerNet>,
    known: Vec<(NodeId, String)>,
) {
    loop {
        let state = states.borrow_and_update().clone();
        let mut peers: BTreeMap<NodeId, String> = known.iter().cloned().collect();
        for node in state.nodes() {
            if node.state.is_member() {
                peers.insert(node.id, node.peer_address.clone());
            } else {
                peers.remove(&node.id);
            }
        }
        let parsed = peers.into_iter().filter_map(|(node, address)| match address.parse() {
            Ok(address) => Some((node, address)),
            Err(_) => {
                tracing::warn!(%node, address, "a node's address cannot be used");
                None
            }
        });
        net.set_peers(parsed.collect());
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Where a node is may have changed since its last start.
async fn say_where(cluster: Cluster, record: NodeRecord) {
    loop {
        match cluster.meta().put_node(record.clone()).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "cannot say where this node is yet"),
        }
        tokio::time::sleep(SAY_PAUSE).await;
    }
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
    match kept {
        Some(_) => Ok(None),
        None if !config.cluster.join.is_empty() => Ok(Some(Origin::Joiner)),
        None if config.cluster.bootstrap => Ok(Some(Origin::Founder)),
        None => Err(ConfigError::Refused(
            "the data directory is empty: start the first node of a cluster with --bootstrap, and \
             each further one with --join HOST:PORT, the peer address of one that runs",
        )),
    }
}
