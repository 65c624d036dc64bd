//! Bad input gets one clear message and breaks nothing else.

use anyhow::{Context, Result, ensure};
use kelp_tests::Cluster;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

const CLIENT: &str = env!("CARGO_BIN_EXE_client");

fn pod(name: &str, image: &str, extra: &str) -> String {
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{{\"containers\":[{{\"name\":\"c\",\"image\":\"{image}\"{extra}}}]}}}}"
    )
}

#[test]
fn messages() -> Result<()> {
    let cluster = Cluster::up("t-bad", 1, CLIENT)?;

    let error = cluster.apply(&pod("Bad_Name", "kelp/hello:dev", "")).unwrap_or_else(|e| format!("{e:#}"));
    ensure!(error.contains("is invalid: metadata.name: Invalid value: \"Bad_Name\""), "{error}");
    let error = cluster.apply(&pod("x", "", "")).unwrap_or_else(|e| format!("{e:#}"));
    ensure!(error.contains("spec.containers[0].image: Required value"), "{error}");
    let error =
        cluster.apply(&pod("x", "kelp/hello:dev", ",\"imagge\":1")).unwrap_or_else(|e| format!("{e:#}"));
    ensure!(error.contains("unknown field \"spec.containers[0].imagge\""), "{error}");
    let error = cluster.kubectl_fails(&["get", "pod", "missing"])?;
    ensure!(error.contains("Error from server (NotFound): pods \"missing\" not found"), "{error}");

    network(&cluster)?;

    let reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    cluster.apply(&pod("never", "kelp/absent:1", ",\"imagePullPolicy\":\"Never\""))?;
    cluster.wait("pod/never", &format!("{reason}=ErrImageNeverPull"), 30)?;
    cluster.apply(&pod("absent", "kelp/absent:1", ""))?;
    cluster.kubectl(&["wait", "pod/absent", "--for=jsonpath={.status.phase}=Pending", "--timeout=30s"])?;
    let waiting = cluster
        .wait("pod/absent", &format!("{reason}=ErrImagePull"), 5)
        .or_else(|_| cluster.wait("pod/absent", &format!("{reason}=ImagePullBackOff"), 30));
    waiting?;

    let command = ",\"imagePullPolicy\":\"Never\",\"command\":[\"/no/such/program\"]";
    cluster.apply(&pod("command", "kelp/hello:dev", command))?;
    // As the real kubelet reports a program that cannot be started, whether the next try has begun or not.
    let started = |field: &str| {
        format!("jsonpath={{.status.containerStatuses[0].{field}.terminated.reason}}=StartError")
    };
    cluster
        .wait("pod/command", &started("lastState"), 60)
        .or_else(|_| cluster.wait("pod/command", &started("state"), 30))?;
    let message = "{.status.containerStatuses[0].lastState.terminated.exitCode} \
                   {.status.containerStatuses[0].lastState.terminated.message}";
    let said = cluster.field("pod/command", message)?;
    ensure!(
        said.starts_with("128 ") && said.contains("/no/such/program: no such file or directory"),
        "{said}"
    );

    // Nothing else broke.
    cluster.apply(&pod("good", "kelp/hello:dev", ",\"imagePullPolicy\":\"Never\""))?;
    cluster.wait("pod/good", "condition=Ready", 60)
}

/// What the dataplane could not serve is refused by the API already, in upstream's words.
fn network(cluster: &Cluster) -> Result<()> {
    let refused = |object: Value| cluster.apply(&object.to_string()).unwrap_or_else(|e| format!("{e:#}"));
    let service = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}})
    };
    cluster.apply(&service("first").to_string())?;
    let error = refused(service("second"));
    let expected = "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated";
    ensure!(error.contains(expected), "{error}");

    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "broken"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/99"}}]}]}});
    let error = refused(policy);
    let expected =
        "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0/99\": must be a valid CIDR value";
    ensure!(error.contains(expected), "{error}");

    let slice = |addresses: Vec<String>| {
        let endpoints: Vec<Value> =
            addresses.into_iter().map(|address| json!({"addresses": [address]})).collect();
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "many"},
            "addressType": "IPv4", "endpoints": endpoints, "ports": []})
    };
    let error = refused(slice((0..1001).map(|n| format!("10.244.{}.{}", n / 250, n % 250 + 1)).collect()));
    ensure!(error.contains("endpoints: Too many: 1001: must have at most 1000 items"), "{error}");
    let error = refused(slice(vec!["127.0.0.1".to_owned()]));
    ensure!(error.contains("endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\""), "{error}");
    Ok(())
}

/// A full disk: writes fail with one clear message, reads and pods go on, and writes work again once there is space.
#[test]
fn full_disk() -> Result<()> {
    let cluster = Cluster::up_after("t-full", 1, CLIENT, |layout| {
        let data = layout.node(1).data_dir();
        std::fs::create_dir_all(&data)?;
        let options = Some("size=96m");
        mount(Some("tmpfs"), &data, Some("tmpfs"), MsFlags::empty(), options).context("mount a small disk")
    })?;
    cluster.apply(&pod("good", "kelp/hello:dev", ",\"imagePullPolicy\":\"Never\""))?;
    cluster.wait("pod/good", "condition=Ready", 60)?;
    cluster.kubectl(&["create", "configmap", "before", "--from-literal=a=b"])?;

    let filler = cluster.node(1).data_dir().join("filler");
    fill(&filler)?;
    // The store may have room left in blocks it already owns.
    let value = format!("--from-literal=a={}", "x".repeat(100_000));
    let mut error = None;
    for number in 0..2000 {
        match cluster.kubectl(&["create", "configmap", &format!("during-{number}"), &value]) {
            Ok(_) => {}
            Err(refused) => {
                error = Some(format!("{refused:#}"));
                break;
            }
        }
    }
    let error = error.context("200 MB were written to a full disk")?;
    ensure!(error.contains("no space left for the store"), "{error}");
    ensure!(cluster.kubectl(&["get", "configmap", "before"])?.contains("before"), "a read failed");
    ensure!(cluster.field("pod/good", "{.status.phase}")? == "Running", "the pod suffered");

    std::fs::remove_file(&filler)?;
    cluster.kubectl(&["create", "configmap", "after", "--from-literal=a=b"])?;
    cluster.kubectl(&["delete", "pod", "good", "--timeout=60s"])?;
    Ok(())
}

/// Writes a file until the disk is full.
fn fill(path: &std::path::Path) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path)?;
    for size in [1 << 20, 4096] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
    Ok(())
}
