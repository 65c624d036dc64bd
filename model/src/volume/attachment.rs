//! Attachments of volumes to nodes.

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

/// Taint of a node that will not come back as it was: its volumes are taken away without asking it.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long a node that is not healthy may keep a volume that no pod of it needs (upstream's `maxWaitForUnmountDuration`).
pub const UNMOUNT: Duration = Duration::from_secs(6 * 60);

/// Name of the VolumeAttachment of a volume (by the driver's handle) to a node; `sha256` is the hash function.
///
/// Both the attach-detach controller and the node find the object by this name. Source: upstream's CSI plugin, SHA-256 of
/// handle, driver and node without separators.
#[must_use]
pub fn name(handle: &str, driver: &str, node: &str, sha256: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let sum = sha256(format!("{handle}{driver}{node}").as_bytes());
    sum.iter().fold("csi-".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Unique name of a volume of a driver, as node status lists it.
#[must_use]
pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// Whether volumes of a driver must be attached; one that says nothing about itself needs it.
#[must_use]
pub fn is_required(driver: Option<&CSIDriver>) -> bool {
    driver.is_none_or(|d| d.spec.attach_required.unwrap_or(true))
}

/// A volume that a node is to have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Driver.
    pub driver: String,
    /// The driver's name of the volume.
    pub handle: String,
    /// The PersistentVolume.
    pub volume: String,
    /// It may be on several nodes at once.
    pub shared: bool,
}

/// The attachment of a volume that a bound claim gives a pod; `None`: nothing has to be attached.
#[must_use]
pub fn wanted(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    driver: impl Fn(&str) -> Option<CSIDriver>,
) -> Option<Wanted> {
    if !super::is_fully_bound(claim) || !super::is_bound_to(volume, claim) {
        return None;
    }
    let spec = volume.spec.as_ref()?;
    let csi = spec.csi.as_ref()?;
    let shared = |mode: &String| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany");
    is_required(driver(&csi.driver).as_ref()).then(|| Wanted {
        driver: csi.driver.clone(),
        handle: csi.volume_handle.clone(),
        volume: volume.metadata.name.clone().unwrap_or_default(),
        shared: spec.access_modes.iter().flatten().any(shared),
    })
}

/// A step towards what a node is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the attachment.
    Attach(Wanted),
    /// The volume is on other nodes and may be on one only.
    Wait(Wanted, Vec<String>),
    /// Take the attachment of this name away.
    Detach(String),
    /// The attachment of this name is not needed, but the node has the volume in use.
    InUse(String),
}

/// Whether a node was declared to be out of service.
#[must_use]
pub fn is_out_of_service(node: &Node) -> bool {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE)
}

/// Whether a node is ready.
#[must_use]
pub fn is_healthy(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.filter(|c| c.type_ == "Ready").any(|c| c.status == "True")
}

/// How much longer a node may keep a volume that it has in use and does not need: since `waited`. `None`: until it lets go,
/// which is so while it is healthy, and always without a `limit` for nodes that are not.
#[must_use]
pub fn patience(node: &Node, waited: Duration, limit: Option<Duration>) -> Option<Duration> {
    match () {
        () if is_out_of_service(node) => Some(Duration::ZERO),
        () if is_healthy(node) => None,
        () => limit.map(|limit| limit.saturating_sub(waited)),
    }
}

/// What is to be done for a node: `wanted` by its pods, `attachments` of all nodes, volumes (unique names) that the node
/// says it has `in_use`; with `gone` the node is not there any more and uses nothing. `handle` gives a volume's handle by its
/// name.
#[must_use]
pub fn steps<'a>(
    node: &str,
    wanted: &BTreeSet<Wanted>,
    attachments: impl Iterator<Item = &'a VolumeAttachment>,
    handle: impl Fn(&str) -> Option<(String, String)>,
    in_use: &BTreeSet<String>,
    gone: bool,
) -> Vec<Step> {
    let mut here: BTreeMap<&str, &VolumeAttachment> = BTreeMap::new();
    let mut elsewhere: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for attachment in attachments {
        let Some(volume) = attachment.spec.source.persistent_volume_name.as_deref() else { continue };
        if attachment.spec.node_name == node {
            here.insert(volume, attachment);
        } else {
            elsewhere.entry(volume).or_default().push(attachment.spec.node_name.clone());
        }
    }
    let mut steps = Vec::new();
    for want in wanted.iter().filter(|_| !gone) {
        match (here.get(want.volume.as_str()), elsewhere.get(want.volume.as_str())) {
            (Some(_), _) => {}
            (None, Some(nodes)) if !want.shared => {
                let mut nodes = nodes.clone();
                nodes.sort_unstable();
                steps.push(Step::Wait(want.clone(), nodes));
            }
            _ => steps.push(Step::Attach(want.clone())),
        }
    }
    for (volume, attachment) in here {
        let needed = !gone && wanted.iter().any(|w| w.volume == volume);
        // What is attached to no volume that there is was not made here, as upstream: it is somebody else's.
        let Some((driver, handle)) = handle(volume) else { continue };
        // A volume that the node still has mounted is not pulled away from under it.
        let used = !gone && in_use.contains(&unique_name(&driver, &handle));
        if !needed && attachment.metadata.deletion_timestamp.is_none() {
            let name = attachment.metadata.name.clone().unwrap_or_default();
            steps.push(if used { Step::InUse(name) } else { Step::Detach(name) });
        }
    }
    steps
}

/// Keys (`namespace/name`) of the claims that a pod uses.
#[must_use]
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let meta = &pod.metadata;
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let claims = volumes.filter_map(|v| super::pods::claim_of(&text(&meta.name), v));
    claims.map(|(name, _)| format!("{}/{name}", text(&meta.namespace))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn want(volume: &str, shared: bool) -> Wanted {
        Wanted { driver: "d".into(), handle: format!("h-{volume}"), volume: volume.into(), shared }
    }

    fn attached(name: &str, volume: &str, node: &str) -> VolumeAttachment {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"attacher": "d", "nodeName": node,
            "source": {"persistentVolumeName": volume}}}))
        .expect("attachment")
    }

    #[test]
    fn volumes_follow_the_pods() {
        let handle = |volume: &str| Some(("d".to_owned(), format!("h-{volume}")));
        let plan = |wanted: &[Wanted], present: &[VolumeAttachment], in_use: &[&str], gone: bool| {
            let in_use = in_use.iter().map(|s| (*s).to_owned()).collect();
            steps("n1", &wanted.iter().cloned().collect(), present.iter(), handle, &in_use, gone)
        };
        let a = want("a", false);
        assert_eq!(plan(std::slice::from_ref(&a), &[], &[], false), [Step::Attach(a.clone())]);
        let here = attached("x", "a", "n1");
        assert_eq!(plan(std::slice::from_ref(&a), std::slice::from_ref(&here), &[], false), []);
        let there = attached("y", "a", "n2");
        assert_eq!(
            plan(std::slice::from_ref(&a), std::slice::from_ref(&there), &[], false),
            [Step::Wait(a.clone(), vec!["n2".into()])]
        );
        let shared = want("a", true);
        assert_eq!(
            plan(std::slice::from_ref(&shared), std::slice::from_ref(&there), &[], false),
            [Step::Attach(shared.clone())]
        );
        assert_eq!(
            plan(&[], std::slice::from_ref(&here), &["kubernetes.io/csi/d^h-a"], false),
            [Step::InUse("x".into())]
        );
        assert_eq!(plan(&[], std::slice::from_ref(&here), &[], false), [Step::Detach("x".into())]);
        assert_eq!(
            plan(&[a], std::slice::from_ref(&here), &["kubernetes.io/csi/d^h-a"], true),
            [Step::Detach("x".into())]
        );
        let strange =
            steps("n1", &BTreeSet::new(), std::iter::once(&here), |_| None, &BTreeSet::new(), false);
        assert_eq!(strange, [], "the attachment of a volume that is none is not ours");
    }

    #[test]
    fn a_node_that_is_lost_does_not_keep_its_volumes() {
        let node = |ready: &str, taint: &str| -> Node {
            serde_json::from_value(json!({"spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("node")
        };
        let minute = Duration::from_secs(60);
        let limit = Some(UNMOUNT);
        assert_eq!(patience(&node("True", "x"), 100 * minute, limit), None, "it will unmount");
        assert_eq!(patience(&node("Unknown", "x"), minute, limit), Some(5 * minute));
        assert_eq!(patience(&node("Unknown", "x"), 7 * minute, limit), Some(Duration::ZERO));
        assert_eq!(patience(&node("True", OUT_OF_SERVICE), Duration::ZERO, limit), Some(Duration::ZERO));
        assert_eq!(patience(&Node::default(), Duration::ZERO, limit), Some(6 * minute));
        assert_eq!(
            patience(&node("Unknown", "x"), 100 * minute, None),
            None,
            "somebody has to say that it is lost"
        );
        assert_eq!(patience(&node("Unknown", OUT_OF_SERVICE), Duration::ZERO, None), Some(Duration::ZERO));
    }

    #[test]
    fn names() {
        let text = name("h", "d", "n", |bytes| bytes.to_vec());
        assert_eq!(text, "csi-68646e");
    }
}
