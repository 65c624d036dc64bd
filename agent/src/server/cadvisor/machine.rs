//! What the machine is.

use crate::server::exposition::Exposition;
use crate::server::host::NodeUsage;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Cores and sockets of CPUs that are online; of a machine that does not tell, as many cores as CPUs and one socket.
fn topology(cpus: &Path, logical: u64) -> (u64, u64) {
    let (mut cores, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(cpus).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix("cpu").is_none_or(|n| n.parse::<u32>().is_err()) {
            continue;
        }
        let id = |file: &str| -> Option<u64> {
            fs::read_to_string(entry.path().join("topology").join(file)).ok()?.trim().parse().ok()
        };
        if let (Some(socket), Some(core)) = (id("physical_package_id"), id("core_id")) {
            cores.insert((socket, core));
            sockets.insert(socket);
        }
    }
    match cores.is_empty() {
        true => (logical, 1),
        false => (cores.len() as u64, sockets.len() as u64),
    }
}

/// Writes it.
pub(super) fn machine(all: &mut Exposition, node: &NodeUsage) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let (boot, id) = (read("/proc/sys/kernel/random/boot_id"), read("/etc/machine-id"));
    let uuid = read("/sys/class/dmi/id/product_uuid");
    let labels = [("boot_id", boot.as_str()), ("machine_id", &id), ("system_uuid", &uuid)];
    let (cores, sockets) = topology(Path::new("/sys/devices/system/cpu"), node.cpus);
    // Books and drawers are a mainframe's; memory that is not volatile is not looked for.
    let gauges: [(&'static str, &'static str, u64); 8] = [
        ("machine_cpu_cores", "Number of logical CPU cores.", node.cpus),
        ("machine_cpu_physical_cores", "Number of physical CPU cores.", cores),
        ("machine_cpu_sockets", "Number of CPU sockets.", sockets),
        ("machine_cpu_books", "Number of CPU books.", 0),
        ("machine_cpu_drawers", "Number of CPU drawers.", 0),
        ("machine_memory_bytes", "Amount of memory installed on the machine.", node.memory_total),
        ("machine_swap_bytes", "Amount of swap memory available on the machine.", node.swap.0 + node.swap.1),
        ("machine_nvm_avg_power_budget_watts", "NVM power budget.", 0),
    ];
    for (name, help, value) in gauges {
        all.gauge(name, help, &labels, value as f64, None);
    }
    for mode in ["app_direct_mode", "memory_mode"] {
        let labels =
            [("boot_id", boot.as_str()), ("machine_id", &id), ("mode", mode), ("system_uuid", &uuid)];
        let help = "NVM capacity value labeled by NVM mode (memory mode or app direct mode).";
        all.gauge("machine_nvm_capacity", help, &labels, 0.0, None);
    }
    let help = "1 if there was an error while getting machine metrics, 0 otherwise.";
    all.gauge("machine_scrape_error", help, &[], 0.0, None);
    let kernel = read("/proc/sys/kernel/osrelease");
    all.gauge(
        "cadvisor_version_info",
        "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version \
         & cadvisor revision.",
        &[
            ("cadvisorRevision", ""),
            ("cadvisorVersion", ""),
            ("dockerVersion", ""),
            ("kernelVersion", &kernel),
            ("osVersion", ""),
        ],
        1.0,
        None,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_threads_of_a_core_are_one() {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, socket, core) in [(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 1, 0)] {
            let at = dir.path().join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("physical_package_id"), format!("{socket}\n")).unwrap();
            fs::write(at.join("core_id"), format!("{core}\n")).unwrap();
        }
        fs::create_dir(dir.path().join("cpufreq")).unwrap();
        assert_eq!(topology(dir.path(), 4), (3, 2));
        assert_eq!(topology(Path::new("/none"), 4), (4, 1));
    }
}
