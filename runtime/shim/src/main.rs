//! Per-pod shim: owns the pod's namespaces and log pipes, starts helpers, reaps containers.
//!
//! Called `/pause` it is the first process of a PID namespace that a pod's containers share: it waits, and reaps.
//!
//! One process a pod, single-threaded, one poll loop. It is started with the sandbox's run directory as its only
//! argument and the runtime helper's executable as standard input, detaches itself, writes `ok` to standard output
//! when its socket listens, and lives until it is told to shut down: an agent's end, restart or upgrade does not
//! concern it.

mod container;
mod helper;
mod log;
mod server;
mod setup;
mod sys;
mod users;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == setup::PAUSE) {
        sys::wait_for_ever();
    }
    let mut arguments = std::env::args_os().skip(1);
    let (Some(dir), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: kelp-shim <run directory of a sandbox>; the agent starts it");
        return ExitCode::from(2);
    };
    match sys::detach() {
        Ok(sys::Side::Parent) => return ExitCode::SUCCESS,
        Ok(sys::Side::Child) => {}
        Err(error) => {
            eprintln!("cannot detach: {error}");
            return ExitCode::FAILURE;
        }
    }
    let mut shim = match setup::prepare(Path::new(&dir)).and_then(server::Shim::new) {
        Ok(shim) => shim,
        Err(error) => {
            // The agent reads the reason from the pipe that it waits on.
            let _ = writeln!(std::io::stdout(), "{error}");
            return ExitCode::FAILURE;
        }
    };
    let _ = writeln!(std::io::stdout(), "ok");
    match sys::release_standard_streams(shim.dev_null()).and_then(|()| shim.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shim ends: {error}");
            ExitCode::FAILURE
        }
    }
}
