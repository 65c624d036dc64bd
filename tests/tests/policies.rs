//! NetworkPolicies between pods of a whole cluster, on one node and on another, as kubectl writes them.

use anyhow::{Result, anyhow, ensure};
use kelp_tests::kubelet::import_images;
use kelp_tests::{Cluster, eventually, sandbox_enter};
use serde_json::{Value, json};
use std::path::Path;
use xtask::command::output;

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
/// Pods that call, with their namespace, label and node.
const CALLERS: [(&str, &str, &str, u32); 5] = [
    ("friend-near", "default", "friend", 1),
    ("friend-far", "default", "friend", 2),
    ("stranger-near", "default", "stranger", 1),
    ("stranger-far", "default", "stranger", 2),
    ("guest", "other", "guest", 2),
];

/// Address and port.
type Place = (String, u16);

struct World {
    cluster: Cluster,
}

impl World {
    fn new() -> Result<Self> {
        let cluster = Cluster::up("t-policies", 2, env!("CARGO_BIN_EXE_client"))?;
        let agnhost = Path::new(env!("CARGO_BIN_EXE_agnhost"));
        for number in 1..=2 {
            let data = cluster.node(number).data_dir();
            import_images(&kelp_tests::kelp()?, agnhost, &data, &cluster.layout().dir())?;
        }
        Ok(Self { cluster })
    }

    fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.cluster.apply(&list.to_string()).map(drop)
    }

    fn pod(&self, name: &str, namespace: &str, label: &str, node: u32, container: Value) -> Value {
        let mut whole = json!({"name": "c", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sleep", "100000"]});
        if let (Some(fields), Some(more)) = (whole.as_object_mut(), container.as_object()) {
            fields.extend(more.clone());
        }
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"role": label}},
            "spec": {"nodeName": self.cluster.node(node).name(), "terminationGracePeriodSeconds": 0, "containers": [whole]}})
    }

    /// Whether a pod gets an answer there: at an address and a port. (busybox's own clients cannot look up anything without
    /// libraries that its image has not.)
    fn reaches(&self, pod: &str, namespace: &str, (ip, port): &Place) -> Result<bool> {
        let call =
            format!("exec 3<>/dev/tcp/{ip}/{port} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3");
        let words =
            ["exec", "-n", namespace, pod, "--", "sh", "-c", "timeout 2 bash -c \"$0\" || true", &call];
        Ok(self.cluster.kubectl(&words)?.trim_end().ends_with("hello"))
    }

    /// Waits until exactly these of the callers get an answer at each of the addresses.
    fn becomes(&self, what: &str, places: &[Place], expected: &[&str]) -> Result<()> {
        let look = |place: &Place, pod: &str, namespace: &str| {
            let wanted = expected.contains(&pod);
            eventually(&format!("{what}: {pod} at {place:?}, {wanted}"), || {
                Ok((self.reaches(pod, namespace, place)? == wanted).then_some(()))
            })
        };
        for place in places {
            // At once: each that gets no answer waits for it.
            std::thread::scope(|scope| {
                let look = &look;
                let looks =
                    CALLERS.map(|(pod, namespace, ..)| scope.spawn(move || look(place, pod, namespace)));
                looks
                    .into_iter()
                    .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a look panicked"))?)
            })?;
        }
        Ok(())
    }
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec})
}

/// What a command prints on a node.
fn words(world: &World, node: u32, words: &[&str]) -> Result<String> {
    output(&mut sandbox_enter(&world.cluster.node(node), words))
}

/// The rules of a node in nftables, which newer iptables keeps its own in, and the tables of older ones.
fn rules(world: &World, node: u32) -> Result<String> {
    let older = "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true";
    let found = words(world, node, &["nft", "list", "ruleset"])? + &words(world, node, &["sh", "-c", older])?;
    Ok(found.trim().to_owned())
}

/// Ingress by pods, namespaces and blocks, and egress, at the pod's addresses of both families and through its Service;
/// the node's probes pass all the time, and what is allowed again works again. No node has a rule of iptables or nftables for all that.
#[test]
fn pods_reach_each_other_as_the_policies_say() -> Result<()> {
    let world = World::new()?;
    let cluster = &world.cluster;
    cluster.kubectl(&["create", "namespace", "other"])?;
    let web = world.pod(
        "web",
        "default",
        "web",
        1,
        json!({"command": ["sh", "-c", "mkdir /www && echo hello > /www/index.html && exec busybox httpd -f -p 8080 -h /www"],
            "ports": [{"containerPort": 8080, "hostPort": 8088}],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1}}),
    );
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"role": "web"},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]}});
    let callers =
        CALLERS.map(|(name, namespace, label, node)| world.pod(name, namespace, label, node, json!({})));
    world.apply(&[web, service])?;
    world.apply(&callers)?;
    cluster.wait("pod/web", "condition=Ready", 60)?;
    for (name, namespace, ..) in CALLERS {
        let timeout = "--timeout=60s";
        cluster.kubectl(&[
            "wait",
            "-n",
            namespace,
            &format!("pod/{name}"),
            "--for=condition=Ready",
            timeout,
        ])?;
    }
    let ready = || cluster.field("pod/web", r#"{.status.conditions[?(@.type=="Ready")]}"#);
    let ready_since = ready()?;
    let ips = cluster.field("pod/web", "{.status.podIPs[*].ip}")?;
    let mut addresses: Vec<Place> = ips.split_whitespace().map(|ip| (ip.to_owned(), 8080)).collect();
    ensure!(addresses.len() == 2, "two families: {ips}");
    addresses.push((cluster.field("service/web", "{.spec.clusterIP}")?, 80));
    let everybody = CALLERS.map(|(name, ..)| name);

    world.becomes("without policies", &addresses, &everybody)?;

    let selected = json!({"matchLabels": {"role": "web"}});
    world.apply(&[policy("web", json!({"podSelector": selected, "policyTypes": ["Ingress"]}))])?;
    world.becomes("default deny", &addresses, &[])?;

    let ports = json!([{"port": 8080}]);
    let friends = json!({"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}], "ports": ports});
    let others =
        json!({"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}]});
    world.apply(&[policy("web", json!({"podSelector": selected, "ingress": [friends]}))])?;
    world.becomes("friends", &addresses, &["friend-near", "friend-far"])?;
    world.apply(&[policy("others", json!({"podSelector": selected, "ingress": [others]}))])?;
    world.becomes("friends and others", &addresses, &["friend-near", "friend-far", "guest"])?;

    // A block with an exception, and a port that nobody listens on: the Service's port is not the pod's.
    let of = |pod: &str| cluster.field(&format!("pod/{pod}"), "{.status.podIP}");
    let near = of("stranger-near")?;
    let block = json!({"from": [{"ipBlock": {"cidr": "10.244.0.0/16", "except": [format!("{near}/32")]}}], "ports": ports});
    world.apply(&[
        policy("web", json!({"podSelector": selected, "ingress": [block]})),
        policy("others", json!({"podSelector": selected, "ingress": [{"ports": [{"port": 80}]}]})),
    ])?;
    let v4: Vec<Place> = addresses.iter().filter(|(ip, _)| !ip.contains(':')).cloned().collect();
    let most = ["friend-near", "friend-far", "stranger-far", "guest"];
    world.becomes("a block with an exception", &v4, &most)?;

    // Egress: the friends may call nobody but on another port.
    world.apply(&[
        policy("web", json!({"podSelector": selected, "ingress": [{}]})),
        policy(
            "friends",
            json!({"podSelector": {"matchLabels": {"role": "friend"}}, "policyTypes": ["Egress"],
                "egress": [{"ports": [{"port": 1, "endPort": 8079}]}]}),
        ),
    ])?;
    world.becomes("egress", &addresses, &["stranger-near", "stranger-far", "guest"])?;

    // By the node's own address, which to the outside of the cluster is what its pods have.
    let node = cluster.field(
        &format!("node/{}", cluster.node(1).name()),
        r#"{.status.addresses[?(@.type=="InternalIP")].address}"#,
    )?;
    let node = node.split_whitespace().next().unwrap_or_default();
    let ports = [(node.to_owned(), 8088), (node.to_owned(), 30080)];
    world.becomes("hostPort and NodePort", &ports, &["stranger-near", "stranger-far", "guest"])?;
    for number in 1..=2 {
        ensure!(rules(&world, number)?.is_empty(), "node {number} has rules: {}", rules(&world, number)?);
    }
    // What would be there is seen.
    words(&world, 2, &["nft", "add", "table", "inet", "somebody"])?;
    ensure!(rules(&world, 2)?.contains("somebody"), "a table is not seen");
    words(&world, 2, &["nft", "delete", "table", "inet", "somebody"])?;

    ensure!(ready()? == ready_since, "the node's probes pass all the time");
    cluster.kubectl(&["delete", "networkpolicy", "--all"])?;
    world.becomes("without policies again", &addresses, &everybody)?;
    Ok(())
}
