//! A node of a release that is one feature level ahead of this one, for tests of rolling upgrades: it
//! passes for it, and knows an entry and a record of a version more.
//!
//! Its configuration is read from the file that is named. It says `ready`, and stops when standard input ends.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, bail};
use piton_node::Node;
use piton_node::config::Config;

fn main() -> anyhow::Result<()> {
    let file = std::env::args_os().nth(1).context("the file of a node's configuration")?;
    piton_shard::pass_for_next_release();
    let config = Config::read(Path::new(&file))?;
    piton_node::init_tracing(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(run(config));
    // Whoever reads standard input may do so for ever.
    runtime.shutdown_background();
    ended
}

async fn run(config: Config) -> anyhow::Result<()> {
    let node = Node::start(config).await?;
    writeln!(io::stdout(), "ready")?;
    let ended = tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink()));
    tokio::select! {
        failure = node.failed() => bail!("{failure:?}"),
        _ = ended => node.stop().await,
    }
    Ok(())
}
