//! What one workflow asks of others: each errand once, and those to one target in order
//! (D7).

use piton_core::effect::ParentLink;
use piton_core::id::EventId;
use piton_core::request::{Parent, StartRequest};
use piton_proto::command::command::Attributes;
use piton_proto::command::{Command, SignalExternalWorkflowExecutionCommandAttributes};
use piton_proto::enums::{CommandType, EventType};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;
use piton_raft::NodeId;

use crate::client::{Api, NAMESPACE, execution, start_of};
use crate::members::Members;
use crate::members_client::key;
use crate::nodes::{Running, config};
use crate::worker::{await_until, command, complete, history_of, insist};

const SIGNALS: usize = 12;

/// A command: signal another workflow.
fn signal(target: &str, name: &str) -> Command {
    let attributes = SignalExternalWorkflowExecutionCommandAttributes {
        execution: Some(execution(target)),
        signal_name: name.to_owned(),
        ..SignalExternalWorkflowExecutionCommandAttributes::default()
    };
    let attributes = Attributes::SignalExternalWorkflowExecutionCommandAttributes(attributes);
    command(CommandType::SignalExternalWorkflowExecution, attributes)
}

/// Starts the workflow `sender`, led by node 1, and one of another shard, led by node 2, whose id it answers.
async fn start_apart(members: &Members, api: &dyn Api) -> String {
    let (cluster, namespace) = members.cluster_of(NodeId(1));
    let shard_of = |id: &str| cluster.shard_of(&key(&namespace, id));
    let mut targets = (0..).map(|number| format!("target-{number}"));
    let target = targets.find(|id| shard_of(id) != shard_of("sender")).unwrap();
    members.lead("sender", NodeId(1)).await;
    members.lead(&target, NodeId(2)).await;
    for (workflow_id, queue) in [(&*target, "elsewhere"), ("sender", "sender")] {
        let start = start_of(workflow_id, "simple", queue);
        insist("it starts", || api.start(start.clone())).await.unwrap();
    }
    target
}

/// Signals to others of which the sender's history says that they were taken.
fn settled(events: &[HistoryEvent]) -> usize {
    let is_settled =
        |event: &&HistoryEvent| event.event_type() == EventType::ExternalWorkflowExecutionSignaled;
    events.iter().filter(is_settled).count()
}

/// The names of the signals that a history has.
fn signalled(events: &[HistoryEvent]) -> impl Iterator<Item = &str> {
    events.iter().filter_map(|event| match event.attributes.as_ref()? {
        Event::WorkflowExecutionSignaledEventAttributes(signal) => Some(&*signal.signal_name),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_of_one_workflow_to_another_arrive_once_and_in_order() {
    let running = Running::start(config(None)).await;
    let api = running.api();
    api.start(start_of("target", "simple", "elsewhere")).await.unwrap();
    api.start(start_of("sender", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    let names: Vec<String> = (0..SIGNALS).map(|number| format!("signal-{number}")).collect();
    let commands = names.iter().map(|name| signal("target", name)).collect();
    api.complete_workflow_task(&task.task_token, commands).await.unwrap();
    await_until("all signals are settled", || async {
        (settled(&history_of(api.as_ref(), "sender").await) == SIGNALS).then_some(())
    })
    .await;
    let events = history_of(api.as_ref(), "target").await;
    assert!(signalled(&events).eq(&names), "{events:#?}");
    running.stop().await;
}

/// The node of a signal's target carries it out, and its answers are lost: the sender has to send the
/// signal until it hears of it, and the target has to take it for the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_signal_whose_answer_is_lost_is_sent_until_it_is_heard_of_and_taken_once() {
    let members = Members::start(14).await;
    let api = members.client();
    let target = &*start_apart(&members, api.as_ref()).await;
    let to_sender = members.client_of(NodeId(1));
    let task = to_sender.poll_workflow_task("sender").await.unwrap();
    members.lose_answers_of(NodeId(2));
    let commands = vec![signal(target, "once")];
    to_sender.complete_workflow_task(&task.task_token, commands).await.unwrap();

    await_until("it is sent again", || async { (members.lost_answers() > 1).then_some(()) }).await;
    let events = history_of(to_sender.as_ref(), "sender").await;
    assert_eq!(settled(&events), 0, "nobody told the sender");
    members.heal(NodeId(2));
    await_until("it is heard of", || async {
        (settled(&history_of(to_sender.as_ref(), "sender").await) == 1).then_some(())
    })
    .await;
    let events = history_of(api.as_ref(), target).await;
    assert!(signalled(&events).eq(["once"]), "{events:#?}");
    members.stop().await;
}

/// An errand that comes upon a bug of ours is not given up, and what stands behind it comes after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_errand_that_panicked_is_carried_out_all_the_same() {
    let members = Members::start(22).await;
    let api = members.client();
    let target = &*start_apart(&members, api.as_ref()).await;
    let to_sender = members.client_of(NodeId(1));
    let task = to_sender.poll_workflow_task("sender").await.unwrap();
    members.panic_once();
    let commands = vec![signal(target, "first"), signal(target, "second")];
    to_sender.complete_workflow_task(&task.task_token, commands).await.unwrap();
    await_until("both are heard of", || async {
        (settled(&history_of(to_sender.as_ref(), "sender").await) == 2).then_some(())
    })
    .await;
    assert!(members.has_panicked());
    let events = history_of(api.as_ref(), target).await;
    assert!(signalled(&events).eq(["first", "second"]), "{events:#?}");
    members.stop().await;
}

/// The parent's request to start it was under way when the parent ended: nobody would ever look after
/// such a child, or stop it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_child_whose_parent_ended_before_recording_it_is_terminated() {
    let members = Members::start(12).await;
    let api = members.client();
    let start = start_of("parent", "simple", "q");
    let parent_run = insist("it starts", || api.start(start.clone())).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();

    let (cluster, namespace) = members.cluster_of(members.leader_of("child").await);
    let link = ParentLink {
        namespace_id: namespace.id.as_str().into(),
        workflow_id: "parent".into(),
        run_id: parent_run.as_str().into(),
        initiated: EventId(5),
    };
    let parent = Parent { link, namespace_name: NAMESPACE.into(), root: execution("parent") };
    let start = Box::new(start_of("child", "simple", "elsewhere"));
    let request = StartRequest { start, signal: None, parent: Some(parent) };
    await_until("the child starts", || async {
        cluster.start_workflow(&namespace, request.clone()).await.ok()
    })
    .await;
    await_until("the child is terminated", || async {
        let last = history_of(api.as_ref(), "child").await.pop()?.event_type();
        (last == EventType::WorkflowExecutionTerminated).then_some(())
    })
    .await;
    members.stop().await;
}
