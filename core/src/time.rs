//! Points in time and spans, in nanoseconds. There is no `now()` here: the shell hands it in.
//!
//! The numbers inside are private: who makes or reads one names the unit, so that units cannot be
//! mixed silently. All sums saturate.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

const NANOS_PER_MILLI: i64 = 1_000_000;
const NANOS_PER_SEC: i64 = 1_000_000_000;

/// A point in time: nanoseconds since the Unix epoch (good until the year 2262).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp(i64);

/// A length of time. The API's "0 means none" is kept: see [`Span::given`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Span(i64);

impl Span {
    pub const ZERO: Self = Self(0);
    /// The longest span that is accepted: sums with a time of this century never overflow.
    pub const MAX: Self = Self::from_secs(100 * 365 * 24 * 3600);

    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(NANOS_PER_MILLI))
    }

    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(NANOS_PER_SEC))
    }

    /// A limit or an interval of the configuration.
    pub const fn of_limit_ms(millis: u64) -> Self {
        if millis > i64::MAX as u64 { Self::MAX } else { Self::from_millis(millis as i64) }
    }

    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// In whole milliseconds; what is left over is cut.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(NANOS_PER_MILLI)
    }

    /// Reads a duration of a request or a command: absent is 0, and it is capped at [`Span::MAX`].
    ///
    /// # Errors
    /// Why it is none, in the official server's words.
    pub fn asked(duration: Option<&prost_types::Duration>) -> Result<Self, &'static str> {
        let Some(d) = duration else { return Ok(Self::ZERO) };
        if (d.seconds > 0 && d.nanos < 0) || (d.seconds < 0 && d.nanos > 0) {
            return Err("duration has seconds and nanos with different signs");
        }
        if d.seconds < 0 || d.nanos < 0 {
            return Err("negative duration");
        }
        Ok(Self::from_proto(duration))
    }

    /// `None` where the API's 0 stands for "not set".
    pub fn given(self) -> Option<Self> {
        (self.0 > 0).then_some(self)
    }

    #[must_use]
    pub const fn times(self, factor: i64) -> Self {
        Self(self.0.saturating_mul(factor))
    }

    /// For waits and metrics; a negative span is none.
    pub const fn to_std(self) -> Duration {
        Duration::from_nanos(if self.0 > 0 { self.0 as u64 } else { 0 })
    }

    /// The API's duration, capped at [`Span::MAX`]; absent is 0. Negative durations stay negative,
    /// so that validation can refuse them.
    pub fn from_proto(duration: Option<&prost_types::Duration>) -> Self {
        let Some(d) = duration else { return Self::ZERO };
        let nanos = d.seconds.saturating_mul(NANOS_PER_SEC).saturating_add(i64::from(d.nanos));
        Self(nanos.min(Self::MAX.0))
    }

    pub fn to_proto(self) -> prost_types::Duration {
        // As the API wants it: seconds and the rest never differ in sign.
        prost_types::Duration {
            seconds: self.0 / NANOS_PER_SEC,
            nanos: (self.0 % NANOS_PER_SEC) as i32,
        }
    }

    /// The smaller of two spans where 0 means "no limit".
    #[must_use]
    pub fn min_given(self, other: Self) -> Self {
        match (self.given(), other.given()) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) => a,
            (None, b) => b.unwrap_or(Self::ZERO),
        }
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl Timestamp {
    pub const MIN: Self = Self(i64::MIN);
    pub const MAX: Self = Self(i64::MAX);

    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(NANOS_PER_MILLI))
    }

    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// In whole milliseconds; what is left over is cut.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(NANOS_PER_MILLI)
    }

    pub fn to_proto(self) -> prost_types::Timestamp {
        prost_types::Timestamp {
            seconds: self.0.div_euclid(NANOS_PER_SEC),
            nanos: self.0.rem_euclid(NANOS_PER_SEC) as i32,
        }
    }

    pub fn from_proto(time: Option<&prost_types::Timestamp>) -> Option<Self> {
        time.map(|t| {
            Self(t.seconds.saturating_mul(NANOS_PER_SEC).saturating_add(i64::from(t.nanos)))
        })
    }
}

impl Add<Span> for Timestamp {
    type Output = Self;

    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Sub<Span> for Timestamp {
    type Output = Self;

    fn sub(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

impl Sub for Timestamp {
    type Output = Span;

    fn sub(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Span {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Span {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ns", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_that_is_negative_in_any_part_is_not_taken() {
        let asked = |seconds, nanos| Span::asked(Some(&prost_types::Duration { seconds, nanos }));
        assert_eq!(Span::asked(None), Ok(Span::ZERO));
        assert_eq!(asked(0, 0), Ok(Span::ZERO));
        assert_eq!(asked(0, 1), Ok(Span::from_nanos(1)));
        assert_eq!(asked(i64::MAX, 0), Ok(Span::MAX));
        for (seconds, nanos) in [(0, -1), (-1, 0), (-1, -1), (i64::MIN, 0)] {
            assert_eq!(asked(seconds, nanos), Err("negative duration"), "{seconds} s, {nanos} ns");
        }
        for (seconds, nanos) in [(5, -1), (-5, 1)] {
            let refused = asked(seconds, nanos).unwrap_err();
            assert!(refused.contains("different signs"), "{seconds} s, {nanos} ns: {refused}");
        }
    }

    #[test]
    fn no_nanosecond_is_lost_on_the_way_in_and_out() {
        for nanos in [0, 1, -1, 999_999_999, 1_000_000_000, -1_000_000_001, Span::MAX.as_nanos()] {
            let span = Span::from_nanos(nanos);
            let proto = span.to_proto();
            assert_eq!(Span::from_proto(Some(&proto)), span);
            assert!(proto.seconds.signum() * i64::from(proto.nanos.signum()) >= 0, "{proto:?}");
            let time = Timestamp::from_nanos(nanos);
            let proto = time.to_proto();
            assert_eq!(Timestamp::from_proto(Some(&proto)), Some(time));
            assert!((0..1_000_000_000).contains(&proto.nanos), "{proto:?}");
        }
    }

    #[test]
    fn the_longest_span_after_now_is_a_time() {
        let now = Timestamp::from_millis(4_000_000_000_000);
        assert_eq!((now + Span::MAX) - now, Span::MAX);
        let long = prost_types::Duration { seconds: i64::MAX, nanos: 5 };
        assert_eq!(Span::from_proto(Some(&long)), Span::MAX);
        assert_eq!(Span::of_limit_ms(u64::MAX), Span::MAX);
    }
}
