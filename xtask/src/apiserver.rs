//! Store and API server alone, on loopback: what API clients are tested against.

use crate::build;
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Builds `kelp` unless given one, and becomes `kelp server` with the API server as its only component. Its state is in
/// `target/apiserver`, empty at each start; `target/apiserver/kubeconfig` is the administrator's.
///
/// # Errors
/// The build failed or the server could not be started.
pub fn run(kelp: Option<PathBuf>, port: u16) -> Result<()> {
    let kelp = match kelp {
        Some(kelp) => kelp,
        None => {
            crate::build_ebpf::run(build::workspace_root())?;
            build::build_kelp()?
        }
    };
    let dir = build::workspace_root().join("target/apiserver");
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", dir.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let kubeconfig = dir.join("kubeconfig");
    println!("KUBECONFIG={}", kubeconfig.display());
    let mut server = Command::new(kelp);
    server.args(["server", "--components", "apiserver", "--listen", &format!("127.0.0.1:{port}")]);
    server.args(["--node-name", "apiserver", "--node-ip", "127.0.0.1", "--advertise-address", "127.0.0.1"]);
    server.args(["--service-cidr", "10.96.0.0/16", "--node-port-range", "30000-32767", "--data-dir"]);
    server.arg(dir.join("data")).arg("--write-kubeconfig").arg(&kubeconfig);
    Err(server.exec()).context("start kelp")
}
