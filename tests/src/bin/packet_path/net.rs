//! Network namespaces without names, and pods in them.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kelp_agent::dataplane::Endpoint;
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace without a name.
#[derive(Clone)]
pub struct Net(Arc<OwnedFd>);

impl Net {
    /// Makes one with its loopback device up.
    pub fn new() -> Result<Self> {
        let fd = std::thread::spawn(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
        })
        .join()
        .expect("the thread does not panic")?;
        let net = Self(Arc::new(fd));
        net.ip("link set lo up")?;
        Ok(net)
    }

    /// Runs a closure on a thread in the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// ip(8) in the namespace.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        self.run(|| {
            let output = Command::new("ip").args(arguments.split_whitespace()).output().context("run ip")?;
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "ip {arguments}: {stderr}");
            Ok(())
        })
    }

    /// Feeds a program in the namespace; it must succeed.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        self.run(|| {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut child = command.spawn().with_context(|| format!("run {program}"))?;
            let mut stdin = child.stdin.take().context("no standard input")?;
            std::thread::scope(|scope| {
                // A program that fails reads no more.
                scope.spawn(move || {
                    let _ = stdin.write_all(input.as_bytes());
                });
                let output = child.wait_with_output()?;
                let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(output.status.success(), "{program}: {stderr}");
                Ok(())
            })
        })
    }

    /// A path that names the namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// The MAC address of a device.
    pub fn mac(&self, device: &str) -> Result<[u8; 6]> {
        self.run(|| {
            let output = Command::new("ip").args(["-j", "link", "show", "dev", device]).output()?;
            let value: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            let text = value.pointer("/0/address").and_then(|text| text.as_str()).context("find a MAC")?;
            let bytes =
                text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
            bytes.try_into().ok().context("read a MAC")
        })
    }
}

/// Joins a pod to the host as the agent does.
pub fn pod(host: &Net, net: &Net, device: &str, address: Ipv4Addr) -> Result<Endpoint> {
    let path = net.path();
    host.ip(&format!("link add {device} type veth peer name eth0 netns {path}"))?;
    host.ip(&format!("link set {device} up"))?;
    net.ip("link set eth0 up")?;
    let (host_mac, pod_mac) = (host.mac(device)?, net.mac("eth0")?);
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    net.ip(&format!("address add {address}/32 dev eth0"))?;
    net.ip("route add 169.254.1.1 dev eth0 scope link")?;
    net.ip("route add default via 169.254.1.1 dev eth0")?;
    net.ip(&format!("neigh replace 169.254.1.1 lladdr {} dev eth0 nud permanent", text(host_mac)))?;
    host.ip(&format!("route add {address}/32 dev {device}"))?;
    host.ip(&format!("neigh replace {address} lladdr {} dev {device} nud permanent", text(pod_mac)))?;
    let host_ifindex = host.run(|| Ok(nix::net::if_::if_nametoindex(device)?))?;
    let netns_cookie = net.run(|| Ok(kelp_agent::dataplane::sys::netns_cookie()?))?;
    Ok(Endpoint { host_ifindex, host_mac, pod_mac, addresses: vec![address.into()], netns_cookie, pod: None })
}
