//! What one workflow asks of others: each errand once, and those to one target in order
//! (architecture D7).

use piton_proto::command::SignalExternalWorkflowExecutionCommandAttributes;
use piton_proto::command::command::Attributes;
use piton_proto::enums::{CommandType, EventType};
use piton_proto::history::history_event::Attributes as Event;

use crate::client::{execution, start_of};
use crate::nodes::{Running, config};
use crate::worker::{await_until, command, history_of};

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
