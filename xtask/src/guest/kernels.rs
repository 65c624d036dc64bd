//! Debian's kernels for virtual machines: looked up, downloaded and unpacked into `target/guest/kernels/<release>`.
//!
//! apt runs with lists and a configuration of its own, so that the machine's are not touched. The mirrors are the
//! machine's; from them the lists of all releases of Debian are taken, as each carries other kernels.

use super::version;
use crate::command::{command, output, run, succeeds};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Parts of the archive that carry kernels.
const SUITES: [&str; 7] =
    ["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "forky", "sid"];
/// Parts of the archive of security updates. (Names of later ones are the same.)
const SECURITY_SUITES: [&str; 3] = ["bullseye-security", "bookworm-security", "trixie-security"];
/// Signs all of them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that is unpacked.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// The image to boot.
    pub image: PathBuf,
    /// Directory above `lib/modules`.
    pub base: PathBuf,
}

impl Kernel {
    /// Directory of the modules.
    pub fn modules(&self) -> PathBuf {
        self.base.join("lib/modules").join(&self.release)
    }

    /// Files of modules and of all they need, in the order in which they must be loaded. What is built in is left out.
    ///
    /// # Errors
    /// The kernel has no such module.
    pub fn module_files(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            let mut modprobe = command("modprobe", &["--show-depends", "--set-version", &self.release]);
            let lines = output(modprobe.arg("--dirname").arg(&self.base).arg(name))?;
            for file in lines.lines().filter_map(|line| line.strip_prefix("insmod ")) {
                let file = PathBuf::from(file.trim());
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// The newest kernel of a version (`6.12`), downloaded unless one of that version is there.
///
/// # Errors
/// No mirror offers one, or it cannot be downloaded.
pub fn ensure(dir: &Path, version: &str) -> Result<Kernel> {
    let kernels = dir.join("kernels");
    if version != version::NEWEST {
        let there: Vec<String> = std::fs::read_dir(&kernels)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        if let Some(release) = version::choose(there.iter().map(String::as_str), version) {
            return unpacked(&kernels, release);
        }
    }
    let apt = Apt::new(dir)?;
    println!("looking for Linux {version} in Debian's package lists");
    apt.update();
    let packages = output(apt.command("apt-cache").args(["pkgnames", "linux-image-"]))?;
    let releases = || packages.lines().filter_map(version::release_of);
    let Some(release) = version::choose(releases(), version) else {
        let offered = version::offered(releases()).join(", ");
        bail!("Debian's mirror offers no cloud kernel {version}; choose one of: {offered}");
    };
    if !kernels.join(release).exists() {
        download(&apt, dir, release)?;
    }
    unpacked(&kernels, release)
}

fn download(apt: &Apt, dir: &Path, release: &str) -> Result<()> {
    println!("downloading Linux {release}");
    // Renamed when it is complete: a directory of a kernel's name always holds all of it.
    let incomplete = dir.join("incomplete");
    remove_all(&incomplete)?;
    std::fs::create_dir_all(&incomplete).with_context(|| format!("create {}", incomplete.display()))?;
    let mut download = apt.command("apt-get");
    download.args(["download", "-qq", &version::package_of(release)]);
    output(download.current_dir(&incomplete))?;
    let archive = std::fs::read_dir(&incomplete)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    let root = incomplete.join("root");
    run(command("dpkg-deb", &["--extract"]).arg(&archive).arg(&root))?;
    run(command("depmod", &["--basedir"]).arg(base(&root)).arg(release))?;
    let kernels = dir.join("kernels");
    std::fs::create_dir_all(&kernels).with_context(|| format!("create {}", kernels.display()))?;
    std::fs::rename(&root, kernels.join(release)).context("put the kernel in its place")?;
    remove_all(&incomplete)
}

fn unpacked(kernels: &Path, release: &str) -> Result<Kernel> {
    let root = kernels.join(release);
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    ensure!(image.exists(), "{} is missing; remove {}", image.display(), root.display());
    Ok(Kernel { release: release.to_owned(), image, base: base(&root) })
}

/// The directory above `lib/modules`: packages of releases with a merged `/usr` name it there.
fn base(root: &Path) -> PathBuf {
    if root.join("lib/modules").exists() { root.to_owned() } else { root.join("usr") }
}

fn remove_all(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// apt with a state of its own.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path) -> Result<Self> {
        let dir = dir.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(dir.join(part)).with_context(|| format!("create {}", dir.display()))?;
        }
        // No package is installed here.
        std::fs::write(dir.join("status"), "").context("write apt's status file")?;
        let mut sources = String::new();
        for (label, suites) in [("Debian", &SUITES[..]), ("Debian-Security", &SECURITY_SUITES)] {
            let Some(mirror) = mirror(label)? else { continue };
            for suite in suites {
                sources +=
                    &format!("deb [arch=amd64 target=Packages signed-by={KEYRING}] {mirror} {suite} main\n");
            }
        }
        if sources.is_empty() {
            bail!("apt on this machine has no mirror of Debian; add one to /etc/apt/sources.list");
        }
        std::fs::write(dir.join("sources.list"), sources).context("write apt's list of sources")?;
        Ok(Self { dir })
    }

    fn command(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        for (option, part) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::State::Lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            apt.arg("-o").arg(format!("{option}={}", self.dir.join(part).display()));
        }
        for option in [
            "Dir::Etc::sourceparts=-",
            "Acquire::Languages=none",
            "APT::Sandbox::User=root",
            "Acquire::Retries=2",
        ] {
            apt.args(["-o", option]);
        }
        apt
    }

    /// Fetches the lists. A mirror need not have every suite: what counts is whether the kernel is found in the end.
    fn update(&self) {
        succeeds(self.command("apt-get").args(["update", "-qq"]));
    }
}

/// The machine's mirror of an archive, by the label that its lists carry.
fn mirror(label: &str) -> Result<Option<String>> {
    let find = || -> Result<Option<String>> {
        let mut targets = command("apt-get", &["indextargets", "--format", "$(LABEL) $(REPO_URI)"]);
        let targets = output(targets.arg("Created-By: Packages"))?;
        Ok(targets.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(' ').map(str::to_owned)))
    };
    if let Some(mirror) = find()? {
        return Ok(Some(mirror));
    }
    // The label comes from the lists, which a fresh image does not have.
    output(&mut command("apt-get", &["update", "-qq"])).context("fetch the package lists")?;
    find()
}
