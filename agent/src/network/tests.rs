//! In private network namespaces: two for "host" and "pod"; nothing leaves them.

use super::*;
use crate::dataplane::Peer;
use crate::network::peers::Via;
use kelp_model::service::ObjectName;
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;

/// A network namespace that lives as long as its thread.
struct Netns {
    _hold: std::sync::mpsc::Sender<()>,
    file: File,
}

impl Netns {
    fn new() -> Self {
        let (hold, wait) = std::sync::mpsc::channel::<()>();
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            send.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            let _ = wait.recv();
        });
        Self { _hold: hold, file: receive.recv().unwrap() }
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    fn ip(&self, arguments: &[&str]) -> String {
        let out = Command::new("nsenter")
            .arg(format!("--net={}", self.path().display()))
            .arg("ip")
            .args(arguments)
            .output();
        let out = out.unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs async work on a thread inside the namespace, as the agent of a node would run there.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = self.file.try_clone().unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
        .join()
        .unwrap()
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[derive(Clone)]
struct Recorded(Arc<parking_lot::Mutex<Vec<Endpoint>>>, watch::Sender<PodMtu>);

impl Recorded {
    fn new(device: u32, route: u32) -> Self {
        Self(Arc::default(), watch::Sender::new(PodMtu { device, route }))
    }
}

impl PodDatapath for Recorded {
    fn set_peers(&self, _: &[Peer], _: bool) -> Result<Option<u32>, DatapathError> {
        Ok(None)
    }

    fn pod_mtu(&self) -> watch::Receiver<PodMtu> {
        self.1.subscribe()
    }

    async fn attach_endpoint(&self, endpoint: &Endpoint) -> Result<(), DatapathError> {
        let mut list = self.0.lock();
        list.retain(|e| e.addresses != endpoint.addresses);
        list.push(endpoint.clone());
        Ok(())
    }

    async fn detach_endpoint(&self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        self.0.lock().retain(|e| e.addresses != addresses);
        Ok(())
    }
}

#[test]
fn a_pod_is_connected_again_after_a_restart_and_leaves_no_trace() {
    let (host, pod) = (Netns::new(), Netns::new());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let netns = pod.path();
    let datapath = Recorded::new(1400, 1400);
    let endpoints = datapath.0.clone();
    let (_keep, cidrs) =
        watch::channel(vec!["10.244.7.0/24".parse().unwrap(), "fd00:10:244:7::/64".parse().unwrap()]);
    host.ip(&["link", "set", "lo", "up"]);
    let (ns, first_cidrs, first_datapath) = (netns.clone(), cidrs.clone(), datapath.clone());
    let (first, second) = host.inside(move || {
        let datapath = first_datapath;
        let network = Network::new(datapath.clone(), &path, first_cidrs).unwrap();
        let pod = PodFacts {
            name: ObjectName::new("default", "pod"),
            uid: "uid-1".into(),
            labels: Default::default(),
            ports: Vec::new(),
        };
        let first = block_on(network.connect(&pod, Bandwidth::default(), &ns)).unwrap();
        // A restarted agent: same leases, same device.
        let (_none, no_cidrs) = watch::channel(Vec::new());
        let network = Network::new(datapath, &path, no_cidrs).unwrap();
        (first, block_on(network.connect(&pod, Bandwidth::default(), &ns)).unwrap())
    });
    assert_eq!(first, second);
    assert_eq!(first, ["10.244.7.2".parse::<IpAddr>().unwrap(), "fd00:10:244:7::2".parse().unwrap()]);
    let device = device::host_name("uid-1");
    let endpoint = endpoints.lock()[0].clone();
    assert_eq!(block_on(device::mac_by_name(netns.clone(), "eth0")), Some(endpoint.pod_mac));
    assert_eq!(endpoint.addresses, first);
    let link = host.ip(&["-o", "link", "show", &device]);
    assert!(link.starts_with(&format!("{}:", endpoint.host_ifindex)) && link.contains("mtu 1400"), "{link}");
    assert!(host.ip(&["route"]).contains(&format!("10.244.7.2 dev {device}")));
    assert!(host.ip(&["-6", "route"]).contains(&format!("fd00:10:244:7::2 dev {device}")));
    assert!(host.ip(&["neigh"]).contains("PERMANENT"));
    let inside = pod.ip(&["-o", "addr", "show", "eth0"]);
    assert!(inside.contains("10.244.7.2/32") && inside.contains("fd00:10:244:7::2/128"), "{inside}");
    assert!(pod.ip(&["route"]).contains("default via 169.254.1.1 dev eth0"), "{}", pod.ip(&["route"]));
    assert!(pod.ip(&["-6", "route"]).contains("default via fe80::1 dev eth0"));
    // The host reaches the pod and the pod the host, without forwarding.
    host.ip(&["addr", "add", "192.0.2.1/32", "dev", "lo"]);
    let listener_ns = pod.file.try_clone().unwrap();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        nix::sched::setns(listener_ns, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = std::net::TcpListener::bind("0.0.0.0:8080").unwrap();
        ready.send(()).unwrap();
        let (stream, from) = listener.accept().unwrap();
        drop(stream);
        from.ip()
    });
    is_ready.recv().unwrap();
    host.inside(|| {
        let to = "10.244.7.2:8080".parse().unwrap();
        std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_secs(5)).map(|_| ())
    })
    .unwrap();
    assert_eq!(server.join().unwrap(), "192.0.2.1".parse::<IpAddr>().unwrap());
    let path = dir.path().to_owned();
    host.inside(move || {
        let network = Network::new(datapath, &path, cidrs).unwrap();
        block_on(network.retain(&["other".to_owned()]));
        block_on(network.disconnect("uid-1")).unwrap();
    });
    assert!(endpoints.lock().is_empty());
    assert!(!host.ip(&["-o", "link"]).contains("kpod"));
    assert!(!host.ip(&["route"]).contains("10.244.7.2"));
}

/// Routes that a pod has made for itself are its own, whatever the node's network becomes.
#[test]
fn a_pod_with_another_way_out_keeps_it() {
    let (host, pod) = (Netns::new(), Netns::new());
    let dir = tempfile::tempdir().unwrap();
    let (path, netns) = (dir.path().to_owned(), pod.path());
    let (_keep, cidrs) =
        watch::channel(vec!["10.244.7.0/24".parse().unwrap(), "fd00:10:244:7::/64".parse().unwrap()]);
    let datapath = Recorded::new(1500, 1450);
    let sizes = datapath.1.clone();
    let network = Arc::new(Network::new(datapath, &path, cidrs).unwrap());
    let facts = PodFacts {
        name: ObjectName::new("default", "pod"),
        uid: "uid-1".into(),
        labels: Default::default(),
        ports: Vec::new(),
    };
    let connecting = network.clone();
    host.inside(move || block_on(connecting.connect(&facts, Bandwidth::default(), &netns)).unwrap());
    for family in ["-4", "-6"] {
        let route = pod.ip(&[family, "route", "show", "default"]);
        assert!(route.contains("dev eth0") && route.contains("mtu 1450"), "{route}");
    }
    pod.ip(&["link", "add", "tun0", "type", "veth", "peer", "name", "tun1"]);
    pod.ip(&["link", "set", "tun0", "up"]);
    pod.ip(&["route", "replace", "default", "dev", "tun0"]);
    sizes.send_replace(PodMtu { device: 1400, route: 1350 });
    host.inside(move || {
        let shutdown = CancellationToken::new();
        let (follow, stop) = (network.follow_mtu(shutdown.clone()), shutdown);
        let looked = async {
            loop {
                let devices = pod.ip(&["-o", "link", "show", "eth0"]);
                let routes = pod.ip(&["-6", "route", "show", "default"]);
                if devices.contains("mtu 1400") && routes.contains("mtu 1350") {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let route = pod.ip(&["route", "show", "default"]);
            assert!(route.lines().count() == 1 && route.starts_with("default dev tun0"), "{route}");
            stop.cancel();
        };
        block_on(async { tokio::join!(follow, looked) });
    });
}

#[test]
fn stale_devices_of_pods_go_and_others_stay() {
    let host = Netns::new();
    host.ip(&["link", "add", "kpod0123456789", "type", "veth", "peer", "name", "x1"]);
    host.ip(&["link", "add", "kpodish", "type", "veth", "peer", "name", "x2"]);
    host.inside(|| block_on(device::remove_others(&[])).unwrap());
    let links = host.ip(&["-o", "link"]);
    assert!(!links.contains("kpod0123456789") && links.contains("kpodish"), "{links}");
}

#[test]
fn node_routes_follow_and_foreign_routes_stay() {
    let host = Netns::new();
    host.ip(&["link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
    host.ip(&["link", "set", "up0", "up"]);
    host.ip(&["link", "set", "up1", "up"]);
    host.ip(&["addr", "add", "192.0.2.1/24", "dev", "up0"]);
    host.ip(&["route", "add", "10.9.0.0/16", "via", "192.0.2.9"]);
    let route = |p: &str, via: &str| (p.parse::<Prefix>().unwrap(), Via::Gateway(via.parse().unwrap()));
    let both = vec![route("10.244.1.0/24", "192.0.2.2"), route("10.244.2.0/24", "192.0.2.3")];
    assert_eq!(block_on(routes::apply_in(host.path(), both, None)).unwrap(), 2);
    assert!(host.ip(&["route"]).contains("10.244.1.0/24 via 192.0.2.2"));
    let moved = vec![route("10.244.1.0/24", "192.0.2.4")];
    assert_eq!(block_on(routes::apply_in(host.path(), moved, None)).unwrap(), 1);
    let routes = host.ip(&["route"]);
    assert!(routes.contains("10.244.1.0/24 via 192.0.2.4") && !routes.contains("10.244.2.0"), "{routes}");
    assert!(routes.contains("10.9.0.0/16"));
}
