//! The command line of `cargo xtask`.

use crate::sandbox::{self, Layout, UpOptions};
use crate::{apiserver, bench, build, build_ebpf, ci, guest, kelp_image};
use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, run, test and measure Kelp")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the kernel programs into target/ebpf/; installs the toolchain for them if there is none
    BuildEbpf,
    /// Bring up a cluster whose hosts are network namespaces on this machine, with a sample workload
    Up {
        #[command(flatten)]
        name: Name,
        /// Number of hosts
        #[arg(long, default_value_t = 1)]
        nodes: u32,
        /// Leave it running and return
        #[arg(long)]
        detach: bool,
        /// Do not apply the sample workload
        #[arg(long)]
        no_sample: bool,
        /// Use this kelp binary instead of building one
        #[arg(long)]
        kelp: Option<PathBuf>,
    },
    /// Remove every trace of a sandbox
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// Run a command on a sandbox host
    Exec {
        #[command(flatten)]
        name: Name,
        /// Number of the host
        #[arg(long, default_value_t = 1)]
        node: u32,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Build the image of kelp that manifests/kelp-dataplane.yaml names, into target/images/kelp.tar
    Image {
        /// Use this kelp binary instead of building one
        #[arg(long)]
        kelp: Option<PathBuf>,
    },
    /// Run store and API server alone on loopback; kubeconfig in target/apiserver/kubeconfig
    Apiserver {
        /// Use this kelp binary instead of building one
        #[arg(long)]
        kelp: Option<PathBuf>,
        /// Port on 127.0.0.1
        #[arg(long, default_value_t = 6443)]
        port: u16,
    },
    /// Run all tests: unit, packet, and end to end; installs what they need
    Test {
        /// Only the tests without a cluster
        #[arg(long)]
        unit: bool,
        /// The tests that need a kernel, in a virtual machine with this one on pure cgroup v2: a version (6.12), several
        /// with commas between them, newest, or all
        #[arg(long, conflicts_with = "unit")]
        kernel: Option<String>,
        /// With --kernel: the most seconds that a suite, or one test of a cluster, may take
        #[arg(long, requires = "kernel", default_value_t = 900)]
        timeout: u64,
        /// With --kernel: a suite (packets, dataplane, runtime, pods, cluster), or a part of the tests' paths
        #[arg(requires = "kernel")]
        filters: Vec<String>,
    },
    /// Measure, beside a peer where one is there
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
    },
    /// Check formatting, lints, documentation and the directions of dependency
    Ci,
    /// Keep one sandbox host's kelp running
    #[command(hide = true)]
    Supervise {
        #[command(flatten)]
        name: Name,
        #[arg(long)]
        node: u32,
        #[arg(long)]
        port: Option<u16>,
        #[arg(long)]
        kelp: PathBuf,
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

#[derive(Args)]
struct Name {
    /// Name of the sandbox; its files are in target/NAME
    #[arg(long, default_value = "sandbox")]
    name: String,
}

impl Name {
    fn layout(&self) -> Result<Layout> {
        Layout::new(&self.name)
    }
}

/// Parses the command line and runs the task.
///
/// # Errors
/// The task failed.
pub fn run() -> Result<ExitCode> {
    match Cli::parse().task {
        Task::BuildEbpf => println!("{}", build_ebpf::run(build::workspace_root())?.display()),
        Task::Up { name, nodes, detach, no_sample, kelp } => {
            sandbox::up(
                &name.layout()?,
                &UpOptions {
                    nodes,
                    apart: false,
                    detach,
                    sample: !no_sample,
                    kelp,
                    hello: None,
                    xtask: None,
                    kelp_arguments: Vec::new(),
                    agent_arguments: Vec::new(),
                },
            )?;
        }
        Task::Down { name } => sandbox::down(&name.layout()?)?,
        Task::Exec { name, node, command } => return sandbox::exec(&name.layout()?.node(node), &command),
        Task::Image { kelp } => println!("{}", kelp_image::run(kelp)?.display()),
        Task::Apiserver { kelp, port } => apiserver::run(kelp, port)?,
        Task::Test { kernel: Some(kernel), timeout, filters, .. } => {
            return Ok(ExitCode::from(u8::from(!guest::test(&kernel, &filters, timeout)?)));
        }
        Task::Test { unit, .. } => ci::test(unit)?,
        Task::Bench { what } => bench::run(&what)?,
        Task::Ci => ci::check()?,
        Task::Supervise { name, node, port, kelp, arguments } => {
            sandbox::supervise(&name.layout()?.node(node), port, &kelp, &arguments)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
