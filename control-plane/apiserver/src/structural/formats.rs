//! Formats of strings that are checked; others are ignored. Source: go-openapi's `strfmt`, as
//! `pkg/apiserver/validation/formats.go` of apiextensions-apiserver lists them.

use super::Structural;
use regex::Regex;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// Formats of strings, without dashes.
const STRINGS: &[&str] = &[
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
];

/// The schema's format if it is one that is checked, empty otherwise.
pub(super) fn supported(schema: &Structural) -> &str {
    let format = &*schema.limits.format;
    let known = match &*schema.kind {
        "" | "string" => STRINGS.contains(&format.replace('-', "").as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    };
    if known { format } else { "" }
}

static PATTERNS: LazyLock<Vec<(&'static str, Option<Regex>)>> = LazyLock::new(|| {
    [
        ("bsonobjectid", r"^[0-9a-fA-F]{24}$"),
        ("uuid", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
        ("uuid3", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
        ("uuid4", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
        ("uuid5", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
        ("ssn", r"^\d{3}[- ]?\d{2}[- ]?\d{4}$"),
        ("hexcolor", r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
        (
            "rgbcolor",
            r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$",
        ),
        (
            "hostname",
            r"^([a-zA-Z0-9\p{L}]([a-zA-Z0-9\-\p{L}]{0,61}[a-zA-Z0-9\p{L}])?\.)*[a-zA-Z0-9\p{L}]([a-zA-Z0-9\-\p{L}]{0,61}[a-zA-Z0-9\p{L}])?$",
        ),
        ("email", r#"^[^\s@<>(),;:\\"\[\]]+@[^\s@<>(),;:\\"]+$"#),
        ("mac", r"^([0-9a-fA-F]{2}([:-]))([0-9a-fA-F]{2}[:-]){4,18}[0-9a-fA-F]{2}$|^([0-9a-fA-F]{4}\.){2,9}[0-9a-fA-F]{4}$"),
        (
            "creditcard",
            r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$",
        ),
    ]
    .into_iter()
    .map(|(name, pattern)| (name, Regex::new(pattern).ok()))
    .collect()
});

/// Whether a text has a format.
pub(crate) fn is_valid(format: &str, text: &str) -> bool {
    let format = format.replace('-', "");
    match format.as_str() {
        "password" => true,
        "byte" => crate::codec::decode_base64(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, length)| {
            let most = match address.parse::<std::net::IpAddr>() {
                Ok(address) if address.is_ipv4() => 32,
                Ok(_) => 128,
                Err(_) => return false,
            };
            let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
            digits && length.parse::<u32>().is_ok_and(|length| length <= most)
        }),
        "uri" => text.starts_with('/') || url::Url::parse(text).is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "datetime" => is_time(text),
        "duration" => duration(text).is_some(),
        "k8sshortname" => kelp_model::names::dns1123_label(text).is_empty(),
        "k8slongname" => kelp_model::names::dns1123_subdomain(text).is_empty(),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "isbn" => isbn10(text) || isbn13(text),
        "creditcard" => matches(&format, &text.chars().filter(char::is_ascii_digit).collect::<String>()),
        _ => matches(&format, text),
    }
}

fn matches(format: &str, text: &str) -> bool {
    let found = PATTERNS.iter().find(|(name, _)| *name == format).and_then(|(_, regex)| regex.as_ref());
    found.is_none_or(|regex| regex.is_match(text))
}

/// An RFC 3339 date and time.
fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let separated = bytes.get(10).is_some_and(|b| matches!(b, b'T' | b't'));
    separated && text.parse::<jiff::Timestamp>().is_ok()
}

/// A duration as Go prints it (`1h30m`), or a number and a unit in words (`3 days`), in nanoseconds.
pub(crate) fn duration(text: &str) -> Option<i64> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let signed = |nanos: i64| if negative { -nanos } else { nanos };
    if let Ok(duration) = crate::request::go_duration(rest) {
        return i64::try_from(duration.as_nanos()).ok().map(signed);
    }
    let at = rest.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = rest.split_at(at);
    let number: i64 = number.parse().ok()?;
    let scale: i64 = match unit.trim() {
        "ns" | "nano" | "nanosecond" | "nanos" | "nanoseconds" => 1,
        "us" | "µs" | "micro" | "microsecond" | "micros" | "microseconds" => 1_000,
        "ms" | "milli" | "millisecond" | "millis" | "milliseconds" => 1_000_000,
        "s" | "sec" | "second" | "secs" | "seconds" => 1_000_000_000,
        "m" | "min" | "minute" | "mins" | "minutes" => 60_000_000_000,
        "h" | "hr" | "hour" | "hrs" | "hours" => 3_600_000_000_000,
        "d" | "day" | "days" => 86_400_000_000_000,
        "w" | "wk" | "week" | "wks" | "weeks" => 604_800_000_000_000,
        _ => return None,
    };
    number.checked_mul(scale).map(signed)
}

fn digits(text: &str) -> Vec<u32> {
    text.chars()
        .filter(|c| !matches!(c, '-' | ' '))
        .map(|c| if c == 'X' { 10 } else { c.to_digit(10).unwrap_or(99) })
        .collect()
}

fn isbn10(text: &str) -> bool {
    let digits = digits(text);
    let valid =
        digits.len() == 10 && digits.iter().take(9).all(|d| *d < 10) && digits.iter().all(|d| *d <= 10);
    valid && digits.iter().zip(1u32..).map(|(digit, place)| digit * place).sum::<u32>() % 11 == 0
}

fn isbn13(text: &str) -> bool {
    let digits = digits(text);
    let valid = digits.len() == 13 && digits.iter().all(|d| *d < 10);
    valid
        && digits.iter().zip([1, 3].iter().cycle()).map(|(digit, factor)| digit * factor).sum::<u32>() % 10
            == 0
}
