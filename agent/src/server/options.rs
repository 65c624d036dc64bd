//! Query of a log request.

use jiff::Timestamp;

/// What is asked of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Of the attempt before.
    pub previous: bool,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail: Option<u64>,
    /// Only lines from then on.
    pub since: Option<Timestamp>,
    /// Stop after so many bytes.
    pub limit: Option<u64>,
}

fn flag(value: &str) -> Result<bool, String> {
    match value {
        "" | "false" | "0" => Ok(false),
        "true" | "1" => Ok(true),
        other => Err(format!("invalid boolean {other:?}")),
    }
}

/// Undoes percent encoding; `+` is a space.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = || std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok();
        match (bytes[at], hex().and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl LogOptions {
    /// Reads a query string; unknown parameters are ignored.
    ///
    /// # Errors
    /// A value is malformed; the text says which.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value);
            let number = || value.parse::<u64>().map_err(|_| format!("invalid {name} {value:?}"));
            match name {
                "follow" => options.follow = flag(&value)?,
                "previous" => options.previous = flag(&value)?,
                "timestamps" => options.timestamps = flag(&value)?,
                "tailLines" => options.tail = Some(number()?),
                "limitBytes" => options.limit = Some(number()?),
                "sinceSeconds" => {
                    let seconds =
                        i64::try_from(number()?).map_err(|_| format!("invalid {name} {value:?}"))?;
                    let since = Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds));
                    options.since = Some(since.unwrap_or(Timestamp::MIN));
                }
                "sinceTime" => {
                    options.since = Some(value.parse().map_err(|_| format!("invalid sinceTime {value:?}"))?);
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let o =
            LogOptions::parse("follow=true&tailLines=5&timestamps=1&sinceTime=2026-01-01T00%3A00%3A00Z&x=y")
                .unwrap();
        assert!(o.follow && o.timestamps && !o.previous);
        assert_eq!((o.tail, o.since), (Some(5), Some("2026-01-01T00:00:00Z".parse().unwrap())));
        assert_eq!(LogOptions::parse("").unwrap(), LogOptions::default());
        for bad in ["follow=maybe", "tailLines=-1", "sinceTime=yesterday", "limitBytes=x", "tailLines=%zz"] {
            assert!(LogOptions::parse(bad).is_err(), "{bad}");
        }
    }
}
