//! `kelp check`: can this host run Kelp, and if not, what to do.

use crate::cli::CheckArgs;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;

/// Oldest kernel that has what the dataplane needs.
const KERNEL_FLOOR: (u32, u32) = (5, 10);
/// Free space below which a node soon evicts its pods.
const FREE_BYTES: u64 = 2 << 30;
/// inotify instances below which pods of many kinds fail in obscure ways.
const INOTIFY_INSTANCES: u64 = 512;

/// How a check went.
enum Verdict {
    Good(String),
    /// Kelp runs, with less.
    Warning {
        found: String,
        fix: String,
    },
    Bad {
        found: String,
        fix: String,
    },
}

/// Runs every check and prints one line each, with the fix below where there is something to fix.
pub fn run(args: &CheckArgs) -> ExitCode {
    let mut failed = false;
    let checks: [(&str, Verdict); 11] = [
        ("kernel", kernel(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default())),
        ("root", root()),
        ("cgroups", cgroups(&std::fs::read_to_string("/proc/self/mounts").unwrap_or_default())),
        ("bpf filesystem", bpffs(&std::fs::read_to_string("/proc/self/mounts").unwrap_or_default())),
        ("kernel types (BTF)", btf()),
        ("overlay filesystem", overlay(&std::fs::read_to_string("/proc/filesystems").unwrap_or_default())),
        ("port 6443 (API server)", port(6443)),
        ("port 10250 (agent)", port(10250)),
        ("port 10256 (health of the dataplane)", port(10256)),
        ("free disk", disk(&args.data.data_dir)),
        ("inotify instances", inotify()),
    ];
    for (name, verdict) in checks {
        match verdict {
            Verdict::Good(found) => println!("ok    {name}: {found}"),
            Verdict::Warning { found, fix } => println!("warn  {name}: {found}\n      fix: {fix}"),
            Verdict::Bad { found, fix } => {
                failed = true;
                println!("FAIL  {name}: {found}\n      fix: {fix}");
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn bad(found: impl Into<String>, fix: impl Into<String>) -> Verdict {
    Verdict::Bad { found: found.into(), fix: fix.into() }
}

fn warning(found: impl Into<String>, fix: impl Into<String>) -> Verdict {
    Verdict::Warning { found: found.into(), fix: fix.into() }
}

fn kernel(release: &str) -> Verdict {
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_FLOOR {
        Verdict::Good(release.to_owned())
    } else {
        bad(release, format!("use Linux {}.{} or newer", KERNEL_FLOOR.0, KERNEL_FLOOR.1))
    }
}

fn root() -> Verdict {
    if nix::unistd::geteuid().is_root() {
        Verdict::Good("yes".into())
    } else {
        bad("not root", "run kelp as root; only root may load BPF programs and start containers")
    }
}

/// Kind and mount point of each line of `/proc/self/mounts`.
fn mounts(table: &str) -> impl Iterator<Item = (&str, &str)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let point = fields.nth(1)?;
        Some((fields.next()?, point))
    })
}

fn cgroups(table: &str) -> Verdict {
    let v2 = mounts(table).find(|(kind, _)| *kind == "cgroup2").map(|(_, point)| point);
    let v1 = mounts(table).any(|(kind, _)| kind == "cgroup");
    match (v2, v1) {
        (Some(point), false) => Verdict::Good(format!("v2 at {point}")),
        (Some(point), true) => Verdict::Good(format!("hybrid: v1 controllers, v2 at {point}")),
        (None, _) => bad(
            "no cgroup v2 hierarchy is mounted; services need one",
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
    }
}

fn bpffs(table: &str) -> Verdict {
    match mounts(table).find(|(kind, _)| *kind == "bpf") {
        Some((_, point)) => Verdict::Good(format!("at {point}")),
        None => bad("not mounted", "mount -t bpf bpf /sys/fs/bpf"),
    }
}

fn btf() -> Verdict {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        Verdict::Good(path.into())
    } else {
        warning(format!("no {path}"), "use a kernel built with CONFIG_DEBUG_INFO_BTF=y")
    }
}

fn overlay(filesystems: &str) -> Verdict {
    let known = filesystems.lines().any(|line| line.split_ascii_whitespace().last() == Some("overlay"));
    if known {
        Verdict::Good("known to the kernel".into())
    } else {
        bad("not known to the kernel", "modprobe overlay")
    }
}

fn port(port: u16) -> Verdict {
    match TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))) {
        Ok(_) => Verdict::Good("free".into()),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => warning(
            "in use",
            format!("see who with `ss -ltnp 'sport = :{port}'`; fine if it is a running kelp"),
        ),
        Err(e) => bad(e.to_string(), "let this user listen on TCP ports"),
    }
}

fn disk(data_dir: &Path) -> Verdict {
    // The directory may not exist yet: its nearest existing parent is on the same disk.
    let dir = data_dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    match nix::sys::statvfs::statvfs(dir) {
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            let found = format!("{} MiB at {}", free >> 20, dir.display());
            if free >= FREE_BYTES {
                Verdict::Good(found)
            } else {
                warning(found, format!("free {} MiB, or give another --data-dir", (FREE_BYTES - free) >> 20))
            }
        }
        Err(e) => bad(format!("cannot look at {}: {e}", dir.display()), "give another --data-dir"),
    }
}

fn inotify() -> Verdict {
    let path = "/proc/sys/fs/inotify/max_user_instances";
    match std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(n) if n >= INOTIFY_INSTANCES => Verdict::Good(n.to_string()),
        Some(n) => warning(
            format!("{n}, pods that watch files may run out of them"),
            format!("sysctl -w fs.inotify.max_user_instances={INOTIFY_INSTANCES}"),
        ),
        None => warning(format!("cannot read {path}"), "mount /proc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Good(_))
    }

    #[test]
    fn kernel_versions() {
        for release in ["5.10.0", "6.18.3-cloud-amd64", "10.0", "6.1-rc3"] {
            assert!(good(kernel(release)), "{release}");
        }
        for release in ["5.9.16", "4.19.0-1-amd64", "", "x"] {
            assert!(!good(kernel(release)), "{release}");
        }
    }

    #[test]
    fn mount_tables() {
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n";
        assert!(good(cgroups(v2)) && good(bpffs(v2)));
        let v1 = "cpu /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        assert!(!good(cgroups(v1)) && !good(bpffs(v1)));
        assert!(good(overlay("nodev\tsysfs\nnodev\toverlay\n\text4\n")));
        assert!(!good(overlay("\text4\n")));
    }
}
