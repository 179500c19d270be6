//! A node whose clock is far from the others' fires no timers (D12).

use std::time::Duration;

use piton_core::time::Span;
use piton_proto::enums::EventType;
use piton_raft::NodeId;

use crate::client::start_of;
use crate::members::Members;
use crate::worker::{complete, history_of, start_timer};

const SPAN: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_clock_that_is_off_fires_nothing_until_it_is_near_again() {
    let members = Members::start_alone(2_301).await;
    let api = members.client();
    let host = members.cluster_of(NodeId(1)).0.host().clone();
    assert!(host.trust_clock(false));

    api.start(start_of("sleeps", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![start_timer("t", SPAN)]).await.unwrap();
    // Until it is long due, by the clock that would fire it.
    let clock = host.clock();
    clock.wait_until(clock.now() + Span::from(SPAN * 8)).await;
    let has_fired = async || {
        let events = history_of(api.as_ref(), "sleeps").await;
        events.iter().any(|event| event.event_type() == EventType::TimerFired)
    };
    assert!(!has_fired().await, "it fired by a clock that is off");

    assert!(host.trust_clock(true));
    let task = api.poll_workflow_task("q").await.unwrap();
    assert!(!task.task_token.is_empty() && has_fired().await, "it fires once the clock is near");
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    members.stop().await;
}
