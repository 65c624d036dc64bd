//! Rows of services and their endpoints.

use super::*;
use crate::object::{int_at, list_at, str_at};
use std::collections::BTreeSet;

/// Services.
pub static SERVICE_TABLE: TableSpec =
    TableSpec { columns: SERVICE, cells: service, conditions: no_conditions };
/// Endpoints.
pub static ENDPOINTS_TABLE: TableSpec =
    TableSpec { columns: ENDPOINTS, cells: endpoints, conditions: no_conditions };
/// EndpointSlices.
pub static ENDPOINT_SLICE_TABLE: TableSpec =
    TableSpec { columns: ENDPOINT_SLICE, cells: endpoint_slice, conditions: no_conditions };

fn or_none(text: String) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

fn external(object: &Value) -> String {
    let ips: Vec<&str> = list_at(object, &["spec", "externalIPs"]).iter().filter_map(Value::as_str).collect();
    match str_at(object, &["spec", "type"]) {
        "ExternalName" => str_at(object, &["spec", "externalName"]).to_owned(),
        "LoadBalancer" => {
            let mut all: BTreeSet<&str> = BTreeSet::new();
            for ingress in list_at(object, &["status", "loadBalancer", "ingress"]) {
                let ip = str_at(ingress, &["ip"]);
                all.insert(if ip.is_empty() { str_at(ingress, &["hostname"]) } else { ip });
            }
            all.remove("");
            let mut parts: Vec<&str> = all.into_iter().collect();
            if parts.is_empty() && ips.is_empty() {
                return "<pending>".to_owned();
            }
            parts.extend(ips);
            parts.join(",")
        }
        _ if ips.is_empty() => "<none>".to_owned(),
        _ => ips.join(","),
    }
}

fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list_at(object, &["spec", "ports"])
        .iter()
        .map(|port| {
            let number = int_at(port, &["port"]).unwrap_or_default();
            let protocol = str_at(port, &["protocol"]);
            match int_at(port, &["nodePort"]).unwrap_or_default() {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    let cluster_ip = match str_at(object, &["spec", "clusterIPs", "0"]) {
        _ if !list_at(object, &["spec", "clusterIPs"]).is_empty() => {
            list_at(object, &["spec", "clusterIPs"]).first().and_then(Value::as_str).unwrap_or_default()
        }
        _ => str_at(object, &["spec", "clusterIP"]),
    };
    vec![
        meta(object, "name").into(),
        str_at(object, &["spec", "type"]).into(),
        or_none(cluster_ip.to_owned()),
        external(object).into(),
        or_none(ports.join(",")),
        age(object, now),
        pairs(get(object, &["spec", "selector"])).into(),
    ]
}

fn host_port(address: &str, port: i64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list_at(object, &["subsets"]) {
        let addresses = list_at(subset, &["addresses"]).iter().map(|a| str_at(a, &["ip"]));
        let ports = list_at(subset, &["ports"]);
        for address in addresses {
            if ports.is_empty() {
                all.push(address.to_owned());
            }
            for port in ports {
                all.push(host_port(address, int_at(port, &["port"]).unwrap_or_default()));
            }
        }
    }
    vec![meta(object, "name").into(), more(all, 3, "<none>").into(), age(object, now)]
}

/// The first entries with a count of the others.
fn more(mut all: Vec<String>, max: usize, none: &str) -> String {
    if all.is_empty() {
        return none.to_owned();
    }
    let rest = all.len().saturating_sub(max);
    all.truncate(max);
    let text = all.join(",");
    if rest > 0 { format!("{text} + {rest} more...") } else { text }
}

fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list_at(object, &["ports"])
        .iter()
        .map(|port| match int_at(port, &["port"]) {
            Some(number) => number.to_string(),
            None if !str_at(port, &["name"]).is_empty() => str_at(port, &["name"]).to_owned(),
            None => "*".to_owned(),
        })
        .collect();
    let addresses: Vec<String> = list_at(object, &["endpoints"])
        .iter()
        .flat_map(|e| list_at(e, &["addresses"]).iter().filter_map(Value::as_str).map(str::to_owned))
        .collect();
    vec![
        meta(object, "name").into(),
        str_at(object, &["addressType"]).into(),
        more(ports, 3, "<unset>").into(),
        more(addresses, 3, "<unset>").into(),
        age(object, now),
    ]
}
