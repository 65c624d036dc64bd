//! Durations as Go's `time` package reads and writes them: `1h15m30.5s`, `5m0s`, `100ms`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration in nanoseconds, which may be negative. Its text is Go's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(pub i64);

/// Units and their nanoseconds.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl GoDuration {
    /// Of whole seconds.
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// Without a sign: what is negative is no time at all.
    pub fn as_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }

    /// Whole seconds, cut off.
    pub const fn as_secs(self) -> i64 {
        self.0 / 1_000_000_000
    }

    /// It is no time at all, as Go's zero value.
    pub const fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("time: invalid duration {text:?}");
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (whole, after) = rest.split_at(digits);
            let (fraction, after) = match after.strip_prefix('.') {
                Some(after) => {
                    let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
                    after.split_at(digits)
                }
                None => ("", after),
            };
            if whole.is_empty() && fraction.is_empty() {
                return Err(invalid());
            }
            let unit =
                after.len() - after.trim_start_matches(|c: char| !c.is_ascii_digit() && c != '.').len();
            let (unit, after) = after.split_at(unit);
            if unit.is_empty() {
                return Err(format!("time: missing unit in duration {text:?}"));
            }
            let (_, scale) = UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(|| format!("time: unknown unit {unit:?} in duration {text:?}"))?;
            let number = |digits: &str| -> Result<i128, String> {
                if digits.is_empty() { Ok(0) } else { digits.parse().map_err(|_| invalid()) }
            };
            let scale = i128::from(*scale);
            total = total.saturating_add(number(whole)?.saturating_mul(scale));
            // More digits than nanoseconds have say nothing.
            let fraction = fraction.get(..fraction.len().min(18)).unwrap_or_default();
            let power = 10i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
            total = total.saturating_add(number(fraction)? * scale / power);
            rest = after;
        }
        let total = if negative { -total } else { total };
        i64::try_from(total).map(Self).map_err(|_| invalid())
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 == 0 {
            return f.write_str("0s");
        }
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let fraction = |f: &mut fmt::Formatter<'_>, value: u64, unit: u64, name: &str| {
            let (whole, rest) = (value / unit, value % unit);
            if rest == 0 {
                return write!(f, "{whole}{name}");
            }
            let width = unit.ilog10() as usize;
            let digits = format!("{rest:0width$}");
            write!(f, "{whole}.{}{name}", digits.trim_end_matches('0'))
        };
        match nanos {
            0..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => fraction(f, nanos, 1_000, "µs"),
            1_000_000..1_000_000_000 => fraction(f, nanos, 1_000_000, "ms"),
            _ => {
                let minutes = nanos / 60_000_000_000;
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                fraction(f, nanos % 60_000_000_000, 1_000_000_000, "s")
            }
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_of_go() {
        for (text, nanos, shown) in [
            ("0", 0, "0s"),
            ("5m", 300_000_000_000, "5m0s"),
            ("4h", 14_400_000_000_000, "4h0m0s"),
            ("1h15m30.918s", 4_530_918_000_000, "1h15m30.918s"),
            ("-1.5h", -5_400_000_000_000, "-1h30m0s"),
            ("100ms", 100_000_000, "100ms"),
            ("1.5ms", 1_500_000, "1.5ms"),
            ("+12us", 12_000, "12µs"),
            (".5s", 500_000_000, "500ms"),
            ("1.s", 1_000_000_000, "1s"),
        ] {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!((parsed.0, parsed.to_string().as_str()), (nanos, shown), "{text}");
        }
        for (text, error) in [
            ("", "time: invalid duration \"\""),
            ("10", "time: missing unit in duration \"10\""),
            ("1x", "time: unknown unit \"x\" in duration \"1x\""),
            (".s", "time: invalid duration \".s\""),
            ("3000000h", "time: invalid duration \"3000000h\""),
        ] {
            assert_eq!(text.parse::<GoDuration>().unwrap_err(), error);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(nanos in i64::MIN + 1..=i64::MAX) {
            prop_assert_eq!(GoDuration(nanos).to_string().parse::<GoDuration>(), Ok(GoDuration(nanos)));
        }
    }
}
