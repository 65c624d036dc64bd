//! Warnings about objects that are valid and yet probably not what their writer wants.

mod paths;
mod pod;
#[cfg(test)]
mod tests;

use crate::error::quote;
use crate::object::{get, int_at, list_at, meta, str_at};
use kelp_model::names;
use kelp_model::quantity::Quantity;
use serde_json::Value;

/// Warnings told of one object at most. Their texts come to far more than what is sent, see `server::warnings`.
const MOST: usize = 1024;

/// Labels of nodes that have other names now.
const OLD_NODE_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
];

/// What is wrong with a label of nodes.
fn old_node_label(key: &str) -> Option<&'static str> {
    OLD_NODE_LABELS.iter().find(|(old, _)| *old == key).map(|(_, text)| *text)
}

/// Old labels in a term of a node selector.
fn node_selector_term(term: &Value, path: &str, out: &mut Vec<String>) {
    for (i, expression) in list_at(term, &["matchExpressions"]).iter().enumerate() {
        let key = str_at(expression, &["key"]);
        if let Some(text) = old_node_label(key) {
            out.push(format!("{path}.matchExpressions[{i}].key: {key} is {text}"));
        }
    }
}

/// An amount of bytes that is no whole number of them.
fn fractional(amounts: Option<&Value>, name: &str, path: &str, out: &mut Vec<String>) {
    let Some(text) = amounts.and_then(|a| a.get(name)).and_then(Value::as_str) else { return };
    let Ok(amount) = Quantity::parse(text) else { return };
    if amount.milli_value() % 1000 != 0 {
        let shown = quote(&amount.to_string());
        out.push(format!("{path}[{name}]: fractional byte value {shown} is invalid, must be an integer"));
    }
}

/// A name that ends up in names of pods, and in their host names.
fn name(object: &Value, used: &str, out: &mut Vec<String>) {
    let messages = names::dns1123_label(meta(object, "name"));
    if !messages.is_empty() {
        out.push(format!(
            "metadata.name: this is used in {used}, which can result in surprising behavior; a DNS label is \
             recommended: [{}]",
            messages.join(" ")
        ));
    }
}

const OF_PODS: &str = "Pod names and hostnames";

/// Of a pod, when it is created.
pub(super) fn of_pod(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    annotated_profiles(object, &mut out);
    name(object, "the Pod's hostname", &mut out);
    pod::warn(object, "", &mut out);
    out
}

/// Profiles of containers that an annotation names and no other field; its own field follows the annotation.
fn annotated_profiles(pod: &Value, out: &mut Vec<String>) {
    use super::pod::{APP_ARMOR, annotated_profile};
    if str_at(pod, &["spec", "os", "name"]) == "windows" {
        return;
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list_at(pod, &["spec", list]) {
            let key = format!("{APP_ARMOR}{}", str_at(container, &["name"]));
            let Some(annotation) = get(pod, &["metadata", "annotations", &key]) else { continue };
            let profile = annotated_profile(annotation.as_str().unwrap_or_default());
            let field = get(container, &["securityContext", "appArmorProfile"]).filter(|p| !p.is_null());
            if field == profile.as_ref() {
                out.push(format!("metadata.annotations[{key}]: {}", pod::APP_ARMOR));
            }
        }
    }
}

/// Of the addresses a pod's status tells.
pub(super) fn of_pod_status(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for field in ["podIPs", "hostIPs"] {
        for (i, address) in list_at(object, &["status", field]).iter().enumerate() {
            let path = format!("status.{field}[{i}].ip");
            out.extend(crate::validation::ip_warnings(&path, str_at(address, &["ip"])));
        }
    }
    out
}

/// Of an object that makes pods of `spec.template`, and names them after itself when `named`.
fn of_template(object: &Value, named: bool) -> Vec<String> {
    let mut out = Vec::new();
    if named {
        name(object, OF_PODS, &mut out);
    }
    if let Some(template) = get(object, &["spec", "template"]) {
        pod::warn(template, "spec.template.", &mut out);
    }
    out
}

/// Of deployments, replica sets and replication controllers.
pub(super) fn of_owner(object: &Value, created: bool) -> Vec<String> {
    of_template(object, created)
}

/// Of stateful sets and daemon sets.
pub(super) fn of_set(object: &Value, _created: bool) -> Vec<String> {
    of_template(object, false)
}

/// Of a stateful set, whatever was changed.
pub(super) fn of_stateful_set(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if int_at(object, &["spec", "revisionHistoryLimit"]).is_some_and(|limit| limit < 0) {
        out.push(
            "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is \
             recommended"
                .to_owned(),
        );
    }
    for (i, claim) in list_at(object, &["spec", "volumeClaimTemplates"]).iter().enumerate() {
        claim_spec(claim.get("spec"), &format!("spec.volumeClaimTemplates[{i}]"), &mut out);
    }
    out
}

fn job_spec(spec: &Value, path: &str, out: &mut Vec<String>) {
    let number = |field: &str| int_at(spec, &[field]).unwrap_or_default();
    if str_at(spec, &["completionMode"]) == "Indexed"
        && number("completions") > 100_000
        && number("parallelism") > 10_000
    {
        out.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher \
             than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
    if let Some(template) = spec.get("template") {
        pod::warn(template, &format!("{path}.template."), out);
    }
}

/// Of a job.
pub(super) fn of_job(object: &Value, created: bool) -> Vec<String> {
    let mut out = Vec::new();
    if created {
        name(object, OF_PODS, &mut out);
    }
    if let Some(spec) = object.get("spec") {
        job_spec(spec, "spec", &mut out);
    }
    out
}

/// Of a cron job.
pub(super) fn of_cron_job(object: &Value, created: bool) -> Vec<String> {
    let mut out = Vec::new();
    if created {
        name(object, OF_PODS, &mut out);
    }
    if let Some(spec) = get(object, &["spec", "jobTemplate", "spec"]) {
        job_spec(spec, "spec.jobTemplate.spec", &mut out);
    }
    out
}

/// Of a cron job, whatever was changed.
pub(super) fn of_schedule(object: &Value) -> Vec<String> {
    if !str_at(object, &["spec", "schedule"]).contains("TZ") {
        return Vec::new();
    }
    // The doubled "spec" is upstream's.
    vec![
        "CRON_TZ or TZ used in spec.spec.schedule is not officially supported, see \
         https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
            .to_owned(),
    ]
}

/// Of a pod template.
pub(super) fn of_pod_template(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(template) = object.get("template") {
        pod::warn(template, "template.", &mut out);
    }
    out
}

fn claim_spec(spec: Option<&Value>, path: &str, out: &mut Vec<String>) {
    let requests = spec.and_then(|spec| get(spec, &["resources", "requests"]));
    fractional(requests, "storage", &format!("{path}.resources.requests"), out);
}

/// Of a claim.
pub(super) fn of_claim(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    claim_spec(object.get("spec"), "spec", &mut out);
    out
}

/// Annotations of persistent volumes that are fields now.
const VOLUME_ANNOTATIONS: &[(&str, &str)] = &[
    (
        "volume.beta.kubernetes.io/storage-class",
        "deprecated since v1.8; use \"storageClassName\" attribute instead",
    ),
    (
        "volume.beta.kubernetes.io/mount-options",
        "deprecated since v1.31; use \"mountOptions\" attribute instead",
    ),
];

/// Kinds of volumes that are gone or going, in the order upstream looks for them.
const OLD_VOLUMES: &[(&str, &str)] = &[
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("ephemeral", ""),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// The member of a volume for the kind that a warning names.
fn volume_kind<'a>(volume: &'a Value, shown: &str) -> Option<&'a Value> {
    let member = if shown == "storageOS" { "storageos" } else { shown };
    volume.get(member).filter(|v| !v.is_null())
}

/// Of a persistent volume.
pub(super) fn of_volume(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let Some(spec) = object.get("spec") else { return out };
    for (i, term) in list_at(spec, &["nodeAffinity", "required", "nodeSelectorTerms"]).iter().enumerate() {
        node_selector_term(term, &format!("spec.nodeAffinity.required.nodeSelectorTerms[{i}]"), &mut out);
    }
    for (key, text) in VOLUME_ANNOTATIONS {
        if get(object, &["metadata", "annotations", key]).is_some() {
            out.push(format!("metadata.annotations[{key}]: {text}"));
        }
    }
    if str_at(spec, &["persistentVolumeReclaimPolicy"]) == "Recycle" {
        out.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the \
             recommended approach is to use dynamic provisioning."
                .to_owned(),
        );
    }
    let old = OLD_VOLUMES.iter().filter(|(_, text)| !text.is_empty());
    if let Some((kind, text)) = old.into_iter().find(|(kind, _)| volume_kind(spec, kind).is_some()) {
        out.push(format!("spec.{kind}: {text}"));
    }
    fractional(spec.get("capacity"), "storage", "spec.capacity", &mut out);
    out
}

/// Of a service account.
pub(super) fn of_service_account(object: &Value) -> Vec<String> {
    const KEY: &str = "kubernetes.io/enforce-mountable-secrets";
    if get(object, &["metadata", "annotations", KEY]).is_none() {
        return Vec::new();
    }
    vec![format!(
        "metadata.annotations[{KEY}]: deprecated in v1.32+; prefer separate namespaces to isolate access to \
         mounted secrets"
    )]
}

/// Of a node.
pub(super) fn of_node(object: &Value) -> Vec<String> {
    if str_at(object, &["spec", "externalID"]).is_empty() {
        return Vec::new();
    }
    vec!["spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned()]
}
