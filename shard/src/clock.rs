//! The one source of time (D12): wall time taken once, then the machine's boot clock, which goes on
//! while the machine sleeps. What wall time has been corrected by since is worked off little by little.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use piton_core::time::{Span, Timestamp};
use tokio::time::Instant;

/// Tells wall time, which may jump whenever somebody sets the system's clock.
pub type WallTime = dyn Fn() -> Timestamp + Send + Sync;

/// Tells how long the machine has slept since some moment of the past. It never falls.
type TimeAsleep = dyn Fn() -> Span + Send + Sync;

/// The longest that a wait goes on before it asks whether the machine has slept meanwhile: timers
/// are late by no more after a sleep.
const ASLEEP_UNNOTICED_MAX: Duration = Duration::from_secs(1);

/// While an offset is worked off, the clock goes faster or slower by one part in so many: a second takes a
/// hundred seconds, and no timer is early or late by more than a hundredth of its time.
const SLEW_PART: i64 = 100;
/// An offset beyond it is no correction but another time. It counts from the next start on.
const SLEWED_MAX: Span = Span::from_secs(3_600);

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
    /// Kept for good: a process takes the time anew once or twice.
    course: &'static RwLock<Course>,
}

/// By how much the clock is ahead of what the boot clock says: a line from one offset to another.
struct Course {
    /// Where it begins, on the boot clock, and with which offset.
    from: Span,
    offset: Span,
    to: Span,
}

impl Course {
    fn at(&self, boot: Span) -> Span {
        let most = (boot - self.from).as_nanos() / SLEW_PART;
        let left = (self.to - self.offset).as_nanos();
        self.offset + Span::from_nanos(left.clamp(-most, most))
    }
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
        let course = Course { from: Span::ZERO, offset: Span::ZERO, to: Span::ZERO };
        let course = Box::leak(Box::new(RwLock::new(course)));
        let (began_wall, began) = (wall(), Instant::now());
        Self { wall, began_wall, began, asleep, began_asleep, course }
    }

    // INVARIANT: a step of the system's clock moves nothing here at once, or times would go back and
    // timers would fire early.
    pub fn now(&self) -> Timestamp {
        let course = self.course.read();
        // ORDER: behind the lock, so that the boot clock is not read before a course begins.
        let boot = self.boot();
        self.began_wall + boot + course.at(boot)
    }

    /// By how much wall time is ahead by now: it has been set since it was taken.
    pub fn wall_is_ahead(&self) -> Span {
        (self.wall)() - self.now()
    }

    /// Takes a look at wall time: from now on the clock goes a little faster or slower until it shows the
    /// same. Called again and again, it follows what corrects the machine's time.
    pub fn slew(&self) {
        let mut course = self.course.write();
        let boot = self.boot();
        let offset = course.at(boot);
        let ahead = (self.wall)() - (self.began_wall + boot + offset);
        let is_correction = ahead.as_nanos().unsigned_abs() <= SLEWED_MAX.as_nanos().unsigned_abs();
        let to = if is_correction { offset + ahead } else { offset };
        *course = Course { from: boot, offset, to };
    }

    /// How far the boot clock has come since the start.
    fn boot(&self) -> Span {
        Span::from(self.began.elapsed()) + self.slept()
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
        Instant::now() + (time - self.now()).to_std()
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

    /// A clock, and by how many milliseconds wall time is set from now on, whatever the clock does.
    fn clock_beside_wall_time() -> (Clock, &'static AtomicI64) {
        let set_by: &'static AtomicI64 = Box::leak(Box::default());
        let (began, start) = (Instant::now(), Timestamp::from_millis(1_000_000));
        let wall = move || {
            let set_by = Span::from_millis(set_by.load(Ordering::Relaxed));
            start + Span::from(began.elapsed()) + set_by
        };
        // It never sleeps, and waits look again all the same, as on any machine.
        let clock = Clock::start_on_machine(Box::leak(Box::new(wall)), Some(&|| Span::ZERO));
        (clock, set_by)
    }

    #[tokio::test(start_paused = true)]
    async fn an_offset_is_worked_off_at_a_bounded_rate_and_no_time_goes_back() {
        let (clock, set_by) = clock_beside_wall_time();
        // The machine's time is corrected, back before the first correction is through, and by little.
        for (correction, seconds) in [(500, 60), (-700, 100), (-90, 10)] {
            set_by.fetch_add(correction, Ordering::Relaxed);
            let left_before = clock.wall_is_ahead().as_millis();
            for _ in 0..seconds {
                clock.slew();
                for _ in 0..4 {
                    let before = clock.now();
                    tokio::time::advance(Duration::from_millis(250)).await;
                    let passed = (clock.now() - before).as_nanos();
                    assert!((247_500_000..=252_500_000).contains(&passed), "{passed}");
                }
            }
            let (left, worked_off) = (clock.wall_is_ahead().as_millis(), 10 * seconds);
            assert_eq!(left, left_before - left_before.clamp(-worked_off, worked_off));
        }
        assert_eq!(clock.wall_is_ahead(), Span::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_correction_but_another_time_is_not_followed() {
        let (clock, set_by) = clock_beside_wall_time();
        for hours in [-2, 2] {
            set_by.store(hours * 3_600_000, Ordering::Relaxed);
            let before = clock.now();
            clock.slew();
            tokio::time::advance(Duration::from_secs(60)).await;
            assert_eq!(clock.now() - before, Span::from_secs(60));
        }
        // Set right, it is as if nothing had been.
        set_by.store(0, Ordering::Relaxed);
        clock.slew();
        assert_eq!(clock.wall_is_ahead(), Span::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_the_clock_shows_its_time_while_an_offset_is_worked_off() {
        for correction in [-2_000, 2_000] {
            let (clock, set_by) = clock_beside_wall_time();
            set_by.store(correction, Ordering::Relaxed);
            clock.slew();
            let due = clock.now() + Span::from_secs(60);
            clock.wait_until(due).await;
            let late = (clock.now() - due).as_millis();
            assert!((0..=12).contains(&late), "{correction}: {late} ms late");
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
