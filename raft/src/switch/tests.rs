//! Peers that say what nobody may say, or say it at a moment when it does no good.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;

use openraft::raft::TransferLeaderRequest;

use super::*;
use crate::config::{NodeConfig, Tuning};
use crate::frame::{SnapshotAnswer, SnapshotName};
use crate::groups::Groups;
use crate::log::{Disk, DiskFile, FaultyDisk};
use crate::memory_network::MemoryNetwork;
use crate::snapshot::{block_bytes, head_bytes};
use crate::suite_tests::MarkOnly;
use crate::types::{
    AppendResult, Entry, Membership, Payload, Proposal, StoredMembership, Vote, VoteRequest,
    VoteResponse, log_id,
};
use crate::wire;

const GROUP: GroupId = GroupId(7);
const NODE: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);
const OTHER: NodeId = NodeId(3);

/// A node that the test speaks for.
struct Peer {
    transport: Arc<dyn Transport>,
    heard: Arc<Heard>,
    next_number: AtomicU64,
}

type Answers = dyn Fn(&Frame) -> Option<(Lane, Body)> + Send + Sync;

/// What it hears, and how it answers at once.
struct Heard {
    frames: Mutex<Vec<Frame>>,
    answer: Box<Answers>,
    transport: Arc<dyn Transport>,
}

impl Inbox for Heard {
    fn receive(&self, from: NodeId, frame: Bytes) {
        let frame = Frame::decode(frame).expect("a frame of ours");
        if let Some((lane, body)) = (self.answer)(&frame) {
            let frame = Frame { group: frame.group, number: frame.number, body };
            // The node may be gone.
            let _ = self.transport.send(from, lane, frame.encode());
        }
        self.frames.lock().push(frame);
    }
}

impl Peer {
    fn join(network: &MemoryNetwork, node: NodeId) -> Peer {
        Peer::that_answers(network, node, |_| None)
    }

    fn that_answers(
        network: &MemoryNetwork,
        node: NodeId,
        answer: impl Fn(&Frame) -> Option<(Lane, Body)> + Send + Sync + 'static,
    ) -> Peer {
        let transport = network.transport(node);
        let (frames, answer) = (Mutex::default(), Box::new(answer));
        let heard = Arc::new(Heard { frames, answer, transport: transport.clone() });
        transport.listen(heard.clone());
        Peer { transport, heard, next_number: AtomicU64::new(100) }
    }

    fn send(&self, number: u64, body: Body) {
        let frame = Frame { group: GROUP, number, body };
        self.transport.send(NODE, Lane::Entries, frame.encode()).expect("the node is there");
    }

    async fn ask(&self, request: Request) -> Answer {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.send(number, Body::Request(request));
        let mut answer = None;
        await_until("it answers", || {
            let mut frames = self.heard.frames.lock();
            let is_answer =
                |frame: &Frame| frame.number == number && matches!(frame.body, Body::Answer(_));
            answer = frames.iter().position(is_answer).map(|at| frames.remove(at).body);
            answer.is_some()
        })
        .await;
        match answer {
            Some(Body::Answer(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    async fn ask_snapshot(&self, request: Request) -> SnapshotAnswer {
        match self.ask(request).await {
            Answer::Snapshot(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    async fn begin(&self, name: SnapshotName) -> SnapshotAnswer {
        self.ask_snapshot(Request::SnapshotBegin { name }).await
    }

    async fn send_whole(&self, name: SnapshotName, file: &Bytes) {
        let part = Request::SnapshotPart { index: name.index, offset: 0, part: file.clone() };
        let answer = self.ask_snapshot(part).await;
        assert!(matches!(answer, SnapshotAnswer::Through { offset } if offset == name.bytes));
    }

    /// Asks until it is no longer under way.
    async fn install(&self, name: SnapshotName, vote: Vote) -> SnapshotAnswer {
        loop {
            match self.ask_snapshot(Request::SnapshotInstall { name, vote }).await {
                SnapshotAnswer::Going => tokio::task::yield_now().await,
                answer => return answer,
            }
        }
    }
}

async fn await_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut looks = tokio::time::interval(Duration::from_millis(2));
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        looks.tick().await;
    }
}

fn open(network: &MemoryNetwork, disk: Arc<dyn Disk>) -> Groups {
    let (transport, states, tuning) = (network.transport(NODE), Vec::new(), Tuning::quick());
    let config = NodeConfig { node: NODE, dir: "/node".into(), disk, transport, states, tuning };
    Groups::open(config).expect("open the groups")
}

fn faulty() -> Arc<dyn Disk> {
    Arc::new(FaultyDisk::new(1))
}

fn voters(nodes: &[NodeId]) -> BTreeSet<NodeId> {
    nodes.iter().copied().collect()
}

/// A snapshot of a state without rows.
fn snapshot(index: u64, term: u64) -> (SnapshotName, Bytes) {
    let members = Membership::new_with_defaults(vec![voters(&[NODE, PEER, OTHER])], []);
    let members = StoredMembership::new(Some(log_id(1, 0)), members);
    let mark = wire::mark(&log_id(term, index), &members);
    let mut end = vec![1];
    end.extend_from_slice(&0_u64.to_be_bytes());
    let file = [head_bytes(GROUP, index, &mark.bytes), block_bytes(0, &end)].concat();
    (SnapshotName { index, bytes: file.len() as u64 }, Bytes::from(file))
}

fn vote_request(vote: Vote) -> VoteRequest {
    let mut request = VoteRequest::new(vote, Some(log_id(2, 9)));
    // So it does not wait for the lease of a leader.
    request.leadership_transfer = true;
    request
}

fn is_installed(answer: &SnapshotAnswer, under: Vote) -> bool {
    matches!(answer, SnapshotAnswer::Installed { vote } if *vote == under)
}

/// Goal: that a snapshot is installed is a promise, under the vote of who asks. One that was refused,
/// since another had been voted for, is not installed because its file came.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_counts_as_installed_only_if_raft_has_it() {
    let network = MemoryNetwork::new();
    let (peer, other) = (Peer::join(&network, PEER), Peer::join(&network, OTHER));
    let groups = open(&network, faulty());
    let group = groups.start(GROUP, Box::new(MarkOnly::default())).await.expect("start");
    let (name, file) = snapshot(5, 2);
    let rise = async |term| {
        let vote = Vote::new(term, OTHER);
        let answer = other.ask(Request::Vote(vote_request(vote))).await;
        assert!(matches!(&answer, Answer::Vote(given) if given.vote_granted), "{answer:?}");
        vote
    };

    peer.begin(name).await;
    peer.send_whole(name, &file).await;
    rise(4).await;
    let answer = peer.install(name, Vote::new_committed(3, PEER)).await;
    assert!(!matches!(answer, SnapshotAnswer::Through { .. }), "{answer:?}");
    let vote = Vote::new_committed(5, PEER);
    let answer = peer.install(name, vote).await;
    assert!(matches!(answer, SnapshotAnswer::Lost), "nothing is installed: {answer:?}");
    assert_eq!(group.metrics().applied_index, 0);

    assert!(matches!(peer.begin(name).await, SnapshotAnswer::Through { offset: 0 }));
    peer.send_whole(name, &file).await;
    let answer = peer.install(name, vote).await;
    assert!(is_installed(&answer, vote), "{answer:?}");
    assert_eq!(group.metrics().applied_index, 5);
    let higher = rise(6).await;
    let answer = peer.install(name, vote).await;
    assert!(is_installed(&answer, higher), "it leads no more: {answer:?}");
    groups.shutdown().await;
}

/// A disk whose snapshots panic when they are written.
#[derive(Clone, Debug)]
struct PanickingDisk {
    disk: FaultyDisk,
    panics: Arc<AtomicBool>,
}

#[derive(Debug)]
struct PanickingFile {
    file: Arc<dyn DiskFile>,
    panics: Option<Arc<AtomicBool>>,
}

impl Disk for PanickingDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let is_snapshot = path.extension().is_some_and(|extension| extension == "writing");
        let panics = is_snapshot.then(|| self.panics.clone());
        let file = self.disk.create(path)?;
        Ok(Arc::new(PanickingFile { file, panics }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

impl DiskFile for PanickingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let panics = self.panics.as_ref().is_some_and(|panics| panics.load(Ordering::Relaxed));
        assert!(!panics, "told to panic");
        self.file.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}

/// Goal: whatever ends the task that writes a snapshot, the next attempt begins a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_whose_task_ended_begins_anew() {
    let network = MemoryNetwork::new();
    let peer = Peer::join(&network, PEER);
    let panics = Arc::new(AtomicBool::new(true));
    let disk = PanickingDisk { disk: FaultyDisk::new(1), panics: panics.clone() };
    let groups = open(&network, Arc::new(disk));
    let group = groups.start(GROUP, Box::new(MarkOnly::default())).await.expect("start");
    let (name, file) = snapshot(5, 2);
    peer.begin(name).await;
    let part = Request::SnapshotPart { index: name.index, offset: 0, part: file.clone() };
    peer.send(1, Body::Request(part));
    // It answers when the part is written, or will not be.
    while !matches!(peer.begin(name).await, SnapshotAnswer::Through { offset: 0 }) {}
    panics.store(false, Ordering::Relaxed);
    while !matches!(peer.begin(name).await, SnapshotAnswer::Through { offset: 0 }) {}
    peer.send_whole(name, &file).await;
    peer.install(name, Vote::new_committed(3, PEER)).await;
    assert_eq!(group.metrics().applied_index, 5);
    groups.shutdown().await;
}

/// Goal: a transfer that begins while its group stops leaves nothing behind that lives on.
#[tokio::test(flavor = "multi_thread")]
async fn no_transfer_begins_once_its_group_stops() {
    let network = MemoryNetwork::new();
    let groups = open(&network, faulty());
    groups.start(GROUP, Box::new(MarkOnly::default())).await.expect("start");
    let switch = groups.switch().clone();
    let member = switch.member(GROUP).expect("it runs");
    groups.stop(GROUP).await;
    let (name, _) = snapshot(5, 2);
    let answer = switch.begin_transfer(PEER, GROUP, member.clone(), name).await;
    assert!(matches!(answer, Answer::Refused), "{answer:?}");
    let ended = tokio::time::timeout(Duration::from_secs(20), member.ended());
    ended.await.expect("no task is left");
    await_until("nobody holds the group", || Arc::strong_count(&member) == 1).await;
    groups.shutdown().await;
}

fn entry(index: u64, term: u64) -> Entry {
    let payload = Payload::Normal(Proposal::new(&[b'x'; 100]));
    Entry { log_id: log_id(term, index), payload }
}

fn append(vote: Vote, prev_log_id: Option<LogId>, entries: Vec<Entry>) -> AppendRequest {
    AppendRequest { vote, prev_log_id, entries, leader_commit: None }
}

/// A frame that counts itself for as long as anything of it is in memory.
struct Counted {
    bytes: Bytes,
    count: Arc<AtomicUsize>,
}

impl Counted {
    fn frame(frame: &Frame, count: &Arc<AtomicUsize>) -> Bytes {
        count.fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Counted { bytes: frame.encode(), count: count.clone() })
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Goal: while a follower's disk hangs, its leader begins one session after the other. What one of them
/// could not hand to Raft goes when the next begins.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_session_go_with_it() {
    const REQUESTS: u64 = 300;
    let network = MemoryNetwork::new();
    let peer = Peer::join(&network, PEER);
    let disk = FaultyDisk::new(1);
    let groups = open(&network, Arc::new(disk.clone()));
    groups.start(GROUP, Box::new(MarkOnly::default())).await.expect("start");
    disk.hold_syncs(true);
    let vote = Vote::new_committed(3, PEER);
    let mut counts = Vec::new();
    for session in 0..5 {
        let count = Arc::new(AtomicUsize::new(0));
        for sequence in 0..REQUESTS {
            let prev = sequence.checked_sub(1).map(|index| log_id(3, index));
            let request = append(vote, prev, vec![entry(sequence, 3)]);
            let body = Body::Append { sequence, request };
            let frame = Frame { group: GROUP, number: session, body };
            let frame = Counted::frame(&frame, &count);
            peer.transport.send(NODE, Lane::Entries, frame).expect("the node is there");
        }
        counts.push(count);
        let looked_at = Instant::now() + Duration::from_millis(100);
        await_until("Raft has had time to take what it takes", || Instant::now() > looked_at).await;
    }
    for count in &counts[..4] {
        await_until("most of it is gone", || count.load(Ordering::Relaxed) < 100).await;
    }
    disk.hold_syncs(false);
    groups.shutdown().await;
}

/// Goal: a peer's bytes never end a group, whatever they say.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_peer_may_say_is_dropped() {
    let network = MemoryNetwork::new();
    let peer = Peer::join(&network, PEER);
    let groups = open(&network, faulty());
    groups.start(GROUP, Box::new(MarkOnly::default())).await.expect("start");
    let lead = Vote::new_committed;
    let (stand, leads) = (Vote::new(9, PEER), lead(9, PEER));
    let candidate = |vote| Request::Vote(VoteRequest::new(vote, Some(log_id(2, 9))));
    let name = SnapshotName { index: 5, bytes: 9 };
    let appends = [
        append(stand, None, vec![entry(0, 3)]),
        append(lead(9, NODE), None, vec![entry(0, 3)]),
        append(lead(9, OTHER), None, vec![entry(0, 3)]),
        append(lead(u64::MAX, PEER), None, vec![entry(0, 3)]),
        append(leads, None, vec![entry(0, 5), entry(1, 4)]),
        append(leads, None, vec![entry(0, 10)]),
        append(leads, Some(log_id(10, 4)), vec![]),
        append(leads, Some(log_id(9, u64::MAX)), vec![]),
        append(leads, Some(log_id(9, u64::MAX - 1)), vec![entry(u64::MAX, 9)]),
        AppendRequest { leader_commit: Some(log_id(10, 0)), ..append(leads, None, vec![]) },
    ];
    let requests = [
        candidate(leads),
        candidate(Vote::new(9, NODE)),
        candidate(Vote::new(9, OTHER)),
        candidate(Vote::new(u64::MAX, PEER)),
        candidate(Vote::new(1, PEER)),
        Request::Transfer(TransferLeaderRequest::new(stand, NODE, None)),
        Request::Transfer(TransferLeaderRequest::new(lead(9, NODE), NODE, None)),
        Request::SnapshotInstall { name, vote: stand },
        Request::SnapshotInstall { name, vote: lead(9, OTHER) },
    ];
    let sessions = appends.iter().enumerate().map(|(session, request)| {
        (session as u64, Body::Append { sequence: 0, request: request.clone() })
    });
    let heartbeats = appends.iter().map(|request| Request::Heartbeat(request.clone()));
    let requests = heartbeats.chain(requests).map(|request| (50, Body::Request(request)));
    for (number, body) in sessions.chain(requests).collect::<Vec<_>>() {
        let frame = Frame { group: GROUP, number, body };
        let fits = Frame::decode(frame.encode()).is_ok_and(|frame| frame.may_come_from(PEER));
        assert!(!fits, "{frame:?}");
        peer.send(number, frame.body);
    }
    let answer = peer.ask(Request::Heartbeat(append(lead(1, PEER), None, vec![]))).await;
    assert!(matches!(answer, Answer::Append(Ok(None))), "it has seen no higher vote: {answer:?}");
    // A snapshot of later terms than its leader's.
    let (name, file) = snapshot(5, 10);
    peer.begin(name).await;
    peer.send_whole(name, &file).await;
    let answer = peer.install(name, leads).await;
    assert!(matches!(answer, SnapshotAnswer::Lost), "{answer:?}");
    let answer = peer.ask(Request::Heartbeat(append(lead(1, PEER), None, vec![]))).await;
    assert!(matches!(answer, Answer::Append(Ok(None))), "it has seen no higher vote: {answer:?}");
    assert_eq!(*groups.group_failed().borrow(), None);
    groups.shutdown().await;
}

/// Goal: a follower's answers never end the leader, whatever they say; once it answers as it should,
/// it counts.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_no_follower_gives_are_not_believed() {
    let network = MemoryNetwork::new();
    let lies = Arc::new(AtomicUsize::new(1));
    let told = lies.clone();
    let _peer = Peer::that_answers(&network, PEER, move |frame| {
        let lie = told.load(Ordering::Relaxed);
        let append_answer = |request: &AppendRequest| -> AppendResult {
            let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
            match lie {
                0 => Ok(last),
                1 => Ok(Some(log_id(request.vote.leader_id.term, 1000))),
                2 => Err(StreamAppendError::Conflict(log_id(1, u64::MAX >> 3))),
                3 => Err(StreamAppendError::HigherVote(Vote::new_committed(1000, NODE))),
                _ => Err(StreamAppendError::HigherVote(Vote::new(u64::MAX, OTHER))),
            }
        };
        match &frame.body {
            Body::Append { sequence, request } => {
                let (sequence, result) = (*sequence, Some(append_answer(request)));
                Some((Lane::Entries, Body::Appended { sequence, result }))
            }
            Body::Request(Request::Heartbeat(request)) => {
                let answer = Answer::Append(append_answer(request));
                Some((Lane::Urgent, Body::Answer(answer)))
            }
            Body::Request(Request::Vote(request) | Request::PreVote(request)) => {
                let answer = VoteResponse::new(request.vote, None, true);
                Some((Lane::Urgent, Body::Answer(Answer::Vote(answer))))
            }
            _ => None,
        }
    });
    let groups = open(&network, faulty());
    let founders = voters(&[NODE, PEER]);
    let replica = Box::new(MarkOnly::default());
    let group = groups.bootstrap_with(GROUP, &founders, replica).await.expect("found it");
    for lie in [1, 2, 3, 4] {
        lies.store(lie, Ordering::Relaxed);
        let proposed = tokio::spawn({
            let group = group.clone();
            async move { group.propose(Bytes::from_static(b"x")).await }
        });
        let told = Instant::now() + Duration::from_millis(300);
        await_until("it was told that for a while", || Instant::now() > told).await;
        assert_eq!(*groups.group_failed().borrow(), None, "lie {lie}");
        lies.store(0, Ordering::Relaxed);
        await_until("it serves", || group.leadership().borrow().serving).await;
        drop(proposed.await);
        group.propose(Bytes::from_static(b"true")).await.expect("it counts again");
    }
    groups.shutdown().await;
}
