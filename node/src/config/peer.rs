//! `[peer]`: how the nodes of a cluster reach each other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::peer::{PeerAddress, PeerLane, is_loopback};

/// Where other nodes connect, and what is kept for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerConfig {
    pub ip: IpAddr,
    /// 0 takes any free port.
    pub port: u16,
    /// What other nodes are told to connect to, as host:port. Empty: ip and port.
    pub advertised: String,
    /// Files in PEM. All three or none of them.
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
    /// Bytes that wait to be sent to one node, by lane; what is beyond is not queued.
    pub urgent_queue_bytes_max: usize,
    pub entries_queue_bytes_max: usize,
    pub bulk_queue_bytes_max: usize,
    pub calls_queue_bytes_max: usize,
    /// Requests of one node that are being answered at once, and their bytes.
    pub calls_under_way_max: usize,
    pub calls_under_way_bytes_max: usize,
    /// Connections that have not said yet who they are.
    pub handshakes_max: usize,
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 7234,
            advertised: String::new(),
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            ca: PathBuf::new(),
            urgent_queue_bytes_max: 1 << 20,
            entries_queue_bytes_max: 64 << 20,
            bulk_queue_bytes_max: 16 << 20,
            calls_queue_bytes_max: 64 << 20,
            calls_under_way_max: 65_536,
            calls_under_way_bytes_max: 64 << 20,
            handshakes_max: 64,
        }
    }
}

impl PeerConfig {
    pub fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    /// What others are told, where this node listens at `bound`.
    pub(crate) fn told(&self, bound: SocketAddr) -> String {
        if self.advertised.is_empty() { bound.to_string() } else { self.advertised.clone() }
    }

    pub(crate) fn has_tls(&self) -> bool {
        !self.certificate.as_os_str().is_empty()
    }

    pub(crate) fn queue_bytes_max(&self, lane: PeerLane) -> usize {
        match lane {
            PeerLane::Urgent => self.urgent_queue_bytes_max,
            PeerLane::Entries => self.entries_queue_bytes_max,
            PeerLane::Bulk => self.bulk_queue_bytes_max,
            PeerLane::Calls => self.calls_queue_bytes_max,
        }
    }

    /// Checks what cannot be right.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let files = [&self.certificate, &self.key, &self.ca];
        let given = files.iter().filter(|file| !file.as_os_str().is_empty()).count();
        if given != 0 && given != files.len() {
            return Err(ConfigError::Refused(
                "peer.certificate, peer.key and peer.ca must be given together, or none of them",
            ));
        }
        if given == 0 && !is_loopback(self.ip) {
            return Err(ConfigError::PlaintextPeers { ip: self.ip });
        }
        if self.advertised.is_empty() && self.ip.is_unspecified() {
            return Err(ConfigError::Refused(
                "peer.ip stands for all addresses of this machine, of which others are to be told one: \
                 set peer.advertised (--peer-advertised HOST:PORT) to where they reach it",
            ));
        }
        if !self.advertised.is_empty() {
            self.advertised.parse::<PeerAddress>()?;
        }
        let short = PeerLane::ALL.into_iter().find(|&lane| {
            // A frame that fits nowhere would be sent again for ever.
            self.queue_bytes_max(lane) < lane.frame_bytes_max()
        });
        if let Some(lane) = short {
            let least = lane.frame_bytes_max();
            return Err(ConfigError::PeerQueue { lane: lane.name(), least });
        }
        if self.calls_under_way_max == 0
            || self.calls_under_way_bytes_max < PeerLane::Calls.frame_bytes_max()
        {
            return Err(ConfigError::Refused(
                "peer.calls_under_way_max must be at least 1, and peer.calls_under_way_bytes_max at \
                 least 33554432, the largest request",
            ));
        }
        if self.handshakes_max == 0 {
            return Err(ConfigError::Refused("peer.handshakes_max must be at least 1"));
        }
        Ok(())
    }
}
