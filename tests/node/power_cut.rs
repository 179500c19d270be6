//! Power cuts under load with the whole node above: at a random moment all that was not synced is
//! lost and the last batch is torn; what was acknowledged is there afterwards, once
//! (P1, P2, D9, D13).
//!
//! `PITON_POWER_CUTS` sets the number of cuts, `PITON_SEED` repeats a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use piton_node::config::{Config, StoreEngine};
use piton_node::{Devices, Failure};
use piton_proto::history::HistoryEvent;
use piton_raft::log::{Faults, FaultyDisk};
use piton_store::{Store, StoreError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::Code;

use crate::checked_store::CheckedStore;
use crate::client::{Api, Refused, execution, signal_of, start_of};
use crate::metrics::{metrics, sum};
use crate::nodes::{Running, chain, config};
use crate::worker::{
    Entry, Ledger, ORDER, Worker, await_completed, await_orders, check_against, check_gapless,
    complete, place_orders,
};

const CUTS: usize = 200;
/// Power cuts that one machine lives through; then the next begins with empty disks.
const CUTS_OF_ONE_MACHINE: usize = 10;
/// Shorter than a request waits for a leader, which a node whose disk has failed waits for in vain.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);
const CLIENTS: usize = 6;
const ENGINES: [StoreEngine; 2] = [StoreEngine::Sled, StoreEngine::Redb];

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// A machine: its disk for log and snapshots, its directory for all else, and what its clients
/// were told.
struct Machine {
    disk: FaultyDisk,
    directory: TempDir,
    store: StoreEngine,
    random: SmallRng,
    ledger: Ledger,
    /// Sent, with an unknown outcome: sent again after the restart, as clients do.
    unknown: Vec<Ask>,
    /// Of a workflow task that was handed out before the cut.
    old_token: Option<Vec<u8>>,
    life: usize,
}

/// A client's request.
#[derive(Clone, Debug)]
enum Ask {
    Start(String),
    Signal(String, String),
}

/// What the load saw until the power went.
#[derive(Default)]
struct Seen {
    unknown: Vec<Ask>,
    token: Option<Vec<u8>>,
}

impl Ask {
    async fn send(&self, api: &dyn Api, ledger: &Ledger) -> Result<(), Refused> {
        match self {
            Ask::Start(workflow_id) => {
                let run_id = api.start(start_of(workflow_id, ORDER, "never-polled")).await?;
                ledger.started(workflow_id, run_id);
            }
            Ask::Signal(workflow_id, name) => {
                api.signal(signal_of(workflow_id, name)).await?;
                ledger.signalled(workflow_id, name);
            }
        }
        Ok(())
    }
}

impl Machine {
    fn new(seed: u64) -> Self {
        Self {
            disk: FaultyDisk::new(seed),
            directory: TempDir::new().unwrap(),
            store: StoreEngine::Sled,
            random: SmallRng::seed_from_u64(seed),
            ledger: Ledger::default(),
            unknown: Vec::new(),
            old_token: None,
            life: 0,
        }
    }

    fn config(&self) -> Config {
        let mut config = config(Some(self.directory.path()));
        config.data.store = self.store;
        config
    }

    /// Starts the node; in some lives the power fails while it starts, perhaps twice.
    async fn boot(&mut self) -> Running {
        self.life += 1;
        loop {
            let disk = Arc::new(self.disk.clone());
            let cut_at_call =
                self.random.random_ratio(1, 5).then(|| self.random.random_range(1..12));
            self.disk.set_faults(Faults { cut_at_call, ..Faults::default() });
            match Running::start_on(self.config(), disk).await {
                Ok(running) if cut_at_call.is_none() => return running,
                // It came up before the call that should fail.
                Ok(running) => running.stop().await,
                Err(error) => {
                    assert!(cut_at_call.is_some(), "it does not start: {}", chain(&error))
                }
            }
            self.lose_power();
        }
    }

    fn lose_power(&mut self) {
        self.disk = self.disk.cut_power();
        // A machine that comes back has another boot id, and sled's store is discarded; if it was the
        // process alone that ended, or redb keeps it, the store is used.
        if self.random.random_ratio(1, 2) {
            remove_store(self.directory.path());
        }
    }

    /// One life: everything is there, the node serves, and under load the power goes.
    async fn live(&mut self) {
        let running = self.boot().await;
        let api = running.api();
        if let Some(token) = self.old_token.take() {
            let answer = api.complete_workflow_task(&token, vec![complete()]).await;
            assert_eq!(answer.map_err(|refused| refused.code), Err(Code::NotFound));
        }
        for ask in std::mem::take(&mut self.unknown) {
            ask.send(api.as_ref(), &self.ledger).await.unwrap();
        }
        self.check_last(api.as_ref()).await;
        self.check_serves(api.as_ref()).await;

        let cut_at_call = Some(self.random.random_range(1..80));
        self.disk.set_faults(Faults { cut_at_call, ..Faults::default() });
        let cut = Instant::now();
        let seen = self.load(&api).await;
        assert!(cut.elapsed() < REFUSED_WITHIN, "requests are held by a node that ends");
        let failure = running.node.failed().await;
        assert!(matches!(failure, Failure::Log(_)), "{failure:?}");
        running.stop().await;
        (self.unknown, self.old_token) = (seen.unknown, seen.token);
        self.lose_power();
    }

    /// Everything acknowledged in the last life, and some of what was before, is in a history,
    /// once.
    async fn check_last(&mut self, api: &dyn Api) {
        let last = format!("life-{}-", self.life - 1);
        for (workflow_id, entry) in self.ledger.entries() {
            if workflow_id.starts_with(&last) || self.random.random_ratio(1, 20) {
                self.check(api, &workflow_id, &entry).await;
            }
        }
    }

    /// Everything acknowledged since the machine was new.
    async fn check_all(&self, api: &dyn Api) {
        for (workflow_id, entry) in self.ledger.entries() {
            self.check(api, &workflow_id, &entry).await;
        }
    }

    async fn check(&self, api: &dyn Api, workflow_id: &str, entry: &Entry) {
        let events = api.history(&execution(workflow_id)).await;
        let events = events.unwrap_or_else(|refused| {
            panic!("{workflow_id} is lost in life {}: {refused}", self.life)
        });
        check_against(workflow_id, entry, &events);
    }

    async fn check_serves(&self, api: &dyn Api) {
        let (workflow_id, queue) =
            (format!("serves-{}", self.life), format!("queue-{}", self.life));
        api.start(start_of(&workflow_id, "simple", &queue)).await.unwrap();
        let task = api.poll_workflow_task(&queue).await.unwrap();
        api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
        check_gapless(&workflow_id, &await_completed(api, &workflow_id).await);
    }

    /// Clients start and signal workflows, and one worker takes a task, until nothing is answered.
    async fn load(&self, api: &Arc<dyn Api>) -> Seen {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (api, seen, ledger) = (Arc::clone(api), Arc::clone(&seen), self.ledger.clone());
            let prefix = format!("life-{}-client-{client}", self.life);
            clients.spawn(async move {
                for number in 0.. {
                    let workflow_id = format!("{prefix}-{number}");
                    let signal = |name: &str| Ask::Signal(workflow_id.clone(), name.to_owned());
                    for ask in [Ask::Start(workflow_id.clone()), signal("one"), signal("two")] {
                        if let Err(refused) = ask.send(api.as_ref(), &ledger).await {
                            assert!(refused.is_retriable(), "{ask:?}: {refused}");
                            seen.lock().unwrap().unknown.push(ask);
                            return;
                        }
                    }
                }
            });
        }
        let (api, taken, queue) =
            (Arc::clone(api), Arc::clone(&seen), format!("task-{}", self.life));
        let poll = tokio::spawn(async move {
            if api.start(start_of(&queue, "simple", &queue)).await.is_ok()
                && let Ok(task) = api.poll_workflow_task(&queue).await
                && !task.task_token.is_empty()
            {
                taken.lock().unwrap().token = Some(task.task_token.to_vec());
            }
        });
        clients.join_all().await;
        // A poll is held until its time is over, whatever happens to the disk.
        poll.abort();
        // An abort is what was asked for.
        let _ = poll.await;
        Arc::into_inner(seen).unwrap().into_inner().unwrap()
    }
}

fn remove_store(directory: &Path) {
    let store = directory.join("store");
    if store.exists() {
        std::fs::remove_dir_all(store).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_power_cuts_at_random_moments_under_load() {
    let seed: u64 =
        from_environment("PITON_SEED").unwrap_or_else(|| SmallRng::from_os_rng().random());
    let cuts = from_environment("PITON_POWER_CUTS").unwrap_or(CUTS);
    println!("seed {seed}, {cuts} power cuts");
    let (mut acknowledged, mut tokens) = (0, 0);
    for number in 0..cuts.div_ceil(CUTS_OF_ONE_MACHINE) {
        let mut machine = Machine::new(seed.wrapping_add(number as u64));
        machine.store = ENGINES[number % ENGINES.len()];
        for _ in 0..CUTS_OF_ONE_MACHINE.min(cuts - number * CUTS_OF_ONE_MACHINE) {
            machine.live().await;
            tokens += usize::from(machine.old_token.is_some());
        }
        let running = machine.boot().await;
        machine.check_all(running.api().as_ref()).await;
        running.stop().await;
        acknowledged += machine.ledger.len();
    }
    println!("{acknowledged} requests were acknowledged, {tokens} tasks were out at a cut");
    assert!(acknowledged > cuts, "the load did not get through: {acknowledged} acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_stops_the_node_and_nothing_more_is_acknowledged() {
    for fail_at_sync in [1, 2, 5, 9] {
        let mut machine = Machine::new(fail_at_sync);
        let disk = Arc::new(machine.disk.clone());
        let running = Running::start_on(machine.config(), disk).await.unwrap();
        let api = running.api();
        let faults = Faults { fail_at_sync: Some(fail_at_sync), ..Faults::default() };
        machine.disk.set_faults(faults);
        machine.load(&api).await;
        let failure = running.node.failed().await;
        assert!(matches!(&failure, Failure::Log(why) if why.contains("sync")), "{failure:?}");
        let acknowledged = machine.ledger.len();
        // The disk works again, and still the node must not go on: it does not know what it has.
        for number in 0..3 {
            let refused = api.start(start_of(&format!("late-{number}"), ORDER, "q")).await;
            assert!(refused.unwrap_err().is_retriable());
        }
        running.stop().await;

        // What the failed sync lost is gone for good, or still seen until the power goes, too.
        let is_lost = fail_at_sync % 2 == 0;
        machine.disk = if is_lost { machine.disk.cut_power() } else { machine.disk.kill() };
        assert_eq!(machine.ledger.len(), acknowledged);
        let disk = Arc::new(machine.disk.clone());
        let running = Running::start_on(machine.config(), disk).await.unwrap();
        machine.check_all(running.api().as_ref()).await;
        running.stop().await;
    }
}

/// Places orders on a node, waits for them, and stops it.
async fn fill(machine: &Machine, orders: impl IntoIterator<Item = String>) {
    let disk = Arc::new(machine.disk.clone());
    let running = Running::start_on(machine.config(), disk).await.unwrap();
    let api = running.api();
    let worker = Worker::start(&api, "orders", 3);
    place_orders(&api, &machine.ledger, "orders", orders).join_all().await;
    await_orders(api.as_ref(), &machine.ledger).await;
    drop(worker);
    running.stop().await;
}

fn named(prefix: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |number| format!("{prefix}-{number}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_acknowledged_log_data_is_detected_and_named() {
    let machine = Machine::new(11);
    fill(&machine, named("order", 3)).await;
    let marker = b"order-1";
    let contents = machine.disk.contents();
    let places = contents.iter().flat_map(|(path, bytes)| {
        let found = bytes.windows(marker.len()).enumerate();
        found.filter(|(_, part)| part == marker).map(move |(offset, _)| (path, offset))
    });
    let places: Vec<_> = places.collect();
    assert!(places.len() > 10, "the log names its workflows: {places:?}");
    // Not in the last batches, where it could be a tear.
    let places = &places[..places.len() - 3];
    for (path, offset) in places.iter().step_by(places.len().div_ceil(5)) {
        let disk = machine.disk.fork();
        disk.flip(path, *offset, 3);
        remove_store(machine.directory.path());
        let started = Running::start_on(machine.config(), Arc::new(disk));
        let text = chain(&started.await.err().expect("it starts on damaged acknowledged data"));
        assert!(text.contains(&path.display().to_string()), "{text}");
        // The record is named by where it begins, before the flipped byte.
        let at = text.split("at offset ").nth(1).and_then(|rest| rest.split(':').next());
        let at: usize = at.and_then(|at| at.parse().ok()).unwrap_or_else(|| panic!("{text}"));
        assert!(at <= *offset, "{text}: the bit was flipped at {offset}");
    }
}

/// What may befall the store's files between two lives.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Emptied,
    /// Restored to a copy that an earlier life left.
    Older,
    /// Bytes in the middle of its largest file are overwritten.
    Damaged,
    /// Its largest file is cut to half its length.
    Cut,
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

impl Loss {
    fn befall(self, store: &Path, older: &Path) {
        let largest = || {
            let length = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
            files(store).into_iter().max_by_key(length).unwrap()
        };
        match self {
            Loss::Emptied => std::fs::remove_dir_all(store).unwrap(),
            Loss::Older => {
                std::fs::remove_dir_all(store).unwrap();
                copy_directory(older, store);
            }
            Loss::Damaged => {
                let path = largest();
                let mut bytes = std::fs::read(&path).unwrap();
                // Where rows lie: sled reserves much of its file and leaves it zero.
                let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
                for byte in &mut bytes[end / 4..end] {
                    *byte ^= 0x55;
                }
                std::fs::write(path, bytes).unwrap();
            }
            Loss::Cut => {
                let path = largest();
                let length = std::fs::metadata(&path).unwrap().len();
                let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(length / 2).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_lost_old_or_damaged_is_rebuilt_from_the_log() {
    let losses = [Loss::Emptied, Loss::Older, Loss::Damaged, Loss::Cut];
    for (engine, loss) in ENGINES.into_iter().flat_map(|engine| losses.map(|loss| (engine, loss))) {
        println!("{engine:?}: {loss:?}");
        let mut machine = Machine::new(21);
        machine.store = engine;
        let store = machine.directory.path().join("store");
        let older = machine.directory.path().join("older");
        fill(&machine, named("early", 3)).await;
        copy_directory(&store, &older);
        fill(&machine, named("late", 3)).await;
        let before = histories(&machine).await;
        loss.befall(&store, &older);
        let after = histories(&machine).await;
        assert_eq!(before, after, "after its {engine:?} store was {loss:?}");
        // And it goes on.
        fill(&machine, named("after", 2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_another_engine_is_rebuilt_from_the_log() {
    let mut machine = Machine::new(22);
    for (number, engine) in ENGINES.into_iter().cycle().take(4).enumerate() {
        machine.store = engine;
        fill(&machine, named(&format!("phase-{number}"), 2)).await;
        let before = histories(&machine).await;
        machine.store = ENGINES[(number + 1) % ENGINES.len()];
        assert_eq!(before, histories(&machine).await, "after a change from {engine:?}");
        let left = std::fs::read_dir(machine.directory.path().join("store")).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        let old = format!("{engine:?}").to_lowercase();
        assert!(!names.iter().any(|name| name == old.as_str()), "{names:?}");
    }
}

/// What a node answers of all orders.
async fn histories(machine: &Machine) -> BTreeMap<String, Vec<HistoryEvent>> {
    let disk = Arc::new(machine.disk.clone());
    let running = Running::start_on(machine.config(), disk).await;
    let running = running.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let api = running.api();
    let found = await_orders(api.as_ref(), &machine.ledger).await;
    running.stop().await;
    found
}

/// The node's own store, until it is told to fail.
fn failing(store: Arc<dyn Store>, fails: Arc<AtomicBool>) -> Arc<dyn Store> {
    let check = move |_: &[u8]| {
        if !fails.load(Ordering::SeqCst) {
            return Ok(());
        }
        let source = std::io::Error::other("the page does not match its checksum");
        Err(StoreError::Engine { doing: "read a row", source: source.into() })
    };
    Arc::new(CheckedStore { store, check: Box::new(check) })
}

/// It opens, and turns out to be damaged when the node reads what it needs to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_damaged_when_the_node_starts_is_rebuilt() {
    let machine = Machine::new(41);
    let config = || config(Some(machine.directory.path()));
    let running = Running::start_on(config(), Arc::new(machine.disk.clone())).await.unwrap();
    let (api, ledger) = (running.api(), &machine.ledger);
    let worker = Worker::start(&api, "orders", 3);
    place_orders(&api, ledger, "orders", named("before", 4)).join_all().await;
    let before = await_orders(api.as_ref(), ledger).await;
    drop(worker);
    running.stop().await;

    let opened = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&opened);
    let devices = Devices {
        disk: Arc::new(machine.disk.clone()),
        wrap_store: Arc::new(move |store| {
            let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
            failing(store, Arc::new(AtomicBool::new(is_first)))
        }),
        ..Devices::default()
    };
    let running = Running::start_with(config(), devices).await.unwrap();
    assert_eq!(opened.load(Ordering::SeqCst), 2, "the damage was not met");
    assert_eq!(await_orders(running.api().as_ref(), ledger).await, before);
    let counted = metrics(running.node.http_address()).await;
    assert_eq!(sum(&counted, "piton_store_rebuilds_total", &[]), 1.0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_while_the_node_runs_is_rebuilt_and_the_node_goes_on() {
    let machine = Machine::new(31);
    let fails = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&fails);
    let devices = Devices {
        disk: Arc::new(machine.disk.clone()),
        wrap_store: Arc::new(move |store| {
            // The one that replaces a failed store is a new one.
            flag.store(false, Ordering::SeqCst);
            failing(store, Arc::clone(&flag))
        }),
        ..Devices::default()
    };
    let mut running = Running::start_with(machine.config(), devices).await.unwrap();
    for phase in ["one", "two", "three"] {
        let api = running.api();
        let worker = Worker::start(&api, "orders", 3);
        place_orders(&api, &machine.ledger, "orders", named(phase, 4)).join_all().await;
        let before = await_orders(api.as_ref(), &machine.ledger).await;
        drop(worker);

        fails.store(true, Ordering::SeqCst);
        // The next checkpoint, if nothing before, meets the failure.
        let late = start_of(&format!("{phase}-late"), ORDER, "never-polled");
        let asked = api.start(late.clone()).await;
        assert!(asked.as_ref().err().is_none_or(Refused::is_retriable), "{asked:?}");
        let failure = running.node.failed().await;
        assert!(matches!(&failure, Failure::Store(why) if why.contains("checksum")), "{failure:?}");
        running = running.rebuild_store().await;
        let api = running.api();
        assert_eq!(await_orders(api.as_ref(), &machine.ledger).await, before);
        let started = api.start(late).await.unwrap();
        assert!(asked.is_err() || asked == Ok(started), "an acknowledged start is lost");
    }
    let counted = metrics(running.node.http_address()).await;
    assert_eq!(sum(&counted, "piton_store_rebuilds_total", &[]), 3.0);
    running.stop().await;
}
