//! Frames, batches and queues, without a network.

use bytes::{Buf, Bytes};
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::AsyncReadExt;

use super::super::frame::{Batch, Frame, FrameError, FrameReader, Kind};
use super::super::link::Link;
use super::super::metrics::PeerMetrics;
use super::super::queue::{NotQueued, Queue};
use super::*;

const LENGTH_MAX: usize = 1 << 20;

fn frames() -> Vec<Frame> {
    let sizes = [0, 1, 7, 8, 4_095, 4_096, 4_097, 70_000, LENGTH_MAX - 8, 3];
    let frames = sizes.iter().enumerate().map(|(number, &size)| {
        let payload = Bytes::from(vec![number as u8; size]);
        let kinds = [Kind::Data, Kind::Request, Kind::Answer, Kind::Ping];
        match kinds[number % kinds.len()] {
            Kind::Data => Frame::data(payload),
            kind => Frame::numbered(kind, number as u64 | 1 << 60, payload),
        }
    });
    frames.collect()
}

fn bytes_of(frames: Vec<Frame>) -> Bytes {
    let mut batch = Batch::default();
    frames.into_iter().for_each(|frame| batch.add(frame));
    batch.close_piece();
    let length = batch.remaining();
    let bytes = batch.copy_to_bytes(length);
    assert_eq!(batch.remaining(), 0);
    bytes
}

#[tokio::test]
async fn frames_are_read_as_they_were_written_however_they_are_cut() {
    let bytes = bytes_of(frames());
    for piece in [1, 3, 100, 65_536, usize::MAX] {
        let (mut there, here) = tokio::io::duplex(200_000);
        let bytes = bytes.clone();
        // Byte by byte only where it does not take all day.
        let bytes = if piece < 100 { bytes.slice(..20_000) } else { bytes };
        let whole = if piece < 100 { 7 } else { frames().len() };
        let writing = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            for piece in bytes.chunks(piece.min(bytes.len())) {
                there.write_all(piece).await.unwrap();
            }
        });
        let mut reader = FrameReader::new(here, 16 << 10, LENGTH_MAX);
        for expected in frames().into_iter().take(whole) {
            assert_eq!(reader.next().await.unwrap(), expected);
        }
        writing.await.unwrap();
        let end = reader.next().await.unwrap_err();
        assert!(matches!(end, FrameError::Closed), "{end}");
    }
}

#[tokio::test]
async fn what_is_no_frame_is_refused_before_room_is_made_for_it() {
    let too_long = (LENGTH_MAX as u32 + 1).to_le_bytes();
    for (bytes, text) in [
        ([&too_long[..], &[0]].concat(), "a frame of 1048577 bytes was announced"),
        (vec![255, 255, 255, 255, 0], "a frame of 4294967295 bytes was announced"),
        (vec![0, 0, 0, 0, 99], "of kind 99"),
        (vec![7, 0, 0, 0, Kind::Request as u8, 1, 2, 3, 4, 5, 6, 7], "shorter than its kind"),
    ] {
        let mut reader = FrameReader::new(bytes.as_slice(), 1 << 10, LENGTH_MAX);
        let error = reader.next().await.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_small_frame_shares_its_piece_and_a_large_one_is_not_copied() {
    let large = Bytes::from(vec![1; 100_000]);
    let mut batch = Batch::default();
    batch.add(Frame::data(Bytes::from_static(b"one")));
    batch.add(Frame::data(Bytes::from_static(b"two")));
    batch.add(Frame::data(large.clone()));
    batch.close_piece();
    let mut slices = [std::io::IoSlice::new(&[]); 8];
    assert_eq!(batch.chunks_vectored(&mut slices), 2);
    assert_eq!(slices[1].as_ptr(), large.as_ptr());
    batch.advance(2 * 8 + 5 + 10);
    assert_eq!(batch.chunk().len(), large.len() - 10);
}

fn queue(bytes_max: usize) -> (Queue, Gauge) {
    let gauge = Gauge::default();
    (Queue::new(bytes_max, LENGTH_MAX, gauge.clone()), gauge)
}

fn payload(bytes: usize) -> Frame {
    Frame::data(Bytes::from(vec![0; bytes]))
}

#[tokio::test]
async fn a_queue_is_bounded_in_bytes_until_they_are_written() {
    let (queue, gauge) = queue(10_000);
    assert_eq!(queue.push(payload(LENGTH_MAX + 1)), Err(NotQueued::TooLong));
    for _ in 0..9 {
        queue.push(payload(1_000)).unwrap();
    }
    assert_eq!(queue.push(payload(1_000)), Err(NotQueued::Full));
    // Small ones count what they take up, not nothing.
    let small = std::iter::repeat_with(|| queue.push(payload(0))).take_while(Result::is_ok).count();
    assert_eq!(small, (10_000 - 9 * 1_005) / 5);
    assert_eq!(queue.bytes() as i64, gauge.get());

    let queue = Arc::new(queue);
    let (mut there, mut here) = tokio::io::duplex(100);
    let mut registry = Registry::default();
    let metrics = PeerMetrics::register(&mut registry);
    let writing = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.write_to(&mut there, metrics.lane(PeerLane::Bulk)).await }
    });
    let waiting = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.push_in_time(payload(5_000)).await }
    });
    // Taken from the queue and not written yet, they still count.
    let mut first = [0; 500];
    here.read_exact(&mut first).await.unwrap();
    assert!(queue.bytes() > 9_000);
    let mut rest = vec![0; 9 * 1_005 + small * 5 + 5_005 - first.len()];
    here.read_exact(&mut rest).await.unwrap();
    in_time("there is room", waiting).await.unwrap().unwrap();
    await_until("all is written", || queue.bytes() == 0).await;
    assert_eq!(gauge.get(), 0);
    queue.close();
    in_time("the writer ends", writing).await.unwrap().unwrap();
    assert_eq!(queue.push(payload(1)), Err(NotQueued::Closed));
}

#[tokio::test]
async fn who_waits_for_room_hears_of_the_end() {
    let (queue, gauge) = queue(100);
    let queue = Arc::new(queue);
    queue.push(payload(90)).unwrap();
    let waiting = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.push_in_time(payload(90)).await }
    });
    tick().await;
    assert_eq!(queue.close().len(), 1);
    assert_eq!(in_time("it ends", waiting).await.unwrap(), Err(NotQueued::Closed));
    assert_eq!((queue.bytes(), gauge.get()), (0, 0));
}

#[tokio::test]
async fn a_request_that_was_never_written_is_known_not_to_be_sent() {
    let (queue, _) = queue(1_000);
    let link = Arc::new(Link::new(queue));
    let asked = link.ask(1, Bytes::from_static(b"request")).unwrap();
    link.close();
    assert_eq!(asked.await.unwrap(), Err(AskError::NotSent(NotSent::NoConnection)));
    assert_eq!(link.ask(2, Bytes::new()).unwrap_err(), NotSent::NoConnection);
}

#[test]
fn an_address_has_a_host_and_a_port() {
    for (given, host, port) in [
        ("node1:7234", "node1", 7234),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[::1]:7234", "::1", 7234),
        ("a.b.c.svc.cluster.local:65535", "a.b.c.svc.cluster.local", 65535),
    ] {
        let address: PeerAddress = given.parse().unwrap();
        assert_eq!((address.host(), address.port()), (host, port));
        assert_eq!(address.to_string(), given);
    }
    for given in ["", "node1", ":7234", "node1:", "node1:0", "node1:70000", "a:b:7234", "[]:1"] {
        assert!(given.parse::<PeerAddress>().is_err(), "{given}");
    }
}
