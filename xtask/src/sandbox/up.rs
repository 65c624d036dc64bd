//! Bringing a sandbox up: build, hosts, `kelp`, the sample workload, and a look at whether it answers.

use super::layout::{Layout, MAX_NODES, NodeLayout};
use super::supervisor::running_supervisor;
use super::{down, enter, hosts};
use crate::command::{command, output, run};
use crate::{build, build_ebpf, image, setup};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::PidfdFlags;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long one `kelp` may take until it is ready, on a loaded machine.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a supervisor may take to stop; it gives `kelp` 15 s before it kills it.
const STOP_TIMEOUT_SECONDS: i64 = 40;
/// Requests sent to each address of the sample workload.
const SAMPLE_REQUESTS: usize = 30;

/// What to bring up.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Number of hosts, 1 to 240.
    pub nodes: u32,
    /// The first host runs the control plane alone and is no Node.
    pub apart: bool,
    /// Return when it is up instead of waiting for Ctrl-C and taking it down.
    pub detach: bool,
    /// Apply the sample workload and send requests to it.
    pub sample: bool,
    /// Use this `kelp` binary instead of building one.
    pub kelp: Option<PathBuf>,
    /// Use this binary of the sample workload's web server instead of building one.
    pub hello: Option<PathBuf>,
    /// The `xtask` binary, which keeps `kelp` running; `None` when the caller is it.
    pub xtask: Option<PathBuf>,
    /// Further arguments of `kelp`, the same on each host.
    pub kelp_arguments: Vec<String>,
    /// Further arguments of `kelp agent` on the hosts after the first.
    pub agent_arguments: Vec<String>,
}

/// Brings a sandbox up; one that is up gets the newly built `kelp`, and its pods run on.
///
/// # Errors
/// The step that failed, with what to do.
pub fn up(layout: &Layout, options: &UpOptions) -> Result<()> {
    if !(1..=MAX_NODES).contains(&options.nodes) {
        bail!("--nodes {}: choose 1 to {MAX_NODES}", options.nodes);
    }
    if !nix::unistd::geteuid().is_root() || !hosts::may_make_namespaces() {
        bail!(
            "a sandbox needs root, to make network namespaces, cgroups and eBPF programs; run it with sudo"
        );
    }
    let kubectl = setup::ensure_all()?;
    let kelp = match &options.kelp {
        Some(kelp) => kelp.clone(),
        None => {
            build_ebpf::run(build::workspace_root())?;
            build::build_kelp()?
        }
    };
    let hello = match &options.hello {
        Some(hello) => hello.clone(),
        None => build::build_hello()?,
    };

    let xtask = match &options.xtask {
        Some(xtask) => xtask.clone(),
        None => std::env::current_exe().context("find the xtask binary")?,
    };

    let started = Instant::now();
    step("hosts");
    std::fs::create_dir_all(layout.dir()).with_context(|| format!("create {}", layout.dir().display()))?;
    hosts::ensure_lan(layout)?;
    let port = choose_port(layout)?;
    let server = format!("https://127.0.0.1:{port}");
    let first_node = if options.apart { 2 } else { 1 };
    for number in 1..=options.nodes {
        let node = layout.node(number);
        hosts::ensure_host(&node)?;
        stop_supervisor(&node)?;
        step(&format!("kelp on {}", node.name()));
        let mut arguments = arguments(&node, options.apart);
        if number >= first_node {
            if !options.kelp_arguments.iter().any(|a| a == "--config") {
                arguments.extend(["--config".to_owned(), text(&kubelet_config(&node)?)]);
            }
            arguments.extend(options.kelp_arguments.iter().cloned());
        }
        if number == 1 {
            let kubeconfig = layout.kubeconfig();
            arguments.extend(words(&[
                "--write-kubeconfig",
                &text(&kubeconfig),
                "--kubeconfig-server",
                &server,
            ]));
        } else {
            arguments.extend(options.agent_arguments.iter().cloned());
            sign_kubeconfig(layout, &kelp, &["--node", &node.name()], &node.agent_kubeconfig())?;
        }
        let port = (number == 1).then_some(port);
        let start = Start { port, xtask: xtask.clone(), kelp: kelp.clone(), arguments };
        start.keep(&node)?;
        start_and_wait(&node, &start)?;
    }

    let admin = ["--user", "admin", "--group", "system:masters"];
    sign_kubeconfig(layout, &kelp, &admin, &layout.kubeconfig_inside())?;

    step("node Ready");
    let kubectl = Kubectl { program: &kubectl, kubeconfig: layout.kubeconfig() };
    for number in first_node..=options.nodes {
        let node = format!("node/{}", layout.node(number).name());
        kubectl.output(&["wait", "--for=create", &node, "--timeout=60s"])?;
        kubectl.output(&["wait", "--for=condition=Ready", &node, "--timeout=60s"])?;
    }
    println!("   ready after {:.1} s", started.elapsed().as_secs_f64());
    step("image kelp/hello:dev");
    import_hello(layout, first_node..=options.nodes, &kelp, &hello)?;
    if options.sample {
        sample(layout, &kubectl)?;
    }
    kubectl.show(&["get", "nodes", "-o", "wide"])?;

    println!("\nthe cluster is up:\n  export KUBECONFIG={}", layout.kubeconfig().display());
    println!("  cargo xtask exec -- CMD      run a command on a sandbox host");
    println!("  cargo xtask down             remove every trace of it");
    if options.detach {
        return Ok(());
    }
    // Not earlier: the programs that are started above inherit the mask.
    let mut interrupt = SigSet::empty();
    interrupt.add(Signal::SIGINT);
    interrupt.add(Signal::SIGTERM);
    interrupt.thread_block().context("block SIGINT")?;
    println!("Ctrl-C takes it down");
    interrupt.wait().context("wait for SIGINT")?;
    down(layout)
}

fn step(what: &str) {
    println!("── {what}");
    // Progress that does not show is none; a closed standard output ends the program at the next println anyway.
    let _ = std::io::stdout().flush();
}

pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Writes the host's KubeletConfiguration: the disk is the developer's, and that it is nearly full is no reason to turn
/// pods away.
pub(super) fn kubelet_config(node: &NodeLayout) -> Result<PathBuf> {
    let path = node.dir().join("kubelet.yaml");
    let config = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n\
        evictionHard: {memory.available: 100Mi}\nimageGCHighThresholdPercent: 100\n";
    std::fs::create_dir_all(node.dir()).with_context(|| format!("create {}", node.dir().display()))?;
    std::fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Arguments of `kelp` on a host: everything on the first (only the control plane when it is `apart`), the agent on the
/// others.
pub(super) fn arguments(node: &NodeLayout, apart: bool) -> Vec<String> {
    let node_ip = format!("{},{}", node.ipv4(), node.ipv6());
    let (command, is_node) = match (node.number, apart) {
        (1, true) => ("server", false),
        (1, false) => ("up", true),
        _ => ("agent", true),
    };
    let mut arguments = words(&[command]);
    let of_all = [
        ("--data-dir", text(&node.data_dir())),
        ("--node-name", node.name()),
        ("--node-ip", node_ip),
        ("--log-level", std::env::var("KELP_LOG").unwrap_or_else(|_| "info".into())),
    ];
    let of_nodes = [
        ("--run-dir", text(&node.run_dir())),
        ("--root-dir", text(&node.kubelet_dir())),
        ("--log-dir", text(&node.dir().join("logs"))),
        ("--cgroup-root", text(&node.cgroup())),
        ("--cgroup2-attach", text(&node.cgroup2_dir())),
        ("--bpf-dir", text(&node.bpf_dir())),
    ];
    for (option, value) in of_all.into_iter().chain(of_nodes.into_iter().filter(|_| is_node)) {
        arguments.extend([option.to_owned(), value]);
    }
    if node.number == 1 {
        arguments.extend(["--advertise-address".to_owned(), node.ipv4().to_string()]);
    } else {
        arguments.extend(["--kubeconfig".to_owned(), text(&node.agent_kubeconfig())]);
    }
    arguments
}

/// The port of earlier times, else 6443 if it is free, else any.
fn choose_port(layout: &Layout) -> Result<u16> {
    let file = layout.port_file();
    if let Some(port) = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(port);
    }
    let socket = match TcpListener::bind("127.0.0.1:6443") {
        Ok(socket) => socket,
        Err(error) if error.kind() == ErrorKind::AddrInUse => TcpListener::bind("127.0.0.1:0")?,
        Err(error) => return Err(error).context("look for a free port on 127.0.0.1"),
    };
    let port = socket.local_addr()?.port();
    std::fs::write(&file, port.to_string()).with_context(|| format!("write {}", file.display()))?;
    Ok(port)
}

/// Signs a kubeconfig with the first node's CA; its server is the first node's address on the LAN.
fn sign_kubeconfig(layout: &Layout, kelp: &Path, identity: &[&str], file: &Path) -> Result<()> {
    let first = layout.node(1);
    let server = format!("https://{}:6443", first.ipv4());
    let mut sign = Command::new(kelp);
    sign.arg("kubeconfig").args(identity).args(["--server", &server, "--data-dir"]).arg(first.data_dir());
    let kubeconfig = output(&mut sign).context("sign a client certificate")?;
    std::fs::write(file, kubeconfig).with_context(|| format!("write {}", file.display()))
}

/// What a host's `kelp` was started with.
pub(super) struct Start {
    pub port: Option<u16>,
    pub xtask: PathBuf,
    pub kelp: PathBuf,
    pub arguments: Vec<String>,
}

impl Start {
    fn file(node: &NodeLayout) -> PathBuf {
        node.dir().join("start.json")
    }

    fn keep(&self, node: &NodeLayout) -> Result<()> {
        let kept =
            json!({"port": self.port, "xtask": self.xtask, "kelp": self.kelp, "arguments": self.arguments});
        let path = Self::file(node);
        std::fs::write(&path, kept.to_string()).with_context(|| format!("write {}", path.display()))
    }

    fn kept(node: &NodeLayout) -> Result<Self> {
        let path = Self::file(node);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut kept: Value = serde_json::from_str(&text).context("parse what a host was started with")?;
        Ok(Self {
            port: serde_json::from_value(kept["port"].take())?,
            xtask: serde_json::from_value(kept["xtask"].take())?,
            kelp: serde_json::from_value(kept["kelp"].take())?,
            arguments: serde_json::from_value(kept["arguments"].take())?,
        })
    }
}

/// Stops `kelp` on a host, which was brought up; its pods go on.
///
/// # Errors
/// It does not stop.
pub fn stop_host(node: &NodeLayout) -> Result<()> {
    stop_supervisor(node)
}

/// Starts `kelp` again on a host that was stopped, with what it was brought up with and `further` arguments.
///
/// # Errors
/// It does not become ready; the error shows the end of its log.
pub fn start_host(node: &NodeLayout, further: &[String]) -> Result<()> {
    let mut start = Start::kept(node)?;
    start.arguments.extend_from_slice(further);
    start_and_wait(node, &start)
}

pub(super) fn start_and_wait(node: &NodeLayout, start: &Start) -> Result<()> {
    let Start { port, xtask, kelp, arguments } = start;
    let socket = node.notify_socket();
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", socket.display()));
        }
        _ => {}
    }
    let notify = UnixDatagram::bind(&socket).with_context(|| format!("bind {}", socket.display()))?;

    let log = File::options().create(true).append(true).open(node.dir().join("supervisor.log"));
    let log = log.context("open the supervisor's log")?;
    let mut supervisor = Command::new(xtask);
    supervisor.arg("supervise").args(["--name", node.sandbox().name(), "--node", &node.number.to_string()]);
    if let Some(port) = port {
        supervisor.args(["--port", &port.to_string()]);
    }
    supervisor.arg("--kelp").arg(kelp).arg("--").args(arguments);
    supervisor.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let mut supervisor = supervisor.spawn().context("start the supervisor")?;

    let deadline = Instant::now() + READY_TIMEOUT;
    let mut message = [0; 256];
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
        notify.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match notify.recv(&mut message) {
            Ok(length) if message.get(..length).is_some_and(|m| m.starts_with(b"READY=1")) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if let Some(status) = supervisor.try_wait().context("wait for the supervisor")? {
                    bail!(
                        "the supervisor ended ({status}); it said:\n{}",
                        tail(&node.dir().join("supervisor.log"))
                    );
                }
                if Instant::now() >= deadline {
                    let log = node.log_file();
                    bail!(
                        "kelp on {} is not ready; {} ends with:\n{}",
                        node.name(),
                        log.display(),
                        tail(&log)
                    );
                }
            }
            Err(error) => return Err(error).context("wait for kelp to be ready"),
        }
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
}

/// Stops a host's supervisor and with it `kelp`; the pods go on.
pub(super) fn stop_supervisor(node: &NodeLayout) -> Result<()> {
    let Some(pid) = running_supervisor(node) else { return Ok(()) };
    kill(pid, Signal::SIGTERM).with_context(|| format!("stop the supervisor of {}", node.name()))?;
    // It is not our child, so its end is seen through a pidfd.
    let Some(pid) = rustix::process::Pid::from_raw(pid.as_raw()) else { return Ok(()) };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).context("open the supervisor's pidfd"),
    };
    let limit = Timespec { tv_sec: STOP_TIMEOUT_SECONDS, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
        Ok(0) => bail!("the supervisor of {} (PID {pid}) does not stop", node.name()),
        Ok(_) => Ok(()),
        Err(error) => Err(error).context("wait for the supervisor"),
    }
}

struct Kubectl<'a> {
    program: &'a Path,
    kubeconfig: PathBuf,
}

impl Kubectl<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut kubectl = command(self.program, args);
        kubectl.env("KUBECONFIG", &self.kubeconfig);
        kubectl
    }

    fn output(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args))
    }

    fn show(&self, args: &[&str]) -> Result<()> {
        run(&mut self.command(args))
    }
}

/// Builds the image of the sample workload and imports it on each host.
pub(super) fn import_hello(
    layout: &Layout,
    nodes: RangeInclusive<u32>,
    kelp: &Path,
    hello: &Path,
) -> Result<()> {
    let archive = layout.hello_archive();
    image::write_hello(hello, &archive)?;
    for number in nodes {
        let mut import = Command::new(kelp);
        import.args(["image", "import", "--data-dir"]).arg(layout.node(number).data_dir()).arg(&archive);
        output(&mut import).context("import the image")?;
    }
    Ok(())
}

/// Applies the sample workload and sends requests through its addresses.
fn sample(layout: &Layout, kubectl: &Kubectl<'_>) -> Result<()> {
    step("sample workload");
    let manifest = build::workspace_root().join("manifests/samples/hello.yaml");
    kubectl.output(&["apply", "-f", &text(&manifest)])?;
    kubectl.output(&["rollout", "status", "deployment/hello", "--timeout=90s"])?;
    kubectl.show(&["get", "pods,services", "-o", "wide"])?;

    let cluster_ip = kubectl.output(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"])?;
    let node = layout.node(1);
    for (what, address) in
        [("ClusterIP", format!("{cluster_ip}:80")), ("NodePort", format!("{}:30080", node.ipv4()))]
    {
        let spread = requests(&node, &address, SAMPLE_REQUESTS)?;
        println!("\n{SAMPLE_REQUESTS} requests to the {what} http://{address}/");
        for (answer, count) in &spread {
            println!("  {count:>3} × {answer}");
        }
    }
    println!();
    Ok(())
}

/// Sends requests from a host to `address`, one after the other; counts the answers by their text.
///
/// # Errors
/// A request failed.
pub fn requests(node: &NodeLayout, address: &str, count: usize) -> Result<BTreeMap<String, usize>> {
    let url = format!("http://{address}/");
    let script = format!(
        "for i in $(seq {count}); do curl --silent --show-error --fail --max-time 5 --noproxy '*' {url} || exit 1; done"
    );
    let answers = output(&mut enter(node, &["sh", "-c", &script]))?;
    let mut spread = BTreeMap::new();
    for line in answers.lines() {
        *spread.entry(line.to_owned()).or_insert(0) += 1;
    }
    Ok(spread)
}
