//! Scalars with a text form of their own: times, bytes, quantities.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use jiff::Timestamp;

/// As Go's `base64.StdEncoding`: padding is required, the unused bits of the last symbol are not looked at.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Decodes base64; line breaks are ignored.
pub(crate) fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    let clean: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    BASE64.decode(&clean).map_err(|e| {
        let at = match e {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(_) => clean.trim_end_matches('=').len() / 4 * 4,
            base64::DecodeError::InvalidPadding => clean.len(),
        };
        format!("illegal base64 data at input byte {at}")
    })
}

/// Encodes base64.
pub(crate) fn encode_base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// Reads an RFC 3339 time; `micro` asks for exactly six digits of a second, as upstream does for MicroTime.
pub(crate) fn parse_time(text: &str, micro: bool) -> Result<Timestamp, String> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let fail = |rest: &str, part: &str| {
        Err(format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {part:?}"))
    };
    let mut rest = text;
    for (part, digits) in [
        ("2006", 4),
        ("-", 0),
        ("01", 2),
        ("-", 0),
        ("02", 2),
        ("T", 0),
        ("15", 2),
        (":", 0),
        ("04", 2),
        (":", 0),
        ("05", 2),
    ] {
        let next = if digits == 0 {
            rest.strip_prefix(part)
        } else {
            rest.get(..digits).filter(|d| d.bytes().all(|b| b.is_ascii_digit())).and(rest.get(digits..))
        };
        match next {
            Some(next) => rest = next,
            None => return fail(rest, part),
        }
    }
    let fraction = rest.strip_prefix('.').map_or(0, |r| r.bytes().take_while(u8::is_ascii_digit).count());
    if micro && fraction != 6 {
        return fail(rest, ".000000");
    }
    if fraction > 0 {
        rest = rest.get(fraction + 1..).unwrap_or_default();
    }
    let b = rest.as_bytes();
    let digit = |i: usize| b.get(i).is_some_and(u8::is_ascii_digit);
    let zone = rest == "Z"
        || (b.len() == 6
            && matches!(b[0], b'+' | b'-')
            && b[3] == b':'
            && [1, 2, 4, 5].into_iter().all(digit));
    if !zone {
        return fail(rest, "Z07:00");
    }
    text.parse::<Timestamp>().map_err(|_| format!("parsing time {text:?}: day out of range"))
}

/// Writes a time as upstream does: UTC, whole seconds or six digits.
pub(crate) fn format_time(time: Timestamp, micro: bool) -> String {
    let format = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    // Go cuts the fraction of a second off; rounding down keeps times before 1970 right, too.
    time.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let t = parse_time("2024-02-29T12:00:00+02:00", false).unwrap();
        assert_eq!(format_time(t, false), "2024-02-29T10:00:00Z");
        let t = parse_time("2024-02-29T12:00:00.123456Z", true).unwrap();
        assert_eq!(format_time(t, true), "2024-02-29T12:00:00.123456Z");
        assert_eq!(format_time(t, false), "2024-02-29T12:00:00Z");
        assert_eq!(
            parse_time("yesterday", false).unwrap_err(),
            "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\""
        );
        assert!(parse_time("2024-02-30T12:00:00Z", false).is_err());
        assert!(parse_time("2024-02-29T12:00:00Z", true).is_err());
        assert!(parse_time("2024-02-29T12:00:00.1+0200", false).is_err());
    }

    #[test]
    fn bytes() {
        assert_eq!(decode_base64("aGk=").unwrap(), b"hi");
        assert_eq!(decode_base64("%%%").unwrap_err(), "illegal base64 data at input byte 0");
        assert_eq!(decode_base64("aG\nk=").unwrap(), b"hi");
        assert!(decode_base64("aGk").is_err());
    }
}
