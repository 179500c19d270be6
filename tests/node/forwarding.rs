//! Calls from the node that a client asks to the one that leads: one hop, and what comes of it when that
//! node refuses, is lost, or says nothing.

use std::time::Duration;

use piton_core::error::Rejection;
use piton_core::id::ShardId;
use piton_core::request::{RunRequest, Signal, TerminateRequest};
use piton_proto::enums::EventType;
use piton_raft::NodeId;
use piton_shard::{Forwarded, PeerAnswer, ShardConfig, ShardError, TaskToken, WorkflowCall};
use tokio::time::timeout;

use crate::client::{signal_of, start_of};
use crate::members::{Members, forwarded, shard_config};
use crate::members_client::key;
use crate::worker::{ORDER, await_until, complete, history_of, insist};

/// Far beyond any time that a call waits here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A leader that says of a call that it has certainly not carried it out is believed, and so is what it
/// says of who leads: the client hears of none of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_that_was_refused_goes_to_the_leader_that_the_refusal_names() {
    let members = Members::start(61).await;
    let [asked, leader, other] = [1, 2, 3].map(NodeId);
    members.lead("refused", leader).await;
    members.misdirect(leader, other);
    let api = members.client_of(asked);
    api.start(start_of("refused", ORDER, "elsewhere")).await.unwrap();
    // The other one does not lead, says so, and names the one that does.
    assert_eq!(members.started_at(), [leader, other, leader]);
    members.stop().await;
}

/// A node that does not lead refuses what other nodes send, and sends it nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_makes_one_hop() {
    let members = Members::start(62).await;
    let [follower, leader] = [1, 2].map(NodeId);
    members.lead("hops", leader).await;
    let (cluster, namespace) = members.cluster_of(follower);
    let key = key(&namespace, "hops");
    let shard = cluster.shard_of(&key);
    let describe = WorkflowCall::Describe { key, run_id: None };
    let refused = cluster.answer_peer(forwarded(shard, describe.clone())).await;
    assert_eq!(refused, Err(ShardError::NotLeader { shard, leader: Some(leader) }));

    let unknown = cluster.answer_peer(forwarded(ShardId(u32::MAX), describe)).await;
    assert!(matches!(unknown, Err(ShardError::Unavailable(_))), "{unknown:?}");
    let answer = cluster.answer_bytes(leader, &[77]).await;
    let answer = PeerAnswer::decode(&answer).unwrap();
    assert!(matches!(answer, PeerAnswer::NotUnderstood(_)), "{answer:?}");
    members.stop().await;
}

/// The leader carries a request out, and the node that sent it never hears of that. What is recognised
/// when it comes again is sent until it is answered; of anything else the client hears that nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_whose_answer_is_lost_is_repeated_only_where_that_does_no_harm() {
    let members = Members::start(63).await;
    let [asked, leader] = [1, 2].map(NodeId);
    let api = members.client();
    members.lead("repeated", leader).await;
    let start = start_of("repeated", ORDER, "elsewhere");
    insist("it starts", || api.start(start.clone())).await.unwrap();
    let (cluster, namespace) = members.cluster_of(asked);
    let key = key(&namespace, "repeated");

    members.lose_answers_of(leader);
    let to_asked = members.client_of(asked);
    let signalled =
        tokio::spawn(async move { to_asked.signal(signal_of("repeated", "once")).await });
    await_until("it is sent again", async || (members.lost_answers() > 1).then_some(())).await;
    members.heal(leader);
    signalled.await.unwrap().unwrap();
    let events = history_of(api.as_ref(), "repeated").await;
    let signals =
        events.iter().filter(|event| event.event_type() == EventType::WorkflowExecutionSignaled);
    assert_eq!(signals.count(), 1);

    members.lose_answers_of(leader);
    let before = members.lost_answers();
    // Nothing in it tells the second one from the first.
    let unnamed = RunRequest::Signal(Signal { name: "unnamed".to_owned(), ..Signal::default() });
    let terminate = RunRequest::Terminate(TerminateRequest::default());
    for (number, request) in [unnamed, terminate].into_iter().enumerate() {
        let refused = cluster.request(key.clone(), None, request).await.unwrap_err();
        assert!(matches!(refused, ShardError::OutcomeUnknown(_)), "{refused}");
        assert_eq!(members.lost_answers(), before + number + 1, "{refused}");
    }
    members.heal(leader);
    let again =
        cluster.request(key, None, RunRequest::Terminate(TerminateRequest::default())).await;
    assert_eq!(again.unwrap_err(), ShardError::Rejected(Rejection::AlreadyCompleted));
    members.stop().await;
}

/// The sender knows of a change of the meta state of which the leader has not heard yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_waits_where_its_sender_knows_of_a_newer_meta_state() {
    let members = Members::start(66).await;
    let leader = NodeId(2);
    members.lead("ahead", leader).await;
    let (cluster, namespace) = members.cluster_of(leader);
    let key = key(&namespace, "ahead");
    let shard = cluster.shard_of(&key);
    let meta = cluster.meta().clone();
    let call = Forwarded {
        meta_version: meta.state().version + 1,
        ..forwarded(shard, WorkflowCall::Describe { key, run_id: None })
    };
    let answered = tokio::spawn(async move { cluster.answer_peer(call).await });
    meta.set_limits(&[("signals_max".to_owned(), 77)].into()).await.unwrap();
    let answer = timeout(PATIENCE, answered).await.expect("it is answered").unwrap();
    assert!(matches!(answer, Err(ShardError::Rejected(Rejection::NotFound(_)))), "{answer:?}");

    let (cluster, _) = members.cluster_of(leader);
    let never = Forwarded {
        meta_version: u64::MAX,
        timeout: Duration::from_millis(200),
        ..forwarded(
            shard,
            WorkflowCall::Describe { key: self::key(&namespace, "ahead"), run_id: None },
        )
    };
    let late = cluster.answer_peer(never).await;
    assert!(matches!(late, Err(ShardError::OutcomeUnknown(_))), "{late:?}");
    members.stop().await;
}

/// The answer is lost, and then the way to the leader: that the second try did not get there says nothing
/// of the first one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_perhaps_carried_out_is_not_said_not_to_have_been() {
    let config = ShardConfig { leader_wait: Duration::from_secs(2), ..shard_config() };
    let members = Members::start_with(65, config).await;
    let [asked, leader] = [1, 2].map(NodeId);
    let api = members.client();
    members.lead("unknown", leader).await;
    let start = start_of("unknown", ORDER, "elsewhere");
    insist("it starts", || api.start(start.clone())).await.unwrap();
    let (cluster, namespace) = members.cluster_of(asked);
    let key = key(&namespace, "unknown");

    members.lose_answers_of(leader);
    let signal = Signal { request_id: "once".to_owned(), ..Signal::default() };
    let signalled =
        tokio::spawn(async move { cluster.request(key, None, RunRequest::Signal(signal)).await });
    await_until("its answer is lost", async || (members.lost_answers() > 0).then_some(())).await;
    members.cut_off(asked);
    let refused = timeout(PATIENCE, signalled).await.expect("it ends").unwrap().unwrap_err();
    assert!(matches!(refused, ShardError::OutcomeUnknown(_)), "{refused}");
    members.heal(asked);
    members.stop().await;
}

/// A leader that is frozen keeps its callers' connections. As soon as another one leads, what may be sent
/// again is sent there, and of anything else it is said that nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_to_a_frozen_leader_goes_to_the_next_one() {
    // Far beyond any time that is waited for here.
    let config = ShardConfig { call_wait: 3 * PATIENCE, leader_wait: PATIENCE, ..shard_config() };
    let members = Members::start_with(67, config).await;
    let [asked, frozen, next] = [1, 2, 3].map(NodeId);
    let api = members.client();
    members.lead("frozen", frozen).await;
    insist("it starts", || api.start(start_of("frozen", ORDER, "elsewhere"))).await.unwrap();
    members.silence(frozen);
    let to_asked = members.client_of(asked);
    let signalled = tokio::spawn(async move { to_asked.signal(signal_of("frozen", "once")).await });
    let (cluster, namespace) = members.cluster_of(asked);
    let key = key(&namespace, "frozen");
    let terminate = RunRequest::Terminate(TerminateRequest::default());
    let terminated = tokio::spawn(async move { cluster.request(key, None, terminate).await });
    tokio::task::yield_now().await;
    assert!(!signalled.is_finished() && !terminated.is_finished());

    members.lead("frozen", next).await;
    let signalled = timeout(PATIENCE, signalled).await.expect("it waits for the old leader");
    signalled.unwrap().unwrap();
    let terminated = timeout(PATIENCE, terminated).await.expect("it waits for the old leader");
    let refused = terminated.unwrap().unwrap_err();
    assert!(matches!(refused, ShardError::OutcomeUnknown(_)), "{refused}");
    members.stop().await;
}

/// A node that could not hand out a task says so when another one leads already, which has handed out the
/// task anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_said_of_a_task_of_an_earlier_term_does_nothing_to_one_of_this() {
    let members = Members::start(68).await;
    let [before, after] = [1, 2].map(NodeId);
    members.lead("late", before).await;
    let api = members.client();
    insist("it starts", || api.start(start_of("late", ORDER, "queue"))).await.unwrap();
    let poll = || api.poll_workflow_task("queue");
    let lost = insist("a task", poll).await.unwrap();
    members.lead("late", after).await;
    let task = insist("a task", poll).await.unwrap();
    let number = |task: &[u8]| match TaskToken::decode(task) {
        Ok(TaskToken::Workflow(token)) => token.number,
        other => panic!("{other:?}"),
    };
    assert_ne!(number(&lost.task_token), number(&task.task_token));

    let (cluster, namespace) = members.cluster_of(after);
    let undelivered = RunRequest::WorkflowTaskUndelivered { number: number(&lost.task_token) };
    // Whatever it is answered: nobody waits for that.
    let _ = cluster.request(key(&namespace, "late"), None, undelivered).await;
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    members.stop().await;
}

/// A node that has stopped working keeps its connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_to_a_node_that_says_nothing_ends() {
    let wait = Duration::from_millis(200);
    let config = ShardConfig { call_wait: wait, leader_wait: wait, ..shard_config() };
    let members = Members::start_with(64, config).await;
    let [asked, leader] = [1, 2].map(NodeId);
    members.lead("silent", leader).await;
    members.silence(leader);
    let (cluster, namespace) = members.cluster_of(asked);
    let key = key(&namespace, "silent");
    let terminate = RunRequest::Terminate(TerminateRequest::default());
    let ended = timeout(PATIENCE, cluster.request(key.clone(), None, terminate)).await;
    let refused = ended.expect("it waits for ever").unwrap_err();
    assert!(matches!(refused, ShardError::OutcomeUnknown(_)), "{refused}");
    let described = timeout(PATIENCE, cluster.describe_workflow(key, None)).await;
    described.expect("it waits for ever").unwrap_err();
    members.stop().await;
}
