//! One binary: node agent, dataplane and control plane.
//!
//! Argument parsing and wiring only. [`run`] starts the parts by hand; each part is a library that takes its
//! configuration, a ready Kubernetes client and a shutdown token.

mod check;
mod cli;
mod control_plane;
mod host;
mod image;
mod kubeconfig;
mod logging;
mod look;
mod node;
mod node_address;
mod parts;
mod pki;
mod run;
mod signals;
mod systemd;

use anyhow::{Context, Result};
use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match invoked_as() {
        // The seam for being called by an upstream name; each gets its own flags and configuration kinds.
        Some(
            component @ ("kube-apiserver"
            | "kube-controller-manager"
            | "kube-scheduler"
            | "kubelet"
            | "kube-proxy"),
        ) => {
            eprintln!(
                "kelp does not take {component}'s flags yet; use `kelp up`, `kelp server` or `kelp agent`"
            );
            return ExitCode::from(2);
        }
        _ => Cli::parse(),
    };
    logging::init(&cli.log_level);
    match execute(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kelp: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The upstream component the program was called as, by the file name of its first argument.
fn invoked_as() -> Option<&'static str> {
    let program = std::env::args_os().next()?;
    let name = std::path::Path::new(&program).file_name()?.to_str()?.to_owned();
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"]
        .into_iter()
        .find(|&component| component == name)
}

fn execute(cli: Cli) -> Result<ExitCode> {
    let served = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match cli.command {
        Command::Up(args) => served(runtime()?.block_on(run::up(*args))),
        Command::Server(args) => served(runtime()?.block_on(run::server(*args))),
        Command::Agent(args) => served(runtime()?.block_on(run::agent(*args))),
        Command::Image(command) => served(image::run(&command)),
        Command::Service(command) => served(look::service(&command)),
        Command::Endpoint(command) => served(look::endpoint(&command)),
        Command::Ct(command) => served(look::ct(&command)),
        Command::Flows(args) => served(look::flows(&args)),
        Command::Policy(command) => served(look::policy(&command)),
        Command::Kubeconfig(args) => kubeconfig::print(&args).map(|()| ExitCode::SUCCESS),
        Command::Check(args) => Ok(check::run(&args)),
        Command::Version => {
            println!("kelp {} (Kubernetes API 1.36)", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The one asynchronous runtime of the process.
fn runtime() -> Result<tokio::runtime::Runtime> {
    // ring is the only provider compiled in; rustls wants one named all the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cpus.clamp(2, 4)) // more threads cost memory, and the work is short
        .max_blocking_threads(16)
        .thread_name("kelp")
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")
}
