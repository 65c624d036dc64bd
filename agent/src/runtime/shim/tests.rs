//! Privileged: each test runs pods on a node of its own, in private directories and cgroups, and checks afterwards that
//! nothing is left of it.

mod interactive;
mod users;

use super::command::MAX_OUTPUT;
use super::*;
use crate::image::testing::{busybox_layer, docker_archive};
use crate::runtime::{ExitRecord, Mount, Resources, host};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

static NUMBER: AtomicU32 = AtomicU32::new(0);

struct Node {
    dir: tempfile::TempDir,
    config: RuntimeConfig,
    image: String,
    runtime: ShimRuntime,
}

fn layer() -> &'static Vec<u8> {
    static LAYER: OnceLock<Vec<u8>> = OnceLock::new();
    LAYER.get_or_init(busybox_layer)
}

impl Node {
    async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("kelp-runtime-").tempdir().unwrap();
        // Root of a user namespace is nobody on the way to its root filesystem.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let config = RuntimeConfig {
            run_dir: dir.path().join("run"),
            data_dir: dir.path().join("data"),
            cgroup_root: format!("kelp-test-runtime-{}-{number}", std::process::id()).into(),
            cgroup2_dir: None,
            log_max_size: crate::runtime::LOG_MAX_SIZE,
            log_max_files: crate::runtime::LOG_MAX_FILES,
        };
        let archive = dir.path().join("busybox.tar");
        docker_archive(&archive, "busybox:test", &[layer().clone()], &serde_json::json!({}));
        let images = ImageStore::open(&dir.path().join("images")).unwrap();
        let image = images.import(&archive, None).unwrap().remove(0).id;
        let runtime = ShimRuntime::open(&config, images).await.unwrap();
        Self { dir, config, image, runtime }
    }

    /// What a restarted agent does.
    async fn restart(&mut self) {
        let images = ImageStore::open(&self.dir.path().join("images")).unwrap();
        self.runtime = ShimRuntime::open(&self.config, images).await.unwrap();
    }

    fn sandbox_spec(&self, id: &str) -> SandboxSpec {
        SandboxSpec {
            id: id.to_owned(),
            namespace: "default".to_owned(),
            name: format!("pod-{id}"),
            hostname: format!("host-{id}"),
            host_network: false,
            host_pid: false,
            host_ipc: false,
            share_pid: false,
            users: None,
            cgroup: PathBuf::from(format!("kubepods/besteffort/pod{id}")),
            resources: Resources::default(),
            log_dir: self.dir.path().join("logs").join(id),
            sysctls: BTreeMap::new(),
        }
    }

    fn container(&self, name: &str, argv: &[&str]) -> ContainerSpec {
        ContainerSpec {
            id: format!("{name}.0"),
            name: name.to_owned(),
            image_id: self.image.clone(),
            image_ref: "busybox:test".to_owned(),
            argv: argv.iter().map(|s| (*s).to_owned()).collect(),
            cwd: "/".into(),
            log_path: PathBuf::from(format!("{name}/0.log")),
            ..ContainerSpec::default()
        }
    }

    fn shell(&self, name: &str, script: &str) -> ContainerSpec {
        self.container(name, &["/bin/sh", "-c", script])
    }

    fn log(&self, sandbox: &str, name: &str) -> String {
        let path = self.dir.path().join("logs").join(sandbox).join(name).join("0.log");
        fs::read_to_string(path).unwrap()
    }

    /// Content of the log, without times, streams and tags.
    fn output(&self, sandbox: &str, name: &str) -> String {
        let content = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned();
        self.log(sandbox, name).lines().map(content).collect::<Vec<_>>().join("\n")
    }

    async fn ended(&self, sandbox: &str, id: &str) -> ExitRecord {
        let mut events = self.runtime.events();
        let deadline = tokio::time::sleep(Duration::from_secs(30));
        tokio::pin!(deadline);
        loop {
            let status = self.runtime.status(sandbox).await.unwrap().unwrap();
            let container = status.containers.into_iter().find(|c| c.id == id).unwrap();
            if let ContainerState::Exited(record) = container.state {
                return record;
            }
            tokio::select! {
                event = events.recv() => drop(event.unwrap()),
                () = &mut deadline => panic!("{id} does not end"),
            }
        }
    }

    /// Runs a container in a new pod to its end.
    async fn run(&self, sandbox: &str, spec: &ContainerSpec) -> ExitRecord {
        self.runtime.create_sandbox(&self.sandbox_spec(sandbox)).await.unwrap();
        self.runtime.start_container(sandbox, spec).await.unwrap();
        self.ended(sandbox, &spec.id).await
    }

    async fn exec(&self, sandbox: &str, id: &str, argv: &[&str]) -> ExecResult {
        let argv: Vec<String> = argv.iter().map(|s| (*s).to_owned()).collect();
        self.runtime.exec(sandbox, id, &argv, Duration::from_secs(20)).await.unwrap()
    }

    async fn state(&self, sandbox: &str, id: &str) -> ContainerState {
        let status = self.runtime.status(sandbox).await.unwrap().unwrap();
        status.containers.into_iter().find(|c| c.id == id).unwrap().state
    }

    async fn pid(&self, sandbox: &str, id: &str) -> u32 {
        match self.state(sandbox, id).await {
            ContainerState::Running { pid, .. } => pid,
            other => panic!("{id} does not run: {other:?}"),
        }
    }

    fn cgroup_dirs(&self) -> Vec<PathBuf> {
        fn below(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    below(&entry.path(), found);
                    found.push(entry.path());
                }
            }
        }
        let mut found = Vec::new();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            below(&hierarchy.path().join(&self.config.cgroup_root), &mut found);
        }
        below(&Path::new("/sys/fs/cgroup").join(&self.config.cgroup_root), &mut found);
        found
    }

    /// Removes every sandbox and checks that nothing is left.
    async fn finish(self) {
        for sandbox in self.runtime.list().await.unwrap() {
            self.runtime.remove_sandbox(&sandbox.id).await.unwrap();
        }
        self.assert_clean();
    }

    fn assert_clean(&self) {
        let is_skeleton =
            |dir: &PathBuf| ["kubepods", "besteffort", "pods"].iter().any(|name| dir.ends_with(name));
        let cgroups: Vec<PathBuf> = self.cgroup_dirs().into_iter().filter(|d| !is_skeleton(d)).collect();
        assert_eq!(cgroups, Vec::<PathBuf>::new());
        let dir = self.dir.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&dir), "mounts are left: {mounts}");
        assert_eq!(processes_mentioning(&dir), Vec::<String>::new());
        for left in ["run/pods", "data/containers", "images/leases"] {
            let entries = fs::read_dir(self.dir.path().join(left)).into_iter().flatten().flatten();
            let names: Vec<_> = entries.map(|e| e.file_name()).collect();
            assert!(names.is_empty(), "{left} has {names:?}");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A failed test must not leave processes or cgroups behind.
        if let Ok(cgroups) = Cgroups::detect(&self.config.cgroup_root, None) {
            let root = self.config.cgroup_root.clone();
            let _ = cgroups.destroy(&root, None);
        }
    }
}

fn processes_mentioning(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        if cmdline.contains(text) {
            found.push(cmdline);
        }
    }
    found
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: kill takes integers only; the PID is that of a process this test started.
    let result = unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) };
    assert_eq!(result, 0);
}

#[tokio::test]
async fn output_and_exit_codes() {
    let node = Node::new().await;
    let script = "echo out; echo err >&2; printf unfinished; exit 3";
    let ended = node.run("a", &node.shell("main", script)).await;
    assert_eq!((ended.exit_code, ended.signal, ended.reason.as_str()), (3, None, "Error"));
    assert!(ended.started_at <= ended.finished_at);
    let log = node.log("a", "main");
    assert!(log.contains(" stdout F out\n"), "{log}");
    assert!(log.contains(" stderr F err\n"), "{log}");
    assert!(log.contains(" stdout P unfinished\n"), "{log}");

    let ended = node.run("b", &node.container("main", &["true"])).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    // Repeating a call changes nothing.
    let again = node.runtime.start_container("b", &node.container("main", &["true"])).await.unwrap();
    assert_eq!(again.state, ContainerState::Exited(ended));
    node.finish().await;
}

#[tokio::test]
async fn every_line_reaches_the_log() {
    let node = Node::new().await;
    let ended = node.run("a", &node.shell("main", "seq 1 50000")).await;
    assert_eq!(ended.exit_code, 0);
    let expected: Vec<String> = (1..=50_000).map(|n| n.to_string()).collect();
    assert_eq!(node.output("a", "main"), expected.join("\n"));
    node.finish().await;
}

#[tokio::test]
async fn start_errors_are_exact() {
    let node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let cases = [
        ("no-such", 127, "exec: \"no-such\": executable file not found in $PATH"),
        ("/no/such", 127, "exec: \"/no/such\": stat /no/such: no such file or directory"),
        ("/etc/not-executable", 126, "exec: \"/etc/not-executable\": permission denied"),
        ("/bin/bad-script", 127, "exec /bin/bad-script: no such file or directory"),
        ("/bin/bad-format", 126, "exec /bin/bad-format: exec format error"),
        ("/etc", 126, "exec: \"/etc\": is a directory"),
    ];
    for (number, (command, code, text)) in cases.into_iter().enumerate() {
        let spec = node.container(&format!("c{number}"), &[command]);
        match node.runtime.start_container("a", &spec).await {
            Err(RuntimeError::Start { message, exit_code }) => {
                assert_eq!((exit_code, message.as_str()), (code, text));
            }
            other => panic!("{command}: {other:?}"),
        }
        let record = node.ended("a", &spec.id).await;
        assert_eq!((record.reason.as_str(), record.exit_code), ("StartError", code));
        assert_eq!(record.message, text);
        node.runtime.remove_container("a", &spec.id).await.unwrap();
    }
    let unknown = ContainerSpec {
        image_id: format!("sha256:{}", "0".repeat(64)),
        ..node.container("image", &["true"])
    };
    let error = node.runtime.start_container("a", &unknown).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Image { .. }), "{error}");
    let user = ContainerSpec { user: Some("nobody".into()), ..node.container("user", &["true"]) };
    let error = node.runtime.start_container("a", &user).await.unwrap_err();
    assert!(error.to_string().contains("\"nobody\" is not in the image's /etc/passwd"), "{error}");
    node.finish().await;
}

#[tokio::test]
async fn signals_end_containers_and_removal_kills() {
    let node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let spec = node.shell("main", "trap 'exit 5' TERM; while :; do sleep 0.1; done");
    node.runtime.start_container("a", &spec).await.unwrap();
    // The trap must be set before the signal comes: PID 1 ignores what it does not handle.
    while !node.exec("a", "main.0", &["grep", "SigCgt", "/proc/1/status"]).await.stdout.ends_with(b"4002\n") {
    }
    node.runtime.signal_container("a", "main.0", libc::SIGTERM).await.unwrap();
    assert_eq!(node.ended("a", "main.0").await.exit_code, 5);
    node.runtime.signal_container("a", "main.0", libc::SIGTERM).await.unwrap();

    let stubborn = node.shell("stubborn", "trap '' TERM; sleep 1000");
    node.runtime.start_container("a", &stubborn).await.unwrap();
    node.runtime.signal_container("a", "stubborn.0", libc::SIGKILL).await.unwrap();
    let ended = node.ended("a", "stubborn.0").await;
    assert_eq!((ended.exit_code, ended.signal), (137, Some(9)));

    let removed = node.container("removed", &["sleep", "1000"]);
    node.runtime.start_container("a", &removed).await.unwrap();
    let pid = node.pid("a", "removed.0").await;
    node.runtime.remove_container("a", "removed.0").await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!node.cgroup_dirs().iter().any(|dir| dir.ends_with("removed.0")));
    node.runtime.remove_container("a", "removed.0").await.unwrap();
    let missing = node.runtime.signal_container("a", "removed.0", 9).await.unwrap_err();
    assert!(matches!(missing, RuntimeError::NotFound { kind: "container", .. }));
    node.finish().await;
}

#[tokio::test]
async fn a_container_is_confined() {
    let node = Node::new().await;
    let shared = node.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let script = "id -u; id -g; id -G; pwd; hostname; cat /etc/hostname; echo $HOSTNAME $GREETING; \
        grep CapEff /proc/self/status; touch /x 2>&1; touch /shared/y && echo shared; \
        touch /fixed/z 2>&1; umask; cat /proc/1/comm; cat /proc/keys /proc/timer_list | wc -c; \
        echo 1 2>&1 > /proc/sys/kernel/hostname; cat /proc/self/oom_score_adj; ls /sys/class/net";
    let mount = |destination: &str, read_only| Mount {
        source: shared.clone(),
        destination: destination.into(),
        read_only,
        ..Mount::default()
    };
    let spec = ContainerSpec {
        user: Some("web".to_owned()),
        cwd: "/made/for/me".into(),
        env: vec!["GREETING=hello world".to_owned()],
        mounts: vec![mount("/shared", false), mount("/fixed", true)],
        read_only_root: true,
        additional_gids: vec![777],
        resources: Resources { oom_score_adj: Some(500), ..Resources::default() },
        ..node.shell("main", script)
    };
    std::os::unix::fs::chown(&shared, Some(101), None).unwrap();
    let ended = node.run("a", &spec).await;
    assert_eq!(ended.exit_code, 0);
    let output = node.output("a", "main");
    let expected = [
        "101",
        "102",
        "102 200 777",
        "/made/for/me",
        "host-a",
        "host-a",
        "host-a hello world",
        "CapEff:\t0000000000000000",
        "touch: /x: Read-only file system",
        "shared",
        "touch: /fixed/z: Read-only file system",
        "0022",
        "sh",
        "0",
        "/bin/sh: can't create /proc/sys/kernel/hostname: Read-only file system",
        "500",
        "lo",
    ];
    assert_eq!(output.lines().collect::<Vec<_>>(), expected, "{output}");
    node.finish().await;
}

#[tokio::test]
async fn capabilities_are_those_asked_for() {
    let node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let effective = |spec: ContainerSpec| {
        let node = &node;
        async move {
            node.runtime.start_container("a", &spec).await.unwrap();
            node.ended("a", &spec.id).await;
            let output = node.output("a", &spec.name);
            u64::from_str_radix(output.trim_start_matches("CapEff:\t"), 16).unwrap()
        }
    };
    let base = |name| node.shell(name, "grep CapEff /proc/self/status");
    // containerd's and Docker's default set.
    assert_eq!(effective(base("default")).await, 0xa804_25fb);
    let dropped = ContainerSpec { cap_drop: vec!["ALL".into()], ..base("dropped") };
    assert_eq!(effective(dropped).await, 0);
    let bind = ContainerSpec {
        cap_drop: vec!["ALL".into()],
        cap_add: vec!["NET_BIND_SERVICE".into()],
        ..base("bind")
    };
    assert_eq!(effective(bind).await, 1 << 10);
    let privileged = ContainerSpec { privileged: true, ..base("privileged") };
    assert_eq!(effective(privileged).await, host::bounding_set());
    node.finish().await;
}

#[tokio::test]
async fn devices_are_denied() {
    let node = Node::new().await;
    // CAP_MKNOD makes the node, the device cgroup refuses to open it.
    let script = "mknod /tmp/d c 4 64 && cat /tmp/d 2>&1; echo > /dev/null && head -c 4 /dev/zero | wc -c";
    node.run("a", &node.shell("main", script)).await;
    assert_eq!(node.output("a", "main"), "cat: can't open '/tmp/d': Operation not permitted\n4");
    node.finish().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_network_and_memory() {
    let node = Node::new().await;
    let spec = SandboxSpec {
        sysctls: BTreeMap::from([("net.ipv4.ip_unprivileged_port_start".into(), "80".into())]),
        ..node.sandbox_spec("a")
    };
    let status = node.runtime.create_sandbox(&spec).await.unwrap();
    let netns = fs::read_link(status.netns.unwrap()).unwrap();
    assert_ne!(netns, fs::read_link("/proc/self/ns/net").unwrap());
    node.runtime.start_container("a", &node.shell("one", "echo hi > /dev/shm/f; sleep 1000")).await.unwrap();
    while node.exec("a", "one.0", &["cat", "/dev/shm/f"]).await.stdout != b"hi\n" {}
    let script = "cat /dev/shm/f; readlink /proc/self/ns/net; \
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
        grep ' /dev/shm ' /proc/mounts | grep -c size=65536k";
    node.runtime.start_container("a", &node.shell("two", script)).await.unwrap();
    node.ended("a", "two.0").await;
    let expected = format!("hi\n{}\n80\n1", netns.display());
    assert_eq!(node.output("a", "two"), expected);
    // The dataplane's cgroup programs find containers in the cgroup v2 directory of the node's pods.
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", node.pid("a", "one.0").await)).unwrap();
    let unified = cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    let root = Path::new("/").join(&node.config.cgroup_root);
    assert!(Path::new(unified).starts_with(&root), "{cgroups}");
    if !node.runtime.inner.cgroups.is_unified() {
        assert_eq!(Path::new(unified), root.join("pods/a"));
        assert!(cgroups.lines().any(|l| l.ends_with("kubepods/besteffort/poda/one.0")), "{cgroups}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_is_given() {
    let node = Node::new().await;
    let spec = ContainerSpec { tty: true, ..node.shell("main", "[ -t 0 ] && [ -t 1 ] && echo tty $TERM") };
    assert_eq!(node.run("a", &spec).await.exit_code, 0);
    assert_eq!(node.output("a", "main").trim_end(), "tty xterm");
    node.finish().await;
}

#[tokio::test]
async fn commands_run_in_containers() {
    let node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let spec = ContainerSpec {
        user: Some("web".into()),
        env: vec!["A=b".into()],
        ..node.container("main", &["sleep", "1000"])
    };
    node.runtime.start_container("a", &spec).await.unwrap();
    let result = node.exec("a", "main.0", &["sh", "-c", "id -u; echo $A; echo bad >&2; exit 7"]).await;
    assert_eq!((result.exit_code, result.timed_out), (7, false));
    assert_eq!((result.stdout.as_slice(), result.stderr.as_slice()), (&b"101\nb\n"[..], &b"bad\n"[..]));
    let large = node.exec("a", "main.0", &["head", "-c", "100000", "/dev/zero"]).await;
    assert_eq!((large.exit_code, large.stdout.len()), (0, MAX_OUTPUT));
    let argv = |words: &[&str]| words.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let missing = node.runtime.exec("a", "main.0", &argv(&["nope"]), Duration::ZERO).await;
    assert!(matches!(missing, Err(RuntimeError::Start { exit_code: 127, .. })), "{missing:?}");

    let before = Instant::now();
    let slow = argv(&["sleep", "1000"]);
    let result = node.runtime.exec("a", "main.0", &slow, Duration::from_millis(300)).await.unwrap();
    assert!(result.timed_out && before.elapsed() < Duration::from_secs(10));
    // A process that stays behind and holds the output does not hold the answer.
    let result = node.exec("a", "main.0", &["sh", "-c", "sleep 1000 & echo started"]).await;
    assert_eq!((result.exit_code, result.stdout.as_slice()), (0, &b"started\n"[..]));

    let results = futures::future::join_all((0..15).map(|n| {
        let node = &node;
        async move { node.exec("a", "main.0", &["echo", &n.to_string()]).await.stdout }
    }))
    .await;
    for (n, stdout) in results.into_iter().enumerate() {
        assert_eq!(stdout, format!("{n}\n").into_bytes());
    }
    node.runtime.signal_container("a", "main.0", libc::SIGKILL).await.unwrap();
    node.ended("a", "main.0").await;
    assert!(node.runtime.exec("a", "main.0", &argv(&["true"]), Duration::ZERO).await.is_err());
    // libcontainer's sockets of finished commands are gone.
    let state = node.config.run_dir.join("pods/a/s/main.0");
    let sockets = fs::read_dir(state).unwrap().flatten();
    assert_eq!(sockets.filter(|e| e.file_name().to_string_lossy().contains("tenant")).count(), 0);
    node.finish().await;
}

#[tokio::test]
async fn too_much_memory_is_reported_as_such() {
    let node = Node::new().await;
    let spec = ContainerSpec {
        resources: Resources { memory_limit: Some(32 << 20), pids_limit: Some(50), ..Resources::default() },
        ..node.shell("main", "dd if=/dev/zero of=/dev/null bs=200M count=1")
    };
    let ended = node.run("a", &spec).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    // The pod's limit counts as well, and the container's own counter tells.
    let pod = SandboxSpec {
        resources: Resources { memory_limit: Some(32 << 20), ..Resources::default() },
        ..node.sandbox_spec("b")
    };
    node.runtime.create_sandbox(&pod).await.unwrap();
    let hungry = node.container("main", &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    node.runtime.start_container("b", &hungry).await.unwrap();
    assert_eq!(node.ended("b", "main.0").await.reason, "OOMKilled");
    node.finish().await;
}

/// On hosts with cgroup v2 alone; the others have no limit of swap by itself, and start the containers all the same.
#[tokio::test]
async fn containers_swap_as_much_as_they_may() {
    let node = Node::new().await;
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    for (sandbox, swap) in [("none", 0), ("some", 1 << 20)] {
        let resources =
            Resources { memory_limit: Some(32 << 20), swap_limit: Some(swap), ..Resources::default() };
        let spec = ContainerSpec { resources, ..node.container("main", &["sleep", "1000"]) };
        node.runtime.create_sandbox(&node.sandbox_spec(sandbox)).await.unwrap();
        node.runtime.start_container(sandbox, &spec).await.unwrap();
        let cgroup =
            fs::read_to_string(format!("/proc/{}/cgroup", node.pid(sandbox, "main.0").await)).unwrap();
        let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"));
        assert!(!unified || path.is_some(), "{cgroup}");
        if let Some(path) = path.filter(|_| unified) {
            let limit = Path::new("/sys/fs/cgroup").join(path).join("memory.swap.max");
            assert_eq!(fs::read_to_string(limit).unwrap().trim(), swap.to_string());
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn an_agent_restart_changes_nothing() {
    let mut node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let script = "i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit 9";
    node.runtime.start_container("a", &node.shell("main", script)).await.unwrap();
    node.runtime.start_container("a", &node.container("long", &["sleep", "1000"])).await.unwrap();
    let before = node.runtime.status("a").await.unwrap().unwrap();
    let long = node.pid("a", "long.0").await;
    node.restart().await;
    let mut after = node.runtime.list().await.unwrap();
    assert_eq!(after.len(), 1);
    let after = after.remove(0);
    assert_eq!(
        (after.shim_pid, &after.netns, after.created_at),
        (before.shim_pid, &before.netns, before.created_at)
    );
    assert_eq!(node.pid("a", "long.0").await, long);
    assert_eq!(node.ended("a", "main.0").await.exit_code, 9);
    let expected: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    assert_eq!(node.output("a", "main"), expected.join("\n"));
    assert_eq!(node.exec("a", "long.0", &["echo", "ok"]).await.stdout, b"ok\n");
    // The image of a running container stays.
    let images = ImageStore::open(&node.dir.path().join("images")).unwrap();
    let error = images.remove("busybox:test").unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    node.finish().await;
}

#[tokio::test]
async fn containers_outlive_their_shim_until_they_are_told_to_end() {
    let node = Node::new().await;
    let mut events = node.runtime.events();
    let status = node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let main = node.shell("main", "trap 'exit 7' TERM; while true; do sleep 0.1; done");
    node.runtime.start_container("a", &main).await.unwrap();
    let done = node.container("done", &["true"]);
    node.runtime.start_container("a", &done).await.unwrap();
    assert_eq!(node.ended("a", "done.0").await.exit_code, 0);
    let pid = node.pid("a", "main.0").await;
    kill(status.shim_pid, libc::SIGKILL);
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.unwrap();
        if event.unwrap() == (RuntimeEvent::SandboxLost { sandbox: "a".into() }) {
            break;
        }
    }
    let lost = node.runtime.status("a").await.unwrap().unwrap();
    assert!(!lost.ready && lost.netns.is_none());
    assert_eq!(node.ended("a", "done.0").await.reason, "Completed");
    assert_eq!(node.pid("a", "main.0").await, pid);
    node.runtime.signal_container("a", "main.0", libc::SIGTERM).await.unwrap();
    let record = node.ended("a", "main.0").await;
    if kernel_tells_exit_codes() {
        assert_eq!((record.exit_code, record.reason.as_str()), (7, "Error"));
    } else {
        assert_eq!((record.exit_code, record.reason.as_str()), (137, "ContainerStatusUnknown"));
    }
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(cmdline.is_empty(), "the container lives on");
    let refused = node.runtime.start_container("a", &node.container("new", &["true"])).await;
    assert!(matches!(refused, Err(RuntimeError::Shim { .. })));

    // Created again, the pod works, and remembers what was.
    let again = node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    assert!(again.ready && again.shim_pid != status.shim_pid && again.containers.len() == 2);
    node.runtime.start_container("a", &node.container("new", &["true"])).await.unwrap();
    assert_eq!(node.ended("a", "new.0").await.exit_code, 0);
    node.finish().await;
}

/// Whether the exit code of a process that is not our child can be had: from Linux 6.15 on.
fn kernel_tells_exit_codes() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 15)
}

#[tokio::test]
async fn an_agent_that_starts_later_follows_containers_without_a_shim() {
    let mut node = Node::new().await;
    let status = node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let main = node.shell("main", "trap 'exit 7' TERM; while true; do sleep 0.1; done");
    node.runtime.start_container("a", &main).await.unwrap();
    let pid = node.pid("a", "main.0").await;
    kill(status.shim_pid, libc::SIGKILL);
    node.restart().await;
    assert_eq!(node.pid("a", "main.0").await, pid);
    node.runtime.signal_container("a", "main.0", libc::SIGTERM).await.unwrap();
    let expected = if kernel_tells_exit_codes() { 7 } else { 137 };
    assert_eq!(node.ended("a", "main.0").await.exit_code, expected);
    node.finish().await;
}

#[tokio::test]
async fn removal_works_without_the_shim() {
    let node = Node::new().await;
    let status = node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    node.runtime.start_container("a", &node.container("main", &["sleep", "1000"])).await.unwrap();
    kill(status.shim_pid, libc::SIGKILL);
    node.runtime.remove_sandbox("a").await.unwrap();
    node.runtime.remove_sandbox("a").await.unwrap();
    assert!(node.runtime.status("a").await.unwrap().is_none());
    node.finish().await;
}

#[tokio::test]
async fn removal_works_with_a_stopped_shim() {
    let node = Node::new().await;
    let status = node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    node.runtime.start_container("a", &node.container("main", &["sleep", "1000"])).await.unwrap();
    kill(status.shim_pid, libc::SIGSTOP);
    node.runtime.remove_sandbox("a").await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_killed_helper_fails_one_start_only() {
    let node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let before = Instant::now();
    node.runtime.start_container("a", &node.container("first", &["true"])).await.unwrap();
    let usual = before.elapsed();
    let mut killed = 0;
    for attempt in 0..20u32 {
        let spec = node.container(&format!("c{attempt}"), &["sleep", "1000"]);
        let runtime = node.runtime.clone();
        let copy = spec.clone();
        let start = tokio::spawn(async move { runtime.start_container("a", &copy).await });
        // Each attempt is cut off a little later than the one before.
        tokio::time::sleep(usual * attempt / 20).await;
        for helper in helpers_of(&node) {
            // SAFETY: kill takes integers only; the helper is this test's, and may have ended.
            unsafe { libc::kill(helper, libc::SIGKILL) };
        }
        match start.await.unwrap() {
            Ok(_) => {}
            Err(RuntimeError::Start { message, exit_code: 128 }) => {
                assert!(message.contains("helper"), "{message}");
                killed += 1;
            }
            Err(other) => panic!("{other}"),
        }
        node.runtime.remove_container("a", &spec.id).await.unwrap();
    }
    assert!(killed > 0, "no helper was caught at work");
    node.runtime.start_container("a", &node.container("last", &["true"])).await.unwrap();
    assert_eq!(node.ended("a", "last.0").await.exit_code, 0);
    node.finish().await;
}

/// PIDs of runtime helpers in the cgroup of this node's shims.
fn helpers_of(node: &Node) -> Vec<i32> {
    let mut found = Vec::new();
    for dir in node.cgroup_dirs() {
        let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines().filter_map(|l| l.parse::<i32>().ok()) {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if cmdline.starts_with(b"kelp-runtime-helper") && !found.contains(&pid) {
                found.push(pid);
            }
        }
    }
    found
}

#[tokio::test]
async fn a_shim_killed_at_any_moment_leaves_nothing() {
    let node = Node::new().await;
    let before = Instant::now();
    node.run("usual", &node.container("main", &["true"])).await;
    let usual = before.elapsed();
    for attempt in 0..16u32 {
        let id = format!("k{attempt}");
        let status = node.runtime.create_sandbox(&node.sandbox_spec(&id)).await.unwrap();
        let (runtime, spec) = (node.runtime.clone(), node.container("main", &["sleep", "1000"]));
        let sandbox = id.clone();
        let start = tokio::spawn(async move { runtime.start_container(&sandbox, &spec).await });
        tokio::time::sleep(usual * attempt / 16).await;
        kill(status.shim_pid, libc::SIGKILL);
        let started = start.await.unwrap();
        assert!(matches!(started, Ok(_) | Err(RuntimeError::Shim { .. })), "attempt {attempt}: {started:?}");
        if attempt % 2 == 0 {
            let observed = node.runtime.status(&id).await.unwrap().unwrap();
            assert!(!observed.ready);
            let unclear = |c: &ContainerStatus| c.state == ContainerState::Created;
            assert!(!observed.containers.iter().any(unclear), "{observed:?}");
        }
        node.runtime.remove_sandbox(&id).await.unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn an_agent_killed_at_any_moment_leaves_nothing() {
    let mut node = Node::new().await;
    let before = Instant::now();
    node.run("usual", &node.container("main", &["true"])).await;
    let usual = before.elapsed();
    for attempt in 0..16u32 {
        let id = format!("k{attempt}");
        let (runtime, sandbox) = (node.runtime.clone(), node.sandbox_spec(&id));
        let spec = node.container("main", &["sleep", "1000"]);
        // What an agent does to a new pod, cut off at some point: at an await, as the end of its process would.
        let work = tokio::spawn(async move {
            runtime.create_sandbox(&sandbox).await?;
            runtime.start_container(&sandbox.id, &spec).await
        });
        tokio::time::sleep(usual * attempt / 16).await;
        work.abort();
        let _ = work.await;
        node.restart().await;
        if attempt % 2 == 0 {
            // The next agent finishes the work.
            node.runtime.create_sandbox(&node.sandbox_spec(&id)).await.unwrap();
            let spec = node.container("main", &["sleep", "1000"]);
            let status = node.runtime.start_container(&id, &spec).await.unwrap();
            assert!(matches!(status.state, ContainerState::Running { .. }), "{status:?}");
        }
        node.runtime.remove_sandbox(&id).await.unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn an_image_of_many_layers_starts() {
    let node = Node::new().await;
    let mut layers = vec![layer().clone()];
    for n in 0..200 {
        let file = format!("n{n}");
        layers.push(crate::image::testing::Layer::new().file(&file, 0o644, b"x").bytes());
    }
    let archive = node.dir.path().join("many.tar");
    docker_archive(&archive, "many:1", &layers, &serde_json::json!({}));
    let image = node.runtime.inner.images.import(&archive, None).unwrap().remove(0);
    let spec = ContainerSpec { image_id: image.id, ..node.shell("main", "ls / | grep -c ^n[0-9]") };
    node.run("a", &spec).await;
    assert_eq!(node.output("a", "main"), "200");
    node.finish().await;
}

#[tokio::test]
async fn what_a_node_cannot_do_is_said() {
    let node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let mount = Mount {
        source: node.dir.path().join("missing-source"),
        destination: "/data".into(),
        read_only: false,
        ..Mount::default()
    };
    let cases = [
        (ContainerSpec { mounts: vec![mount], ..node.container("mount", &["true"]) }, "missing-source"),
        (
            ContainerSpec { cwd: "/etc/passwd".into(), ..node.container("cwd", &["true"]) },
            "cannot use /etc/passwd as the working directory: Not a directory",
        ),
        (
            ContainerSpec { user: Some("web:none".into()), ..node.container("group", &["true"]) },
            "group \"none\" is not in the image's /etc/group",
        ),
    ];
    for (spec, text) in cases {
        match node.runtime.start_container("a", &spec).await {
            Err(RuntimeError::Start { message, exit_code: 128 }) => {
                assert!(message.contains(text), "{message}");
            }
            other => panic!("{}: {other:?}", spec.name),
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn what_a_crash_leaves_is_finished_or_removed() {
    let mut node = Node::new().await;
    // The agent died after it had described the sandbox, and between the steps of preparing a container.
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let spec = node.container("main", &["true"]);
    let description = node.runtime.sandbox("a").unwrap();
    node.runtime.prepare_container(&description, &spec, 1, None).unwrap();
    let half = node.config.run_dir.join("pods/half");
    fs::create_dir_all(half.join("c/x.0")).unwrap();
    fs::create_dir_all(node.config.data_dir.join("containers/gone/x.0/u")).unwrap();
    node.restart().await;
    assert!(!half.exists() && !node.config.data_dir.join("containers/gone").exists());
    assert_eq!(node.state("a", "main.0").await, ContainerState::Created);
    node.runtime.start_container("a", &spec).await.unwrap();
    assert_eq!(node.ended("a", "main.0").await.exit_code, 0);

    // A description without a shim.
    node.runtime.create_sandbox(&node.sandbox_spec("b")).await.unwrap();
    node.runtime.stop_shim("b").await.unwrap();
    node.restart().await;
    assert!(!node.runtime.status("b").await.unwrap().unwrap().ready);
    node.runtime.create_sandbox(&node.sandbox_spec("b")).await.unwrap();
    assert!(node.runtime.status("b").await.unwrap().unwrap().ready);
    node.finish().await;
}

#[tokio::test]
async fn host_namespaces_can_be_kept() {
    let node = Node::new().await;
    let spec = SandboxSpec { host_network: true, host_pid: true, host_ipc: true, ..node.sandbox_spec("a") };
    let status = node.runtime.create_sandbox(&spec).await.unwrap();
    assert_eq!(status.netns, None);
    let script = "for n in net pid ipc; do readlink /proc/self/ns/$n; done; (sleep 1000 &) ; exit 4";
    node.runtime.start_container("a", &node.shell("main", script)).await.unwrap();
    assert_eq!(node.ended("a", "main.0").await.exit_code, 4);
    let ours = ["net", "pid", "ipc"]
        .map(|ns| fs::read_link(format!("/proc/self/ns/{ns}")).unwrap().display().to_string());
    assert_eq!(node.output("a", "main"), ours.join("\n"));
    node.finish().await;
}

#[tokio::test]
async fn fifteen_pods_at_once() {
    let node = Node::new().await;
    let before = Instant::now();
    futures::future::join_all((0..15).map(|n| {
        let node = &node;
        async move {
            let id = format!("p{n}");
            let ended = node.run(&id, &node.shell("main", &format!("echo {n}; exit {n}"))).await;
            assert_eq!(ended.exit_code, n);
            assert_eq!(node.output(&id, "main"), n.to_string());
        }
    }))
    .await;
    eprintln!("15 pods run to their end in {:?}", before.elapsed());
    let removed = Instant::now();
    futures::future::join_all((0..15).map(|n| {
        let node = &node;
        async move { node.runtime.remove_sandbox(&format!("p{n}")).await.unwrap() }
    }))
    .await;
    eprintln!("and removed in {:?}", removed.elapsed());
    node.finish().await;
}

#[tokio::test]
async fn bad_ids_are_refused() {
    let node = Node::new().await;
    for id in ["", "..", "a/b", ".hidden", "a b"] {
        assert!(node.runtime.create_sandbox(&node.sandbox_spec(id)).await.is_err(), "{id:?}");
    }
    let sandbox = SandboxSpec { cgroup: "../up".into(), ..node.sandbox_spec("a") };
    assert!(node.runtime.create_sandbox(&sandbox).await.is_err());
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let spec = ContainerSpec { id: "../x".into(), ..node.container("c", &["true"]) };
    assert!(node.runtime.start_container("a", &spec).await.is_err());
    node.finish().await;
}

/// Not a check but a measurement: `cargo test … measure -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "prints numbers"]
async fn measure_start_time_and_memory() {
    let node = Node::new().await;
    let (mut sandboxes, mut containers) = (Vec::new(), Vec::new());
    for n in 0..20 {
        let id = format!("m{n}");
        let before = Instant::now();
        node.runtime.create_sandbox(&node.sandbox_spec(&id)).await.unwrap();
        sandboxes.push(before.elapsed());
        let before = Instant::now();
        node.runtime.start_container(&id, &node.container("main", &["sleep", "1000"])).await.unwrap();
        containers.push(before.elapsed());
    }
    sandboxes.sort();
    containers.sort();
    eprintln!("create_sandbox p50 {:?} p90 {:?}", sandboxes[10], sandboxes[18]);
    eprintln!("start_container p50 {:?} p90 {:?}", containers[10], containers[18]);
    for id in ["m0", "m19"] {
        let pid = node.runtime.status(id).await.unwrap().unwrap().shim_pid;
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let lines: Vec<&str> = text
            .lines()
            .filter(|l| ["Rss:", "Pss:", "Private_Dirty:", "Private_Clean:"].iter().any(|k| l.starts_with(k)))
            .collect();
        eprintln!("shim of {id}: {}", lines.join(", "));
    }
    node.finish().await;
}
