//! Volumes that an attachment describes itself, rather than naming a PersistentVolume.

use serde_json::Value;

use super::{Errors, claims, map, set, sources, text};
use crate::error::FieldError;

/// A volume's spec without what only a PersistentVolume of its own has.
pub(super) fn volume(spec: &Value, path: &str, errs: &mut Errors) {
    const DETAIL: &str = "may not be specified in the context of inline volumes";
    let forbid = |is: bool, field: &str, detail: &str, errs: &mut Errors| {
        if is {
            errs.push(FieldError::forbidden(format!("{path}.{field}"), detail));
        }
    };
    forbid(set(spec, "claimRef"), "claimRef", DETAIL, errs);
    forbid(map(spec, "capacity").next().is_some(), "capacity", DETAIL, errs);
    if !set(spec, "csi") {
        let detail = "has to be specified in the context of inline volumes";
        errs.push(FieldError::required(format!("{path}.csi"), detail));
    }
    claims::access_modes(spec, path, "", errs);
    let reclaim = text(spec, "persistentVolumeReclaimPolicy");
    let other = !matches!(reclaim, "" | "Retain");
    let detail = "may only be Retain in the context of inline volumes";
    forbid(other, "persistentVolumeReclaimPolicy", detail, errs);
    forbid(set(spec, "nodeAffinity"), "nodeAffinity", DETAIL, errs);
    sources::persistent(spec, "", path, errs);
    forbid(!text(spec, "storageClassName").is_empty(), "storageClassName", DETAIL, errs);
    let other = set(spec, "volumeMode") && text(spec, "volumeMode") != "Filesystem";
    let detail = "may not specify volumeMode other than Filesystem in the context of inline volumes";
    forbid(other, "volumeMode", detail, errs);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(spec: &Value) -> Vec<String> {
        let mut errs = Errors::new();
        volume(spec, "v", &mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn volumes() {
        let csi = json!({"driver": "d.example.com", "volumeHandle": "h"});
        let plain = json!({"accessModes": ["ReadWriteOnce"], "csi": csi, "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Retain"});
        assert_eq!(faults(&plain), [""; 0]);
        assert_eq!(
            faults(&json!({"accessModes": [], "hostPath": {"path": "/a"}, "capacity": {"storage": "1"},
                "claimRef": {"name": "c"}, "storageClassName": "s", "volumeMode": "Block",
                "persistentVolumeReclaimPolicy": "Delete"})),
            [
                "v.claimRef: Forbidden: may not be specified in the context of inline volumes",
                "v.capacity: Forbidden: may not be specified in the context of inline volumes",
                "v.csi: Required value: has to be specified in the context of inline volumes",
                "v.accessModes: Required value",
                "v.persistentVolumeReclaimPolicy: Forbidden: may only be Retain in the context of inline volumes",
                "v.storageClassName: Forbidden: may not be specified in the context of inline volumes",
                "v.volumeMode: Forbidden: may not specify volumeMode other than Filesystem in the context of inline volumes",
            ]
        );
    }
}
