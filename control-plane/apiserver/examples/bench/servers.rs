//! The servers that are measured, as child processes.

use crate::client::Target;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) struct Server {
    pub(crate) target: Target,
    children: Vec<Child>,
}

/// A port that was free a moment ago.
fn port() -> Result<u16> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let file = std::fs::File::create(log)?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn();
    child.with_context(|| format!("start {command:?}"))
}

impl Server {
    /// The `serve` example, which was built beside this program.
    pub(crate) async fn kelp(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let program = std::env::current_exe()?.with_file_name("serve");
        ensure!(program.exists(), "{} is missing: build the example `serve`, too", program.display());
        let port = port()?;
        let child = spawn(Command::new(program).arg(dir).arg(port.to_string()), &dir.join("log"))?;
        let mut server = Starting { children: vec![child] };
        let path = dir.join("kubeconfig");
        server.wait("kubeconfig", || path.exists()).await?;
        let config: serde_json::Value = serde_norway::from_slice(&std::fs::read(path)?)?;
        let data = |pointer: &str| -> Result<Vec<u8>> {
            let text = config.pointer(pointer).and_then(serde_json::Value::as_str).context("kubeconfig")?;
            Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
        };
        let target = Target::new(
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            &data("/clusters/0/cluster/certificate-authority-data")?,
            &data("/users/0/user/client-certificate-data")?,
            &data("/users/0/user/client-key-data")?,
        )?;
        server.ready(target).await
    }

    /// kube-apiserver over etcd, with authentication and durable writes as in a cluster.
    pub(crate) async fn upstream(apiserver: &Path, etcd: &Path, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "bench-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let sign = |name: &str, group: &str| -> Result<(String, String)> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, name);
            params.distinguished_name.push(DnType::OrganizationName, group);
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
            Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
        };
        let (certificate, key) = sign("kube-apiserver", "system:masters")?;
        let (client, client_key) = sign("admin", "system:masters")?;
        let file = |name: &str, text: &str| -> Result<String> {
            std::fs::write(dir.join(name), text)?;
            Ok(dir.join(name).display().to_string())
        };
        let (ca, crt) = (file("ca.crt", &authority)?, file("tls.crt", &certificate)?);
        let tls = file("tls.key", &key)?;
        let (clients, peers, secure) = (port()?, port()?, port()?);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let mut database = Command::new(etcd);
        database.arg("--data-dir").arg(dir.join("etcd"));
        database.args(["--listen-client-urls", &url(clients), "--advertise-client-urls", &url(clients)]);
        database.args(["--listen-peer-urls", &url(peers), "--quota-backend-bytes", "8589934592"]);
        let mut server = Starting { children: vec![spawn(&mut database, &dir.join("etcd.log"))?] };
        let up = || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, clients)).is_ok();
        server.wait("etcd", up).await?;
        let mut command = Command::new(apiserver);
        for (flag, value) in [
            ("etcd-servers", url(clients).as_str()),
            ("bind-address", "127.0.0.1"),
            ("secure-port", &secure.to_string()),
            ("tls-cert-file", &crt),
            ("tls-private-key-file", &tls),
            ("client-ca-file", &ca),
            ("service-account-issuer", "https://kubernetes.default.svc"),
            ("service-account-key-file", &tls),
            ("service-account-signing-key-file", &tls),
            ("service-cluster-ip-range", "10.96.0.0/16"),
            ("authorization-mode", "Node,RBAC"),
            ("cert-dir", &dir.display().to_string()),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        server.children.push(spawn(&mut command, &dir.join("apiserver.log"))?);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, secure));
        let target = Target::new(address, authority.as_bytes(), client.as_bytes(), client_key.as_bytes())?;
        server.ready(target).await
    }

    /// CPU seconds that the processes have used.
    pub(crate) fn cpu(&self) -> f64 {
        let of = |child: &Child| -> Option<f64> {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
            // utime and stime, in hundredths of a second.
            Some((ticks(11)? + ticks(12)?) / 100.0)
        };
        self.children.iter().filter_map(of).sum()
    }

    /// Resident memory of the processes in MiB.
    pub(crate) fn memory(&self) -> f64 {
        let of = |child: &Child| -> Option<f64> {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
        };
        self.children.iter().filter_map(of).sum()
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        for child in self.children.iter_mut().rev() {
            child.kill()?;
            child.wait()?;
        }
        self.children.clear();
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.children);
    }
}

fn end(children: &mut Vec<Child>) {
    for mut child in children.drain(..).rev() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Processes that are not ready yet; they end with it.
struct Starting {
    children: Vec<Child>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        end(&mut self.children);
    }
}

impl Starting {
    async fn wait(&mut self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        for _ in 0..600 {
            if done() {
                return Ok(());
            }
            for child in &mut self.children {
                ensure!(child.try_wait()?.is_none(), "a server ended while {what} was waited for");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("{what} did not come")
    }

    async fn ready(mut self, target: Target) -> Result<Server> {
        for _ in 0..600 {
            if let Ok(mut connection) = target.open().await
                && connection.call("GET", "/readyz", "*/*", Bytes::new()).await.is_ok()
            {
                return Ok(Server { target, children: std::mem::take(&mut self.children) });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("the server at {} is not ready", target.address)
    }
}
