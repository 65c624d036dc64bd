//! How full the volumes of pods are, for `/stats/summary`.

use super::host::{disk_use, file_system};
use crate::config::AgentConfig;
use crate::csi::{Csi, Usage};
use crate::pod::volumes::claims::{self, Claimed};
use k8s_openapi::api::core::v1::{Pod, Volume};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What drivers told of the volumes of pods, by UID and the volume's own name.
pub(super) type Told = BTreeMap<String, BTreeMap<String, Usage>>;

/// Asks the drivers of all pods' volumes.
pub(super) async fn ask(csi: Option<&Csi>, config: &AgentConfig, pods: impl Iterator<Item = String>) -> Told {
    let Some(csi) = csi else { return Told::new() };
    let asked = pods.map(|uid| async move {
        let usage = csi.usage(&config.pod_dir(&uid)).await;
        (uid, usage)
    });
    futures::future::join_all(asked).await.into_iter().collect()
}

/// As a driver told it.
fn of_driver(usage: &Usage, time: jiff::Timestamp) -> Value {
    let ([free, all, used], [inodes_free, inodes, inodes_used]) = (usage.bytes, usage.inodes);
    json!({
        "time": super::host::at(time),
        "availableBytes": free,
        "capacityBytes": all,
        "usedBytes": used,
        "inodesFree": inodes_free,
        "inodes": inodes,
        "inodesUsed": inodes_used,
    })
}

/// One volume; `None`: nothing is told about its kind, as upstream has it.
fn one(
    pod_dir: &Path,
    volume: &Volume,
    claimed: Option<&Claimed>,
    told: Option<&BTreeMap<String, Usage>>,
    time: jiff::Timestamp,
) -> Option<Value> {
    let own_name = claimed.map_or(volume.name.as_str(), Claimed::name);
    if let Some(usage) = told.and_then(|t| t.get(own_name)) {
        return Some(of_driver(usage, time));
    }
    let local = claimed.and_then(|c| c.volume.spec.as_ref()?.local.as_ref());
    if let Some(local) = local {
        let mounted =
            pod_dir.parent()?.parent()?.join("plugins/kubernetes.io/local-volume/mounts").join(own_name);
        let at = if mounted.exists() { mounted } else { local.path.clone().into() };
        return at.is_dir().then(|| file_system(&at, time, None));
    }
    let is_own = volume.empty_dir.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some();
    let at = pod_dir.join("volumes").join(&volume.name);
    (is_own && at.is_dir()).then(|| file_system(&at, time, Some(disk_use(&at))))
}

/// The volumes of a pod.
pub(super) fn volumes(config: &AgentConfig, pod: &Pod, told: &Told, time: jiff::Timestamp) -> Vec<Value> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let dir = config.pod_dir(uid);
    let known = claims::load(&dir);
    let mut found = Vec::new();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let claimed = known.get(&volume.name);
        let Some(mut stats) = one(&dir, volume, claimed, told.get(uid), time) else { continue };
        stats["name"] = json!(volume.name);
        let claim = claimed.and_then(|c| c.volume.spec.as_ref()?.claim_ref.as_ref());
        if let Some(claim) = claim {
            stats["pvcRef"] = json!({"name": claim.name, "namespace": claim.namespace});
        }
        found.push(stats);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_told_by_driver_disk_and_claim() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = AgentConfig::new("n", vec![]);
        config.data_dir = dir.path().to_owned();
        let pod_dir = config.pod_dir("u");
        std::fs::create_dir_all(pod_dir.join("volumes/scratch")).unwrap();
        std::fs::write(pod_dir.join("volumes/scratch/f"), vec![1; 8192]).unwrap();
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": [], "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "host", "hostPath": {"path": "/tmp"}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]}}))
            .unwrap();
        let volume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {
            "csi": {"driver": "d", "volumeHandle": "h"}, "claimRef": {"name": "c", "namespace": "ns"}}}))
        .unwrap();
        let claimed = Claimed { volume, read_only: false };
        claims::save(&pod_dir, &claims::Known::from([("data".to_owned(), claimed)])).unwrap();
        let usage = Usage { bytes: [6, 10, 4], inodes: [1, 3, 2] };
        let told = Told::from([("u".to_owned(), BTreeMap::from([("pv".to_owned(), usage)]))]);
        let found = volumes(&config, &pod, &told, jiff::Timestamp::UNIX_EPOCH);
        let names: Vec<_> = found.iter().map(|v| v["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["scratch", "data"]);
        assert!(found[0]["usedBytes"].as_u64().unwrap() >= 8192);
        assert_eq!((&found[1]["usedBytes"], &found[1]["inodes"]), (&json!(4), &json!(3)));
        assert_eq!(found[1]["pvcRef"], json!({"name": "c", "namespace": "ns"}));
        // Without an answer of its driver nothing is said.
        assert_eq!(volumes(&config, &pod, &Told::new(), jiff::Timestamp::UNIX_EPOCH).len(), 1);
    }
}
