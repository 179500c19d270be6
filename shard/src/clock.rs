//! The one source of time (architecture D12): wall time taken once, then the monotonic clock.

use std::time::{SystemTime, UNIX_EPOCH};

use piton_core::time::{Span, Timestamp};
use tokio::time::Instant;

/// Tells wall time, which may jump whenever somebody sets the system's clock.
pub type WallTime = dyn Fn() -> Timestamp + Send + Sync;

/// Tells the time. Cheap to clone; all clones agree.
#[derive(Clone, Copy)]
pub struct Clock {
    wall: &'static WallTime,
    began_wall: Timestamp,
    began: Instant,
}

impl Clock {
    /// Takes the system's wall time now; from here on only the monotonic clock counts.
    pub fn start() -> Self {
        Self::start_on(&system_time)
    }

    /// The same with wall time from elsewhere.
    pub fn start_on(wall: &'static WallTime) -> Self {
        Self { wall, began_wall: wall(), began: Instant::now() }
    }

    // INVARIANT: a step of the system's clock changes nothing here, or times would go back and
    // timers would fire early. It counts from the next start on.
    pub fn now(&self) -> Timestamp {
        self.began_wall + Span::from(self.began.elapsed())
    }

    /// By how much wall time is ahead by now: it has been set since it was taken.
    pub fn wall_is_ahead(&self) -> Span {
        (self.wall)() - self.now()
    }

    /// When `time` comes; at once if it is past.
    pub fn instant_of(&self, time: Timestamp) -> Instant {
        self.began + (time - self.began_wall).to_std()
    }
}

fn system_time() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or_else(|_| Timestamp::default(), |since| Timestamp::default() + Span::from(since))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_of_the_wall_clock_moves_neither_the_time_nor_what_is_due() {
        static WALL: AtomicI64 = AtomicI64::new(1_000_000);
        let clock = Clock::start_on(&|| Timestamp::from_millis(WALL.load(Ordering::Relaxed)));
        for wall in [5_000_000, 0] {
            WALL.store(wall, Ordering::Relaxed);
            assert_eq!(clock.now(), Timestamp::from_millis(1_000_000));
            assert_eq!(clock.wall_is_ahead().as_millis(), wall - 1_000_000);
            let due = clock.instant_of(Timestamp::from_millis(1_000_500));
            assert_eq!(due - Instant::now(), std::time::Duration::from_millis(500));
        }
    }
}
