//! Measurements; each prints a table with ratios to its peer or baseline.

use crate::build::cargo;
use crate::command;
use crate::{build, build_ebpf, setup};
use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Request rate, connect rate, first packets and throughput pod → ClusterIP beside pod → pod address, and beside rules
    /// of kube-proxy's shape in iptables and nftables
    PacketPath {
        /// Passed on to the driver
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Time until the kernel's maps follow the API: all services at once, and one endpoint among 10 000 services
    Programming {
        /// Passed on to the driver
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Creations, reads, lists and watch fan-out of the API server, beside a kube-apiserver if its path is given
    Api {
        /// Passed on to the driver
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Pods: creation to Running and Ready, bursts, deletion, idle memory and CPU, recovery, beside another cluster if its
    /// kubeconfig is given
    Pods {
        /// Passed on to the driver
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Connections at a steady rate while pods are replaced and agents killed: no request may fail
    Soak {
        /// How long
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// Connections a second
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        /// Passed on to the driver
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Durable writes a second at 1 and at 256 clients
    Store {
        /// Passed on to the driver
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

/// Builds what the measurement needs in release mode and runs it.
///
/// # Errors
/// A build or the measurement failed.
pub fn run(what: &Bench) -> Result<()> {
    setup::ensure_all()?;
    let (target, arguments) = match what {
        Bench::PacketPath { arguments } => {
            build_ebpf::run(build::workspace_root())?;
            setup::ensure_packages(setup::RULES_PACKAGES)?;
            (["--package", "kelp-tests", "--bin", "packet_path"], arguments)
        }
        Bench::Programming { arguments } => {
            build_ebpf::run(build::workspace_root())?;
            (["--package", "kelp-tests", "--bin", "programming"], arguments)
        }
        Bench::Api { arguments } => {
            let serve =
                ["build", "--quiet", "--release", "--package", "kelp-apiserver", "--example", "serve"];
            command::run(&mut cargo(&serve))?;
            (["--package", "kelp-apiserver", "--example", "bench"], arguments)
        }
        Bench::Pods { arguments } => {
            build_ebpf::run(build::workspace_root())?;
            (["--package", "kelp-tests", "--bin", "pods"], arguments)
        }
        Bench::Soak { seconds, rate, arguments } => {
            build_ebpf::run(build::workspace_root())?;
            command::run(&mut cargo(&[
                "build",
                "--quiet",
                "--release",
                "--package",
                "kelp-tests",
                "--bins",
            ]))?;
            let mut soak = command::command(build::target_dir().join("release/soak"), &[]);
            soak.args(["--seconds", &seconds.to_string(), "--rate", &rate.to_string()]);
            return command::run(soak.args(arguments));
        }
        Bench::Store { arguments } => (["--package", "kelp-store", "--example", "bench"], arguments),
    };
    command::run(cargo(&["run", "--quiet", "--release"]).args(target).arg("--").args(arguments))
}
