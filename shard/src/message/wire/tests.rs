use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Instant;

use piton_core::id::ShardId;
use piton_core::list_filter::ListFilter;
use piton_core::proto::common::{Payload, Payloads};
use piton_core::request::RunRequest;
use piton_store::golden::Golden;
use serde::de::DeserializeOwned;

use super::samples::*;
use super::*;
use crate::message::{Call, MetaCall, NodeAnswer, NodeCall, WorkflowCall};

const GOLDEN: &str = include_str!("../../../testdata/records.txt");

/// What a value is, by the names of the variants in its `Debug` text, outermost first.
fn label(value: &impl Debug) -> String {
    const NO_VARIANTS: [&str; 6] =
        ["Call", "Forwarded", "PollId", "ShardId", "Some", "WorkflowKey"];
    let text = format!("{value:?}");
    let names = text.split(|c: char| !c.is_alphanumeric());
    let is_name = |name: &&str| {
        name.starts_with(|c: char| c.is_ascii_uppercase()) && !NO_VARIANTS.contains(name)
    };
    names.filter(is_name).take(3).collect::<Vec<_>>().join(" ")
}

/// Of several with the same name the second is `name 2`.
fn golden<T>(file: &mut Golden, kind: &Kind<T>, values: &[T])
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut seen = BTreeMap::new();
    for value in values {
        let name = label(value);
        let count = seen.entry(name.clone()).and_modify(|count| *count += 1).or_insert(1);
        let number = if *count > 1 { format!(" {count}") } else { String::new() };
        file.record(kind, &format!(", {name}{number}"), value);
    }
}

/// What an older release sends is read as it was meant, and what it reads is what this one sends.
#[test]
fn what_nodes_say_to_each_other_is_encoded_as_ever() {
    let mut file = Golden::of(GOLDEN);
    golden(&mut file, &PEER_REQUEST, &peer_requests());
    golden(&mut file, &PEER_ANSWER, &peer_answers());
    file.finish();
}

#[test]
fn whatever_is_encoded_is_decoded_as_it_was() {
    for request in peer_requests() {
        let bytes = request.encode().expect("short");
        assert_eq!(PeerRequest::decode(&bytes).expect("it was encoded"), request);
    }
    for answer in peer_answers() {
        assert_eq!(PeerAnswer::decode(&answer.encode()).expect("it was encoded"), answer);
    }
}

/// Checks that the samples have every kind of this enum, and what a kind that a newer release knows is
/// told.
#[track_caller]
fn has_every<T: Serialize + DeserializeOwned + Debug + 'static>(samples: &[T]) {
    let kind = Kind::<T>::new("a value", &[]);
    let of = |sample: &T| kind.encode(sample).expect("short")[1];
    let seen: BTreeSet<u8> = samples.iter().map(of).collect();
    let error = with_causes(&kind.decode(&[1, 250]).expect_err("there are not so many"));
    let known =
        format!("invalid value: integer `250`, expected variant index 0 <= i < {}", seen.len());
    assert!(error.contains(&known), "{error}, but there are samples of {seen:?}");
}

#[test]
fn there_is_a_sample_of_every_kind_and_newer_kinds_are_told_apart() {
    has_every(&peer_requests());
    has_every(&peer_answers());
    has_every(&calls());
    has_every(&workflow_calls());
    has_every(&run_requests());
    has_every(&child_results());
    has_every(&queue_calls());
    has_every(&read_calls());
    has_every(&deliveries());
    has_every(&answers());
    has_every(&replies());
    has_every(&errors());
    has_every(&rejections());
    has_every(&receipts());
    has_every(&meta_calls());
    has_every(&meta_requests());
    has_every(&meta_errors());
}

#[test]
fn a_request_of_a_newer_release_is_refused_by_name() {
    let bytes = peer_requests()[0].encode().expect("short");
    let of_version = |version: u8| [&[version], &bytes[1..]].concat();
    let refused = |bytes: &[u8]| {
        let error = PeerRequest::decode(bytes).expect_err("it is newer");
        match PeerAnswer::not_understood(&error) {
            PeerAnswer::NotUnderstood(why) => why,
            other => panic!("{other:?}"),
        }
    };
    let newer = refused(&of_version(2));
    assert_eq!(
        newer,
        "the request is of a newer release than this node's, or damaged (decode a request of another \
         node of version 2: this release knows versions up to 1)"
    );
    // A kind of request, and one of calls, that there is not.
    assert!(refused(&[1, 9]).contains("integer `9`, expected variant index 0 <= i < 3"));
    let call = [1, 0, 3, 9, 0, 12, 77];
    assert!(refused(&call).contains("integer `77`, expected variant index 0 <= i < 4"));
    // A field more at the end.
    let longer = [&bytes[..], &[0]].concat();
    assert!(refused(&longer).contains("1 bytes are left over"));
}

/// A payload is copied once where it is read, and twice where it is written (into its message, and from
/// there behind what stands before it).
#[test]
#[expect(clippy::print_stdout, reason = "what it takes is read by who runs it")]
fn a_large_payload_takes_no_more_memory_than_its_copies() {
    const BYTES: usize = 1 << 20;
    let payload = Payload { data: vec![7; BYTES].into(), ..Payload::default() };
    let request = start(Some(Payloads { payloads: vec![payload] }));
    let call = WorkflowCall::Start { key: key(), request }.into();
    let (shard, timeout) = (ShardId(3), Duration::from_secs(10));
    let request = PeerRequest::Call(Forwarded { shard, timeout, meta_version: 12, call });

    let mut bytes = Bytes::new();
    let encoding = allocation_counter::measure(|| bytes = request.encode().expect("it fits"));
    let mut read = None;
    let decoding = allocation_counter::measure(|| read = PeerRequest::decode(&bytes).ok());
    assert_eq!(read.as_ref(), Some(&request));
    let copies = |held: u64| held / BYTES as u64;
    assert_eq!((copies(encoding.bytes_max), copies(decoding.bytes_max)), (2, 1));

    let shortest = |run: &dyn Fn()| {
        let times = (0..50).map(|_| {
            let began = Instant::now();
            run();
            began.elapsed()
        });
        times.min().expect("there are some")
    };
    let encoded = shortest(&|| drop(request.encode()));
    let decoded = shortest(&|| drop(PeerRequest::decode(&bytes)));
    println!("1 MiB: encoded in {encoded:?}, decoded in {decoded:?}");
}

/// What a filter may have most is sent as it is; what claims to be nested deeper is refused, and not
/// followed to the end of the stack.
#[test]
fn a_filter_is_nested_no_deeper_than_its_text_can_be() {
    const FILTER: Kind<ListFilter> = Kind::new("a filter", &[]);
    let mut text = "RunId = 'z'".to_owned();
    for _ in 0..64 {
        text = format!("WorkflowId = 'a' OR RunId = 'b' AND ({text})");
    }
    let filter = ListFilter::parse(&text).expect("it may be as deep");
    let bytes = FILTER.encode(&filter).expect("short");
    assert_eq!(FILTER.decode(&bytes).expect("it was encoded"), filter);

    let nested = |depth: u32| {
        let count = [&[0xfc][..], &(depth + 1).to_le_bytes()].concat();
        // An empty `All`, and so many of it around that.
        let steps = [[0, 0].to_vec(), [0, 1].repeat(depth as usize)].concat();
        [&[1, 1][..], &count, &steps, &[0]].concat()
    };
    assert!(FILTER.decode(&nested(100)).is_ok());
    for depth in [200, 1_000_000] {
        let refused = with_causes(&FILTER.decode(&nested(depth)).expect_err("it is too deep"));
        assert!(refused.contains("the steps of a filter do not fit together"), "{refused}");
    }
}

/// Answers each request in the same way.
struct Fixed(Option<Result<Bytes, Unanswered>>);

#[async_trait]
impl Carrier for Fixed {
    async fn ask(&self, _: NodeId, _: Bytes, _: Duration) -> Result<Bytes, Unanswered> {
        match &self.0 {
            Some(answer) => answer.clone(),
            None => std::future::pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_sender_hears_whether_a_request_was_carried_out() {
    let node = NodeId(2);
    let ask = async |answer: Option<Result<Bytes, Unanswered>>| {
        let peer = WirePeer(Fixed(answer));
        let call = Call::Workflow(WorkflowCall::Describe { key: key(), run_id: None });
        let (shard, timeout) = (ShardId(3), Duration::from_secs(10));
        let called = peer.call(node, Forwarded { shard, timeout, meta_version: 0, call }).await;
        let delivered = peer.deliver(node, PollId(1), Delivery::Again).await;
        (called, delivered, peer.node(node, NodeCall::Meta(MetaCall::Version)).await)
    };
    let says = |answer: PeerAnswer| Some(Ok(answer.encode()));
    let why = || "why".to_owned();
    let unavailable = |text: &str| Err(ShardError::Unavailable(text.to_owned()));
    let unknown = |text: &str| Err(ShardError::OutcomeUnknown(text.to_owned()));

    let of_meta = |text: &str| Err(MetaError::Unavailable(text.to_owned()));

    assert_eq!(ask(says(PeerAnswer::Call(Ok(Answer::Done)))).await.0, Ok(Answer::Done));
    assert_eq!(ask(says(PeerAnswer::Deliver(Receipt::Gone))).await.1, Receipt::Gone);
    assert_eq!(
        ask(says(PeerAnswer::Node(Ok(NodeAnswer::Version(7))))).await.2,
        Ok(NodeAnswer::Version(7))
    );
    let (refused, of_poll, meta) = ask(says(PeerAnswer::NotUnderstood(why()))).await;
    let text = "node 0000000000000002 refuses a request: why";
    assert_eq!((refused, of_poll, meta), (unavailable(text), Receipt::Unknown, of_meta(text)));
    let (called, of_poll, meta) = ask(Some(Err(Unanswered::NotSent { node, why: why() }))).await;
    assert_eq!(called, unavailable("node 0000000000000002 cannot be reached: why"));
    assert_eq!((of_poll, meta), (Receipt::Unreachable, Err(MetaError::NotLed { leader: None })));
    // Nobody knows what became of these.
    let newer =
        "decode an answer of another node of version 9: this release knows versions up to 1";
    let lost = [
        (
            Some(Err(Unanswered::Lost { node, why: why() })),
            "node 0000000000000002 has not answered: why".to_owned(),
        ),
        (
            Some(Ok(Bytes::from_static(&[9]))),
            format!("cannot read the answer of node 0000000000000002: {newer}"),
        ),
    ];
    for (answer, text) in lost {
        let (called, of_poll, meta) = ask(answer).await;
        assert_eq!((called, of_poll), (unknown(&text), Receipt::Unreachable));
        assert!(matches!(meta, Err(MetaError::Unavailable(_))), "{meta:?}");
    }
    let (called, of_poll, meta) = ask(None).await;
    let text = "node 0000000000000002 has not answered: it was given 10000 ms";
    assert_eq!((called, of_poll), (unknown(text), Receipt::Unreachable));
    assert!(matches!(meta, Err(MetaError::Unavailable(_))), "{meta:?}");
}

#[test]
fn what_would_be_done_twice_is_not_repeated() {
    let unsafe_ones: BTreeSet<String> =
        calls().iter().filter(|call| !call.is_safe_to_repeat()).map(label).collect();
    let expected = [
        "Queue Poll PollRequest",
        "Workflow AnswerQuery QueryToken",
        "Workflow CompleteWorkflowTask WorkflowTaskToken",
        "Workflow Run CancelActivity",
        "Workflow Run CompleteActivity",
        "Workflow Run CompleteWorkflowTask",
        "Workflow Run FailActivity",
        "Workflow Run FailWorkflowTask",
        "Workflow Run StartActivity",
        "Workflow Run TakeWorkflowTask",
        "Workflow Run Terminate",
    ];
    assert!(unsafe_ones.iter().eq(expected), "{unsafe_ones:#?}");
    // Nothing in these tells the second one from the first.
    let mut unnamed = start(None);
    unnamed.start.request_id.clear();
    assert!(!WorkflowCall::Start { key: key(), request: unnamed }.is_safe_to_repeat());
    let signal = RunRequest::Signal(Default::default());
    let cancel = RunRequest::RequestCancel(Default::default());
    for request in [signal, cancel] {
        let call = WorkflowCall::Run { key: key(), run_id: None, request };
        assert!(!call.is_safe_to_repeat(), "{call:?}");
    }
}
