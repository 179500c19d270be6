//! Points in time and spans, in milliseconds. There is no `now()` here: the shell hands it in.

use std::fmt;
use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp(pub i64);

/// A length of time in whole milliseconds. The API's "0 means none" is kept: see [`Span::given`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Span(pub i64);

impl Span {
    pub const ZERO: Self = Self(0);
    /// The longest span that is accepted (a hundred years): sums with a timestamp never overflow.
    pub const MAX: Self = Self(100 * 366 * 24 * 3600 * 1000);

    #[must_use]
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs * 1000)
    }

    /// `None` where the API's 0 stands for "not set".
    pub fn given(self) -> Option<Self> {
        (self.0 > 0).then_some(self)
    }

    /// The API's duration, rounded up to a millisecond and capped at [`Span::MAX`]; absent is 0.
    /// Negative durations stay negative, so that validation can refuse them.
    pub fn from_proto(duration: Option<&prost_types::Duration>) -> Self {
        let Some(d) = duration else { return Self::ZERO };
        let millis = d
            .seconds
            .saturating_mul(1000)
            .saturating_add((i64::from(d.nanos) + 999_999).div_euclid(1_000_000));
        Self(millis.min(Self::MAX.0))
    }

    pub fn to_proto(self) -> prost_types::Duration {
        prost_types::Duration {
            seconds: self.0.div_euclid(1000),
            nanos: (self.0.rem_euclid(1000) * 1_000_000) as i32,
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

impl Timestamp {
    pub fn to_proto(self) -> prost_types::Timestamp {
        prost_types::Timestamp {
            seconds: self.0.div_euclid(1000),
            nanos: (self.0.rem_euclid(1000) * 1_000_000) as i32,
        }
    }

    pub fn from_proto(time: Option<&prost_types::Timestamp>) -> Option<Self> {
        time.map(|t| {
            Self(t.seconds.saturating_mul(1000).saturating_add(i64::from(t.nanos) / 1_000_000))
        })
    }
}

impl Add<Span> for Timestamp {
    type Output = Self;

    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Sub for Timestamp {
    type Output = Span;

    fn sub(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}
