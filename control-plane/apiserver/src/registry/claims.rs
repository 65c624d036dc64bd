//! Rows of persistent volumes and their claims.

use super::core::{BASE, carry};
use super::*;
use crate::object::{list_at, map_mut, str_at};
use crate::table;
use serde_json::json;

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

static VOLUME: Strategy = Strategy {
    prepare_create: |object| {
        object["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": crate::object::now()});
    },
    prepare_update: |new, old| carry(new, old, &["status"]),
    prepare_status: volume_status,
    warnings: super::warnings::of_volume,
    delete_returns_object: true,
    ..Strategy::PLAIN
};

static CLAIM: Strategy = Strategy {
    prepare_create: |object| {
        object["status"] = json!({"phase": "Pending"});
        data_sources(object, None);
    },
    prepare_update: |new, old| {
        carry(new, old, &["status"]);
        data_sources(new, Some(old));
    },
    warnings: super::warnings::of_claim,
    delete_returns_object: true,
    ..Strategy::PLAIN
};

static VOLUME_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("", "v1", "PersistentVolume")),
    verbs: STATUS_VERBS,
}];
static CLAIM_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("", "v1", "PersistentVolumeClaim")),
    verbs: STATUS_VERBS,
}];

/// The time of the last change of phase is the server's, unless the writer gives another.
fn volume_status(new: &mut Value, old: &Value) {
    const TIME: &str = "lastPhaseTransitionTime";
    let phase = |object: &Value| str_at(object, &["status", "phase"]).to_owned();
    let time = |object: &Value| object.pointer("/status/lastPhaseTransitionTime").cloned();
    let given = time(new).filter(|t| !t.is_null());
    let kept = time(old);
    if phase(new) != phase(old) && (given.is_none() || given == kept) {
        map_mut(new, "status").insert(TIME.into(), crate::object::now().into());
    } else if given.is_none()
        && let Some(kept) = kept
    {
        map_mut(new, "status").insert(TIME.into(), kept);
    }
}

/// `dataSource` names claims and snapshots only; it and `dataSourceRef` follow each other while the reference stays
/// in the claim's namespace.
fn data_sources(object: &mut Value, old: Option<&Value>) {
    let source = |object: &Value, field: &str| {
        object.pointer(&format!("/spec/{field}")).filter(|s| !s.is_null()).cloned()
    };
    let had = old.is_some_and(|old| source(old, "dataSource").is_some());
    let Some(mut own) = source(object, "dataSource").map(Some).or(Some(None)) else { return };
    let group = |s: &Value| str_at(s, &["apiGroup"]).to_owned();
    let known = |s: &Value| match str_at(s, &["kind"]) {
        "PersistentVolumeClaim" => group(s).is_empty(),
        "VolumeSnapshot" => group(s) == "snapshot.storage.k8s.io",
        _ => false,
    };
    if !had && own.as_ref().is_some_and(|s| !known(s)) {
        own = None;
        map_mut(object, "spec").remove("dataSource");
    }
    match (own, source(object, "dataSourceRef")) {
        (Some(own), None) => {
            map_mut(object, "spec").insert("dataSourceRef".into(), own);
        }
        (None, Some(mut reference)) if str_at(&reference, &["namespace"]).is_empty() => {
            if let Some(map) = reference.as_object_mut() {
                map.remove("namespace");
            }
            map_mut(object, "spec").insert("dataSource".into(), reference);
        }
        _ => {}
    }
}

/// Keeps an object that is in use until a controller has seen that nothing uses it (StorageObjectInUseProtection).
pub(crate) fn protect(kind: &str, object: &mut Value) {
    let finalizer = match kind {
        "PersistentVolume" => "kubernetes.io/pv-protection",
        "PersistentVolumeClaim" => "kubernetes.io/pvc-protection",
        _ => return,
    };
    if crate::object::finalizers(object).any(|f| f == finalizer) {
        return;
    }
    let mut all = list_at(object, &["metadata", "finalizers"]).to_vec();
    all.push(finalizer.into());
    crate::object::meta_mut(object).insert("finalizers".into(), all.into());
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row {
            plural: "persistentvolumeclaims",
            singular: "persistentvolumeclaim",
            kind: "PersistentVolumeClaim",
            short_names: &["pvc"],
            subresources: CLAIM_SUB,
            storage_prefix: "/registry/persistentvolumeclaims/",
            table: &table::CLAIM_TABLE,
            strategy: &CLAIM,
            ..BASE
        },
        Row {
            plural: "persistentvolumes",
            singular: "persistentvolume",
            kind: "PersistentVolume",
            namespaced: false,
            short_names: &["pv"],
            subresources: VOLUME_SUB,
            storage_prefix: "/registry/persistentvolumes/",
            table: &table::VOLUME_TABLE,
            strategy: &VOLUME,
            ..BASE
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sources_follow_each_other() {
        let run = |spec: Value, old: Option<Value>| {
            let mut claim = json!({"spec": spec});
            data_sources(&mut claim, old.map(|spec| json!({"spec": spec})).as_ref());
            claim["spec"].take()
        };
        let snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        let both = json!({"dataSource": snapshot, "dataSourceRef": snapshot});
        assert_eq!(run(json!({"dataSource": snapshot}), None), both);
        assert_eq!(run(json!({"dataSourceRef": snapshot}), None), both);
        let other = json!({"apiGroup": "e.com", "kind": "X", "name": "s"});
        assert_eq!(run(json!({"dataSource": other}), None), json!({}));
        let kept = json!({"dataSource": other, "dataSourceRef": other});
        assert_eq!(run(json!({"dataSource": other}), Some(json!({"dataSource": other}))), kept);
        let elsewhere =
            json!({"dataSourceRef": {"apiGroup": "e.com", "kind": "X", "name": "s", "namespace": "n"}});
        assert_eq!(run(elsewhere.clone(), None), elsewhere);
    }

    #[test]
    fn the_server_dates_changes_of_phase() {
        let old = json!({"status": {"phase": "Pending", "lastPhaseTransitionTime": "2026-01-01T00:00:00Z"}});
        let mut same = json!({"status": {"phase": "Pending"}});
        volume_status(&mut same, &old);
        assert_eq!(same, old);
        let mut bound =
            json!({"status": {"phase": "Bound", "lastPhaseTransitionTime": "2026-01-01T00:00:00Z"}});
        volume_status(&mut bound, &old);
        assert_ne!(bound["status"]["lastPhaseTransitionTime"], "2026-01-01T00:00:00Z");
        let mut given =
            json!({"status": {"phase": "Bound", "lastPhaseTransitionTime": "2026-01-02T00:00:00Z"}});
        volume_status(&mut given, &old);
        assert_eq!(given["status"]["lastPhaseTransitionTime"], "2026-01-02T00:00:00Z");
    }

    #[test]
    fn finalizers_are_added_once() {
        let mut claim = json!({"metadata": {"finalizers": ["a.b/c"]}});
        protect("PersistentVolumeClaim", &mut claim);
        protect("PersistentVolumeClaim", &mut claim);
        assert_eq!(claim["metadata"]["finalizers"], json!(["a.b/c", "kubernetes.io/pvc-protection"]));
    }
}
