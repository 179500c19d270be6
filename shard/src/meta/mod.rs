//! The meta group's handle: namespaces, search attributes, limits and routes, read locally on every
//! node and changed through the group's leader (D2). A change is decided on a state
//! and carries that state's version; if another one came first, it is decided again.

pub(crate) mod decide;
pub(crate) mod search_attribute;
pub(crate) mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use piton_core::id::{NamespaceId, ShardId};
use piton_core::limits::Limits;
use piton_core::placement::Slot;
use piton_core::time::{Span, Timestamp};
use piton_raft::{Group, GroupId, NodeId};
use tokio::sync::{Mutex, watch};

use crate::ids::Ids;
pub use crate::meta::search_attribute::NamespaceAttributes;
use crate::meta::state::{META_COMMAND, MetaChange, MetaCommand};
pub use crate::meta::state::{MetaState, Namespace, NamespaceState, Route, SearchAttributeTypes};
use crate::replica::entry::{Verdict, decode_verdicts};

/// The meta group's number among the Raft groups of a node.
pub const META_GROUP: GroupId = GroupId(0);

/// How often a change is decided anew because another one came first.
const ATTEMPTS_MAX: usize = 16;
/// How long a change waits for a leader.
const LEADER_WAIT: Duration = Duration::from_secs(5);

/// Reads the meta state as this node knows it, and changes it.
#[derive(Clone)]
pub struct Meta {
    group: Group,
    states: watch::Receiver<Arc<MetaState>>,
    ids: Ids,
    /// Changes of this node are made one after the other, so that none of them comes first for all others
    /// again and again.
    turn: Arc<Mutex<()>>,
}

/// A namespace to be registered.
#[derive(Clone, Debug, Default)]
pub struct NewNamespace {
    pub name: String,
    pub description: String,
    pub owner: String,
    pub data: BTreeMap<String, String>,
    /// How long closed runs are kept; [`Span::ZERO`]: the cluster's default.
    pub retention: Span,
    /// The time now.
    pub created: Timestamp,
}

/// What of a namespace changes; `None` leaves it as it is.
#[derive(Clone, Debug, Default)]
pub struct NamespaceUpdate {
    pub description: Option<String>,
    pub owner: Option<String>,
    pub retention: Option<Span>,
    /// Merged into what is there.
    pub data: BTreeMap<String, String>,
}

/// Why a change was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    #[error("Namespace {name} already exists.")]
    NamespaceExists { name: String },
    #[error("Namespace {name} is not found.")]
    NamespaceNotFound { name: String },
    #[error("Search attribute {name} already exists.")]
    AttributeExists { name: String },
    #[error("Search attribute {name} doesn't exist.")]
    AttributeNotFound { name: String },
    /// Malformed; the text is for the caller.
    #[error("{0}")]
    Invalid(String),
    /// Not carried out, or the outcome is unknown; the caller may try again.
    #[error("{0}")]
    Unavailable(String),
}

impl Meta {
    pub fn new(group: Group, states: watch::Receiver<Arc<MetaState>>, ids: Ids) -> Meta {
        Meta { group, states, ids, turn: Arc::default() }
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

    /// Returns once everything committed before the call is seen here.
    ///
    /// # Errors
    /// [`MetaError::Unavailable`].
    pub async fn refresh(&self) -> Result<(), MetaError> {
        self.group.read_index().await.map_err(|e| MetaError::Unavailable(e.to_string()))
    }

    /// # Errors
    /// [`MetaError::NamespaceExists`], [`MetaError::Unavailable`].
    pub async fn register_namespace(&self, new: NewNamespace) -> Result<Arc<Namespace>, MetaError> {
        // Drawn once: an attempt whose outcome is unknown and the next one are the same namespace.
        let id = NamespaceId::new(self.ids.draw().to_string());
        let state = self.change(|state| decide::register_namespace(state, &new, &id)).await?;
        state.namespace_by_id(&id).cloned().ok_or_else(vanished)
    }

    /// # Errors
    /// [`MetaError::NamespaceNotFound`], [`MetaError::Unavailable`].
    pub async fn update_namespace(
        &self,
        name: &str,
        update: NamespaceUpdate,
    ) -> Result<Arc<Namespace>, MetaError> {
        let state = self.change(|state| decide::update_namespace(state, name, &update)).await?;
        state.namespace(name).cloned().ok_or_else(vanished)
    }

    /// Marks a namespace as not to be used for new workflows; nothing else changes.
    ///
    /// # Errors
    /// [`MetaError::NamespaceNotFound`], [`MetaError::Unavailable`].
    pub async fn deprecate_namespace(&self, name: &str) -> Result<(), MetaError> {
        self.change(|state| decide::deprecate_namespace(state, name)).await.map(drop)
    }

    /// # Errors
    /// [`MetaError::AttributeExists`], [`MetaError::Invalid`], [`MetaError::NamespaceNotFound`],
    /// [`MetaError::Unavailable`].
    pub async fn add_search_attributes(
        &self,
        namespace: &NamespaceId,
        types: SearchAttributeTypes,
    ) -> Result<(), MetaError> {
        self.change(|state| decide::add_search_attributes(state, namespace, &types)).await.map(drop)
    }

    /// # Errors
    /// [`MetaError::AttributeNotFound`], [`MetaError::Invalid`], [`MetaError::NamespaceNotFound`],
    /// [`MetaError::Unavailable`].
    pub async fn remove_search_attributes(
        &self,
        namespace: &NamespaceId,
        names: &[String],
    ) -> Result<(), MetaError> {
        self.change(|state| decide::remove_search_attributes(state, namespace, names))
            .await
            .map(drop)
    }

    /// Sets these limits; the others stay as they are.
    ///
    /// # Errors
    /// [`MetaError::Invalid`] for a name that is no limit, [`MetaError::Unavailable`].
    pub async fn set_limits(&self, set: &BTreeMap<String, u64>) -> Result<(), MetaError> {
        self.change(|state| decide::set_limits(state, set)).await.map(drop)
    }

    /// Gives a new cluster its routes: `shards` even ranges. A cluster that has routes keeps them.
    ///
    /// # Errors
    /// [`MetaError::Invalid`], [`MetaError::Unavailable`].
    pub async fn bootstrap_routes(&self, shards: u32) -> Result<Arc<Vec<Route>>, MetaError> {
        let state = self.change(|state| decide::bootstrap_routes(state, shards)).await?;
        Ok(Arc::clone(state.routes()))
    }

    /// Decides a change on the newest state and replicates it. `None`: there is nothing to change.
    async fn change(
        &self,
        decide: impl Fn(&MetaState) -> Result<Option<MetaChange>, MetaError>,
    ) -> Result<Arc<MetaState>, MetaError> {
        let _turn = self.turn.lock().await;
        self.wait_for_leader().await;
        // Refusals are answers without a commit: they too must come from the newest state.
        self.refresh().await?;
        for _ in 0..ATTEMPTS_MAX {
            let state = self.state();
            let Some(change) = decide(&state)? else { return Ok(state) };
            let command = MetaCommand { expected: state.version, change };
            let payload =
                META_COMMAND.encode(&command).map_err(|e| MetaError::Invalid(e.to_string()))?;
            if self.propose(payload).await? == Verdict::Applied {
                // Applied here before the proposal was answered, so it is in this state.
                return Ok(self.state());
            }
        }
        Err(MetaError::Unavailable("other changes kept coming first".to_owned()))
    }

    /// A node that has just started leads soon, or learns who does.
    async fn wait_for_leader(&self) {
        let mut leadership = self.group.leadership();
        let known = leadership.wait_for(|now| {
            now.serving || (now.leader.is_some() && !self.group.metrics().is_leader)
        });
        // Without a leader the change is refused as unavailable, by what comes next.
        let _ = tokio::time::timeout(LEADER_WAIT, known).await;
    }

    async fn propose(&self, payload: Bytes) -> Result<Verdict, MetaError> {
        let unavailable = |text: String| MetaError::Unavailable(text);
        let committed = self.group.propose(payload).await;
        let committed = committed.map_err(|e| unavailable(e.to_string()))?;
        let verdicts = decode_verdicts(&committed.verdict);
        let verdicts = verdicts.map_err(|e| unavailable(e.to_string()))?;
        verdicts.first().copied().ok_or_else(|| unavailable("no verdict".to_owned()))
    }
}

fn vanished() -> MetaError {
    MetaError::Unavailable("it was changed again at once".to_owned())
}
