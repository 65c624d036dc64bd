//! A sandbox cluster for one test.

use crate::Report;
use crate::upstream::{self, ControlPlane, Upstream};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use xtask::command::output;
use xtask::sandbox::{self, Layout, NodeLayout, UpOptions};

/// A sandbox cluster; dropping it removes every trace of it.
#[derive(Debug)]
pub struct Cluster {
    layout: Layout,
    kubectl: PathBuf,
    client: PathBuf,
    /// Whether kubectl runs on the first host, as nobody passes connections on from outside.
    inside: bool,
    /// Without a control plane of ours: what the first host runs.
    upstream: Option<ControlPlane>,
}

/// The programs that a sandbox runs: from the environment, or built.
struct Programs {
    kelp: PathBuf,
    hello: PathBuf,
    xtask: PathBuf,
}

impl Programs {
    fn find() -> Result<Self> {
        let given = |name: &str, build: fn() -> Result<PathBuf>| match std::env::var_os(name) {
            Some(path) => Ok(PathBuf::from(path)),
            None => build(),
        };
        Ok(Self {
            kelp: kelp()?,
            hello: given("KELP_HELLO", xtask::build::build_hello)?,
            xtask: given("XTASK_BIN", xtask::build::build_xtask)?,
        })
    }
}

/// The `kelp` under test: `KELP_BIN`, or a release build.
///
/// # Errors
/// The build failed.
pub fn kelp() -> Result<PathBuf> {
    match std::env::var_os("KELP_BIN") {
        Some(path) => Ok(PathBuf::from(path)),
        None => {
            xtask::build_ebpf::run(xtask::build::workspace_root())?;
            xtask::build::build_kelp()
        }
    }
}

fn find_kubectl() -> Result<PathBuf> {
    match std::env::var_os("KUBECTL") {
        Some(kubectl) => Ok(PathBuf::from(kubectl)),
        None => xtask::setup::ensure_kubectl(),
    }
}

impl Cluster {
    /// Brings a cluster up. `client` is the path of this crate's `client` program
    /// (`env!("CARGO_BIN_EXE_client")` in a test).
    ///
    /// # Errors
    /// What `cargo xtask up` would fail with; nothing is left behind then.
    pub fn up(name: &str, nodes: u32, client: &str) -> Result<Self> {
        Self::up_after(name, nodes, client, |_| Ok(()))
    }

    /// Like [`Cluster::up`], after `prepare` has changed something about the hosts' directories.
    ///
    /// # Errors
    /// Those of [`Cluster::up`] and of `prepare`.
    pub fn up_after(
        name: &str,
        nodes: u32,
        client: &str,
        prepare: impl FnOnce(&Layout) -> Result<()>,
    ) -> Result<Self> {
        Self::up_with(name, nodes, client, Vec::new(), prepare)
    }

    /// Like [`Cluster::up_after`], with further arguments for `kelp`.
    ///
    /// # Errors
    /// Those of [`Cluster::up_after`].
    pub fn up_with(
        name: &str,
        nodes: u32,
        client: &str,
        kelp_arguments: Vec<String>,
        prepare: impl FnOnce(&Layout) -> Result<()>,
    ) -> Result<Self> {
        let cluster = Self::nothing(name, client, false)?;
        prepare(&cluster.layout)?;
        cluster.start(nodes, false, kelp_arguments, Vec::new())?;
        Ok(cluster)
    }

    /// Like [`Cluster::up`], with further arguments for `kelp agent` on the hosts after the first.
    ///
    /// # Errors
    /// Those of [`Cluster::up`].
    pub fn up_with_agents(
        name: &str,
        nodes: u32,
        client: &str,
        agent_arguments: Vec<String>,
    ) -> Result<Self> {
        let cluster = Self::nothing(name, client, false)?;
        cluster.start(nodes, false, Vec::new(), agent_arguments)?;
        Ok(cluster)
    }

    /// Like [`Cluster::up_with_agents`], with an upstream control plane on the first host, which is no node then.
    ///
    /// # Errors
    /// A program cannot be started, or does not become ready; the error shows what it logged.
    pub fn up_upstream(
        name: &str,
        nodes: u32,
        client: &str,
        upstream: &Upstream,
        agent_arguments: &[String],
    ) -> Result<Self> {
        let mut cluster = Self::nothing(name, client, true)?;
        let programs = Programs::find()?;
        sandbox::make_hosts(&cluster.layout, nodes)?;
        cluster.upstream = Some(upstream.start(&cluster.layout.node(1), &programs.kelp)?);
        let rights =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/kelp-agent.yaml"))?;
        cluster.apply(&rights)?;
        for number in 2..=nodes {
            let node = cluster.node(number);
            upstream::sign(&programs.kelp, &node, &["--node", &node.name()], &node.agent_kubeconfig())?;
            sandbox::start_agent(&node, &programs.kelp, &programs.hello, &programs.xtask, agent_arguments)?;
            let name = format!("node/{}", node.name());
            cluster.kubectl(&["wait", "--for=create", &name, "--timeout=60s"])?;
            cluster.wait(&name, "condition=Ready", 60)?;
        }
        Ok(cluster)
    }

    fn nothing(name: &str, client: &str, inside: bool) -> Result<Self> {
        let kubectl = find_kubectl()?;
        let layout = Layout::new(name)?;
        // What an earlier run left when it was killed.
        sandbox::down(&layout)?;
        Ok(Self { layout, kubectl, client: client.into(), inside, upstream: None })
    }

    fn start(
        &self,
        nodes: u32,
        apart: bool,
        kelp_arguments: Vec<String>,
        agent_arguments: Vec<String>,
    ) -> Result<()> {
        let Programs { kelp, hello, xtask } = Programs::find()?;
        let options = UpOptions {
            nodes,
            apart,
            detach: true,
            sample: false,
            kelp: Some(kelp),
            hello: Some(hello),
            xtask: Some(xtask),
            kelp_arguments,
            agent_arguments,
        };
        sandbox::up(&self.layout, &options)
    }

    /// Like [`Cluster::up_with`] with a control plane apart on host 1 and one node on host 2; with `keep`, one that is up is
    /// used as it is.
    ///
    /// # Errors
    /// Those of [`Cluster::up_with`].
    pub fn up_apart(
        name: &str,
        keep: bool,
        client: &str,
        kelp_arguments: Vec<String>,
        prepare: impl FnOnce(&Layout) -> Result<()>,
    ) -> Result<Self> {
        let layout = Layout::new(name)?;
        if keep && layout.node(2).exists() {
            let kubectl = xtask::setup::ensure_kubectl()?;
            return Ok(Self { layout, kubectl, client: client.into(), inside: false, upstream: None });
        }
        let cluster = Self::nothing(name, client, false)?;
        prepare(&cluster.layout)?;
        cluster.start(2, true, kelp_arguments, Vec::new())?;
        Ok(cluster)
    }

    /// The kubectl it uses.
    pub fn kubectl_program(&self) -> &std::path::Path {
        &self.kubectl
    }

    /// Its names and paths.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Host number `number`, from 1.
    pub fn node(&self, number: u32) -> NodeLayout {
        self.layout.node(number)
    }

    /// Whether the control plane is upstream's.
    pub fn is_upstream(&self) -> bool {
        self.upstream.is_some()
    }

    fn kubectl_command(&self, args: &[&str]) -> Command {
        if self.inside {
            let words = std::iter::once(self.kubectl.as_os_str()).chain(args.iter().map(OsStr::new));
            let mut kubectl = sandbox::enter(&self.node(1), &words.collect::<Vec<_>>());
            kubectl.env("HOME", self.layout.dir());
            return kubectl;
        }
        let mut kubectl = Command::new(&self.kubectl);
        kubectl.args(args).env("KUBECONFIG", self.layout.kubeconfig()).env("HOME", self.layout.dir());
        kubectl
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// kubectl failed; the error shows what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(&mut self.kubectl_command(args))
    }

    /// Runs kubectl, which must fail; returns what it wrote to standard error.
    ///
    /// # Errors
    /// kubectl succeeded.
    pub fn kubectl_fails(&self, args: &[&str]) -> Result<String> {
        let Output { status, stderr, .. } = self.kubectl_command(args).stdin(Stdio::null()).output()?;
        ensure!(!status.success(), "kubectl {} succeeded and should not", args.join(" "));
        Ok(String::from_utf8_lossy(&stderr).into_owned())
    }

    /// `kubectl apply -f -` of a manifest.
    ///
    /// # Errors
    /// kubectl failed.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let mut kubectl = self.kubectl_command(&["apply", "-f", "-"]);
        let mut child =
            kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no stdin")?.write_all(manifest.as_bytes())?;
        let Output { status, stdout, stderr } = child.wait_with_output()?;
        if !status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&stderr));
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// One field of an object, by a kubectl JSONPath such as `{.spec.clusterIP}`.
    ///
    /// # Errors
    /// kubectl failed.
    pub fn field(&self, object: &str, path: &str) -> Result<String> {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={path}")])
    }

    /// Waits up to `timeout` seconds for a kubectl wait condition, such as `condition=Ready`.
    ///
    /// # Errors
    /// It did not come true; the error shows the object's state.
    pub fn wait(&self, object: &str, condition: &str, timeout: u32) -> Result<()> {
        let timeout = format!("--timeout={timeout}s");
        match self.kubectl(&["wait", object, &format!("--for={condition}"), &timeout]) {
            Ok(_) => Ok(()),
            Err(error) => {
                let state = self.kubectl(&["describe", object]).unwrap_or_default();
                Err(error.context(format!("{object} did not become {condition}:\n{state}")))
            }
        }
    }

    /// Starts the `client` program on a host.
    ///
    /// # Errors
    /// It could not be started.
    pub fn client(&self, node: u32, args: &[&str]) -> Result<Client> {
        let words: Vec<&str> =
            std::iter::once(self.client.to_str().context("path")?).chain(args.iter().copied()).collect();
        let mut command = sandbox::enter(&self.node(node), &words);
        let child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start the client")?;
        Ok(Client { child })
    }

    /// Starts the `client` program outside the cluster: in the LAN's own namespace.
    ///
    /// # Errors
    /// It could not be started.
    pub fn client_outside(&self, args: &[&str]) -> Result<Client> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.layout.lan_netns())).arg(&self.client).args(args);
        let child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start the client")?;
        Ok(Client { child })
    }

    /// PID of `kelp` on a host.
    ///
    /// # Errors
    /// It is not running.
    pub fn kelp_pid(&self, node: u32) -> Result<i32> {
        let file = self.node(node).pid_file();
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(text.trim().parse()?)
    }

    /// The end of a host's `kelp` log, for the message of a failed test.
    pub fn log_tail(&self, node: u32) -> String {
        let text = std::fs::read_to_string(self.node(node).log_file()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.layout.nodes().unwrap_or_default() {
                eprintln!("{}\n(end of the log of kelp on host {})", self.log_tail(node.number), node.number);
            }
        }
        if let Err(error) = sandbox::down(&self.layout) {
            eprintln!("cleaning up {}: {error:#}", self.layout.name());
        }
    }
}

/// A running `client` program.
#[derive(Debug)]
pub struct Client {
    child: Child,
}

impl Client {
    /// Tells it to stop (by closing its standard input) and returns its report.
    ///
    /// # Errors
    /// It failed or printed no report.
    pub fn stop(mut self) -> Result<Report> {
        drop(self.child.stdin.take());
        self.report(None)
    }

    /// Waits until it has done its work and returns its report.
    ///
    /// # Errors
    /// It failed or printed no report.
    pub fn finish(mut self) -> Result<Report> {
        // Kept open: the client stops at the end of its standard input, and waiting would close it.
        let stdin = self.child.stdin.take();
        self.report(stdin)
    }

    fn report(self, stdin: Option<ChildStdin>) -> Result<Report> {
        let Output { status, stdout, .. } = self.child.wait_with_output()?;
        drop(stdin);
        ensure!(status.success(), "the client failed: {status}");
        serde_json::from_slice(&stdout)
            .with_context(|| format!("the client printed {:?}", String::from_utf8_lossy(&stdout)))
    }
}
