//! Hooks of services and their endpoints; addresses and ports are in `crate::allocation`.

use crate::object::{get, int_at, list_at, meta_mut, str_at};
use crate::validation::{cidr_warnings, ip_warnings};
use serde_json::Value;

/// What a service says that has no effect, or will have none one day.
pub(super) fn warnings(object: &Value) -> Vec<String> {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    let spec = |field: &str| str_at(object, &["spec", field]);
    let list = |field: &str| list_at(object, &["spec", field]);
    let mut out = Vec::new();
    if get(object, &["metadata", "annotations", HINTS]).is_some() {
        out.push(format!(
            "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let headless = list("clusterIPs").first().is_some_and(|ip| ip == "None");
    let external_name = spec("type") == "ExternalName";
    let addresses = |field: &str, out: &mut Vec<String>| {
        for (i, ip) in list(field).iter().filter_map(Value::as_str).enumerate() {
            out.extend(ip_warnings(&format!("spec.{field}[{i}]"), ip));
        }
    };
    if !headless && !external_name {
        addresses("clusterIPs", &mut out);
    }
    if headless {
        if !spec("loadBalancerIP").is_empty() {
            out.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if !list("externalIPs").is_empty() {
            out.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if spec("sessionAffinity") != "None" {
            out.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    addresses("externalIPs", &mut out);
    out.extend(ip_warnings("spec.loadBalancerIP", spec("loadBalancerIP")));
    for (i, range) in list("loadBalancerSourceRanges").iter().filter_map(Value::as_str).enumerate() {
        out.extend(cidr_warnings(&format!("spec.loadBalancerSourceRanges[{i}]"), range.trim()));
    }
    if !list("externalIPs").is_empty() {
        out.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned(),
        );
    }
    if external_name && !list("externalIPs").is_empty() {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !spec("externalName").is_empty() && !external_name {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec("trafficDistribution") == "PreferClose" {
        out.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
    out
}

/// Unusual spellings of addresses of an Endpoints.
pub(super) fn endpoints_warnings(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for (i, subset) in list_at(object, &["subsets"]).iter().enumerate() {
        for field in ["addresses", "notReadyAddresses"] {
            for (j, address) in list_at(subset, &[field]).iter().enumerate() {
                let path = format!("subsets[{i}].{field}[{j}].ip");
                out.extend(ip_warnings(&path, str_at(address, &["ip"])));
            }
        }
    }
    out
}

/// What an EndpointSlice says in a deprecated way.
pub(super) fn slice_warnings(object: &Value) -> Vec<String> {
    if str_at(object, &["addressType"]) == "FQDN" {
        return vec!["spec.addressType: FQDN endpoints are deprecated".to_owned()];
    }
    let mut out = Vec::new();
    for (i, endpoint) in list_at(object, &["endpoints"]).iter().enumerate() {
        for (j, ip) in list_at(endpoint, &["addresses"]).iter().filter_map(Value::as_str).enumerate() {
            out.extend(ip_warnings(&format!("spec.endpoints[{i}].addresses[{j}]"), ip));
        }
    }
    out
}

/// `deprecatedTopology` cannot be written in this version of the API.
fn drop_topology(object: &mut Value) {
    for endpoint in object.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(endpoint) = endpoint.as_object_mut() {
            endpoint.remove("deprecatedTopology");
        }
    }
}

pub(super) fn slice_create(object: &mut Value) {
    drop_topology(object);
}

/// Labels count for the generation of a slice, as they say whose it is.
pub(super) fn slice_update(new: &mut Value, old: &Value) {
    if new.get("endpoints") != old.get("endpoints") {
        drop_topology(new);
    }
    if get(new, &["metadata", "labels"]) != get(old, &["metadata", "labels"]) {
        let generation = int_at(old, &["metadata", "generation"]).unwrap_or_default() + 1;
        meta_mut(new).insert("generation".into(), generation.into());
    }
}
