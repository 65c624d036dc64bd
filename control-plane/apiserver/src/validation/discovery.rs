//! Endpoints and EndpointSlices.

use kelp_model::names;
use serde_json::Value;

use super::{Errors, at, immutable, int, invalid_each, list, map, net, one_of, set, text, texts};
use crate::error::FieldError;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub(super) fn endpoints(object: &Value, errs: &mut Errors) {
    for (i, subset) in list(object, "subsets").iter().enumerate() {
        let path = format!("subsets[{i}]");
        if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty() {
            errs.push(FieldError::required(path.as_str(), "must specify `addresses` or `notReadyAddresses`"));
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (j, address) in list(subset, field).iter().enumerate() {
                let path = format!("{path}.{field}[{j}]");
                let ip = text(address, "ip");
                net::ip(errs, &format!("{path}.ip"), ip);
                let hostname = text(address, "hostname");
                if !hostname.is_empty() {
                    invalid_each(errs, &format!("{path}.hostname"), hostname, names::dns1123_label(hostname));
                }
                if set(address, "nodeName") {
                    let node = text(address, "nodeName");
                    invalid_each(errs, &format!("{path}.nodeName"), node, names::dns1123_subdomain(node));
                }
                net::not_special(errs, &format!("{path}.ip"), ip);
            }
        }
        let ports = list(subset, "ports");
        for (j, p) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{j}]");
            let name = text(p, "name");
            if name.is_empty() {
                if ports.len() > 1 {
                    errs.push(FieldError::required(format!("{path}.name"), ""));
                }
            } else {
                invalid_each(errs, &format!("{path}.name"), name, names::dns1123_label(name));
            }
            port_number(p, &path, errs);
            one_of(errs, &format!("{path}.protocol"), text(p, "protocol"), &PROTOCOLS);
            app_protocol(p, &path, errs);
        }
    }
}

fn port_number(port: &Value, path: &str, errs: &mut Errors) {
    let number = int(port, "port").unwrap_or_default();
    for message in names::port_number(number) {
        errs.push(FieldError::invalid(format!("{path}.port"), number, message));
    }
}

fn app_protocol(port: &Value, path: &str, errs: &mut Errors) {
    if set(port, "appProtocol") {
        let protocol = text(port, "appProtocol");
        invalid_each(errs, &format!("{path}.appProtocol"), protocol, names::qualified_name(protocol));
    }
}

/// Limits of one slice.
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;

pub(super) fn slice(object: &Value, errs: &mut Errors) {
    let kind = text(object, "addressType");
    one_of(errs, "addressType", kind, &["FQDN", "IPv4", "IPv6"]);
    let endpoints = list(object, "endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errs.push(FieldError::too_many("endpoints", endpoints.len(), MAX_ENDPOINTS));
    } else {
        for (i, e) in endpoints.iter().enumerate() {
            endpoint(e, kind, &format!("endpoints[{i}]"), errs);
        }
    }
    let ports = list(object, "ports");
    if ports.len() > MAX_PORTS {
        errs.push(FieldError::too_many("ports", ports.len(), MAX_PORTS));
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, p) in ports.iter().enumerate() {
        let path = format!("ports[{i}]");
        let name = text(p, "name");
        if !name.is_empty() {
            invalid_each(errs, &format!("{path}.name"), name, names::dns1123_label(name));
        }
        if seen.contains(&name) {
            errs.push(FieldError::duplicate(format!("{path}.name"), name));
        } else {
            seen.push(name);
        }
        let protocol = text(p, "protocol");
        one_of(errs, &format!("{path}.protocol"), protocol, &PROTOCOLS);
        if set(p, "port") {
            port_number(p, &path, errs);
        }
        app_protocol(p, &path, errs);
    }
}

fn endpoint(e: &Value, kind: &str, path: &str, errs: &mut Errors) {
    let addresses = list(e, "addresses");
    if addresses.is_empty() {
        errs.push(FieldError::required(format!("{path}.addresses"), "must contain at least 1 address"));
    } else if addresses.len() > MAX_ADDRESSES {
        errs.push(FieldError::too_many(format!("{path}.addresses"), addresses.len(), MAX_ADDRESSES));
    }
    for (i, address) in texts(e, "addresses").enumerate() {
        let path = format!("{path}.addresses[{i}]");
        let parsed = net::parse_ip(address);
        match kind {
            "IPv4" => {
                if !parsed.is_some_and(|a| a.is_ipv4()) {
                    errs.push(FieldError::invalid(path.as_str(), address, "must be a valid IPv4 address"));
                }
                net::not_special(errs, &path, address);
            }
            "IPv6" => {
                if !parsed.is_some_and(|a| a.is_ipv6()) {
                    errs.push(FieldError::invalid(path.as_str(), address, "must be a valid IPv6 address"));
                }
                net::not_special(errs, &path, address);
            }
            "FQDN" => {
                let name = address.strip_suffix('.').unwrap_or(address);
                invalid_each(errs, &path, address, names::dns1123_subdomain(name));
            }
            _ => {}
        }
    }
    if set(e, "nodeName") {
        let node = text(e, "nodeName");
        invalid_each(errs, &format!("{path}.nodeName"), node, names::dns1123_subdomain(node));
    }
    for (key, value) in map(e, "deprecatedTopology") {
        let path = format!("{path}.deprecatedTopology");
        invalid_each(errs, &path, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        invalid_each(errs, &format!("{path}[{key}]"), value, names::label_value(value));
    }
    if set(e, "hostname") {
        let host = text(e, "hostname");
        invalid_each(errs, &format!("{path}.hostname"), host, names::dns1123_label(host));
    }
    let zones = list(at(e, "hints"), "forZones");
    if zones.len() > 8 {
        errs.push(FieldError::too_many(format!("{path}.hints.forZones"), zones.len(), 8));
    }
}

pub(super) fn slice_update(new: &Value, old: &Value, errs: &mut Errors) {
    slice(new, errs);
    immutable(errs, "addressType", at(new, "addressType"), at(old, "addressType"));
}
