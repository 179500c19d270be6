//! Values in filters: texts and numbers, read as what the attribute beside them is.

use piton_proto::enums::WorkflowExecutionStatus;
use serde::{Deserialize, Serialize};

use super::{Attribute, Type, Value};

/// A value to compare with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Literal {
    Text(String),
    Number(i128),
}

impl Literal {
    pub(super) fn as_value(&self) -> Value<'_> {
        match self {
            Self::Text(text) => Value::Text(text),
            Self::Number(number) => Value::Number(*number),
        }
    }

    /// The text inside of quotes.
    pub(super) fn from_text(text: &str, attribute: Attribute) -> Result<Self, String> {
        let name = attribute.name;
        match attribute.kind {
            Type::Keyword => Ok(Self::Text(text.to_owned())),
            Type::Status => status(text),
            Type::Time => time(text)
                .map(Self::Number)
                .ok_or_else(|| format!("unable to parse datetime '{text}'")),
            Type::Int => Err(attribute.wrong(&format!("\"{text}\""), "string")),
            Type::Duration => duration(text).map(Self::Number).ok_or_else(|| {
                format!("invalid duration value for search attribute {name}: {text}")
            }),
        }
    }

    pub(super) fn from_number(digits: &str, attribute: Attribute) -> Result<Self, String> {
        let is_whole = !digits.contains(['.', 'e', 'E']);
        let go_type = if is_whole { "int64" } else { "float64" };
        let name = attribute.name;
        match attribute.kind {
            Type::Duration if !is_whole => {
                return Err(format!("unexpected value type float64 for search attribute {name}"));
            }
            Type::Keyword => return Err(attribute.wrong(digits, go_type)),
            Type::Time if !is_whole => return Err(attribute.wrong(digits, go_type)),
            Type::Status | Type::Time | Type::Int | Type::Duration => {}
        }
        let number = whole(digits).ok_or_else(|| format!("'{digits}' is not a whole number"))?;
        match attribute.kind {
            Type::Status => i32::try_from(number)
                .ok()
                .and_then(|n| WorkflowExecutionStatus::try_from(n).ok())
                .filter(|s| *s != WorkflowExecutionStatus::Unspecified)
                .map(|s| Self::Number(i128::from(s as i32)))
                .ok_or_else(|| format!("invalid {name} value '{digits}'")),
            Type::Keyword | Type::Time | Type::Int | Type::Duration => Ok(Self::Number(number)),
        }
    }
}

impl Attribute {
    /// A value of a type that the attribute does not have, named as the official server's language does.
    fn wrong(self, value: &str, go_type: &str) -> String {
        let kind = match self.kind {
            Type::Keyword | Type::Status => "Keyword",
            Type::Time => "Datetime",
            Type::Int | Type::Duration => "Int",
        };
        let name = self.name;
        format!(
            "invalid value type for search attribute {name} of type {kind}: {value} (type: {go_type})"
        )
    }
}

/// `12`, `-3.50` only if nothing is left of its fraction, `2e9`, `2.5E3`.
fn whole(digits: &str) -> Option<i128> {
    let (number, exponent) = match digits.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
        None => (digits, 0),
    };
    let (sign, number) = match number.strip_prefix('-') {
        Some(number) => (-1, number),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (before, after) = number.split_once('.').unwrap_or((number, ""));
    let after = after.trim_end_matches('0');
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (before.is_empty() && after.is_empty()) || !is_number(before) || !is_number(after) {
        return None;
    }
    let zeros = u32::try_from(exponent.checked_sub(i32::try_from(after.len()).ok()?)?).ok()?;
    let value: i128 = format!("{before}{after}").parse().ok()?;
    value.checked_mul(10i128.checked_pow(zeros)?)?.checked_mul(sign)
}

fn status(name: &str) -> Result<Literal, String> {
    use WorkflowExecutionStatus as S;
    let known = [
        ("Running", S::Running),
        ("Completed", S::Completed),
        ("Failed", S::Failed),
        ("Canceled", S::Canceled),
        ("Terminated", S::Terminated),
        ("ContinuedAsNew", S::ContinuedAsNew),
        ("TimedOut", S::TimedOut),
        ("Paused", S::Paused),
    ];
    let camel = known.iter().find(|(known, _)| *known == name).map(|(_, status)| *status);
    camel
        .or_else(|| S::from_str_name(name).filter(|s| *s != S::Unspecified))
        .map(|status| Literal::Number(i128::from(status as i32)))
        .ok_or_else(|| format!("invalid ExecutionStatus value '{name}'"))
}

/// `2024-05-01T10:20:30.123456789+02:00` or `...Z` as nanoseconds since the epoch.
fn time(text: &str) -> Option<i128> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = rest.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let (nanos, zone) = match rest.strip_prefix('.') {
        Some(fraction) => {
            let end = fraction.find(|c: char| !c.is_ascii_digit())?;
            (fraction_nanos(&fraction[..end])?, &fraction[end..])
        }
        None => (0, rest),
    };
    let in_range = (1..=12).contains(&month)
        && (1..=days_of_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range {
        return None;
    }
    let local = days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(i128::from(local - zone_seconds(zone)?) * 1_000_000_000 + i128::from(nanos))
}

/// Three numbers of fixed widths with a separator between them.
fn numbers(text: &str, separator: char, widths: [usize; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let mut found = [0; 3];
    for (number, width) in found.iter_mut().zip(widths) {
        let part = parts.next()?;
        if part.len() != width || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

fn fraction_nanos(digits: &str) -> Option<i64> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    format!("{digits:0<9}").parse().ok()
}

/// How far a zone is ahead of UTC.
fn zone_seconds(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    let two = |text: &str| {
        let is_two = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        is_two.then(|| text.parse::<i64>().ok()).flatten()
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn days_of_month(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar (Howard Hinnant's `days_from_civil`).
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// `1h30m`, `1.5s`, `01:30:00` or a number of nanoseconds, as nanoseconds.
fn duration(text: &str) -> Option<i128> {
    if let Ok(nanos) = text.parse() {
        return Some(nanos);
    }
    if text.contains(':') {
        let mut parts = text.split(':');
        let mut number = || parts.next()?.parse::<u32>().ok().map(i128::from);
        let (hours, minutes, seconds) = (number()?, number()?, number()?);
        let is_clock = parts.next().is_none() && minutes < 60 && seconds < 60;
        return is_clock.then_some((hours * 3600 + minutes * 60 + seconds) * 1_000_000_000);
    }
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let mut total = 0i128;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(unit_at);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        total = total.checked_add(scaled(number, unit_nanos(unit)?)?)?;
        rest = after;
    }
    (!text.is_empty() && rest.is_empty() && text != "-").then_some(sign * total)
}

fn unit_nanos(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => return None,
    })
}

/// A decimal number times a unit.
fn scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 15 || whole.len() > 18 {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    Some(whole * unit + part * unit / 10i128.pow(fraction.len() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond_in_any_zone() {
        const SECOND: i128 = 1_000_000_000;
        for (text, nanos) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1969-12-31T23:59:59Z", Some(-SECOND)),
            ("2024-02-29T12:00:00.5+02:00", Some(1_709_200_800 * SECOND + SECOND / 2)),
            ("2000-03-01T00:00:00.000000001Z", Some(951_868_800 * SECOND + 1)),
            ("2023-02-29T12:00:00Z", None),
            ("2023-13-01T12:00:00Z", None),
            ("2023-01-01T24:00:00Z", None),
            ("2023-01-01T12:00:00", None),
            ("2023-01-01", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(time(text), nanos, "{text}");
        }
    }

    #[test]
    fn whole_numbers_are_read_with_exponents_too() {
        for (text, number) in [
            ("12", Some(12)),
            ("-12", Some(-12)),
            ("+7", Some(7)),
            ("2e9", Some(2_000_000_000)),
            ("2.5E3", Some(2_500)),
            ("2.50", None),
            ("2.00", Some(2)),
            ("-1.5e1", Some(-15)),
            ("1e-1", None),
            ("1e99", None),
            ("1e", None),
            ("e9", None),
            (".", None),
            ("--1", None),
            ("1-1", None),
            ("", None),
        ] {
            assert_eq!(whole(text), number, "{text}");
        }
    }

    #[test]
    fn durations_are_read_in_the_usual_ways() {
        const SECOND: i128 = 1_000_000_000;
        for (text, nanos) in [
            ("1h30m", Some(5_400 * SECOND)),
            ("1.5s", Some(SECOND * 3 / 2)),
            ("-2m", Some(-120 * SECOND)),
            ("01:30:05", Some(5_405 * SECOND)),
            ("250", Some(250)),
            ("1h30", None),
            ("1x", None),
            ("00:99:00", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(duration(text), nanos, "{text}");
        }
    }
}
