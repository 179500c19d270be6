//! Who is let in, and what is said to those who are not.

use bytes::BufMut;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::frame::{Batch, Frame, Kind};
use super::super::hello::{self, Hello, Welcome};
use super::*;

/// A hello of node 2 to node 1, as it should be.
pub(super) fn hello() -> Hello {
    Hello {
        lowest_version: 1,
        highest_version: 1,
        cluster: CLUSTER.to_owned(),
        node: 2,
        target: 1,
        incarnation: 20,
        epoch: 1,
        lane: PeerLane::Entries.number() as u32,
        feature_level: 7,
        unix_nanos: 1,
        stranger: false,
        address: String::new(),
    }
}

/// Says hello, and what is said to it. The connection stays open.
pub(super) async fn greet(node: &TestNode, hello: &Hello) -> (TcpStream, Welcome) {
    let mut stream = TcpStream::connect(node.net.address()).await.unwrap();
    hello::write(&mut stream, hello).await.unwrap();
    let welcome = in_time("a welcome", hello::read(&mut stream)).await.unwrap();
    (stream, welcome)
}

/// Writes one frame, as a peer would.
pub(super) async fn write(stream: &mut TcpStream, frame: Frame) {
    let mut batch = Batch::default();
    batch.add(frame);
    batch.close_piece();
    // The other side may have closed.
    let _ = stream.write_all_buf(&mut batch).await;
}

/// Whether the other side has closed.
pub(super) async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let read = in_time("the other side closes or answers", stream.read(&mut byte)).await;
    !matches!(read, Ok(1..))
}

/// Node 1, which knows node 2 at an address where nobody is.
pub(super) async fn node_that_knows_two() -> TestNode {
    let node = plan(1).start();
    node.knows(&[(NodeId(2), "127.0.0.1:1".parse().unwrap())]);
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_reason_to_refuse_is_told_in_words_and_counted() {
    let node = node_that_knows_two().await;
    let check = async |change: fn(&mut Hello), kind: &'static str, words: &str| {
        let mut hello = hello();
        change(&mut hello);
        let (mut stream, welcome) = greet(&node, &hello).await;
        assert_eq!(welcome.refusal_kind, kind, "{}", welcome.refusal);
        assert!(welcome.refusal.contains(words), "{}", welcome.refusal);
        assert!(is_closed(&mut stream).await);
        await_until("it is counted", || node.refused(kind) == 1.0).await;
    };
    check(
        |hello| (hello.lowest_version, hello.highest_version) = (2, 9),
        "version",
        "node 0000000000000002 speaks versions 2 to 9 of the peer protocol, and node 0000000000000001 1 to 1: upgrade the older",
    )
    .await;
    check(|hello| hello.cluster = "another".to_owned(), "other_cluster", "cluster another").await;
    check(|hello| hello.target = 3, "other_node", "expected node 0000000000000003 at this address")
        .await;
    check(|hello| hello.node = 1, "itself", "node 0000000000000001 called itself").await;
    check(
        |hello| hello.node = 9,
        "not_member",
        "node 0000000000000009 is not known to node 0000000000000001",
    )
    .await;
    check(|hello| hello.lane = 8, "unknown_lane", "asks for lane 8").await;
    check(|hello| hello.stranger = true, "stranger_lane", "may only ask for that").await;

    let (_current, welcome) = greet(&node, &Hello { epoch: 5, ..hello() }).await;
    assert_eq!(welcome.refusal, "");
    assert_eq!((welcome.version, welcome.node, welcome.feature_level), (1, 1, 7));
    check(|hello| hello.epoch = 4, "older_connection", "a newer connection for entries").await;
    let (_newer, welcome) = greet(&node, &Hello { incarnation: 21, ..hello() }).await;
    assert_eq!(welcome.refusal, "");
    check(
        |hello| hello.epoch = 6,
        "older_process",
        "another process of node 0000000000000002 has started",
    )
    .await;
}

#[test]
fn the_highest_common_version_is_spoken() {
    let (cluster, address) = (CLUSTER.to_owned(), String::new());
    let here = hello::Here { node: NodeId(1), cluster, address };
    let spoken = |lowest, highest| {
        let said = Hello { lowest_version: lowest, highest_version: highest, ..hello() };
        said.check(&here).map(|(version, _)| version).ok()
    };
    assert_eq!(spoken(1, 1), Some(1));
    assert_eq!(spoken(0, 9), Some(1));
    assert_eq!(spoken(2, 9), None);
    assert_eq!(spoken(0, 0), None);
}

#[tokio::test]
async fn a_hello_of_a_later_release_is_read_as_far_as_it_is_known() {
    let mut bytes = hello().encode_to_vec();
    // Field 100, a string.
    bytes.extend_from_slice(&[0xa2, 0x06, 3, b'n', b'e', b'w']);
    let mut said = b"PITONPR1".to_vec();
    said.put_u32_le(bytes.len() as u32);
    said.extend_from_slice(&bytes);
    assert_eq!(hello::read::<Hello>(&mut said.as_slice()).await.unwrap(), hello());
    said[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = hello::read::<Hello>(&mut said.as_slice()).await.unwrap_err().to_string();
    assert!(error.contains("4294967295 bytes was announced"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dials_checks_who_answers_and_counts_as_connected_only_then() {
    let [one, two] = [plan(1).start(), plan(2).start()];
    // The address of node 2 is given for node 3.
    one.knows(&[(NodeId(3), two.net.address())]);
    two.knows(&[(NodeId(1), one.net.address())]);
    await_until("it is refused", || two.refused("other_node") >= 4.0).await;
    assert!(!PeerLane::ALL.into_iter().any(|lane| one.net.is_connected(NodeId(3), lane)));
    let sent = one.transport.send(NodeId(3), Lane::Urgent, Bytes::from_static(b"vote"));
    assert_eq!(sent, Err(TransportError::Unreachable));
    // When the address is corrected, there is no waiting for the next attempt.
    one.knows(&[(NodeId(2), two.net.address())]);
    await_until("it is connected", || one.reaches(NodeId(2))).await;
    assert_eq!(one.net.feature_level(NodeId(2)), Some(7));
    assert_eq!(one.net.feature_level(NodeId(3)), None);
}

/// Goal: a node that has moved is found by whoever it can reach, whatever they were told before or are
/// told later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_calls_says_where_it_is_and_is_called_there() {
    let node = node_that_knows_two().await;
    let two = plan(2).start();
    two.knows(&[(node.id, node.net.address())]);
    await_until("it is called where it is", || node.reaches(two.id)).await;
    // What is told again is not news.
    node.knows(&[(two.id, "127.0.0.1:1".parse().unwrap())]);
    drop(two);
    let two = plan(2).start();
    two.knows(&[(node.id, node.net.address())]);
    await_until("it is found where it is now", || node.reaches(two.id)).await;

    // Others know of a move that it cannot tell here.
    let node = node_that_knows_two().await;
    let nowhere = "127.0.0.1:1";
    let _said = greet(&node, &Hello { address: nowhere.to_owned(), ..hello() }).await;
    two.knows(&[(node.id, nowhere.parse().unwrap())]);
    node.knows(&[(two.id, two.net.address())]);
    await_until("it is found where others say", || node.reaches(two.id)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_another_node_is_not_believed() {
    let security = super::super::tls::Security::Plaintext;
    let impostor = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = PeerAddress::from(impostor.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        for (version, node) in [(1, 9), (2, 1), (1, 1)] {
            let (mut stream, _) = impostor.accept().await.unwrap();
            let _: Hello = hello::read(&mut stream).await.unwrap();
            let welcome = Welcome { version, node, ..Welcome::default() };
            hello::write(&mut stream, &welcome).await.unwrap();
        }
    });
    for words in
        ["is node 0000000000000009, and node 0000000000000001 was expected", "chose version 2"]
    {
        let greeted = super::super::dial::greet(&security, &address, &hello()).await;
        let error = greeted.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    super::super::dial::greet(&security, &address, &hello()).await.unwrap();
    answering.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_process_sent_never_arrives_after_what_a_newer_one_did() {
    let node = node_that_knows_two().await;
    let lane = |lane: PeerLane| Hello { lane: lane.number() as u32, ..hello() };
    let (mut urgent, _) = greet(&node, &lane(PeerLane::Urgent)).await;
    let (mut entries, _) = greet(&node, &lane(PeerLane::Entries)).await;
    write(&mut urgent, Frame::data(Bytes::from_static(b"old urgent"))).await;
    write(&mut entries, Frame::data(Bytes::from_static(b"old entries"))).await;
    await_until("both arrive", || node.inbox.count() == 2).await;
    node.inbox.take();

    // One lane of a newer process takes all lanes from the older.
    let newer = Hello { incarnation: 21, ..lane(PeerLane::Bulk) };
    let (mut bulk, welcome) = greet(&node, &newer).await;
    assert_eq!(welcome.refusal, "");
    write(&mut urgent, Frame::data(Bytes::from_static(b"late"))).await;
    write(&mut entries, Frame::data(Bytes::from_static(b"late"))).await;
    write(&mut bulk, Frame::data(Bytes::from_static(b"new"))).await;
    assert!(is_closed(&mut urgent).await && is_closed(&mut entries).await);
    // The older process tries again.
    let again = Hello { epoch: 99, ..lane(PeerLane::Urgent) };
    let (mut stream, welcome) = greet(&node, &again).await;
    assert_eq!(welcome.refusal_kind, "older_process");
    write(&mut stream, Frame::data(Bytes::from_static(b"late"))).await;
    write(&mut bulk, Frame::data(Bytes::from_static(b"last"))).await;
    await_until("what is new arrives", || node.inbox.count() >= 2).await;
    let arrived = node.inbox.take().into_iter().map(|(_, frame)| frame);
    assert_eq!(arrived.collect::<Vec<_>>(), ["new", "last"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_of_a_lane_ends_the_older_one() {
    let node = node_that_knows_two().await;
    let (mut older, _) = greet(&node, &hello()).await;
    let (mut newer, welcome) = greet(&node, &Hello { epoch: 2, ..hello() }).await;
    assert_eq!(welcome.refusal, "");
    write(&mut older, Frame::data(Bytes::from_static(b"late"))).await;
    assert!(is_closed(&mut older).await);
    write(&mut newer, Frame::data(Bytes::from_static(b"new"))).await;
    await_until("it arrives", || node.inbox.count() > 0).await;
    assert_eq!(node.inbox.take(), [(NodeId(2), Bytes::from_static(b"new"))]);
    let accepted = "piton_peer_connections{lane=\"entries\",state=\"accepted\"}";
    assert_eq!(node.metric(accepted), 1.0, "{}", node.metrics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_belong_on_a_lane_closes_it() {
    let node = node_that_knows_two().await;
    let lane = |lane: PeerLane, epoch| Hello { lane: lane.number() as u32, epoch, ..hello() };
    let frame = |kind| Frame::numbered(kind, 1, Bytes::from_static(b"12345678"));
    let data = || Frame::data(Bytes::from_static(b"data"));
    for (epoch, (on, frame)) in [
        (PeerLane::Calls, data()),
        (PeerLane::Calls, frame(Kind::Answer)),
        (PeerLane::Urgent, frame(Kind::Request)),
        (PeerLane::Entries, frame(Kind::Ping)),
        (PeerLane::Bulk, frame(Kind::Pong)),
        (PeerLane::Urgent, Frame::data(vec![0; on_lane(PeerLane::Urgent) + 1].into())),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut stream, welcome) = greet(&node, &lane(on, epoch as u64 + 1)).await;
        assert_eq!(welcome.refusal, "");
        write(&mut stream, frame).await;
        assert!(is_closed(&mut stream).await, "{on}");
    }
    assert_eq!(node.inbox.count(), 0);
    // The lane is free for the next connection.
    let (mut stream, _) = greet(&node, &lane(PeerLane::Bulk, 99)).await;
    write(&mut stream, data()).await;
    await_until("it arrives", || node.inbox.count() == 1).await;
}

fn on_lane(lane: PeerLane) -> usize {
    lane.frame_bytes_max()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_disconnected_and_not_let_in_again() {
    let [one, two] = connected([plan(1), plan(2)]).await;
    one.knows(&[]);
    assert_eq!(one.try_send(&two, Lane::Urgent, "vote"), Err(TransportError::Unreachable));
    await_until("its connections are closed", || !two.net.is_connected(one.id, PeerLane::Urgent))
        .await;
    await_until("it is not let in", || one.refused("not_member") >= 4.0).await;
    assert!(two.unwanted.lock().is_empty(), "it may be one of tomorrow");
    one.net.set_peers(BTreeMap::new(), BTreeSet::from([two.id]));
    await_until("it learns that it was removed", || {
        two.unwanted
            .lock()
            .iter()
            .any(|why| why.contains("with --join and an empty data directory"))
    })
    .await;
    for lane in ["urgent", "entries", "bulk", "calls"] {
        for state in ["connected", "accepted"] {
            let name = format!("piton_peer_connections{{lane=\"{lane}\",state=\"{state}\"}}");
            await_until("no connection is left", || one.metric(&name) == 0.0).await;
        }
    }
    introduce(&[one, two]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_end_are_bounded_and_hold_nobody_up() {
    let mut here = plan(1);
    here.config.handshakes_max = 8;
    // Nothing but the bound ends them.
    here.timing.handshake_max = Duration::from_secs(600);
    let [one, two] = [here.start(), plan(2).start()];
    let mut streams = Vec::new();
    for number in 0..40 {
        let mut stream = TcpStream::connect(one.net.address()).await.unwrap();
        let said: &[u8] = [&b""[..], b"PITONPR1", b"PITONPR1\x10\0\0\0", b"PIT"][number % 4];
        stream.write_all(said).await.unwrap();
        streams.push(stream);
    }
    await_until("all but eight are ended", || one.refused("handshakes_max") == 32.0).await;
    for stream in &mut streams[..32] {
        assert!(is_closed(stream).await);
    }
    introduce(&[one, two]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_hello_is_refused_in_time() {
    let mut here = plan(1);
    here.timing.handshake_max = Duration::from_millis(100);
    let node = here.start();
    raw(node.net.address(), b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    raw(node.net.address(), b"PITONPR1\xff\xff\xff\xff").await;
    raw(node.net.address(), b"PITONPR1\x02\0\0\0\xff\xff").await;
    await_until("they are refused", || node.refused("no_hello") == 3.0).await;
    raw(node.net.address(), b"PITON").await;
    await_until("it is refused", || node.refused("timeout") == 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_is_refused_off_loopback() {
    let mut off = plan(1);
    off.config.ip = "0.0.0.0".parse().unwrap();
    let error = off.try_start().err().unwrap().to_string();
    assert!(error.contains("plaintext only on their own machine"), "{error}");
    // Nor is anybody called who is elsewhere (an address that is kept for documentation).
    let security = super::super::tls::Security::Plaintext;
    let elsewhere = "192.0.2.1:7234".parse().unwrap();
    let error = super::super::dial::greet(&security, &elsewhere, &hello()).await.unwrap_err();
    assert!(error.to_string().contains("is not a loopback address"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_wants_to_join_may_ask_that_once_and_nothing_else() {
    let node = plan(1).start();
    let stranger =
        Stranger::new(&PeerConfig { port: 0, ..PeerConfig::default() }, NodeId(5), 7).unwrap();
    let ask = async || {
        let request = Bytes::from_static(b"me");
        stranger.ask(&node.address(), request, PATIENCE).await
    };
    assert_eq!(ask().await, Err(AskError::NotSent(NotSent::NotTaken)), "nobody answers yet");
    node.net.answer_with(Arc::new(super::calls::Echo::default()));
    assert_eq!(ask().await.unwrap(), "0000000000000005 joins: me");
    let too_long = Bytes::from(vec![0; 65 << 10]);
    let refused = stranger.ask(&node.address(), too_long, PATIENCE).await;
    assert_eq!(refused, Err(AskError::NotSent(NotSent::TooLong)));

    // What it asks goes nowhere else, whatever it says it is.
    let said = Hello { stranger: true, lane: PeerLane::Calls.number() as u32, ..hello() };
    let (mut stream, welcome) = greet(&node, &said).await;
    assert_eq!((welcome.refusal.as_str(), welcome.cluster.as_str()), ("", CLUSTER));
    for _ in 0..2 {
        let request = Bytes::from_static(b"get");
        write(&mut stream, Frame::numbered(Kind::Request, 3, request)).await;
    }
    let mut answers = Vec::new();
    let _ = in_time("it is closed", stream.read_to_end(&mut answers)).await;
    let text = String::from_utf8_lossy(&answers);
    assert_eq!(text.matches("2 joins: get").count(), 1, "{text}");

    // So many wait at once, and no more.
    let mut waiting = Vec::new();
    for _ in 0..16 {
        waiting.push(greet(&node, &said).await);
    }
    let (_, welcome) = greet(&node, &said).await;
    assert_eq!(welcome.refusal_kind, "too_many_strangers");
    drop(waiting);
    await_until("there is room again", || node.refused("too_many_strangers") == 1.0).await;
    let gone = stranger.ask(&"127.0.0.1:1".parse().unwrap(), Bytes::new(), PATIENCE).await;
    assert!(matches!(gone, Err(AskError::NotSent(NotSent::Refused(_)))), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_may_go_through_something_that_only_carries_bytes() {
    let (two, proxy) = plan(2).behind_proxy().await;
    let [one, two] = [plan(1).start(), two.start()];
    one.knows(&[(two.id, proxy.address)]);
    two.knows(&[(one.id, one.net.address())]);
    await_until("it is connected", || one.reaches(two.id)).await;
}
