//! Services.

use kelp_model::names;
use serde_json::{Value, json};

use super::{Errors, at, int, invalid_each, list, meta, net, one_of, set, text, texts};
use crate::error::{BadValue, FieldError, FieldErrorKind};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
/// Longest session affinity, in seconds: a day.
const MAX_AFFINITY: i64 = 86_400;

/// A Go struct as upstream's messages show it: its fields in order.
pub(super) fn ordered(fields: &[(&str, Value)]) -> BadValue {
    let members: Vec<String> = fields.iter().map(|(k, v)| format!("{}:{v}", json!(k))).collect();
    BadValue::Text(format!("{{{}}}", members.join(",")))
}

fn headless(spec: &Value) -> bool {
    list(spec, "clusterIPs").len() == 1 && texts(spec, "clusterIPs").next() == Some("None")
}

fn externally_accessible(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !list(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

fn needs_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

/// A port that is a number or a name.
pub(super) fn port_or_name(value: &Value, path: &str, errs: &mut Errors) {
    match value {
        Value::String(name) => invalid_each(errs, path, name, names::port_name(name)),
        other => {
            let number = other.as_i64().unwrap_or_default();
            for message in names::port_number(number) {
                errs.push(FieldError::invalid(path, number, message));
            }
        }
    }
}

pub(super) fn create(object: &Value, errs: &mut Errors) {
    // Upstream looks at the addresses when it allocates them, and answers with what it finds then alone.
    let early = cluster_ips(object);
    if !early.is_empty() {
        *errs = early;
        return;
    }
    let spec = at(object, "spec");
    let kind = text(spec, "type");
    let headless = headless(spec);
    if list(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errs.push(FieldError::required("spec.ports", ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => errs.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            "None",
            format!("may not be set to 'None' for {kind} services"),
        )),
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies"] {
                if !list(spec, field).is_empty() {
                    let detail = "may not be set for ExternalName services";
                    errs.push(FieldError::forbidden(format!("spec.{field}"), detail));
                }
            }
            if set(spec, "ipFamilyPolicy") {
                let detail = "may not be set for ExternalName services";
                errs.push(FieldError::forbidden("spec.ipFamilyPolicy", detail));
            }
            let name = text(spec, "externalName");
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                errs.push(FieldError::required("spec.externalName", ""));
            } else {
                invalid_each(errs, "spec.externalName", name, names::dns1123_subdomain(name));
            }
        }
        _ => {}
    }
    ports(spec, errs);
    meta::labels(spec, "selector", "spec.selector", errs);
    one_of(errs, "spec.sessionAffinity", text(spec, "sessionAffinity"), &["ClientIP", "None"]);
    affinity(spec, errs);
    for (i, ip) in texts(spec, "externalIPs").enumerate() {
        let path = format!("spec.externalIPs[{i}]");
        if net::ip(errs, &path, ip) {
            net::not_special(errs, &path, ip);
        }
    }
    one_of(errs, "spec.type", kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    port_conflicts(spec, kind, errs);
    load_balancer(object, kind, errs);
    traffic(spec, kind, errs);
}

fn ports(spec: &Value, errs: &mut Errors) {
    let ports = list(spec, "ports");
    let mut names_seen: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = text(port, "name");
        if name.is_empty() {
            if ports.len() > 1 {
                errs.push(FieldError::required(format!("{path}.name"), ""));
            }
        } else {
            invalid_each(errs, &format!("{path}.name"), name, names::dns1123_label(name));
            if names_seen.contains(&name) {
                errs.push(FieldError::duplicate(format!("{path}.name"), name));
            } else {
                names_seen.push(name);
            }
        }
        let number = int(port, "port").unwrap_or_default();
        for message in names::port_number(number) {
            errs.push(FieldError::invalid(format!("{path}.port"), number, message));
        }
        one_of(errs, &format!("{path}.protocol"), text(port, "protocol"), &PROTOCOLS);
        port_or_name(at(port, "targetPort"), &format!("{path}.targetPort"), errs);
        if set(port, "appProtocol") {
            let protocol = text(port, "appProtocol");
            invalid_each(errs, &format!("{path}.appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

fn affinity(spec: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.sessionAffinityConfig";
    let config = at(spec, "sessionAffinityConfig");
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            const WHEN: &str = "when session affinity type is ClientIP";
            if config.is_null() {
                errs.push(FieldError::required(PATH, WHEN));
            } else if !set(config, "clientIP") {
                errs.push(FieldError::required(format!("{PATH}.clientIP"), WHEN));
            } else {
                let path = format!("{PATH}.clientIP.timeoutSeconds");
                match int(at(config, "clientIP"), "timeoutSeconds") {
                    None => errs.push(FieldError::required(path, WHEN)),
                    Some(seconds) if !(1..=MAX_AFFINITY).contains(&seconds) => {
                        errs.push(FieldError::invalid(
                            path,
                            seconds,
                            format!("must be greater than 0 and less than {MAX_AFFINITY}"),
                        ))
                    }
                    Some(_) => {}
                }
            }
        }
        "None" if !config.is_null() => {
            errs.push(FieldError::forbidden(PATH, "must not be set when session affinity is None"));
        }
        _ => {}
    }
}

fn port_conflicts(spec: &Value, kind: &str, errs: &mut Errors) {
    let ports = list(spec, "ports");
    let node_port = |p: &Value| int(p, "nodePort").unwrap_or_default();
    if kind == "ClusterIP" {
        for (i, _) in ports.iter().enumerate().filter(|(_, p)| node_port(p) != 0) {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errs.push(FieldError::forbidden(format!("spec.ports[{i}].nodePort"), detail));
        }
    }
    for (i, port) in ports.iter().enumerate().filter(|(_, p)| node_port(p) != 0) {
        let key = (text(port, "protocol"), node_port(port));
        if ports[..i].iter().any(|p| (text(p, "protocol"), node_port(p)) == key) {
            errs.push(FieldError::duplicate(format!("spec.ports[{i}].nodePort"), node_port(port)));
        }
    }
    for (i, port) in ports.iter().enumerate() {
        let key = |p: &Value| (text(p, "protocol").to_owned(), int(p, "port").unwrap_or_default());
        let (protocol, number) = key(port);
        if ports[..i].iter().any(|p| key(p) == (protocol.clone(), number)) {
            let shown = ordered(&[
                ("Name", json!("")),
                ("Protocol", json!(protocol)),
                ("AppProtocol", Value::Null),
                ("Port", json!(number)),
                ("TargetPort", json!(0)),
                ("NodePort", json!(0)),
            ]);
            errs.push(FieldError::new(FieldErrorKind::Duplicate, format!("spec.ports[{i}]"), shown, ""));
        }
    }
}

fn load_balancer(object: &Value, kind: &str, errs: &mut Errors) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let spec = at(object, "spec");
    let balanced = kind == "LoadBalancer";
    let annotation = at(at(object, "metadata"), "annotations").get(ANNOTATION);
    if !list(spec, "loadBalancerSourceRanges").is_empty() {
        const PATH: &str = "spec.LoadBalancerSourceRanges";
        if !balanced {
            errs.push(FieldError::forbidden(PATH, ONLY));
        }
        for (i, range) in texts(spec, "loadBalancerSourceRanges").enumerate() {
            net::cidr(errs, &format!("{PATH}[{i}]"), range.trim());
        }
    } else if let Some(ranges) = annotation.and_then(Value::as_str) {
        let path = format!("metadata.annotations[{ANNOTATION}]");
        if !balanced {
            errs.push(FieldError::forbidden(path.as_str(), ONLY));
        }
        for range in ranges.split(',').map(str::trim).filter(|_| !ranges.trim().is_empty()) {
            net::cidr(errs, &path, range);
        }
    }
    let allocate = set(spec, "allocateLoadBalancerNodePorts");
    if allocate && !balanced {
        errs.push(FieldError::forbidden("spec.allocateLoadBalancerNodePorts", ONLY));
    }
    if balanced && !allocate {
        errs.push(FieldError::required("allocateLoadBalancerNodePorts", ""));
    }
    if set(spec, "loadBalancerClass") {
        let class = text(spec, "loadBalancerClass");
        if balanced {
            invalid_each(errs, "spec.loadBalancerClass", class, names::qualified_name(class));
        } else {
            errs.push(FieldError::forbidden("spec.loadBalancerClass", ONLY));
        }
    }
}

fn traffic(spec: &Value, kind: &str, errs: &mut Errors) {
    let policy = text(spec, "externalTrafficPolicy");
    if externally_accessible(spec) {
        one_of(errs, "spec.externalTrafficPolicy", policy, &["Cluster", "Local"]);
    } else if !policy.is_empty() {
        errs.push(FieldError::invalid(
            "spec.externalTrafficPolicy",
            policy,
            "may only be set for externally-accessible services",
        ));
    }
    let port = int(spec, "healthCheckNodePort").unwrap_or_default();
    const HEALTH: &str = "spec.healthCheckNodePort";
    if needs_health_check(spec) {
        // 0 is filled in after validation.
        for message in names::port_number(port).into_iter().filter(|_| port != 0) {
            errs.push(FieldError::invalid(HEALTH, port, message));
        }
    } else if port != 0 {
        errs.push(FieldError::invalid(
            HEALTH,
            port,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ));
    }
    const INTERNAL: &str = "spec.internalTrafficPolicy";
    if !set(spec, "internalTrafficPolicy") {
        if matches!(kind, "NodePort" | "LoadBalancer" | "ClusterIP") {
            errs.push(FieldError::required(INTERNAL, ""));
        }
    } else {
        let policy = text(spec, "internalTrafficPolicy");
        if !matches!(policy, "Cluster" | "Local") {
            errs.push(FieldError::not_supported(INTERNAL, policy, &["Cluster", "Local"]));
        }
    }
    if set(spec, "trafficDistribution") {
        const SUPPORTED: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        let value = text(spec, "trafficDistribution");
        if !SUPPORTED.contains(&value) {
            errs.push(FieldError::not_supported("spec.trafficDistribution", value, &SUPPORTED));
        }
    }
}

/// The rules for `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`; they are checked before addresses are
/// allocated, too.
#[must_use]
pub fn cluster_ips(object: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    let spec = at(object, "spec");
    if text(spec, "type") == "ExternalName" {
        return errs;
    }
    const PATH: &str = "spec.clusterIPs";
    let ips: Vec<&str> = texts(spec, "clusterIPs").collect();
    let shown = at(spec, "clusterIPs");
    let first = text(spec, "clusterIP");
    if first.is_empty() {
        if !ips.is_empty() {
            errs.push(FieldError::invalid(PATH, shown, "must be empty when `clusterIP` is not specified"));
        }
    } else if ips.is_empty() {
        errs.push(FieldError::required(PATH, ""));
    } else if ips[0] != first {
        errs.push(FieldError::invalid(PATH, shown, "first value must match `clusterIP`"));
    }
    let families: Vec<&str> = texts(spec, "ipFamilies").collect();
    for (i, family) in families.iter().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        if !matches!(*family, "IPv4" | "IPv6") {
            errs.push(FieldError::not_supported(path.as_str(), *family, &["IPv4", "IPv6"]));
        }
        if families[..i].contains(family) {
            errs.push(FieldError::duplicate(path, *family));
        }
    }
    if set(spec, "ipFamilyPolicy") {
        const SUPPORTED: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        let policy = text(spec, "ipFamilyPolicy");
        if !SUPPORTED.contains(&policy) {
            errs.push(FieldError::not_supported("spec.ipFamilyPolicy", policy, &SUPPORTED));
        }
    }
    let mut bad = false;
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if ips.len() > 1 {
                bad = true;
                errs.push(FieldError::invalid(PATH, shown, "'None' must be the first and only value"));
            }
            continue;
        }
        bad |= !net::ip(&mut errs, &format!("{PATH}[{i}]"), ip);
    }
    if ips.len() > 2 {
        errs.push(FieldError::invalid(PATH, shown, "may only hold up to 2 values"));
    }
    if bad {
        return errs;
    }
    if ips.len() > 1 && !net::dual_stack(&ips) {
        let detail = "may specify no more than one IP for each IP family";
        errs.push(FieldError::invalid(PATH, shown, detail));
    }
    if !headless(spec) {
        for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
            let v6 = net::parse_ip(ip).is_some_and(|a| a.is_ipv6());
            if (*family == "IPv4" && v6) || (*family == "IPv6" && !v6) {
                errs.push(FieldError::invalid(
                    format!("{PATH}[{i}]"),
                    *ip,
                    format!("expected an {family} value as indicated by `ipFamilies[{i}]`"),
                ));
            }
        }
    }
    errs
}

pub(super) fn update(new: &Value, old: &Value, errs: &mut Errors) {
    let early = cluster_ips(new);
    if !early.is_empty() {
        *errs = early;
        return;
    }
    let (after, before) = (at(new, "spec"), at(old, "spec"));
    if text(after, "type") != "ExternalName" && text(before, "type") != "ExternalName" {
        address_changes(after, before, errs);
        family_changes(after, before, errs);
    }
    let balanced = |s: &Value| text(s, "type") == "LoadBalancer";
    if balanced(after)
        && balanced(before)
        && at(after, "loadBalancerClass") != at(before, "loadBalancerClass")
    {
        let detail = "may not change once set";
        errs.push(FieldError::invalid("spec.loadBalancerClass", at(after, "loadBalancerClass"), detail));
    }
    if needs_health_check(before)
        && needs_health_check(after)
        && int(after, "healthCheckNodePort") != int(before, "healthCheckNodePort")
    {
        errs.push(FieldError::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
    create(new, errs);
}

const ONCE: &str = "may not change once set";

fn address_changes(after: &Value, before: &Value, errs: &mut Errors) {
    if headless(after) && headless(before) {
        return;
    }
    let (new, old) = (list(after, "clusterIPs"), list(before, "clusterIPs"));
    let shown = at(after, "clusterIPs");
    if new.len() == old.len() {
        for (i, _) in old.iter().zip(new).enumerate().filter(|(_, (o, n))| o != n) {
            errs.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), shown, ONCE));
        }
        return;
    }
    if new.is_empty() {
        let detail = "primary clusterIP can not be unset";
        errs.push(FieldError::invalid("spec.clusterIPs[0]", shown, detail));
    }
    if let (Some(n), Some(o)) = (new.first(), old.first())
        && n != o
    {
        errs.push(FieldError::invalid("spec.clusterIPs[0]", shown, ONCE));
    }
    if old.len() > new.len() && new.len() == 1 && text(after, "ipFamilyPolicy") != "SingleStack" {
        errs.push(FieldError::invalid(
            "spec.ipFamilyPolicy",
            at(after, "ipFamilyPolicy"),
            "must be set to 'SingleStack' when releasing the secondary clusterIP",
        ));
    }
}

fn family_changes(after: &Value, before: &Value, errs: &mut Errors) {
    if headless(after) || headless(before) {
        return;
    }
    let (new, old) = (list(after, "ipFamilies"), list(before, "ipFamilies"));
    let shown = at(after, "ipFamilies");
    if new.len() == old.len() {
        for _ in old.iter().zip(new).filter(|(o, n)| o != n) {
            errs.push(FieldError::invalid("spec.ipFamilies[0]", shown, ONCE));
        }
        return;
    }
    if new.is_empty() {
        let detail = "primary ipFamily can not be unset";
        errs.push(FieldError::invalid("spec.ipFamilies[0]", shown, detail));
    }
    if let (Some(n), Some(o)) = (new.first(), old.first())
        && n != o
    {
        let detail = if old.len() > new.len() { "primary ipFamily can not be changed" } else { ONCE };
        errs.push(FieldError::invalid("spec.ipFamilies[0]", shown, detail));
    }
    if old.len() > new.len() && new.len() == 1 && text(after, "ipFamilyPolicy") != "SingleStack" {
        errs.push(FieldError::invalid(
            "spec.ipFamilyPolicy",
            at(after, "ipFamilyPolicy"),
            "must be set to 'SingleStack' when releasing the secondary ipFamily",
        ));
    }
}

pub(super) fn status(new: &Value, errs: &mut Errors) {
    const PATH: &str = "status.loadBalancer.ingress";
    let ingress = list(at(at(new, "status"), "loadBalancer"), "ingress");
    if text(at(new, "spec"), "type") != "LoadBalancer" && !ingress.is_empty() {
        let detail = "may only be used when `spec.type` is 'LoadBalancer'";
        errs.push(FieldError::forbidden(PATH, detail));
        return;
    }
    for (i, point) in ingress.iter().enumerate() {
        let path = format!("{PATH}[{i}]");
        let ip = text(point, "ip");
        if !ip.is_empty() {
            net::ip(errs, &format!("{path}.ip"), ip);
        }
        let mode_path = format!("{path}.ipMode");
        let mode = text(point, "ipMode");
        if !set(point, "ipMode") {
            if !ip.is_empty() {
                errs.push(FieldError::required(mode_path, "must be specified when `ip` is set"));
            }
        } else if ip.is_empty() {
            errs.push(FieldError::forbidden(mode_path, "may not be specified when `ip` is not set"));
        } else if !matches!(mode, "Proxy" | "VIP") {
            errs.push(FieldError::not_supported(mode_path, mode, &["Proxy", "VIP"]));
        }
        let hostname = text(point, "hostname");
        if !hostname.is_empty() {
            let path = format!("{path}.hostname");
            invalid_each(errs, &path, hostname, names::dns1123_subdomain(hostname));
            if net::parse_ip(hostname).is_some() {
                errs.push(FieldError::invalid(path, hostname, "must be a DNS name, not an IP address"));
            }
        }
    }
}
