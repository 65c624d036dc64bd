//! What the system knows about this process, under the names of Prometheus' client libraries.

use super::text::{Kind, Text};

/// Clock ticks a second in `/proc`, which is the same on all architectures.
const TICKS: f64 = 100.0;
/// Bytes of a page in `/proc`; where pages are larger, the sizes shown are too small.
const PAGE: u64 = 4096;

/// Writes what `/proc/self` says; nothing where there is none.
pub(super) fn write(text: &mut Text) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    // The name, in parentheses, may have spaces; the third field follows it.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<u64> = rest.split_whitespace().skip(1).map(|f| f.parse().unwrap_or(0)).collect();
    let field = |number: usize| fields.get(number - 4).copied().unwrap_or(0);
    let mut gauge = |name: &str, help: &str, value: f64| {
        text.family(name, Kind::Gauge, help);
        text.sample(name, &[], value);
    };
    gauge("process_resident_memory_bytes", "Resident memory, in bytes.", (field(24) * PAGE) as f64);
    gauge("process_virtual_memory_bytes", "Virtual memory, in bytes.", field(23) as f64);
    let booted = std::fs::read_to_string("/proc/stat").ok().and_then(|stat| {
        stat.lines().find_map(|line| line.strip_prefix("btime ").and_then(|t| t.trim().parse::<f64>().ok()))
    });
    if let Some(booted) = booted {
        let started = booted + field(22) as f64 / TICKS;
        gauge("process_start_time_seconds", "Start time since the Unix epoch, in seconds.", started);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        gauge("process_open_fds", "Open file descriptors.", open.count() as f64);
    }
    let cpu = (field(14) + field(15)) as f64 / TICKS;
    text.family("process_cpu_seconds_total", Kind::Counter, "Processor time of user and system, in seconds.");
    text.sample("process_cpu_seconds_total", &[], cpu);
}
