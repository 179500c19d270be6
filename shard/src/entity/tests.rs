//! A second kind of entity: a counter that adds up what it is asked to. All that makes it one is here;
//! actor, batches, commits, request ids, expiry and the fence are the shell's.

use std::path::PathBuf;
use std::time::Duration;

use bytes::BufMut;
use piton_core::id::{EventId, ShardId, WorkflowKey};
use piton_core::placement;
use piton_core::time::Timestamp;
use piton_raft::log::FaultyDisk;
use piton_raft::{Groups, MemoryNetwork, NodeConfig, NodeId, Tuning};
use piton_store::MemoryStore;
use ractor::{ActorRef, SpawnErr};
use tokio::sync::oneshot;

use super::*;
use crate::clock::Clock;
use crate::config::ShardConfig;
use crate::entity::requests::Requests;
use crate::ids::Ids;
use crate::leader::hosting::Hosts;
use crate::leader::mailbox::Notice;
use crate::leader::reads::unreadable;
use crate::message::NoPeers;
use crate::metrics::ShardMetrics;
use crate::replica::entry::encode_range;
use crate::route::cluster::Cluster;
use crate::route::host::{HostParts, ShardHost};
use crate::route::shard_leader::ReplyTo;
use crate::rows::keys::EntityKind;
use crate::rows::range::SlotRange;
use crate::rows::retention::{self, ExpireRow};
use crate::rows::{RequestKind, RequestRow, decode_position, records};
use crate::workflow;

type Tell = oneshot::Sender<Result<u64, ShardError>>;

enum Ask {
    Add { request_id: String, by: u64, tell: Tell },
    Expire { row: ExpireRow, tell: Tell },
}

impl Asked for Ask {
    fn refuse(self, _: &Cluster, why: &ShardError) {
        let (Ask::Add { tell, .. } | Ask::Expire { tell, .. }) = self;
        let _ = tell.send(Err(why.clone()));
    }
}

struct Counter {
    shard: Arc<ShardRuntime>,
    hosts: Arc<Hosts<Ask>>,
    handle: Arc<Handle<Ask>>,
    key: EntityKey,
    position: Position,
    loaded: bool,
    sum: u64,
}

#[derive(Default)]
struct Batch {
    requests: Requests,
    told: Vec<(Tell, u64)>,
    expiring: Vec<(ExpireRow, Tell)>,
}

impl Counter {
    /// The sum lies behind the position, which is all that the fence reads.
    fn row(&self, position: Position) -> Write {
        let mut value = records::CURRENT.begin(16);
        value.put_u64(position.0);
        value.put_u64(self.sum);
        Write::put(self.key.rows().current(), value.freeze())
    }
}

impl Entity for Counter {
    type Ask = Ask;
    type Batch = Batch;

    fn shard(&self) -> &Arc<ShardRuntime> {
        &self.shard
    }

    fn handle(&self) -> &Arc<Handle<Ask>> {
        &self.handle
    }

    fn key(&self) -> EntityKey {
        self.key.clone()
    }

    fn position(&mut self) -> &mut Position {
        &mut self.position
    }

    fn is_loaded(&self) -> bool {
        self.loaded
    }

    fn load(&mut self, _: &mut Batch) -> Result<(), ShardError> {
        if let Some(value) = self.shard.rows.get(&self.key.rows().current()).map_err(unreadable)? {
            self.position = decode_position(&value).expect("it was written here");
            self.sum = u64::from_be_bytes(*value.last_chunk().expect("it was written here"));
        }
        self.loaded = true;
        Ok(())
    }

    fn decide(&mut self, envelope: Envelope<Ask>, batch: &mut Batch) {
        match envelope.ask {
            Ask::Expire { row, tell } => batch.expiring.push((row, tell)),
            Ask::Add { request_id, by, tell } => match batch.requests.known(&request_id, self) {
                Ok(Some(row)) => batch.told.push((tell, row.event_id.0 as u64)),
                Ok(None) => {
                    self.sum += by;
                    let (event_id, at) = (EventId(self.sum as i64), self.shard.clock.now());
                    let kind = RequestKind::Start;
                    let row = RequestRow { run_id: "".into(), event_id, at, kind };
                    batch.requests.note(&request_id, row);
                    batch.told.push((tell, self.sum));
                }
                Err(error) => drop(tell.send(Err(error))),
            },
        }
    }

    fn is_full(batch: &Batch) -> bool {
        batch.told.len() >= 2
    }

    fn writes(&mut self, batch: &mut Batch, next: Position) -> Result<Need, ShardError> {
        if batch.requests.is_empty() {
            return Ok(if batch.told.is_empty() { Need::Nothing } else { Need::Confirm });
        }
        let mut writes = batch.requests.writes(self)?;
        writes.push(self.row(next));
        Ok(Need::Commit(writes))
    }

    fn committed(&mut self, _: &mut Batch) {}

    fn refuse(&mut self, batch: Batch, why: &ShardError) {
        batch.told.into_iter().for_each(|(tell, _)| drop(tell.send(Err(why.clone()))));
    }

    async fn conclude(&mut self, batch: Batch) -> Result<(), ShardError> {
        batch.told.into_iter().for_each(|(tell, sum)| drop(tell.send(Ok(sum))));
        for (row, tell) in batch.expiring {
            let expired = expire::expire(self, &row).await;
            let _ = tell.send(expired.clone().map(|()| self.sum));
            expired?;
        }
        Ok(())
    }

    fn row_without(
        &mut self,
        _: &Expired,
        _: bool,
        next: Position,
    ) -> Option<Result<Write, ShardError>> {
        Some(Ok(self.row(next)))
    }

    fn forget(&mut self, _: &Expired, _: bool) {}

    fn is_idle(&mut self) -> bool {
        true
    }

    fn leave(&self) {
        self.hosts.remove(&self.key.key, &self.handle);
    }

    fn abandon(&mut self, left: VecDeque<Envelope<Ask>>, why: &ShardError) {
        crate::leader::hosting::refuse_all(left, &self.shard.cluster, why);
    }
}

/// A shard that this process leads, on a node of its own without any disk.
pub(crate) async fn leading_shard() -> Arc<ShardRuntime> {
    leading_shard_on(FaultyDisk::new(1), Tuning::default()).await
}

/// The same on this disk.
pub(crate) async fn leading_shard_on(disk: FaultyDisk, tuning: Tuning) -> Arc<ShardRuntime> {
    let (node, network) = (NodeId(1), MemoryNetwork::new());
    let config = NodeConfig {
        node,
        dir: PathBuf::from("/node"),
        disk: Arc::new(disk),
        transport: network.transport(node),
        states: Default::default(),
        tuning,
    };
    let groups = tokio::task::spawn_blocking(move || Groups::open(config));
    let parts = HostParts {
        node,
        founders: Some([node].into()),
        config: ShardConfig { shards: 1, ..ShardConfig::default() },
        groups: groups.await.expect("it ends").expect("a new log opens"),
        store: Arc::new(MemoryStore::new()),
        clock: Clock::start(),
        ids: Ids::random(),
        metrics: ShardMetrics::unseen(),
        peer: Arc::new(NoPeers),
    };
    let host = ShardHost::start(parts).await.expect("a new node starts");
    let id = ShardId(0);
    let replica = host.replica(id).expect("it was founded here");
    let group = replica.group.clone();
    let mut leadership = group.leadership();
    let serving = leadership.wait_for(|now| now.serving).await;
    let term = serving.expect("the group runs").term;
    let slots = placement::initial_range(id, 1);
    let owned = group.propose(encode_range(1, &SlotRange { version: 1, slots })).await;
    owned.expect("it leads");
    let cluster = Cluster::new(host);
    Arc::new(ShardRuntime::new(&cluster, (id, &replica), term, workflow::actor::start))
}

/// The counters of one shard.
struct Counters {
    shard: Arc<ShardRuntime>,
    hosts: Arc<Hosts<Ask>>,
}

fn hosts() -> Arc<Hosts<Ask>> {
    Arc::new(Hosts::new(EntityKind::Counter, 10))
}

impl Counters {
    async fn start() -> Self {
        Self { shard: leading_shard().await, hosts: hosts() }
    }

    fn start_one(
        &self,
        key: &WorkflowKey,
        handle: Arc<Handle<Ask>>,
    ) -> Result<ActorRef<Notice>, SpawnErr> {
        let (shard, hosts) = (Arc::clone(&self.shard), Arc::clone(&self.hosts));
        let key = EntityKey { kind: EntityKind::Counter, key: key.clone() };
        let position = Position(0);
        actor::start(Counter { shard, hosts, handle, key, position, loaded: false, sum: 0 })
    }

    async fn ask(&self, key: &WorkflowKey, ask: impl FnOnce(Tell) -> Ask) -> u64 {
        self.try_ask(key, ask).await.expect("it is done")
    }

    async fn try_ask(
        &self,
        key: &WorkflowKey,
        ask: impl FnOnce(Tell) -> Ask,
    ) -> Result<u64, ShardError> {
        let (tell, told) = oneshot::channel();
        let envelope = Envelope { ask: ask(tell), reply: ReplyTo::nobody() };
        self.hosts.ask(&self.shard, key, envelope, |handle| self.start_one(key, handle));
        told.await.expect("it is answered")
    }

    async fn add(&self, key: &WorkflowKey, request_id: &str, by: u64) -> u64 {
        let request_id = request_id.to_owned();
        self.ask(key, |tell| Ask::Add { request_id, by, tell }).await
    }

    async fn passivate(&self) {
        self.hosts.all().iter().for_each(|counter| counter.mailbox.notify(Notice::Leave));
        self.await_none().await;
    }

    async fn await_none(&self) {
        let gone = async {
            while !self.hosts.all().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("it leaves memory");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_is_no_workflow_is_hosted_by_the_same_shell() {
    let counters = Counters::start().await;
    let key = WorkflowKey { namespace: "namespace".into(), workflow_id: "counter".into() };
    assert_eq!(counters.add(&key, "first", 5).await, 5);
    assert_eq!(counters.add(&key, "second", 3).await, 8);
    assert_eq!(counters.add(&key, "first", 5).await, 5, "it is recognised");

    // What it is stands in rows, and those of a workflow by the same name are others.
    counters.passivate().await;
    assert_eq!(counters.add(&key, "second", 3).await, 8, "it is recognised again");
    assert_eq!(counters.add(&key, "third", 2).await, 10);
    let rows = &counters.shard.rows;
    let counter = EntityKey { kind: EntityKind::Counter, key: key.clone() };
    assert_eq!(rows.position(&counter).expect("it reads"), Position(3));
    assert_eq!(rows.position(&key.clone().into()).expect("it reads"), Position(0));

    // Its request ids expire; then they are new.
    let expired = retention::expired(rows, Timestamp::MAX, 10).expect("it reads");
    assert_eq!(expired.len(), 3);
    assert!(expired.iter().all(|row| row.key == counter));
    let row = expired[0].clone();
    assert_eq!(row.what, Expired::Request("first".into()));
    assert_eq!(counters.ask(&key, |tell| Ask::Expire { row, tell }).await, 10);
    assert_eq!(counters.add(&key, "first", 5).await, 15);
    assert_eq!(rows.position(&counter).expect("it reads"), Position(5));
}

/// What is decided on a position that has moved is fenced, and its actor goes.
#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_moved_elsewhere_is_hosted_anew() {
    let counters = Counters::start().await;
    let key = WorkflowKey { namespace: "namespace".into(), workflow_id: "counter".into() };
    assert_eq!(counters.add(&key, "first", 5).await, 5);
    let other = Counters { shard: Arc::clone(&counters.shard), hosts: hosts() };
    assert_eq!(other.add(&key, "second", 1).await, 6);
    let add = |tell| Ask::Add { request_id: "third".into(), by: 1, tell };
    let refused = counters.try_ask(&key, add).await.expect_err("it was decided on what is past");
    assert!(refused.to_string().contains("Moved"), "{refused}");
    counters.await_none().await;
    assert_eq!(counters.add(&key, "third", 1).await, 7);

    // So it is where something expires.
    let other = Counters { hosts: hosts(), ..other };
    assert_eq!(other.add(&key, "fourth", 1).await, 8);
    let row = retention::expired(&counters.shard.rows, Timestamp::MAX, 1).expect("it reads");
    let row = row.into_iter().next().expect("a request id");
    let expire = |tell| Ask::Expire { row, tell };
    let refused = counters.try_ask(&key, expire).await.expect_err("its position has moved");
    assert!(refused.to_string().contains("Moved"), "{refused}");
    counters.await_none().await;
}
