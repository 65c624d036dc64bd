//! `manifests/kelp-dataplane.yaml` in place of kube-proxy: its objects are installed in a cluster whose pods are run by an
//! agent without a dataplane, and Services work, over restarts of the pod and until `--cleanup`.
//!
//! With `KELP_UPSTREAM_BIN` the same in a cluster with an upstream control plane.

#![expect(
    clippy::disallowed_methods,
    reason = "nothing tells a client that another answer would come now: it asks again"
)]

use anyhow::{Context, Result, bail, ensure};
use kelp_agent::dataplane::kernel::ensure_bpffs;
use kelp_agent::dataplane::sys::{AttachType, query};
use kelp_tests::kubelet::import_images;
use kelp_tests::{Cluster, NodeFacts, Report, Upstream, kelp, sandbox_enter};
use nix::sched::{CloneFlags, setns};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use xtask::command::output;

const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
/// The host whose services the dataplane is installed for.
const HOST: u32 = 2;
const NODE_PORT: u16 = 30_080;

/// The manifest's objects, as they are for this cluster.
fn objects(cluster: &Cluster) -> Result<Vec<Value>> {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/kelp-dataplane.yaml"))?;
    let (server, node) = (cluster.node(1).ipv4(), cluster.node(HOST));
    let mut objects = Vec::new();
    for document in serde_norway::Deserializer::from_str(&text) {
        let mut object = Value::deserialize(document)?;
        match object["kind"].as_str() {
            Some("ConfigMap") => object["data"]["KUBERNETES_SERVICE_HOST"] = json!(server.to_string()),
            Some("DaemonSet") => {
                let pod = &mut object["spec"]["template"]["spec"];
                // Other nodes have dataplanes of their own, and the machine's cgroup root is not the host's.
                pod["nodeSelector"] = json!({"kubernetes.io/hostname": node.name()});
                let arguments = pod["containers"][0]["args"].as_array_mut().context("no arguments")?;
                arguments.push(json!(format!("--cgroup2-attach={}", node.cgroup2_dir().display())));
                arguments.push(json!(format!("--bpf-dir={}", node.bpf_dir().display())));
            }
            _ => {}
        }
        objects.push(object);
    }
    ensure!(objects.len() == 5, "the manifest has {} objects", objects.len());
    Ok(objects)
}

/// Installs the manifest; returns the name of its pod. Our controllers make no pods of a DaemonSet: there the one of its
/// template is made here.
fn install(cluster: &Cluster) -> Result<String> {
    let mut objects = objects(cluster)?;
    if !cluster.is_upstream() {
        for object in objects.iter_mut().filter(|object| object["kind"] == "DaemonSet") {
            let mut pod = object["spec"]["template"].take();
            pod["apiVersion"] = json!("v1");
            pod["kind"] = json!("Pod");
            pod["metadata"]["name"] = json!("kelp-dataplane");
            pod["metadata"]["namespace"] = json!("kube-system");
            *object = pod;
        }
    }
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
    let selector = "app.kubernetes.io/name=kelp-dataplane";
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "wait",
        "pod",
        "-l",
        selector,
        "--for=create",
        "--timeout=60s",
    ])?;
    if let Err(error) = cluster.kubectl(&[
        "-n",
        "kube-system",
        "wait",
        "pod",
        "-l",
        selector,
        "--for=condition=Ready",
        "--timeout=120s",
    ]) {
        let state = cluster.kubectl(&["-n", "kube-system", "describe", "pod", "-l", selector]);
        let log = cluster.kubectl(&["-n", "kube-system", "logs", "-l", selector, "--tail=50"]);
        bail!("{error:#}\n{}\n{}", state.unwrap_or_default(), log.unwrap_or_default());
    }
    let names = cluster.kubectl(&["-n", "kube-system", "get", "pod", "-l", selector, "-o", "name"])?;
    Ok(names.trim().trim_start_matches("pod/").to_owned())
}

fn uninstall(cluster: &Cluster) -> Result<()> {
    let mut delete = vec!["-n", "kube-system", "delete", "--timeout=90s"];
    if cluster.is_upstream() {
        delete.extend(["--cascade=foreground", "daemonset/kelp-dataplane"]);
    } else {
        delete.push("pod/kelp-dataplane");
    }
    delete.extend(["configmap/kelp-dataplane", "serviceaccount/kelp-dataplane"]);
    cluster.kubectl(&delete)?;
    Ok(())
}

/// The sample workload and a pod that asks, all on the host.
fn workload(cluster: &Cluster) -> Result<()> {
    let node = cluster.node(HOST).name();
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/samples/hello.yaml"))?;
    let mut items = Vec::new();
    for document in serde_norway::Deserializer::from_str(&text) {
        let mut object = Value::deserialize(document)?;
        if object["kind"] == "Deployment" {
            object["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        items.push(object);
    }
    items.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asks"}, "spec": {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": BUSYBOX, "imagePullPolicy": "Never",
            "command": ["sleep", "100000"]}],
    }}));
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=90s"])?;
    cluster.wait("pod/asks", "condition=Ready", 60)
}

/// What one request says from a pod, over a new connection; an error is text too.
fn from_pod(cluster: &Cluster, address: &str) -> Result<String> {
    let to = address.replace(':', "/");
    let script =
        format!("exec 3<>/dev/tcp/{to} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3 || true");
    let text = cluster.kubectl(&["exec", "asks", "--", "timeout", "5", "bash", "-c", &script])?;
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// The same from outside the cluster: the LAN's own namespace.
fn from_outside(cluster: &Cluster, address: &str) -> Result<String> {
    let netns = format!("--net=/run/netns/{}", cluster.layout().lan_netns());
    let mut curl = Command::new("nsenter");
    curl.args([&netns, "curl", "--silent", "--show-error", "--fail", "--max-time", "3", "--noproxy", "*"]);
    Ok(output(curl.arg(format!("http://{address}/")))?.trim().to_owned())
}

/// From the host itself.
fn from_host(cluster: &Cluster, address: &str, count: u32) -> Result<Report> {
    cluster.client(HOST, &["get", address, "--count", &count.to_string(), "--pause", "0"])?.finish()
}

/// Every way to the Service answers; endpoints follow readiness, so the first answers may take some time.
fn answers(cluster: &Cluster) -> Result<()> {
    let cluster_ip = format!("{}:80", cluster.field("service/hello", "{.spec.clusterIP}")?);
    let node_port = format!("{}:{NODE_PORT}", cluster.node(HOST).ipv4());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let report = from_host(cluster, &cluster_ip, 1)?;
        if report.failed == 0 {
            break;
        }
        ensure!(Instant::now() < deadline, "{cluster_ip} does not answer: {:?}", report.failures);
        std::thread::sleep(Duration::from_millis(200));
    }
    for address in [cluster_ip.as_str(), &node_port, &format!("127.0.0.1:{NODE_PORT}")] {
        let report = from_host(cluster, address, 60)?;
        ensure!(report.failed == 0, "{address} from the host: {:?}", report.failures);
        ensure!(report.answers.len() == 3, "{address} from the host: {:?}", report.answers);
        println!("{address} from the host: 60 requests, {} pods answered", report.answers.len());
    }
    for address in [cluster_ip.as_str(), &node_port] {
        let answer = from_pod(cluster, address)?;
        ensure!(answer.starts_with("hello from "), "{address} from a pod: {answer}");
        println!("{address} from a pod: {answer}");
    }
    for _ in 0..30 {
        let answer = from_outside(cluster, &node_port)?;
        ensure!(answer.starts_with("hello from "), "{node_port} from outside: {answer}");
    }
    println!("{node_port} from outside: 30 answers");
    Ok(())
}

fn nothing_answers(cluster: &Cluster, when: &str) -> Result<()> {
    let cluster_ip = format!("{}:80", cluster.field("service/hello", "{.spec.clusterIP}")?);
    let report = from_host(cluster, &cluster_ip, 1)?;
    ensure!(report.failed == 1, "{when} {cluster_ip} answers: {report:?}");
    let node_port = format!("{}:{NODE_PORT}", cluster.node(HOST).ipv4());
    let answer = from_outside(cluster, &node_port);
    ensure!(answer.is_err(), "{when} {node_port} answers: {answer:?}");
    Ok(())
}

/// Names of the programs at the host's uplink.
fn at_uplink(cluster: &Cluster) -> Result<Vec<String>> {
    let netns = std::fs::File::open(cluster.node(HOST).netns_path())?;
    let look = move || {
        setns(netns, CloneFlags::CLONE_NEWNET).context("enter the host's namespace")?;
        let device = nix::net::if_::if_nametoindex("eth0")?;
        let mut names = Vec::new();
        for side in [AttachType::TcxIngress, AttachType::TcxEgress] {
            for (program, _) in query::attached(device, side)? {
                names.extend(query::program(program)?.map(|program| program.name));
            }
        }
        Ok(names)
    };
    std::thread::spawn(look).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What of the dataplane is attached on the host, as the kernel says.
fn attached(cluster: &Cluster) -> Result<Vec<String>> {
    let mut found = at_uplink(cluster)?;
    let mut show = Command::new("bpftool");
    let text = output(show.args(["--json", "cgroup", "show"]).arg(cluster.node(HOST).cgroup2_dir()))?;
    let hooks: Value = serde_json::from_str(&text).unwrap_or_default();
    found.extend(hooks.as_array().into_iter().flatten().map(|hook| hook["attach_type"].to_string()));
    Ok(found)
}

fn scenario(cluster: &Cluster) -> Result<()> {
    let (node, kelp) = (cluster.node(HOST), kelp()?);
    // As systemd mounts it at the start of a node.
    ensure_bpffs(&node.bpf_dir())?;
    let archive = xtask::kelp_image::run(Some(kelp.clone()))?;
    output(Command::new(&kelp).args(["image", "import", "--data-dir"]).arg(node.data_dir()).arg(&archive))?;
    import_images(
        &kelp,
        Path::new(env!("CARGO_BIN_EXE_agnhost")),
        &node.data_dir(),
        &cluster.layout().dir(),
    )?;
    workload(cluster)?;
    ensure!(attached(cluster)?.is_empty(), "before it is installed: {:?}", attached(cluster)?);
    nothing_answers(cluster, "before anything is installed")?;

    let pod = install(cluster)?;
    let there = attached(cluster)?;
    ensure!(there.len() == 10, "two programs at the uplink and eight hooks: {there:?}");
    answers(cluster)?;
    let healthz = "http://127.0.0.1:10256/healthz";
    let health =
        output(&mut sandbox_enter(&node, &["curl", "--silent", "--fail", "--noproxy", "*", healthz]))?;
    println!("{healthz}: {health}");

    // Its program is killed: Services go on, the next one takes them over and follows what changes.
    let load = cluster.client(
        HOST,
        &["get", &format!("{}:{NODE_PORT}", node.ipv4()), "--seconds", "120", "--pause", "5"],
    )?;
    let uid =
        cluster.kubectl(&["-n", "kube-system", "get", "pod", &pod, "-o", "jsonpath={.metadata.uid}"])?;
    NodeFacts { name: node.name(), run_dir: node.run_dir(), cgroup: node.cgroup() }
        .kill_main(&uid, "dataplane")?;
    let restarted = "jsonpath={.status.containerStatuses[0].restartCount}=1";
    let wait = |what: &str| {
        let what = format!("--for={what}");
        cluster.kubectl(&["-n", "kube-system", "wait", "pod", &pod, &what, "--timeout=90s"])
    };
    wait(restarted)?;
    wait("condition=Ready")?;
    cluster.kubectl(&["rollout", "restart", "deployment/hello"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    let report = load.stop()?;
    ensure!(report.failed == 0, "{} requests failed: {:#?}", report.failed, report.failures);
    ensure!(report.answers.len() > 3, "new pods have answered too: {:?}", report.answers);
    println!("{} requests over SIGKILL and a rollout: 0 failed", report.answers.values().sum::<usize>());
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.kubectl(&["get", "pods", "-l", "app=hello", "-o", "name"])?.lines().count() > 3 {
        ensure!(Instant::now() < deadline, "the old pods do not go");
        std::thread::sleep(Duration::from_millis(500));
    }
    answers(cluster)?;

    // What it attached works without it, until it is cleaned up.
    uninstall(cluster)?;
    answers(cluster)?;
    let bpf = format!("--bpf-dir={}", node.bpf_dir().display());
    let words = [kelp.to_str().context("path")?, "agent", "--dataplane-only", "--cleanup", &bpf];
    output(&mut sandbox_enter(&node, &words))?;
    ensure!(!node.bpf_dir().exists(), "{} is left", node.bpf_dir().display());
    let left = attached(cluster)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    nothing_answers(cluster, "after the cleanup")
}

fn agents() -> Vec<String> {
    vec!["--without-dataplane".to_owned()]
}

/// With our control plane.
#[test]
fn in_place_of_kube_proxy() -> Result<()> {
    scenario(&Cluster::up_with_agents("t-only", 2, CLIENT, agents())?)
}

/// With an upstream control plane, when `KELP_UPSTREAM_BIN` names its programs.
#[test]
fn in_place_of_kube_proxy_of_an_upstream_cluster() -> Result<()> {
    let Some(upstream) = Upstream::from_environment()? else {
        println!("not run: KELP_UPSTREAM_BIN is not set");
        return Ok(());
    };
    scenario(&Cluster::up_upstream("t-only-up", 2, CLIENT, &upstream, &agents())?)
}
