//! Takes connections of other nodes, and lets in who belongs here. Whoever can reach the port can
//! make it work, so what has not said who it is has little time, and little room: there are so many
//! unfinished handshakes at most, and a further one takes the place of the oldest, which is the one
//! least likely to end well.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::hello::{self, Hello, HelloError, Refusal, Welcome};
use super::inbound;
use super::join;
use super::lane::PeerLane;
use super::member::PASSING;
use super::net::Shared;
use super::tls::{self, Stream};

/// A process without a free file handle tries again after this time.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Refusals of which it is remembered that they were logged.
const LOGGED_MAX: usize = 1_000;

/// Handshakes under way, the oldest first.
#[derive(Default)]
struct Unfinished {
    handshakes: Mutex<BTreeMap<u64, AbortHandle>>,
}

/// Takes connections, until it is aborted.
pub(super) async fn accept(net: Arc<Shared>, listener: TcpListener) {
    let unfinished = Arc::new(Unfinished::default());
    let _all = EndAll(Arc::clone(&unfinished));
    for number in 0_u64.. {
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if is_news(&net, &format!("accept {error}"), Duration::ZERO) {
                    tracing::warn!(%error, "other nodes cannot be let in");
                }
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let mut handshakes = unfinished.handshakes.lock();
        if handshakes.len() >= net.config.handshakes_max
            && let Some((_, oldest)) = handshakes.pop_first()
        {
            oldest.abort();
            refuse(&net, from, "handshakes_max", "too many handshakes at once");
        }
        // ORDER: under the lock, so that it is in the list before it can take itself off.
        let task = tokio::spawn({
            let (net, done) = (Arc::clone(&net), Done(Arc::clone(&unfinished), number));
            async move {
                let _done = done;
                greet_in_time(&net, tcp, from).await;
            }
        });
        handshakes.insert(number, task.abort_handle());
    }
}

/// A handshake that has ended, whichever way.
struct Done(Arc<Unfinished>, u64);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.handshakes.lock().remove(&self.1);
    }
}

struct EndAll(Arc<Unfinished>);

impl Drop for EndAll {
    fn drop(&mut self) {
        let handshakes = std::mem::take(&mut *self.0.handshakes.lock());
        handshakes.values().for_each(AbortHandle::abort);
    }
}

async fn greet_in_time(net: &Arc<Shared>, tcp: TcpStream, from: SocketAddr) {
    let greeted = greet(net, tcp);
    let (kind, reason) = match tokio::time::timeout(net.timing.handshake_max, greeted).await {
        Ok(Ok(())) => return,
        Ok(Err(NotGreeted::Refused(refusal))) => (refusal.kind(), refusal.to_string()),
        Ok(Err(NotGreeted::Insecure(error))) => ("insecure", error.to_string()),
        Ok(Err(NotGreeted::Hello(error))) => ("no_hello", error.to_string()),
        Err(_) => ("timeout", "it did not say who it is in time".to_owned()),
    };
    refuse(net, from, kind, &reason);
}

/// Counts a refusal, and logs it if it is news.
fn refuse(net: &Shared, from: SocketAddr, kind: &'static str, reason: &str) {
    net.metrics.refused(kind);
    let address = from.ip();
    tracing::debug!(%address, kind, reason, "a connection of another node was refused");
    // A node that has just joined calls those who have not heard of it yet.
    let lasting = if kind == Refusal::NOT_MEMBER { PASSING } else { Duration::ZERO };
    // By address and not by port, which each attempt has another of.
    if is_news(net, &format!("{address} {kind} {reason}"), lasting) {
        tracing::warn!(%address, kind, reason, "connections of another node are refused");
    }
}

/// Whether this was not logged yet, and has come for so long.
fn is_news(net: &Shared, refusal: &str, lasting: Duration) -> bool {
    let mut seen = net.refused.lock();
    if seen.len() >= LOGGED_MAX && !seen.contains_key(refusal) {
        return false;
    }
    let (since, is_logged) = seen.entry(refusal.to_owned()).or_insert((Instant::now(), false));
    !*is_logged && since.elapsed() >= lasting && !std::mem::replace(is_logged, true)
}

/// Why a connection was not let in.
enum NotGreeted {
    Insecure(io::Error),
    Hello(HelloError),
    Refused(Refusal),
}

impl From<io::Error> for NotGreeted {
    fn from(error: io::Error) -> Self {
        Self::Hello(error.into())
    }
}

async fn greet(net: &Arc<Shared>, tcp: TcpStream) -> Result<(), NotGreeted> {
    tls::tune(&tcp)?;
    let mut stream = net.security.accept(tcp).await.map_err(NotGreeted::Insecure)?;
    let hello: Hello = hello::read(&mut stream).await.map_err(NotGreeted::Hello)?;
    let let_in = match hello.check(&net.here) {
        Ok((version, _)) if hello.stranger => join::let_in(net, version, &mut stream).await,
        Ok((version, lane)) => return admit(net, &hello, version, lane, stream).await,
        Err(refusal) => Err(refusal.into()),
    };
    match let_in {
        Ok(permit) => {
            join::serve(net, &hello, stream, permit);
            Ok(())
        }
        Err(error) => Err(say(net, stream, error).await),
    }
}

/// Lets a member's connection in, once all that it replaces have ended.
async fn admit(
    net: &Arc<Shared>,
    hello: &Hello,
    version: u32,
    lane: PeerLane,
    mut stream: Stream,
) -> Result<(), NotGreeted> {
    let (node, here) = (hello.node(), net.here.node);
    let not_member = || {
        let is_removed = net.removed.read().contains(&node);
        if is_removed { Refusal::Removed { node } } else { Refusal::NotMember { node, here } }
    };
    let Some(member) = net.member(node) else {
        return Err(say(net, stream, not_member().into()).await);
    };
    let mut inbound = member.inbound.lock().await;
    if let Err(refusal) = inbound.admit(hello, lane).await {
        drop(inbound);
        return Err(say(net, stream, refusal.into()).await);
    }
    // ORDER: under the lock. Who is removed from now on is closed after this.
    if !net.is_member(&member) {
        drop(inbound);
        return Err(say(net, stream, not_member().into()).await);
    }
    hello::write(&mut stream, &welcome(net, version)).await?;
    member.says(&hello.address);
    inbound.keep(lane, inbound::serve(net, &member, lane, stream));
    Ok(())
}

pub(super) fn welcome(net: &Shared, version: u32) -> Welcome {
    Welcome {
        version,
        cluster: net.here.cluster.clone(),
        node: net.here.node.0,
        feature_level: net.feature_level,
        unix_nanos: (net.unix_nanos)(),
        ..Welcome::default()
    }
}

/// Tells the other side why it is refused, which its operator will want to know.
async fn say(net: &Shared, mut stream: Stream, why: NotGreeted) -> NotGreeted {
    if let NotGreeted::Refused(refusal) = &why {
        let (text, kind) = (refusal.to_string(), refusal.kind().to_owned());
        let refused = Welcome { refusal: text, refusal_kind: kind, ..welcome(net, 0) };
        // A side that is gone need not be told.
        if hello::write(&mut stream, &refused).await.is_ok() {
            let _ = stream.shutdown().await;
        }
    }
    why
}

impl From<Refusal> for NotGreeted {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
