use super::*;

fn held(run: &mut dyn FnMut()) -> u64 {
    allocation_counter::measure(run).bytes_max
}

fn workflow() -> keys::Workflow<&'static str> {
    keys::Workflow { slot: 300, namespace: "namespace", workflow_id: "order \u{1} 7" }
}

#[test]
fn a_record_survives_hostile_bytes() {
    let record: Record = (
        7,
        "seven".into(),
        vec![(Bytes::from_static(b"k"), Some(vec![1, 2, u64::MAX])), (Bytes::new(), None)],
    );
    let long: Record = (1 << 60, "x".repeat(300), vec![]);
    let samples = [record, long].map(|record| codec::encode(&record).unwrap().to_vec());
    attack("a record", samples.to_vec(), held, codec);
}

#[test]
fn a_stored_value_survives_hostile_bytes() {
    let small = [&[0x0f, 0][..], b"value and other"].concat();
    let value = vec![7; 20];
    let large = |length: u64| {
        let crc = crc32c::crc32c(&value).to_be_bytes();
        [&[0x0f, 1][..], &length.to_be_bytes(), &crc, &value[..13]].concat()
    };
    attack("a stored value", vec![small, large(20), large(7_168), large(20_000)], held, frame);
}

#[test]
fn a_mark_survives_hostile_bytes() {
    attack("a mark", vec![vec![0; 8], vec![3; 30]], held, mark);
}

#[test]
fn a_key_survives_hostile_bytes() {
    let (workflow, run_id) = (workflow(), "run");
    let timer = keys::Timer { due: 5, workflow: workflow.clone(), run_id, kind: 1, event_id: 9 };
    let errand = keys::Errand { workflow: workflow.clone(), run_id, event_id: 9, kind: 1 };
    let task = keys::Task {
        queue: "queue",
        queue_type: 1,
        sticky: true,
        priority: 3,
        created: -5,
        workflow: workflow.clone(),
        run_id,
        event_id: 9,
        stamp: 4,
    };
    let visibility =
        |closed| keys::Visibility { closed, started: 4, run_id, workflow: workflow.clone() };
    let expire = |what| keys::Expire { when: 3, workflow: workflow.clone(), what };
    let samples = [
        workflow.current(),
        workflow.request("request"),
        workflow.event(run_id, 12),
        workflow.note(run_id, 2, 12),
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

/// The seed decides all of it.
#[test]
fn hostile_bytes_are_repeatable() {
    let draw = |seed| {
        let mut hostile = Hostile::new(seed, vec![vec![1, 2, 3], vec![4; 100]]);
        (0..100).map(|_| hostile.bytes()).collect::<Vec<_>>()
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
}
