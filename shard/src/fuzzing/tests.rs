use std::collections::BTreeMap;
use std::fmt::Write as _;

use piton_core::id::{EventId, NamespaceId, Position, RunId, ShardId, WorkflowId, WorkflowKey};
use piton_core::placement::SLOTS;
use piton_core::time::{Span, Timestamp};
use piton_store::fuzzing::attack;
use piton_store::golden::Golden;
use piton_store::{KeyRange, Order, Write};

use super::*;
use crate::message::token::TASK_TOKEN;
use crate::message::wire::samples;
use crate::message::{ActivityToken, ClusterSettings, Placement, QueryToken, WorkflowTaskToken};
use crate::meta::state::{META_COMMAND, MetaChange, MetaCommand, Namespace, NamespaceState, Route};
use crate::replica::entry::{TransitionRecord, Verdict};
use crate::replica::tests::TestShard;
use crate::rows::range::SlotRange;
use crate::rows::tests::Driver;

fn held(run: &mut dyn FnMut()) -> u64 {
    allocation_counter::measure(run).bytes_max
}

fn workflow() -> keys::Entity<&'static str> {
    let kind = keys::EntityKind::Workflow;
    keys::Entity { slot: 300, kind, namespace: "namespace", id: "order \u{1} 7" }
}

/// Entries of a shard's log, by what they are.
fn entries() -> [(&'static str, Bytes); 3] {
    let transition = |writes| TransitionRecord {
        term: 3,
        key: WorkflowKey { namespace: "namespace".into(), workflow_id: "order-7".into() }.into(),
        base: Position(9),
        writes,
    };
    let writes = vec![Write::put("key", "a value"), Write::delete("another key")];
    let two = [transition(writes.clone()), transition(vec![])];
    [
        ("two transitions", entry::encode_entry(1, &two)),
        ("a transition", entry::encode_entry(1, &[transition(writes)])),
        ("a range", entry::encode_range(1, &SlotRange { version: 2, slots: 5..SLOTS })),
    ]
}

#[test]
fn an_entry_survives_hostile_bytes() {
    let mut samples: Vec<Vec<u8>> = entries().into_iter().map(|(_, entry)| entry.into()).collect();
    samples.push(vec![0, 1, 2, 3]);
    attack("an entry", samples, held, entry);
}

fn meta_commands() -> [MetaCommand; 7] {
    let namespace = Namespace {
        id: "id".into(),
        name: "orders".into(),
        state: NamespaceState::Registered,
        description: "what it is for".into(),
        owner: String::new(),
        data: BTreeMap::from([("key".into(), "value".into())]),
        retention: Span::from_secs(60),
        created: Timestamp::from_millis(5),
    };
    let changes = [
        MetaChange::Namespace(namespace),
        MetaChange::SearchAttributes {
            namespace: "id".into(),
            types: BTreeMap::from([("Customer".into(), 2)]),
        },
        MetaChange::Limits(BTreeMap::from([("signals_max".into(), 5)])),
        MetaChange::Routes(vec![
            Route { shard: ShardId(1), slots: 0..8_192 },
            Route { shard: ShardId(2), slots: 8_192..SLOTS },
        ]),
        MetaChange::Node(samples::node_record()),
        MetaChange::Placement(Placement {
            shard: ShardId(3),
            version: 4,
            voters: samples::nodes(),
        }),
        MetaChange::Settings(ClusterSettings::default()),
    ];
    changes.map(|change| MetaCommand { expected: 0, change })
}

#[test]
fn an_entry_of_the_meta_group_survives_hostile_bytes() {
    let encode = |command| META_COMMAND.encode(&command).expect("short").to_vec();
    let samples = meta_commands().map(encode).to_vec();
    attack("an entry of the meta group", samples, held, meta_entry);
}

fn tokens() -> [TaskToken; 3] {
    let (namespace, workflow_id) = (NamespaceId::from("n"), WorkflowId::from("order-7"));
    let run_id = RunId::from("a-run-id");
    [
        TaskToken::Workflow(WorkflowTaskToken {
            namespace: namespace.clone(),
            workflow_id: workflow_id.clone(),
            run_id: run_id.clone(),
            scheduled: EventId(2),
            started: EventId(3),
            attempt: 1,
            term: 7,
            number: 1 << 40,
        }),
        TaskToken::Activity(ActivityToken {
            namespace: namespace.clone(),
            workflow_id: workflow_id.clone(),
            run_id: run_id.clone(),
            activity_id: "5".into(),
            activity_type: "charge".into(),
            scheduled: EventId(5),
            attempt: 3,
            stamp: 300,
        }),
        TaskToken::Query(QueryToken { namespace, workflow_id, run_id, term: 7, query: 9 }),
    ]
}

#[test]
fn a_token_survives_hostile_bytes() {
    attack("a token", tokens().map(|token| token.encode()).to_vec(), held, token);
}

#[test]
fn what_another_node_says_survives_hostile_bytes() {
    let requests = samples::peer_requests().into_iter();
    let requests = requests.map(|request| request.encode().expect("short").to_vec());
    let answers = samples::peer_answers().into_iter().map(|answer| answer.encode().to_vec());
    attack("what another node says", requests.chain(answers).collect(), held, peer);
}

#[test]
fn a_key_survives_hostile_bytes() {
    let (entity, run_id) = (workflow(), "run");
    let timer = keys::Timer { due: 5, entity: entity.clone(), run_id, kind: 1, event_id: 9 };
    let errand = keys::Errand { entity: entity.clone(), run_id, event_id: 9, kind: 1 };
    let task = keys::Task {
        queue: "queue",
        queue_type: 1,
        sticky: true,
        version: "",
        priority: 3,
        fairness_key: "tenant",
        created: -5,
        entity: entity.clone(),
        run_id,
        event_id: 9,
        stamp: 4,
    };
    let visibility =
        |closed| keys::Visibility { closed, started: 4, run_id, entity: entity.clone() };
    let expire = |what| keys::Expire { when: 3, entity: entity.clone(), what };
    let samples = [
        entity.current(),
        entity.request("request"),
        entity.event(run_id, 12),
        entity.note(run_id, 2, 12),
        timer.key(),
        errand.key(),
        task.key(),
        visibility(None).key(),
        visibility(Some(9)).key(),
        expire(keys::Expires::Run(run_id)).key(),
        expire(keys::Expires::Request("request")).key(),
        keys::meta::search_attributes("namespace"),
    ];
    attack("a key", samples.map(|key| key.to_vec()).to_vec(), held, key);
}

/// What an older node or release has written and a worker holds is read as it was meant.
#[test]
fn logs_and_tokens_are_encoded_as_ever() {
    let mut golden = Golden::of(include_str!("../../testdata/records.txt"));
    for (name, entry) in entries() {
        golden.bytes(&format!("an entry, {name} (version 1)"), &entry);
    }
    let verdicts = [Verdict::Applied, Verdict::WrongTerm, Verdict::Moved, Verdict::SlotNotHere];
    golden.bytes("verdicts", &entry::encode_verdicts(&verdicts));
    let names = ["namespace", "attributes", "limits", "routes", "node", "placement", "settings"];
    for (name, command) in names.iter().zip(meta_commands()) {
        golden.record(&META_COMMAND, &format!(", {name}"), &command);
    }
    for (name, token) in ["workflow", "activity", "query"].iter().zip(tokens()) {
        golden.record(&TASK_TOKEN, &format!(", {name}"), &token);
    }
    golden.finish();
}

/// The rows of a workflow that has done a few things, as `row` takes them.
fn rows() -> Vec<Vec<u8>> {
    let mut driver = Driver::start(TestShard::new(), "order-7", Timestamp::from_millis(1_000));
    driver.signal();
    let rows = driver.shard.rows();
    let all = rows.scan(KeyRange::all(), Order::Ascending, usize::MAX).expect("it reads");
    let mut kinds = String::new();
    let samples = all.into_iter().map(|row| {
        write!(kinds, "{:02x} ", row.key[0]).expect("a string takes all");
        let length = (row.key.len() as u16).to_be_bytes();
        [&length[..], &row.key, &row.value].concat()
    });
    let samples: Vec<Vec<u8>> = samples.collect();
    for kind in [b'R', b'T', b'Q', b'V'] {
        assert!(kinds.contains(&format!("{kind:02x}")), "{kinds}");
    }
    samples
}

#[test]
fn a_row_survives_hostile_bytes() {
    attack("a row", rows(), held, row);
}
