//! Whole nodes as tests start them: few shards, any free ports, a quick end.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use piton_node::config::Config;
use piton_node::{Devices, Node, NodeError};
use piton_raft::Disk;

use crate::client::{Api, GrpcClient};

/// A small node's configuration; its data lies in `directory`, or in a temporary one.
pub(crate) fn config(directory: Option<&Path>) -> Config {
    let mut config = Config::default();
    (config.listen.port, config.listen.http_port) = (0, 0);
    (config.peer.port, config.cluster.bootstrap) = (0, true);
    config.shards.count = Some(2);
    config.admission.stop_ms_max = 500;
    config.data.ephemeral = directory.is_none();
    if let Some(directory) = directory {
        config.data.directory = directory.to_owned();
    }
    config
}

/// A port that is free now, and that nobody is given who asks for any.
pub(crate) fn free_port() -> u16 {
    // Below those that systems draw from for connections.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 20_000).unwrap();
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A node and a connection to it.
pub(crate) struct Running {
    pub(crate) node: Node,
    pub(crate) client: GrpcClient,
}

impl Running {
    pub(crate) async fn start(config: Config) -> Self {
        let node = Node::start(config).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        Self::of(node).await
    }

    pub(crate) async fn start_on(config: Config, disk: Arc<dyn Disk>) -> Result<Self, NodeError> {
        Self::start_with(config, Devices { disk, ..Devices::default() }).await
    }

    pub(crate) async fn start_with(config: Config, devices: Devices) -> Result<Self, NodeError> {
        Ok(Self::of(Node::start_on(config, devices).await?).await)
    }

    async fn of(node: Node) -> Self {
        let client = GrpcClient::connect(node.grpc_address()).await;
        Self { node, client }
    }

    pub(crate) fn api(&self) -> Arc<dyn Api> {
        Arc::new(self.client.clone())
    }

    pub(crate) async fn rebuild_store(self) -> Self {
        let node = self.node.rebuild_store().await;
        Self::of(node.unwrap_or_else(|error| panic!("{}", chain(&error)))).await
    }

    pub(crate) async fn stop(self) {
        self.node.stop().await;
    }
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
