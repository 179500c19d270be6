//! Namespaces and the rest of the meta state are changed through any node, and a node that does not know
//! of a change yet says nothing wrong about it (D2).

use piton_core::time::Span;
use piton_raft::NodeId;
use piton_shard::{Meta, MetaError, NewNamespace};

use crate::members::Members;

fn namespace(name: &str) -> NewNamespace {
    NewNamespace {
        name: name.to_owned(),
        retention: Span::from_secs(86_400),
        ..NewNamespace::default()
    }
}

/// The meta state as a node knows it.
fn meta_of(members: &Members, node: NodeId) -> Meta {
    members.cluster_of(node).0.meta().clone()
}

/// A node that does not lead the meta group, and one that does.
async fn follower_and_leader(members: &Members) -> (NodeId, NodeId) {
    let leader = members.meta_leader().await;
    let follower = members.nodes().into_iter().find(|node| *node != leader).unwrap();
    (follower, leader)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_makes_changes_and_sees_its_own_at_once() {
    let members = Members::start(2_101).await;
    for node in members.nodes() {
        let (meta, name) = (meta_of(&members, node), format!("made-on-{node}"));
        let made = meta.register_namespace(namespace(&name)).await.unwrap();
        assert_eq!(meta.namespace(&name), Some(made));
        let again = meta.register_namespace(namespace(&name)).await;
        assert_eq!(again, Err(MetaError::NamespaceExists { name: name.clone() }));
        meta.deprecate_namespace(&name).await.unwrap();
    }
    // And each sees what was made elsewhere, without having waited for it.
    for node in members.nodes() {
        for made_on in members.nodes() {
            let name = format!("made-on-{made_on}");
            assert!(meta_of(&members, node).find_namespace(&name).await.is_ok(), "{node}: {name}");
        }
    }
    members.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_a_node_does_not_know_yet_is_waited_for() {
    let members = Members::start(2_102).await;
    let (behind, leader) = follower_and_leader(&members).await;
    members.deafen(behind);
    let made = meta_of(&members, leader).register_namespace(namespace("new")).await.unwrap();
    let meta = meta_of(&members, behind);
    assert_eq!(meta.namespace("new"), None);
    let found = tokio::spawn(async move { meta.find_namespace("new").await });
    // It asks the leader whether there is more to know.
    tokio::task::yield_now().await;
    assert!(!found.is_finished());
    members.heal(behind);
    assert_eq!(found.await.unwrap().unwrap().id, made.id);
    members.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_neither_changes_nor_denies_anything() {
    let members = Members::start(2_103).await;
    let (alone, _) = follower_and_leader(&members).await;
    members.cut_off(alone);
    let meta = meta_of(&members, alone);
    let (made, found) =
        tokio::join!(meta.register_namespace(namespace("new")), meta.find_namespace("nobody"));
    assert!(matches!(made, Err(MetaError::Unavailable(_))), "{made:?}");
    assert!(matches!(found, Err(MetaError::Unavailable(_))), "{found:?}");
    members.heal(alone);
    let denied = meta.find_namespace("nobody").await;
    assert_eq!(denied, Err(MetaError::NamespaceNotFound { name: "nobody".to_owned() }));
    assert!(meta.register_namespace(namespace("new")).await.is_ok());
    members.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_finds_the_next_leader() {
    let mut members = Members::start(2_104).await;
    let (follower, leader) = follower_and_leader(&members).await;
    members.kill(leader, true).await;
    let made = meta_of(&members, follower).register_namespace(namespace("new")).await.unwrap();
    members.start_node(leader).await;
    let found = meta_of(&members, leader).find_namespace("new").await.unwrap();
    assert_eq!(found.id, made.id);
    members.stop().await;
}
