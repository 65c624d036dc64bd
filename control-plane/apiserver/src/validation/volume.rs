//! Volumes of a pod.

use kelp_model::names;
use kelp_model::quantity::Quantity;
use serde_json::Value;

use super::container::{field_ref, resource_ref};
use super::{Errors, at, int, invalid_each, list, one_of, set, text};
use crate::error::FieldError;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Checks the volumes; returns those without errors, which mounts may name.
pub(super) fn volumes<'a>(spec: &'a Value, path: &str, errs: &mut Errors) -> Vec<&'a Value> {
    let mut valid: Vec<&Value> = Vec::new();
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        let path = format!("{path}[{i}]");
        let mut own = Errors::new();
        source(volume, &path, &mut own);
        let name = text(volume, "name");
        if name.is_empty() {
            own.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            invalid_each(&mut own, &format!("{path}.name"), name, names::dns1123_label(name));
        }
        if valid.iter().any(|v| text(v, "name") == name) {
            own.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        if own.is_empty() {
            valid.push(volume);
        } else {
            errs.extend(own);
        }
    }
    valid
}

fn source(volume: &Value, path: &str, errs: &mut Errors) {
    // In the order upstream looks at them.
    const KINDS: [&str; 30] = [
        "emptyDir",
        "hostPath",
        "gitRepo",
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "secret",
        "nfs",
        "iscsi",
        "glusterfs",
        "flocker",
        "persistentVolumeClaim",
        "rbd",
        "cinder",
        "cephfs",
        "quobyte",
        "downwardAPI",
        "fc",
        "flexVolume",
        "configMap",
        "azureFile",
        "vsphereVolume",
        "photonPersistentDisk",
        "portworxVolume",
        "azureDisk",
        "storageos",
        "projected",
        "scaleIO",
        "csi",
        "ephemeral",
        "image",
    ];
    let mut found = false;
    for kind in KINDS {
        let value = at(volume, kind);
        if value.is_null() {
            continue;
        }
        let path = format!("{path}.{kind}");
        if found {
            errs.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
            continue;
        }
        found = true;
        one(kind, value, &path, errs);
    }
    if !found {
        errs.push(FieldError::required(path, "must specify a volume type"));
    }
}

fn one(kind: &str, value: &Value, path: &str, errs: &mut Errors) {
    let mut require = |fields: &[&str]| {
        for field in fields.iter().filter(|f| text(value, f).is_empty()) {
            errs.push(FieldError::required(format!("{path}.{field}"), ""));
        }
    };
    match kind {
        "emptyDir" => {
            let limit = at(value, "sizeLimit").as_str().and_then(|s| Quantity::parse(s).ok());
            if limit.is_some_and(|q| q.signum() < 0) {
                let detail = "SizeLimit field must be a valid resource quantity";
                errs.push(FieldError::forbidden(format!("{path}.sizeLimit"), detail));
            }
        }
        "hostPath" => host_path(value, path, errs),
        "secret" => {
            require(&["secretName"]);
            mode(value, "defaultMode", path, errs);
            items(value, path, errs);
        }
        "configMap" => {
            require(&["name"]);
            mode(value, "defaultMode", path, errs);
            items(value, path, errs);
        }
        "downwardAPI" => {
            mode(value, "defaultMode", path, errs);
            for (i, file) in list(value, "items").iter().enumerate() {
                downward_file(file, &format!("{path}.items[{i}]"), errs);
            }
        }
        "projected" => projected(value, path, errs),
        "nfs" => {
            require(&["server", "path"]);
            let target = text(value, "path");
            if !target.is_empty() && !target.starts_with('/') {
                errs.push(FieldError::invalid(format!("{path}.path"), target, "must be an absolute path"));
            }
        }
        "persistentVolumeClaim" => require(&["claimName"]),
        "csi" => {
            require(&["driver"]);
            let driver = text(value, "driver");
            if driver.len() > 63 {
                errs.push(FieldError::too_long(format!("{path}.driver"), 63));
            }
            let lower = driver.to_lowercase();
            if !driver.is_empty() {
                invalid_each(errs, &format!("{path}.driver"), driver, names::dns1123_subdomain(&lower));
            }
        }
        "iscsi" => require(&["targetPortal", "iqn"]),
        "rbd" => require(&["image"]),
        "cinder" | "awsElasticBlockStore" => require(&["volumeID"]),
        "gcePersistentDisk" => require(&["pdName"]),
        "glusterfs" => require(&["endpoints", "path"]),
        "flexVolume" => require(&["driver"]),
        "azureFile" => require(&["secretName", "shareName"]),
        "vsphereVolume" => require(&["volumePath"]),
        "azureDisk" => require(&["diskName", "diskURI"]),
        "portworxVolume" => require(&["volumeID"]),
        "scaleIO" => require(&["gateway", "system", "volumeName"]),
        "image" => {
            one_of(
                errs,
                &format!("{path}.pullPolicy"),
                text(value, "pullPolicy"),
                &["Always", "IfNotPresent", "Never"],
            );
        }
        _ => {}
    }
}

fn host_path(value: &Value, path: &str, errs: &mut Errors) {
    const TYPES: [&str; 8] =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    let target = text(value, "path");
    if target.is_empty() {
        errs.push(FieldError::required(format!("{path}.path"), ""));
    } else if !no_backsteps(target) {
        errs.push(FieldError::invalid(format!("{path}.path"), target, "must not contain '..'"));
    }
    let kind = text(value, "type");
    if !TYPES.contains(&kind) {
        errs.push(FieldError::not_supported(format!("{path}.type"), kind, &TYPES));
    }
}

fn mode(holder: &Value, field: &str, path: &str, errs: &mut Errors) {
    if let Some(mode) = int(holder, field).filter(|m| !(0..=0o777).contains(m)) {
        errs.push(FieldError::invalid(format!("{path}.{field}"), mode, MODE));
    }
}

/// Keys projected to files.
fn items(holder: &Value, path: &str, errs: &mut Errors) {
    for (i, item) in list(holder, "items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        if text(item, "key").is_empty() {
            errs.push(FieldError::required(format!("{path}.key"), ""));
        }
        let target = text(item, "path");
        if target.is_empty() {
            errs.push(FieldError::required(format!("{path}.path"), ""));
        }
        unreserved_path(target, &format!("{path}.path"), errs);
        mode(item, "mode", &path, errs);
    }
}

const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

fn downward_file(file: &Value, path: &str, errs: &mut Errors) {
    let target = text(file, "path");
    if target.is_empty() {
        errs.push(FieldError::required(format!("{path}.path"), ""));
    }
    unreserved_path(target, &format!("{path}.path"), errs);
    if set(file, "fieldRef") {
        field_ref(at(file, "fieldRef"), &FILE_FIELDS, &format!("{path}.fieldRef"), errs);
        if set(file, "resourceFieldRef") {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errs.push(FieldError::invalid(path, "resource", detail));
        }
    } else if set(file, "resourceFieldRef") {
        let path = format!("{path}.resourceFieldRef");
        resource_ref(at(file, "resourceFieldRef"), true, &path, errs);
    } else {
        errs.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
    }
    mode(file, "mode", path, errs);
}

fn projected(value: &Value, path: &str, errs: &mut Errors) {
    mode(value, "defaultMode", path, errs);
    let mut paths: Vec<String> = Vec::new();
    for (i, source) in list(value, "sources").iter().enumerate() {
        let path = format!("{path}.sources[{i}]");
        let mut count = 0;
        for kind in [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ] {
            let value = at(source, kind);
            if value.is_null() {
                continue;
            }
            let path = format!("{path}.{kind}");
            count += 1;
            if count > 1 {
                errs.push(FieldError::forbidden(path, "may not specify more than 1 volume type per source"));
                continue;
            }
            let mut targets: Vec<&str> = list(value, "items").iter().map(|f| text(f, "path")).collect();
            match kind {
                "secret" | "configMap" => {
                    if text(value, "name").is_empty() {
                        errs.push(FieldError::required(format!("{path}.name"), ""));
                    }
                    items(value, &path, errs);
                }
                "downwardAPI" => {
                    for (j, file) in list(value, "items").iter().enumerate() {
                        downward_file(file, &format!("{path}.items[{j}]"), errs);
                    }
                }
                "serviceAccountToken" => {
                    let seconds = int(value, "expirationSeconds").unwrap_or_default();
                    let detail = if seconds < 600 {
                        "may not specify a duration less than 10 minutes"
                    } else if seconds > 1 << 32 {
                        "may not specify a duration larger than 2^32 seconds"
                    } else {
                        ""
                    };
                    if !detail.is_empty() {
                        errs.push(FieldError::invalid(format!("{path}.expirationSeconds"), seconds, detail));
                    }
                    let target = text(value, "path");
                    if target.is_empty() {
                        errs.push(FieldError::required(format!("{path}.path"), ""));
                    } else {
                        unreserved_path(target, &path, errs);
                    }
                    targets.push(target);
                }
                _ => targets.push(text(value, "path")),
            }
            for target in targets.into_iter().filter(|t| !t.is_empty()) {
                if paths.iter().any(|p| p == target) {
                    errs.push(FieldError::invalid(path.as_str(), target, "conflicting duplicate paths"));
                } else {
                    paths.push(target.to_owned());
                }
            }
        }
        if count == 0 {
            errs.push(FieldError::required(path, "must specify a volume type"));
        }
    }
}

/// True when no part of the path is `..`.
pub(super) fn no_backsteps(path: &str) -> bool {
    path.split('/').all(|part| part != "..")
}

/// A path below some directory.
pub(super) fn descending_path(value: &str, path: &str, errs: &mut Errors) {
    if value.starts_with('/') {
        errs.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    if !no_backsteps(value) {
        errs.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

fn unreserved_path(value: &str, path: &str, errs: &mut Errors) {
    descending_path(value, path, errs);
    if value.starts_with("..") && !value.starts_with("../") {
        errs.push(FieldError::invalid(path, value, "must not start with '..'"));
    }
}
