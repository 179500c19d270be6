//! What one workflow asks of others: each errand once, and those to one target in order
//! (architecture D7).

use piton_core::effect::ParentLink;
use piton_core::id::EventId;
use piton_core::request::{Parent, StartRequest};
use piton_proto::command::SignalExternalWorkflowExecutionCommandAttributes;
use piton_proto::command::command::Attributes;
use piton_proto::enums::{CommandType, EventType};
use piton_proto::history::history_event::Attributes as Event;

use crate::client::{NAMESPACE, execution, start_of};
use crate::members::Members;
use crate::nodes::{Running, config};
use crate::worker::{await_until, command, complete, history_of, insist};

const SIGNALS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn signals_of_one_workflow_to_another_arrive_once_and_in_order() {
    let running = Running::start(config(None)).await;
    let api = running.api();
    api.start(start_of("target", "simple", "elsewhere")).await.unwrap();
    api.start(start_of("sender", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    let names: Vec<String> = (0..SIGNALS).map(|number| format!("signal-{number}")).collect();
    let commands = names.iter().map(|name| {
        let attributes = SignalExternalWorkflowExecutionCommandAttributes {
            execution: Some(execution("target")),
            signal_name: name.clone(),
            ..SignalExternalWorkflowExecutionCommandAttributes::default()
        };
        let attributes = Attributes::SignalExternalWorkflowExecutionCommandAttributes(attributes);
        command(CommandType::SignalExternalWorkflowExecution, attributes)
    });
    api.complete_workflow_task(&task.task_token, commands.collect()).await.unwrap();
    await_until("all signals are settled", || async {
        let events = history_of(api.as_ref(), "sender").await;
        let settled = |e: &&piton_proto::history::HistoryEvent| {
            e.event_type() == EventType::ExternalWorkflowExecutionSignaled
        };
        (events.iter().filter(settled).count() == SIGNALS).then_some(())
    })
    .await;
    let events = history_of(api.as_ref(), "target").await;
    let signalled = events.iter().filter_map(|event| match event.attributes.as_ref()? {
        Event::WorkflowExecutionSignaledEventAttributes(signal) => Some(&signal.signal_name),
        _ => None,
    });
    assert!(signalled.eq(&names), "{events:#?}");
    running.stop().await;
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
