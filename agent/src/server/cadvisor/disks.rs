//! Disks and file systems.

use super::Place;
use crate::runtime::usage::Usage;
use crate::server::exposition::Exposition;
use nix::sys::statvfs::statvfs;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Names, texts and the columns of /proc/diskstats (Documentation/admin-guide/iostats.rst) of what the kernel counts of a
/// disk, and the factor to the unit.
const COUNTERS: [(&str, &str, usize, f64); 10] = [
    ("container_fs_reads_total", "Cumulative count of reads completed", 0, 1.0),
    ("container_fs_reads_merged_total", "Cumulative count of reads merged", 1, 1.0),
    ("container_fs_sector_reads_total", "Cumulative count of sector reads completed", 2, 1.0),
    ("container_fs_read_seconds_total", "Cumulative count of seconds spent reading", 3, 1e-3),
    ("container_fs_writes_total", "Cumulative count of writes completed", 4, 1.0),
    ("container_fs_writes_merged_total", "Cumulative count of writes merged", 5, 1.0),
    ("container_fs_sector_writes_total", "Cumulative count of sector writes completed", 6, 1.0),
    ("container_fs_write_seconds_total", "Cumulative count of seconds spent writing", 7, 1e-3),
    ("container_fs_io_time_seconds_total", "Cumulative count of seconds spent doing I/Os", 9, 1e-3),
    ("container_fs_io_time_weighted_seconds_total", "Cumulative weighted I/O time in seconds", 10, 1e-3),
];
const READ: (&str, &str) = ("container_fs_reads_bytes_total", "Cumulative count of bytes read");
const WRITTEN: (&str, &str) = ("container_fs_writes_bytes_total", "Cumulative count of bytes written");
/// Bytes of a sector, whatever the disk's are.
const SECTOR: f64 = 512.0;

/// Path of a device and its columns after the name, of a line of /proc/diskstats.
fn disk(line: &str) -> Option<(String, Vec<u64>)> {
    let mut words = line.split_whitespace().skip(2);
    let name = words.next()?;
    let columns: Vec<u64> = words.map_while(|w| w.parse().ok()).collect();
    // One that was never used says nothing.
    columns.iter().any(|c| *c > 0).then(|| (format!("/dev/{name}"), columns))
}

/// The device that holds a directory.
fn device_of(dir: &std::path::Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let holding = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, at) = (words.next()?, words.next()?);
        dir.starts_with(at).then_some((at.len(), device))
    });
    holding.max_by_key(|(length, _)| *length).map(|(_, device)| device.to_owned())
}

/// The disks of the host, and the file systems that pods write to.
pub(super) fn of_host(all: &mut Exposition, place: &Place<'_>, dirs: &[PathBuf], time: jiff::Timestamp) {
    let at = Some(time.as_millisecond());
    let text = fs::read_to_string("/proc/diskstats").unwrap_or_default();
    for (device, columns) in text.lines().filter_map(disk) {
        let labels = place.and("device", &device);
        let column = |index: usize| columns.get(index).copied().unwrap_or(0) as f64;
        for (name, help, index, unit) in COUNTERS {
            all.counter(name, help, &labels, column(index) * unit, at);
        }
        all.counter(READ.0, READ.1, &labels, column(2) * SECTOR, at);
        all.counter(WRITTEN.0, WRITTEN.1, &labels, column(6) * SECTOR, at);
        all.gauge("container_fs_io_current", "Number of I/Os currently in progress", &labels, column(8), at);
    }
    let found = dirs.iter().filter_map(|dir| Some((device_of(dir)?, statvfs(dir.as_path()).ok()?)));
    for (device, stat) in found.collect::<BTreeMap<_, _>>() {
        let labels = place.and("device", &device);
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size()) as f64;
        let gauges: [(&'static str, &'static str, f64); 4] = [
            (
                "container_fs_limit_bytes",
                "Number of bytes that can be consumed by the container on this filesystem.",
                bytes(stat.blocks()),
            ),
            (
                "container_fs_usage_bytes",
                "Number of bytes that are consumed by the container on this filesystem.",
                bytes(stat.blocks().saturating_sub(stat.blocks_free())),
            ),
            ("container_fs_inodes_total", "Number of Inodes", stat.files() as f64),
            ("container_fs_inodes_free", "Number of available Inodes", stat.files_free() as f64),
        ];
        for (name, help, value) in gauges {
            all.gauge(name, help, &labels, value, at);
        }
    }
}

/// What a cgroup reads and writes.
pub(super) fn of_cgroup(all: &mut Exposition, place: &Place<'_>, usage: &Usage) {
    let at = Some(usage.time.as_millisecond());
    for disk in &usage.disks {
        let uevent = fs::read_to_string(format!("/sys/dev/block/{}/uevent", disk.device)).unwrap_or_default();
        let name = uevent.lines().find_map(|l| l.strip_prefix("DEVNAME="));
        let device = name.map_or_else(|| disk.device.clone(), |name| format!("/dev/{name}"));
        let labels = place.and("device", &device);
        let [reads, _, _, _, writes, ..] = COUNTERS;
        for ((name, help), value) in [
            ((reads.0, reads.1), disk.requests.0),
            ((writes.0, writes.1), disk.requests.1),
            (READ, disk.bytes.0),
            (WRITTEN, disk.bytes.1),
        ] {
            all.counter(name, help, &labels, value as f64, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_diskstats() {
        let line = " 254       0 vda 100 1 800 50 200 2 1600 70 3 90 120 0 0 0 0 5 6";
        let (device, columns) = disk(line).unwrap();
        assert_eq!((device.as_str(), columns[2], columns[8], columns[10]), ("/dev/vda", 800, 3, 120));
        assert!(disk("   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0").is_none());
    }

    #[test]
    fn the_root_is_on_a_device() {
        assert!(device_of(std::path::Path::new("/")).is_some_and(|d| !d.is_empty()));
    }
}
