//! What single sources of volumes must say, in pods and in persistent volumes.

use kelp_model::names;
use serde_json::Value;

use super::volume::{descending_path, host_path, no_backsteps};
use super::{Errors, at, flag, int, invalid_each, list, map, set, text};
use crate::error::FieldError;

/// Sources of persistent volumes, in the order upstream looks at them.
pub(super) const PERSISTENT: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// Where a source stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// In a persistent volume, whose secrets have namespaces.
    pub(super) persistent: bool,
    /// Name of the volume.
    pub(super) volume: &'a str,
}

/// The one source of a persistent volume.
pub(super) fn persistent(spec: &Value, name: &str, path: &str, errs: &mut Errors) {
    let place = Place { persistent: true, volume: name };
    let mut found = false;
    for kind in PERSISTENT.into_iter().filter(|kind| set(spec, kind)) {
        if found {
            let shown = if kind == "cephfs" { "cephFS" } else { kind };
            let detail = "may not specify more than 1 volume type";
            errs.push(FieldError::forbidden(format!("{path}.{shown}"), detail));
            continue;
        }
        found = true;
        source(kind, at(spec, kind), place, path, errs);
        if kind == "local" && !set(spec, "nodeAffinity") {
            let detail = "Local volume requires node affinity";
            errs.push(FieldError::required(format!("{path}.nodeAffinity"), detail));
        }
    }
    if !found {
        errs.push(FieldError::required(path, "must specify a volume type"));
    }
}

/// A source of a kind that pods and persistent volumes share; `path` is that of the object around.
pub(super) fn source(kind: &str, value: &Value, place: Place<'_>, path: &str, errs: &mut Errors) {
    let path = match kind {
        // Upstream's path.
        "gcePersistentDisk" => format!("{path}.persistentDisk"),
        _ => format!("{path}.{kind}"),
    };
    let require = |errs: &mut Errors, fields: &[&str]| {
        for field in fields.iter().filter(|f| text(value, f).is_empty()) {
            errs.push(FieldError::required(format!("{path}.{field}"), ""));
        }
    };
    match kind {
        "hostPath" => host_path(value, &path, errs),
        "gcePersistentDisk" => {
            require(errs, &["pdName"]);
            partition(value, &path, errs);
        }
        "awsElasticBlockStore" => {
            require(errs, &["volumeID"]);
            partition(value, &path, errs);
        }
        "nfs" => {
            require(errs, &["server", "path"]);
            let target = text(value, "path");
            if !target.starts_with('/') {
                errs.push(FieldError::invalid(format!("{path}.path"), target, "must be an absolute path"));
            }
        }
        "iscsi" => iscsi(value, place, &path, errs),
        "glusterfs" => {
            require(errs, &["endpoints", "path"]);
            if place.persistent && set(value, "endpointsNamespace") {
                let namespace = text(value, "endpointsNamespace");
                let path = format!("{path}.endpointsNamespace");
                if namespace.is_empty() {
                    let detail = "if the endpointnamespace is set, it must be a valid namespace name";
                    errs.push(FieldError::invalid(path, namespace, detail));
                } else {
                    invalid_each(errs, &path, namespace, names::dns1123_label(namespace));
                }
            }
        }
        "flocker" => flocker(value, &path, errs),
        "rbd" | "cephfs" => {
            if list(value, "monitors").is_empty() {
                errs.push(FieldError::required(format!("{path}.monitors"), ""));
            }
            if kind == "rbd" {
                require(errs, &["image"]);
            }
        }
        "cinder" => {
            require(errs, &["volumeID"]);
            secret(value, place, &path, errs);
        }
        "quobyte" => quobyte(value, &path, errs),
        "fc" => fibre_channel(value, &path, errs),
        "flexVolume" => {
            require(errs, &["driver"]);
            for (option, _) in map(value, "options") {
                let namespace = option.split_once('/').map_or(option.as_str(), |(namespace, _)| namespace);
                let normalized = format!(".{}", namespace.to_lowercase());
                if normalized.ends_with(".kubernetes.io") || normalized.ends_with(".k8s.io") {
                    let detail = "kubernetes.io and k8s.io namespaces are reserved";
                    errs.push(FieldError::invalid(format!("{path}.options[{option}]"), option, detail));
                }
            }
        }
        "azureFile" => {
            require(errs, &["secretName", "shareName"]);
            if set(value, "secretNamespace") && text(value, "secretNamespace").is_empty() {
                errs.push(FieldError::required(format!("{path}.secretNamespace"), ""));
            }
        }
        "vsphereVolume" => require(errs, &["volumePath"]),
        "photonPersistentDisk" => require(errs, &["pdID"]),
        "portworxVolume" => require(errs, &["volumeID"]),
        "azureDisk" => {
            require(errs, &["diskName", "diskURI"]);
            azure_disk(value, &path, errs);
        }
        "scaleIO" => require(errs, &["gateway", "system", "volumeName"]),
        "local" => {
            let target = text(value, "path");
            if target.is_empty() {
                errs.push(FieldError::required(format!("{path}.path"), ""));
            } else if !no_backsteps(target) {
                errs.push(FieldError::invalid(format!("{path}.path"), target, "must not contain '..'"));
            }
        }
        "storageos" => {
            require(errs, &["volumeName"]);
            for field in ["volumeName", "volumeNamespace"] {
                let name = text(value, field);
                if !name.is_empty() {
                    invalid_each(errs, &format!("{path}.{field}"), name, names::dns1123_label(name));
                }
            }
            secret(value, place, &path, errs);
        }
        "gitRepo" => {
            require(errs, &["repository"]);
            descending_path(text(value, "directory"), &format!("{path}.directory"), errs);
        }
        "csi" => csi(value, place, &path, errs),
        _ => {}
    }
}

fn partition(value: &Value, path: &str, errs: &mut Errors) {
    let partition = int(value, "partition").unwrap_or_default();
    if !(0..=255).contains(&partition) {
        let detail = names::range_error(1, 255);
        errs.push(FieldError::invalid(format!("{path}.partition"), partition, detail));
    }
}

/// The secret of a source: its name, and in a persistent volume its namespace.
fn secret(value: &Value, place: Place<'_>, path: &str, errs: &mut Errors) {
    let reference = at(value, "secretRef");
    if reference.is_null() {
        return;
    }
    let fields: &[&str] = if place.persistent { &["name", "namespace"] } else { &["name"] };
    for field in fields.iter().filter(|f| text(reference, f).is_empty()) {
        errs.push(FieldError::required(format!("{path}.secretRef.{field}"), ""));
    }
}

/// A name of an iSCSI node in one of its three forms.
fn node_name(name: &str) -> bool {
    let alphanumeric =
        |text: &str, length: usize| text.len() == length && text.bytes().all(|b| b.is_ascii_alphanumeric());
    let after = |prefix: &str| {
        let mut rest = name.strip_prefix(prefix)?.chars();
        rest.next()?;
        Some(rest.as_str())
    };
    if name.starts_with("eui") {
        return after("eui").is_some_and(|rest| alphanumeric(rest, 16));
    }
    if name.starts_with("naa") {
        return after("naa").is_some_and(|rest| alphanumeric(rest, 32));
    }
    let Some(rest) = name.strip_prefix("iqn.") else { return false };
    let date = |i: usize, b: u8| match i {
        4 => b == b'-',
        7 => b == b'.',
        _ => b.is_ascii_digit(),
    };
    let Some((when, rest)) = rest.split_at_checked(8) else { return false };
    let Some((domain, target)) = rest.split_once(':') else { return false };
    when.bytes().enumerate().all(|(i, b)| date(i, b))
        && !domain.is_empty()
        && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && !target.is_empty()
        && !target.contains(|c: char| ",;*&$|".contains(c) || c.is_whitespace())
}

fn iscsi(value: &Value, place: Place<'_>, path: &str, errs: &mut Errors) {
    let known = |name: &str| ["iqn", "eui", "naa"].iter().any(|p| name.starts_with(p));
    let prefix_detail = if place.persistent {
        "must be valid format"
    } else {
        "must be valid format starting with iqn, eui, or naa"
    };
    let portal = text(value, "targetPortal");
    if portal.is_empty() {
        errs.push(FieldError::required(format!("{path}.targetPortal"), ""));
    }
    let too_long = set(value, "initiatorName") && place.volume.len() + 1 + portal.len() > 64;
    if too_long && place.persistent {
        errs.push(FieldError::invalid(format!("{path}.targetportal"), portal, TOO_LONG));
    }
    let iqn = text(value, "iqn");
    if iqn.is_empty() {
        errs.push(FieldError::required(format!("{path}.iqn"), ""));
    } else if !known(iqn) {
        errs.push(FieldError::invalid(format!("{path}.iqn"), iqn, prefix_detail));
    } else if !node_name(iqn) {
        errs.push(FieldError::invalid(format!("{path}.iqn"), iqn, "must be valid format"));
    }
    let lun = int(value, "lun").unwrap_or_default();
    if !(0..=255).contains(&lun) {
        errs.push(FieldError::invalid(format!("{path}.lun"), lun, names::range_error(0, 255)));
    }
    let authenticates = flag(value, "chapAuthDiscovery") || flag(value, "chapAuthSession");
    if authenticates && !set(value, "secretRef") {
        errs.push(FieldError::required(format!("{path}.secretRef"), ""));
    }
    if place.persistent && set(value, "secretRef") && text(at(value, "secretRef"), "name").is_empty() {
        errs.push(FieldError::required(format!("{path}.secretRef.name"), ""));
    }
    if set(value, "initiatorName") {
        let name = text(value, "initiatorName");
        let path = format!("{path}.initiatorname");
        if !known(name) {
            errs.push(FieldError::invalid(path, name, prefix_detail));
        } else if !node_name(name) {
            errs.push(FieldError::invalid(path, name, "must be valid format"));
        }
    }
}

/// What is too long of an iSCSI volume with an initiator.
pub(super) const TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

fn flocker(value: &Value, path: &str, errs: &mut Errors) {
    let (name, uuid) = (text(value, "datasetName"), text(value, "datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        errs.push(FieldError::required(path, "one of datasetName and datasetUUID is required"));
    }
    if !name.is_empty() && !uuid.is_empty() {
        let detail = "datasetName and datasetUUID can not be specified simultaneously";
        errs.push(FieldError::invalid(path, "resource", detail));
    }
    if name.contains('/') {
        errs.push(FieldError::invalid(format!("{path}.datasetName"), name, "must not contain '/'"));
    }
}

fn quobyte(value: &Value, path: &str, errs: &mut Errors) {
    const PAIR: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = text(value, "registry");
    let pair = |text: &str| match text.rsplit_once(':') {
        Some((host, port)) => {
            !port.contains(['[', ']'])
                && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')))
        }
        None => false,
    };
    if registry.is_empty() {
        errs.push(FieldError::required(format!("{path}.registry"), PAIR));
    } else if text(value, "tenant").len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errs.push(FieldError::required(format!("{path}.tenant"), detail));
    } else {
        for _ in registry.split(',').filter(|p| !pair(p)) {
            errs.push(FieldError::invalid(format!("{path}.registry"), registry, PAIR));
        }
    }
    if text(value, "volume").is_empty() {
        errs.push(FieldError::required(format!("{path}.volume"), ""));
    }
}

fn fibre_channel(value: &Value, path: &str, errs: &mut Errors) {
    let (targets, ids) = (list(value, "targetWWNs"), list(value, "wwids"));
    let at_targets = format!("{path}.targetWWNs");
    if targets.is_empty() && ids.is_empty() {
        let detail = "must specify either targetWWNs or wwids, but not both";
        errs.push(FieldError::required(at_targets.as_str(), detail));
    }
    if !targets.is_empty() && !ids.is_empty() {
        let detail = "targetWWNs and wwids can not be specified simultaneously";
        errs.push(FieldError::invalid(at_targets, at(value, "targetWWNs"), detail));
    }
    if !targets.is_empty() {
        match int(value, "lun") {
            None => {
                let detail = "lun is required if targetWWNs is specified";
                errs.push(FieldError::required(format!("{path}.lun"), detail));
            }
            Some(lun) if !(0..=255).contains(&lun) => {
                errs.push(FieldError::invalid(format!("{path}.lun"), lun, names::range_error(0, 255)));
            }
            Some(_) => {}
        }
    }
}

fn azure_disk(value: &Value, path: &str, errs: &mut Errors) {
    let choices: [(&str, &[&str]); 2] =
        [("cachingMode", &["None", "ReadOnly", "ReadWrite"]), ("kind", &["Dedicated", "Managed", "Shared"])];
    for (field, supported) in choices {
        let choice = text(value, field);
        if set(value, field) && !supported.contains(&choice) {
            errs.push(FieldError::not_supported(format!("{path}.{field}"), choice, supported));
        }
    }
    if !set(value, "kind") {
        return;
    }
    let managed = text(value, "kind") == "Managed";
    let (start, form) = if managed {
        (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        )
    } else {
        ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd")
    };
    let uri = text(value, "diskURI");
    if !uri.starts_with(start) {
        errs.push(FieldError::not_supported(format!("{path}.diskURI"), uri, &[form]));
    }
}

/// The name of a driver: a domain of 63 letters at most.
pub(super) fn driver_name(driver: &str, path: &str, errs: &mut Errors) {
    if driver.is_empty() {
        errs.push(FieldError::required(path, ""));
    }
    if driver.len() > 63 {
        errs.push(FieldError::too_long(path, 63));
    }
    invalid_each(errs, path, driver, names::dns1123_subdomain(&driver.to_lowercase()));
}

fn csi(value: &Value, place: Place<'_>, path: &str, errs: &mut Errors) {
    driver_name(text(value, "driver"), &format!("{path}.driver"), errs);
    if !place.persistent {
        let secret = at(value, "nodePublishSecretRef");
        match (secret.is_null(), text(secret, "name")) {
            (true, _) => {}
            (false, "") => {
                errs.push(FieldError::required(format!("{path}.nodePublishSecretRef.name"), ""));
            }
            // Upstream's path.
            (false, name) => {
                invalid_each(errs, &format!("{path}.name"), name, names::dns1123_subdomain(name));
            }
        }
        return;
    }
    if text(value, "volumeHandle").is_empty() {
        errs.push(FieldError::required(format!("{path}.volumeHandle"), ""));
    }
    for field in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        let secret = at(value, field);
        if secret.is_null() {
            continue;
        }
        type Check = fn(&str) -> Vec<String>;
        let checks: [(&str, Check); 2] =
            [("name", names::dns1123_subdomain), ("namespace", names::dns1123_label)];
        for (part, check) in checks {
            let path = format!("{path}.{field}.{part}");
            match text(secret, part) {
                "" => errs.push(FieldError::required(path, "")),
                name => invalid_each(errs, &path, name, check(name)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_iscsi_nodes() {
        for good in
            ["iqn.2015-02.example.com:test", "eui.0123456789abcdef", "naa.0123456789abcdef0123456789abcdef"]
        {
            assert!(node_name(good), "{good}");
        }
        for bad in
            ["iqn.2015-02.example.com", "iqn.15-02.e:t", "iqn.2015-02.e:a b", "eui.1", "naa.", "iqn", ""]
        {
            assert!(!node_name(bad), "{bad}");
        }
    }

    #[test]
    fn sources_in_pods() {
        let check = |kind: &str, value: Value| {
            let mut errs = Errors::new();
            source(kind, &value, Place { persistent: false, volume: "v" }, "p", &mut errs);
            errs.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            check("gcePersistentDisk", json!({"partition": 300})),
            [
                "p.persistentDisk.pdName: Required value",
                "p.persistentDisk.partition: Invalid value: 300: must be between 1 and 255, inclusive",
            ]
        );
        assert_eq!(
            check("fc", json!({"targetWWNs": ["a"], "wwids": ["b"]})),
            [
                "p.fc.targetWWNs: Invalid value: [\"a\"]: targetWWNs and wwids can not be specified simultaneously",
                "p.fc.lun: Required value: lun is required if targetWWNs is specified",
            ]
        );
        assert_eq!(
            check(
                "azureDisk",
                json!({"diskName": "d", "diskURI": "u", "kind": "Managed", "cachingMode": "X"})
            ),
            [
                "p.azureDisk.cachingMode: Unsupported value: \"X\": supported values: \"None\", \"ReadOnly\", \"ReadWrite\"",
                "p.azureDisk.diskURI: Unsupported value: \"u\": supported values: \"/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}\"",
            ]
        );
        assert_eq!(
            check("flexVolume", json!({"driver": "d", "options": {"k8s.io/x": "y", "a": "b"}})),
            [
                "p.flexVolume.options[k8s.io/x]: Invalid value: \"k8s.io/x\": kubernetes.io and k8s.io namespaces are reserved"
            ]
        );
        assert_eq!(
            check("nfs", json!({"server": "s"})),
            ["p.nfs.path: Required value", "p.nfs.path: Invalid value: \"\": must be an absolute path"]
        );
        assert_eq!(check("quobyte", json!({"registry": "a:1,b", "volume": "v"})).len(), 1);
        assert_eq!(check("csi", json!({"driver": "Up.Case", "nodePublishSecretRef": {}})).len(), 1);
    }
}
