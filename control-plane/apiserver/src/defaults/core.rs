//! Services, nodes, storage and other kinds of the core group.

use serde_json::{Map, Value, json};

use super::{default, default_pointer, items, member, text};

pub(super) fn service(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    default(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "None" {
        if let Value::Object(map) = spec {
            map.remove("sessionAffinityConfig");
        }
    } else if text(spec, "sessionAffinity") == "ClientIP"
        && let Some(ip) = member(spec, "sessionAffinityConfig").and_then(|c| member(c, "clientIP"))
    {
        default_pointer(ip, "timeoutSeconds", 10_800);
    }
    default(spec, "type", "ClusterIP");
    for port in items(spec, "ports") {
        default(port, "protocol", "TCP");
        if port.get("targetPort").is_none_or(|t| t == 0 || t == "" || t.is_null()) {
            let number = port.get("port").cloned().unwrap_or(Value::Null);
            port["targetPort"] = number;
        }
    }
    let kind = text(spec, "type").to_owned();
    let external_ips = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
    let external =
        matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external_ips);
    if external {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        default_pointer(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default_pointer(spec, "allocateLoadBalancerNodePorts", true);
        for ingress in
            object.pointer_mut("/status/loadBalancer").into_iter().flat_map(|l| items(l, "ingress"))
        {
            if !text(ingress, "ip").is_empty() {
                default_pointer(ingress, "ipMode", "VIP");
            }
        }
    }
}

pub(super) fn endpoints(object: &mut Value) {
    for subset in items(object, "subsets") {
        for port in items(subset, "ports") {
            default(port, "protocol", "TCP");
        }
    }
}

pub(super) fn endpoint_slice(object: &mut Value) {
    for port in items(object, "ports") {
        default_pointer(port, "name", "");
        default_pointer(port, "protocol", "TCP");
    }
}

pub(super) fn namespace(object: &mut Value) {
    if let Some(status) = member(object, "status") {
        default(status, "phase", "Active");
    }
    let name = object.get("metadata").map(|m| text(m, "name").to_owned()).unwrap_or_default();
    if !name.is_empty()
        && let Some(Value::Object(labels)) = member(object, "metadata").and_then(|m| member(m, "labels"))
    {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

pub(super) fn node(object: &mut Value) {
    if let Some(status) = object.get_mut("status")
        && let Some(capacity) = status.get("capacity").cloned()
    {
        default_pointer(status, "allocatable", capacity);
    }
}

/// `stringData` moves into `data`.
pub(super) fn secret(object: &mut Value) {
    default(object, "type", "Opaque");
    let Value::Object(map) = object else { return };
    let Some(Value::Object(strings)) = map.remove("stringData") else { return };
    if strings.is_empty() {
        return;
    }
    let data = map.entry("data").or_insert_with(|| Value::Object(Map::new()));
    if data.is_null() {
        *data = Value::Object(Map::new());
    }
    if let Value::Object(data) = data {
        for (key, value) in strings {
            let bytes = value.as_str().unwrap_or_default().as_bytes();
            data.insert(key, crate::codec::encode_base64(bytes).into());
        }
    }
}

pub(super) fn persistent_volume(object: &mut Value) {
    if let Some(status) = member(object, "status") {
        default(status, "phase", "Pending");
    }
    if let Some(spec) = member(object, "spec") {
        default(spec, "persistentVolumeReclaimPolicy", "Retain");
        default_pointer(spec, "volumeMode", "Filesystem");
        if let Some(path) = spec.get_mut("hostPath") {
            default_pointer(path, "type", "");
        }
        if let Some(disk) = spec.get_mut("azureDisk") {
            default_pointer(disk, "readOnly", false);
        }
    }
}

pub(super) fn claim(object: &mut Value) {
    if let Some(status) = member(object, "status") {
        default(status, "phase", "Pending");
    }
    if let Some(spec) = member(object, "spec") {
        default_pointer(spec, "volumeMode", "Filesystem");
    }
}

/// Default limits are the maxima, default requests the default limits, or the minima.
pub(super) fn limit_range(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    for limit in items(spec, "limits").filter(|l| text(l, "type") == "Container") {
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let Some(Value::Object(source)) = limit.get(from).cloned() else { continue };
            if source.is_empty() {
                continue;
            }
            default_pointer(limit, to, json!({}));
            if let Some(Value::Object(target)) = limit.get_mut(to) {
                for (name, quantity) in source {
                    target.entry(name).or_insert(quantity);
                }
            }
        }
    }
}
