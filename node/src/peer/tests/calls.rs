//! Requests and answers.

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::super::frame::{Frame, Kind};
use super::super::hello::Hello;
use super::*;

/// Says what it was asked, and by whom, when it is let.
pub(super) struct Echo {
    let_go: watch::Sender<bool>,
    /// What began to be answered, in order.
    begun: Mutex<Vec<Bytes>>,
}

impl Default for Echo {
    fn default() -> Self {
        Echo { let_go: watch::Sender::new(true), begun: Mutex::default() }
    }
}

impl Echo {
    fn holding() -> Arc<Echo> {
        Arc::new(Echo { let_go: watch::Sender::new(false), begun: Mutex::default() })
    }

    fn begun(&self) -> usize {
        self.begun.lock().len()
    }
}

impl Answerer for Echo {
    fn answer(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        self.begun.lock().push(request.clone());
        let mut let_go = self.let_go.subscribe();
        async move {
            let_go.wait_for(|go| *go).await.unwrap();
            match request.as_ref() {
                b"panic" => panic!("told to"),
                b"long" => Bytes::from(vec![0; PeerLane::Calls.frame_bytes_max()]),
                b"large" => Bytes::from(vec![7; 20 << 20]),
                _ => [format!("{from}: ").as_bytes(), &request].concat().into(),
            }
        }
        .boxed()
    }

    fn answer_stranger(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        let answer = [format!("{from} joins: ").as_bytes(), &request].concat();
        async move { answer.into() }.boxed()
    }
}

/// What answers holds a node's whole state, and that holds the network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_has_stopped_keeps_nobody_who_answered() {
    let node = plan(1).start();
    let echo = Echo::holding();
    node.net.answer_with(echo.clone());
    node.net.stop().await;
    assert_eq!(Arc::strong_count(&echo), 1);
}

async fn ask(from: &TestNode, to: NodeId, request: &'static str) -> Result<Bytes, AskError> {
    in_time("an answer", from.net.ask(to, Bytes::from_static(request.as_bytes()), PATIENCE)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_answered_and_a_failure_says_whether_it_arrived() {
    let [one, two] = connected([plan(1), plan(2)]).await;
    let not_taken = Err(AskError::NotSent(NotSent::NotTaken));
    assert_eq!(ask(&one, two.id, "early").await, not_taken);
    two.net.answer_with(Arc::new(Echo::default()));
    assert_eq!(ask(&one, two.id, "hello").await.unwrap(), "0000000000000001: hello");
    assert_eq!(ask(&one, two.id, "large").await.unwrap().len(), 20 << 20);
    // Neither takes the connection along.
    let failed = Err(AskError::Unknown(Unknown::Failed));
    assert_eq!(ask(&one, two.id, "panic").await, failed);
    assert_eq!(ask(&one, two.id, "long").await, failed);
    let too_long = Bytes::from(vec![0; PeerLane::Calls.frame_bytes_max()]);
    let sent = one.net.ask(two.id, too_long, PATIENCE).await;
    assert_eq!(sent, Err(AskError::NotSent(NotSent::TooLong)));
    assert_eq!(ask(&one, NodeId(9), "nobody").await, Err(AskError::NotSent(NotSent::NoConnection)));
    assert_eq!(one.metric("piton_peer_reconnects_total{lane=\"calls\"}"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_come_is_unknown_and_one_nobody_waits_for_is_dropped() {
    let [one, two] = connected([plan(1), plan(2)]).await;
    let echo = Echo::holding();
    two.net.answer_with(echo.clone());
    let limit = Duration::from_millis(20);
    let timed_out = one.net.ask(two.id, Bytes::from_static(b"slow"), limit).await;
    assert_eq!(timed_out, Err(AskError::Unknown(Unknown::Timeout)));
    {
        let dropped = one.net.ask(two.id, Bytes::from_static(b"dropped"), PATIENCE);
        tokio::pin!(dropped);
        assert!(futures::poll!(dropped.as_mut()).is_pending());
        await_until("it arrives", || echo.begun() == 2).await;
    }
    let broken = tokio::spawn({
        let request = Bytes::from_static(b"broken");
        let (net, to) = (Arc::new(one), two.id);
        async move { (net.net.ask(to, request, PATIENCE).await, net) }
    });
    await_until("all are being answered", || echo.begun() == 3).await;
    two.net.stop().await;
    let (answer, one) = in_time("it ends", broken).await.unwrap();
    assert_eq!(answer, Err(AskError::Unknown(Unknown::Broke)));
    // Nobody is left to answer, and that is known at once.
    await_until("the member is not reached", || {
        let again = one.net.ask(two.id, Bytes::new(), PATIENCE).now_or_never();
        again == Some(Err(AskError::NotSent(NotSent::NoConnection)))
    })
    .await;
    echo.let_go.send_replace(true);
    let under_way = || two.metric("piton_peer_calls_under_way");
    await_until("nothing is under way", || under_way() == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_one_node_are_begun_in_the_order_they_were_sent() {
    let [one, two] = connected([plan(1), plan(2)]).await;
    let echo = Echo::holding();
    two.net.answer_with(echo.clone());
    let request = |number: usize| Bytes::from(number.to_string());
    let asked: futures::stream::FuturesOrdered<_> =
        (0..2_000).map(|number| one.net.ask(two.id, request(number), PATIENCE)).collect();
    let answers = tokio::join!(futures::StreamExt::collect::<Vec<_>>(asked), async {
        await_until("all are begun, and none is answered", || echo.begun() == 2_000).await;
        echo.let_go.send_replace(true);
    })
    .0;
    let begun = echo.begun.lock();
    assert!(begun.iter().enumerate().all(|(number, begun)| *begun == request(number)));
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), format!("0000000000000001: {number}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_peer_are_bounded_in_count_and_bytes_whatever_connections_it_makes() {
    use super::handshake::{greet, hello, write};
    let mut plan = plan(1);
    (plan.config.calls_under_way_max, plan.config.calls_under_way_bytes_max) = (10, 32 << 20);
    let node = plan.start();
    node.knows(&[(NodeId(2), "127.0.0.1:1".parse().unwrap())]);
    let echo = Echo::holding();
    node.net.answer_with(echo.clone());
    let not_taken = async |epoch: u64, request: Bytes| {
        let lane = PeerLane::Calls.number() as u32;
        let (mut stream, _) = greet(&node, &Hello { lane, epoch, ..hello() }).await;
        for number in 0..12 {
            write(&mut stream, Frame::numbered(Kind::Request, number, request.clone())).await;
        }
        let mut reader = super::super::frame::FrameReader::new(stream, 100, 100);
        let mut numbers = Vec::new();
        loop {
            let frame = in_time("what is too much is refused", reader.next()).await.unwrap();
            assert_eq!(frame.kind, Kind::NotTaken);
            numbers.push(frame.number);
            if frame.number == 11 {
                return numbers;
            }
        }
    };
    assert_eq!(not_taken(1, Bytes::from_static(b"small")).await, [10, 11]);
    // Another connection of the same peer has no more.
    assert_eq!(not_taken(2, Bytes::from_static(b"small")).await, (0..12).collect::<Vec<_>>());
    assert_eq!(node.metric("piton_peer_calls_under_way"), 10.0);
    echo.let_go.send_replace(true);
    await_until("all are done", || node.metric("piton_peer_calls_under_way") == 0.0).await;
    echo.let_go.send_replace(false);
    // Bytes are counted, too: three of ten MiB fit.
    let large = Bytes::from(vec![0; 10 << 20]);
    assert_eq!(not_taken(3, large).await, (3..12).collect::<Vec<_>>());
}
