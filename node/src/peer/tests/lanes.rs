//! What is sent arrives, in order, and no lane waits for another.

use std::sync::atomic::AtomicU64;

use super::proxy::Link;
use super::*;

const RAFT_LANES: [Lane; 3] = [Lane::Urgent, Lane::Entries, Lane::Bulk];

/// Sends, and waits for room where there is none.
async fn send_patiently(from: &TestNode, to: &TestNode, lane: Lane, frame: &Bytes) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = from.try_send(to, lane, frame.clone()) {
        assert_eq!(error, TransportError::Busy);
        assert!(Instant::now() < deadline, "the queue stays full");
        tick().await;
    }
}

/// The frame with this number: so long that some are copied and some are not.
fn numbered(lane: Lane, number: u32) -> Bytes {
    let length = 5 + (number as usize * 7_919) % 6_000;
    let mut frame = vec![(number % 251) as u8; length];
    frame[0] = RAFT_LANES.iter().position(|known| *known == lane).unwrap() as u8;
    frame[1..5].copy_from_slice(&number.to_le_bytes());
    frame.into()
}

async fn assert_all_arrive(one: &TestNode, two: &TestNode) {
    const FRAMES: u32 = 10_000;
    let sending = RAFT_LANES.map(|lane| async move {
        for number in 0..FRAMES {
            send_patiently(one, two, lane, &numbered(lane, number)).await;
        }
    });
    futures::future::join_all(sending).await;
    await_until("all arrive", || two.inbox.count() == 3 * FRAMES as usize).await;
    let mut next = [0; 3];
    for (from, frame) in two.inbox.take() {
        assert_eq!(from, one.id);
        let lane = usize::from(frame[0]);
        assert_eq!(frame, numbered(RAFT_LANES[lane], next[lane]), "lane {lane}");
        next[lane] += 1;
    }
    assert_eq!(next, [FRAMES; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_frames_of_each_lane_arrive_in_order_and_as_they_were() {
    let [one, two] = connected([plan(1), plan(2)]).await;
    assert!(RAFT_LANES.into_iter().all(|lane| one.transport.is_connected(two.id, lane)));
    assert_all_arrive(&one, &two).await;
    for lane in ["urgent", "entries", "bulk"] {
        let of = |name: &str| format!("piton_peer_{name}_total{{lane=\"{lane}\"}}");
        let sent = one.metric(&of("sent_frames"));
        assert!((10_000.0..10_100.0).contains(&sent), "{sent}");
        let (bytes, arrived) = (of("sent_bytes"), of("received_bytes"));
        assert!(one.metric(&bytes) > 10_000.0 * 2_500.0);
        // Pings go on, so that only the other lanes stand still.
        if lane != "urgent" {
            assert_eq!(one.metric(&bytes), two.metric(&arrived));
            let queue = format!("piton_peer_queue_bytes{{lane=\"{lane}\"}}");
            await_until("the queue is empty", || one.metric(&queue) == 0.0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_frames_of_each_lane_arrive_over_tls() {
    let authority = super::secure::Authority::new();
    let [one, two] = connected([authority.plan(1), authority.plan(2)]).await;
    assert_all_arrive(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_sent_in_one_turn_leave_in_few_writes() {
    let [one, two] = connected([plan(1), plan(2)]).await;
    // Raft's runtime has one thread, so what one task sends there leaves afterwards.
    let (transport, to) = (one.transport.clone(), two.id);
    let sending = async move {
        for _ in 0..500 {
            transport.send(to, Lane::Urgent, Bytes::from_static(b"heartbeat")).unwrap();
        }
    };
    one.raft().spawn(sending).await.unwrap();
    await_until("all arrive", || two.inbox.count() == 500).await;
    let writes = one.metric("piton_peer_writes_total{lane=\"urgent\"}");
    // Some for pings.
    assert!(writes < 50.0, "{writes} writes");
}

/// Measures how long small frames took, whose content is when they were sent.
struct Clocked {
    base: Instant,
    bulk: AtomicUsize,
    beats: AtomicUsize,
    longest_micros: AtomicU64,
}

impl Inbox for Clocked {
    fn receive(&self, _: NodeId, frame: Bytes) {
        let Ok(sent) = <[u8; 8]>::try_from(frame.as_ref()) else {
            self.bulk.fetch_add(frame.len(), Ordering::Relaxed);
            return;
        };
        let took = self.base.elapsed() - Duration::from_micros(u64::from_le_bytes(sent));
        self.longest_micros.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_transfer_over_a_slow_link_holds_no_heartbeat_up() {
    const BULK_BYTES: usize = 256 << 20;
    // Without lanes, a heartbeat would wait for the queue of 16 MiB, a fifth of a second. Most of
    // this is for a machine that is crowded.
    const LONGEST: Duration = Duration::from_millis(150);
    let authority = super::secure::Authority::new();
    let (two, proxy) = authority.plan(2).behind_proxy().await;
    let [one, two] = [authority.plan(1).start(), two.start()];
    let base = Instant::now();
    let clocked = Arc::new(Clocked {
        base,
        bulk: AtomicUsize::new(0),
        beats: AtomicUsize::new(0),
        longest_micros: AtomicU64::new(0),
    });
    two.transport.listen(clocked.clone());
    two.knows(&[(one.id, one.net.address())]);
    one.knows(&[(two.id, proxy.address)]);
    await_until("it is connected", || one.reaches(two.id)).await;
    proxy.set(Link::Slow(80 << 20));
    let beating = async {
        let mut beats = tokio::time::interval(Duration::from_millis(10));
        while clocked.bulk.load(Ordering::Relaxed) < BULK_BYTES {
            beats.tick().await;
            let now = base.elapsed().as_micros() as u64;
            one.send(&two, Lane::Urgent, now.to_le_bytes().to_vec());
        }
    };
    let part = Bytes::from(vec![5; 1 << 20]);
    let sending = async {
        for _ in 0..BULK_BYTES / part.len() {
            send_patiently(&one, &two, Lane::Bulk, &part).await;
        }
    };
    in_time("all is carried", async { tokio::join!(beating, sending) }).await;
    let longest = Duration::from_micros(clocked.longest_micros.load(Ordering::Relaxed));
    let beats = clocked.beats.load(Ordering::Relaxed);
    assert!(beats > 100 && longest < LONGEST, "{beats} heartbeats, the longest took {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_is_bounded_in_bytes_and_others_go_on() {
    let mut small = plan(1);
    small.config.bulk_queue_bytes_max = 8 << 20;
    let (two, proxy) = plan(2).behind_proxy().await;
    let [one, two] = [small.start(), two.start()];
    two.knows(&[(one.id, one.net.address())]);
    one.knows(&[(two.id, proxy.address)]);
    await_until("it is connected", || one.reaches(two.id)).await;
    proxy.set(Link::Slow(20 << 20));
    let part = Bytes::from(vec![5; 1 << 20]);
    let mut queued = 0;
    while one.try_send(&two, Lane::Bulk, part.clone()) != Err(TransportError::Busy) {
        queued += 1;
        assert!(queued < 100, "nothing bounds the queue");
    }
    assert!(one.metric("piton_peer_queue_bytes{lane=\"bulk\"}") <= f64::from(8 << 20));
    one.send(&two, Lane::Entries, "entry");
    await_until("the entry does not wait", || two.inbox.count() > 0).await;
    let too_long = vec![0; PeerLane::Bulk.frame_bytes_max() + 1];
    assert_eq!(one.try_send(&two, Lane::Bulk, too_long), Err(TransportError::Busy));
    await_until("all arrives that was queued", || two.inbox.count() == queued + 1).await;
    one.send(&two, Lane::Bulk, part);
}
