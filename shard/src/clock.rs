//! The one source of time (architecture D12): wall time taken once, then the monotonic clock.

use std::time::{SystemTime, UNIX_EPOCH};

use piton_core::time::Timestamp;
use tokio::time::Instant;

/// Tells wall time, which may jump whenever somebody sets the system's clock.
pub type WallTime = dyn Fn() -> Timestamp + Send + Sync;

/// Tells the time. Cheap to clone; all clones agree.
#[derive(Clone, Copy)]
pub struct Clock {
    wall: &'static WallTime,
    began_wall_ms: i64,
    began: Instant,
}

impl Clock {
    /// Takes the system's wall time now; from here on only the monotonic clock counts.
    pub fn start() -> Self {
        Self::start_on(&system_time)
    }

    /// The same with wall time from elsewhere.
    pub fn start_on(wall: &'static WallTime) -> Self {
        Self { wall, began_wall_ms: wall().0, began: Instant::now() }
    }

    // INVARIANT: a step of the system's clock changes nothing here, or times would go back and
    // timers would fire early. It counts from the next start on.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.began_wall_ms + self.began.elapsed().as_millis() as i64)
    }

    /// By how many milliseconds wall time is ahead by now: it has been set since it was taken.
    pub fn wall_is_ahead_ms(&self) -> i64 {
        (self.wall)().0 - self.now().0
    }

    /// When `time` comes; at once if it is past.
    pub fn instant_of(&self, time: Timestamp) -> Instant {
        let millis = time.0.saturating_sub(self.began_wall_ms).max(0) as u64;
        self.began + std::time::Duration::from_millis(millis)
    }
}

fn system_time() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp(since.map_or(0, |since| since.as_millis() as i64))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_of_the_wall_clock_moves_neither_the_time_nor_what_is_due() {
        static WALL: AtomicI64 = AtomicI64::new(1_000_000);
        let clock = Clock::start_on(&|| Timestamp(WALL.load(Ordering::Relaxed)));
        for wall in [5_000_000, 0] {
            WALL.store(wall, Ordering::Relaxed);
            assert_eq!(clock.now(), Timestamp(1_000_000));
            assert_eq!(clock.wall_is_ahead_ms(), wall - 1_000_000);
            let due = clock.instant_of(Timestamp(1_000_500));
            assert_eq!(due - Instant::now(), std::time::Duration::from_millis(500));
        }
    }
}
