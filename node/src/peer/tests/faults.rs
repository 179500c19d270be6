//! Connections that break, peers that go, stand still and come back.

use super::proxy::{Link, Proxy};
use super::*;

/// Two nodes, where all that node 1 sends goes through a proxy.
async fn through_proxy(one: Plan, two: Plan) -> (TestNode, TestNode, Proxy) {
    let (two, proxy) = two.behind_proxy().await;
    let [one, two] = [one.start(), two.start()];
    two.knows(&[(one.id, one.net.address())]);
    one.knows(&[(two.id, proxy.address)]);
    await_until("it is connected", || one.reaches(two.id) && two.reaches(one.id)).await;
    (one, two, proxy)
}

fn quick(id: u64) -> Plan {
    let mut plan = plan(id);
    plan.timing.ping_every = Duration::from_millis(50);
    plan.timing.silent_after = Duration::from_millis(400);
    plan.timing.dropped_after = Duration::from_millis(1_000);
    plan
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_queued_for_a_broken_connection_is_never_sent_on_the_next() {
    let (one, two, proxy) = through_proxy(plan(1), plan(2)).await;
    one.send(&two, Lane::Entries, "first");
    await_until("it arrives", || two.inbox.count() == 1).await;
    proxy.set(Link::Silent);
    // More than the system's buffers take, so that much of it waits in the queue.
    for _ in 0..40 {
        one.send(&two, Lane::Entries, vec![1; 1 << 20]);
    }
    let of_one = (one.id, Lane::Entries);
    let changed = || two.inbox.changed.lock().iter().filter(|it| **it == of_one).count();
    assert!(one.inbox.ended.lock().is_empty() && changed() == 1, "it has begun");
    proxy.cut();
    await_until("it broke", || !one.net.is_connected(two.id, PeerLane::Entries)).await;
    let ended =
        BTreeSet::from([Lane::Urgent, Lane::Entries, Lane::Bulk].map(|lane| (two.id, lane)));
    await_until("Raft hears of it", || *one.inbox.ended.lock() == ended && changed() == 2).await;
    proxy.set(Link::Open);
    await_until("it is connected again", || one.reaches(two.id) && changed() == 3).await;
    one.send(&two, Lane::Entries, "last");
    await_until("what is new arrives", || {
        two.inbox.frames.lock().last().is_some_and(|(_, frame)| frame == "last")
    })
    .await;
    let arrived: Vec<Bytes> = two.inbox.take().into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(arrived, ["first", "last"]);
    assert!(one.metric("piton_peer_reconnects_total{lane=\"entries\"}") >= 1.0);
    assert_eq!(*one.lost.lock(), [], "its process is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_nothing_is_silent_and_then_given_up() {
    let (one, two, proxy) = through_proxy(quick(1), plan(2)).await;
    await_until("a ping came back", || one.net.round_trip(two.id).is_some()).await;
    proxy.set(Link::Silent);
    let since = Instant::now();
    await_until("it counts as silent", || !one.reaches(two.id)).await;
    let silent_after = since.elapsed();
    assert!(silent_after >= Duration::from_millis(300), "{silent_after:?}");
    assert!(!one.transport.is_connected(two.id, Lane::Entries), "nothing need be encoded");
    assert_eq!(one.try_send(&two, Lane::Entries, "entry"), Err(TransportError::Unreachable));
    let asked = one.net.ask(two.id, Bytes::new(), PATIENCE).await;
    assert_eq!(asked, Err(AskError::NotSent(NotSent::NoConnection)));
    let connected = |lane: &str| {
        one.metric(&format!("piton_peer_connections{{lane=\"{lane}\",state=\"connected\"}}"))
    };
    assert_eq!(connected("bulk"), 1.0, "it may come back");
    for lane in ["urgent", "entries", "bulk", "calls"] {
        await_until("every lane is given up", || connected(lane) == 0.0).await;
    }
    assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());
    // The proxy takes connections, so nobody is gone.
    proxy.set(Link::Open);
    await_until("it is connected again", || one.reaches(two.id)).await;
    assert_eq!(*one.lost.lock(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_silent_for_a_moment_keeps_its_connections() {
    let mut patient = quick(1);
    patient.timing.dropped_after = PATIENCE;
    let (one, two, proxy) = through_proxy(patient, plan(2)).await;
    proxy.set(Link::Silent);
    await_until("it counts as silent", || !one.reaches(two.id)).await;
    proxy.set(Link::Open);
    await_until("it answers again", || one.reaches(two.id)).await;
    assert_eq!(one.metric("piton_peer_reconnects_total{lane=\"urgent\"}"), 0.0);
    one.send(&two, Lane::Entries, "entry");
    await_until("it arrives", || two.inbox.count() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_calls_and_then_says_nothing_is_closed() {
    use super::super::hello::Hello;
    use super::handshake::{greet, hello, is_closed};
    let node = quick(1).start();
    node.knows(&[(NodeId(2), "127.0.0.1:1".parse().unwrap())]);
    let lane = PeerLane::Urgent.number() as u32;
    let (mut stream, _) = greet(&node, &Hello { lane, ..hello() }).await;
    assert!(is_closed(&mut stream).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_gone_is_told_once_and_one_that_is_there_never() {
    let [one, two] = connected([plan(1), plan(2)]).await;
    // All connections end, and the port is closed: as when a process is killed.
    let address = two.net.address();
    two.net.stop().await;
    drop(two);
    await_until("it is told", || !one.lost.lock().is_empty()).await;
    assert_eq!(*one.lost.lock(), [NodeId(2)]);
    let sent = one.transport.send(NodeId(2), Lane::Urgent, Bytes::from_static(b"vote"));
    assert_eq!(sent, Err(TransportError::Unreachable));
    assert!(!one.reaches(NodeId(2)));
    // It comes back under the same address and id, and goes again.
    let mut again = plan(2);
    again.config.port = address.port();
    let two = again.start();
    two.knows(&[(one.id, one.net.address())]);
    await_until("it is connected", || one.reaches(NodeId(2))).await;
    assert_eq!(one.lost.lock().len(), 1);
    two.net.stop().await;
    await_until("it is told again", || one.lost.lock().len() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_not_lost_while_one_lane_is_there() {
    use super::super::hello::Hello;
    use super::handshake::{greet, hello};
    let (one, two, mut proxy) = through_proxy(plan(1), plan(2)).await;
    // One lane goes and is refused from then on; the others stay.
    proxy.refuse().await;
    let newer = Hello {
        node: 1,
        target: 2,
        incarnation: one.net.shared.incarnation,
        epoch: u64::MAX,
        lane: PeerLane::Urgent.number() as u32,
        ..hello()
    };
    let (_stream, welcome) = greet(&two, &newer).await;
    assert_eq!(welcome.refusal, "");
    await_until("the lane is gone", || !one.net.is_connected(two.id, PeerLane::Urgent)).await;
    let failed = "piton_peer_connect_failures_total{lane=\"urgent\"}";
    await_until("it is refused again and again", || one.metric(failed) >= 3.0).await;
    one.send(&two, Lane::Entries, "entry");
    await_until("the others carry on", || two.inbox.count() == 1).await;
    assert_eq!(*one.lost.lock(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_tell_how_far_away_a_peer_is_and_what_its_clock_shows() {
    let mut ahead = plan(2);
    let clock = system_clock();
    ahead.unix_nanos = Arc::new(move || clock() + 5_000_000_000);
    let [one, two] = connected([plan(1), ahead]).await;
    await_until("a ping came back", || one.net.round_trip(two.id).is_some()).await;
    await_until("both know", || two.net.clock_offset(one.id).is_some()).await;
    let near = |offset: i64, expected: i64, round_trip: Duration| {
        // Both clocks are read anew each time, and a crowded machine may pause in between.
        (offset - expected).unsigned_abs() <= 50_000_000 + round_trip.as_nanos() as u64
    };
    let round_trip = one.net.round_trip(two.id).unwrap();
    assert!(near(one.net.clock_offset(two.id).unwrap(), 5_000_000_000, round_trip));
    assert!(near(two.net.clock_offset(one.id).unwrap(), -5_000_000_000, round_trip));
    assert!(round_trip < Duration::from_secs(1), "{round_trip:?}");
    assert_eq!(one.net.round_trip(NodeId(9)), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_has_stopped_delivers_nothing_and_frees_its_port() {
    let [one, two] = connected([plan(1), plan(2)]).await;
    let address = two.net.address();
    two.net.stop().await;
    let arrived = two.inbox.count();
    // Refused, or into a connection that has ended.
    let _ = one.try_send(&two, Lane::Entries, "late");
    let port = std::net::TcpListener::bind(address).unwrap();
    await_until("one notices", || !one.net.is_connected(two.id, PeerLane::Entries)).await;
    assert_eq!(two.inbox.count(), arrived);
    drop(port);
}
