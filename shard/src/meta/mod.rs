//! The meta group's handle: namespaces, search attributes, limits and routes, read locally on every
//! node and changed through the group's leader (D2), from any node. A change is decided on a state
//! and carries that state's version; if another one came first, it is decided again. Whoever asked
//! for it goes on when it is seen where it was asked for.

pub(crate) mod decide;
pub(crate) mod search_attribute;
pub(crate) mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use piton_core::id::{NamespaceId, ShardId};
use piton_core::limits::Limits;
use piton_core::placement::Slot;
use piton_raft::{Group, GroupId, Leadership, NodeId, ProposeError, ReadError, Rounds};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout_at};

use crate::error::MetaError;
use crate::ids::Ids;
use crate::message::{
    ClusterSettings, MetaCall, MetaRequest, NamespaceUpdate, NewNamespace, NodeAnswer, NodeCall,
    NodeRecord, NodeState, Peer,
};
pub use crate::meta::search_attribute::NamespaceAttributes;
use crate::meta::state::{META_COMMAND, MetaCommand};
pub use crate::meta::state::{MetaState, Namespace, NamespaceState, Route, SearchAttributeTypes};
use crate::replica::entry::{Verdict, decode_verdicts};

/// The meta group's number among the Raft groups of a node.
pub const META_GROUP: GroupId = GroupId(0);

/// How often a change is decided anew because another one came first.
const ATTEMPTS_MAX: usize = 16;
/// How long a change waits for a leader, and for what it led to.
const LEADER_WAIT: Duration = Duration::from_secs(5);
/// How often who waits for a leader looks again.
const LEADER_LOOK: Duration = Duration::from_millis(20);

/// Reads the meta state as this node knows it, and changes it.
#[derive(Clone)]
pub struct Meta {
    node: NodeId,
    group: Group,
    states: watch::Receiver<Arc<MetaState>>,
    ids: Ids,
    peer: Arc<dyn Peer>,
    /// Changes that are decided here are made one after the other, so that none of them comes first for
    /// all others again and again.
    turn: Arc<Mutex<()>>,
    /// Those who wait for the newest state.
    refreshes: Arc<Rounds<Result<(), MetaError>>>,
}

impl Meta {
    pub(crate) fn new(
        node: NodeId,
        group: Group,
        states: watch::Receiver<Arc<MetaState>>,
        ids: Ids,
        peer: Arc<dyn Peer>,
    ) -> Meta {
        Meta { node, group, states, ids, peer, turn: Arc::default(), refreshes: Arc::default() }
    }

    /// The whole state as of now.
    pub fn state(&self) -> Arc<MetaState> {
        Arc::clone(&self.states.borrow())
    }

    /// Sees every state from now on.
    pub fn watch(&self) -> watch::Receiver<Arc<MetaState>> {
        self.states.clone()
    }

    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.states.borrow().namespace(name).cloned()
    }

    pub fn namespace_by_id(&self, id: &NamespaceId) -> Option<Arc<Namespace>> {
        self.states.borrow().namespace_by_id(id).cloned()
    }

    /// All namespaces, by name.
    pub fn namespaces(&self) -> Vec<Arc<Namespace>> {
        self.states.borrow().namespaces().cloned().collect()
    }

    /// The namespace's custom search attributes.
    pub fn search_attributes(&self, namespace: &NamespaceId) -> Arc<SearchAttributeTypes> {
        self.states.borrow().search_attributes(namespace)
    }

    /// Checks the search attributes of requests in this namespace.
    pub fn search_attribute_check(&self, namespace: &NamespaceId) -> NamespaceAttributes {
        let state = self.states.borrow();
        NamespaceAttributes::new(
            state.namespace_by_id(namespace).cloned(),
            state.search_attributes(namespace),
            Arc::clone(state.limits()),
        )
    }

    pub fn limits(&self) -> Arc<Limits> {
        Arc::clone(self.states.borrow().limits())
    }

    /// How many shards there are; 0 until the cluster is bootstrapped.
    pub fn shards(&self) -> usize {
        self.states.borrow().routes().len()
    }

    pub fn shard_of(&self, slot: Slot) -> Option<ShardId> {
        self.states.borrow().shard_of(slot)
    }

    /// Whether the group has a leader; if it is this node, it can make changes already.
    pub(crate) fn is_led(&self, this: NodeId) -> bool {
        let leadership = *self.group.leadership().borrow();
        leadership.serving || leadership.leader.is_some_and(|leader| leader != this)
    }

    /// Returns once everything committed before the call is seen here. Callers at the same time share a
    /// question to the leader.
    ///
    /// # Errors
    /// [`MetaError::Unavailable`].
    pub async fn refresh(&self) -> Result<(), MetaError> {
        let joined = self.refreshes.join();
        if joined.is_first {
            let meta = self.clone();
            tokio::spawn(async move {
                let round = || async { meta.see(meta.ask_leader(MetaCall::Version).await?).await };
                meta.refreshes.run(round).await;
            });
        }
        joined.answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// The namespace of that name; one that is not known here is asked of the leader.
    ///
    /// # Errors
    /// [`MetaError::NamespaceNotFound`], and [`MetaError::Unavailable`] where nobody can tell.
    pub async fn find_namespace(&self, name: &str) -> Result<Arc<Namespace>, MetaError> {
        self.find(name, || self.namespace(name)).await
    }

    /// The same by its id.
    ///
    /// # Errors
    /// As [`Meta::find_namespace`].
    pub async fn find_namespace_by_id(
        &self,
        id: &NamespaceId,
    ) -> Result<Arc<Namespace>, MetaError> {
        self.find(id.as_str(), || self.namespace_by_id(id)).await
    }

    /// Looks here, and again where all that is committed is seen.
    async fn find(
        &self,
        named: &str,
        look: impl Fn() -> Option<Arc<Namespace>>,
    ) -> Result<Arc<Namespace>, MetaError> {
        if let Some(namespace) = look() {
            return Ok(namespace);
        }
        self.refresh().await?;
        look().ok_or_else(|| MetaError::NamespaceNotFound { name: named.to_owned() })
    }

    /// Returns once that version, or a later one, is seen here.
    ///
    /// # Errors
    /// [`MetaError::Unavailable`] if that takes too long.
    pub(crate) async fn see(&self, version: u64) -> Result<(), MetaError> {
        if self.states.borrow().version >= version {
            return Ok(());
        }
        let mut states = self.states.clone();
        let seen = states.wait_for(|state| state.version >= version);
        match tokio::time::timeout(LEADER_WAIT, seen).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(stopped()),
            Err(_) => {
                let text = format!("version {version} of the meta state is not known here yet");
                Err(MetaError::Unavailable(text))
            }
        }
    }

    /// # Errors
    /// [`MetaError::NamespaceExists`], [`MetaError::Unavailable`].
    pub async fn register_namespace(&self, new: NewNamespace) -> Result<Arc<Namespace>, MetaError> {
        let id = NamespaceId::new(self.ids.draw().to_string());
        self.change(MetaRequest::RegisterNamespace { id: id.clone(), new }).await?;
        self.namespace_by_id(&id).ok_or_else(vanished)
    }

    /// # Errors
    /// [`MetaError::NamespaceNotFound`], [`MetaError::Unavailable`].
    pub async fn update_namespace(
        &self,
        name: &str,
        update: NamespaceUpdate,
    ) -> Result<Arc<Namespace>, MetaError> {
        self.change(MetaRequest::UpdateNamespace { name: name.to_owned(), update }).await?;
        self.namespace(name).ok_or_else(vanished)
    }

    /// Marks a namespace as not to be used for new workflows; nothing else changes.
    ///
    /// # Errors
    /// [`MetaError::NamespaceNotFound`], [`MetaError::Unavailable`].
    pub async fn deprecate_namespace(&self, name: &str) -> Result<(), MetaError> {
        self.change(MetaRequest::DeprecateNamespace { name: name.to_owned() }).await
    }

    /// # Errors
    /// [`MetaError::AttributeExists`], [`MetaError::Invalid`], [`MetaError::NamespaceNotFound`],
    /// [`MetaError::Unavailable`].
    pub async fn add_search_attributes(
        &self,
        namespace: &NamespaceId,
        types: SearchAttributeTypes,
    ) -> Result<(), MetaError> {
        let types = types.into_iter().map(|(name, kind)| (name, kind as i32)).collect();
        let namespace = namespace.clone();
        self.change(MetaRequest::AddSearchAttributes { namespace, types }).await
    }

    /// # Errors
    /// [`MetaError::AttributeNotFound`], [`MetaError::Invalid`], [`MetaError::NamespaceNotFound`],
    /// [`MetaError::Unavailable`].
    pub async fn remove_search_attributes(
        &self,
        namespace: &NamespaceId,
        names: &[String],
    ) -> Result<(), MetaError> {
        let (namespace, names) = (namespace.clone(), names.to_vec());
        self.change(MetaRequest::RemoveSearchAttributes { namespace, names }).await
    }

    /// Sets these limits; the others stay as they are.
    ///
    /// # Errors
    /// [`MetaError::Invalid`] for a name that is no limit, [`MetaError::Unavailable`].
    pub async fn set_limits(&self, set: &BTreeMap<String, u64>) -> Result<(), MetaError> {
        self.change(MetaRequest::SetLimits(set.clone())).await
    }

    /// Gives a new cluster its routes: `shards` even ranges. A cluster that has routes keeps them.
    ///
    /// # Errors
    /// [`MetaError::Invalid`], [`MetaError::Unavailable`].
    pub async fn bootstrap_routes(&self, shards: u32) -> Result<Arc<Vec<Route>>, MetaError> {
        self.change(MetaRequest::BootstrapRoutes { shards }).await?;
        Ok(Arc::clone(self.state().routes()))
    }

    /// Makes it a node of the cluster, or says where one that is has moved to.
    ///
    /// # Errors
    /// [`MetaError::Invalid`] for one that was removed, [`MetaError::Unavailable`].
    pub async fn put_node(&self, node: NodeRecord) -> Result<(), MetaError> {
        self.change(MetaRequest::PutNode(node)).await
    }

    /// # Errors
    /// [`MetaError::Invalid`] for a node that is none or cannot be that now, [`MetaError::Unavailable`].
    pub async fn set_node_state(&self, node: NodeId, state: NodeState) -> Result<(), MetaError> {
        self.change(MetaRequest::SetNodeState { node, state }).await
    }

    /// Records where a shard is to be, if its placement is still of version `expected`; 0: has none.
    ///
    /// # Errors
    /// [`MetaError::Invalid`] where it is not, or these cannot hold it; [`MetaError::Unavailable`].
    pub async fn place(
        &self,
        shard: ShardId,
        expected: u64,
        voters: BTreeSet<NodeId>,
    ) -> Result<(), MetaError> {
        self.change(MetaRequest::Place { shard, expected, voters }).await
    }

    /// # Errors
    /// [`MetaError::Invalid`] where nodes contradict, [`MetaError::Unavailable`].
    pub async fn set_cluster(&self, settings: ClusterSettings) -> Result<(), MetaError> {
        self.change(MetaRequest::SetCluster(settings)).await
    }

    /// Has the leader decide and commit, and returns when that is seen here.
    async fn change(&self, request: MetaRequest) -> Result<(), MetaError> {
        let version = self.ask_leader(MetaCall::Change(request)).await?;
        self.see(version).await
    }

    /// Asks who leads, here or one hop away; waits for a leader if there is none. What may have been
    /// carried out is not asked again.
    async fn ask_leader(&self, call: MetaCall) -> Result<u64, MetaError> {
        let until = Instant::now() + LEADER_WAIT;
        let mut leadership = self.group.leadership();
        loop {
            let now = *leadership.borrow_and_update();
            let answered = match now.leader {
                _ if now.serving => self.answer(call.clone()).await,
                Some(leader) if leader != self.node => {
                    let asked = self.peer.node(leader, NodeCall::Meta(call.clone()));
                    match timeout_at(until, asked).await {
                        Ok(Ok(NodeAnswer::Version(version))) => Ok(version),
                        Ok(Err(error)) => Err(error),
                        Ok(Ok(_)) | Err(_) => Err(no_answer(leader)),
                    }
                }
                _ => Err(MetaError::NotLed { leader: None }),
            };
            let Err(MetaError::NotLed { .. }) = answered else { return answered };
            // Whoever was asked may have learnt later than this node who leads, so a change is not all
            // to wait for.
            let soon = Instant::now() + LEADER_LOOK;
            let changed = timeout_at(soon.min(until), leadership.changed()).await;
            if changed.is_ok_and(|changed| changed.is_err()) {
                return Err(stopped());
            }
            if Instant::now() >= until {
                return Err(MetaError::Unavailable("the meta group has no leader".to_owned()));
            }
        }
    }

    /// Answers what this node or another one asks of the group's leader.
    ///
    /// # Errors
    /// [`MetaError::NotLed`] where this node does not lead; and what the change is refused with.
    pub async fn answer(&self, call: MetaCall) -> Result<u64, MetaError> {
        let Leadership { leader, serving, .. } = *self.group.leadership().borrow();
        if !serving {
            return Err(MetaError::NotLed { leader });
        }
        match call {
            MetaCall::Version => {
                self.confirm().await?;
                Ok(self.state().version)
            }
            MetaCall::Change(request) => self.decide(&request).await,
        }
    }

    /// Decides a change on the newest state and replicates it.
    async fn decide(&self, request: &MetaRequest) -> Result<u64, MetaError> {
        let _turn = self.turn.lock().await;
        // Refusals are answers without a commit: they too must come from the newest state.
        self.confirm().await?;
        for _ in 0..ATTEMPTS_MAX {
            let state = self.state();
            let Some(change) = decide::decide(&state, request)? else { return Ok(state.version) };
            let command = MetaCommand { expected: state.version, change };
            let payload = META_COMMAND.encode_at(state.settings().level, &command);
            let payload = payload.map_err(|e| MetaError::Invalid(e.to_string()))?;
            if self.propose(payload).await? == Verdict::Applied {
                // Applied here before the proposal was answered, so it is in this state.
                return Ok(self.state().version);
            }
        }
        Err(MetaError::Unavailable("other changes kept coming first".to_owned()))
    }

    async fn confirm(&self) -> Result<(), MetaError> {
        self.group.read_index().await.map_err(|error| match error {
            ReadError::NotLeader { leader } => MetaError::NotLed { leader },
            error => MetaError::Unavailable(error.to_string()),
        })
    }

    async fn propose(&self, payload: Bytes) -> Result<Verdict, MetaError> {
        let unavailable = |text: String| MetaError::Unavailable(text);
        let committed = self.group.propose(payload).await.map_err(|error| match error {
            ProposeError::NotLeader { leader } => MetaError::NotLed { leader },
            error => unavailable(error.to_string()),
        })?;
        let verdicts = decode_verdicts(&committed.verdict);
        let verdicts = verdicts.map_err(|e| unavailable(e.to_string()))?;
        verdicts.first().copied().ok_or_else(|| unavailable("no verdict".to_owned()))
    }
}

fn stopped() -> MetaError {
    MetaError::Unavailable("the meta group has stopped here".to_owned())
}

fn no_answer(leader: NodeId) -> MetaError {
    MetaError::Unavailable(format!("node {leader}, which leads the meta group, does not answer"))
}

fn vanished() -> MetaError {
    MetaError::Unavailable("it was changed again at once".to_owned())
}
