//! What becomes of a Service's allocated fields before validation: values the client left out are kept, `clusterIP` and
//! `clusterIPs` agree, fields that the type does not have any more go.

use serde_json::{Value, json};

use super::{list, needs_addresses, needs_health_port, needs_node_ports, number, text};

fn spec_mut(service: &mut Value) -> Option<&mut serde_json::Map<String, Value>> {
    service.get_mut("spec").and_then(Value::as_object_mut)
}

/// Prepares a Service that is to be created.
pub fn prepare_create(service: &mut Value) {
    let Some(spec) = spec_mut(service) else { return };
    let ip = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
    let without = spec.get("clusterIPs").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if !ip.is_empty() && without {
        spec.insert("clusterIPs".to_owned(), json!([ip]));
    }
}

/// Prepares an update of a Service.
pub fn prepare_update(new: &mut Value, old: &Value) {
    let Some(before) = old.get("spec").filter(|s| s.is_object()).cloned() else { return };
    keep_addresses(new, &before);
    keep_ports(new, &before);
    same_addresses(new, &before);
    drop_fields(new, &before);
    downgrade(new, &before);
    let balanced = |s: &Value| super::spec_text(s, "type") == "LoadBalancer";
    if balanced(old)
        && !balanced(new)
        && let Some(Value::Object(status)) = new.pointer_mut("/status/loadBalancer")
    {
        status.clear();
    }
}

fn keep_addresses(new: &mut Value, before: &Value) {
    let after = new.get("spec").cloned().unwrap_or_default();
    if !needs_addresses(before) || !needs_addresses(&after) {
        return;
    }
    let Some(spec) = spec_mut(new) else { return };
    if text(&after, "clusterIP").is_empty() && list(&after, "clusterIPs").is_empty() {
        spec.insert("clusterIP".to_owned(), text(before, "clusterIP").into());
    }
    let same = spec.get("clusterIP").and_then(Value::as_str) == Some(text(before, "clusterIP"));
    if list(&after, "clusterIPs").is_empty() && same {
        spec.insert("clusterIPs".to_owned(), json!(list(before, "clusterIPs")));
    }
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        let unset = after.get(field).is_none_or(|v| v.is_null() || v == &json!([]));
        if let Some(value) = before.get(field).filter(|_| unset) {
            spec.insert(field.to_owned(), value.clone());
        }
    }
}

fn keep_ports(new: &mut Value, before: &Value) {
    let after = new.get("spec").cloned().unwrap_or_default();
    if needs_node_ports(before) && needs_node_ports(&after) {
        let of = |spec: &Value| -> Vec<i64> {
            list(spec, "ports").iter().map(|p| number(p, "nodePort")).collect()
        };
        let wanted = of(&after);
        let mut used: Vec<i64> = of(before).into_iter().filter(|p| wanted.contains(p)).collect();
        let known = list(before, "ports");
        let ports = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter(|p| p.is_object()) {
            if number(port, "nodePort") != 0 {
                continue;
            }
            let name = text(port, "name").to_owned();
            let known = known.iter().rev().find(|p| text(p, "name") == name).map(|p| number(p, "nodePort"));
            if let Some(known) = known.filter(|k| *k != 0 && !used.contains(k)) {
                port["nodePort"] = known.into();
                used.push(known);
            }
        }
    }
    if needs_health_port(before)
        && needs_health_port(&after)
        && number(&after, "healthCheckNodePort") == 0
        && let Some(spec) = spec_mut(new)
    {
        spec.insert("healthCheckNodePort".to_owned(), number(before, "healthCheckNodePort").into());
    }
}

/// A client that knows one of `clusterIP` and `clusterIPs` only changes both.
fn same_addresses(new: &mut Value, before: &Value) {
    let Some(spec) = spec_mut(new) else { return };
    let one = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
    let all = spec.get("clusterIPs").and_then(Value::as_array).cloned().unwrap_or_default();
    let (same_one, same_all) = (one == text(before, "clusterIP"), all == list(before, "clusterIPs"));
    if !same_one && same_all {
        if one.is_empty() {
            spec.remove("clusterIPs");
        } else {
            spec.insert("clusterIPs".to_owned(), json!([one]));
        }
    } else if same_one && !same_all {
        match all.first() {
            Some(first) => spec.insert("clusterIP".to_owned(), first.clone()),
            None => spec.remove("clusterIP"),
        };
    }
}

/// Fields of the old type go, if the client did not change them with the type.
fn drop_fields(new: &mut Value, before: &Value) {
    let after = new.get("spec").cloned().unwrap_or_default();
    let Some(spec) = spec_mut(new) else { return };
    let same = |field: &str| after.get(field) == before.get(field);
    let mut remove = |fields: &[&str]| fields.iter().for_each(|f| drop(spec.remove(*f)));
    if needs_addresses(before) && !needs_addresses(&after) {
        if same("clusterIP") && same("clusterIPs") {
            remove(&["clusterIP", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if same(field) {
                remove(&[field]);
            }
        }
    }
    let kind = |s: &Value| text(s, "type").to_owned();
    let has_ports = |s: &Value| matches!(text(s, "type"), "NodePort" | "LoadBalancer");
    if needs_health_port(before) && !needs_health_port(&after) && same("healthCheckNodePort") {
        remove(&["healthCheckNodePort"]);
    }
    if kind(before) == "LoadBalancer" && kind(&after) != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(field) {
                remove(&[field]);
            }
        }
    }
    let accessible =
        |s: &Value| has_ports(s) || (kind(s) == "ClusterIP" && !list(s, "externalIPs").is_empty());
    if accessible(before) && !accessible(&after) && same("externalTrafficPolicy") {
        remove(&["externalTrafficPolicy"]);
    }
    if has_ports(before) && !has_ports(&after) {
        let of = |s: &Value| -> Vec<i64> { list(s, "ports").iter().map(|p| number(p, "nodePort")).collect() };
        if of(before) == of(&after) {
            for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Value::Object(port) = port {
                    port.remove("nodePort");
                }
            }
        }
    }
}

/// A Service that becomes single-stack gives its second address and family up.
fn downgrade(new: &mut Value, before: &Value) {
    let Some(spec) = spec_mut(new) else { return };
    if spec.get("ipFamilyPolicy").and_then(Value::as_str) != Some("SingleStack") {
        return;
    }
    for field in ["clusterIPs", "ipFamilies"] {
        let old = list(before, field);
        if old.len() == 2
            && let Some(Value::Array(values)) = spec.get_mut(field)
            && values.as_slice() == old
        {
            values.truncate(1);
        }
    }
}
