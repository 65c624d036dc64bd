//! Ingresses, their classes, network policies, service addresses and ranges.

use kelp_model::names;
use serde_json::{Value, json};
use std::net::IpAddr;

use super::{Errors, at, immutable, int, invalid_each, list, meta, net, selector, set, text, texts};
use crate::error::FieldError;
use crate::gvk::GroupVersionKind;

pub(super) fn create(gvk: &GroupVersionKind, object: &Value, errs: &mut Errors) {
    match gvk.kind.as_str() {
        "Ingress" => {
            ingress(object, errs);
            const CLASS: &str = "kubernetes.io/ingress.class";
            let class = at(at(object, "metadata"), "annotations").get(CLASS);
            if let Some(class) = class.filter(|_| set(at(object, "spec"), "ingressClassName")) {
                let detail = "can not be set when the class field is also set";
                errs.push(FieldError::invalid(format!("annotations.{CLASS}"), class, detail));
            }
        }
        "IngressClass" => ingress_class(object, errs),
        "NetworkPolicy" => policy(object, errs),
        "IPAddress" => parent(at(at(object, "spec"), "parentRef"), errs),
        "ServiceCIDR" => ranges(object, errs),
        _ => {}
    }
}

pub(super) fn update(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    let (after, before) = (at(new, "spec"), at(old, "spec"));
    match gvk.kind.as_str() {
        "Ingress" => {
            meta::create(gvk, new, errs);
            ingress(new, errs);
        }
        "IngressClass" => {
            immutable(errs, "spec.controller", at(after, "controller"), at(before, "controller"));
            meta::create(gvk, new, errs);
            ingress_class(new, errs);
        }
        "NetworkPolicy" => policy(new, errs),
        "IPAddress" => immutable(errs, "spec.parentRef", at(after, "parentRef"), at(before, "parentRef")),
        "ServiceCIDR" => range_changes(gvk, new, old, errs),
        _ => {}
    }
}

pub(super) fn status(gvk: &GroupVersionKind, new: &Value, errs: &mut Errors) {
    if gvk.kind != "Ingress" {
        return;
    }
    let points = list(at(at(new, "status"), "loadBalancer"), "ingress");
    for (i, point) in points.iter().enumerate() {
        let path = format!("status.loadBalancer.ingress[{i}]");
        let (ip, hostname) = (text(point, "ip"), text(point, "hostname"));
        if !ip.is_empty() {
            net::ip(errs, &format!("{path}.ip"), ip);
        }
        if !hostname.is_empty() {
            let path = format!("{path}.hostname");
            invalid_each(errs, &path, hostname, names::dns1123_subdomain(hostname));
            if net::parse_ip(hostname).is_some() {
                errs.push(FieldError::invalid(path, hostname, "must be a DNS name, not an IP address"));
            }
        }
    }
}

fn ingress(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    let rules = list(spec, "rules");
    if rules.is_empty() && !set(spec, "defaultBackend") {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errs.push(FieldError::invalid("spec", at(spec, "rules"), detail));
    }
    if set(spec, "defaultBackend") {
        backend(at(spec, "defaultBackend"), "spec.defaultBackend", errs);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        let host = text(rule, "host");
        if !host.is_empty() {
            if net::parse_ip(host).is_some() {
                let detail = "must be a DNS name, not an IP address";
                errs.push(FieldError::invalid(format!("{path}.host"), host, detail));
            }
            host_name(&format!("{path}.host"), host, errs);
        }
        let http = at(rule, "http");
        if http.is_null() {
            continue;
        }
        if list(http, "paths").is_empty() {
            errs.push(FieldError::required(format!("{path}.http.paths"), ""));
        }
        for (j, p) in list(http, "paths").iter().enumerate() {
            http_path(p, &format!("{path}.http.paths[{j}]"), errs);
        }
    }
    for (i, tls) in list(spec, "tls").iter().enumerate() {
        for (j, host) in texts(tls, "hosts").enumerate() {
            host_name(&format!("spec.tls[{i}].hosts[{j}]"), host, errs);
        }
        let secret = text(tls, "secretName");
        if !secret.is_empty() {
            let path = format!("spec.tls[{i}].secretName");
            invalid_each(errs, &path, secret, names::dns1123_subdomain(secret));
        }
    }
    if set(spec, "ingressClassName") {
        let class = text(spec, "ingressClassName");
        invalid_each(errs, "spec.ingressClassName", class, names::dns1123_subdomain(class));
    }
}

/// A host that may begin with a wildcard.
fn host_name(path: &str, host: &str, errs: &mut Errors) {
    let messages = if host.contains('*') {
        names::wildcard_dns1123_subdomain(host)
    } else {
        names::dns1123_subdomain(host)
    };
    invalid_each(errs, path, host, messages);
}

fn http_path(p: &Value, path: &str, errs: &mut Errors) {
    const SEQUENCES: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
    const SUFFIXES: [&str; 2] = ["/..", "/."];
    if !set(p, "pathType") {
        errs.push(FieldError::required(format!("{path}.pathType"), "pathType must be specified"));
        return;
    }
    let value = text(p, "path");
    let mut bad = |detail: String| errs.push(FieldError::invalid(format!("{path}.path"), value, detail));
    match text(p, "pathType") {
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                bad("must be an absolute path".to_owned());
            }
            for sequence in SEQUENCES.into_iter().filter(|s| value.contains(s)) {
                bad(format!("must not contain '{sequence}'"));
            }
            for suffix in SUFFIXES.into_iter().filter(|s| value.ends_with(s)) {
                bad(format!("cannot end with '{suffix}'"));
            }
        }
        "ImplementationSpecific" => {
            if !value.is_empty() && !value.starts_with('/') {
                bad("must be an absolute path".to_owned());
            }
        }
        other => {
            const SUPPORTED: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
            errs.push(FieldError::not_supported(format!("{path}.pathType"), other, &SUPPORTED));
        }
    }
    backend(at(p, "backend"), &format!("{path}.backend"), errs);
}

fn backend(backend: &Value, path: &str, errs: &mut Errors) {
    let service = at(backend, "service");
    match (set(backend, "resource"), !service.is_null()) {
        (true, true) => {
            errs.push(FieldError::invalid(path, "", "cannot set both resource and service backends"));
        }
        (true, false) => local_reference(at(backend, "resource"), &format!("{path}.resource"), errs),
        (false, true) => {
            let name = text(service, "name");
            if name.is_empty() {
                errs.push(FieldError::required(format!("{path}.service.name"), ""));
            } else {
                invalid_each(errs, &format!("{path}.service.name"), name, names::dns1123_label(name));
            }
            let port = at(service, "port");
            let (port_name, number) = (text(port, "name"), int(port, "number").unwrap_or_default());
            match (port_name.is_empty(), number) {
                (true, 0) => errs.push(FieldError::required(path, "port name or number is required")),
                (false, 0) => {
                    let path = format!("{path}.service.port.name");
                    invalid_each(errs, &path, port_name, names::port_name(port_name));
                }
                (true, number) => {
                    for message in names::port_number(number) {
                        let path = format!("{path}.service.port.number");
                        errs.push(FieldError::invalid(path, number, message));
                    }
                }
                (false, _) => {
                    errs.push(FieldError::invalid(path, "", "cannot set both port name & port number"));
                }
            }
        }
        (false, false) => {
            errs.push(FieldError::invalid(path, "", "resource or service backend is required"));
        }
    }
}

/// A reference to an object of the same namespace by group, kind and name.
fn local_reference(reference: &Value, path: &str, errs: &mut Errors) {
    if set(reference, "apiGroup") {
        let group = text(reference, "apiGroup");
        invalid_each(errs, &format!("{path}.apiGroup"), group, names::dns1123_subdomain(group));
    }
    for field in ["kind", "name"] {
        let value = text(reference, field);
        let path = format!("{path}.{field}");
        if value.is_empty() {
            errs.push(FieldError::required(path, format!("{field} is required")));
        } else {
            invalid_each(errs, &path, value, names::path_segment_name(value));
        }
    }
}

fn ingress_class(object: &Value, errs: &mut Errors) {
    const MAX_CONTROLLER: usize = 250;
    let spec = at(object, "spec");
    let controller = text(spec, "controller");
    if controller.len() > MAX_CONTROLLER {
        errs.push(FieldError::too_long("spec.controller", MAX_CONTROLLER));
    }
    domain_prefixed_path("spec.controller", controller, errs);
    const PATH: &str = "spec.parameters";
    let parameters = at(spec, "parameters");
    if parameters.is_null() {
        return;
    }
    local_reference(parameters, PATH, errs);
    if !set(parameters, "scope") {
        errs.push(FieldError::required(format!("{PATH}.scope"), ""));
        return;
    }
    let namespace = text(parameters, "namespace");
    let path = format!("{PATH}.namespace");
    match text(parameters, "scope") {
        "Namespace" if !set(parameters, "namespace") => {
            errs.push(FieldError::required(path, "`parameters.scope` is set to 'Namespace'"));
        }
        "Namespace" => invalid_each(errs, &path, namespace, names::dns1123_label(namespace)),
        "Cluster" => {
            if set(parameters, "namespace") {
                errs.push(FieldError::forbidden(path, "`parameters.scope` is set to 'Cluster'"));
            }
        }
        other => {
            let supported = ["Cluster", "Namespace"];
            errs.push(FieldError::not_supported(format!("{PATH}.scope"), other, &supported));
        }
    }
}

/// A name such as `example.com/path`.
pub(super) fn domain_prefixed_path(path: &str, value: &str, errs: &mut Errors) {
    if value.is_empty() {
        errs.push(FieldError::required(path, ""));
        return;
    }
    let Some((host, rest)) =
        value.split_once('/').filter(|(host, rest)| !host.is_empty() && !rest.is_empty())
    else {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errs.push(FieldError::invalid(path, value, detail));
        return;
    };
    invalid_each(errs, path, host, names::dns1123_subdomain(host));
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !rest.bytes().all(allowed) {
        let detail = names::regex_error("Invalid path", "[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+", &[]);
        errs.push(FieldError::invalid(path, rest, detail));
    }
}

fn policy(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    selector::label_selector(at(spec, "podSelector"), "spec.podSelector", errs);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(spec, direction).iter().enumerate() {
            let path = format!("spec.{direction}[{i}]");
            for (j, port) in list(rule, "ports").iter().enumerate() {
                policy_port(port, &format!("{path}.ports[{j}]"), errs);
            }
            for (j, p) in list(rule, peers).iter().enumerate() {
                peer(p, &format!("{path}.{peers}[{j}]"), errs);
            }
        }
    }
    const TYPES: [&str; 2] = ["Ingress", "Egress"];
    if list(spec, "policyTypes").len() > TYPES.len() {
        let detail = "may not specify more than two policyTypes";
        errs.push(FieldError::invalid("spec.policyTypes", at(spec, "policyTypes"), detail));
        return;
    }
    for (i, kind) in texts(spec, "policyTypes").enumerate().filter(|(_, t)| !TYPES.contains(t)) {
        errs.push(FieldError::not_supported(format!("spec.policyTypes[{i}]"), kind, &TYPES));
    }
}

fn policy_port(port: &Value, path: &str, errs: &mut Errors) {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    let protocol = text(port, "protocol");
    if set(port, "protocol") && !PROTOCOLS.contains(&protocol) {
        errs.push(FieldError::not_supported(format!("{path}.protocol"), protocol, &PROTOCOLS));
    }
    let end = int(port, "endPort");
    let end_path = format!("{path}.endPort");
    let refuse = |errs: &mut Errors, why: &str| {
        if let Some(end) = end {
            errs.push(FieldError::invalid(end_path.as_str(), end, why));
        }
    };
    match at(port, "port") {
        Value::Null => refuse(errs, "may not be specified when `port` is not specified"),
        Value::String(name) => {
            refuse(errs, "may not be specified when `port` is non-numeric");
            invalid_each(errs, &format!("{path}.port"), name, names::port_name(name));
        }
        number => {
            let number = number.as_i64().unwrap_or_default();
            for message in names::port_number(number) {
                errs.push(FieldError::invalid(format!("{path}.port"), number, message));
            }
            let Some(end) = end else { return };
            if end < number {
                let detail = "must be greater than or equal to `port`";
                errs.push(FieldError::invalid(end_path.as_str(), number, detail));
            }
            for message in names::port_number(end) {
                errs.push(FieldError::invalid(end_path.as_str(), end, message));
            }
        }
    }
}

fn peer(peer: &Value, path: &str, errs: &mut Errors) {
    let mut count = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if set(peer, field) {
            count += 1;
            selector::label_selector(at(peer, field), &format!("{path}.{field}"), errs);
        }
    }
    let block = set(peer, "ipBlock");
    if block {
        count += 1;
        ip_block(at(peer, "ipBlock"), &format!("{path}.ipBlock"), errs);
    }
    if count == 0 {
        errs.push(FieldError::required(path, "must specify a peer"));
    } else if count > 1 && block {
        errs.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
    }
}

fn ip_block(block: &Value, path: &str, errs: &mut Errors) {
    let range = text(block, "cidr");
    if range.is_empty() {
        errs.push(FieldError::required(format!("{path}.cidr"), ""));
        return;
    }
    net::cidr(errs, &format!("{path}.cidr"), range);
    let Some((network, bits)) = net::parse_cidr(range) else { return };
    for (i, except) in texts(block, "except").enumerate() {
        let path = format!("{path}.except[{i}]");
        net::cidr(errs, &path, except);
        let Some((address, except_bits)) = net::parse_cidr(except) else { continue };
        let inside = address.is_ipv4() == network.is_ipv4()
            && net::masked(net::masked(address, except_bits), bits) == net::masked(network, bits);
        if !inside || bits >= except_bits {
            errs.push(FieldError::invalid(path, except, "must be a strict subset of `cidr`"));
        }
    }
}

/// What is wrong with the name of an IPAddress: it has to be the canonical spelling of an address.
pub(super) fn address_name(name: &str) -> Vec<String> {
    let quoted = crate::error::quote(name);
    match name.parse::<IpAddr>() {
        Ok(ip) if ip.to_string() == name => Vec::new(),
        Ok(_) => vec!["must be a canonical form IP address".to_owned()],
        Err(_) => {
            let why = if !name.contains(['.', ':']) {
                "unable to parse IP"
            } else if name.contains(':') {
                "each colon-separated field must have at least one digit"
            } else if net::parse_ip(name).is_some() {
                "IPv4 field has octet with leading zero"
            } else if name.split('.').any(|p| p.parse::<u64>().is_ok_and(|n| n > 255)) {
                "IPv4 field has value >255"
            } else if name.split('.').count() > 4 {
                "IPv4 address too long"
            } else if name.bytes().all(|b| b.is_ascii_digit() || b == b'.') && !name.contains("..") {
                "IPv4 address too short"
            } else {
                "unexpected character"
            };
            vec![format!("ParseAddr({quoted}): {why}")]
        }
    }
}

fn parent(parent: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.parentRef";
    if parent.is_null() {
        errs.push(FieldError::required(PATH, ""));
        return;
    }
    let group = text(parent, "group");
    if !group.is_empty() {
        invalid_each(errs, &format!("{PATH}.group"), group, names::dns1123_subdomain(group));
    }
    for (field, required) in [("resource", true), ("name", true), ("namespace", false)] {
        let value = text(parent, field);
        let path = format!("{PATH}.{field}");
        if !value.is_empty() {
            invalid_each(errs, &path, value, names::path_segment_name(value));
        } else if required {
            errs.push(FieldError::required(path, ""));
        }
    }
}

fn ranges(object: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.cidrs";
    let all: Vec<&str> = texts(at(object, "spec"), "cidrs").collect();
    let shown = || json!({"CIDRs": all});
    if all.is_empty() {
        errs.push(FieldError::required(PATH, "at least one CIDR required"));
        return;
    }
    if all.len() > 2 {
        errs.push(FieldError::invalid(PATH, shown(), "may only hold up to 2 values"));
        return;
    }
    let known = |range: &&str| net::parse_cidr(range).is_some();
    if all.len() == 2 && !(all.iter().all(known) && net::dual_stack(&all)) {
        errs.push(FieldError::invalid(
            PATH,
            shown(),
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96",
        ));
        return;
    }
    for (i, range) in all.iter().enumerate() {
        net::strict_cidr(errs, &format!("{PATH}[{i}]"), range);
    }
}

fn range_changes(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.cidrs";
    const FIXED: &str = "field is immutable";
    let (after, before) = (list(at(new, "spec"), "cidrs"), list(at(old, "spec"), "cidrs"));
    match (before, after) {
        _ if before.len() == after.len() => {
            for (i, (_, now)) in before.iter().zip(after).enumerate().filter(|(_, (b, a))| b != a) {
                errs.push(FieldError::invalid(format!("{PATH}[{i}]"), now, FIXED));
            }
        }
        // A second family may be added.
        ([was], [now, _]) => {
            if was != now {
                errs.push(FieldError::invalid(format!("{PATH}[0]"), now, FIXED));
            }
            meta::create(gvk, new, errs);
            ranges(new, errs);
        }
        _ => errs.push(FieldError::invalid(PATH, at(at(new, "spec"), "cidrs"), FIXED)),
    }
}
