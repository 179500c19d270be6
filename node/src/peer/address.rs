//! Where a node is reached: a host, by name or number, and a port.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::config::ConfigError;

/// `host:port`; the name is looked up at each attempt to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Without the brackets around an IPv6 address.
    host: String,
    port: u16,
}

impl PeerAddress {
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl FromStr for PeerAddress {
    type Err = ConfigError;

    fn from_str(given: &str) -> Result<Self, ConfigError> {
        let malformed = || ConfigError::Malformed { given: given.to_owned(), form: "host:port" };
        let (host, port) = given.rsplit_once(':').ok_or_else(malformed)?;
        let port = port.parse().ok().filter(|&port| port != 0).ok_or_else(malformed)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if bare.is_empty() || bare.contains(':') && bare.parse::<Ipv6Addr>().is_err() {
            return Err(malformed());
        }
        Ok(Self { host: bare.to_owned(), port })
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
