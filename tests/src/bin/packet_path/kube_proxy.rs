//! Real kube-proxy on a node of the measurement, with an API server of ours that holds the services.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::drive::{ECHO, NODE as NODE_ADDRESS, SERVICE};
use crate::net::Net;
use crate::world::{self, Way};

/// Longest time until a program answers, and until all rules are there.
const PATIENCE: Duration = Duration::from_secs(600);
/// Objects that are written at once.
const AT_ONCE: usize = 32;
const NODE: &str = "bench";

/// An API server and kube-proxy; dropping it ends them and removes their files.
pub struct KubeProxy {
    children: Vec<Child>,
    dir: PathBuf,
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            // It may have ended by itself; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} is left: {error}", self.dir.display());
        }
    }
}

impl KubeProxy {
    /// Starts both on the host of a node, and waits until the measured service answers its client; `mode` is kube-proxy's.
    pub fn start(program: &Path, mode: &str, services: usize, host: &Net, client: &Net) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("kelp-bench-{}-{mode}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let kelp = kelp_tests::kelp()?;
        let mut this = Self { children: Vec::new(), dir };
        let kubeconfig = this.dir.join("kubeconfig");
        let mut server = Command::new(&kelp);
        // Without cluster DNS: the address of its Service is another's here.
        server.args(["server", "--components=apiserver", "--listen=127.0.0.1:6443", "--dns=off"]);
        server.args(["--node-name", NODE, "--node-ip=127.0.0.1", "--data-dir"]).arg(this.dir.join("data"));
        server.arg("--write-kubeconfig").arg(&kubeconfig);
        this.spawn(host, server, "apiserver")?;
        this.wait("the API server", || {
            let listens = |at: &str| {
                let address: SocketAddr = at.parse()?;
                TcpStream::connect_timeout(&address, Duration::from_secs(1)).map(drop).map_err(Into::into)
            };
            ensure!(kubeconfig.exists(), "there is no {}", kubeconfig.display());
            host.run(|| listens("127.0.0.1:6443"))
        })?;
        host.run(|| write(&kubeconfig, services))?;
        let mut proxy = Command::new(program);
        proxy.arg("--kubeconfig").arg(&kubeconfig).arg(format!("--proxy-mode={mode}"));
        proxy.args(["--hostname-override", NODE, "--cluster-cidr=10.244.0.0/16"]);
        proxy.args(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s"]);
        proxy.args(["--conntrack-tcp-timeout-close-wait=0s", "--healthz-bind-address=127.0.0.1:10256"]);
        this.spawn(host, proxy, "kube-proxy")?;
        this.wait("kube-proxy", || {
            client.run(|| {
                let address = SocketAddr::new(SERVICE.into(), ECHO + Way::Packet.step());
                TcpStream::connect_timeout(&address, Duration::from_secs(1)).map(drop).map_err(Into::into)
            })
        })?;
        Ok(this)
    }

    fn spawn(&mut self, host: &Net, mut command: Command, name: &str) -> Result<()> {
        let log = fs::File::create(self.dir.join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = host.run(|| command.spawn().with_context(|| format!("start {name}")))?;
        self.children.push(child);
        Ok(())
    }

    /// Until it succeeds; fails when a program has ended or time is over.
    fn wait(&mut self, what: &str, mut ready: impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Err(error) = ready() else { return Ok(()) };
            let ended = self.children.iter_mut().any(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() > deadline {
                let logs = ["apiserver", "kube-proxy"].map(|name| {
                    let text = fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default();
                    let lines: Vec<&str> = text.lines().rev().take(10).collect();
                    lines.join("\n")
                });
                bail!("{what} does not answer: {error:#}\n{}", logs.join("\n---\n"));
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
}

/// Writes the node, the services and their endpoints.
fn write(kubeconfig: &Path, services: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": NODE},
            "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}]},
        }))?;
        Api::all(client.clone()).create(&PostParams::default(), &node).await?;
        let api: Api<Service> = Api::default_namespaced(client.clone());
        let slices: Api<EndpointSlice> = Api::default_namespaced(client);
        futures::stream::iter(world::services(services)?)
            .map(|(service, slice)| {
                let (api, slices) = (api.clone(), slices.clone());
                async move {
                    api.create(&PostParams::default(), &service).await?;
                    slices.create(&PostParams::default(), &slice).await?;
                    anyhow::Ok(())
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await
            .map(drop)
    })
}
