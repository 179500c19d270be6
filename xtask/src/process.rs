//! Runs child processes: output line by line, a deadline, and no descendant left behind.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::report::Log;

/// What an outer shell may carry that would change how things build or resolve.
const CARGO_NOISE: &[&str] = &["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTDOCFLAGS"];

/// A cargo command in the workspace that an outer RUSTFLAGS does not reach: it would rebuild all
/// dependencies and could change cfgs.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    for name in CARGO_NOISE {
        command.env_remove(name);
    }
    command
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this code; `None`: by a signal.
    Exited(Option<i32>),
    /// It was ended, since its time was over.
    TimedOut,
}

/// Runs `command` to its end, hands each line of its output to `on_line` and everything to the log.
/// Returns whether it exited with 0.
pub(crate) fn run(
    command: Command,
    log: &mut Log,
    limit: Duration,
    on_line: impl FnMut(&str),
) -> Result<bool> {
    let what = format!("{command:?}");
    match run_to_end(command, log, limit, on_line)? {
        End::Exited(code) => Ok(code == Some(0)),
        End::TimedOut => bail!("not done within {} s: {what}", limit.as_secs()),
    }
}

/// The same, where it matters how it ended.
pub(crate) fn run_to_end(
    mut command: Command,
    log: &mut Log,
    limit: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<End> {
    let deadline = Instant::now() + limit;
    log.line(&format!("$ {command:?}"))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.handle()?)
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    let output = child.stdout.take().expect("stdout was asked to be piped");
    let (tx, rx) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if tx.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    loop {
        match rx.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                log.line(&line)?;
                on_line(&line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(End::Exited(child.wait()?.code())),
            Err(RecvTimeoutError::Timeout) => {
                kill_tree(&mut child);
                return Ok(End::TimedOut);
            }
        }
    }
}

/// Runs a preparation whose output matters only when it fails.
pub(crate) fn prepare(command: Command, log: &mut Log, limit: Duration) -> Result<()> {
    let what = format!("{command:?}");
    if !run(command, log, limit, |_| {})? {
        bail!("failed: {what}");
    }
    Ok(())
}

/// Whether a program of this name can be started.
pub(crate) fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Ends a process and all it has started, by id.
pub(crate) fn kill_tree(child: &mut Child) {
    // ORDER: descendants are listed before the parent dies; afterwards they belong to init.
    let ids: Vec<String> = descendants(child.id()).iter().map(u32::to_string).collect();
    let _ = child.kill();
    if !ids.is_empty() {
        let script = format!("kill -9 {}", ids.join(" "));
        let _ = Command::new("bash").args(["-c", &script]).stderr(Stdio::null()).status();
    }
    let _ = child.wait();
}

fn descendants(of: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // `pid (name) state parent ...`; the name may hold spaces and parentheses.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if let Some(parent) = parent.and_then(|parent| parent.parse().ok()) {
            children.entry(parent).or_default().push(id);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![of];
    while let Some(id) = next.pop() {
        let below = children.remove(&id).unwrap_or_default();
        found.extend(&below);
        next.extend(below);
    }
    found
}
