//! The agent joined to an upstream control plane: nodes register, pods of every kind of controller run, kubectl reaches
//! them, Services and names lead to them. Runs when `KELP_UPSTREAM_BIN` names the programs.

#![expect(
    clippy::disallowed_methods,
    reason = "nothing tells a client that another answer would come now: it asks again"
)]

use anyhow::{Context, Result, ensure};
use kelp_tests::kubelet::import_images;
use kelp_tests::{Cluster, Upstream, kelp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
/// The hosts with agents.
const AGENTS: [u32; 2] = [2, 3];

fn apply(cluster: &Cluster, items: &[Value]) -> Result<()> {
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).map(drop)
}

/// A pod's spec with one container that runs a script.
fn script(script: &str) -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": BUSYBOX, "imagePullPolicy": "Never",
            "command": ["sh", "-c", script]}],
    })
}

/// Repeats until it succeeds, for at most a minute.
fn eventually<T>(mut what: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match what() {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
            done => return done,
        }
    }
}

fn nodes(cluster: &Cluster) -> Result<()> {
    for number in AGENTS {
        let name = format!("node/{}", cluster.node(number).name());
        // The first list of the node IPAM controller may come later than Ready.
        eventually(|| {
            let cidrs = cluster.field(&name, "{.spec.podCIDRs[*]}")?;
            ensure!(cidrs.split_whitespace().count() == 2, "{name} has the ranges {cidrs}");
            Ok(())
        })?;
        let version = cluster.field(&name, "{.status.nodeInfo.kubeletVersion}")?;
        ensure!(version.starts_with("v1.36."), "{name} is of {version}");
        let lease = cluster.kubectl(&[
            "-n",
            "kube-node-lease",
            "get",
            "lease",
            &cluster.node(number).name(),
            "-o",
            "jsonpath={.spec.holderIdentity}",
        ])?;
        ensure!(lease == cluster.node(number).name(), "the lease of {name} is {lease}'s");
    }
    println!("{}", cluster.kubectl(&["get", "nodes", "-o", "wide"])?);
    Ok(())
}

/// Pods by every controller that makes some.
fn controllers(cluster: &Cluster) -> Result<()> {
    let template = |labels: &Value, spec: Value| json!({"metadata": {"labels": labels}, "spec": spec});
    let (daemons, stateful) = (json!({"app": "daemons"}), json!({"app": "stateful"}));
    let mut job = script("echo done; exit 0");
    job["restartPolicy"] = json!("Never");
    apply(
        cluster,
        &[
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "daemons"}, "spec": {
                "selector": {"matchLabels": daemons}, "template": template(&daemons, script("sleep 100000"))}}),
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "stateful"}, "spec": {
                "serviceName": "stateful", "replicas": 2, "selector": {"matchLabels": stateful},
                "template": template(&stateful, script("sleep 100000"))}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "stateful"}, "spec": {
                "clusterIP": "None", "selector": stateful, "ports": [{"port": 80}]}}),
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": {
                "completions": 3, "parallelism": 2, "template": {"spec": job}}}),
        ],
    )?;
    cluster.kubectl(&["rollout", "status", "daemonset/daemons", "--timeout=120s"])?;
    cluster.kubectl(&["rollout", "status", "statefulset/stateful", "--timeout=120s"])?;
    cluster.wait("job/job", "condition=Complete", 120)?;
    let scheduled = cluster.field("daemonset/daemons", "{.status.numberReady}")?;
    ensure!(scheduled == AGENTS.len().to_string(), "{scheduled} pods of the DaemonSet are ready");
    println!("{}", cluster.kubectl(&["get", "pods,jobs", "-o", "wide"])?);
    Ok(())
}

/// Logs, exec, attach, cp and port-forward, and what a pod gets from the API.
fn kubectl(cluster: &Cluster) -> Result<()> {
    let mut spec = script("echo hello $FROM; cat; sleep 100000");
    spec["containers"][0]["stdin"] = json!(true);
    spec["containers"][0]["env"] =
        json!([{"name": "FROM", "valueFrom": {"configMapKeyRef": {"name": "facts", "key": "name"}}}]);
    spec["containers"][0]["volumeMounts"] =
        json!([{"name": "facts", "mountPath": "/facts"}, {"name": "secret", "mountPath": "/secret"}]);
    spec["volumes"] = json!([
        {"name": "facts", "configMap": {"name": "facts"}},
        {"name": "secret", "secret": {"secretName": "facts"}},
    ]);
    apply(
        cluster,
        &[
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "facts"},
                "data": {"name": "upstream"}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "facts"},
                "stringData": {"word": "hush"}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "talks"}, "spec": spec}),
        ],
    )?;
    cluster.wait("pod/talks", "condition=Ready", 60)?;
    ensure!(cluster.kubectl(&["logs", "talks"])? == "hello upstream\n", "logs");
    let facts = cluster.kubectl(&[
        "exec",
        "talks",
        "--",
        "sh",
        "-c",
        "cat /facts/name /secret/word; head -c 3 /var/run/secrets/kubernetes.io/serviceaccount/token",
    ])?;
    ensure!(facts == "upstreamhusheyJ", "in the pod: {facts}");
    let file = cluster.layout().dir().join("copied");
    std::fs::write(&file, "copied\n")?;
    let path = file.to_string_lossy().into_owned();
    cluster.kubectl(&["cp", &path, "talks:/tmp/copied"])?;
    ensure!(cluster.kubectl(&["exec", "talks", "--", "cat", "/tmp/copied"])? == "copied\n", "cp");
    ensure!(cluster.kubectl_fails(&["exec", "talks", "--", "sh", "-c", "exit 7"])?.contains("exit code 7"));
    // The service account reaches the API by its service address, and knows who it is.
    let node = cluster.field("pod/talks", "{.spec.nodeName}")?;
    let raw = format!("/api/v1/nodes/{node}/proxy/healthz");
    ensure!(cluster.kubectl(&["get", "--raw", &raw])? == "ok", "the node's API through a proxy");
    let events = cluster.kubectl(&["get", "events", "--field-selector=involvedObject.name=talks"])?;
    ensure!(events.contains("Started"), "{events}");
    println!("logs, exec, cp, node proxy and events: as they should be");
    Ok(())
}

/// A changed ConfigMap and a changed pod reach what runs.
fn changes(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["patch", "configmap", "facts", "-p", r#"{"data": {"name": "changed"}}"#])?;
    eventually(|| {
        let text = cluster.kubectl(&["exec", "talks", "--", "cat", "/facts/name"])?;
        ensure!(text == "changed", "{text}");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "pod", "talks", "--timeout=60s"])?;
    Ok(())
}

fn services(cluster: &Cluster) -> Result<()> {
    let manifest =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/samples/hello.yaml"))?;
    cluster.apply(&manifest.replace("replicas: 3", "replicas: 4"))?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    let cluster_ip = format!("{}:80", cluster.field("service/hello", "{.spec.clusterIP}")?);
    let ways = AGENTS.map(|number| format!("{}:30080", cluster.node(number).ipv4()));
    let ask = |number: u32, address: &str| {
        let report =
            cluster.client(number, &["get", address, "--seconds", "30", "--distinct", "4"])?.finish()?;
        ensure!(report.failed == 0, "{address} from host {number}: {:?}", report.failures);
        ensure!(report.answers.len() == 4, "{address} from host {number}: {:?}", report.answers);
        Ok(())
    };
    eventually(|| AGENTS.iter().try_for_each(|number| ask(*number, &cluster_ip)))?;
    for number in AGENTS {
        ways.iter().try_for_each(|way| ask(number, way))?;
    }
    for way in &ways {
        let report = cluster.client_outside(&["get", way, "--count", "40", "--pause", "0"])?.finish()?;
        ensure!(report.failed == 0, "{way} from outside: {:?}", report.failures);
    }
    println!("the ClusterIP and both NodePorts from both hosts and from outside: 4 pods answer");
    let load = cluster.client(2, &["get", &cluster_ip, "--seconds", "180"])?;
    cluster.kubectl(&["rollout", "restart", "deployment/hello"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    let pid = cluster.kelp_pid(2)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill kelp")?;
    cluster.kubectl(&["scale", "deployment/hello", "--replicas=2"])?;
    cluster.wait("deployment/hello", "jsonpath={.status.replicas}=2", 60)?;
    cluster.kubectl(&["scale", "deployment/hello", "--replicas=5"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    let report = load.stop()?;
    ensure!(report.failed == 0, "over rollout, SIGKILL and scale: {:#?}", report.failures);
    let answered: usize = report.answers.values().sum();
    println!("{answered} requests over a rolling update, a SIGKILL of the agent and scaling: 0 failed");
    Ok(())
}

/// The built-in server answers for cluster DNS when the Service is there.
fn names(cluster: &Cluster) -> Result<()> {
    apply(
        cluster,
        &[
            json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "kube-dns", "namespace": "kube-system"},
                "spec": {"clusterIP": "10.96.0.10", "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asks"},
                "spec": script("sleep 100000")}),
        ],
    )?;
    cluster.wait("pod/asks", "condition=Ready", 60)?;
    let expected = cluster.field("service/hello", "{.spec.clusterIP}")?;
    eventually(|| {
        let script = "getent hosts hello; getent ahosts stateful-0.stateful; \
            exec 3<>/dev/tcp/hello/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        let text = cluster.kubectl(&["exec", "asks", "--", "bash", "-c", script])?;
        ensure!(text.starts_with(&expected) && text.contains("hello from hello-"), "{text}");
        println!("{}", text.trim());
        Ok(())
    })
}

/// What the server has refused to the agents.
fn refusals(cluster: &Cluster) -> Result<()> {
    for number in AGENTS {
        let log = std::fs::read_to_string(cluster.node(number).log_file())?;
        let refused: Vec<&str> =
            log.lines().filter(|line| line.to_lowercase().contains("forbidden")).take(10).collect();
        ensure!(refused.is_empty(), "the agent on host {number} asked for what it may not:\n{refused:#?}");
    }
    Ok(())
}

#[test]
fn an_agent_of_an_upstream_cluster() -> Result<()> {
    let Some(upstream) = Upstream::from_environment()? else {
        println!("not run: KELP_UPSTREAM_BIN is not set");
        return Ok(());
    };
    let cluster = Cluster::up_upstream("t-join", 3, CLIENT, &upstream, &[])?;
    let (kelp, agnhost) = (kelp()?, Path::new(env!("CARGO_BIN_EXE_agnhost")));
    for number in AGENTS {
        import_images(&kelp, agnhost, &cluster.node(number).data_dir(), &cluster.layout().dir())?;
    }
    nodes(&cluster)?;
    kubectl(&cluster)?;
    changes(&cluster)?;
    controllers(&cluster)?;
    services(&cluster)?;
    names(&cluster)?;
    refusals(&cluster)?;
    cluster.kubectl(&["delete", "daemonset,statefulset,deployment,job", "--all", "--timeout=90s"])?;
    eventually(|| {
        let left = cluster.kubectl(&["get", "pods", "-o", "name"])?;
        ensure!(left.trim() == "pod/asks", "{left}");
        Ok(())
    })
}
