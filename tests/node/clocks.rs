//! A node whose clock is far from the others' fires no timers (D12).

use std::time::Duration;

use piton_core::time::{Span, Timestamp};
use piton_proto::enums::EventType;
use piton_raft::NodeId;
use tokio::time::timeout;

use crate::client::start_of;
use crate::growing::three_that_were_one;
use crate::members::Members;
use crate::members_client::key;
use crate::worker::{await_until, complete, history_of, insist, start_timer};

const SPAN: Duration = Duration::from_millis(50);
/// In the year 2096.
const FAR_AHEAD_MS: i64 = 4_000_000_000_000;

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

/// What a node decided whose clock is off would stand in histories with its times. So it has another node lead
/// what it is elected for, before it decides anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_node_is_elected_for_whose_clock_is_off_is_led_by_another_one() {
    let mut members = three_that_were_one(2_302).await;
    let off = NodeId(2);
    members.kill(off, true).await;
    members.set_clock(off, &|| Timestamp::from_millis(FAR_AHEAD_MS));
    members.start_node(off).await;
    members.cluster_of(off).0.trust_clock(false, Duration::from_secs(10)).await;
    members.await_ready().await;
    let api = members.client();
    for round in 0..6 {
        let workflow_id = format!("timed-{round}");
        let (cluster, namespace) = members.cluster_of(off);
        let shard = cluster.shard_of(&key(&namespace, &workflow_id));
        let group_on = |node| {
            let mut groups = members.shard_groups(node).into_iter();
            groups.find(|group| group.id().0 == shard.0 + 1).unwrap()
        };
        await_until("it is elected", || async {
            let mut seen_there = group_on(off).leadership();
            let leader = members.leader_of(&workflow_id).await;
            group_on(leader).transfer_leader(&[off]).await;
            // Another one is, where it has to catch up.
            let elected = seen_there.wait_for(|now| now.leader.is_some_and(|now| now != leader));
            let elected = timeout(Duration::from_secs(1), elected).await.ok()?;
            (elected.unwrap().leader == Some(off)).then_some(())
        })
        .await;
        insist("it starts", || api.start(start_of(&workflow_id, "simple", "q"))).await.unwrap();
        let events = history_of(api.as_ref(), &workflow_id).await;
        let started = events[0].event_time.unwrap();
        assert!(started.seconds < FAR_AHEAD_MS / 2_000, "{workflow_id} started at {started:?}");
    }
    members.stop().await;
}
