//! Logging to standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging. A filter that cannot be parsed is reported and `info` used.
pub fn init(filter: &str) {
    let parsed = EnvFilter::try_new(filter);
    let bad = parsed.as_ref().err().map(ToString::to_string);
    tracing_subscriber::fmt()
        .with_env_filter(parsed.unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if let Some(error) = bad {
        tracing::warn!(filter, error, "cannot parse the log filter, using info");
    }
}
