//! What stands beside a throughput: CPU time of a process, the disk's own latency, the server's
//! counters.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Linux counts process times in hundredths of a second, whatever its own clock.
const TICKS_PER_SECOND: u64 = 100;
const DISK_ROUNDS: usize = 200;
const DISK_BLOCK: [u8; 4096] = [0x5a; 4096];

/// CPU time of a process so far, user and system.
pub(crate) fn cpu_of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // `pid (name) state ppid ...`: utime and stime are the 14th and 15th field of the line.
    let fields = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks: Vec<u64> =
        fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() == 2, "{path} is too short");
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 1000 / TICKS_PER_SECOND))
}

/// How often the kernel has taken a process off a core so far, over all its threads that still run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Switches {
    /// It waited: for another thread, a socket, the disk.
    pub(crate) voluntary: u64,
    /// Its time was over, or something more urgent came.
    pub(crate) involuntary: u64,
}

impl Switches {
    pub(crate) fn of(pid: u32) -> Result<Switches> {
        let directory = format!("/proc/{pid}/task");
        let threads = std::fs::read_dir(&directory).with_context(|| format!("read {directory}"))?;
        let mut sum = Switches::default();
        for thread in threads {
            // A thread that ends meanwhile is no longer counted.
            let status = std::fs::read_to_string(thread?.path().join("status"));
            if let Ok(status) = status {
                sum.add(&status)?;
            }
        }
        Ok(sum)
    }

    pub(crate) fn since(self, before: Switches) -> Switches {
        Switches {
            voluntary: self.voluntary.saturating_sub(before.voluntary),
            involuntary: self.involuntary.saturating_sub(before.involuntary),
        }
    }

    fn add(&mut self, status: &str) -> Result<()> {
        for line in status.lines() {
            let Some((name, count)) = line.split_once(':') else { continue };
            match name {
                "voluntary_ctxt_switches" => self.voluntary += count.trim().parse::<u64>()?,
                "nonvoluntary_ctxt_switches" => self.involuntary += count.trim().parse::<u64>()?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// What one append and `fdatasync` of 4 KiB takes with nobody else writing.
pub(crate) struct DiskLatency {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl DiskLatency {
    pub(crate) fn measure(directory: &Path) -> Result<DiskLatency> {
        let path = directory.join(format!(".piton-bench-{}", std::process::id()));
        let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let mut measured = || -> Result<Vec<Duration>> {
            let mut rounds = Vec::with_capacity(DISK_ROUNDS);
            for _ in 0..DISK_ROUNDS {
                let started = Instant::now();
                file.write_all(&DISK_BLOCK)?;
                file.sync_data()?;
                rounds.push(started.elapsed());
            }
            rounds.sort_unstable();
            Ok(rounds)
        };
        let rounds = measured();
        std::fs::remove_file(&path)?;
        let rounds = rounds.context("sync the disk")?;
        Ok(DiskLatency { p50: percentile(&rounds, 50), p99: percentile(&rounds, 99) })
    }
}

/// The nearest-rank percentile of sorted values; zero where there are none.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// The server's counts of commits.
pub(crate) struct Counters {
    /// Decisions committed: what the architecture's table counts.
    pub(crate) transitions: f64,
    /// Raft entries that carried them.
    pub(crate) entries: f64,
}

impl Counters {
    pub(crate) fn read(http: &str) -> Result<Counters> {
        let mut stream = TcpStream::connect(http).with_context(|| format!("connect to {http}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(text.starts_with("HTTP/1.1 200"), "/metrics: {:?}", text.lines().next());
        Ok(Counters {
            transitions: sum_of(&text, "piton_transitions_total")?,
            entries: sum_of(&text, "piton_entries_total")?,
        })
    }

    pub(crate) fn since(&self, before: &Counters) -> Counters {
        Counters {
            transitions: self.transitions - before.transitions,
            entries: self.entries - before.entries,
        }
    }
}

/// The sum of a counter over all its labels.
fn sum_of(text: &str, name: &str) -> Result<f64> {
    let mut found = false;
    let mut sum = 0.0;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        if rest.starts_with(['{', ' ']) {
            found = true;
            sum += rest.rsplit(' ').next().unwrap_or_default().parse::<f64>()?;
        }
    }
    ensure!(found, "no metric {name}");
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 50), Duration::from_millis(50));
        assert_eq!(percentile(&sorted, 99), Duration::from_millis(99));
        assert_eq!(percentile(&sorted[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn switches_are_summed_over_threads() -> Result<()> {
        let mut sum = Switches::default();
        for _ in 0..2 {
            sum.add("Name:\tx\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t2\n")?;
        }
        assert_eq!(sum, Switches { voluntary: 14, involuntary: 4 });
        assert_ne!(Switches::of(std::process::id())?, Switches::default());
        Ok(())
    }

    #[test]
    fn a_counter_is_summed_over_its_labels() -> Result<()> {
        let text = "a_total{shard=\"1\"} 2\na_total{shard=\"2\"} 3\na_total_more 9\n";
        assert_eq!(sum_of(text, "a_total")?, 5.0);
        assert!(sum_of(text, "b_total").is_err());
        Ok(())
    }
}
