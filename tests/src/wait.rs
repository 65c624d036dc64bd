//! Waiting for what other processes do.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How long anything may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Looks again and again until there is something; an error is no end until the time is over.
///
/// # Errors
/// It did not come within three minutes; with the last error of looking, if the last look failed.
#[expect(clippy::disallowed_methods, reason = "what others show can only be looked at again")]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(Some(found)) => return Ok(found),
            Err(error) if begin.elapsed() > LIMIT => {
                return Err(error.context(format!("{what} did not come")));
            }
            Ok(None) if begin.elapsed() > LIMIT => bail!("{what} did not come"),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
