//! More tasks than a queue's owner has room for, in every shard (D8).

use std::collections::BTreeMap;
use std::sync::Arc;

use piton_core::effect::QueueName;
use piton_proto::common::Priority;
use piton_raft::NodeId;
use piton_shard::{Answer, QueueCall, QueueKey, QueueType, ShardConfig};

use crate::client::{Api, start_of};
use crate::members::{Members, forwarded, shard_config};
use crate::members_client::key;
use crate::worker::{ORDER, await_until, complete, insist};

const QUEUE: &str = "backlog";
const LAST: i32 = 5;
const FIRST: i32 = 1;

/// Starts so many workflows of this priority in each shard. Answers how many that are.
async fn start_in_each_shard(
    members: &Members,
    api: &Arc<dyn Api>,
    priority_key: i32,
    count: usize,
) -> usize {
    let (cluster, namespace) = members.cluster_of(NodeId(1));
    let shards = shard_config().shards as usize;
    let mut ids = BTreeMap::new();
    for workflow_id in (0..).map(|number| format!("priority-{priority_key}-{number}")) {
        let of_shard: &mut Vec<_> =
            ids.entry(cluster.shard_of(&key(&namespace, &workflow_id))).or_default();
        if of_shard.len() < count {
            of_shard.push(workflow_id);
        }
        if ids.len() == shards && ids.values().all(|of_shard| of_shard.len() == count) {
            break;
        }
    }
    for workflow_id in ids.into_values().flatten() {
        let mut start = start_of(&workflow_id, ORDER, QUEUE);
        start.priority = Some(Priority { priority_key, ..Priority::default() });
        insist("it starts", || api.start(start.clone())).await.unwrap();
    }
    count * shards
}

/// The window is full of tasks of the last priority, of every shard. Those of the first priority
/// that come now go before all of them, whichever shards they are of, and the others come after.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_first_priority_goes_before_a_full_window_of_the_last() {
    let config = ShardConfig { matching_window: 4, ..shard_config() };
    let members = Members::start_with(23, config).await;
    let api = members.client();
    let (_, namespace) = members.cluster_of(NodeId(1));
    let last = start_in_each_shard(&members, &api, LAST, 5).await;
    let first = start_in_each_shard(&members, &api, FIRST, 1).await;
    let queue = QueueKey {
        namespace: namespace.id.clone(),
        queue: QueueName::normal(QUEUE),
        kind: QueueType::Workflow,
    };
    await_until("those of the first priority have come to the queue's owner", async || {
        // A queue lies where the workflow of its name does. Asked itself, the owner counts what it
        // holds: two tasks at least of each shard and priority.
        let (owner, _) = members.cluster_of(members.leader_of(QUEUE).await);
        let shard = owner.shard_of(&key(&namespace, QUEUE));
        let call = QueueCall::Describe { queue: queue.clone() };
        let Ok(Answer::Queue(view)) = owner.answer_peer(forwarded(shard, call)).await else {
            return None;
        };
        (view.backlog_count as usize == 3 * first).then_some(())
    })
    .await;
    for number in 0..first + last {
        let task = api.poll_workflow_task(QUEUE).await.unwrap();
        let workflow_id = task.workflow_execution.unwrap().workflow_id;
        let expected = if number < first { FIRST } else { LAST };
        let is_expected = workflow_id.starts_with(&format!("priority-{expected}-"));
        assert!(is_expected, "task {number} is of {workflow_id}");
        api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    }
    members.stop().await;
}
