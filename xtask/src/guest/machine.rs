//! One virtual machine: qemu without KVM, this machine's filesystem read-only through virtiofs, a disk of its own.

use super::kernels::Kernel;
use super::plan::quoted;
use crate::build::{target_dir, workspace_root};
use crate::command::{command, run};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Instant;

const INIT: &str = include_str!("init.sh");
/// What must be loaded before the root filesystem is there. (Random numbers come from the host: without them an old
/// kernel waits for a minute until it has gathered some.)
const MODULES: [&str; 6] = ["virtio_pci", "virtio_rng", "virtiofs", "overlay", "virtio_blk", "ext4"];
/// Where Debian has virtiofsd: in a package of its own, before that in qemu's.
const VIRTIOFSD: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// Begins the names of directories that end in the process id of their owner. Short, as the path of a socket must be.
const SCRATCH: &str = "kelp-guest-";
const MEMORY: &str = "2G";
const DISK_BYTES: u64 = 16 << 30;
const CPUS: &str = "2";

/// A virtual machine; dropping it ends it and removes its files but the console's log.
#[derive(Debug)]
pub struct Machine {
    processes: Vec<Child>,
    lines: Receiver<String>,
    scratch: PathBuf,
}

/// What a machine says next.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// A line of the plan's output.
    Line(String),
    /// It is off.
    End,
    /// Nothing until the deadline.
    Late,
}

impl Machine {
    /// Boots a kernel and runs the script `plan` in it as root. What the kernel says goes to the file `console`.
    ///
    /// # Errors
    /// A tool is missing or fails.
    pub fn boot(dir: &Path, kernel: &Kernel, plan: &str, console: &Path) -> Result<Self> {
        sweep();
        let scratch = std::env::temp_dir().join(format!("{SCRATCH}{}", std::process::id()));
        let disk = dir.join(format!("disk-{}", std::process::id()));
        let mut machine = Self { processes: Vec::new(), lines: mpsc::channel().1, scratch: scratch.clone() };
        std::fs::create_dir_all(scratch.join("share"))
            .with_context(|| format!("create {}", scratch.display()))?;
        let initramfs = initramfs(&scratch, kernel, plan)?;
        File::create(&disk)
            .and_then(|file| file.set_len(DISK_BYTES))
            .with_context(|| format!("create {}", disk.display()))?;
        let made = run(command("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1"]).arg(&disk));
        // qemu opens it as its standard input: it has no name any more when this program is killed.
        let opened = File::options().read(true).write(true).open(&disk);
        std::fs::remove_file(&disk).with_context(|| format!("remove {}", disk.display()))?;
        made?;

        let socket = scratch.join("root.sock");
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
        machine.processes.push(serve_root(dir, &scratch, listener)?);

        let mut qemu = guarded("qemu-system-x86_64");
        // One thread for all CPUs: with more, a kernel that patches its own code meets a half-patched instruction.
        qemu.args(["-machine", "q35", "-accel", "tcg,tb-size=256,thread=single", "-cpu", "qemu64"]);
        qemu.args(["-smp", CPUS, "-m", MEMORY, "-numa", "node,memdev=memory"]);
        qemu.args(["-object", &format!("memory-backend-memfd,id=memory,size={MEMORY},share=on")]);
        qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-device", "virtio-rng-pci"]);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        // Its standard output, whatever that is.
        qemu.args(["-chardev", "file,id=plan,path=/dev/stdout", "-serial", "chardev:plan"]);
        qemu.arg("-chardev").arg(format!("socket,id=root,path={}", socket.display()));
        qemu.args(["-device", "vhost-user-fs-pci,chardev=root,tag=root"]);
        qemu.args(["-drive", "if=virtio,format=raw,cache=unsafe,file=/dev/stdin"]);
        qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all"]);
        qemu.stdin(opened.context("open the disk")?).stdout(Stdio::piped());
        let mut qemu = qemu.spawn().context("start qemu-system-x86_64")?;
        let stdout = qemu.stdout.take();
        machine.processes.push(qemu);
        let (sender, lines) = mpsc::channel();
        machine.lines = lines;
        let mut stdout = BufReader::new(stdout.context("read qemu's output")?);
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while matches!(stdout.read_until(b'\n', &mut line), Ok(length) if length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Ok(machine)
    }

    /// Waits for the next line.
    pub fn next(&self, deadline: Instant) -> Said {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Said::Line(line),
            Err(RecvTimeoutError::Disconnected) => Said::End,
            Err(RecvTimeoutError::Timeout) => Said::Late,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            // One that has ended already is what we want.
            let _ = process.kill();
            let _ = process.wait();
        }
        // The mounts in it were those of the server's namespace alone.
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// Removes what was left by programs that were killed.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(SCRATCH)?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists()) {
            // Another program may be sweeping too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether virtiofsd is installed.
pub fn has_virtiofsd() -> bool {
    virtiofsd().is_some()
}

fn virtiofsd() -> Option<&'static str> {
    VIRTIOFSD.into_iter().find(|path| Path::new(path).exists())
}

/// A command that is killed when this program dies.
fn guarded(program: &str) -> Command {
    command("setpriv", &["--pdeathsig", "KILL", "--", program])
}

/// Serves the machine's `/`, and what of ours is mounted elsewhere, through a socket. It is read-only for the server
/// itself: nothing in a guest can write here.
fn serve_root(dir: &Path, scratch: &Path, socket: UnixListener) -> Result<Child> {
    let Some(virtiofsd) = virtiofsd() else {
        bail!("virtiofsd is missing; on Debian run: apt-get install virtiofsd");
    };
    let share = scratch.join("share");
    let mut script = String::from("set -e\n");
    let mut mount = |path: &Path| {
        let at = format!("{}{}", share.display(), path.display());
        let (path, at) = (quoted(&path.to_string_lossy()), quoted(&at));
        script += &format!("mount --bind {path} {at}\nmount -o remount,bind,ro {at}\n");
    };
    mount(Path::new("/"));
    for path in elsewhere()? {
        mount(&path);
    }
    script += &format!(
        "exec {virtiofsd} --fd=0 -o source={} -o sandbox=chroot -o cache=always",
        quoted(&share.to_string_lossy())
    );
    let mut server = guarded("unshare");
    server.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    server.stdin(OwnedFd::from(socket));
    let log = File::create(dir.join("virtiofsd.log")).context("create virtiofsd's log")?;
    server.stdout(log.try_clone()?).stderr(log);
    server.spawn().context("start virtiofsd")
}

/// Those of the directories that the tests need which are on another filesystem than `/`.
fn elsewhere() -> Result<Vec<PathBuf>> {
    let device = |path: &Path| -> Result<u64> {
        Ok(std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.dev())
    };
    let root = device(Path::new("/"))?;
    let mut paths = Vec::new();
    for path in [workspace_root().to_owned(), target_dir()] {
        if device(&path)? != root {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Packs busybox, the first modules, the init script and the plan.
fn initramfs(scratch: &Path, kernel: &Kernel, plan: &str) -> Result<PathBuf> {
    let root = scratch.join("initramfs");
    for part in ["bin", "modules"] {
        std::fs::create_dir_all(root.join(part)).context("create the initramfs")?;
    }
    let write = |name: &str, content: &str| {
        std::fs::write(root.join(name), content).with_context(|| format!("write {name} of the initramfs"))
    };
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).context("copy busybox")?;
    let mut order = String::new();
    for file in kernel.module_files(&MODULES)? {
        let name = file.file_name().context("a module has no name")?.to_string_lossy().into_owned();
        let plain = name.strip_suffix(".xz").unwrap_or(&name);
        let into = root.join("modules").join(plain);
        if plain == name {
            std::fs::copy(&file, &into).with_context(|| format!("copy {}", file.display()))?;
        } else {
            let out = File::create(&into).with_context(|| format!("create {}", into.display()))?;
            run(command("xz", &["--decompress", "--stdout"]).arg(&file).stdout(out))?;
        }
        order += &format!("{plain}\n");
    }
    write("modules/order", &order)?;
    write("init", INIT)?;
    write("plan", plan)?;
    // Hidden by the guest's own /tmp otherwise.
    let keep: Vec<String> = [workspace_root().to_owned(), target_dir(), kernel.base.clone()]
        .iter()
        .filter(|path| path.starts_with("/tmp"))
        .map(|path| path.display().to_string())
        .collect();
    let settings = [
        ("RELEASE", kernel.release.clone()),
        ("MODULES", kernel.modules().display().to_string()),
        ("KEEP", keep.join(" ")),
    ];
    write("settings", &settings.map(|(name, value)| format!("{name}={}\n", quoted(&value))).concat())?;
    let packed = scratch.join("initramfs.cpio");
    let out = File::create(&packed).context("create the initramfs")?;
    let script = "chmod 755 init && find . | busybox cpio -o -H newc -R 0:0";
    let mut pack = command("sh", &["-c", script]);
    let packing = pack.current_dir(&root).stdout(out).stderr(Stdio::piped()).output().context("start sh")?;
    if !packing.status.success() {
        bail!("packing the initramfs failed: {}", String::from_utf8_lossy(&packing.stderr).trim_end());
    }
    Ok(packed)
}
