//! One command brings up a real cluster; the real kubectl drives it; its services answer through eBPF.

use anyhow::{Context, Result, ensure};
use kelp_tests::{Cluster, Report, Snapshot, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CLIENT: &str = env!("CARGO_BIN_EXE_client");

fn deployment(cluster: &Cluster, replicas: u32) -> Result<()> {
    let manifest =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/samples/hello.yaml"))?;
    cluster.apply(&manifest.replace("replicas: 3", &format!("replicas: {replicas}")))?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    Ok(())
}

/// Names of the sample workload's pods that are not being deleted.
fn pods(cluster: &Cluster) -> Result<Vec<String>> {
    let list = cluster.kubectl(&["get", "pods", "-l", "app=hello", "-o", "json"])?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let items = list["items"].as_array().context("a list has items")?;
    let metadata = items.iter().map(|pod| &pod["metadata"]).filter(|m| m["deletionTimestamp"].is_null());
    Ok(metadata.filter_map(|metadata| metadata["name"].as_str()).map(str::to_owned).collect())
}

fn cluster_address(cluster: &Cluster, service: &str) -> Result<String> {
    Ok(format!("{}:80", cluster.field(&format!("service/{service}"), "{.spec.clusterIP}")?))
}

fn get(cluster: &Cluster, node: u32, address: &str, count: u32) -> Result<Report> {
    cluster.client(node, &["get", address, "--count", &count.to_string(), "--pause", "0"])?.finish()
}

/// Sends requests until `pods` different pods have answered, for at most 30 s: endpoints follow readiness, not the
/// other way round.
fn get_from_all(cluster: &Cluster, node: u32, address: &str, pods: usize) -> Result<Report> {
    let distinct = pods.to_string();
    cluster.client(node, &["get", address, "--seconds", "30", "--distinct", &distinct])?.finish()
}

fn no_failure(report: &Report, what: &str) -> Result<()> {
    ensure!(report.failed == 0, "{what}: {} requests failed: {:#?}", report.failed, report.failures);
    ensure!(!report.answers.is_empty(), "{what}: no request was made");
    Ok(())
}

/// The three pods answer at the ClusterIP and the NodePort, over TCP; an address without a service refuses.
#[test]
fn service_addresses() -> Result<()> {
    let cluster = Cluster::up("t-service", 1, CLIENT)?;
    deployment(&cluster, 3)?;
    let expected: Vec<String> = pods(&cluster)?.iter().map(|pod| format!("hello from {pod}")).collect();
    ensure!(expected.len() == 3, "{expected:?}");
    let node_port = format!("{}:30080", cluster.node(1).ipv4());
    for address in [cluster_address(&cluster, "hello")?, node_port, "127.0.0.1:30080".into()] {
        let report = get_from_all(&cluster, 1, &address, expected.len())?;
        no_failure(&report, &address)?;
        let mut expected = expected.clone();
        expected.sort();
        let answered: Vec<String> = report.answers.keys().cloned().collect();
        ensure!(answered == expected, "{address}: {answered:?} answered, expected {expected:?}");
    }
    for unknown in ["10.96.250.250:80", "10.96.0.1:81"] {
        let report = get(&cluster, 1, unknown, 1)?;
        ensure!(report.failed == 1, "{unknown} answered: {report:?}");
        ensure!(report.failures.iter().all(|f| f.contains("refused")), "{unknown}: {:?}", report.failures);
    }
    Ok(())
}

/// create, expose, scale, delete a pod, restart, delete: traffic follows and no request fails.
#[test]
fn workload_changes_fail_no_request() -> Result<()> {
    let cluster = Cluster::up("t-workload", 1, CLIENT)?;
    deployment(&cluster, 2)?;
    cluster.kubectl(&["create", "service", "clusterip", "front", "--tcp=80:8080"])?;
    cluster.kubectl(&["patch", "service", "front", "-p", r#"{"spec":{"selector":{"app":"hello"}}}"#])?;
    cluster.kubectl(&[
        "expose",
        "deployment",
        "hello",
        "--name=exposed",
        "--port=80",
        "--target-port=8080",
    ])?;
    let address = cluster_address(&cluster, "exposed")?;
    no_failure(&get(&cluster, 1, &address, 20)?, "exposed service")?;
    no_failure(&get(&cluster, 1, &cluster_address(&cluster, "front")?, 20)?, "created service")?;

    let load = cluster.client(1, &["get", &address, "--seconds", "120"])?;
    cluster.kubectl(&["scale", "deployment", "hello", "--replicas=4"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    let before = pods(&cluster)?;
    ensure!(before.len() == 4, "after scaling up: {before:?}");
    cluster.kubectl(&["delete", "pod", before.first().context("no pod")?, "--timeout=60s"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    cluster.kubectl(&["rollout", "restart", "deployment/hello"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=90s"])?;
    cluster.kubectl(&["scale", "deployment", "hello", "--replicas=2"])?;
    cluster.wait("deployment/hello", "jsonpath={.status.replicas}=2", 60)?;
    let report = load.stop()?;
    no_failure(&report, "during scale, delete and restart")?;
    let after = pods(&cluster)?;
    ensure!(after.iter().all(|pod| !before.contains(pod)), "restart kept pods: {before:?}, {after:?}");
    ensure!(
        after.iter().any(|pod| report.answers.contains_key(&format!("hello from {pod}"))),
        "no new pod answered: {report:?}"
    );

    cluster.kubectl(&["delete", "deployment", "hello", "--timeout=60s"])?;
    cluster.kubectl(&["wait", "pods", "-l", "app=hello", "--for=delete", "--timeout=60s"])?;
    let report = get(&cluster, 1, &address, 1)?;
    ensure!(report.failures.iter().any(|f| f.contains("refused")), "without pods: {report:?}");
    Ok(())
}

/// SIGKILL of `kelp` during a transfer loses no byte, new connections go on, and no container restarts.
#[test]
fn agent_sigkill() -> Result<()> {
    let cluster = Cluster::up("t-sigkill", 1, CLIENT)?;
    deployment(&cluster, 3)?;
    let address = cluster_address(&cluster, "hello")?;
    let starts = || {
        cluster.kubectl(&[
            "get", "pods", "-o",
            r#"jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}"#,
        ])
    };
    let before = starts()?;
    let transfer = cluster.client(1, &["transfer", &address, "--bytes", "8000000", "--rate", "1000000"])?;
    let load = cluster.client(1, &["get", &address, "--seconds", "60"])?;
    for _ in 0..2 {
        let pid = cluster.kelp_pid(1)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill kelp")?;
        // The connection waits in the supervisor's socket until kelp accepts again: nobody is refused. On a slow machine
        // that is longer than kubectl waits for a handshake.
        eventually("an answer", || {
            let answer = cluster.kubectl(&["get", "nodes", "--request-timeout=60s"]);
            let is_late = |error: &anyhow::Error| format!("{error:#}").contains("TLS handshake timeout");
            Ok(Some(answer).filter(|answer| !answer.as_ref().is_err_and(is_late)))
        })??;
        ensure!(cluster.kelp_pid(1)? != pid, "kelp was not restarted");
    }
    let report = transfer.finish()?;
    ensure!(report.failed == 0 && report.bytes == 8_000_000, "transfer: {report:?}");
    no_failure(&load.stop()?, "during the kills")?;
    ensure!(starts()? == before, "containers changed:\n{before}\n{}", starts()?);
    // It still works: a new pod starts and an old one goes.
    cluster.kubectl(&["scale", "deployment", "hello", "--replicas=4"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    Ok(())
}

/// Two hosts: pods on both, and the service answers from either.
#[test]
fn two_nodes() -> Result<()> {
    let cluster = Cluster::up("t-nodes", 2, CLIENT)?;
    deployment(&cluster, 6)?;
    let nodes = cluster.kubectl(&[
        "get",
        "pods",
        "-o",
        r#"jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}"#,
    ])?;
    for number in [1, 2] {
        ensure!(nodes.contains(&cluster.node(number).name()), "no pod on host {number}: {nodes}");
    }
    let names = pods(&cluster)?;
    for number in [1, 2] {
        let node_port = format!("{}:30080", cluster.node(3 - number).ipv4());
        for address in [cluster_address(&cluster, "hello")?, node_port] {
            let report = get_from_all(&cluster, number, &address, names.len())?;
            no_failure(&report, &format!("{address} from host {number}"))?;
            ensure!(
                report.answers.len() == names.len(),
                "{address} from host {number}: {:?}",
                report.answers
            );
        }
    }
    Ok(())
}

/// A cluster that is taken down leaves nothing behind.
#[test]
fn down_leaves_no_trace() -> Result<()> {
    let before = Snapshot::take()?;
    let cluster = Cluster::up("t-trace", 1, CLIENT)?;
    deployment(&cluster, 3)?;
    ensure!(
        !Snapshot::take()?.added_since(&before).is_empty(),
        "the snapshot sees nothing of a running cluster"
    );
    drop(cluster);
    let left = Snapshot::take()?.added_since(&before);
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}
