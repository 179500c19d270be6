//! The one source of time (D12): wall time taken once, then the machine's boot clock, which goes on
//! while the machine sleeps.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use piton_core::time::{Span, Timestamp};
use tokio::time::Instant;

/// Tells wall time, which may jump whenever somebody sets the system's clock.
pub type WallTime = dyn Fn() -> Timestamp + Send + Sync;

/// Tells how long the machine has slept since some moment of the past. It never falls.
type TimeAsleep = dyn Fn() -> Span + Send + Sync;

/// The longest that a wait goes on before it asks whether the machine has slept meanwhile: timers
/// are late by no more after a sleep.
const ASLEEP_UNNOTICED_MAX: Duration = Duration::from_secs(1);

/// Tells the time. Cheap to clone; all clones agree.
#[derive(Clone, Copy)]
pub struct Clock {
    wall: &'static WallTime,
    began_wall: Timestamp,
    /// Stands still while the machine sleeps, as all of the runtime's waits do.
    began: Instant,
    /// `None` where no machine sleeps: in the simulation.
    asleep: Option<&'static TimeAsleep>,
    began_asleep: Span,
}

impl Clock {
    /// Takes the system's wall time now; from here on only the boot clock counts.
    pub fn start() -> Self {
        Self::start_on_machine(&system_time, Some(&machine_asleep))
    }

    /// The same with wall time from elsewhere, on a machine that never sleeps.
    pub fn start_on(wall: &'static WallTime) -> Self {
        Self::start_on_machine(wall, None)
    }

    fn start_on_machine(wall: &'static WallTime, asleep: Option<&'static TimeAsleep>) -> Self {
        let began_asleep = asleep.map_or(Span::ZERO, |asleep| asleep());
        Self { wall, began_wall: wall(), began: Instant::now(), asleep, began_asleep }
    }

    // INVARIANT: a step of the system's clock changes nothing here, or times would go back and
    // timers would fire early. It counts from the next start on.
    pub fn now(&self) -> Timestamp {
        self.began_wall + Span::from(self.began.elapsed()) + self.slept()
    }

    /// By how much wall time is ahead by now: it has been set since it was taken.
    pub fn wall_is_ahead(&self) -> Span {
        (self.wall)() - self.now()
    }

    /// Waits until `time`, through sleeps of the machine, too; not at all if it is past.
    pub async fn wait_until(&self, time: Timestamp) {
        while self.now() < time {
            let mut until = self.instant_of(time);
            if self.asleep.is_some() {
                until = until.min(Instant::now() + ASLEEP_UNNOTICED_MAX);
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// When `time` comes, unless the machine sleeps before; at once if it is past.
    fn instant_of(&self, time: Timestamp) -> Instant {
        self.began + (time - self.began_wall - self.slept()).to_std()
    }

    /// How long the machine has slept since the start.
    fn slept(&self) -> Span {
        self.asleep.map_or(Span::ZERO, |asleep| asleep() - self.began_asleep)
    }
}

fn system_time() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or_else(|_| Timestamp::default(), |since| Timestamp::default() + Span::from(since))
}

/// What the boot clock is ahead of the monotonic one, as far as it was ever seen.
// ORDER: the boot clock is read first. Whatever comes between the two, a thread switch or a sleep,
// the difference is never too large; the largest that was seen never falls.
fn machine_asleep() -> Span {
    static MOST_NANOS: AtomicI64 = AtomicI64::new(0);
    let ahead = boot_is_ahead().as_nanos();
    Span::from_nanos(MOST_NANOS.fetch_max(ahead, Ordering::Relaxed).max(ahead))
}

#[cfg(target_os = "linux")]
fn boot_is_ahead() -> Span {
    use rustix::time::{ClockId, clock_gettime};
    let [boot, awake] = [ClockId::Boottime, ClockId::Monotonic].map(|id| {
        let time = clock_gettime(id);
        Span::from_secs(time.tv_sec) + Span::from_nanos(time.tv_nsec)
    });
    boot - awake
}

#[cfg(not(target_os = "linux"))]
fn boot_is_ahead() -> Span {
    Span::ZERO
}

#[cfg(test)]
mod tests {
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
            assert_eq!(due - Instant::now(), Duration::from_millis(500));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_on_time_though_the_machine_slept_through_most_of_it() {
        static ASLEEP_SECS: AtomicI64 = AtomicI64::new(7);
        let began = Timestamp::from_millis(1_000_000);
        let clock = Clock::start_on_machine(
            &|| Timestamp::from_millis(1_000_000),
            Some(&|| Span::from_secs(ASLEEP_SECS.load(Ordering::Relaxed))),
        );
        assert_eq!(clock.now(), began);
        let due = began + Span::from_secs(8 * 3600 + 10);
        let awake = Instant::now();
        let wait = tokio::spawn(async move { clock.wait_until(due).await });
        tokio::task::yield_now().await;
        ASLEEP_SECS.fetch_add(8 * 3600, Ordering::Relaxed);
        assert_eq!(clock.now(), began + Span::from_secs(8 * 3600));
        wait.await.expect("it ends");
        assert_eq!(awake.elapsed(), Duration::from_secs(10));
        assert_eq!(clock.now(), due);
    }

    #[test]
    fn the_machines_time_asleep_never_falls() {
        let mut last = machine_asleep();
        for _ in 0..1_000 {
            let next = machine_asleep();
            assert!(next >= last && next >= Span::ZERO);
            last = next;
        }
    }
}
