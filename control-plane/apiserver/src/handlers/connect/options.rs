//! Query parameters of connections, read as upstream's conversions do.

use crate::error::{ApiError, quote};
use crate::request::Query;

/// A boolean: present and neither `0` nor `false`.
pub(super) fn flag(query: &Query, name: &str) -> bool {
    query.get(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
}

/// Numbers that fit 32 bits.
pub(super) fn numbers(query: &Query, name: &str) -> Result<Vec<i32>, ApiError> {
    query
        .all(name)
        .map(|text| {
            text.parse::<i64>()
                .map_err(|_| "invalid syntax")
                .and_then(|value| i32::try_from(value).map_err(|_| "value out of range"))
                .map_err(|why| {
                    ApiError::bad_request(format!("strconv.ParseInt: parsing {}: {why}", quote(text)))
                })
        })
        .collect()
}

/// The parts of `scheme:name:port`, of which only the name must be there.
pub(super) fn split(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    (!name.is_empty() && matches!(scheme, "" | "http" | "https")).then_some((scheme, name, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_upstream_does() {
        let query = Query::parse("stdin=1&tty=False&stdout=&ports=80&ports=x&big=9999999999");
        assert!(flag(&query, "stdin") && flag(&query, "stdout"));
        assert!(!flag(&query, "tty") && !flag(&query, "stderr"));
        let error = numbers(&query, "ports").expect_err("not a number");
        assert_eq!(error.message(), "strconv.ParseInt: parsing \"x\": invalid syntax");
        let error = numbers(&query, "big").expect_err("too large");
        assert_eq!(error.message(), "strconv.ParseInt: parsing \"9999999999\": value out of range");
        assert_eq!(split("a"), Some(("", "a", "")));
        assert_eq!(split("a:80"), Some(("", "a", "80")));
        assert_eq!(split("https:a:"), Some(("https", "a", "")));
        assert_eq!((split("ftp:a:1"), split(":80"), split("a:b:c:d")), (None, None, None));
    }
}
