//! A node that runs out of disk, for real: pods end with upstream's words until it has enough, and what says so comes and
//! goes. Its disk is a small file system of its own.

use anyhow::{Context, Result, ensure};
use kelp_tests::kubelet::{BUSYBOX, import_images};
use kelp_tests::{Cluster, eventually};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const NAME: &str = "t-eviction";
const NODE: &str = "t-eviction-1";
/// The node's disk, and how much of it must stay free.
const DISK: &str = "size=768m";
const CONFIG: &str = "
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
evictionHard: {nodefs.available: 256Mi}
evictionPressureTransitionPeriod: 3s
";

/// The node's data directory on a tmpfs of its own.
struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        while umount2(&self.0, MntFlags::MNT_DETACH).is_ok() {}
    }
}

fn object(cluster: &Cluster, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(&["get", name, "-o", "json"])?)?)
}

fn pod(name: &str, script: &str) -> String {
    let script = format!("{script}; trap 'exit 3' TERM; while true; do sleep 0.1; done");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "d", "mountPath": "/d"}]}],
        "volumes": [{"name": "d", "emptyDir": {}}]}})
    .to_string()
}

/// Status of the node's condition, and whether it has the taint.
fn pressure(cluster: &Cluster) -> Result<(String, bool)> {
    let node = object(cluster, &format!("node/{NODE}"))?;
    let conditions = node["status"]["conditions"].as_array().context("conditions")?;
    let own = conditions.iter().find(|c| c["type"] == "DiskPressure").context("DiskPressure")?;
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let tainted = taints.iter().any(|t| t["key"] == "node.kubernetes.io/disk-pressure");
    Ok((own["status"].as_str().unwrap_or_default().to_owned(), tainted))
}

#[test]
fn a_node_out_of_disk_ends_the_pod_that_fills_it() -> Result<()> {
    let layout = xtask::sandbox::Layout::new(NAME)?;
    let config = layout.dir().join("config.yaml");
    let arguments = vec!["--config".to_owned(), config.to_string_lossy().into_owned()];
    let mut disk = None;
    let cluster = Cluster::up_with(NAME, 1, CLIENT, arguments, |layout| {
        let data_dir = layout.node(1).data_dir();
        std::fs::create_dir_all(&data_dir).context("make the data directory")?;
        mount(Some("tmpfs"), &data_dir, Some("tmpfs"), MsFlags::empty(), Some(DISK))
            .context("mount the disk")?;
        disk = Some(Disk(data_dir));
        std::fs::write(layout.dir().join("config.yaml"), CONFIG)?;
        Ok(())
    })?;
    let kelp = std::env::var_os("KELP_BIN")
        .map_or_else(|| xtask::build::target_dir().join("release/kelp"), PathBuf::from);
    let agnhost = Path::new(env!("CARGO_BIN_EXE_agnhost"));
    import_images(&kelp, agnhost, &cluster.node(1).data_dir(), layout.dir().as_path())?;
    cluster.wait(&format!("node/{NODE}"), "condition=Ready", 60)?;
    ensure!(pressure(&cluster)? == ("False".to_owned(), false), "{:?}", pressure(&cluster)?);

    cluster.apply(&pod("modest", "true"))?;
    cluster.wait("pod/modest", "condition=Ready", 60)?;
    cluster.apply(&pod("greedy", "head -c 500m /dev/zero > /d/f"))?;
    let greedy = eventually("the eviction", || {
        let pod = object(&cluster, "pod/greedy")?;
        Ok((pod["status"]["phase"] == "Failed").then_some(pod))
    })?;
    let status = &greedy["status"];
    ensure!(status["reason"] == "Evicted", "{status}");
    let message = status["message"].as_str().unwrap_or_default();
    let start = "The node was low on resource: ephemeral-storage. Threshold quantity: 256Mi, available: ";
    ensure!(message.starts_with(start), "{message}");
    ensure!(message.contains("Container c was using "), "{message}");
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let disrupted =
        conditions.iter().find(|c| c["type"] == "DisruptionTarget").context("no DisruptionTarget")?;
    ensure!(disrupted["reason"] == "TerminationByKubelet", "{disrupted}");
    let events = cluster.kubectl(&["events", "--for", "pod/greedy"])?;
    ensure!(events.contains("Evicted"), "{events}");
    // It was said, and while it lasts nothing new may come.
    eventually("the taint", || Ok((pressure(&cluster)? == ("True".to_owned(), true)).then_some(())))
        .or_else(|error| told(&cluster).then_some(()).ok_or(error))?;
    // The pod's data is gone with it, and with it the pressure.
    eventually("the end of the pressure", || {
        Ok((pressure(&cluster)? == ("False".to_owned(), false)).then_some(()))
    })?;
    ensure!(cluster.field("pod/modest", "{.status.phase}")? == "Running", "the modest pod went as well");
    ensure!(told(&cluster), "the node did not tell of its pressure");
    cluster.apply(&pod("later", "true"))?;
    cluster.wait("pod/later", "condition=Ready", 60)?;
    drop(cluster);
    drop(disk);
    Ok(())
}

/// Whether events say that the pressure came.
fn told(cluster: &Cluster) -> bool {
    let events =
        cluster.kubectl(&["get", "events", "-A", "-o", "jsonpath={.items[*].reason}"]).unwrap_or_default();
    ["NodeHasDiskPressure", "EvictionThresholdMet"].iter().all(|reason| events.contains(reason))
}
