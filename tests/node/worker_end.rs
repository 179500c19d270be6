//! How a worker ends: what it gives up at once hurts none of its other calls, and its polls of every
//! kind end with it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use piton_proto::enums::TaskQueueType;
use piton_proto::workflowservice::{
    DescribeTaskQueueRequest, PollNexusTaskQueueRequest, PollNexusTaskQueueResponse,
    ShutdownWorkerRequest,
};
use tonic::{Code, Status};

use crate::client::{NAMESPACE, Service, soon, task_queue, within};
use crate::nodes::{Running, config};
use crate::refusal::check_refused;
use crate::worker::await_until;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 connection, frame by frame: no client library puts so many frames into one packet.
struct Frames(TcpStream);

impl Frames {
    fn to(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
        Self(stream)
    }

    /// The type and the stream of the next frame; `None` at the connection's end.
    fn next(&mut self) -> Option<(u8, u32)> {
        let mut head = [0; 9];
        match self.0.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no frame came"),
            Err(_) => return None,
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        self.0.read_exact(&mut vec![0; length as usize]).ok()?;
        Some((head[3], stream))
    }

    /// Whether the call of this stream is answered before the connection ends.
    fn is_answered(&mut self, stream: u32) -> bool {
        loop {
            match self.next() {
                None | Some((GOAWAY, _)) => return false,
                Some((HEADERS, answered)) if answered == stream => return true,
                Some(_) => {}
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// The headers of a call of GetSystemInfo: literals that no table keeps (RFC 7541, 6.2.2).
fn call(stream: u32) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/temporal.api.workflowservice.v1.WorkflowService/GetSystemInfo"),
        (":authority", "piton"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let block: Vec<u8> = fields
        .iter()
        .flat_map(|(name, value)| [vec![0], text(name), text(value)].concat())
        .collect();
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// An empty message, and the end of the request.
fn message(stream: u32) -> Vec<u8> {
    frame(DATA, END_STREAM, stream, &[0; 5])
}

fn give_up(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// Calls that are made and given up, in one piece; the last stream's number.
fn given_up(count: u32, first: u32) -> (Vec<u8>, u32) {
    let streams = (0..count).map(|number| first + 2 * number);
    (
        streams.flat_map(|stream| [call(stream), give_up(stream)].concat()).collect(),
        first + 2 * count,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_gives_up_a_hundred_calls_at_once_keeps_its_others() {
    let running = Running::start(config(None)).await;
    let address = running.node.grpc_address();
    let answered = tokio::task::spawn_blocking(move || {
        let mut frames = Frames::to(address);
        let (calls, next) = given_up(100, 3);
        // Made before, and finished after.
        frames.0.write_all(&[call(1), calls, message(1)].concat()).unwrap();
        let before = frames.is_answered(1);
        frames.0.write_all(&[call(next), message(next)].concat()).unwrap();
        (before, frames.is_answered(next))
    });
    assert_eq!(answered.await.unwrap(), (true, true));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_that_are_given_up_ends_its_connection() {
    let running = Running::start(config(None)).await;
    let address = running.node.grpc_address();
    let ended = tokio::task::spawn_blocking(move || {
        let mut frames = Frames::to(address);
        let mut first = 1;
        for _ in 0..50 {
            let (calls, next) = given_up(20_000, first);
            first = next;
            if frames.0.write_all(&calls).is_err() {
                return true;
            }
        }
        frames.0.write_all(&[call(first), message(first)].concat()).is_err()
            || !frames.is_answered(first)
    });
    assert!(ended.await.unwrap(), "a million calls were taken");
    running.client.service().get_system_info(soon(Default::default())).await.unwrap();
    running.stop().await;
}

async fn poll_nexus(
    mut service: Service,
    time: Duration,
    worker_instance_key: &'static str,
) -> Result<PollNexusTaskQueueResponse, Status> {
    let request = PollNexusTaskQueueRequest {
        namespace: NAMESPACE.to_owned(),
        task_queue: Some(task_queue("nexus")),
        identity: worker_instance_key.to_owned(),
        worker_instance_key: worker_instance_key.to_owned(),
        ..PollNexusTaskQueueRequest::default()
    };
    Ok(service.poll_nexus_task_queue(within(time, request)).await?.into_inner())
}

fn shut_down(worker_instance_key: &str, types: Vec<i32>) -> ShutdownWorkerRequest {
    ShutdownWorkerRequest {
        namespace: NAMESPACE.to_owned(),
        task_queue: "nexus".to_owned(),
        task_queue_types: types,
        worker_instance_key: worker_instance_key.to_owned(),
        ..ShutdownWorkerRequest::default()
    }
}

/// Official server 1.32.1: held for its time, ended by ShutdownWorker (which may leave the types of
/// the queues out), refused with less than two seconds to go.
#[tokio::test(flavor = "multi_thread")]
async fn a_nexus_poll_is_held_and_ends_with_its_worker() {
    let running = Running::start(config(None)).await;
    let mut service = running.client.service();
    let hurried = service.poll_nexus_task_queue(within(
        Duration::from_millis(1_500),
        PollNexusTaskQueueRequest { namespace: NAMESPACE.to_owned(), ..Default::default() },
    ));
    check_refused("hurried", hurried.await, Code::FailedPrecondition, "", "timeout is too short");
    let began = Instant::now();
    let empty = poll_nexus(service.clone(), Duration::from_millis(2_500), "other").await.unwrap();
    assert_eq!(empty, PollNexusTaskQueueResponse::default());
    assert!(began.elapsed() > Duration::from_secs(1), "it was not held");

    for (worker, types) in [("says", vec![TaskQueueType::Nexus as i32]), ("does not", Vec::new())] {
        let time = Duration::from_secs(60);
        let waiting = tokio::spawn(poll_nexus(service.clone(), time, worker));
        await_until("the poll waits", || async {
            let request = DescribeTaskQueueRequest {
                namespace: NAMESPACE.to_owned(),
                task_queue: Some(task_queue("nexus")),
                task_queue_type: TaskQueueType::Nexus.into(),
                ..DescribeTaskQueueRequest::default()
            };
            let described = running.client.service().describe_task_queue(soon(request)).await;
            let pollers = described.unwrap().into_inner().pollers;
            pollers.iter().any(|poller| poller.identity == worker).then_some(())
        })
        .await;
        assert!(!waiting.is_finished(), "the poll was not held");
        service.shutdown_worker(soon(shut_down(worker, types))).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(10), waiting).await;
        let answer = answer.expect("a poll ends with its worker").unwrap().unwrap();
        assert_eq!(answer, PollNexusTaskQueueResponse::default());
    }
    running.stop().await;
}
