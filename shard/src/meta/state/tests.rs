use piton_store::MemoryStore;

use super::*;
use crate::error::MetaError;
use crate::message::{MetaRequest, NamespaceUpdate, NewNamespace, NodeState};
use crate::meta::decide::decide;
use crate::replica::entry::decode_verdicts;

/// The meta group's replica without Raft.
struct Group {
    store: Arc<MemoryStore>,
    replica: MetaReplica,
    states: watch::Receiver<Arc<MetaState>>,
    index: u64,
}

impl Group {
    fn new() -> Group {
        let store = Arc::new(MemoryStore::new());
        let table = Table::open(store.clone(), 0).expect("it opens");
        let (replica, states) = MetaReplica::open(table).expect("an empty state");
        Group { store, replica, states, index: 0 }
    }

    fn state(&self) -> Arc<MetaState> {
        self.states.borrow().clone()
    }

    fn commit(&mut self, command: &MetaCommand) -> Verdict {
        self.index += 1;
        let payload = META_COMMAND.encode(command).expect("a short command");
        let entry = CommittedEntry { term: 1, index: self.index, payload };
        let mark = Mark { index: self.index, bytes: Bytes::new() };
        let verdicts = self.replica.apply(vec![entry], mark).expect("it applies");
        decode_verdicts(&verdicts[0]).expect("verdicts")[0]
    }

    /// Decides on the newest state and commits; false: there was nothing to change.
    fn change(&mut self, request: MetaRequest) -> Result<bool, MetaError> {
        let state = self.state();
        let Some(change) = decide(&state, &request)? else { return Ok(false) };
        let command = MetaCommand { expected: state.version, change };
        assert_eq!(self.commit(&command), Verdict::Applied);
        Ok(true)
    }

    fn register(&mut self, name: &str) -> Result<NamespaceId, MetaError> {
        let id = NamespaceId::from(format!("id-of-{name}"));
        let new = NewNamespace { name: name.to_owned(), ..NewNamespace::default() };
        self.change(MetaRequest::RegisterNamespace { id: id.clone(), new })?;
        Ok(id)
    }
}

fn types(pairs: &[(&str, IndexedValueType)]) -> SearchAttributeTypes {
    pairs.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
}

fn add(namespace: &NamespaceId, types: &SearchAttributeTypes) -> MetaRequest {
    let types = types.iter().map(|(name, &kind)| (name.clone(), kind as i32)).collect();
    MetaRequest::AddSearchAttributes { namespace: namespace.clone(), types }
}

fn remove(namespace: &NamespaceId, names: &[String]) -> MetaRequest {
    MetaRequest::RemoveSearchAttributes { namespace: namespace.clone(), names: names.to_vec() }
}

#[test]
fn namespaces_are_registered_once_changed_and_listed_by_name() {
    let mut group = Group::new();
    let id = group.register("payments").expect("it is new");
    group.register("default").expect("it is new");
    let namespace = group.state().namespace("payments").cloned().expect("registered");
    assert_eq!((&namespace.id, namespace.retention), (&id, Span::from_millis(86_400_000)));

    let new = NewNamespace { name: "payments".into(), ..NewNamespace::default() };
    let again =
        group.change(MetaRequest::RegisterNamespace { id: "other".into(), new: new.clone() });
    assert_eq!(again, Err(MetaError::NamespaceExists { name: "payments".into() }));
    let repeated = group.change(MetaRequest::RegisterNamespace { id: id.clone(), new });
    assert_eq!(repeated, Ok(false), "the same registration is recognised");

    let mut update = NamespaceUpdate { owner: Some("ada".into()), ..NamespaceUpdate::default() };
    update.data.insert("k".into(), "v".into());
    group
        .change(MetaRequest::UpdateNamespace { name: "payments".into(), update })
        .expect("it is there");
    group.change(MetaRequest::DeprecateNamespace { name: "payments".into() }).expect("it is there");
    let namespace = group.state().namespace_by_id(&id).cloned().expect("registered");
    assert_eq!((&*namespace.owner, namespace.state), ("ada", NamespaceState::Deprecated));
    let missing = group.change(MetaRequest::DeprecateNamespace { name: "nobody".into() });
    assert_eq!(missing, Err(MetaError::NamespaceNotFound { name: "nobody".into() }));
    let state = group.state();
    let names: Vec<_> = state.namespaces().map(|n| n.name.clone()).collect();
    assert_eq!(names, ["default", "payments"]);
}

#[test]
fn search_attributes_are_added_and_removed() {
    let mut group = Group::new();
    let id = group.register("default").expect("it is new");
    let two = types(&[("Customer", IndexedValueType::Keyword), ("Age", IndexedValueType::Int)]);
    group.change(add(&id, &two)).expect("they are new");
    let again = group.change(add(&id, &two));
    assert_eq!(again, Err(MetaError::AttributeExists { name: "Age".into() }));
    let reserved = types(&[("TemporalX", IndexedValueType::Int)]);
    let refused = group.change(add(&id, &reserved));
    assert!(matches!(refused, Err(MetaError::Invalid(_))));
    let names = ["Age".to_owned()];
    group.change(remove(&id, &names)).expect("it is there");
    let gone = group.change(remove(&id, &names));
    assert_eq!(gone, Err(MetaError::AttributeNotFound { name: "Age".into() }));
    let left = group.state().search_attributes(&id);
    assert_eq!(*left, types(&[("Customer", IndexedValueType::Keyword)]));
    let unknown = group.change(add(&"nobody".into(), &two));
    assert!(matches!(unknown, Err(MetaError::NamespaceNotFound { .. })));
}

#[test]
fn limits_that_are_set_stay_and_unknown_ones_are_refused() {
    let mut group = Group::new();
    let one = BTreeMap::from([("id_bytes_max".to_owned(), 50)]);
    let two = BTreeMap::from([("list_page_max".to_owned(), 10)]);
    group.change(MetaRequest::SetLimits(one.clone())).expect("a limit");
    group.change(MetaRequest::SetLimits(two.clone())).expect("a limit");
    let limits = group.state().limits().clone();
    assert_eq!((limits.id_bytes_max, limits.list_page_max), (50, 10));
    let unknown = BTreeMap::from([("nonsense".to_owned(), 1)]);
    assert!(group.change(MetaRequest::SetLimits(unknown.clone())).is_err());
    assert_eq!(group.change(MetaRequest::SetLimits(one.clone())), Ok(false));
}

#[test]
fn routes_are_given_once_and_lead_every_slot_to_its_shard() {
    let mut group = Group::new();
    assert_eq!(group.state().shard_of(Slot(0)), None);
    group.change(MetaRequest::BootstrapRoutes { shards: 16 }).expect("a fair number");
    assert_eq!(group.change(MetaRequest::BootstrapRoutes { shards: 8 }), Ok(false));
    let state = group.state();
    assert_eq!(state.routes().len(), 16);
    for slot in 0..piton_core::placement::SLOTS {
        let shard = piton_core::placement::initial_shard(Slot(slot), 16);
        assert_eq!(state.shard_of(Slot(slot)), Some(shard));
    }
}

#[test]
fn a_command_decided_on_an_old_state_changes_nothing() {
    let mut group = Group::new();
    let old = group.state();
    group.register("first").expect("it is new");
    let new = NewNamespace { name: "late".into(), ..NewNamespace::default() };
    let late = MetaRequest::RegisterNamespace { id: "id".into(), new };
    let change = decide(&old, &late).expect("new as of then");
    let change = change.expect("there is something to change");
    let version = group.state().version;
    assert_eq!(group.commit(&MetaCommand { expected: old.version, change }), Verdict::Moved);
    assert_eq!(group.state().namespace("late"), None);
    assert_eq!(group.state().version, version);
}

#[test]
fn a_reopened_replica_reads_the_same_state() {
    let mut group = Group::new();
    let id = group.register("default").expect("it is new");
    let one = types(&[("Customer", IndexedValueType::Keyword)]);
    group.change(add(&id, &one)).expect("it is new");
    group.change(MetaRequest::BootstrapRoutes { shards: 4 }).expect("a fair number");
    let set = BTreeMap::from([("id_bytes_max".to_owned(), 50)]);
    group.change(MetaRequest::SetLimits(set.clone())).expect("a limit");
    let before = group.state();
    group.replica.table.checkpoint(u64::MAX).expect("the memory engine writes");
    group.store.crash();
    let table = Table::open(group.store.clone(), 0).expect("it opens");
    let (mut replica, states) = MetaReplica::open(table).expect("it reads");
    assert_eq!(*states.borrow(), before);

    // Over a snapshot too.
    let mut other = Group::new();
    other.register("gone").expect("it is new");
    let mut rows = replica.snapshot().expect("there is a checkpoint");
    let page = rows.next_rows(100).expect("it reads");
    let restored = other.replica.restore(rows.mark(), &mut page.into_iter().map(Ok));
    restored.expect("it restores");
    assert_eq!(other.state(), before);
}

/// Goal: no release comes in, or back, that cannot read what the others may write by then.
#[test]
fn a_node_below_the_feature_level_is_not_let_in() {
    let mut group = Group::new();
    let node = |id, level| {
        MetaRequest::PutNode(NodeRecord {
            id: NodeId(id),
            peer_address: format!("127.0.0.1:{id}"),
            api_address: String::new(),
            http_address: String::new(),
            zone: String::new(),
            state: NodeState::Up,
            level,
            joined: Timestamp::default(),
        })
    };
    assert!(group.change(node(1, 3)).unwrap());
    let settings = ClusterSettings { level: 2, ..ClusterSettings::default() };
    group.change(MetaRequest::SetCluster(settings)).unwrap();
    assert!(group.change(node(2, 2)).unwrap());
    for old in [node(3, 1), node(2, 1)] {
        let refused = group.change(old).unwrap_err().to_string();
        assert!(refused.contains("up to 1, and the cluster is at 2"), "{refused}");
    }
    assert_eq!(group.state().nodes().count(), 2);
}
