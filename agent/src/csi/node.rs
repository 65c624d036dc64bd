//! The CSINode of this node, and what the Node says for drivers.

use super::{Csi, NodeInfo};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::BTreeMap;

/// Annotation of the Node: what each driver calls it, as JSON.
const NODE_ID: &str = "csi.volume.kubernetes.io/nodeid";
/// Attempts to write over other writers.
const ATTEMPTS: usize = 5;

fn text(error: kube::Error) -> String {
    error.to_string()
}

/// Writes what a driver says about this node.
pub(super) async fn write(csi: &Csi, driver: &str, about: &NodeInfo) -> Result<(), String> {
    tell_node(csi, driver, Some(about)).await?;
    let entry = CSINodeDriver {
        name: driver.to_owned(),
        node_id: about.id.clone(),
        topology_keys: Some(about.topology.keys().cloned().collect()),
        allocatable: i32::try_from(about.most)
            .ok()
            .filter(|most| *most > 0)
            .map(|most| VolumeNodeResources { count: Some(most) }),
    };
    change(csi, driver, Some(entry)).await
}

/// A driver is gone.
pub(super) async fn forget(csi: &Csi, driver: &str) -> Result<(), String> {
    change(csi, driver, None).await?;
    tell_node(csi, driver, None).await
}

async fn change(csi: &Csi, driver: &str, entry: Option<CSINodeDriver>) -> Result<(), String> {
    let api: Api<CSINode> = Api::all(csi.inner.client.clone());
    let name = &csi.inner.node_name;
    for _ in 0..ATTEMPTS {
        let written = match api.get_opt(name).await.map_err(text)? {
            Some(mut found) => {
                let old = found.spec.drivers.clone();
                found.spec.drivers.retain(|d| d.name != driver);
                found.spec.drivers.extend(entry.clone());
                if old == found.spec.drivers {
                    return Ok(());
                }
                api.replace(name, &PostParams::default(), &found).await.map(drop)
            }
            None => {
                let Some(entry) = entry.clone() else { return Ok(()) };
                create(csi, &api, entry).await?.map(drop)
            }
        };
        match written {
            Ok(()) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(text(error)),
        }
    }
    Err("the CSINode is changed by others all the time".to_owned())
}

async fn create(
    csi: &Csi,
    api: &Api<CSINode>,
    entry: CSINodeDriver,
) -> Result<Result<CSINode, kube::Error>, String> {
    let name = csi.inner.node_name.clone();
    // The object goes with its Node.
    let node = Api::<Node>::all(csi.inner.client.clone()).get(&name).await.map_err(text)?;
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.clone(),
        uid: node.metadata.uid.unwrap_or_default(),
        ..OwnerReference::default()
    };
    let object = CSINode {
        metadata: ObjectMeta {
            name: Some(name),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: CSINodeSpec { drivers: vec![entry] },
    };
    Ok(api.create(&PostParams::default(), &object).await)
}

/// Writes the driver's name of the node and where it is.
async fn tell_node(csi: &Csi, driver: &str, about: Option<&NodeInfo>) -> Result<(), String> {
    let api: Api<Node> = Api::all(csi.inner.client.clone());
    let name = &csi.inner.node_name;
    let node = api.get(name).await.map_err(text)?;
    let annotations = node.metadata.annotations.unwrap_or_default();
    let known = annotations.get(NODE_ID).and_then(|t| serde_json::from_str(t).ok());
    let mut ids: BTreeMap<String, String> = known.unwrap_or_default();
    match about {
        Some(about) => ids.insert(driver.to_owned(), about.id.clone()),
        None => ids.remove(driver),
    };
    let ids = match ids.is_empty() {
        true => serde_json::Value::Null,
        false => serde_json::to_string(&ids).unwrap_or_default().into(),
    };
    let mut patch = json!({"metadata": {"annotations": {NODE_ID: ids}}});
    if let Some(about) = about.filter(|a| !a.topology.is_empty()) {
        patch["metadata"]["labels"] = json!(about.topology);
    }
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop).map_err(text)
}
