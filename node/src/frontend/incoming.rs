//! Connections as they come in. What the system refuses for now (too few file handles, too little
//! memory) is said and tried again: the port never ends by it, nor turns in circles.

use std::io;
use std::time::Duration;

use futures::{Stream, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// After the system refused.
const PAUSE: Duration = Duration::from_secs(1);

/// The connections of a listener; never an error.
pub(super) fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::unfold(listener, async |listener| Some((Ok(next(&listener).await), listener)))
}

async fn next(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                // A small answer leaves at once instead of waiting for more to fill a packet.
                if let Err(error) = connection.set_nodelay(true) {
                    tracing::debug!(%error, "a connection has gone already");
                }
                return connection;
            }
            Err(error) if is_of_one(&error) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted for now");
                tokio::time::sleep_until(Instant::now() + PAUSE).await;
            }
        }
    }
}

/// Whether only the connection failed that was to be accepted.
fn is_of_one(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
