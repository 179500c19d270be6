//! What becomes of clients whose node is cut off from the others: it refuses what it cannot know or keep,
//! quickly and also where it led, so that they ask elsewhere; and the others go on (P1, D5a).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use piton_core::list_filter::ListFilter;
use piton_core::request::{RunRequest, TerminateRequest};
use piton_raft::NodeId;
use piton_shard::{Cluster, ClusterSettings, Namespace, ShardError};
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::client::{Refused, signal_of, start_of};
use crate::members::Members;
use crate::members_client::key;
use crate::worker::{ORDER, await_until, complete, insist};

/// Shorter than any call waits for its answer, and than any poll; longer than a refusal takes on a machine
/// that does a lot besides.
const QUICKLY: Duration = Duration::from_secs(6);
/// The same once the node knows that it is cut off.
const AT_ONCE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);

#[track_caller]
fn is_refused<T>(what: &str, took: Duration, limit: Duration, answer: Result<T, Refused>) {
    let code = answer.err().map(|refused| refused.code);
    assert_eq!(code, Some(Code::Unavailable), "{what}");
    assert!(took < limit, "{what} took {took:?}");
}

/// Checks that the node refuses this.
async fn refuses<T>(what: String, limit: Duration, ask: impl Future<Output = Result<T, Refused>>) {
    let began = Instant::now();
    let answer = timeout(PATIENCE, ask).await;
    let answer = answer.unwrap_or_else(|_| panic!("{what} is not answered"));
    is_refused(&what, began.elapsed(), limit, answer);
}

async fn list(cluster: &Cluster, namespace: &Namespace) -> Result<usize, ShardError> {
    let filter = ListFilter::parse("").expect("it lets everything pass");
    let until = Instant::now() + PATIENCE;
    Ok(cluster.list(namespace, &filter, 10, Vec::new(), Some(until)).await?.0.len())
}

/// All that a client may ask of a node without a majority, for workflows that it led and others.
async fn refuses_everything(
    members: &Members,
    node: NodeId,
    workflows: [&str; 2],
    (phase, limit): (&str, Duration),
) {
    let api = members.client_of(node);
    let (cluster, namespace) = members.cluster_of(node);
    let refusals = workflows.into_iter().map(|id| {
        let (api, cluster) = (Arc::clone(&api), cluster.clone());
        let key = key(&namespace, id);
        let new = format!("{id}-{phase}");
        async move {
            let what = |asked: &str| format!("{phase}, {id}: {asked}");
            let terminate = RunRequest::Terminate(TerminateRequest::default());
            tokio::join!(
                // Of the same shard, or another one; all of them are refused.
                refuses(what("start"), limit, api.start(start_of(&new, ORDER, "elsewhere"))),
                refuses(what("signal"), limit, api.signal(signal_of(id, &new))),
                refuses(what("poll"), limit, api.poll_workflow_task(id)),
                refuses(what("describe"), limit, async {
                    cluster.describe_workflow(key.clone(), None).await.map_err(Refused::from)
                }),
                refuses(what("terminate"), limit, async {
                    cluster.request(key.clone(), None, terminate).await.map_err(Refused::from)
                }),
            );
        }
    });
    let listed = refuses(format!("{phase}: list"), limit, async {
        list(&cluster, &namespace).await.map_err(Refused::from)
    });
    tokio::join!(futures::future::join_all(refusals), listed);
}

/// Of three nodes one is cut off. It led one of the workflows, and a poll waited at it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_minority_refuses_quickly_while_the_majority_goes_on() {
    let mut members = Members::start_alone(2_301).await;
    let [alone, other, third] = [1, 2, 3].map(NodeId);
    for node in [other, third] {
        members.join(node, "").await;
    }
    members.await_voters(&[1, 2, 3]).await;
    let settings = ClusterSettings { is_rebalancing_paused: true, ..ClusterSettings::default() };
    members.cluster_of(alone).0.meta().set_cluster(settings).await.unwrap();
    let api = members.client();
    for id in ["led-by-it", "followed"] {
        insist("it starts", || api.start(start_of(id, ORDER, "elsewhere"))).await.unwrap();
    }
    members.lead("led-by-it", alone).await;
    members.lead("followed", other).await;
    // The queue of this name lies in the same shard as the workflow.
    let to_alone = members.client_of(alone);
    let parked = tokio::spawn(async move { to_alone.poll_workflow_task("led-by-it").await });
    let to_third = members.client_of(third);
    let moved =
        tokio::spawn(
            async move { insist("a task", || to_third.poll_workflow_task("led-by-it")).await },
        );

    members.cut_off(alone);
    let cut_off = Instant::now();
    refuses_everything(&members, alone, ["led-by-it", "followed"], ("at first", QUICKLY)).await;
    let parked = timeout(PATIENCE, parked).await.expect("the poll is stuck").unwrap();
    is_refused("the poll that waited", cut_off.elapsed(), QUICKLY, parked);
    // By now it knows.
    refuses_everything(&members, alone, ["led-by-it", "followed"], ("later", AT_ONCE)).await;

    // The others have a new leader by now, to which the poll that waited at the old one has moved.
    let api = members.client_of(other);
    for id in ["led-by-it", "followed"] {
        let signal = || api.signal(signal_of(id, "majority"));
        insist("it is signalled", signal).await.unwrap();
    }
    insist("it starts", || api.start(start_of("new", ORDER, "led-by-it"))).await.unwrap();
    let task = timeout(PATIENCE, moved).await.expect("the poll is stuck").unwrap().unwrap();
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();

    members.heal(alone);
    let api = members.client_of(alone);
    for id in ["led-by-it", "followed"] {
        insist("it is signalled", || api.signal(signal_of(id, "healed"))).await.unwrap();
    }
    let (cluster, namespace) = members.cluster_of(alone);
    await_until("it lists", || async { list(&cluster, &namespace).await.ok() }).await;
    members.stop().await;
}

/// The owner of a queue hands it over, and says nothing of that to the polls of other nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_poll_moves_along_with_the_owner_of_its_queue() {
    let members = Members::start(2_302).await;
    let [polled, before, after] = [1, 2, 3].map(NodeId);
    members.lead("queue", before).await;
    let api = members.client_of(polled);
    let parked =
        tokio::spawn(async move { insist("a task", || api.poll_workflow_task("queue")).await });
    members.lead("queue", after).await;
    let api = members.client();
    insist("it starts", || api.start(start_of("w", ORDER, "queue"))).await.unwrap();
    let task = timeout(PATIENCE, parked).await.expect("the poll is stuck").unwrap().unwrap();
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    members.stop().await;
}
