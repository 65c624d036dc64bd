//! A node in network namespaces: a host with an uplink to an outside, and two pods. Namespaces have no names: they
//! are gone with the test process.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod as ApiPod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kelp_model::policy::PodFacts;
use kube::runtime::watcher::Event;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::dataplane::events::{Events, Occurrence};
use crate::dataplane::reconciler::Change;
use crate::dataplane::{Config, Dataplane, Endpoint, PodDatapath, cleanup, policy, start_with};

pub const NODE4: &str = "192.0.2.10";
pub const NODE6: &str = "2001:db8::10";
pub const OUTSIDE4: &str = "192.0.2.1";
pub const OUTSIDE6: &str = "2001:db8::1";
/// A client behind a router; see [`World::beyond`].
pub const CLIENT4: &str = "203.0.113.9";
pub const CLIENT6: &str = "2001:db8:9::9";
/// A pod on another node: lives in the outside namespace.
pub const REMOTE4: &str = "10.244.1.5";
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// How long something that will happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something that other tasks do has happened.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "{what} has not happened");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Whether the agent can tell whose network namespace a socket is in: since Linux 5.14. Before, node ports are not served
/// on loopback addresses, pods cannot opt out of the socket path, and sockets of endpoints that are gone are not released.
pub fn namespaces_are_known() -> bool {
    crate::dataplane::sys::netns_cookie().is_ok()
}

/// A network namespace.
#[derive(Clone)]
pub struct Net(Arc<OwnedFd>);

impl Net {
    pub fn new() -> Self {
        let fd = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OwnedFd::from(fs::File::open("/proc/thread-self/ns/net").unwrap())
        })
        .join()
        .unwrap();
        let net = Self(Arc::new(fd));
        net.ip("link set lo up");
        net.run(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        });
        net
    }

    /// Runs a closure on a thread in the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Leaves a thread running in the namespace.
    pub fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        let net = self.clone();
        std::thread::spawn(move || {
            setns(net.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            f();
        });
    }

    /// ip(8) in the namespace.
    pub fn ip(&self, arguments: &str) {
        self.run(|| {
            let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
            assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        });
    }

    /// A path that names the namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn mac(&self, device: &str) -> [u8; 6] {
        let text = self.run(|| {
            let output = Command::new("ip").args(["-j", "link", "show", "dev", device]).output().unwrap();
            let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            value[0]["address"].as_str().unwrap().to_owned()
        });
        let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    pub fn ifindex(&self, device: &str) -> u32 {
        self.run(|| nix::net::if_::if_nametoindex(device).unwrap())
    }
}

/// The range of a node's pods with IPv6.
fn pods6(node: u8) -> String {
    if node == 0 { "fd00:10:244::".to_owned() } else { format!("fd00:10:244:{node}::") }
}

pub struct Pod {
    pub name: &'static str,
    pub net: Net,
    pub v4: IpAddr,
    pub v6: IpAddr,
    pub endpoint: Endpoint,
}

pub struct World {
    pub host: Net,
    pub outside: Net,
    pub pods: Vec<Pod>,
    pub config: Config,
    pub cgroup: PathBuf,
    running: Mutex<Option<Running>>,
}

struct Running {
    runtime: tokio::runtime::Runtime,
    dataplane: Arc<Dataplane>,
    changes: mpsc::UnboundedSender<Change>,
    policies: Option<mpsc::UnboundedSender<policy::Change>>,
    events: mpsc::Receiver<Occurrence>,
}

/// What the API holds.
#[derive(Default)]
pub struct Objects {
    pub services: Vec<Service>,
    pub slices: Vec<EndpointSlice>,
    pub pods: Vec<ApiPod>,
    pub node: Option<Node>,
    /// With it, policies are followed.
    pub guarded: Option<Guarded>,
}

/// What policies are about. The node's pods are attached as the pods of their names.
pub struct Guarded {
    pub policies: Vec<NetworkPolicy>,
    pub namespaces: Vec<Namespace>,
    pub pods: Vec<ApiPod>,
}

impl Guarded {
    /// The lists as events, and where changes go.
    fn source(self) -> (policy::Source, mpsc::UnboundedSender<policy::Change>) {
        let (changes, receiver) = mpsc::unbounded_channel();
        for change in list(self.policies, policy::Change::Policy) {
            changes.send(change).unwrap();
        }
        let peers = list(self.namespaces, policy::Change::Namespace);
        let peers: Vec<_> = peers.into_iter().chain(list(self.pods, policy::Change::Pod)).collect();
        let source = policy::Source {
            policies: tokio_stream::wrappers::UnboundedReceiverStream::new(receiver).boxed(),
            peers: Box::new(|| futures::stream::iter(peers).chain(futures::stream::pending()).boxed()),
        };
        (source, changes)
    }
}

/// The events of a list.
pub fn list<T, C>(objects: Vec<T>, wrap: fn(Event<T>) -> C) -> Vec<C> {
    let objects = objects.into_iter().map(Event::InitApply);
    std::iter::once(Event::Init).chain(objects).chain([Event::InitDone]).map(wrap).collect()
}

/// The mount point of the cgroup2 hierarchy.
fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split_whitespace();
            let point = fields.nth(1)?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
        })
        .expect("a cgroup2 mount")
}

/// Removes what tests left that were killed: their names end in the process id and a number.
pub fn sweep() {
    let dead = |name: &str| {
        let process: u32 = name.strip_prefix("dataplane-")?.rsplit('-').nth(1)?.parse().ok()?;
        (!PathBuf::from(format!("/proc/{process}")).exists()).then_some(())
    };
    for (parent, pins) in [(PathBuf::from("/sys/fs/bpf"), true), (cgroup2(), false)] {
        for entry in fs::read_dir(parent).into_iter().flatten().filter_map(Result::ok) {
            if dead(&entry.file_name().to_string_lossy()).is_some() {
                // Another test may be sweeping too.
                let _ = if pins { fs::remove_dir_all(entry.path()) } else { fs::remove_dir(entry.path()) };
            }
        }
    }
}

impl World {
    pub fn new() -> Self {
        Self::of(0, "192.0.2.10", "2001:db8::10")
    }

    /// A second node on the other end of the first one's wire: its addresses are `192.0.2.11` and so on, its pods' are of
    /// `10.244.1.0/24`. The outside of both is that of the first.
    pub fn beside(first: &Self) -> Self {
        let mut second = Self::of(1, "192.0.2.11", "2001:db8::11");
        let outside = &first.outside;
        second.outside.ip("link set wire down");
        second.outside.ip("link set wire name wire1");
        second.outside.ip(&format!("link set wire1 netns {}", outside.path()));
        outside.ip("link add lan type bridge");
        outside.ip("address flush dev wire");
        outside.ip(&format!("address add {OUTSIDE4}/24 dev lan"));
        outside.ip(&format!("address add {OUTSIDE6}/64 dev lan nodad"));
        for device in ["wire", "wire1"] {
            outside.ip(&format!("link set {device} master lan"));
            outside.ip(&format!("link set {device} up"));
        }
        outside.ip("link set lan up");
        for (here, there, number) in [(&first.host, "11", 1), (&second.host, "10", 0)] {
            here.ip(&format!("route add 10.244.{number}.0/24 via 192.0.2.{there}"));
            here.ip(&format!("-6 route add {}/64 via 2001:db8::{there}", pods6(number)));
        }
        second.outside = outside.clone();
        second
    }

    /// A second node behind a router, which the outside of the first one is: its addresses are `198.51.100.11` and so on, its
    /// pods' are of `10.244.1.0/24`. The router throws away what is for pods. The outside of the second one is a client behind the
    /// router, [`CLIENT4`] and [`CLIENT6`]. (It is not the router: what a path carries is remembered for what is forwarded, too.)
    pub fn beyond(first: &Self) -> Self {
        let mut second = Self::of(1, "198.51.100.11", "2001:db8:1::11");
        let router = &first.outside;
        second.outside.ip("link set wire down");
        second.outside.ip("link set wire name wire1");
        second.outside.ip(&format!("link set wire1 netns {}", router.path()));
        router.ip("address add 198.51.100.1/24 dev wire1");
        router.ip("address add 2001:db8:1::1/64 dev wire1 nodad");
        router.ip("link set wire1 up");
        router.ip(&format!("address del {REMOTE4}/32 dev lo"));
        router.ip("route flush root 10.244.0.0/16");
        router.ip("route add blackhole 10.244.0.0/16");
        router.ip("-6 route add blackhole fd00:10:244::/48");
        router.run(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        let client = Net::new();
        router.ip(&format!("link add client type veth peer name eth0 netns {}", client.path()));
        for (net, device, v4, v6) in
            [(router, "client", "203.0.113.1", "2001:db8:9::1"), (&client, "eth0", CLIENT4, CLIENT6)]
        {
            net.ip(&format!("address add {v4}/24 dev {device}"));
            net.ip(&format!("address add {v6}/64 dev {device} nodad"));
            net.ip(&format!("link set {device} up"));
        }
        client.ip("route add default via 203.0.113.1");
        client.ip("-6 route add default via 2001:db8:9::1");
        second.outside = client;
        second
    }

    fn of(number: u8, node4: &str, node6: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let tag = format!("dataplane-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup2().join(&tag);
        fs::create_dir(&cgroup).unwrap();
        // Threads of one process can be in different threaded cgroups.
        fs::write(cgroup.join("cgroup.type"), "threaded").unwrap();

        let host = Net::new();
        let outside = Net::new();
        host.ip(&format!("link add uplink type veth peer name wire netns {}", outside.path()));
        // The first address of the node's network.
        let gateway = |node: &str, v4: bool| {
            let (network, _) = node.rsplit_once(if v4 { '.' } else { ':' }).unwrap();
            if v4 { format!("{network}.1") } else { format!("{network}:1") }
        };
        let (gateway4, gateway6) = (gateway(node4, true), gateway(node6, false));
        for (net, device, v4, v6) in
            [(&host, "uplink", node4, node6), (&outside, "wire", &*gateway4, &*gateway6)]
        {
            net.ip(&format!("address add {v4}/24 dev {device}"));
            net.ip(&format!("address add {v6}/64 dev {device} nodad"));
            net.ip(&format!("link set {device} up"));
        }
        // Whatever leaves by mistake finds a way, and someone who answers.
        host.ip(&format!("route add default via {gateway4}"));
        host.ip(&format!("-6 route add default via {gateway6}"));
        outside.ip(&format!("address add {REMOTE4}/32 dev lo"));
        outside.ip(&format!("route add 10.244.{number}.0/24 via {node4}"));
        outside.ip("address add 10.96.9.9/32 dev lo");
        outside.ip("address add fd00:10:96::99/128 dev lo nodad");
        let pods = ["one", "two"]
            .into_iter()
            .zip(1_u8..)
            .map(|(name, place)| Pod::new(&host, (number, node4, node6), name, place))
            .collect();
        let config = Config {
            node_name: "here".to_owned(),
            node_addresses: vec![node4.parse().unwrap(), node6.parse().unwrap()],
            uplink: Some("uplink".to_owned()),
            pod_cidrs: vec![
                (format!("10.244.{number}.0").parse().unwrap(), 24),
                (pods6(number).parse().unwrap(), 64),
            ],
            cgroup: cgroup.clone(),
            bpf_directory: PathBuf::from("/sys/fs/bpf").join(tag),
            ..Config::default()
        };
        Self { host, outside, pods, config, cgroup, running: Mutex::new(None) }
    }

    /// Starts the agent's part with these objects, and waits until they are in the maps.
    pub fn start(&self, services: Vec<Service>, slices: Vec<EndpointSlice>) {
        self.start_with(Objects { services, slices, ..Objects::default() });
    }

    /// [`Self::start`] with objects of every kind.
    pub fn start_with(&self, objects: Objects) {
        self.start_with_pods(objects, &self.pods);
    }

    /// Starts the agent's part on a node whose pods are gone.
    pub fn start_without_pods(&self) {
        self.start_with_pods(Objects::default(), &[]);
    }

    /// Starts the agent's part beside another agent, which connected the pods: the host's stack forwards.
    pub fn start_beside(&mut self, objects: Objects) {
        self.config.foreign_pods = true;
        self.host.run(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        self.start_with_pods(objects, &[]);
    }

    /// Starts the agent's part while the API tells it nothing: what it is then told, is told by [`Self::tell`].
    pub fn start_unheard(&self) {
        self.launch(Vec::new(), None, &self.pods);
    }

    /// [`Self::start_with`], with these pods attached.
    pub fn start_with_pods(&self, objects: Objects, pods: &[Pod]) {
        let lists = list(objects.services, Change::Service)
            .into_iter()
            .chain(list(objects.slices, Change::Slice))
            .chain(list(objects.pods, Change::Pod))
            .chain(list(objects.node.into_iter().collect(), Change::Node));
        self.launch(lists.collect(), objects.guarded, pods);
        let dataplane = self.dataplane();
        self.block_on(dataplane.synced());
    }

    /// Starts the agent's part, which is told these changes.
    fn launch(&self, told: Vec<Change>, guarded: Option<Guarded>, pods: &[Pod]) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (changes, receiver) = mpsc::unbounded_channel();
        let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
        for change in told {
            changes.send(change).unwrap();
        }
        let facts: BTreeMap<String, PodFacts> = guarded
            .iter()
            .flat_map(|guarded| &guarded.pods)
            .filter_map(PodFacts::of)
            .map(|facts| (facts.name.name.to_string(), facts))
            .collect();
        let (source, policies) = guarded.map(Guarded::source).unzip();
        let (sender, events) = Events::channel();
        let dataplane = self.host.run(|| {
            runtime.block_on(async {
                let dataplane =
                    start_with(self.config.clone(), stream, source, sender, CancellationToken::new())
                        .await
                        .map_err(|error| {
                            panic!("{}", crate::dataplane::chain(&error));
                        })
                        .unwrap();
                for pod in pods {
                    let endpoint = Endpoint { pod: facts.get(pod.name).cloned(), ..pod.endpoint.clone() };
                    dataplane.attach_endpoint(&endpoint).await.unwrap();
                }
                dataplane
            })
        });
        *self.running.lock().unwrap() = Some(Running { runtime, dataplane, changes, policies, events });
    }

    /// Tells the agent of a change.
    pub fn tell(&self, change: Change) {
        self.running.lock().unwrap().as_ref().unwrap().changes.send(change).unwrap();
    }

    /// Tells the agent of a change of policies.
    pub fn tell_policy(&self, change: policy::Change) {
        let running = self.running.lock().unwrap();
        running.as_ref().unwrap().policies.as_ref().unwrap().send(change).unwrap();
    }

    /// The next event that the agent writes.
    pub fn event(&self) -> Occurrence {
        let mut running = self.running.lock().unwrap();
        let running = running.as_mut().unwrap();
        let next = async { tokio::time::timeout(PATIENCE, running.events.recv()).await };
        running.runtime.block_on(next).expect("an event").expect("the agent lives")
    }

    /// The agent dies: tasks and descriptors are gone, nothing is undone.
    pub fn kill(&self) {
        if let Some(running) = self.running.lock().unwrap().take() {
            drop((running.changes, running.policies));
            running.runtime.shutdown_timeout(Duration::from_secs(5));
            drop(running.dataplane);
        }
    }

    pub fn dataplane(&self) -> Arc<Dataplane> {
        self.running.lock().unwrap().as_ref().unwrap().dataplane.clone()
    }

    /// Runs the agent's tasks.
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.running.lock().unwrap().as_ref().unwrap().runtime.handle().clone()
    }

    /// Runs a future of the agent in the host's namespace.
    pub fn block_on<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        let handle = self.runtime();
        self.host.run(|| handle.block_on(future))
    }

    /// Runs a closure on a thread in a namespace whose sockets the socket hooks serve.
    pub fn with_sockets<T: Send>(&self, net: &Net, f: impl FnOnce() -> T + Send) -> T {
        net.run(|| {
            // SAFETY: no preconditions.
            let thread = unsafe { libc::syscall(libc::SYS_gettid) };
            fs::write(self.cgroup.join("cgroup.threads"), thread.to_string()).unwrap();
            f()
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
        self.host.run(|| cleanup(&self.config.bpf_directory)).unwrap();
        assert!(!self.config.bpf_directory.exists());
        // Threads that have just ended may still be counted: their exit is not an event one can wait for here.
        for _ in 0..200 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            std::thread::yield_now();
        }
        if !std::thread::panicking() {
            fs::remove_dir(&self.cgroup).unwrap();
        }
    }
}

impl Pod {
    /// On the node with this number and these addresses.
    fn new(host: &Net, (node, node4, node6): (u8, &str, &str), name: &'static str, number: u8) -> Self {
        let net = Net::new();
        let device = format!("pod{number}");
        let v4 = format!("10.244.{node}.{}", number + 1);
        let v6 = format!("{}{}", pods6(node), number + 1);
        host.ip(&format!("link add {device} type veth peer name eth0 netns {}", net.path()));
        host.ip(&format!("link set {device} up"));
        net.ip("link set eth0 up");
        let host_mac = host.mac(&device);
        let pod_mac = net.mac("eth0");
        let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        net.ip(&format!("address add {v4}/32 dev eth0"));
        net.ip(&format!("address add {v6}/128 dev eth0 nodad"));
        net.ip("route add 169.254.1.1 dev eth0 scope link");
        net.ip("route add default via 169.254.1.1 dev eth0");
        net.ip("-6 route add default via fe80::1 dev eth0");
        net.ip(&format!("neigh replace 169.254.1.1 lladdr {} dev eth0 nud permanent", text(host_mac)));
        net.ip(&format!("-6 neigh replace fe80::1 lladdr {} dev eth0 nud permanent", text(host_mac)));
        host.ip(&format!("route add {v4}/32 dev {device} src {node4}"));
        host.ip(&format!("-6 route add {v6}/128 dev {device} src {node6}"));
        host.ip(&format!("neigh replace {v4} lladdr {} dev {device} nud permanent", text(pod_mac)));
        host.ip(&format!("-6 neigh replace {v6} lladdr {} dev {device} nud permanent", text(pod_mac)));
        let (v4, v6): (IpAddr, IpAddr) = (v4.parse().unwrap(), v6.parse().unwrap());
        let netns_cookie = net.run(|| crate::dataplane::sys::netns_cookie().unwrap_or(0));
        let host_ifindex = host.ifindex(&device);
        let endpoint =
            Endpoint { host_ifindex, host_mac, pod_mac, addresses: vec![v4, v6], netns_cookie, pod: None };
        Self { name, net, v4, v6, endpoint }
    }

    pub fn address(&self, v4: bool) -> IpAddr {
        if v4 { self.v4 } else { self.v6 }
    }
}

/// Answers connections with "<name> <address of the client>\n", then echoes.
pub fn serve_tcp(net: &Net, address: SocketAddr, name: &str) {
    let listener =
        net.run(|| TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}")));
    let name = name.to_owned();
    net.spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let name = name.clone();
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap();
                let _ = writeln!(stream, "{name} {}", peer.ip());
                let mut buffer = [0; 65_536];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Answers datagrams with "<name> <address of the client>".
pub fn serve_udp(net: &Net, address: SocketAddr, name: &str) {
    let socket = net.run(|| UdpSocket::bind(address).unwrap());
    let name = name.to_owned();
    net.spawn(move || {
        let mut buffer = [0; 2_048];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

/// Connects and reads the greeting: the server's name and the address it saw.
pub fn ask_tcp(address: SocketAddr) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    assert_eq!(stream.peer_addr()?, address, "the program sees the address it named");
    greeting(&mut stream)
}

/// Sends `length` bytes, more than fit into any segment, and reads them back.
pub fn echo_all(address: SocketAddr, length: usize) {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
    greeting(&mut stream).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    let mut received = vec![0; length];
    stream.set_read_timeout(Some(TIMEOUT * 5)).unwrap();
    stream.read_exact(&mut received).unwrap();
    assert!(received == sent, "every byte comes back");
    writing.join().unwrap();
}

/// Reads the greeting of a connection.
pub fn greeting(stream: &mut TcpStream) -> std::io::Result<(String, String)> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(split(&String::from_utf8_lossy(&line)))
}

/// Asks with a datagram, through a connected socket or one that names the destination.
pub fn ask_udp(address: SocketAddr, connected: bool) -> std::io::Result<(String, String)> {
    let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut buffer = [0; 2_048];
    if connected {
        socket.connect(address)?;
        socket.send(b"?")?;
    } else {
        socket.send_to(b"?", address)?;
    }
    let (length, from) = socket.recv_from(&mut buffer)?;
    assert_eq!(from, address, "the answer comes from the address that was asked");
    Ok(split(&String::from_utf8_lossy(&buffer[..length])))
}

fn split(line: &str) -> (String, String) {
    let (name, peer) = line.split_once(' ').unwrap_or((line, ""));
    (name.to_owned(), peer.to_owned())
}

/// A Service with TCP and UDP on port 80 of these addresses, and on a node port if it is not 0.
pub fn service(name: &str, addresses: &[&str], node_port: u16) -> Service {
    let port = |protocol: &str| {
        let mut port = json!({"name": protocol.to_lowercase(), "port": 80, "protocol": protocol});
        if node_port != 0 {
            port["nodePort"] = json!(node_port);
        }
        port
    };
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": name},
        "spec": {
            "type": if node_port == 0 { "ClusterIP" } else { "NodePort" },
            "clusterIPs": addresses,
            "ports": [port("TCP"), port("UDP")],
        },
    }))
    .unwrap()
}

/// The endpoints of a service, all of one family, at one port.
pub fn slice(service: &str, addresses: &[IpAddr], port: u16) -> EndpointSlice {
    let v4 = addresses.first().is_none_or(IpAddr::is_ipv4);
    let endpoints: Vec<_> =
        addresses.iter().map(|address| json!({"addresses": [address.to_string()]})).collect();
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "default",
            "name": format!("{service}-{}", if v4 { "4" } else { "6" }),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": if v4 { "IPv4" } else { "IPv6" },
        "ports": [
            {"name": "tcp", "port": port, "protocol": "TCP"},
            {"name": "udp", "port": port, "protocol": "UDP"},
        ],
        "endpoints": endpoints,
    }))
    .unwrap()
}

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}
