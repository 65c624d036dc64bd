//! Pages about this process for whoever looks for a fault: `/debug/pprof/cmdline`, `/flagz`, `/statusz`.

use super::Server;
use super::answer::{Answer, text};
use super::host;
use crate::node::status::KUBELET_VERSION;
use crate::runtime::Runtime;
use http::StatusCode;

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";
/// What is served, for `/statusz`.
const PATHS: &str = "/attach /checkpoint /configz /containerLogs /debug/pprof/cmdline /exec /flagz /healthz /logs /metrics /metrics/cadvisor /metrics/probes /metrics/resource /pods /portForward /run /runningpods /stats/summary /statusz";

/// The arguments of this process, a zero byte between two.
pub(super) fn command_line() -> Answer {
    let arguments: Vec<String> = std::env::args().collect();
    text(StatusCode::OK, arguments.join("\0"))
}

/// A line a flag of the command line: those that were given.
fn flags(arguments: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut arguments = arguments.iter().skip(1).peekable();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--") else { continue };
        let value = match flag.split_once('=') {
            Some((name, value)) => format!("{name}={value}"),
            None => match arguments.next_if(|next| !next.starts_with('-')) {
                Some(value) => format!("{flag}={value}"),
                None => format!("{flag}=true"),
            },
        };
        found.push(value);
    }
    found.sort();
    found
}

/// Time as `/statusz` writes it: `1 hr 02 min 03 sec`.
fn long(seconds: i64) -> String {
    format!("{} hr {:02} min {:02} sec", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

impl<R: Runtime + Clone> Server<R> {
    /// `/flagz`.
    pub(super) fn flags(&self) -> Answer {
        let arguments: Vec<String> = std::env::args().collect();
        let lines = flags(&arguments).join("\n");
        text(StatusCode::OK, format!("\nkubelet flagz\n{WARNING}\n\n{lines}\n"))
    }

    /// `/statusz`.
    pub(super) fn status_page(&self) -> Answer {
        let started = host::process_started();
        let up = jiff::Timestamp::now().duration_since(started).as_secs().max(0);
        let lines = [
            format!("Started: {}", started.strftime("%a %b %e %H:%M:%S UTC %Y")),
            format!("Up: {}", long(up)),
            format!("Binary version: {KUBELET_VERSION}"),
            format!("Paths: {PATHS}"),
        ];
        text(StatusCode::OK, format!("\nkubelet statusz\n{WARNING}\n\n{}\n", lines.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_in_all_their_forms() {
        let arguments = ["kelp", "agent", "--v=2", "--node-name", "n", "--quiet", "--b"];
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        assert_eq!(flags(&arguments), ["b=true", "node-name=n", "quiet=true", "v=2"]);
        assert_eq!(long(3723), "1 hr 02 min 03 sec");
    }
}
