//! Connections that misbehave: they lose their own requests at most, and a poll that nobody waits
//! for any more takes no task with it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use piton_proto::common::{Payload, Payloads};
use piton_proto::workflowservice::GetWorkflowExecutionHistoryRequest;
use tonic::Code;
use tonic::codec::CompressionEncoding;

use crate::client::{Api, GrpcClient, NAMESPACE, execution, signal_of, soon, start_of};
use crate::nodes::{Running, config};
use crate::worker::{await_until, complete};

/// Far below a workflow task's timeout, after which a swallowed task comes back.
const AT_ONCE: Duration = Duration::from_secs(5);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Starts a workflow and sees it through; fails when anything of that takes long.
async fn check_serves(api: &dyn Api, workflow_id: &str) {
    let began = Instant::now();
    api.start(start_of(workflow_id, "simple", workflow_id)).await.unwrap();
    let task = api.poll_workflow_task(workflow_id).await.unwrap();
    assert_eq!(task.attempt, 1);
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    assert!(began.elapsed() < AT_ONCE, "{workflow_id} took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_send_nonsense_or_nothing_do_not_hurt_others() {
    let running = Running::start(config(None)).await;
    let (api, address) = (running.api(), running.node.grpc_address());
    let waiting = tokio::spawn({
        let api = api.clone();
        async move { api.poll_workflow_task("waited-for").await }
    });
    // Kept open to the end: half-open, or stopped in the middle of something.
    let mut open: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    let frame_of_16_mebibytes = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    let frame_of_unknown_stream = [0, 0, 4, 0, 0, 0, 0, 0, 7, 1, 2, 3, 4];
    for (number, bytes) in [
        &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        &[0; 64],
        &PREFACE[..7],
        PREFACE,
        &[PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &frame_of_16_mebibytes].concat(),
        &[PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &frame_of_unknown_stream].concat(),
    ]
    .into_iter()
    .enumerate()
    {
        // The node may have closed a connection that spoke nonsense before.
        let _ = open[number].write_all(bytes);
    }
    check_serves(api.as_ref(), "beside-nonsense").await;

    // More than a message may have, on the connection that the poll waits on.
    let mut signal = signal_of("w", "large");
    let data = vec![0; 6 << 20].into();
    signal.input = Some(Payloads { payloads: vec![Payload { data, ..Payload::default() }] });
    let refused = running.client.service().signal_workflow_execution(soon(signal)).await;
    assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    assert!(!waiting.is_finished(), "the poll beside it was hurt");
    api.start(start_of("waited-for", "simple", "waited-for")).await.unwrap();
    let task = waiting.await.unwrap().unwrap();
    assert!(!task.task_token.is_empty());
    drop(open);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_whose_client_vanishes_does_not_swallow_a_task() {
    let running = Running::start(config(None)).await;
    let (api, address) = (running.api(), running.node.grpc_address());
    for round in 0..30_u32 {
        let queue = format!("queue-{round}");
        // The whole connection goes, or the one call.
        let client = GrpcClient::connect(address).await;
        let poll = tokio::spawn({
            let (client, queue) = (client.clone(), queue.clone());
            async move { client.poll_workflow_task(&queue).await }
        });
        if round % 3 != 0 {
            await_poller(&running, &queue).await;
        }
        // While the task is on its way, more or less.
        let start = tokio::spawn({
            let (api, queue) = (api.clone(), queue.clone());
            async move { api.start(start_of(&queue, "simple", &queue)).await }
        });
        for _ in 0..round * 3 {
            tokio::task::yield_now().await;
        }
        poll.abort();
        drop(client);
        let taken = poll.await.is_ok();
        start.await.unwrap().unwrap();
        if taken {
            continue;
        }
        let began = Instant::now();
        let task = api.poll_workflow_task(&queue).await.unwrap();
        assert!(!task.task_token.is_empty(), "round {round}: the task is lost");
        assert!(began.elapsed() < AT_ONCE, "round {round}: it came after {:?}", began.elapsed());
        api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    }
    running.stop().await;
}

/// Waits until a queue shows a poller.
async fn await_poller(running: &Running, queue: &str) {
    use piton_proto::workflowservice::DescribeTaskQueueRequest;
    await_until("the poll waits", || async {
        let request = DescribeTaskQueueRequest {
            namespace: crate::client::NAMESPACE.to_owned(),
            task_queue: Some(crate::client::task_queue(queue)),
            ..DescribeTaskQueueRequest::default()
        };
        let described = running.client.service().describe_task_queue(soon(request)).await;
        (!described.unwrap().into_inner().pollers.is_empty()).then_some(())
    })
    .await;
}

/// Carries bytes between a client and the node until it is told to carry nothing more, without
/// either side hearing of it: a cable that is pulled.
struct Cable {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl Cable {
    fn to(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let is_cut = Arc::new(AtomicBool::new(false));
        let cut = Arc::clone(&is_cut);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(node).unwrap();
                for (from, to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    let cut = Arc::clone(&cut);
                    std::thread::spawn(move || carry(from, to, &cut));
                }
            }
        });
        Self { address, is_cut }
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }
}

/// What arrives after the cut is swallowed; the streams stay open.
fn carry(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        let is_cut = cut.load(Ordering::SeqCst);
        if count == 0 && !is_cut {
            return;
        }
        if count == 0 || (!is_cut && to.write_all(&buffer[..count]).is_err()) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_sent_into_a_dead_connection_comes_back_by_its_timeout() {
    let running = Running::start(config(None)).await;
    let api = running.api();
    let cable = Cable::to(running.node.grpc_address());
    let far = GrpcClient::connect(cable.address).await;
    let poll = tokio::spawn(async move { far.poll_workflow_task("far").await });
    await_poller(&running, "far").await;
    cable.cut();
    let mut start = start_of("far", "simple", "far");
    start.workflow_task_timeout = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    api.start(start).await.unwrap();
    check_serves(api.as_ref(), "beside-it").await;
    let task = api.poll_workflow_task("far").await.unwrap();
    assert!(!task.task_token.is_empty());
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    poll.abort();
    running.stop().await;
}

/// Histories are long: a worker that takes answers compressed gets them so, and no other does.
#[tokio::test(flavor = "multi_thread")]
async fn answers_are_compressed_for_clients_that_take_them_so() {
    let running = Running::start(config(None)).await;
    let mut start = start_of("w", "simple", "q");
    let payload = Payload { data: vec![b'x'; 10_000].into(), ..Payload::default() };
    start.input = Some(Payloads { payloads: vec![payload] });
    running.api().start(start).await.unwrap();
    for takes in [false, true] {
        let mut service = running.client.service();
        if takes {
            service = service.accept_compressed(CompressionEncoding::Gzip);
        }
        let request = GetWorkflowExecutionHistoryRequest {
            namespace: NAMESPACE.to_owned(),
            execution: Some(execution("w")),
            ..GetWorkflowExecutionHistoryRequest::default()
        };
        let answer = service.get_workflow_execution_history(soon(request)).await.unwrap();
        let encoding = answer.metadata().get("grpc-encoding").map(|value| value.as_bytes());
        assert_eq!(encoding, takes.then_some(&b"gzip"[..]));
        assert_eq!(answer.into_inner().history.unwrap().events.len(), 2);
    }
    running.stop().await;
}
