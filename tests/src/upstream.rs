//! An upstream control plane, where its programs are there: etcd, kube-apiserver, kube-controller-manager and
//! kube-scheduler on the first host of a sandbox.

mod authority;

use anyhow::{Context, Result, ensure};
use authority::Authority;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use xtask::command::output;
use xtask::sandbox::{self, NodeLayout};

/// How long a program may take to answer on a loaded machine.
const START: Duration = Duration::from_secs(180);

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Upstream {
    programs: PathBuf,
    etcd: PathBuf,
}

/// The programs that run; dropping it ends them.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    children: Vec<Child>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            // It may have ended by itself; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Signs a kubeconfig for a host with the authority of the first.
pub(crate) fn sign(kelp: &Path, node: &NodeLayout, identity: &[&str], file: &Path) -> Result<()> {
    let first = node.sandbox().node(1);
    let server = format!("https://{}:6443", first.ipv4());
    let mut sign = Command::new(kelp);
    sign.arg("kubeconfig").args(identity).args(["--server", &server, "--data-dir"]).arg(first.data_dir());
    let text = output(&mut sign).context("sign a client certificate")?;
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

impl Upstream {
    /// The directory in `KELP_UPSTREAM_BIN`, with `etcd` there or at `KELP_UPSTREAM_ETCD`; `None` when it is not set.
    ///
    /// # Errors
    /// A program is missing: whoever names a directory wants its programs tested.
    pub fn from_environment() -> Result<Option<Self>> {
        let Some(programs) = std::env::var_os("KELP_UPSTREAM_BIN").map(PathBuf::from) else {
            return Ok(None);
        };
        let etcd = std::env::var_os("KELP_UPSTREAM_ETCD").map_or(programs.join("etcd"), PathBuf::from);
        let names = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];
        for path in names.map(|name| programs.join(name)).iter().chain([&etcd]) {
            ensure!(path.exists(), "{} is not there (KELP_UPSTREAM_BIN, KELP_UPSTREAM_ETCD)", path.display());
        }
        Ok(Some(Self { programs, etcd }))
    }

    /// Starts the control plane on a host, whose data directory gets the authority.
    pub(crate) fn start(&self, node: &NodeLayout, kelp: &Path) -> Result<ControlPlane> {
        let dir = node.dir().join("upstream");
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let addresses = [node.ipv4().into(), [127, 0, 0, 1].into(), [10, 96, 0, 1].into()];
        Authority::make(&node.data_dir().join("pki"))?.sign_server(&dir, &addresses)?;
        for (identity, file) in [
            (&["--user", "admin", "--group", "system:masters"][..], "admin"),
            (&["--user", "system:kube-controller-manager"], "kube-controller-manager"),
            (&["--user", "system:kube-scheduler"], "kube-scheduler"),
        ] {
            sign(kelp, node, identity, &dir.join(file))?;
        }
        std::fs::copy(dir.join("admin"), node.sandbox().kubeconfig_inside()).context("copy a kubeconfig")?;
        let mut plane = ControlPlane { children: Vec::new() };
        plane.start(node, &self.etcd, &etcd(&dir))?;
        plane.start(node, &self.programs.join("kube-apiserver"), &apiserver(node, &dir))?;
        plane.wait(node, &dir)?;
        let manager = self.programs.join("kube-controller-manager");
        plane.start(node, &manager, &controller_manager(node, &dir))?;
        let scheduler = [option("kubeconfig", &dir.join("kube-scheduler")), "--leader-elect=false".into()];
        plane.start(node, &self.programs.join("kube-scheduler"), &scheduler)?;
        Ok(plane)
    }
}

impl ControlPlane {
    fn start(&mut self, node: &NodeLayout, program: &Path, arguments: &[String]) -> Result<()> {
        let log = File::create(log_of(node, program))?;
        let words: Vec<_> =
            std::iter::once(program.as_os_str()).chain(arguments.iter().map(std::ffi::OsStr::new)).collect();
        let mut command = sandbox::enter(node, &words);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        self.children.push(child);
        Ok(())
    }

    /// Until the API answers that it is ready.
    #[expect(clippy::disallowed_methods, reason = "nothing tells when another program has become ready")]
    fn wait(&mut self, node: &NodeLayout, dir: &Path) -> Result<()> {
        let deadline = Instant::now() + START;
        let url = format!("https://{}:6443/readyz", node.ipv4());
        let authority = node.data_dir().join("pki/ca.crt");
        loop {
            let words = ["curl", "--silent", "--fail", "--max-time", "5", "--noproxy", "*", "--cacert"];
            let mut curl = sandbox::enter(node, &words);
            curl.arg(&authority).arg(&url);
            let failed = match output(&mut curl) {
                Ok(_) => return Ok(()),
                Err(failed) => failed,
            };
            let log = std::fs::read_to_string(log_of(node, Path::new("kube-apiserver"))).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            let ended = self.children.iter_mut().any(|child| !matches!(child.try_wait(), Ok(None)));
            ensure!(
                !ended && Instant::now() < deadline,
                "the control plane in {} is not ready: {failed:#}\n{}",
                dir.display(),
                tail.join("\n")
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn log_of(node: &NodeLayout, program: &Path) -> PathBuf {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    node.dir().join(format!("upstream/{name}.log"))
}

fn option(name: &str, value: &Path) -> String {
    format!("--{name}={}", value.display())
}

fn etcd(dir: &Path) -> Vec<String> {
    let client = "http://127.0.0.1:2379";
    let mut all = vec![option("data-dir", &dir.join("etcd"))];
    all.extend(["--listen-client-urls", "--advertise-client-urls"].map(|name| format!("{name}={client}")));
    all.extend(["--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync"].map(str::to_owned));
    all
}

/// The ranges are those that `kelp agent` has by default.
const SERVICES: &str = "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112";

fn apiserver(node: &NodeLayout, dir: &Path) -> Vec<String> {
    let pki = node.data_dir().join("pki");
    let mut all = vec![
        format!("--advertise-address={}", node.ipv4()),
        option("tls-cert-file", &dir.join("server.crt")),
        option("tls-private-key-file", &dir.join("server.key")),
        option("client-ca-file", &pki.join("ca.crt")),
        option("service-account-key-file", &dir.join("service-accounts.pub")),
        option("service-account-signing-key-file", &dir.join("service-accounts.key")),
        option("kubelet-client-certificate", &dir.join("kubelet-client.crt")),
        option("kubelet-client-key", &dir.join("kubelet-client.key")),
    ];
    all.extend(
        [
            SERVICES,
            "--etcd-servers=http://127.0.0.1:2379",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
        ]
        .map(str::to_owned),
    );
    all
}

fn controller_manager(node: &NodeLayout, dir: &Path) -> Vec<String> {
    let pki = node.data_dir().join("pki");
    let mut all = vec![
        option("kubeconfig", &dir.join("kube-controller-manager")),
        option("root-ca-file", &pki.join("ca.crt")),
        option("cluster-signing-cert-file", &pki.join("ca.crt")),
        option("cluster-signing-key-file", &pki.join("ca.key")),
        option("service-account-private-key-file", &dir.join("service-accounts.key")),
    ];
    all.extend(
        [
            SERVICES,
            "--allocate-node-cidrs",
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
            "--use-service-account-credentials",
            "--leader-elect=false",
        ]
        .map(str::to_owned),
    );
    all
}
