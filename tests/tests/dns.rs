//! Pods find names by the resolvers they have: glibc's over UDP and TCP, and busybox's.

#![expect(
    clippy::disallowed_methods,
    reason = "nothing tells a client that an answer has changed: it asks again"
)]

use anyhow::{Context, Result, ensure};
use kelp_tests::kubelet::import_images;
use kelp_tests::{Cluster, eventually, sandbox_enter};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// What the server behind the nodes says to every question for an IPv4 address.
const OUTSIDE: &str = "192.0.2.80";

/// A cluster whose nodes have a resolver, and the pods that ask.
struct World {
    cluster: Cluster,
    upstream: Child,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.upstream.kill();
        let _ = self.upstream.wait();
    }
}

impl World {
    fn new(name: &str, nodes: u32) -> Result<Self> {
        let layout = xtask::sandbox::Layout::new(name)?;
        let resolv_conf = layout.dir().join("resolv.conf");
        let server = layout.node(1).ipv4();
        let arguments = vec!["--resolv-conf".to_owned(), resolv_conf.to_string_lossy().into_owned()];
        let cluster = Cluster::up_with(name, nodes, env!("CARGO_BIN_EXE_client"), arguments, |layout| {
            std::fs::create_dir_all(layout.dir())?;
            std::fs::write(
                layout.dir().join("resolv.conf"),
                format!("nameserver {server}\nsearch example.test\n"),
            )?;
            Ok(())
        })?;
        let agnhost = env!("CARGO_BIN_EXE_agnhost");
        let kelp = std::env::var_os("KELP_BIN")
            .map_or_else(|| xtask::build::target_dir().join("release/kelp"), PathBuf::from);
        for number in 1..=nodes {
            import_images(
                &kelp,
                Path::new(agnhost),
                &cluster.node(number).data_dir(),
                &cluster.layout().dir(),
            )?;
        }
        let listen = format!("{server}:53");
        let words = [agnhost, "names", listen.as_str(), OUTSIDE, ".known.test."];
        let upstream = sandbox_enter(&cluster.node(1), &words).spawn().context("start the nodes' server")?;
        Ok(Self { cluster, upstream })
    }

    fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.cluster.apply(&list.to_string()).map(drop)
    }

    /// What a command in a pod prints; it may fail.
    fn run(&self, pod: &str, script: &str) -> Result<String> {
        self.cluster.kubectl(&["exec", pod, "--", "sh", "-c", &format!("{script} || true")])
    }

    /// Addresses by glibc.
    fn addresses(&self, pod: &str, name: &str) -> Result<BTreeSet<String>> {
        let text = self.run(pod, &format!("getent ahosts {name}"))?;
        Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    fn pod_addresses(&self, pod: &str) -> Result<BTreeSet<String>> {
        let text = self.cluster.field(&format!("pod/{pod}"), "{.status.podIPs[*].ip}")?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    fn service_addresses(&self, service: &str) -> Result<BTreeSet<String>> {
        let text = self.cluster.field(&format!("service/{service}"), "{.spec.clusterIPs[*]}")?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// Waits until a name has these addresses: endpoints follow pods.
    fn becomes(&self, pod: &str, name: &str, expected: &BTreeSet<String>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.addresses(pod, name)?;
            if found == *expected {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{pod}: {name} has {found:?}, expected {expected:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn set(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A pod that does nothing; `more` goes into its spec.
fn pod(name: &str, labels: Value, more: Value) -> Value {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": BUSYBOX, "imagePullPolicy": "Never",
            "command": ["sleep", "100000"]}],
    });
    let (Some(spec_fields), Some(more)) = (spec.as_object_mut(), more.as_object()) else { unreachable!() };
    spec_fields.extend(more.clone());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn objects(nodes: &[String]) -> Vec<Value> {
    let last = nodes.last().cloned().unwrap_or_default();
    let first = nodes.first().cloned().unwrap_or_default();
    let peers = json!({"app": "peers"});
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    let mut untranslated = pod("packets", json!({}), json!({"nodeName": first}));
    untranslated["metadata"]["annotations"] = json!({"kelp.dev/socket-translation": "disabled"});
    let never = json!({"exec": {"command": ["false"]}, "periodSeconds": 1});
    let mut unready = pod("unready", json!({"app": "unready"}), json!({"hostname": "c", "subdomain": "all"}));
    unready["spec"]["containers"][0]["readinessProbe"] = never;
    vec![
        pod("a", peers.clone(), json!({"nodeName": first, "hostname": "a", "subdomain": "peers"})),
        pod("b", peers.clone(), json!({"nodeName": last, "hostname": "b", "subdomain": "peers"})),
        unready,
        pod("one", json!({}), json!({"nodeName": first})),
        pod("two", json!({}), json!({"nodeName": last})),
        pod("tcp", json!({}), json!({"nodeName": first, "dnsConfig": {"options": [{"name": "use-vc"}]}})),
        pod(
            "host",
            json!({}),
            json!({"nodeName": last, "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
        ),
        pod(
            "own",
            json!({}),
            json!({"nodeName": last, "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["10.96.0.10"], "searches": ["svc.cluster.local"]}}),
        ),
        untranslated,
        service("web", json!({"selector": peers, "ports": ports, "ipFamilyPolicy": "PreferDualStack"})),
        service(
            "peers",
            json!({"selector": peers, "ports": ports, "clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"}),
        ),
        service(
            "all",
            json!({"selector": {"app": "unready"}, "clusterIP": "None", "ports": ports,
            "publishNotReadyAddresses": true, "ipFamilyPolicy": "PreferDualStack"}),
        ),
        service("some", json!({"selector": {"app": "unready"}, "clusterIP": "None", "ports": ports})),
        service("outside", json!({"type": "ExternalName", "externalName": "www.known.test"})),
        service("inside", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
    ]
}

fn every_form(world: &World, pod: &str) -> Result<()> {
    let (a, b) = (world.pod_addresses("a")?, world.pod_addresses("b")?);
    let both: BTreeSet<String> = a.union(&b).cloned().collect();
    let web = world.service_addresses("web")?;
    ensure!(a.len() == 2 && web.len() == 2, "two families: {a:?} {web:?}");
    world.becomes(pod, "peers.default.svc.cluster.local", &both)?;
    let first = a.iter().find(|ip| ip.contains('.')).context("no IPv4 address")?;
    let spelled = format!("{}.default.pod.cluster.local", first.replace('.', "-"));
    for (name, expected) in [
        ("web.default.svc.cluster.local", &web),
        ("web.default.svc.cluster.local.", &web),
        ("WEB.Default", &web),
        ("web.default", &web),
        ("inside.default", &web),
        ("a.peers.default.svc.cluster.local", &a),
        (&spelled, &set(first)),
        ("outside.default", &set(OUTSIDE)),
        ("elsewhere.known.test", &set(OUTSIDE)),
        ("none.default.svc.cluster.local.", &set("")),
        ("some.default.svc.cluster.local.", &set("")),
        ("c.all.default.svc.cluster.local.", &world.pod_addresses("unready")?),
    ] {
        // Pods without their namespace in the search list do not know the short names.
        let found = world.addresses(pod, name)?;
        ensure!(found == *expected, "{pod}: {name} has {found:?}, expected {expected:?}");
    }
    let found = world.run(pod, "getent hosts 10.96.0.1")?;
    ensure!(
        found.split_whitespace().nth(1) == Some("kubernetes.default.svc.cluster.local"),
        "{pod}: {found}"
    );
    let found = world.run(pod, &format!("getent hosts {first}"))?;
    ensure!(found.split_whitespace().nth(1) == Some("a.peers.default.svc.cluster.local"), "{pod}: {found}");
    for (kind, name, expected) in [
        ("srv", "_http._tcp.web.default.svc.cluster.local", " 80 web.default.svc.cluster.local"),
        ("srv", "_http._tcp.peers.default.svc.cluster.local", " 8080 b.peers.default.svc.cluster.local"),
        ("txt", "dns-version.cluster.local", "1.1.0"),
        ("soa", "cluster.local", "ns.dns.cluster.local"),
        ("cname", "outside.default.svc.cluster.local", "canonical name = www.known.test"),
        ("a", "none.default.svc.cluster.local", "NXDOMAIN"),
        ("a", "nowhere.svc.cluster.local", "NXDOMAIN"),
        ("a", "10-244-0-1.nowhere.pod.cluster.local", "NXDOMAIN"),
    ] {
        let found = world.run(pod, &format!("nslookup -type={kind} {name}"))?;
        ensure!(found.contains(expected), "{pod}: {kind} of {name} is {found}");
    }
    // A namespace without any Service: there are no records, and nslookup says nothing.
    let found = world.run(pod, "nslookup -type=a kube-node-lease.svc.cluster.local 2>&1")?;
    let expected = |line: &str| line.is_empty() || line.contains("10.96.0.10");
    ensure!(found.contains("10.96.0.10") && found.lines().all(expected), "{pod}: {found}");
    Ok(())
}

/// Every kind of pod on every node resolves every form of name, over UDP and TCP, through sockets and packets; changes of
/// ExternalName Services are seen; an operator's server takes over and gives back.
#[test]
fn names_of_every_form() -> Result<()> {
    let world = World::new("t-dns", 2)?;
    let nodes: Vec<String> = (1..=2).map(|number| world.cluster.node(number).name()).collect();
    world.apply(&objects(&nodes))?;
    for pod in ["a", "b", "one", "two", "tcp", "host", "own", "packets"] {
        world.cluster.wait(&format!("pod/{pod}"), "condition=Ready", 60)?;
    }
    world.cluster.wait("pod/unready", "jsonpath={.status.phase}=Running", 60)?;
    let resolv = world.run("one", "cat /etc/resolv.conf")?;
    ensure!(
        resolv
            == "search default.svc.cluster.local svc.cluster.local cluster.local example.test\n\
            nameserver 10.96.0.10\noptions ndots:5\n",
        "{resolv}"
    );
    for pod in ["one", "two", "tcp", "host", "own", "packets"] {
        every_form(&world, pod)?;
    }
    ensure!(world.addresses("one", "web")? == world.service_addresses("web")?, "a short name");
    world.cluster.kubectl(&[
        "patch",
        "service",
        "outside",
        "-p",
        r#"{"spec": {"externalName": "foo.known.test"}}"#,
    ])?;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = world.run("one", "nslookup -type=cname outside.default.svc.cluster.local")?;
        if found.contains("canonical name = foo.known.test") {
            break;
        }
        ensure!(Instant::now() < deadline, "the change is not seen: {found}");
    }
    world.cluster.kubectl(&[
        "patch",
        "service",
        "outside",
        "-p",
        r#"{"spec": {"type": "ClusterIP", "externalName": null, "ports": [{"port": 80}]}}"#,
    ])?;
    world.becomes("one", "outside.default.svc.cluster.local", &world.service_addresses("outside")?)?;

    taken_over(&world)
}

fn taken_over(world: &World) -> Result<()> {
    let own = world.service_addresses("web")?;
    let mut theirs = pod("theirs", json!({"k8s-app": "kube-dns"}), json!({}));
    theirs["metadata"]["namespace"] = json!("kube-system");
    theirs["spec"]["containers"][0] = json!({"name": "c", "image": AGNHOST, "imagePullPolicy": "Never",
        "args": ["names", "0.0.0.0:53", "192.0.2.99"]});
    world.apply(&[theirs])?;
    world.cluster.kubectl(&[
        "patch",
        "-n",
        "kube-system",
        "service",
        "kube-dns",
        "-p",
        r#"{"spec": {"selector": {"k8s-app": "kube-dns"}}}"#,
    ])?;
    for pod in ["one", "two", "packets"] {
        world.becomes(pod, "web.default.svc.cluster.local", &set("192.0.2.99"))?;
    }
    world.cluster.kubectl(&["delete", "-n", "kube-system", "pod", "theirs"])?;
    for pod in ["one", "two", "packets"] {
        world.becomes(pod, "web.default.svc.cluster.local", &own)?;
    }
    Ok(())
}

/// A pod whose egress policy allows questions of cluster DNS, as such policies are written, gets names and no
/// connections, until it is allowed those too.
#[test]
fn names_without_connections() -> Result<()> {
    let world = World::new("t-dns-egress", 2)?;
    let nodes: Vec<String> = (1..=2).map(|number| world.cluster.node(number).name()).collect();
    let mut server = pod("server", json!({"app": "server"}), json!({"nodeName": nodes[1]}));
    server["spec"]["containers"][0]["command"] = json!([
        "sh",
        "-c",
        "mkdir /www && echo hello > /www/index.html && exec busybox httpd -f -p 8080 -h /www"
    ]);
    server["spec"]["containers"][0]["readinessProbe"] =
        json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    let dns = json!({"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
        "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]});
    let policy = |egress: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "asks"},
            "spec": {"podSelector": {"matchLabels": {"app": "asks"}}, "policyTypes": ["Egress"], "egress": egress}})
    };
    world.apply(&[
        policy(json!([dns])),
        server,
        service(
            "server",
            json!({"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]}),
        ),
    ])?;
    let mut packets = pod("packets", json!({"app": "asks"}), json!({"nodeName": nodes[0]}));
    packets["metadata"]["annotations"] = json!({"kelp.dev/socket-translation": "disabled"});
    let tcp = json!({"nodeName": nodes[0], "dnsConfig": {"options": [{"name": "use-vc"}]}});
    world.apply(&[
        pod("sockets", json!({"app": "asks"}), json!({"nodeName": nodes[0]})),
        pod("tcp", json!({"app": "asks"}), tcp),
        packets,
        pod("free", json!({}), json!({"nodeName": nodes[0]})),
    ])?;
    let askers = ["sockets", "tcp", "packets"];
    for name in askers.into_iter().chain(["free", "server"]) {
        world.cluster.wait(&format!("pod/{name}"), "condition=Ready", 60)?;
    }
    let expected = world.service_addresses("server")?;
    let call = "timeout 2 bash -c \"exec 3<>/dev/tcp/server/80 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3\"";
    let reaches = |pod: &str| Ok::<_, anyhow::Error>(world.run(pod, call)?.trim_end().ends_with("hello"));
    eventually("a pod without policies connects", || Ok(reaches("free")?.then_some(())))?;
    for name in askers {
        world.becomes(name, "server", &expected)?;
        world.becomes(name, "elsewhere.known.test", &set(OUTSIDE))?;
        ensure!(!reaches(name)?, "{name} connects");
    }
    let to_server =
        json!({"to": [{"podSelector": {"matchLabels": {"app": "server"}}}], "ports": [{"port": 8080}]});
    world.apply(&[policy(json!([dns, to_server]))])?;
    for name in askers {
        eventually(&format!("{name} connects"), || Ok(reaches(name)?.then_some(())))?;
    }
    Ok(())
}

/// SIGKILL of `kelp` fails no lookup: questions wait in the sockets for the next one.
#[test]
fn lookups_survive_a_restart() -> Result<()> {
    let world = World::new("t-dns-restart", 1)?;
    let nodes = [world.cluster.node(1).name()];
    world.apply(&objects(&nodes))?;
    for pod in ["one", "tcp", "packets"] {
        world.cluster.wait(&format!("pod/{pod}"), "condition=Ready", 60)?;
        // On its own: what `kubectl exec` started ends with the connection through kelp.
        let script = "begin() { while [ ! -e /tmp/stop ]; do s=${EPOCHREALTIME/./}; \
            if getent hosts kubernetes.default.svc.cluster.local. > /dev/null; then echo ok; else echo failed; fi; \
            echo took $(( (${EPOCHREALTIME/./} - s) / 1000 )); done > /tmp/log; touch /tmp/done; }; \
            begin < /dev/null > /dev/null 2>&1 & true";
        world.run(pod, script)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..2 {
        let pid = world.cluster.kelp_pid(1)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill kelp")?;
        world.cluster.kubectl(&["get", "nodes", "--request-timeout=60s"])?;
        ensure!(world.cluster.kelp_pid(1)? != pid, "kelp was not restarted");
        std::thread::sleep(Duration::from_secs(2));
    }
    for pod in ["one", "tcp", "packets"] {
        world.run(pod, "touch /tmp/stop; while [ ! -e /tmp/done ]; do sleep 0.1; done")?;
        let log = world.run(pod, "cat /tmp/log")?;
        let count = |word: &str| log.lines().filter(|line| *line == word).count();
        let took = log.lines().filter_map(|line| line.strip_prefix("took ")?.parse::<u64>().ok());
        let longest = took.max().unwrap_or_default();
        println!("{pod}: {} lookups, {} failed, the longest took {longest} ms", count("ok"), count("failed"));
        ensure!(count("failed") == 0, "{pod}: {} of {} lookups failed", count("failed"), count("ok"));
        ensure!(count("ok") > 20, "{pod}: {log}");
    }
    Ok(())
}
