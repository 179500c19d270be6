//! The end of a run: everything is brought to its end, all histories are read, and what clients and
//! workers were answered is held against them. Then each node is killed in turn and all is read
//! again: by then every shard was led by another replica, so that histories of several are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use piton_proto::common::WorkflowExecution;
use piton_proto::history::HistoryEvent;
use piton_tests::audit::{self, Broken, Ending, Histories, Listed, Run};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::client::{Client, Failure};
use crate::cluster::Cluster;
use crate::journal::Journal;
use crate::kinds::Kind;
use crate::nemesis::Fault;
use crate::orders::{signal, terminate};

/// How long everything may take to end once the faults are over.
const SETTLE_MAX: Duration = Duration::from_secs(180);
const READ_MAX: Duration = Duration::from_secs(10);
const READERS: usize = 8;
/// A timer that is due fires within this time where there are no faults. A worker that was killed
/// with the run's task holds it up by the task's timeout, and others use the machine.
const LATE_MS_MAX: i64 = 10_000;
/// So long after a fault a cluster may still be looking for its leaders.
const RECOVERY_MS: i64 = 5_000;

/// What was found.
pub(crate) struct Findings {
    pub(crate) histories: Histories,
    pub(crate) broken: Vec<Broken>,
}

/// Signals what still runs until nothing does; runs that nobody works on are terminated.
pub(crate) async fn settle(client: &Client) -> Vec<Broken> {
    let end = Instant::now() + SETTLE_MAX;
    loop {
        let rows = client.list("ExecutionStatus = 'Running'", READ_MAX).await;
        let open: BTreeSet<String> = match &rows {
            Ok(rows) => rows
                .iter()
                .filter_map(|row| Some(row.execution.as_ref()?.workflow_id.clone()))
                .collect(),
            Err(_) => BTreeSet::new(),
        };
        if rows.is_ok() && open.is_empty() {
            return Vec::new();
        }
        if Instant::now() >= end {
            let why = rows.err().map(|failure| format!("A6: the list: {failure}"));
            let stuck = open.iter().map(|id| Broken::of(id, "A6: does not end"));
            return why.map(Broken::new).into_iter().chain(stuck).collect();
        }
        let mut sending = JoinSet::new();
        for id in open {
            // Children end by themselves, some time after what started them.
            if id.contains('/') {
                continue;
            }
            let client = client.clone();
            sending.spawn_local(async move {
                if id.starts_with("probe-") || id.starts_with("register-") {
                    terminate(&client, &id).await;
                } else {
                    signal(&client, &id).await;
                }
            });
        }
        sending.join_all().await;
        sleep(Duration::from_millis(1_000)).await;
    }
}

async fn insist<A>(
    client: &Client,
    send: impl AsyncFn(&Client) -> Result<A, Failure>,
) -> Result<A, Broken> {
    let answer = client.insist(SETTLE_MAX, send).await;
    let answer = answer.map(|(answer, _)| answer);
    answer.map_err(|refused| Broken::new(format!("A6: a read: {}", refused.failure)))
}

async fn read_one(client: Client, run: Run) -> Result<(Run, Vec<HistoryEvent>), Broken> {
    let execution = WorkflowExecution { workflow_id: run.0.clone(), run_id: run.1.clone() };
    let events =
        insist(&client, async |client: &Client| client.history(&execution, READ_MAX).await);
    match events.await {
        Ok(events) => Ok((run, events)),
        Err(broken) => Err(Broken { run_id: Some(run.1), ..Broken::of(&run.0, broken.text) }),
    }
}

/// Histories of these runs, and of those that they name.
async fn read(client: &Client, runs: BTreeSet<Run>) -> (Histories, Vec<Broken>) {
    let (mut histories, mut broken) = (Histories::new(), Vec::new());
    let (mut asked, mut to_read) = (runs.clone(), runs);
    let mut reading = JoinSet::new();
    loop {
        while reading.len() < READERS
            && let Some(run) = to_read.pop_first()
        {
            reading.spawn_local(read_one(client.at(asked.len() + reading.len()), run));
        }
        match reading.join_next().await {
            None => return (histories, broken),
            Some(Ok(Ok((run, events)))) => {
                for named in audit::named_in(&run.0, &events) {
                    if asked.insert(named.clone()) {
                        to_read.insert(named);
                    }
                }
                histories.insert(run, events);
            }
            Some(Ok(Err(lost))) => broken.push(lost),
            Some(Err(error)) => broken.push(Broken::new(format!("a reader: {error}"))),
        }
    }
}

/// What the index shows, and runs that it shows twice.
async fn read_index(client: &Client) -> Result<(Listed, u64, Vec<Broken>), Broken> {
    let rows = insist(client, async |client: &Client| client.list("", READ_MAX).await).await?;
    let counted = insist(client, async |client: &Client| client.count(READ_MAX).await).await?;
    let (mut listed, mut broken) = (Listed::new(), Vec::new());
    for row in rows {
        let execution = row.execution.clone().unwrap_or_default();
        let run = (execution.workflow_id, execution.run_id);
        if listed.insert(run.clone(), row.status()).is_some() {
            broken.push(Broken::of(&run.0, format!("A7: the list shows {} twice", run.1)));
        }
    }
    Ok((listed, counted, broken))
}

/// Everything that is broken, once everything has ended.
pub(crate) async fn audit(client: &Client, journal: &Journal, faults: &[Fault]) -> Findings {
    let mut broken = journal.broken();
    let (listed, counted, twice) = match read_index(client).await {
        Ok(read) => read,
        Err(lost) => {
            broken.push(lost);
            return Findings { histories: Histories::new(), broken };
        }
    };
    broken.extend(twice);
    let entries = journal.entries();
    let mut runs: BTreeSet<Run> = listed.keys().cloned().collect();
    for entry in &entries {
        if let (audit::Asked::Start(_) | audit::Asked::StartOrUse(_), Ending::Done(run_id)) =
            (&entry.asked, &entry.ending)
        {
            runs.insert((entry.workflow_id.clone(), run_id.clone()));
        }
    }
    let (histories, lost) = read(client, runs).await;
    broken.extend(lost);
    audit::check_histories(&histories, &mut broken);
    let healthy = |from, to| healthy_ms(journal, faults, from, to);
    audit::check_timers(&histories, LATE_MS_MAX, &healthy, &mut broken);
    audit::check_index(&histories, &listed, counted, &mut broken);
    audit::check_ledger(&histories, &entries, &mut broken);
    audit::check_queries(&histories, &journal.seen(), &mut broken);
    Findings { histories, broken }
}

/// How much of a time was without faults and what follows from them.
fn healthy_ms(journal: &Journal, faults: &[Fault], from: i64, to: i64) -> i64 {
    let (mut healthy, mut at) = (0, from);
    for fault in faults {
        let began = journal.unix_ms(fault.from_us);
        let ended = journal.unix_ms(fault.ready_us.max(fault.to_us)) + RECOVERY_MS;
        healthy += (began.min(to) - at).max(0);
        at = at.max(ended);
    }
    healthy + (to - at).max(0)
}

/// A9: what other replicas say, once they lead.
pub(crate) async fn compare_replicas(
    cluster: &Cluster,
    client: &Client,
    histories: &Histories,
) -> Result<Vec<Broken>> {
    let mut broken = Vec::new();
    let mut leaders: Vec<BTreeMap<u32, usize>> = vec![cluster.leaders().await];
    for node in cluster.members.all() {
        cluster.kill(node).await;
        let (again, lost) = read(client, histories.keys().cloned().collect()).await;
        leaders.push(cluster.leaders().await);
        broken.extend(lost);
        for ((run, before), after) in histories.iter().filter_map(|h| Some((h, again.get(h.0)?))) {
            if before != after {
                let at = before.iter().zip(after).position(|(one, other)| one != other);
                let text = format!("A9: differs once node {node} is dead, at {at:?}");
                let event_id = at.map(|at| at as i64 + 1);
                broken.push(Broken {
                    run_id: Some(run.1.clone()),
                    event_id,
                    ..Broken::of(&run.0, text)
                });
            }
        }
        cluster.start(node).await?;
        cluster.await_ready(node).await?;
    }
    for shard in 0..cluster.shards() {
        let led: BTreeSet<_> = leaders.iter().filter_map(|leaders| leaders.get(&shard)).collect();
        if led.len() < 2 {
            let text = format!(
                "A10: shard {shard} was read from {led:?} alone, so replicas are not compared"
            );
            broken.push(Broken::new(text));
        }
    }
    Ok(broken)
}

/// A10: each kind was there so often, while calls were in flight.
pub(crate) fn check_coverage(kinds: &[Kind], least: usize, faults: &[Fault]) -> Vec<Broken> {
    let of = |kind: Kind| faults.iter().filter(|f| f.kind == kind && f.in_flight > 0).count();
    let short = kinds.iter().filter(|kind| of(**kind) < least);
    short
        .map(|kind| {
            Broken::new(format!("A10: {kind} hit {} times, {least} are asked for", of(*kind)))
        })
        .collect()
}

/// Writes the histories of workflows in which something is broken, or of all.
pub(crate) fn keep(directory: &Path, findings: &Findings) -> Result<()> {
    let involved: BTreeSet<&str> =
        findings.broken.iter().filter_map(|broken| broken.workflow_id.as_deref()).collect();
    let directory = directory.join("histories");
    fs::create_dir_all(&directory)?;
    for ((workflow_id, run_id), events) in &findings.histories {
        if involved.contains(workflow_id.as_str()) {
            let name = format!("{}-{run_id}", workflow_id.replace('/', "_"));
            fs::write(directory.join(name), render(events))?;
        }
    }
    Ok(())
}

/// One line for each event.
pub(crate) fn render(events: &[HistoryEvent]) -> String {
    events.iter().map(|event| line(event) + "\n").collect()
}

fn line(event: &HistoryEvent) -> String {
    let time = audit::time_ms(event);
    let kind = event.event_type().as_str_name();
    format!(
        "{:5} {}.{:03} {kind} {:?}",
        event.event_id,
        time / 1_000,
        time % 1_000,
        event.attributes
    )
}

/// The events around the one that a finding names.
pub(crate) fn around(findings: &Findings, broken: &Broken) -> String {
    let (Some(workflow_id), Some(run_id)) = (&broken.workflow_id, &broken.run_id) else {
        return String::new();
    };
    let Some(events) = findings.histories.get(&(workflow_id.clone(), run_id.clone())) else {
        return String::new();
    };
    let at = broken.event_id.unwrap_or(events.len() as i64);
    let near = |event: &&HistoryEvent| (event.event_id - at).abs() <= 4;
    let lines = events.iter().filter(near).map(line);
    lines.map(|line| format!("     {}\n", line.chars().take(200).collect::<String>())).collect()
}
