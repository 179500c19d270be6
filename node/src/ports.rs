//! Takes the ports of a node, before anything else of it is touched.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use crate::config::{Config, PeerConfig};
use crate::node::NodeError;
use crate::peer::{self, PeerError};

/// Where a node's API and its pages are.
pub(crate) type Addresses = (SocketAddr, SocketAddr);

/// The ports of a node, taken.
pub(crate) struct Listeners {
    /// ORDER: listened on once the node is ready. Clients are refused until then, and go elsewhere; where
    /// nobody takes their connections, they would wait.
    pub(crate) grpc: TcpSocket,
    pub(crate) http: TcpListener,
}

/// More connections than come at once.
const BACKLOG: u32 = 1_024;

impl Listeners {
    pub(crate) fn bind(config: &Config) -> Result<Self, NodeError> {
        let (grpc, http) = (config.listen.grpc(), config.listen.http());
        Ok(Self { grpc: GRPC.bind(grpc)?, http: HTTP.listen(HTTP.bind(http)?, http)? })
    }

    /// With the ports that the system chose where 0 was asked for.
    pub(crate) fn addresses(&self, config: &Config) -> Addresses {
        let grpc = self.grpc.local_addr().unwrap_or(config.listen.grpc());
        (grpc, self.http.local_addr().unwrap_or(config.listen.http()))
    }
}

/// What a port is for.
pub(crate) struct Port {
    what: &'static str,
    flag: &'static str,
}

pub(crate) const GRPC: Port = Port { what: "gRPC", flag: "--port" };
const HTTP: Port = Port { what: "HTTP", flag: "--http-port" };

impl Port {
    fn bind(&self, address: SocketAddr) -> Result<TcpSocket, NodeError> {
        let bind = || -> std::io::Result<TcpSocket> {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // As a listener has it: the last connections of an older process may still be known.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(socket)
        };
        bind().map_err(|source| self.error(address, source))
    }

    pub(crate) fn listen(
        &self,
        socket: TcpSocket,
        address: SocketAddr,
    ) -> Result<TcpListener, NodeError> {
        socket.listen(BACKLOG).map_err(|source| self.error(address, source))
    }

    fn error(&self, address: SocketAddr, source: std::io::Error) -> NodeError {
        let &Self { what, flag } = self;
        match source.kind() {
            std::io::ErrorKind::AddrInUse => NodeError::PortTaken { what, address, flag },
            _ => NodeError::Listen { what, address, source },
        }
    }
}

/// Where any free port will do, it is the one that the node had before, where others look for it.
pub(crate) fn listen_for_peers(
    config: &Config,
    kept: Option<u16>,
) -> Result<std::net::TcpListener, NodeError> {
    let asked = &config.peer;
    if let Some(port) = kept.filter(|_| asked.port == 0) {
        match peer::listen(&PeerConfig { port, ..asked.clone() }) {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                tracing::warn!(port, %error, "the port that other nodes know is taken; another is used");
            }
        }
    }
    peer::listen(asked).map_err(|error| match error {
        PeerError::Listen { address, source } if source.kind() == std::io::ErrorKind::AddrInUse => {
            NodeError::PortTaken { what: "other nodes", address, flag: "--peer-port" }
        }
        error => error.into(),
    })
}
