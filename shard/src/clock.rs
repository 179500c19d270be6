//! The one source of time (architecture D12): wall time taken once, then the monotonic clock.

use std::time::{SystemTime, UNIX_EPOCH};

use piton_core::time::Timestamp;
use tokio::time::Instant;

/// Tells the time. Cheap to clone; all clones agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    began_wall_ms: i64,
    began: Instant,
}

impl Clock {
    /// Takes the wall time now; from here on only the monotonic clock counts.
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
        Self::starting_at(Timestamp(wall))
    }

    /// A clock that stands at `wall` now, whatever the system says.
    pub fn starting_at(wall: Timestamp) -> Self {
        Self { began_wall_ms: wall.0, began: Instant::now() }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp(self.began_wall_ms + self.began.elapsed().as_millis() as i64)
    }

    /// When `time` comes; at once if it is past.
    pub fn instant_of(&self, time: Timestamp) -> Instant {
        let millis = time.0.saturating_sub(self.began_wall_ms).max(0) as u64;
        self.began + std::time::Duration::from_millis(millis)
    }
}
