//! Seccomp profiles: the runtime's default one, and those of files.
//!
//! The default allows what containerd's does: the ordinary system calls, those of a capability where the container has
//! it, and nothing that makes a namespace without one.

use serde_json::{Map, Value, json};

/// System calls that every container may make, with the numbers of several architectures in one list: names that a
/// kernel does not know are left out when the filter is loaded.
const ALLOWED: &str = "accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 \
    clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 \
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 \
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat \
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait \
    futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid \
    getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom \
    getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt \
    get_thread_area gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents io_pgetevents_time64 \
    ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr \
    _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret \
    mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget \
    msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat \
    openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 \
    prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 \
    pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall \
    riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam \
    sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
    seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto \
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority \
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list \
    setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget \
    shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs \
    statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create \
    timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create \
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit \
    umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid \
    write writev arch_prctl modify_ldt";

/// System calls of a capability.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Execution domains (personality(2)) that a container may choose.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Flags of clone(2) that make a namespace.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// Family of sockets to the hypervisor, which knows no namespaces.
const AF_VSOCK: u64 = 40;

/// The default profile, as `linux.seccomp` of the OCI runtime spec, for a container with these capabilities.
pub fn runtime_default(capabilities: &[String]) -> Value {
    let allow =
        |names: Vec<&str>, args: Value| json!({"names": names, "action": "SCMP_ACT_ALLOW", "args": args});
    let has = |capability: &str| capabilities.iter().any(|c| c == capability);
    let mut rules = vec![
        allow(ALLOWED.split_whitespace().collect(), json!([])),
        allow(vec!["socket"], json!([{"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE"}])),
    ];
    for value in PERSONALITIES {
        rules.push(allow(vec!["personality"], json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}])));
    }
    for (capability, names) in BY_CAPABILITY {
        if has(capability) {
            rules.push(allow(names.split_whitespace().collect(), json!([])));
        }
    }
    if !has("CAP_SYS_ADMIN") {
        let plain =
            json!([{"index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]);
        rules.push(allow(vec!["clone"], plain));
        // Its flags are in memory where no filter sees them; libraries fall back to clone.
        rules.push(
            json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS, "args": []}),
        );
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

fn architectures() -> Value {
    match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => json!([]),
    }
}

/// A profile of a file: the fields of `linux.seccomp` that the OCI runtime spec knows.
///
/// # Errors
/// The text is not JSON, or not an object; the error says which.
pub fn parse(text: &[u8]) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let Value::Object(object) = value else { return Err("it is not a JSON object".into()) };
    let mut profile: Map<String, Value> = Map::new();
    for (key, value) in object {
        if ["defaultAction", "defaultErrnoRet", "architectures", "flags", "syscalls"].contains(&key.as_str())
        {
            profile.insert(key, value);
        }
    }
    if !profile.get("defaultAction").is_some_and(Value::is_string) {
        return Err("it has no defaultAction".into());
    }
    for rule in profile.get_mut("syscalls").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(rule) = rule.as_object_mut() {
            rule.retain(|key, value| {
                ["names", "action", "errnoRet", "args"].contains(&key.as_str()) && !value.is_null()
            });
        }
    }
    Ok(Value::Object(profile))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &Value, action: &str) -> Vec<String> {
        let rules = profile["syscalls"].as_array().unwrap().iter().filter(|r| r["action"] == action);
        rules.flat_map(|r| r["names"].as_array().unwrap()).map(|n| n.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_capability_brings_its_calls() {
        let plain = names(&runtime_default(&[]), "SCMP_ACT_ALLOW");
        assert!(plain.contains(&"openat".into()) && !plain.contains(&"mount".into()));
        let admin = runtime_default(&["CAP_SYS_ADMIN".into()]);
        assert!(names(&admin, "SCMP_ACT_ALLOW").contains(&"mount".into()));
        assert!(names(&admin, "SCMP_ACT_ERRNO").is_empty());
    }

    #[test]
    fn profiles_of_files() {
        let text = br#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [], "syscalls": [{"names": ["mkdir"],
            "action": "SCMP_ACT_ERRNO", "comment": "", "includes": {}}]}"#;
        let profile = parse(text).unwrap();
        assert_eq!(profile["syscalls"][0], json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}));
        assert!(profile.get("archMap").is_none());
        assert!(parse(b"[]").is_err() && parse(b"{").is_err() && parse(b"{}").is_err());
    }
}
