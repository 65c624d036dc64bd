//! Pod specs and pod templates.

use kelp_model::names;
use serde_json::Value;

use super::container::{self, Pod};
use super::{
    Errors, annotations, at, flag, int, internal, invalid_each, list, meta, net, one_of, resources, selector,
    set, text, texts, volume, windows,
};
use crate::error::FieldError;

/// The containers of a spec with their paths, as upstream visits them.
pub(super) fn each_container<'a>(spec: &'a Value, path: &str) -> impl Iterator<Item = (&'a Value, String)> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |field| {
        list(spec, field).iter().enumerate().map(move |(i, c)| (c, format!("{path}.{field}[{i}]")))
    })
}

/// A PodTemplateSpec.
pub(super) fn template(template: &Value, path: &str, errs: &mut Errors) {
    let metadata = at(template, "metadata");
    meta::labels(metadata, "labels", &format!("{path}.labels"), errs);
    meta::annotations(metadata, &format!("{path}.annotations"), errs);
    let (spec, kept) = (at(template, "spec"), at(metadata, "annotations"));
    annotations::check(kept, spec, &format!("{path}.annotations"), errs);
    pod_spec(spec, None, &format!("{path}.spec"), errs);
    annotations::match_fields(kept, spec, &format!("{path}.spec"), errs);
    if !list(at(template, "spec"), "ephemeralContainers").is_empty() {
        errs.push(FieldError::forbidden(
            format!("{path}.spec.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

/// A PodSpec; `pod` is the name of the Pod whose own it is, none for a template's.
pub(super) fn pod_spec(spec: &Value, pod_name: Option<&str>, path: &str, errs: &mut Errors) {
    let is_pod = pod_name.is_some();
    let grace = int(spec, "terminationGracePeriodSeconds");
    if grace.is_none() {
        errs.push(FieldError::required(format!("{path}.terminationGracePeriodSeconds"), ""));
    }
    let volumes = volume::volumes(spec, pod_name, &format!("{path}.volumes"), errs);
    let claims = resource_claims(spec, path, errs);
    let pod = Pod { spec, volumes, claims, grace };
    container::containers(&pod, &format!("{path}.containers"), errs);
    container::init_containers(&pod, &format!("{path}.initContainers"), errs);
    container::ephemeral_containers(&pod, &format!("{path}.ephemeralContainers"), errs);
    if set(spec, "resources") {
        resources::pod_level(spec, &format!("{path}.resources"), errs);
    }
    host_network(spec, is_pod, path, errs);
    let policies = ["Always", "OnFailure", "Never"];
    one_of(errs, &format!("{path}.restartPolicy"), text(spec, "restartPolicy"), &policies);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(errs, &format!("{path}.dnsPolicy"), text(spec, "dnsPolicy"), &policies);
    meta::labels(spec, "nodeSelector", &format!("{path}.nodeSelector"), errs);
    security(spec, &format!("{path}.securityContext"), errs);
    selector::affinity(at(spec, "affinity"), &format!("{path}.affinity"), errs);
    dns(spec, &format!("{path}.dnsConfig"), errs);
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        let kind = text(gate, "conditionType");
        let path = format!("{path}.readinessGates[{i}].conditionType");
        invalid_each(errs, &path, kind, names::qualified_name(kind));
    }
    let gates: Vec<&str> = list(spec, "schedulingGates").iter().map(|g| text(g, "name")).collect();
    for (i, gate) in gates.iter().enumerate() {
        let path = format!("{path}.schedulingGates[{i}]");
        invalid_each(errs, &path, gate, names::qualified_name(gate));
        if gates[..i].contains(gate) {
            errs.push(FieldError::duplicate(path, *gate));
        }
    }
    topology(spec, &format!("{path}.topologySpreadConstraints"), errs);
    windows::host_process(spec, path, errs);
    if at(spec, "hostUsers").as_bool() == Some(false) {
        for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")]
        {
            if flag(spec, field) {
                let detail = "when `pod.Spec.HostUsers` is false";
                errs.push(FieldError::forbidden(format!("{path}.{shown}"), detail));
            }
        }
    }
    simple_fields(spec, path, errs);
}

fn simple_fields(spec: &Value, path: &str, errs: &mut Errors) {
    type Check = fn(&str) -> Vec<String>;
    let checks: [(&str, Check); 2] =
        [("serviceAccountName", names::dns1123_subdomain), ("nodeName", names::dns1123_subdomain)];
    let later: [(&str, Check); 2] = [("hostname", names::dns1123_label), ("subdomain", names::dns1123_label)];
    let check = |(field, check): (&str, Check), errs: &mut Errors| {
        let value = text(spec, field);
        if !value.is_empty() {
            invalid_each(errs, &format!("{path}.{field}"), value, check(value));
        }
    };
    checks.into_iter().for_each(|c| check(c, errs));
    let max = i64::from(i32::MAX);
    if let Some(seconds) = int(spec, "activeDeadlineSeconds").filter(|s| !(1..=max).contains(s)) {
        let path = format!("{path}.activeDeadlineSeconds");
        errs.push(FieldError::invalid(path, seconds, names::range_error(1, max)));
    }
    later.into_iter().for_each(|c| check(c, errs));
    tolerations(spec, &format!("{path}.tolerations"), errs);
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let path = format!("{path}.hostAliases[{i}]");
        net::ip(errs, &format!("{path}.ip"), text(alias, "ip"));
        for (j, host) in texts(alias, "hostnames").enumerate() {
            invalid_each(errs, &format!("{path}.hostnames[{j}]"), host, names::dns1123_subdomain(host));
        }
    }
    check(("priorityClassName", names::dns1123_subdomain), errs);
    if set(spec, "runtimeClassName") {
        let name = text(spec, "runtimeClassName");
        invalid_each(errs, &format!("{path}.runtimeClassName"), name, names::dns1123_subdomain(name));
    }
    if set(spec, "preemptionPolicy") {
        let policies = ["PreemptLowerPriority", "Never"];
        one_of(errs, &format!("{path}.preemptionPolicy"), text(spec, "preemptionPolicy"), &policies);
    }
    if set(spec, "overhead") {
        let overhead = serde_json::json!({"limits": at(spec, "overhead")});
        resources::requirements(&overhead, &[], &format!("{path}.overhead"), errs);
    }
    windows::system(spec, path, errs);
}

fn resource_claims<'a>(spec: &'a Value, path: &str, errs: &mut Errors) -> Vec<&'a str> {
    let claims = list(spec, "resourceClaims");
    for (i, claim) in claims.iter().enumerate() {
        let path = format!("{path}.resourceClaims[{i}]");
        let name = text(claim, "name");
        if name.is_empty() {
            errs.push(FieldError::required(format!("{path}.name"), ""));
        } else if claims[..i].iter().any(|c| text(c, "name") == name) {
            errs.push(FieldError::duplicate(format!("{path}.name"), name));
        } else {
            invalid_each(errs, &format!("{path}.name"), name, names::dns1123_label(name));
        }
        let (direct, template) = (set(claim, "resourceClaimName"), set(claim, "resourceClaimTemplateName"));
        let detail = match (direct, template) {
            (true, true) => {
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            }
            (false, false) => "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            _ => "",
        };
        if !detail.is_empty() {
            errs.push(FieldError::invalid(path.as_str(), internal::bad("PodResourceClaim", claim), detail));
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if set(claim, field) {
                let name = text(claim, field);
                invalid_each(errs, &format!("{path}.{field}"), name, names::dns1123_subdomain(name));
            }
        }
    }
    claims.iter().map(|c| text(c, "name")).filter(|n| !n.is_empty()).collect()
}

fn host_network(spec: &Value, is_pod: bool, path: &str, errs: &mut Errors) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    for (i, c) in list(spec, "containers").iter().enumerate() {
        for (j, port) in list(c, "ports").iter().enumerate() {
            let number = |f| int(port, f).unwrap_or_default();
            let (host, own) = (number("hostPort"), number("containerPort"));
            if (is_pod || host != 0) && host != own {
                errs.push(FieldError::invalid(
                    format!("{path}.containers[{i}].ports[{j}].hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                ));
            }
        }
    }
}

fn security(spec: &Value, path: &str, errs: &mut Errors) {
    let sc = at(spec, "securityContext");
    if sc.is_null() {
        return;
    }
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        container::id(sc, field, path, errs);
    }
    for (i, group) in list(sc, "supplementalGroups").iter().enumerate() {
        let group = group.as_i64().unwrap_or_default();
        if !(0..=i64::from(i32::MAX)).contains(&group) {
            let path = format!("{path}.supplementalGroups[{i}]");
            errs.push(FieldError::invalid(path, group, names::range_error(0, i64::from(i32::MAX))));
        }
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        errs.push(FieldError::invalid(
            format!("{path}.shareProcessNamespace"),
            Value::Bool(true),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    sysctls(spec, sc, &format!("{path}.sysctls"), errs);
    for (field, supported) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
        ("seLinuxChangePolicy", ["MountOption", "Recursive"]),
    ] {
        let value = text(sc, field);
        if set(sc, field) && !supported.contains(&value) {
            errs.push(FieldError::not_supported(format!("{path}.{field}"), value, &supported));
        }
    }
    container::seccomp(at(sc, "seccompProfile"), &format!("{path}.seccompProfile"), errs);
    windows::options(at(sc, "windowsOptions"), &format!("{path}.windowsOptions"), errs);
    container::app_armor(at(sc, "appArmorProfile"), &format!("{path}.appArmorProfile"), errs);
}

fn sysctls(spec: &Value, sc: &Value, path: &str, errs: &mut Errors) {
    const REGEX: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
    let all: Vec<&str> = list(sc, "sysctls").iter().map(|s| text(s, "name")).collect();
    for (i, name) in all.iter().enumerate() {
        let path = format!("{path}[{i}].name");
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let segment = |s: &str| {
            let b = s.as_bytes();
            matches!((b.first(), b.last()), (Some(&f), Some(&l)) if alnum(f) && alnum(l))
                && b.iter().all(|b| alnum(*b) || matches!(b, b'-' | b'_'))
        };
        if name.is_empty() {
            errs.push(FieldError::required(path.as_str(), ""));
        } else if name.len() > 253 || !name.split(['.', '/']).all(segment) {
            let detail = format!("must have at most 253 characters and match regex {REGEX}");
            errs.push(FieldError::invalid(path.as_str(), *name, detail));
        } else if all[..i].contains(name) {
            errs.push(FieldError::duplicate(path.as_str(), *name));
        }
        let name_dots = name.replace('/', ".");
        let ipc =
            ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name_dots.starts_with(p));
        if flag(spec, "hostNetwork") && name_dots.starts_with("net.") {
            let detail = "may not be specified when 'hostNetwork' is true";
            errs.push(FieldError::invalid(path, *name, detail));
        } else if flag(spec, "hostIPC") && ipc {
            errs.push(FieldError::invalid(path, *name, "may not be specified when 'hostIPC' is true"));
        }
    }
}

fn dns(spec: &Value, path: &str, errs: &mut Errors) {
    let config = at(spec, "dnsConfig");
    let servers: Vec<&str> = texts(config, "nameservers").collect();
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            errs.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if servers.is_empty() {
            errs.push(FieldError::required(
                format!("{path}.nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            ));
            return;
        }
    }
    if servers.len() > 3 {
        errs.push(FieldError::invalid(
            format!("{path}.nameservers"),
            at(config, "nameservers"),
            "must not have more than 3 nameservers",
        ));
    }
    for (i, server) in servers.iter().enumerate() {
        net::ip(errs, &format!("{path}.nameservers[{i}]"), server);
    }
    let searches: Vec<&str> = texts(config, "searches").collect();
    let shown = at(config, "searches");
    if searches.len() > 32 {
        let detail = "must not have more than 32 search paths";
        errs.push(FieldError::invalid(format!("{path}.searches"), shown, detail));
    }
    if searches.join(" ").len() > 2048 {
        let detail = "must not have more than 2048 characters (including spaces) in the search list";
        errs.push(FieldError::invalid(format!("{path}.searches"), shown, detail));
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, s)| **s != ".") {
        let name = search.strip_suffix('.').unwrap_or(search);
        // Underscores are allowed where letters are.
        let bad = names::dns1123_subdomain(&name.replace('_', "a"));
        invalid_each(errs, &format!("{path}.searches[{i}]"), name, bad);
    }
    for (i, _) in list(config, "options").iter().enumerate().filter(|(_, o)| text(o, "name").is_empty()) {
        errs.push(FieldError::required(format!("{path}.options[{i}]"), "must not be empty"));
    }
}

fn topology(spec: &Value, path: &str, errs: &mut Errors) {
    let all = list(spec, "topologySpreadConstraints");
    for (i, c) in all.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let skew = int(c, "maxSkew").unwrap_or_default();
        if skew <= 0 {
            errs.push(FieldError::invalid(format!("{path}.maxSkew"), skew, "must be greater than zero"));
        }
        let (key, action) = (text(c, "topologyKey"), text(c, "whenUnsatisfiable"));
        if key.is_empty() {
            errs.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            let supported = ["DoNotSchedule", "ScheduleAnyway"];
            errs.push(FieldError::not_supported(format!("{path}.whenUnsatisfiable"), action, &supported));
        }
        if all[i + 1..]
            .iter()
            .any(|o| text(o, "topologyKey") == key && text(o, "whenUnsatisfiable") == action)
        {
            let at_pair = format!("{path}.{{topologyKey, whenUnsatisfiable}}");
            errs.push(FieldError::duplicate(at_pair, format!("{{{key}, {action}}}")));
        }
        if let Some(domains) = int(c, "minDomains") {
            let path = format!("{path}.minDomains");
            if domains <= 0 {
                errs.push(FieldError::invalid(path.as_str(), domains, "must be greater than zero"));
            }
            if action != "DoNotSchedule" {
                let detail =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errs.push(FieldError::invalid(path, domains, detail));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let policy = text(c, field);
            if set(c, field) && !matches!(policy, "Honor" | "Ignore") {
                errs.push(FieldError::not_supported(format!("{path}.{field}"), policy, &["Honor", "Ignore"]));
            }
        }
        let keys_path = format!("{path}.matchLabelKeys");
        if !list(c, "matchLabelKeys").is_empty() && !set(c, "labelSelector") {
            let detail = "must not be specified when labelSelector is not set";
            errs.push(FieldError::forbidden(keys_path.as_str(), detail));
        }
        for (j, key) in texts(c, "matchLabelKeys").enumerate() {
            invalid_each(errs, &format!("{keys_path}[{j}]"), key, names::qualified_name(key));
        }
        selector::label_selector(at(c, "labelSelector"), &format!("{path}.labelSelector"), errs);
    }
}

pub(super) fn tolerations(spec: &Value, path: &str, errs: &mut Errors) {
    for (i, t) in list(spec, "tolerations").iter().enumerate() {
        let path = format!("{path}[{i}]");
        let (key, operator) = (text(t, "key"), text(t, "operator"));
        let (value, effect) = (text(t, "value"), text(t, "effect"));
        if !key.is_empty() {
            invalid_each(errs, &format!("{path}.key"), key, names::qualified_name(key));
        }
        let at_operator = format!("{path}.operator");
        if key.is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errs.push(FieldError::invalid(at_operator.as_str(), operator, detail));
        }
        if set(t, "tolerationSeconds") && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errs.push(FieldError::invalid(format!("{path}.effect"), effect, detail));
        }
        match operator {
            "Equal" | "" => {
                let bad = names::label_value(value);
                if !bad.is_empty() {
                    errs.push(FieldError::invalid(at_operator, value, bad.join(";")));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    errs.push(FieldError::invalid(at_operator, internal::bad("Toleration", t), detail));
                }
            }
            other => errs.push(FieldError::not_supported(at_operator, other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            one_of(errs, &format!("{path}.effect"), effect, &effects);
        }
    }
}
