//! A link between two nodes that can be slowed, stopped and cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a link does at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Link {
    /// Carries all, as fast as it comes.
    Open,
    /// Carries so many bytes a second on each connection, each way.
    Slow(usize),
    /// Carries nothing, and says nothing: a partition.
    Silent,
}

/// Stands before one node.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    link: Arc<watch::Sender<Link>>,
    cut: Arc<watch::Sender<()>>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(super) async fn before(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (link, cut) =
            (Arc::new(watch::Sender::new(Link::Open)), Arc::new(watch::Sender::new(())));
        let accepting = tokio::spawn({
            let (link, cut) = (Arc::clone(&link), Arc::clone(&cut));
            async move {
                while let Ok((from, _)) = listener.accept().await {
                    let (link, mut cut) = (link.subscribe(), cut.subscribe());
                    tokio::spawn(async move {
                        let Ok(to) = TcpStream::connect(target).await else { return };
                        from.set_nodelay(true).unwrap();
                        to.set_nodelay(true).unwrap();
                        let ((from_r, from_w), (to_r, to_w)) = (from.into_split(), to.into_split());
                        tokio::select! {
                            () = carry(from_r, to_w, link.clone()) => {}
                            () = carry(to_r, from_w, link) => {}
                            _ = cut.changed() => {}
                        }
                    });
                }
            }
        });
        Proxy { address, link, cut, accepting: Some(accepting) }
    }

    pub(super) fn set(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// Ends all connections that there are.
    pub(super) fn cut(&self) {
        self.cut.send_replace(());
    }

    /// Takes no more connections: they are refused.
    pub(super) async fn refuse(&mut self) {
        let accepting = self.accepting.take().unwrap();
        accepting.abort();
        let _ = accepting.await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
        self.cut();
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut link: watch::Receiver<Link>) {
    const TICK: Duration = Duration::from_millis(5);
    let mut bytes = vec![0; 64 << 10];
    let mut ticks = tokio::time::interval(TICK);
    let mut left = 0;
    loop {
        let now = *link.borrow_and_update();
        let room = match now {
            Link::Open => bytes.len(),
            Link::Silent => {
                let _ = link.changed().await;
                continue;
            }
            Link::Slow(rate) if left == 0 => {
                ticks.tick().await;
                left = rate / 200;
                continue;
            }
            Link::Slow(_) => left.min(bytes.len()),
        };
        let read = tokio::select! {
            read = from.read(&mut bytes[..room]) => read,
            _ = link.changed() => continue,
        };
        let Ok(read @ 1..) = read else { return };
        left = left.saturating_sub(read);
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
