use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::channel::mpsc::{UnboundedReceiver, unbounded};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::super::Network;
use super::*;
use crate::config::{NodeId, Tuning};
use crate::log::{FaultyDisk, GroupId};
use crate::memory_network::MemoryNetwork;
use crate::snapshot::Snapshots;
use crate::switch::{Switch, SwitchInbox};
use crate::transport::{Inbox, Transport};
use crate::types::{Entry, Payload, Proposal, Vote, log_id};

const LEADER: NodeId = NodeId(1);
const FOLLOWER: NodeId = NodeId(2);
const GROUP: GroupId = GroupId(7);

/// Keeps what it was sent: its entries' indices and the commit. Takes everything at once, or answers nothing.
struct Follower {
    transport: Arc<dyn Transport>,
    answers: AtomicBool,
    taken: Mutex<Vec<(Vec<u64>, u64)>>,
}

impl Inbox for Follower {
    fn receive(&self, from: NodeId, frame: Bytes) {
        let Frame { group, number, body } = Frame::decode(frame).expect("a frame of ours");
        let Body::Append { sequence, request } = body else { panic!("{body:?}") };
        let indices = request.entries.iter().map(|entry| entry.log_id.index).collect();
        let commit = request.leader_commit.expect("how far is committed").index;
        self.taken.lock().push((indices, commit));
        if !self.answers.load(Ordering::Relaxed) {
            return;
        }
        let body = Body::Appended { sequence, result: Some(Ok(last_of(&request))) };
        let answer = Frame { group, number, body }.encode();
        self.transport.send(from, Lane::Entries, answer).expect("the leader is there");
    }
}

/// Leader of the group, and the way to its only follower.
fn leader_and_follower(holds_commits: bool) -> (Link, Arc<Follower>) {
    let network = MemoryNetwork::new();
    let transport = network.transport(FOLLOWER);
    let (answers, taken) = (AtomicBool::new(true), Mutex::default());
    let follower = Arc::new(Follower { transport: transport.clone(), answers, taken });
    transport.listen(follower.clone());
    let transport = network.transport(LEADER);
    let switch = Switch::new(LEADER, transport.clone(), Handle::current(), 1);
    transport.listen(Arc::new(SwitchInbox(Arc::downgrade(&switch))));
    let disk = Arc::new(FaultyDisk::new(1));
    let snapshots = Snapshots::open(disk, "/snapshot".into(), GROUP, Arc::default());
    let snapshots = Arc::new(snapshots.expect("open the snapshots"));
    let (sendings, kept_from) = (Arc::default(), Arc::default());
    let network = Network::new(
        switch,
        GROUP,
        &Tuning::default(),
        snapshots,
        sendings,
        kept_from,
        holds_commits,
    );
    (network.link(FOLLOWER, Lane::Entries), follower)
}

/// The entry of that index, or none, and how far is committed.
fn request(entry: Option<u64>, last: u64, commit: u64) -> AppendRequest {
    let entries: Vec<Entry> = entry
        .map(|index| {
            let payload = Payload::Normal(Proposal::new(b"entry"));
            Entry { log_id: log_id(1, index), payload }
        })
        .into_iter()
        .collect();
    AppendRequest {
        vote: Vote::new_committed(1, LEADER),
        prev_log_id: Some(log_id(1, last)),
        entries,
        leader_commit: Some(log_id(1, commit)),
    }
}

/// The index that the next answer tells of.
async fn matching(session: &mut Session<'_, UnboundedReceiver<AppendRequest>>) -> u64 {
    let answer = session.answer().await.expect("an answer").expect("no error of the network");
    answer.expect("the follower has it").expect("an entry").index
}

/// Goal: a follower gets one frame for each entry as long as they come one after the other, and the last
/// commit soon.
#[tokio::test(start_paused = true)]
async fn a_commit_goes_with_the_entries_that_follow_it_or_soon_by_itself() {
    let (link, follower) = leader_and_follower(true);
    let taken = || std::mem::take(&mut *follower.taken.lock());
    let (requests, input) = unbounded();
    let send = |entry, last, commit| {
        requests.unbounded_send(request(entry, last, commit)).expect("the session listens");
    };
    let mut session = Session::open(&link, input);

    // The first one asks what the follower has, and does not wait.
    send(None, 0, 0);
    assert_eq!(matching(&mut session).await, 0);
    assert_eq!(taken(), [(vec![], 0)]);
    send(Some(1), 0, 0);
    assert_eq!(matching(&mut session).await, 1);
    assert_eq!(taken(), [(vec![1], 0)]);

    send(None, 1, 1);
    let early = timeout(COMMIT_WAITS / 2, session.answer()).await;
    assert!(early.is_err() && taken().is_empty(), "it waits for entries");
    send(Some(2), 1, 1);
    assert_eq!(matching(&mut session).await, 2);
    assert_eq!(taken(), [(vec![2], 1)], "entry and commit in one");

    // Others that follow do not have it wait any longer.
    let begun = Instant::now();
    send(None, 2, 1);
    let early = timeout(COMMIT_WAITS / 2, session.answer()).await;
    assert!(early.is_err() && taken().is_empty(), "it waits for entries");
    send(None, 2, 2);
    assert_eq!(matching(&mut session).await, 2);
    assert_eq!(taken(), [(vec![], 2)]);
    // Tokio's clock goes in milliseconds.
    assert!(begun.elapsed() < COMMIT_WAITS + Duration::from_millis(2), "{:?}", begun.elapsed());

    // What waits when the requests end goes at once.
    send(Some(3), 2, 2);
    assert_eq!(matching(&mut session).await, 3);
    let begun = Instant::now();
    send(None, 3, 3);
    drop(requests);
    assert_eq!(matching(&mut session).await, 3);
    assert_eq!((taken(), begun.elapsed()), (vec![(vec![3], 2), (vec![], 3)], Duration::ZERO));
    assert!(session.answer().await.is_none());
}

/// Goal: what is changed in a group that every node reads is known everywhere at once.
#[tokio::test(start_paused = true)]
async fn a_commit_does_not_wait_where_followers_are_read() {
    let (link, follower) = leader_and_follower(false);
    let (requests, input) = unbounded();
    let mut session = Session::open(&link, input);
    let begun = Instant::now();
    for (entry, last, commit) in [(Some(1), 0, 0), (None, 1, 1)] {
        requests.unbounded_send(request(entry, last, commit)).expect("the session listens");
        assert_eq!(matching(&mut session).await, 1);
    }
    assert_eq!(*follower.taken.lock(), [(vec![1], 0), (vec![], 1)]);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

/// Goal: a session that streams on far ahead of what its follower has does not keep the log for ever.
#[tokio::test(start_paused = true)]
async fn a_session_ends_when_what_is_not_answered_is_no_longer_held() {
    let (link, follower) = leader_and_follower(true);
    let (requests, input) = unbounded();
    let send = |index| {
        let request = request(Some(index), index - 1, 0);
        requests.unbounded_send(request).expect("the session listens");
    };
    let mut session = Session::open(&link, input);
    send(5);
    assert_eq!(matching(&mut session).await, 5);
    follower.answers.store(false, Ordering::Relaxed);
    send(6);
    assert!(timeout(Duration::ZERO, session.answer()).await.is_err());

    // All through 5 may go: it has that.
    link.kept_from.let_go(5);
    send(7);
    assert!(timeout(Duration::ZERO, session.answer()).await.is_err());
    assert_eq!(follower.taken.lock().len(), 3);

    link.kept_from.let_go(6);
    send(8);
    let ended = session.answer().await.expect("an end");
    assert!(ended.expect_err("6 is gone").to_string().contains("no longer held"));
    assert_eq!(follower.taken.lock().len(), 3, "nothing is sent any more");
}
