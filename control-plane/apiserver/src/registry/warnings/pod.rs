//! Warnings about pods and templates of pods.

use super::{
    MOST, OLD_VOLUMES, claim_spec, fractional, node_selector_term, old_node_label, paths, volume_kind,
};
use crate::error::quote;
use crate::object::{get, int_at, list_at, str_at};
use crate::validation::ip_warnings;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Annotations that nothing reads any more. The backslashes are upstream's.
const OLD_ANNOTATIONS: &[(&str, &str)] = &[
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        r#"non-functional in v1.16+; use the \"priorityClassName\" field instead"#,
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        r#"non-functional in v1.11+; use the \"sysctls\" field instead"#,
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        r#"non-functional in v1.11+; use the \"sysctls\" field instead"#,
    ),
];

const SECCOMP: &str = r#"non-functional in v1.27+; use the \"seccompProfile\" field instead"#;
pub(super) const APP_ARMOR: &str = r#"deprecated since v1.30; use the \"appArmorProfile\" field instead"#;

/// The containers of a pod with their paths, as upstream visits them.
fn containers<'a>(spec: &'a Value, path: &'a str) -> impl Iterator<Item = (&'a Value, String)> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |list| {
        list_at(spec, &[list]).iter().enumerate().map(move |(i, c)| (c, format!("{path}spec.{list}[{i}]")))
    })
}

/// Warns about a pod, or a template of pods at `path`, which ends with a dot.
pub(super) fn warn(pod: &Value, path: &str, out: &mut Vec<String>) {
    let Some(spec) = pod.get("spec") else { return };
    scheduling(spec, path, out);
    let annotated = |key: &str| get(pod, &["metadata", "annotations", key]).is_some();
    for (key, text) in OLD_ANNOTATIONS.iter().filter(|(key, _)| annotated(key)) {
        out.push(format!("{path}metadata.annotations[{key}]: {text}"));
    }
    volumes(list_at(spec, &["volumes"]), path, out);
    repeated(spec, path, out);
    for name in ["memory", "ephemeral-storage"] {
        fractional(spec.get("overhead"), name, &format!("{path}spec.overhead"), out);
    }
    let has = |holder: &Value, profile: &str| {
        get(holder, &["securityContext", profile]).is_some_and(|p| !p.is_null())
    };
    if !has(spec, "seccompProfile") && annotated("seccomp.security.alpha.kubernetes.io/pod") {
        out.push(format!("{path}metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: {SECCOMP}"));
    }
    for (container, at) in containers(spec, path) {
        let name = str_at(container, &["name"]);
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{name}");
        if !has(container, "seccompProfile") && annotated(&key) {
            out.push(format!("{path}metadata.annotations[{key}]: {SECCOMP}"));
        }
        let key = format!("container.apparmor.security.beta.kubernetes.io/{name}");
        if !path.is_empty()
            && !has(spec, "appArmorProfile")
            && !has(container, "appArmorProfile")
            && annotated(&key)
        {
            out.push(format!("{path}metadata.annotations[{key}]: {APP_ARMOR}"));
        }
        for resource in ["memory", "ephemeral-storage"] {
            for list in ["limits", "requests"] {
                let amounts = get(container, &["resources", list]);
                fractional(amounts, resource, &format!("{at}.resources.{list}"), out);
            }
        }
        environment(list_at(container, &["env"]), &at, out);
    }
    ports(spec, path, out);
    if int_at(spec, &["terminationGracePeriodSeconds"]).is_some_and(|seconds| seconds < 0) {
        out.push(format!(
            "{path}spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be \
             treated as 1"
        ));
    }
    affinity(spec, path, out);
    for (i, server) in list_at(spec, &["dnsConfig", "nameservers"]).iter().enumerate() {
        let at = format!("{path}spec.dnsConfig.nameservers[{i}]");
        out.extend(ip_warnings(&at, server.as_str().unwrap_or_default()));
    }
    for (i, alias) in list_at(spec, &["hostAliases"]).iter().enumerate() {
        out.extend(ip_warnings(&format!("{path}spec.hostAliases[{i}].ip"), str_at(alias, &["ip"])));
    }
}

/// Old labels of nodes, and constraints that count nothing.
fn scheduling(spec: &Value, path: &str, out: &mut Vec<String>) {
    for key in get(spec, &["nodeSelector"]).and_then(Value::as_object).into_iter().flat_map(|m| m.keys()) {
        if let Some(text) = old_node_label(key) {
            out.push(format!("{path}spec.nodeSelector[{key}]: {text}"));
        }
    }
    let at =
        |list: &str| format!("{path}spec.affinity.nodeAffinity.{list}DuringSchedulingIgnoredDuringExecution");
    let required =
        &["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    for (i, term) in list_at(spec, required).iter().enumerate() {
        node_selector_term(term, &format!("{}.nodeSelectorTerms[{i}]", at("required")), out);
    }
    let preferred = &["affinity", "nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution"];
    for (i, term) in list_at(spec, preferred).iter().enumerate() {
        if let Some(preference) = term.get("preference") {
            node_selector_term(preference, &format!("{}[{i}].preference", at("preferred")), out);
        }
    }
    for (i, constraint) in list_at(spec, &["topologySpreadConstraints"]).iter().enumerate() {
        let at = format!("{path}spec.topologySpreadConstraints[{i}]");
        let key = str_at(constraint, &["topologyKey"]);
        if let Some(text) = old_node_label(key) {
            out.push(format!("{at}.topologyKey: {key} is {text}"));
        }
        null_selector(constraint, &at, out);
    }
}

fn null_selector(holder: &Value, path: &str, out: &mut Vec<String>) {
    if holder.get("labelSelector").is_none_or(Value::is_null) {
        out.push(format!("{path}.labelSelector: a null labelSelector results in matching no pod"));
    }
}

fn affinity(spec: &Value, path: &str, out: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in list_at(spec, &["affinity", kind, required]).iter().enumerate() {
            null_selector(term, &format!("{path}spec.affinity.{kind}.{required}[{i}]"), out);
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in list_at(spec, &["affinity", kind, preferred]).iter().enumerate() {
            let at = format!("{path}spec.affinity.{kind}.{preferred}[{i}].podAffinityTerm");
            null_selector(term.get("podAffinityTerm").unwrap_or(&Value::Null), &at, out);
        }
    }
}

fn volumes(volumes: &[Value], path: &str, out: &mut Vec<String>) {
    for (i, volume) in volumes.iter().enumerate() {
        for (kind, text) in OLD_VOLUMES {
            let Some(source) = volume_kind(volume, kind) else { continue };
            let at = format!("{path}spec.volumes[{i}].{kind}");
            if text.is_empty() {
                claim_spec(
                    get(source, &["volumeClaimTemplate", "spec"]),
                    &format!("{at}.volumeClaimTemplate.spec"),
                    out,
                );
            } else {
                out.push(format!("{at}: {text}"));
            }
        }
    }
    paths::warn(volumes, out);
}

/// What lists name twice, or not at all.
fn repeated(spec: &Value, path: &str, out: &mut Vec<String>) {
    for (list, field) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen = HashSet::new();
        for (i, item) in list_at(spec, &[list]).iter().enumerate() {
            let value = str_at(item, &[field]);
            if !seen.insert(value) {
                out.push(format!("{path}spec.{list}[{i}].{field}: duplicate {field} {}", quote(value)));
            }
        }
    }
    for (i, secret) in list_at(spec, &["imagePullSecrets"]).iter().enumerate() {
        if str_at(secret, &["name"]).is_empty() {
            out.push(format!("{path}spec.imagePullSecrets[{i}].name: invalid empty name \"\""));
        }
    }
}

/// Variables that hide earlier ones without making use of them.
fn environment(variables: &[Value], at: &str, out: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for (i, variable) in variables.iter().enumerate() {
        let name = str_at(variable, &["name"]);
        if seen.insert(name) {
            continue;
        }
        let value = str_at(variable, &["value"]);
        let reference = format!("$({name})");
        let sourced = variable.get("valueFrom").is_some_and(|v| !v.is_null());
        if sourced || value == reference || !value.contains(&reference) {
            out.push(format!(
                "{at}.env[{i}]: hides previous definition of {}, which may be dropped when using apply",
                quote(name)
            ));
        }
    }
}

struct Port<'a> {
    at: String,
    host_ip: &'a str,
    host_port: i64,
}

/// Ports that are told twice.
fn ports(spec: &Value, path: &str, out: &mut Vec<String>) {
    let mut all: HashMap<(i64, &str), Vec<Port<'_>>> = HashMap::new();
    for (container, at) in containers(spec, path) {
        for (i, port) in list_at(container, &["ports"]).iter().enumerate() {
            let number = |field: &str| int_at(port, &[field]).unwrap_or_default();
            let (host_ip, host_port) = (str_at(port, &["hostIP"]), number("hostPort"));
            let (container_port, protocol) = (number("containerPort"), str_at(port, &["protocol"]));
            let this = Port { at: format!("{at}.ports[{i}]"), host_ip, host_port };
            let at = &this.at;
            if !host_ip.is_empty() && host_port == 0 {
                out.push(format!(
                    "{at}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{container_port} \
                     Protocol:{protocol} HostIP:{host_ip}}}",
                    str_at(port, &["name"])
                ));
            }
            let others = all.entry((container_port, protocol)).or_default();
            for other in others.iter() {
                if out.len() >= MOST {
                    return;
                }
                let same_port = host_port == other.host_port;
                let how = if same_port && host_ip == other.host_ip {
                    "duplicate"
                } else if host_port == 0 || other.host_port == 0 {
                    "overlapping"
                } else if same_port && host_ip.is_empty() != other.host_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{at}: {how} port definition with {}", other.at));
            }
            others.push(this);
        }
    }
}
