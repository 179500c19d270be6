//! All that asks something of the cluster during a run.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use piton_tests::audit::Broken;
use piton_tests::orders::Code;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Options;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::figures::Placement;
use crate::orders::{Driver, Pace, SDK_QUEUE};
use crate::probes;
use crate::registers::{self, Checked};
use crate::worker::Worker;

/// What an attempt of an activity may take, and a workflow task.
const ATTEMPT: Duration = Duration::from_millis(1_500);
const WORKFLOW_TASK: Duration = Duration::from_secs(3);
/// Queues of different shards.
const QUEUES: u64 = 3;
const POLLERS_AT_EACH_NODE: usize = 2;
const REGISTERS: usize = 2;

/// One of those that our workers poll.
pub(crate) fn queue_name(number: u64) -> String {
    format!("orders-{}", number % QUEUES)
}

pub(crate) struct Load {
    stop: watch::Sender<bool>,
    /// Those that begin something.
    asking: JoinSet<()>,
    registers: JoinSet<Checked>,
    workers: Workers,
}

/// They end when this is dropped.
pub(crate) struct Workers {
    _ours: JoinSet<()>,
    sdk: Vec<Child>,
}

impl Workers {
    /// SDK workers that ended, though they go on when a node is away.
    pub(crate) fn ended(&mut self) -> Vec<Broken> {
        let ended = self.sdk.iter_mut().enumerate().filter_map(|(node, worker)| {
            let status = worker.try_wait().ok()??;
            Some(Broken::new(format!("the SDK's worker of node {node} ended: {status}")))
        });
        ended.collect()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.sdk {
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}

/// One for each node, which it alone knows.
fn start_sdk(python: &Path, cluster: &Cluster, directory: &Path) -> Result<Vec<Child>> {
    let script = directory.join("worker.py");
    fs::write(&script, include_str!("../worker.py"))?;
    let start = |node| {
        let log = File::create(directory.join(format!("sdk-worker-{node}.log")))?;
        let address = format!("127.0.0.1:{}", cluster.api_port(node));
        let mut command = Command::new(python);
        command.arg("-B").arg(&script).args([&address, SDK_QUEUE]).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("start {}", python.display()))
    };
    (0..cluster.len()).map(start).collect()
}

impl Load {
    pub(crate) async fn begin(
        options: &Options,
        cluster: &Cluster,
        client: &Client,
        placement: &Placement,
    ) -> Result<Load> {
        let mut random = SmallRng::seed_from_u64(options.seed);
        let (stop, stopped) = watch::channel(false);
        let (mut asking, mut registers, mut workers) =
            (JoinSet::new(), JoinSet::new(), JoinSet::new());
        let code = |queue: u64| Code {
            queue: queue_name(queue),
            attempt: ATTEMPT,
            workflow_task: WORKFLOW_TASK,
        };
        for queue in 0..QUEUES {
            for poller in 0..cluster.members.count() * POLLERS_AT_EACH_NODE {
                let mut worker = || Worker {
                    client: client.at(poller),
                    code: code(queue),
                    random: SmallRng::seed_from_u64(random.random()),
                    // Where nothing is to go wrong, a task that nobody answers was lost.
                    is_careful: options.faults.are_planned(),
                };
                let (one, other) = (worker(), worker());
                workers.spawn_local(one.work_on_workflows());
                workers.spawn_local(other.work_on_activities());
            }
        }
        for shard in 0..cluster.shards() {
            let (client, stopped) = (client.clone(), stopped.clone());
            asking.spawn_local(probes::probe(client, shard, placement.clone(), stopped));
        }
        let pace = Pace::new(options.rate);
        for number in 0..options.clients {
            let (client, code) = (client.at(number as usize), code(number % QUEUES));
            let mut driver = Driver::new(client, code, pace.clone(), random.random());
            driver.has_sdk = options.sdk_python.is_some();
            asking.spawn_local(driver.drive(stopped.clone()));
        }
        for number in 0..REGISTERS {
            let seed = random.random();
            registers.spawn_local(registers::drive(client.at(number), seed, stopped.clone()));
        }
        let sdk = match &options.sdk_python {
            Some(python) => start_sdk(python, cluster, cluster.directory())?,
            None => Vec::new(),
        };
        Ok(Load { stop, asking, registers, workers: Workers { _ours: workers, sdk } })
    }

    /// Begins nothing more. The workers go on until they are dropped.
    pub(crate) async fn end(self) -> (Checked, Workers) {
        let _ = self.stop.send(true);
        self.asking.join_all().await;
        let mut sum = Checked::default();
        for of in self.registers.join_all().await {
            sum.linearizable += of.linearizable;
            sum.undecided += of.undecided;
            sum.operations += of.operations;
        }
        (sum, self.workers)
    }
}
