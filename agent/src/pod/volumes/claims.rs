//! Volumes behind claims.
//!
//! A node may read the claims and volumes of its own pods and follow none, so a claim that is not bound yet is asked for
//! again. What was found is kept in the pod's directory: an agent that starts anew must know what to take down, and a pod that
//! runs goes on when its claim is being deleted.

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kelp_model::scheduling::LabelMap;
use kelp_model::volume::pods::{claim_of, is_made_for};
use kelp_model::volume::{matches_node, volume_name};
use kube::Api;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// Where a pod's directory says what its claims are bound to.
const FILE: &str = "claims.json";

/// The volume behind a claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claimed {
    /// The volume.
    pub volume: PersistentVolume,
    /// The pod may only read it.
    pub read_only: bool,
}

impl Claimed {
    /// Name of the volume.
    #[must_use]
    pub fn name(&self) -> &str {
        self.volume.metadata.name.as_deref().unwrap_or_default()
    }

    /// Whether it is a block device, not a file system.
    #[must_use]
    pub fn is_block(&self) -> bool {
        self.volume.spec.as_ref().and_then(|s| s.volume_mode.as_deref()) == Some("Block")
    }

    /// Whether one pod at a time may use it.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        let modes = self.volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
        modes == ["ReadWriteOncePod"]
    }

    /// Whether the node can reach it.
    #[must_use]
    pub fn is_reachable(&self, node: &Node) -> bool {
        let labels = LabelMap::from_api(node.metadata.labels.as_ref());
        matches_node(&self.volume, node.metadata.name.as_deref().unwrap_or_default(), &labels)
    }
}

/// What a pod's claims were found to be bound to, by the name of the pod's volume.
pub type Known = BTreeMap<String, Claimed>;

/// What is known from before.
#[must_use]
pub fn load(dir: &Path) -> Known {
    let known = fs::read(dir.join(FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    known.unwrap_or_default()
}

/// Keeps what is known. It is on the disk before anything is mounted.
///
/// # Errors
/// It cannot be written.
pub fn save(dir: &Path, known: &Known) -> io::Result<()> {
    use std::io::Write;
    fs::create_dir_all(dir)?;
    let temporary = dir.join(format!("{FILE}.tmp"));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(known)?)?;
    file.sync_data()?;
    fs::rename(temporary, dir.join(FILE))
}

/// Whether containers mount a volume of the pod, and whether they use it as a device.
fn uses(pod: &Pod, volume: &str) -> (bool, bool) {
    let containers = pod.spec.iter().flat_map(kelp_model::pod::spec::containers);
    let mut found = (false, false);
    for (_, container) in containers {
        found.0 |= container.volume_mounts.iter().flatten().any(|m| m.name == volume);
        found.1 |= container.volume_devices.iter().flatten().any(|d| d.name == volume);
    }
    found
}

/// Finds the volume behind a claim of the pod; `None`: it is another kind of volume.
///
/// # Errors
/// Why the pod has to wait, in upstream's words.
pub async fn find(
    client: Option<&kube::Client>,
    pod: &Pod,
    volume: &Volume,
) -> Result<Option<Claimed>, String> {
    let meta = &pod.metadata;
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let (namespace, pod_name) = (text(&meta.namespace), text(&meta.name));
    let Some((name, made)) = claim_of(&pod_name, volume) else { return Ok(None) };
    let found = ask(client, pod, volume, (&namespace, &name), made).await;
    found.map(Some).map_err(|why| format!("error processing PVC {namespace}/{name}: {why}"))
}

async fn ask(
    client: Option<&kube::Client>,
    pod: &Pod,
    volume: &Volume,
    (namespace, name): (&str, &str),
    made: bool,
) -> Result<Claimed, String> {
    let client = client.ok_or("there is no API server to ask")?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let claim = claims.get(name).await;
    let claim = claim.map_err(|e| format!("failed to fetch PVC from API server: {}", said(&e)))?;
    if made {
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        is_made_for(namespace, &text(&pod.metadata.name), &text(&pod.metadata.uid), &claim)?;
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".to_owned());
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        return Err("PVC is not bound".to_owned());
    }
    let bound_to = volume_name(&claim);
    if bound_to.is_empty() {
        return Err("PVC has empty pvc.Spec.VolumeName".to_owned());
    }
    let found = Api::<PersistentVolume>::all(client.clone()).get(bound_to).await;
    let mut found =
        found.map_err(|e| format!("failed to get PV {bound_to} from API server: {}", said(&e)))?;
    let reference = found.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let Some(uid) = reference.map(|r| r.uid.clone().unwrap_or_default()) else {
        return Err(format!(
            "found PV object {bound_to} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        ));
    };
    let own = claim.metadata.uid.as_deref().unwrap_or_default();
    if uid != own {
        return Err(format!(
            "found PV object {bound_to} but its pv.Spec.ClaimRef.UID {uid} does not point to claim.UID {own}"
        ));
    }
    found.metadata.managed_fields = None;
    let read_only = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only).unwrap_or(false);
    let claimed = Claimed { volume: found, read_only };
    match (uses(pod, &volume.name), claimed.is_block()) {
        ((true, _), true) => {
            Err(format!("volume {} has volumeMode Block, but is specified in volumeMounts", volume.name))
        }
        ((_, true), false) => Err(format!(
            "volume {} has volumeMode Filesystem, but is specified in volumeDevices",
            volume.name
        )),
        _ => Ok(claimed),
    }
}

/// What the API server said, without what the client adds.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// An API server with one claim and one volume.
    fn server(claim: Value, volume: Value) -> kube::Client {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let object = match request.uri().path() {
                "/api/v1/namespaces/n/persistentvolumeclaims/c" => claim.clone(),
                "/api/v1/persistentvolumes/v" => volume.clone(),
                _ => Value::Null,
            };
            async move {
                let (status, body) = match object.is_null() {
                    false => (200, object),
                    true => (
                        404,
                        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                        "reason": "NotFound", "message": "persistentvolumeclaims \"c\" not found"}),
                    ),
                };
                let body = kube::client::Body::from(body.to_string().into_bytes());
                let response = http::Response::builder().status(status).body(body);
                Ok::<_, std::convert::Infallible>(response.unwrap())
            }
        });
        kube::Client::new(service, "default")
    }

    fn pod(device: bool) -> Pod {
        let uses = if device { "volumeDevices" } else { "volumeMounts" };
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "containers": [{"name": "c", uses: [{"name": "d", "mountPath": "/d", "devicePath": "/d"}]}],
            "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}}]}}))
        .unwrap()
    }

    fn claim() -> Value {
        json!({"metadata": {"name": "c", "namespace": "n", "uid": "1"}, "spec": {"volumeName": "v"},
            "status": {"phase": "Bound"}})
    }

    fn volume() -> Value {
        json!({"metadata": {"name": "v"}, "spec": {"claimRef": {"name": "c", "namespace": "n", "uid": "1"},
            "accessModes": ["ReadWriteOncePod"], "local": {"path": "/x"}}})
    }

    async fn found(pod: &Pod, claim: Value, volume: Value) -> Result<Claimed, String> {
        let of_pod = &pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
        let client = server(claim, volume);
        find(Some(&client), pod, of_pod).await.map(Option::unwrap)
    }

    #[tokio::test]
    async fn a_pod_waits_until_its_claim_is_bound() {
        let p = pod(false);
        let why = async |claim: Value, volume: Value| {
            let error = found(&p, claim, volume).await.unwrap_err();
            error.strip_prefix("error processing PVC n/c: ").unwrap().to_owned()
        };
        assert_eq!(
            why(Value::Null, Value::Null).await,
            "failed to fetch PVC from API server: persistentvolumeclaims \"c\" not found"
        );
        let mut c = claim();
        c["status"]["phase"] = "Pending".into();
        assert_eq!(why(c.clone(), volume()).await, "PVC is not bound");
        c["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(why(c, volume()).await, "PVC is being deleted");
        let mut v = volume();
        v["spec"]["claimRef"]["uid"] = "2".into();
        assert!(why(claim(), v.clone()).await.ends_with("UID 2 does not point to claim.UID 1"));
        v["spec"]["claimRef"] = Value::Null;
        assert!(why(claim(), v).await.contains("nil pv.Spec.ClaimRef"));
        let mut v = volume();
        v["spec"]["volumeMode"] = "Block".into();
        assert_eq!(
            why(claim(), v.clone()).await,
            "volume d has volumeMode Block, but is specified in volumeMounts"
        );
        assert!(found(&pod(true), claim(), v).await.unwrap().is_block());
        let claimed = found(&p, claim(), volume()).await.unwrap();
        assert!(claimed.read_only && claimed.is_exclusive() && claimed.name() == "v");
    }

    #[test]
    fn what_was_found_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_empty());
        let claimed = Claimed { volume: serde_json::from_value(volume()).unwrap(), read_only: true };
        let known = Known::from([("d".to_owned(), claimed)]);
        save(dir.path(), &known).unwrap();
        assert_eq!(load(dir.path()), known);
    }
}
