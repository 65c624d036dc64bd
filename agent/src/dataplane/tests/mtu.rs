//! Pods that the real pod network connects: they send what fits, and follow what the uplink and other nodes become.

use std::net::UdpSocket;
use std::path::PathBuf;

use kelp_model::service::ObjectName;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::tunnel::{apart, device, forbid_fragments, introduce, path_mtu, serve, start_both};
use super::*;
use crate::dataplane::Dataplane;
use crate::network::ipam::Prefix;
use crate::network::{Bandwidth, Network, PodNetwork, Routing};
use kelp_model::policy::PodFacts;
use std::sync::Arc;

/// The pod network of a world's node.
struct Connector<'a> {
    world: &'a World,
    network: Arc<Network<Arc<Dataplane>>>,
    stop: CancellationToken,
    _cidrs: watch::Sender<Vec<Prefix>>,
    dir: TempDir,
}

impl<'a> Connector<'a> {
    fn new(world: &'a World) -> Self {
        Self::again(world, tempfile::tempdir().unwrap())
    }

    /// That of an agent that is started again.
    fn again(world: &'a World, dir: TempDir) -> Self {
        // Not those of the world's own pods.
        let ranges = ["10.244.0.128/25", "fd00:10:244:0:1::/80"].map(|range| range.parse().unwrap());
        let (sender, cidrs) = watch::channel(ranges.to_vec());
        let network = Arc::new(Network::new(world.dataplane(), dir.path(), cidrs).unwrap());
        let (stop, following) = (CancellationToken::new(), network.clone());
        let (token, runtime) = (stop.clone(), world.runtime());
        world.host.spawn(move || runtime.block_on(following.follow_mtu(token)));
        Self { world, network, stop, _cidrs: sender, dir }
    }

    fn connect(&self, uid: &str, net: &Net) -> Vec<std::net::IpAddr> {
        let pod = PodFacts {
            name: ObjectName::new("default", uid),
            uid: uid.into(),
            labels: BTreeMap::default(),
            ports: Vec::new(),
        };
        let path = PathBuf::from(net.path());
        self.world.block_on(self.network.connect(&pod, Bandwidth::default(), &path)).unwrap()
    }

    fn disconnect(&self, uid: &str) {
        self.world.block_on(self.network.disconnect(uid)).unwrap();
    }

    /// The agent dies; what it keeps on the disk stays.
    fn kill(self) -> TempDir {
        self.stop.cancel();
        let (world, dir) = (self.world, self.dir);
        drop(self.network);
        world.kill();
        dir
    }
}

fn shown(net: &Net, arguments: &[&str]) -> Value {
    net.run(|| {
        let output = std::process::Command::new("ip").arg("-j").args(arguments).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    })
}

fn device_mtu(net: &Net) -> u64 {
    shown(net, &["link", "show", "eth0"])[0]["mtu"].as_u64().unwrap()
}

/// What a pod may send at once to an address, as its kernel sees it.
fn may_send(net: &Net, to: SocketAddr) -> i32 {
    net.run(|| {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.connect(to).unwrap();
        path_mtu(&socket)
    })
}

#[test]
fn nothing_that_a_pod_sends_through_a_tunnel_is_too_big() {
    let (first, second) = apart(|_| {});
    let (connector, pod) = (Connector::new(&first), Net::new());
    let addresses = connector.connect("new", &pod);
    assert_eq!(device_mtu(&pod), 1_500, "what comes may be as large as on the uplink");
    for v4 in [true, false] {
        let remote = SocketAddr::new(second.pods[0].address(v4), 8080);
        pod.run(|| {
            let socket = UdpSocket::bind(if v4 { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(remote).unwrap();
            forbid_fragments(&socket);
            assert_eq!(path_mtu(&socket), 1_450, "known before anything was sent");
            let most = 1_450 - if v4 { 28 } else { 48 };
            socket.send(&vec![0; most]).unwrap();
            assert!(socket.recv(&mut [0; 64]).is_ok(), "the largest packet arrives");
            let error = socket.send(&vec![0; most + 1]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
            echo_all(remote, 1_000_000);
        });
    }
    connector.disconnect("new");
    drop(addresses);
}

#[test]
fn pods_follow_when_nodes_come_behind_a_tunnel_and_when_they_leave_it() {
    let first = World::new();
    let second = World::beside(&first);
    let worlds = [&first, &second];
    for (world, other, pods) in [(&first, 1, "fd00:10:244:1::"), (&second, 0, "fd00:10:244::")] {
        world.host.ip(&format!("route del 10.244.{other}.0/24"));
        world.host.ip(&format!("-6 route del {pods}/64"));
    }
    serve(worlds);
    start_both(worlds);
    introduce(worlds, Routing::Auto);
    let (connector, pod) = (Connector::new(&first), Net::new());
    connector.connect("new", &pod);
    let remote = |v4: bool| SocketAddr::new(second.pods[0].address(v4), 8080);
    let mut streams = [true, false].map(|v4| {
        pod.run(|| {
            let mut stream = TcpStream::connect_timeout(&remote(v4), TIMEOUT).unwrap();
            greeting(&mut stream).unwrap();
            stream
        })
    });
    for (routing, mtu) in
        [(Routing::Auto, 1_500), (Routing::Tunnel, 1_450), (Routing::Direct, 1_500), (Routing::Tunnel, 1_450)]
    {
        introduce(worlds, routing);
        for v4 in [true, false] {
            eventually(&format!("{routing:?}"), || may_send(&pod, remote(v4)) == mtu);
        }
        assert_eq!(device_mtu(&pod), 1_500);
        for stream in &mut streams {
            super::echo(stream, 3);
        }
    }
    // A starting agent knows it from the first pod on, although it has not seen a Node yet.
    let dir = connector.kill();
    start_both(worlds);
    let connector = Connector::again(&first, dir);
    connector.connect("new", &pod);
    assert_eq!(may_send(&pod, remote(true)), 1_450);
    connector.disconnect("new");
}

#[test]
fn pods_and_tunnels_follow_the_uplink() {
    let (first, second) = apart(|_| {});
    let (connector, pod) = (Connector::new(&first), Net::new());
    connector.connect("old", &pod);
    let resize = |mtu: i32| {
        first.host.ip(&format!("link set uplink mtu {mtu}"));
        first.outside.ip(&format!("link set wire mtu {mtu}"));
    };
    let remote = |v4: bool| SocketAddr::new(second.pods[0].address(v4), 8080);
    let outside = |v4: bool| at(if v4 { OUTSIDE4 } else { OUTSIDE6 }, 9_999);
    let all_fit = |mtu: i32, net: &Net| {
        for v4 in [true, false] {
            eventually("the route", || may_send(net, remote(v4)) == mtu - 50);
        }
        assert_eq!(device_mtu(net), u64::try_from(mtu).unwrap());
        assert_eq!(device(&first).unwrap()["mtu"], mtu - 50);
        net.run(|| echo_all(remote(true), 1_000_000));
        net.run(|| echo_all(remote(false), 1_000_000));
    };
    // What the programs tell a pod that does not know.
    let told = |to: SocketAddr, mtu: i32| {
        first.pods[0].net.run(|| {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            socket.connect(to).unwrap();
            forbid_fragments(&socket);
            let most = usize::try_from(path_mtu(&socket)).unwrap() - if to.is_ipv4() { 28 } else { 48 };
            socket.send(&vec![0; most]).unwrap();
            eventually("the error", || path_mtu(&socket) == mtu);
        });
    };
    all_fit(1_500, &pod);
    resize(1_400);
    all_fit(1_400, &pod);
    for v4 in [true, false] {
        told(remote(v4), 1_350);
        told(outside(v4), 1_400);
    }
    let young = Net::new();
    connector.connect("young", &young);
    all_fit(1_400, &young);
    resize(9_000);
    all_fit(9_000, &pod);
    // While no agent runs, too.
    let dir = connector.kill();
    resize(1_320);
    start_both([&first, &second]);
    let connector = Connector::again(&first, dir);
    for (uid, net) in [("old", &pod), ("young", &young)] {
        connector.connect(uid, net);
        assert_eq!((device_mtu(net), may_send(net, remote(true))), (1_320, 1_280), "{uid}");
    }
    assert_eq!(device(&first).unwrap()["mtu"], 1_280);
    for uid in ["old", "young"] {
        connector.disconnect(uid);
    }
}
