//! Measurements; each prints a table with ratios to its peer or baseline.

use crate::build::cargo;
use crate::command;
use crate::{build, build_ebpf, setup};
use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Request rate, connect rate and throughput pod → ClusterIP beside pod → pod address
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
        Bench::Store { arguments } => (["--package", "kelp-store", "--example", "bench"], arguments),
    };
    command::run(cargo(&["run", "--quiet", "--release"]).args(target).arg("--").args(arguments))
}
