//! A wall clock that is off by as many milliseconds as a file says.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use piton_core::time::{Span, Timestamp};
use piton_shard::Clock;

const LOOK_EVERY: Duration = Duration::from_millis(20);

static AHEAD_MS: AtomicI64 = AtomicI64::new(0);

/// Reads the file now and again and again; without one, the clock is right.
pub(crate) fn follow(file: PathBuf) -> anyhow::Result<()> {
    let read = move || {
        let ahead = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
        // Half a file is no time; the next look finds the whole.
        if let Some(ahead) = ahead {
            AHEAD_MS.store(ahead, Ordering::Relaxed);
        }
    };
    read();
    let thread = std::thread::Builder::new().name("clock".to_owned());
    let looking = thread.spawn(move || {
        let (_sender, never) = std::sync::mpsc::channel::<()>();
        while never.recv_timeout(LOOK_EVERY).is_err() {
            read();
        }
    });
    looking.context("start the thread that follows the clock")?;
    Ok(())
}

pub(crate) fn start() -> Clock {
    Clock::start_on(&wall_time)
}

fn wall_time() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let right = Timestamp::default() + Span::from(since);
    right + Span::from_millis(AHEAD_MS.load(Ordering::Relaxed))
}
