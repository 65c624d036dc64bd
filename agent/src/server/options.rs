//! Query of a log request.

use super::query::Query;
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
    /// Only `stdout` or `stderr`.
    pub stream: Option<&'static str>,
}

fn flag(value: &str) -> Result<bool, String> {
    match value {
        "" | "false" | "0" => Ok(false),
        "true" | "1" => Ok(true),
        other => Err(format!("invalid boolean {other:?}")),
    }
}

impl LogOptions {
    /// Reads a query string; unknown parameters are ignored.
    ///
    /// # Errors
    /// A value is malformed; the text says which.
    pub fn parse(query: &Query) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in query.iter() {
            let number = || value.parse::<u64>().map_err(|_| format!("invalid {name} {value:?}"));
            match name {
                "follow" => options.follow = flag(value)?,
                "previous" => options.previous = flag(value)?,
                "timestamps" => options.timestamps = flag(value)?,
                // The older name; `all` is no limit.
                "tail" if value == "all" => options.tail = None,
                "tailLines" | "tail" if !value.is_empty() => options.tail = Some(number()?),
                "stream" => {
                    options.stream = match value {
                        "" | "All" => None,
                        "Stdout" => Some("stdout"),
                        "Stderr" => Some("stderr"),
                        other => return Err(format!("invalid stream {other:?}")),
                    };
                }
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

    fn parsed(query: &str) -> Result<LogOptions, String> {
        LogOptions::parse(&Query::parse(query))
    }

    #[test]
    fn queries() {
        let o =
            parsed("follow=true&tailLines=5&timestamps=1&sinceTime=2026-01-01T00%3A00%3A00Z&x=y").unwrap();
        assert!(o.follow && o.timestamps && !o.previous);
        assert_eq!((o.tail, o.since), (Some(5), Some("2026-01-01T00:00:00Z".parse().unwrap())));
        assert_eq!(parsed("").unwrap(), LogOptions::default());
        assert_eq!(parsed("stream=Stderr&tail=all").unwrap().stream, Some("stderr"));
        assert_eq!(parsed("tail=7&stream=All").unwrap().tail, Some(7));
        for bad in [
            "stream=x",
            "follow=maybe",
            "tailLines=-1",
            "sinceTime=yesterday",
            "limitBytes=x",
            "tailLines=%zz",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
