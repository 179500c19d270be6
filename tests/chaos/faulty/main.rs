//! A node on a disk and with a clock that fail as the tool wants: what was not synced is lost when the
//! process is killed, as in a power cut, and the wall clock is set while it runs or before it starts.
//! The shipped binary knows nothing of this; all else of the node is the same.

mod clock;
mod disk;

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use piton_node::config::Config;
use piton_node::{Devices, Failure, Node, init_tracing};
use tokio::signal::unix::{SignalKind, signal};

/// Those flags of `piton server` that the tool gives.
#[derive(Parser)]
enum Command {
    Server {
        #[arg(long)]
        config: PathBuf,
        #[arg(long)]
        bootstrap: bool,
        #[arg(long)]
        join: Vec<String>,
        #[arg(long)]
        shards: Option<u32>,
    },
}

fn main() -> anyhow::Result<()> {
    let Command::Server { config: file, bootstrap, join, shards } = Command::parse();
    let mut config = Config::read(&file)?;
    config.cluster.bootstrap |= bootstrap;
    config.cluster.join.extend(join);
    config.shards.count = shards.or(config.shards.count);
    init_tracing(&config.log);
    piton_node::raise_file_handle_limit();
    clock::follow(file.with_file_name("clock"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let disk = std::sync::Arc::new(disk::LossyDisk::default());
    let devices = Devices { disk, clock: clock::start, ..Devices::default() };
    let mut node = tokio::select! {
        node = Node::start_on(config, devices) => node?,
        _ = terminate.recv() => return Ok(()),
    };
    loop {
        tokio::select! {
            failure = node.failed() => match failure {
                Failure::Store(reason) => {
                    tracing::error!(reason, "the store failed and is rebuilt from the log");
                    node = node.rebuild_store().await?;
                }
                other => anyhow::bail!("stopped: {other:?}"),
            },
            _ = terminate.recv() => break,
        }
    }
    node.stop().await;
    Ok(())
}
