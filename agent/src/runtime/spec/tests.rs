use super::*;
use crate::runtime::Mount;

const ALL: u64 = (1 << 41) - 1;

fn around() -> Surroundings {
    Surroundings {
        shim_pid: 42,
        host_network: false,
        host_pid: false,
        host_ipc: false,
        pause_pid: None,
        shm: "/run/shm".into(),
        hostname_file: Some("/run/hostname".into()),
        hostname: "web-0".to_owned(),
        cgroup: "kelp/kubepods/podu/c.0".into(),
        v1: Vec::new(),
        unified: false,
        bounding: ALL,
        host_devices: Vec::new(),
        users: false,
    }
}

fn container() -> ContainerSpec {
    ContainerSpec {
        argv: vec!["/bin/true".to_owned()],
        env: vec!["A=1".to_owned()],
        ..ContainerSpec::default()
    }
}

/// libcontainer must be able to read what is generated.
fn parsed(spec: &ContainerSpec, around: &Surroundings) -> oci_spec::runtime::Spec {
    serde_json::from_value(generate(spec, around)).unwrap()
}

fn destinations(value: &Value) -> Vec<String> {
    let mounts = value["mounts"].as_array().unwrap();
    mounts.iter().map(|m| m["destination"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn defaults_are_safe() {
    let spec = parsed(&container(), &around());
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/kelp/kubepods/podu/c.0")));
    assert!(linux.masked_paths().as_ref().unwrap().contains(&"/proc/kcore".to_owned()));
    assert!(linux.readonly_paths().as_ref().unwrap().contains(&"/proc/sys".to_owned()));
    let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
    assert!(!rules[0].allow() && rules[0].access().as_deref() == Some("rwm"));
    assert!(rules[1..].iter().all(|rule| rule.allow()));
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.no_new_privileges(), None);
    assert_eq!(process.cwd(), Path::new("/"));
    let capabilities = process.capabilities().as_ref().unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), DEFAULT_CAPABILITIES.len());
    assert!(capabilities.inheritable().as_ref().is_none_or(|c| c.is_empty()));
    assert!(capabilities.ambient().as_ref().is_none_or(|c| c.is_empty()));
    assert!(spec.hostname().is_none(), "the shim sets it");
}

#[test]
fn namespaces_are_the_pods() {
    let kinds = |around: &Surroundings| {
        let value = generate(&container(), around);
        let list = value["linux"]["namespaces"].as_array().unwrap().clone();
        let text =
            |ns: &Value| format!("{} {}", ns["type"].as_str().unwrap(), ns["path"].as_str().unwrap_or("new"));
        list.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(
        kinds(&around()),
        ["mount new", "network /proc/42/ns/net", "uts /proc/42/ns/uts", "ipc /proc/42/ns/ipc", "pid new",]
    );
    let host = Surroundings { host_network: true, host_pid: true, host_ipc: true, unified: true, ..around() };
    assert_eq!(kinds(&host), ["mount new", "cgroup new"]);
}

#[test]
fn mounts_come_outermost_first() {
    let mount = |destination: &str| Mount {
        source: "/src".into(),
        destination: destination.into(),
        read_only: true,
        ..Mount::default()
    };
    let spec = ContainerSpec {
        mounts: vec![mount("/a/b/c"), mount("/a"), mount("/etc/hostname"), mount("/a/b")],
        ..container()
    };
    let value = generate(&spec, &around());
    let found = destinations(&value);
    let place = |path: &str| found.iter().position(|d| d == path).unwrap();
    assert!(place("/a") < place("/a/b") && place("/a/b") < place("/a/b/c"));
    assert_eq!(found.iter().filter(|d| *d == "/etc/hostname").count(), 1);
    assert!(!found.contains(&"/sys/fs/cgroup".to_owned()), "v1 ignores ro there");
    let unified = generate(&spec, &Surroundings { unified: true, ..around() });
    assert!(destinations(&unified).contains(&"/sys/fs/cgroup".to_owned()));
}

#[test]
fn environment_has_what_programs_expect() {
    let spec = ContainerSpec { tty: true, ..container() };
    let env = environment(&spec, &around());
    assert_eq!(env, [DEFAULT_PATH, "A=1", "HOSTNAME=web-0", "TERM=xterm"]);
    let own = ContainerSpec { env: vec!["PATH=/x".to_owned(), "HOSTNAME=mine".to_owned()], ..container() };
    assert_eq!(environment(&own, &around()), ["PATH=/x", "HOSTNAME=mine"]);
}

#[test]
fn limits_in_both_versions() {
    let spec = ContainerSpec {
        resources: Resources {
            cpu_shares: Some(512),
            cpu_quota_us: Some(20_000),
            cpu_period_us: Some(100_000),
            cpus: Some("2-3".into()),
            memory_limit: Some(64 << 20),
            swap_limit: None,
            pids_limit: Some(100),
            oom_score_adj: Some(-997),
        },
        ..container()
    };
    let v1 = parsed(&spec, &around());
    let resources = v1.linux().as_ref().unwrap().resources().clone().unwrap();
    assert_eq!(resources.cpu().as_ref().unwrap().shares(), Some(512));
    assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(20_000));
    assert_eq!(resources.cpu().as_ref().unwrap().cpus().as_deref(), Some("2-3"));
    assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(64 << 20));
    assert_eq!(resources.pids().as_ref().unwrap().limit(), 100);
    assert!(v1.process().as_ref().unwrap().oom_score_adj().is_none(), "the helper sets it");
    let v2 = generate(&spec, &Surroundings { unified: true, ..around() });
    let unified = &v2["linux"]["resources"]["unified"];
    assert_eq!(unified["memory.swap.max"], "0");
    let resources = Resources { memory_limit: None, swap_limit: Some(4096), ..spec.resources.clone() };
    let swapping = ContainerSpec { resources, ..spec.clone() };
    let swapping = generate(&swapping, &Surroundings { unified: true, ..around() });
    assert_eq!(swapping["linux"]["resources"]["unified"]["memory.swap.max"], "4096");
    assert_eq!(unified["cpu.weight"], "20");
    assert!(v2["linux"]["resources"]["cpu"].get("shares").is_none());
}

#[test]
fn capabilities_follow_cri() {
    let chosen = |add: &[&str], drop: &[&str], bounding| {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let spec = ContainerSpec { cap_add: own(add), cap_drop: own(drop), ..container() };
        capabilities(&spec, bounding)
    };
    assert_eq!(chosen(&["ALL"], &[], ALL).len(), 41);
    assert_eq!(chosen(&["ALL"], &["SYS_ADMIN"], ALL).len(), 40);
    assert_eq!(chosen(&["CAP_NET_ADMIN"], &["all"], ALL), ["CAP_NET_ADMIN"]);
    assert!(chosen(&["SYS_TIME"], &[], ALL).contains(&"CAP_SYS_TIME".to_owned()));
    assert!(!chosen(&[], &["chown"], ALL).contains(&"CAP_CHOWN".to_owned()));
    // What the agent lacks cannot be given.
    assert_eq!(chosen(&["ALL"], &[], ALL & !(1 << 24)).len(), 40);
    assert!(chosen(&["ALL"], &[], 0).is_empty());
}

#[test]
fn privileged_containers_get_the_host() {
    let device = HostDevice {
        path: "/dev/kmsg".into(),
        block: false,
        major: 1,
        minor: 11,
        mode: 0o644,
        uid: 0,
        gid: 0,
        read_only: false,
    };
    let spec = ContainerSpec { privileged: true, ..container() };
    let spec = parsed(&spec, &Surroundings { host_devices: vec![device], ..around() });
    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.masked_paths().as_ref().unwrap().is_empty());
    let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
    assert!(rules.len() == 1 && rules[0].allow());
    assert_eq!(linux.devices().as_ref().unwrap()[0].path(), Path::new("/dev/kmsg"));
}

#[test]
fn devices_that_are_asked_for_may_be_used() {
    let device = HostDevice {
        path: "/dev/data".into(),
        block: true,
        major: 7,
        minor: 3,
        mode: 0o660,
        uid: 0,
        gid: 6,
        read_only: true,
    };
    let spec = parsed(&container(), &Surroundings { host_devices: vec![device], ..around() });
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.devices().as_ref().unwrap()[0].path(), Path::new("/dev/data"));
    let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
    assert!(!rules[0].allow());
    let own = rules.iter().find(|r| r.major() == Some(7)).unwrap();
    assert_eq!((own.minor(), own.access().as_deref()), (Some(3), Some("r")));
}

#[test]
fn with_users_of_its_own_every_mount_is_mapped() {
    let mount = |to: &str| Mount { source: "/src".into(), destination: to.into(), ..Mount::default() };
    let spec = ContainerSpec { mounts: vec![mount("/a/b"), mount("/a")], ..container() };
    let mapped = Surroundings { users: true, ..around() };
    let late = late_mounts(&spec, &mapped);
    let to: Vec<_> = late.iter().map(|m| m.destination.to_str().unwrap()).collect();
    assert_eq!(to, ["/etc/hostname", "/a", "/a/b"]);
    assert!(late.iter().all(|m| m.mapped));
    let config = generate(&spec, &mapped);
    let own = config["mounts"].as_array().unwrap();
    assert!(!own.iter().any(|m| m["source"] == "/src" || m["destination"] == "/etc/hostname"), "{own:?}");
    assert!(late_mounts(&spec, &around()).is_empty());
}
