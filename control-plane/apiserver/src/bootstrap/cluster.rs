//! Objects of configuration kinds that every cluster has: system priority classes, flow control, API services, the range of
//! service addresses.

use super::flowcontrol;
use crate::error::ApiError;
use crate::handlers;
use crate::object::{get, meta, meta_mut, str_at};
use crate::server::Core;
use serde_json::{Value, json};
use std::sync::Arc;

const FLOW_CONTROL: &str = "flowcontrol.apiserver.k8s.io";

/// What upstream says about its two classes.
const CLASS_TEXTS: [&str; 2] = [
    "Used for system critical pods that must not be moved from their current node.",
    "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
];

/// Group, and the priorities of group and version that upstream registers for it; versions not named have 15.
const GROUP_PRIORITIES: [(&str, i64); 20] = [
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("admissionregistration.k8s.io", 16_700),
    ("apiextensions.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("resource.k8s.io", 16_150),
    (FLOW_CONTROL, 16_100),
];

fn version_priority(group: &str, version: &str) -> i64 {
    match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        (FLOW_CONTROL, _) => 21,
        _ => 15,
    }
}

/// The APIService of every group version that this server serves.
fn api_services(core: &Core) -> Vec<Value> {
    let mut out = Vec::new();
    for (group, versions) in core.builtin.groups() {
        // The group of API services themselves is no part of what it aggregates.
        let Some((_, priority)) = GROUP_PRIORITIES.iter().find(|(known, _)| *known == group) else {
            continue;
        };
        for version in versions {
            let mut spec = json!({"version": version, "groupPriorityMinimum": priority,
                "versionPriority": version_priority(group, version)});
            if !group.is_empty() {
                spec["group"] = group.into();
            }
            let labels = json!({"kube-aggregator.kubernetes.io/automanaged": "onstart"});
            out.push(json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": format!("{version}.{group}"), "labels": labels}, "spec": spec}));
        }
    }
    out
}

fn priority_classes() -> impl Iterator<Item = Value> {
    crate::validation::SYSTEM_CLASSES.into_iter().zip(CLASS_TEXTS).map(|((name, value), text)| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": text, "preemptionPolicy": "PreemptLowerPriority"})
    })
}

/// Name of the range that the server's configuration gives.
pub(crate) const DEFAULT_RANGE: &str = "kubernetes";

/// Makes what is missing and renews what the server may change.
pub(super) async fn run(core: &Arc<Core>) -> Result<(), ApiError> {
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": DEFAULT_RANGE}, "spec": {"cidrs": core.service_ranges()}});
    super::ensure(core, "networking.k8s.io", "servicecidrs", range).await?;
    let classes =
        priority_classes().map(|class| super::ensure(core, "scheduling.k8s.io", "priorityclasses", class));
    futures::future::try_join_all(classes).await?;
    let services = api_services(core);
    let services = services.iter().map(|wanted| renew(core, "apiregistration.k8s.io", "apiservices", wanted));
    futures::future::try_join_all(services).await?;
    flow_control(core).await
}

/// Restores the objects of flow control.
pub(crate) async fn flow_control(core: &Arc<Core>) -> Result<(), ApiError> {
    let (levels, schemas) = (flowcontrol::levels(), flowcontrol::schemas());
    let levels = levels.iter().map(|wanted| renew(core, FLOW_CONTROL, "prioritylevelconfigurations", wanted));
    futures::future::try_join_all(levels).await?;
    let schemas = schemas.iter().map(|wanted| renew(core, FLOW_CONTROL, "flowschemas", wanted));
    futures::future::try_join_all(schemas).await?;
    Ok(())
}

/// Whether an object is the server's to change.
fn is_ours(stored: &Value, wanted: &Value) -> bool {
    match str_at(wanted, &["kind"]) {
        "APIService" => {
            get(stored, &["metadata", "labels", "kube-aggregator.kubernetes.io/automanaged"]).is_some()
        }
        _ => {
            flowcontrol::is_mandatory(meta(wanted, "name"))
                || str_at(stored, &["metadata", "annotations", flowcontrol::AUTO_UPDATE]) == "true"
        }
    }
}

/// Makes an object, or gives it its spec again.
async fn renew(core: &Arc<Core>, group: &str, plural: &str, wanted: &Value) -> Result<(), ApiError> {
    let row = core.builtin.find(group, "v1", plural).ok_or_else(ApiError::unknown_resource)?;
    let key = row.key("", meta(wanted, "name"));
    let Some(stored) = crate::storage::read(&core.store, row, &key).await? else {
        return super::ensure(core, group, plural, wanted.clone()).await;
    };
    let mut spec = get(wanted, &["spec"]).cloned().unwrap_or_default();
    let present = get(&stored.object, &["spec"]).cloned().unwrap_or_default();
    if meta(wanted, "name") == "exempt" && str_at(wanted, &["kind"]) == "PriorityLevelConfiguration" {
        // The numbers of this level are the administrator's.
        spec["exempt"] = get(&present, &["exempt"]).cloned().unwrap_or_default();
    }
    if spec == present || !is_ours(&stored.object, wanted) {
        return Ok(());
    }
    let mut object = stored.object.clone();
    object["spec"] = spec;
    let version = stored.revision.to_string();
    meta_mut(&mut object).insert("resourceVersion".into(), version.into());
    match handlers::internal(core, "update", group, plural, object).await {
        // Somebody else was faster: the next round sees what they wrote.
        Err(error) if error.code() == 409 => Ok(()),
        other => other,
    }
}
