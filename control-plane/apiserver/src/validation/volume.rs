//! Volumes of a pod.

use kelp_model::names;
use kelp_model::quantity::Quantity;
use serde_json::Value;

use super::container::{field_ref, resource_ref};
use super::selector::label_selector;
use super::{Errors, at, claims, int, internal, invalid_each, list, one_of, set, sources, text};
use crate::error::FieldError;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Checks the volumes; returns those without errors, which mounts may name. `pod` is the name of the pod, none in a
/// template and when it is not known yet.
pub(super) fn volumes<'a>(
    spec: &'a Value,
    pod: Option<&str>,
    path: &str,
    errs: &mut Errors,
) -> Vec<&'a Value> {
    let mut valid: Vec<&Value> = Vec::new();
    let all = list(spec, "volumes");
    let pod_name = pod.filter(|name| !name.is_empty());
    let made: Vec<String> = all
        .iter()
        .filter(|v| set(v, "ephemeral"))
        .filter_map(|v| Some(format!("{}-{}", pod_name?, text(v, "name"))))
        .collect();
    for (i, volume) in all.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let mut own = Errors::new();
        source(volume, pod_name, pod.is_some(), &path, &mut own);
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
        let claim = text(at(volume, "persistentVolumeClaim"), "claimName");
        if made.iter().any(|name| name == claim) {
            errs.push(FieldError::invalid(
                format!("{path}.persistentVolumeClaim.claimName"),
                claim,
                "must not reference a PVC that gets created for an ephemeral volume",
            ));
        }
    }
    valid
}

/// Kinds of sources in the order upstream looks at them.
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

fn source(volume: &Value, pod: Option<&str>, is_pod: bool, path: &str, errs: &mut Errors) {
    let name = text(volume, "name");
    let mut found = false;
    for kind in KINDS.into_iter().filter(|kind| set(volume, kind)) {
        let value = at(volume, kind);
        if found {
            // Upstream's spellings.
            let shown = match kind {
                "cephfs" => "cephFS",
                "downwardAPI" => "downwarAPI",
                other => other,
            };
            let detail = "may not specify more than 1 volume type";
            errs.push(FieldError::forbidden(format!("{path}.{shown}"), detail));
        } else {
            found = true;
            one(kind, value, name, is_pod, path, errs);
            if let Some(pod) = pod.filter(|_| kind == "ephemeral" && !name.is_empty()) {
                let claim = format!("{pod}-{name}");
                for message in names::dns1123_subdomain(&claim) {
                    let detail = format!("PVC name {}: {message}", crate::error::quote(&claim));
                    errs.push(FieldError::invalid(format!("{path}.name"), name, detail));
                }
            }
        }
        let portal = text(value, "targetPortal");
        if kind == "iscsi" && set(value, "initiatorName") && name.len() + 1 + portal.len() > 64 {
            errs.push(FieldError::invalid(format!("{path}.name"), name, sources::TOO_LONG));
        }
    }
    if !found {
        errs.push(FieldError::required(path, "must specify a volume type"));
    }
}

fn one(kind: &str, value: &Value, volume: &str, is_pod: bool, around: &str, errs: &mut Errors) {
    let path = &format!("{around}.{kind}");
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
            for file in list(value, "items") {
                downward_file(file, path, errs);
            }
        }
        "projected" => projected(value, path, errs),
        "persistentVolumeClaim" => require(&["claimName"]),
        "ephemeral" => {
            let template = at(value, "volumeClaimTemplate");
            let path = format!("{path}.volumeClaimTemplate");
            if template.is_null() {
                errs.push(FieldError::required(path, ""));
            } else {
                claims::template(template, &path, errs);
            }
        }
        "image" => {
            let reference = text(value, "reference");
            if is_pod && reference.is_empty() {
                errs.push(FieldError::required(format!("{path}.reference"), ""));
            }
            if reference.trim() != reference {
                let detail = "must not have leading or trailing whitespace";
                errs.push(FieldError::invalid(format!("{path}.reference"), reference, detail));
            }
            one_of(
                errs,
                &format!("{path}.pullPolicy"),
                text(value, "pullPolicy"),
                &["Always", "IfNotPresent", "Never"],
            );
        }
        shared => {
            let place = sources::Place { persistent: false, volume };
            sources::source(shared, value, place, around, errs);
        }
    }
}

/// A path of the node.
pub(super) fn host_path(value: &Value, path: &str, errs: &mut Errors) {
    const TYPES: [&str; 8] =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    let target = text(value, "path");
    if target.is_empty() {
        errs.push(FieldError::required(format!("{path}.path"), ""));
        return;
    }
    if !no_backsteps(target) {
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
    let mut targets: Vec<&str> = Vec::new();
    for (i, source) in list(value, "sources").iter().enumerate() {
        let at_source = format!("{path}.sources[{i}]");
        let mut count = 0;
        for kind in PROJECTIONS.into_iter().filter(|kind| set(source, kind)) {
            let value = at(source, kind);
            count += 1;
            let files = projection(kind, value, path, &format!("{at_source}.{kind}"), errs);
            for (target, shown) in files {
                if targets.contains(&target) {
                    errs.push(FieldError::invalid(path, shown, "conflicting duplicate paths"));
                } else {
                    targets.push(target);
                }
            }
        }
        if count > 1 {
            errs.push(FieldError::forbidden(at_source, "may not specify more than 1 volume type"));
        }
    }
}

const PROJECTIONS: [&str; 6] =
    ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];

/// Checks a source of a projected volume; its files, each with what a message about it shows.
fn projection<'a>(
    kind: &str,
    value: &'a Value,
    volume: &str,
    path: &str,
    errs: &mut Errors,
) -> Vec<(&'a str, &'a str)> {
    let named = |field: &str| text(value, field);
    match kind {
        "secret" | "configMap" => {
            if named("name").is_empty() {
                errs.push(FieldError::required(format!("{path}.name"), ""));
            }
            items(value, path, errs);
            let files = list(value, "items").iter().map(|f| (text(f, "path"), named("name")));
            files.filter(|(target, _)| !target.is_empty()).collect()
        }
        "downwardAPI" => {
            for file in list(value, "items") {
                downward_file(file, path, errs);
            }
            let files = list(value, "items").iter().map(|f| (text(f, "path"), text(f, "path")));
            files.filter(|(target, _)| !target.is_empty()).collect()
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
            // Upstream's path is that of the volume.
            let target_path = format!("{volume}.path");
            match named("path") {
                "" => errs.push(FieldError::required(target_path, "")),
                target => unreserved_path(target, &target_path, errs),
            }
            Vec::new()
        }
        "clusterTrustBundle" => {
            trust_bundle(value, &path.replace(kind, "clusterTrustBundlePEM"), errs);
            vec![(named("path"), named("path"))]
        }
        _ => ["credentialBundlePath", "keyPath", "certificateChainPath"]
            .iter()
            .map(|field| (named(field), named(field)))
            .filter(|(target, _)| !target.is_empty())
            .collect(),
    }
}

fn trust_bundle(value: &Value, path: &str, errs: &mut Errors) {
    match (set(value, "name"), set(value, "signerName")) {
        (true, true) => {
            let shown = internal::bad("ClusterTrustBundleProjection", value);
            errs.push(FieldError::invalid(path, shown, "only one of name and signerName may be used"));
        }
        (true, false) => {
            let name = text(value, "name");
            if name.is_empty() {
                errs.push(FieldError::required(format!("{path}.name"), "must be a valid object name"));
            }
            for message in names::dns1123_subdomain(name).into_iter().filter(|_| !name.contains(':')) {
                let detail = format!("not a valid clustertrustbundlename: {message}");
                errs.push(FieldError::invalid(format!("{path}.name"), name, detail));
            }
            if set(value, "labelSelector") {
                let shown = internal::bad("LabelSelector", at(value, "labelSelector"));
                let detail = "labelSelector must be unset if name is specified";
                errs.push(FieldError::invalid(format!("{path}.labelSelector"), shown, detail));
            }
        }
        (false, true) => {
            if text(value, "signerName").is_empty() {
                errs.push(FieldError::required(format!("{path}.signerName"), "must be a valid signer name"));
            }
            label_selector(at(value, "labelSelector"), &format!("{path}.labelSelector"), errs);
        }
        (false, false) => {
            errs.push(FieldError::required(path, "either name or signerName must be specified"));
        }
    }
    let target = text(value, "path");
    if target.is_empty() {
        errs.push(FieldError::required(format!("{path}.path"), ""));
    }
    unreserved_path(target, &format!("{path}.path"), errs);
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
