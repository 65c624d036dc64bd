//! Processes, threads and files of a cgroup.

use super::Place;
use crate::runtime::usage::Usage;
use crate::server::exposition::Exposition;
use crate::server::host::NodeUsage;
use std::fs;
use std::path::Path;

/// What the processes of a cgroup have.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Processes {
    /// Open files, and those of them that are sockets.
    files: (u64, u64),
    /// Threads, and how many there may be.
    threads: (u64, Option<u64>),
    /// Soft limit of open files of the first process; `None`: without a limit.
    max_files: Option<Option<u64>>,
    /// Processes that sleep, run, are stopped, wait without being interruptible.
    states: [u64; 4],
}

/// The soft limit in the line of `/proc/PID/limits`.
fn soft_limit(text: &str) -> Option<Option<u64>> {
    let line = text.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    Some(soft.parse().ok())
}

/// Place of a state (proc_pid_stat(5)) in the list.
fn state(stat: &str) -> Option<usize> {
    match stat.rsplit_once(") ")?.1.chars().next()? {
        'S' | 'I' => Some(0),
        'R' => Some(1),
        'T' | 't' => Some(2),
        'D' => Some(3),
        _ => None,
    }
}

impl Processes {
    /// Of a cgroup.
    pub(super) fn of(usage: &Usage) -> Self {
        let mut found = Self { threads: usage.threads, ..Self::default() };
        for pid in &usage.pids {
            let process = Path::new("/proc").join(pid.to_string());
            found.add(&process);
        }
        found
    }

    fn add(&mut self, process: &Path) {
        for file in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            self.files.0 += 1;
            let target = fs::read_link(file.path()).unwrap_or_default();
            self.files.1 += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
        let read = |name: &str| fs::read_to_string(process.join(name)).unwrap_or_default();
        if self.max_files.is_none() {
            self.max_files = soft_limit(&read("limits"));
        }
        if let Some(count) = state(&read("stat")).and_then(|at| self.states.get_mut(at)) {
            *count += 1;
        }
    }

    /// Of the whole host, by what the kernel counts: its processes are not looked at one by one.
    pub(super) fn of_host(node: &NodeUsage) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let number = |text: &str| text.trim().parse::<u64>().ok();
        // `allocated free most`
        let files = read("/proc/sys/fs/file-nr").split_whitespace().next().and_then(number).unwrap_or(0);
        // `sockets: used 123`
        let sockets = read("/proc/net/sockstat");
        let sockets = sockets.lines().find_map(|l| l.strip_prefix("sockets: used ")).and_then(number);
        let stat = read("/proc/stat");
        let tasks = |key: &str| stat.lines().find_map(|l| l.strip_prefix(key)).and_then(number).unwrap_or(0);
        let (running, blocked) = (tasks("procs_running "), tasks("procs_blocked "));
        let sleeping = node.pids.1.saturating_sub(running + blocked);
        Self {
            files: (files, sockets.unwrap_or(0)),
            threads: (node.pids.1, number(&read("/proc/sys/kernel/threads-max"))),
            max_files: soft_limit(&read("/proc/1/limits")),
            states: [sleeping, running, 0, blocked],
        }
    }

    /// Writes it.
    pub(super) fn write(&self, all: &mut Exposition, place: &Place<'_>, time: jiff::Timestamp) {
        let (labels, at) = (place.labels(), Some(time.as_millisecond()));
        let gauges: [(&'static str, &'static str, u64); 4] = [
            (
                "container_file_descriptors",
                "Number of open file descriptors for the container.",
                self.files.0,
            ),
            ("container_sockets", "Number of open sockets for the container.", self.files.1),
            ("container_threads", "Number of threads running inside the container", self.threads.0),
            (
                "container_threads_max",
                "Maximum number of threads allowed inside the container, infinity if value is zero",
                self.threads.1.unwrap_or(0),
            ),
        ];
        for (name, help, value) in gauges {
            all.gauge(name, help, &labels, value as f64, at);
        }
        if let Some(limit) = self.max_files {
            let help = "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice";
            let value = limit.map_or(-1.0, |limit| limit as f64);
            all.gauge("container_ulimits_soft", help, &place.and("ulimit", "max_open_files"), value, at);
        }
        let [sleeping, running, stopped, waiting] = self.states;
        for (state, count) in [
            ("sleeping", sleeping),
            ("running", running),
            ("stopped", stopped),
            ("uninterruptible", waiting),
            ("iowaiting", waiting),
        ] {
            let labels = place.and("state", state);
            let help = "Number of tasks in given state";
            all.gauge("container_tasks_state", help, &labels, count as f64, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_looked_at() {
        let (_open, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let found = Processes::of(&Usage { pids: vec![pid], threads: (3, None), ..Usage::default() });
        assert!(found.files.0 >= 5 && found.files.1 >= 2, "{found:?}");
        assert!(found.max_files.is_some());
        assert_eq!((found.states.iter().sum::<u64>(), found.threads), (1, (3, None)));
    }

    #[test]
    fn files_of_proc_are_understood() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024   4096   files\n";
        assert_eq!(soft_limit(text), Some(Some(1024)));
        assert_eq!(soft_limit("Max open files   unlimited   unlimited   files\n"), Some(None));
        assert_eq!(state("7 (a) b) D 1 1"), Some(3));
        assert_eq!(state("7 (a) Z 1 1"), None);
    }
}
