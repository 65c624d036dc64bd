//! Durations as Go's `time.ParseDuration` reads them: `1h15m30.5s`.

use crate::error::quote;
use std::time::Duration;

/// Nanoseconds of a unit.
fn unit(name: &str) -> Option<u64> {
    Some(match name {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Reads a duration; negative ones become zero, as no caller tells them apart.
///
/// # Errors
/// Go's text.
pub fn go_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at(digits(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (name, after) = after.split_at(end);
        if name.is_empty() {
            return Err(format!("time: missing unit in duration {}", quote(text)));
        }
        let Some(unit) = unit(name) else {
            return Err(format!("time: unknown unit {} in duration {}", quote(name), quote(text)));
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        let part = format!("0.{fraction}0").parse::<f64>().unwrap_or_default() * unit as f64;
        let value = whole.checked_mul(unit).and_then(|v| v.checked_add(part as u64));
        total = value.and_then(|v| total.checked_add(v)).filter(|v| *v <= 1 << 63).ok_or_else(invalid)?;
        rest = after;
    }
    Ok(if negative { Duration::ZERO } else { Duration::from_nanos(total) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_go_reads_them() {
        let good = |text: &str| go_duration(text).map(|d| d.as_millis());
        assert_eq!(good("1h15m30.5s"), Ok(4_530_500));
        assert_eq!(good("1.5h"), Ok(5_400_000));
        assert_eq!(good(".5s"), Ok(500));
        assert_eq!(good("0"), Ok(0));
        assert_eq!(good("-3s"), Ok(0));
        let bad = |text: &str| go_duration(text).expect_err("malformed");
        assert_eq!(bad("abc"), "time: invalid duration \"abc\"");
        assert_eq!(bad(""), "time: invalid duration \"\"");
        assert_eq!(bad("30"), "time: missing unit in duration \"30\"");
        assert_eq!(bad("5x"), "time: unknown unit \"x\" in duration \"5x\"");
        assert_eq!(bad("9999999999h"), "time: invalid duration \"9999999999h\"");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-+0-9.a-zµ]{0,20}") {
            let _ = go_duration(&text);
        }
    }
}
