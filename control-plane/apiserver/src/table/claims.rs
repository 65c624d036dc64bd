//! Rows of persistent volumes and claims.

use super::*;
use crate::object::{is_deleting, list_at, str_at};

/// PersistentVolumes.
pub static VOLUME_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown(
            "Capacity",
            "string",
            "capacity is the description of the persistent volume's resources and capacity. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#capacity",
        ),
        shown(
            "Access Modes",
            "string",
            "accessModes contains all ways the volume can be mounted. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes",
        ),
        shown(
            "Reclaim Policy",
            "string",
            "persistentVolumeReclaimPolicy defines what happens to a persistent volume when released from its claim. Valid options are Retain (default for manually created PersistentVolumes), Delete (default for dynamically provisioned PersistentVolumes), and Recycle (deprecated). Recycle must be supported by the volume plugin underlying this PersistentVolume. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#reclaiming",
        ),
        shown(
            "Status",
            "string",
            "phase indicates if a volume is available, bound to a claim, or released by a claim. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#phase",
        ),
        shown(
            "Claim",
            "string",
            "claimRef is part of a bi-directional binding between PersistentVolume and PersistentVolumeClaim. Expected to be non-nil when bound. claim.VolumeName is the authoritative bind between PV and PVC. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#binding",
        ),
        shown("StorageClass", "string", "StorageClass of the pv"),
        shown("VolumeAttributesClass", "string", "VolumeAttributesClass of the pv"),
        shown(
            "Reason",
            "string",
            "reason is a brief CamelCase string that describes any failure and is meant for machine parsing and tidy display in the CLI.",
        ),
        age_column(),
        wide(
            "VolumeMode",
            "volumeMode defines if a volume is intended to be used with a formatted filesystem or to remain in raw block state. Value of Filesystem is implied when not included in spec.",
        ),
    ],
    cells: volume,
    conditions: no_conditions,
};

/// PersistentVolumeClaims.
pub static CLAIM_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown("Status", "string", "phase represents the current phase of PersistentVolumeClaim."),
        shown(
            "Volume",
            "string",
            "volumeName is the binding reference to the PersistentVolume backing this claim.",
        ),
        shown("Capacity", "string", "capacity represents the actual resources of the underlying volume."),
        shown(
            "Access Modes",
            "string",
            "accessModes contains the actual access modes the volume backing the PVC has. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes-1",
        ),
        shown("StorageClass", "string", "StorageClass of the pvc"),
        shown("VolumeAttributesClass", "string", "VolumeAttributesClass of the pvc"),
        age_column(),
        wide(
            "VolumeMode",
            "volumeMode defines what type of volume is required by the claim. Value of Filesystem is implied when not included in claim spec.",
        ),
    ],
    cells: claim,
    conditions: no_conditions,
};

/// Access modes in their short forms, in upstream's order.
fn modes(object: &Value, path: &[&str]) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| list_at(object, path).iter().any(|m| m == mode);
    SHORT.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

/// The storage class: the old annotation counts before the field.
fn class(object: &Value) -> String {
    let old = ["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"];
    match get(object, &old).and_then(Value::as_str) {
        Some(class) => class.to_owned(),
        None => str_at(object, &["spec", "storageClassName"]).to_owned(),
    }
}

fn or_unset(object: &Value, field: &str) -> Value {
    get(object, &["spec", field]).filter(|v| !v.is_null()).cloned().unwrap_or_else(|| "<unset>".into())
}

fn phase(object: &Value) -> &str {
    if is_deleting(object) { "Terminating" } else { str_at(object, &["status", "phase"]) }
}

fn storage(object: &Value, path: [&str; 2]) -> String {
    let [member, list] = path;
    match str_at(object, &[member, list, "storage"]) {
        "" => "0".to_owned(),
        size => size.to_owned(),
    }
}

fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match get(object, &["spec", "claimRef"]) {
        Some(claim) => format!("{}/{}", str_at(claim, &["namespace"]), str_at(claim, &["name"])),
        None => String::new(),
    };
    vec![
        meta(object, "name").into(),
        storage(object, ["spec", "capacity"]).into(),
        modes(object, &["spec", "accessModes"]).into(),
        str_at(object, &["spec", "persistentVolumeReclaimPolicy"]).into(),
        phase(object).into(),
        claim.into(),
        class(object).into(),
        or_unset(object, "volumeAttributesClassName"),
        str_at(object, &["status", "reason"]).into(),
        age(object, now),
        or_unset(object, "volumeMode"),
    ]
}

fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let volume = str_at(object, &["spec", "volumeName"]);
    let (capacity, access) = if volume.is_empty() {
        (String::new(), String::new())
    } else {
        (storage(object, ["status", "capacity"]), modes(object, &["status", "accessModes"]))
    };
    vec![
        meta(object, "name").into(),
        phase(object).into(),
        volume.into(),
        capacity.into(),
        access.into(),
        class(object).into(),
        or_unset(object, "volumeAttributesClassName"),
        age(object, now),
        or_unset(object, "volumeMode"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_both_kinds() {
        let now = Timestamp::now();
        let pv = json!({"metadata": {"name": "v"}, "status": {"phase": "Bound"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "n", "name": "c"},
                "volumeMode": "Block"}});
        let cells = volume(&pv, now);
        assert_eq!(
            cells[1..9],
            ["1Gi", "RWO,RWX", "Retain", "Bound", "n/c", "", "<unset>", ""].map(Value::from)
        );
        let pvc = json!({"metadata": {"name": "c", "deletionTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"volume.beta.kubernetes.io/storage-class": "old"}},
            "spec": {"volumeName": "v", "storageClassName": "new"}, "status": {"phase": "Bound"}});
        let cells = claim(&pvc, now);
        assert_eq!(cells[1..7], ["Terminating", "v", "0", "", "old", "<unset>"].map(Value::from));
    }
}
