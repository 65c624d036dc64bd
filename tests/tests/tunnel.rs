//! A whole cluster whose nodes reach each other's pods through tunnels alone: everything works as without, for pods, nodes and
//! clients outside, and nothing that is sent is too big for the tunnel.

use anyhow::{Context, Result, bail, ensure};
use kelp_tests::kubelet::import_images;
use kelp_tests::{Cluster, eventually, pattern};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use xtask::command::output;
use xtask::sandbox;

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
/// Bytes of a transfer.
const BULK: u64 = 4_000_000;
/// Payload of a datagram that has to be sent in pieces; the server reads up to 2 KiB.
const DATAGRAM: usize = 1_900;

/// Fetches `/bytes` from the address `$1` and port `$2` and prints their checksum.
const FETCH: &str = r#"exec 3<>/dev/tcp/$1/$2 && printf "GET /bytes?n=$3 HTTP/1.1\r\nConnection: close\r\n\r\n" >&3 && timeout 30 cat <&3 | tail -c "$3" | sha256sum"#;
/// Sends a datagram of `$3` bytes and prints the answer, of the length of the name of a server.
const ASK: &str = r#"exec 3<>/dev/udp/$1/$2 && printf "%0${3}d" 0 >&3 && timeout 5 head -c "$4" <&3"#;

struct World {
    cluster: Cluster,
}

impl World {
    /// Two nodes, on each of which a server and a client run; services of both families lead to one server each.
    fn new() -> Result<Self> {
        let arguments = ["--routing", "tunnel"].map(str::to_owned).to_vec();
        let client = env!("CARGO_BIN_EXE_client");
        let cluster = Cluster::up_with("t-tunnel", 2, client, arguments, |_| Ok(()))?;
        let agnhost = Path::new(env!("CARGO_BIN_EXE_agnhost"));
        let mut objects = Vec::new();
        for number in 1..=2 {
            let node = cluster.node(number);
            import_images(&kelp_tests::kelp()?, agnhost, &node.data_dir(), &cluster.layout().dir())?;
            let server = json!({"name": "c", "image": "kelp/hello:dev", "imagePullPolicy": "Never"});
            let client = json!({"name": "c", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sleep", "100000"]});
            for (name, container) in [("server", server), ("client", client)] {
                let name = format!("{name}{number}");
                objects.push(json!({"apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": name, "labels": {"app": name}},
                    "spec": {"nodeName": node.name(), "terminationGracePeriodSeconds": 0, "containers": [container]}}));
            }
            let port = |protocol: &str| {
                json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "targetPort": 8080,
                    "nodePort": 30_080 + number})
            };
            objects.push(json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": format!("server{number}")},
                "spec": {"type": "NodePort", "ipFamilyPolicy": "RequireDualStack",
                    "selector": {"app": format!("server{number}")}, "ports": [port("TCP"), port("UDP")]}}));
        }
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        for pod in ["server1", "client1", "server2", "client2"] {
            cluster.wait(&format!("pod/{pod}"), "condition=Ready", 60)?;
        }
        Ok(Self { cluster })
    }

    fn addresses(&self, object: &str, path: &str) -> Result<Vec<String>> {
        let found = self.cluster.field(object, path)?;
        let addresses: Vec<String> = found.split_whitespace().map(str::to_owned).collect();
        ensure!(addresses.len() == 2, "two families: {found}");
        Ok(addresses)
    }

    /// Runs a script of bash in a pod.
    fn run(&self, pod: &str, script: &str, arguments: &[&str]) -> Result<String> {
        let words = [&["exec", pod, "--", "bash", "-c", script, "bash"], arguments].concat();
        Ok(self.cluster.kubectl(&words)?.trim().to_owned())
    }

    /// Packets that a node has sent through the tunnel.
    fn tunnelled(&self, number: u32) -> Result<u64> {
        let words = ["ip", "-s", "-j", "link", "show", "kelp-vxlan"];
        let shown: Value =
            serde_json::from_str(&output(&mut sandbox::enter(&self.cluster.node(number), &words))?)?;
        shown[0]["stats64"]["tx"]["packets"].as_u64().context("the tunnels' device counts packets")
    }
}

fn checksum() -> String {
    let mut hash = Sha256::new();
    let bytes: Vec<u8> = (0..BULK).map(pattern).collect();
    hash.update(&bytes);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn everything_goes_through_the_tunnel_and_nothing_is_too_big() -> Result<()> {
    let world = World::new()?;
    let cluster = &world.cluster;
    let (checksum, bulk, datagram) = (checksum(), BULK.to_string(), DATAGRAM.to_string());
    let packets = BULK / 1_450;
    for (here, there) in [(1, 2), (2, 1)] {
        let (client, server) = (format!("client{here}"), format!("server{there}"));
        let before = world.tunnelled(there)?;
        let pods = world.addresses(&format!("pod/{server}"), "{.status.podIPs[*].ip}")?;
        let services = world.addresses(&format!("service/{server}"), "{.spec.clusterIPs[*]}")?;
        let places = pods.iter().map(|ip| (ip, "8080")).chain(services.iter().map(|ip| (ip, "80")));
        for (ip, port) in places {
            let got = eventually(&format!("{client} reaches {ip}"), || {
                Ok(world.run(&client, FETCH, &[ip, port, &bulk]).ok())
            })?;
            ensure!(got.starts_with(&checksum), "{client} from {ip}: {got}, not {checksum}");
            let length = server.len().to_string();
            let got = world.run(&client, ASK, &[ip, port, &datagram, &length])?;
            ensure!(got == server, "{client} asked {ip} by a large datagram: {got:?}");
        }
        // Segments are sent many at a time, which the device may count as one.
        ensure!(world.tunnelled(there)? > before + packets / 50, "{server} answered by another way");

        // From outside by the node that has not the pod, and by its own.
        for node in [here, there].map(|number| cluster.node(number)) {
            for ip in [node.ipv4().to_string(), format!("[{}]", node.ipv6())] {
                let address = format!("{ip}:{}", 30_080 + there);
                let report = cluster.client_outside(&["transfer", &address, "--bytes", &bulk])?.finish()?;
                ensure!(report.failed == 0 && report.bytes == BULK, "{address}: {report:?}");
                let report = cluster.client_outside(&["udp", &address, "--count", "20"])?.finish()?;
                ensure!(report.failed == 0 && report.answers.contains_key(&server), "{address}: {report:?}");
            }
        }
        // The node itself, whose stack sends by the tunnels' device.
        for ip in &pods {
            let address = if ip.contains(':') { format!("[{ip}]:8080") } else { format!("{ip}:8080") };
            let report = cluster.client(here, &["transfer", &address, "--bytes", &bulk])?.finish()?;
            ensure!(report.failed == 0 && report.bytes == BULK, "{address} from its node: {report:?}");
        }
    }
    // What a pod is told to be too big counts as an error that it received.
    for pod in ["client1", "client2"] {
        let told = world.run(pod, "grep -E '^Icmp:' /proc/net/snmp; grep TooBigs /proc/net/snmp6", &[])?;
        // A line of names, and one of numbers.
        let columns: Vec<Vec<&str>> = told.lines().take(2).map(|line| line.split(' ').collect()).collect();
        let [names, numbers] = &*columns else { bail!("{pod}: {told}") };
        let place = names.iter().position(|name| *name == "InDestUnreachs").context("a name")?;
        ensure!(numbers.get(place) == Some(&"0"), "{pod} was told of unreachable destinations: {told}");
        ensure!(told.contains("Icmp6InPktTooBigs               \t0"), "{pod}: {told}");
    }
    Ok(())
}
