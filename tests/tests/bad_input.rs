//! Bad input gets one clear message and breaks nothing else.

use anyhow::{Result, ensure};
use kelp_tests::Cluster;

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
    let exit_code = "jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}";
    cluster.wait("pod/command", &format!("{exit_code}=127"), 60).or_else(|_| {
        cluster.wait(
            "pod/command",
            "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}=127",
            30,
        )
    })?;

    // Nothing else broke.
    cluster.apply(&pod("good", "kelp/hello:dev", ",\"imagePullPolicy\":\"Never\""))?;
    cluster.wait("pod/good", "condition=Ready", 60)
}
