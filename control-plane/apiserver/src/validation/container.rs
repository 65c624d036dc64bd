//! Containers: names, images, ports, environment, mounts, probes, security.

use kelp_model::names;
use serde_json::Value;

use super::restart;
use super::service::port_or_name;
use super::volume::{descending_path, no_backsteps};
use super::{
    Errors, at, flag, int, internal, invalid_each, list, nonnegative, one_of, resources, set, text, texts,
    windows,
};
use crate::error::FieldError;

/// What containers of a pod share.
pub(super) struct Pod<'a> {
    pub(super) spec: &'a Value,
    /// The pod's valid volumes.
    pub(super) volumes: Vec<&'a Value>,
    /// Names of the pod's resource claims.
    pub(super) claims: Vec<&'a str>,
    /// Seconds that containers have to end.
    pub(super) grace: Option<i64>,
}

pub(super) fn containers(pod: &Pod<'_>, path: &str, errs: &mut Errors) {
    let all = list(pod.spec, "containers");
    if all.is_empty() {
        errs.push(FieldError::required(path, ""));
        return;
    }
    for (i, c) in all.iter().enumerate() {
        let at_c = format!("{path}[{i}]");
        common(c, pod, &at_c, errs);
        let name = text(c, "name");
        if all[..i].iter().any(|o| text(o, "name") == name) {
            errs.push(FieldError::duplicate(format!("{at_c}.name"), name));
        }
        hooks_and_probes(c, pod, &at_c, errs);
        restart::policy(c, &at_c, errs);
    }
    host_ports(all, path, errs);
}

pub(super) fn init_containers(pod: &Pod<'_>, path: &str, errs: &mut Errors) {
    let all = list(pod.spec, "initContainers");
    for (i, c) in all.iter().enumerate() {
        let at_c = format!("{path}[{i}]");
        common(c, pod, &at_c, errs);
        let sidecar = text(c, "restartPolicy") == "Always";
        restart::policy(c, &at_c, errs);
        let name = text(c, "name");
        let mut others = list(pod.spec, "containers").iter().chain(&all[..i]);
        if others.any(|o| text(o, "name") == name) {
            errs.push(FieldError::duplicate(format!("{at_c}.name"), name));
        }
        host_ports(std::slice::from_ref(c), path, errs);
        if sidecar {
            hooks_and_probes(c, pod, &at_c, errs);
        } else {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if set(c, field) {
                    let detail = "may not be set for init containers without restartPolicy=Always";
                    errs.push(FieldError::forbidden(format!("{at_c}.{field}"), detail));
                }
            }
            if !list(c, "resizePolicy").is_empty() {
                let shown = internal::bad_list("ContainerResizePolicy", list(c, "resizePolicy"));
                let detail = "must not be set for init containers";
                errs.push(FieldError::invalid(format!("{at_c}.resizePolicy"), shown, detail));
            }
        }
    }
}

pub(super) fn ephemeral_containers(pod: &Pod<'_>, path: &str, errs: &mut Errors) {
    // In the order of upstream's struct.
    const FORBIDDEN: [&str; 9] = [
        "ports",
        "resources",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
    ];
    const DETAIL: &str = "cannot be set for an Ephemeral Container";
    let all = list(pod.spec, "ephemeralContainers");
    let others: Vec<&Value> =
        list(pod.spec, "containers").iter().chain(list(pod.spec, "initContainers")).collect();
    for (i, c) in all.iter().enumerate() {
        let at_c = format!("{path}[{i}]");
        common(c, pod, &at_c, errs);
        image_padding(c, &at_c, errs);
        let name = text(c, "name");
        if others.iter().copied().chain(&all[..i]).any(|o| text(o, "name") == name) {
            errs.push(FieldError::duplicate(format!("{at_c}.name"), name));
        }
        let target = text(c, "targetContainerName");
        if !target.is_empty() && !others.iter().any(|o| text(o, "name") == target) {
            errs.push(FieldError::not_found(format!("{at_c}.targetContainerName"), target));
        }
        for field in FORBIDDEN {
            let value = at(c, field);
            let empty = match value {
                Value::Null => true,
                Value::Array(a) => a.is_empty(),
                Value::Object(o) => field == "resources" && o.is_empty(),
                _ => false,
            };
            if !empty {
                errs.push(FieldError::forbidden(format!("{at_c}.{field}"), DETAIL));
            }
        }
        for (j, mount) in list(c, "volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !text(mount, field).is_empty() {
                    errs.push(FieldError::forbidden(format!("{at_c}.volumeMounts[{j}].{field}"), DETAIL));
                }
            }
        }
    }
}

/// Pods may not have white space around an image's name, templates may.
pub(super) fn image_padding(c: &Value, path: &str, errs: &mut Errors) {
    let image = text(c, "image");
    if image.trim().len() != image.len() {
        errs.push(FieldError::invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
}

fn common(c: &Value, pod: &Pod<'_>, path: &str, errs: &mut Errors) {
    let name = text(c, "name");
    if name.is_empty() {
        errs.push(FieldError::required(format!("{path}.name"), ""));
    } else {
        invalid_each(errs, &format!("{path}.name"), name, names::dns1123_label(name));
    }
    if text(c, "image").is_empty() {
        errs.push(FieldError::required(format!("{path}.image"), ""));
    }
    one_of(
        errs,
        &format!("{path}.terminationMessagePolicy"),
        text(c, "terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    ports(c, path, errs);
    environment(c, path, errs);
    mounts(c, pod, path, errs);
    devices(c, pod, path, errs);
    one_of(
        errs,
        &format!("{path}.imagePullPolicy"),
        text(c, "imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    resources::requirements(at(c, "resources"), &pod.claims, &format!("{path}.resources"), errs);
    resize_policy(c, pod, &format!("{path}.resizePolicy"), errs);
    security(at(c, "securityContext"), pod, &format!("{path}.securityContext"), errs);
}

fn ports(c: &Value, path: &str, errs: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in list(c, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = text(port, "name");
        if !name.is_empty() {
            let bad = names::port_name(name);
            if !bad.is_empty() {
                invalid_each(errs, &format!("{path}.name"), name, bad);
            } else if seen.contains(&name) {
                errs.push(FieldError::duplicate(format!("{path}.name"), name));
            } else {
                seen.push(name);
            }
        }
        match int(port, "containerPort").unwrap_or_default() {
            0 => errs.push(FieldError::required(format!("{path}.containerPort"), "")),
            number => {
                for message in names::port_number(number) {
                    errs.push(FieldError::invalid(format!("{path}.containerPort"), number, message));
                }
            }
        }
        if let Some(number) = int(port, "hostPort").filter(|p| *p != 0) {
            for message in names::port_number(number) {
                errs.push(FieldError::invalid(format!("{path}.hostPort"), number, message));
            }
        }
        one_of(errs, &format!("{path}.protocol"), text(port, "protocol"), &["SCTP", "TCP", "UDP"]);
    }
}

fn host_ports(containers: &[Value], path: &str, errs: &mut Errors) {
    let mut seen: Vec<String> = Vec::new();
    for (i, c) in containers.iter().enumerate() {
        for (j, port) in list(c, "ports").iter().enumerate() {
            let Some(number) = int(port, "hostPort").filter(|p| *p != 0) else { continue };
            let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if seen.contains(&key) {
                errs.push(FieldError::duplicate(format!("{path}[{i}].ports[{j}].hostPort"), key));
            } else {
                seen.push(key);
            }
        }
    }
}

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn environment(c: &Value, path: &str, errs: &mut Errors) {
    for (i, env) in list(c, "env").iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        let name = text(env, "name");
        if name.is_empty() {
            errs.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            invalid_each(errs, &format!("{path}.name"), name, names::env_var_name(name));
        }
        if set(env, "valueFrom") {
            env_source(env, &format!("{path}.valueFrom"), errs);
        }
    }
    for (i, source) in list(c, "envFrom").iter().enumerate() {
        let at_source = format!("{path}.envFrom[{i}]");
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            invalid_each(errs, &format!("{at_source}.prefix"), prefix, names::env_var_name(prefix));
        }
        let mut count = 0;
        for field in ["configMapRef", "secretRef"] {
            if set(source, field) {
                count += 1;
                let name = text(at(source, field), "name");
                let path = format!("{at_source}.{field}.name");
                if name.is_empty() {
                    errs.push(FieldError::required(path, ""));
                } else {
                    invalid_each(errs, &path, name, names::dns1123_subdomain(name));
                }
            }
        }
        let path = format!("{path}.envFrom");
        if count == 0 {
            errs.push(FieldError::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"));
        } else if count > 1 {
            errs.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
        }
    }
}

fn env_source(env: &Value, path: &str, errs: &mut Errors) {
    let source = at(env, "valueFrom");
    let mut count = 0;
    if set(source, "fieldRef") {
        count += 1;
        field_ref(at(source, "fieldRef"), &ENV_FIELDS, &format!("{path}.fieldRef"), errs);
    }
    if set(source, "resourceFieldRef") {
        count += 1;
        let path = format!("{path}.resourceFieldRef");
        resource_ref(at(source, "resourceFieldRef"), false, &path, errs);
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        if set(source, field) {
            count += 1;
            let reference = at(source, field);
            let path = format!("{path}.{field}");
            let (name, key) = (text(reference, "name"), text(reference, "key"));
            invalid_each(errs, &format!("{path}.name"), name, names::dns1123_subdomain(name));
            if key.is_empty() {
                errs.push(FieldError::required(format!("{path}.key"), ""));
            } else {
                invalid_each(errs, &format!("{path}.key"), key, names::config_map_key(key));
            }
        }
    }
    if set(source, "fileKeyRef") {
        count += 1;
    }
    if count == 0 {
        errs.push(FieldError::invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        ));
    } else if !text(env, "value").is_empty() {
        errs.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if count > 1 {
        errs.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
    }
}

/// A reference to a field of the pod (downward API).
pub(super) fn field_ref(reference: &Value, fields: &[&str], path: &str, errs: &mut Errors) {
    let (version, field) = (text(reference, "apiVersion"), text(reference, "fieldPath"));
    if version.is_empty() {
        errs.push(FieldError::required(format!("{path}.apiVersion"), ""));
        return;
    }
    if field.is_empty() {
        errs.push(FieldError::required(format!("{path}.fieldPath"), ""));
        return;
    }
    if let Some((base, rest)) = field.split_once("['")
        && let Some(subscript) = rest.strip_suffix("']")
    {
        match base {
            "metadata.annotations" => {
                let key = subscript.to_lowercase();
                invalid_each(errs, path, &key, names::qualified_name(&key));
            }
            "metadata.labels" => invalid_each(errs, path, subscript, names::qualified_name(subscript)),
            _ => errs.push(FieldError::invalid(path, base, "does not support subscript")),
        }
        return;
    }
    let known = matches!(
        field,
        "metadata.annotations" | "metadata.labels" | "spec.restartPolicy" | "spec.schedulerName"
    ) || ENV_FIELDS.contains(&field);
    let path = format!("{path}.fieldPath");
    if version != "v1" || !known {
        let why = if version == "v1" {
            format!("field label not supported: {field}")
        } else {
            format!("unsupported pod version: {version}")
        };
        errs.push(FieldError::invalid(path, field, format!("error converting fieldPath: {why}")));
    } else if !fields.contains(&field) {
        errs.push(FieldError::not_supported(path, field, fields));
    }
}

/// A reference to a container's resource (downward API).
pub(super) fn resource_ref(reference: &Value, volume: bool, path: &str, errs: &mut Errors) {
    const KNOWN: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = text(reference, "resource");
    let pages = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if volume && text(reference, "containerName").is_empty() {
        errs.push(FieldError::required(format!("{path}.containerName"), ""));
    } else if resource.is_empty() {
        errs.push(FieldError::required(format!("{path}.resource"), ""));
    } else if !KNOWN.contains(&resource) && !pages {
        errs.push(FieldError::not_supported(format!("{path}.resource"), resource, &KNOWN));
    }
    let divisor = text(reference, "divisor");
    if matches!(divisor, "" | "0") {
        return;
    }
    let binary = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let what = match resource.split_once('.').map(|(_, name)| name) {
        Some("cpu") if !matches!(divisor, "1m" | "1") => {
            "only divisor's values 1m and 1 are supported with the cpu resource".to_owned()
        }
        Some(name @ ("memory" | "ephemeral-storage")) if !binary.contains(&divisor) => {
            let name = if name == "memory" { name } else { "local ephemeral storage" };
            format!("only divisor's values {} are supported with the {name} resource", binary.join(", "))
        }
        Some(_) if pages && !binary.contains(&divisor) => {
            format!("only divisor's values {} are supported with the hugepages resource", binary.join(", "))
        }
        _ => return,
    };
    errs.push(FieldError::invalid(format!("{path}.divisor"), resource, what));
}

fn mounts(c: &Value, pod: &Pod<'_>, path: &str, errs: &mut Errors) {
    let all = list(c, "volumeMounts");
    for (i, mount) in all.iter().enumerate() {
        let list_path = format!("{path}.volumeMounts");
        let at_mount = format!("{list_path}[{i}]");
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            errs.push(FieldError::required(format!("{at_mount}.name"), ""));
        }
        let volume = pod.volumes.iter().find(|v| text(v, "name") == name);
        if volume.is_none() {
            errs.push(FieldError::not_found(format!("{at_mount}.name"), name));
        }
        if target.is_empty() {
            errs.push(FieldError::required(format!("{at_mount}.mountPath"), ""));
        }
        if all[..i].iter().any(|m| text(m, "mountPath") == target) {
            errs.push(FieldError::invalid(format!("{at_mount}.mountPath"), target, "must be unique"));
        }
        for device in list(c, "volumeDevices") {
            if text(device, "name") == name {
                let detail = "must not already exist in volumeDevices";
                errs.push(FieldError::invalid(format!("{at_mount}.name"), name, detail));
            }
            if text(device, "devicePath") == target {
                let detail = "must not already exist as a path in volumeDevices";
                errs.push(FieldError::invalid(format!("{at_mount}.mountPath"), target, detail));
            }
        }
        let (sub, expr) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        if !sub.is_empty() {
            descending_path(sub, &format!("{list_path}.subPath"), errs);
        }
        if !expr.is_empty() {
            if !sub.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errs.push(FieldError::invalid(format!("{at_mount}.subPathExpr"), expr, detail));
            }
            descending_path(expr, &format!("{list_path}.subPathExpr"), errs);
        }
        propagation(mount, c, &list_path, errs);
    }
}

fn propagation(mount: &Value, c: &Value, path: &str, errs: &mut Errors) {
    let value = text(mount, "mountPropagation");
    if set(mount, "mountPropagation") {
        let path = format!("{path}.mountPropagation");
        if !matches!(value, "Bidirectional" | "HostToContainer" | "None") {
            let supported = ["Bidirectional", "HostToContainer", "None"];
            errs.push(FieldError::not_supported(path, value, &supported));
        } else if value == "Bidirectional" && !flag(at(c, "securityContext"), "privileged") {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errs.push(FieldError::forbidden(path, detail));
        }
    }
    if set(mount, "recursiveReadOnly") {
        let path = format!("{path}.recursiveReadOnly");
        let mode = text(mount, "recursiveReadOnly");
        match mode {
            "Disabled" => {}
            "Enabled" | "IfPossible" => {
                if !flag(mount, "readOnly") {
                    let detail = "may only be specified when readOnly is true";
                    errs.push(FieldError::forbidden(path.as_str(), detail));
                }
                if !matches!(value, "" | "None") {
                    let detail = "may only be specified when mountPropagation is None or not specified";
                    errs.push(FieldError::forbidden(path, detail));
                }
            }
            other => {
                let supported = ["Disabled", "Enabled", "IfPossible"];
                errs.push(FieldError::not_supported(path, other, &supported));
            }
        }
    }
}

fn devices(c: &Value, pod: &Pod<'_>, path: &str, errs: &mut Errors) {
    let all = list(c, "volumeDevices");
    for (i, device) in all.iter().enumerate() {
        let path = format!("{path}.volumeDevices[{i}]");
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        if name.is_empty() {
            errs.push(FieldError::required(format!("{path}.name"), ""));
        }
        if !name.is_empty() && all[..i].iter().any(|d| text(d, "name") == name) {
            errs.push(FieldError::invalid(format!("{path}.name"), name, "must be unique"));
        }
        match pod.volumes.iter().find(|v| text(v, "name") == name) {
            None => errs.push(FieldError::not_found(format!("{path}.name"), name)),
            Some(v) if !set(v, "persistentVolumeClaim") && !set(v, "ephemeral") => {
                let detail =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errs.push(FieldError::invalid(format!("{path}.name"), name, detail));
            }
            Some(_) => {}
        }
        if target.is_empty() {
            errs.push(FieldError::required(format!("{path}.devicePath"), ""));
        }
        if all[..i].iter().any(|d| text(d, "devicePath") == target) {
            errs.push(FieldError::invalid(format!("{path}.devicePath"), target, "must be unique"));
        }
        if !no_backsteps(target) {
            let detail = "can not contain backsteps ('..')";
            errs.push(FieldError::invalid(format!("{path}.devicePath"), target, detail));
        }
        let mounted =
            |field: &str, value: &str| list(c, "volumeMounts").iter().any(|m| text(m, field) == value);
        if mounted("name", name) {
            let detail = "must not already exist in volumeMounts";
            errs.push(FieldError::invalid(format!("{path}.name"), name, detail));
        }
        if mounted("mountPath", target) {
            let detail = "must not already exist as a path in volumeMounts";
            errs.push(FieldError::invalid(format!("{path}.devicePath"), target, detail));
        }
    }
}

fn resize_policy(c: &Value, pod: &Pod<'_>, path: &str, errs: &mut Errors) {
    let all = list(c, "resizePolicy");
    for (i, policy) in all.iter().enumerate() {
        let (name, restart) = (text(policy, "resourceName"), text(policy, "restartPolicy"));
        if all[..i].iter().any(|p| text(p, "resourceName") == name) {
            errs.push(FieldError::duplicate(format!("{path}[{i}]"), name));
        }
        one_of(errs, path, name, &["cpu", "memory"]);
        one_of(errs, path, restart, &["NotRequired", "RestartContainer"]);
        if text(pod.spec, "restartPolicy") == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errs.push(FieldError::invalid(path, restart, detail));
        }
    }
}

fn hooks_and_probes(c: &Value, pod: &Pod<'_>, path: &str, errs: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        let value = at(at(c, "lifecycle"), hook);
        if !value.is_null() {
            handler(value, pod.grace, &format!("{path}.lifecycle.{hook}"), errs);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = at(c, name);
        if probe.is_null() {
            continue;
        }
        let path = format!("{path}.{name}");
        handler(probe, pod.grace, &path, errs);
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            nonnegative(errs, &format!("{path}.{field}"), int(probe, field).unwrap_or_default());
        }
        const GRACE: &str = "terminationGracePeriodSeconds";
        if let Some(seconds) = int(probe, GRACE) {
            if seconds <= 0 {
                errs.push(FieldError::invalid(format!("{path}.{GRACE}"), seconds, "must be greater than 0"));
            }
            if name == "readinessProbe" {
                let detail = "must not be set for readinessProbes";
                errs.push(FieldError::invalid(format!("{path}.{GRACE}"), seconds, detail));
            }
        }
        let successes = int(probe, "successThreshold").unwrap_or_default();
        if name != "readinessProbe" && successes != 1 {
            errs.push(FieldError::invalid(format!("{path}.successThreshold"), successes, "must be 1"));
        }
    }
}

fn handler(handler: &Value, grace: Option<i64>, path: &str, errs: &mut Errors) {
    let mut found = false;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let action = at(handler, kind);
        if action.is_null() {
            continue;
        }
        let path = format!("{path}.{kind}");
        if found {
            errs.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        found = true;
        match kind {
            "exec" if list(action, "command").is_empty() => {
                errs.push(FieldError::required(format!("{path}.command"), ""));
            }
            "httpGet" => {
                if text(action, "path").is_empty() {
                    errs.push(FieldError::required(format!("{path}.path"), ""));
                }
                port_or_name(at(action, "port"), &format!("{path}.port"), errs);
                let scheme = text(action, "scheme");
                if !matches!(scheme, "HTTP" | "HTTPS") {
                    let supported = ["HTTP", "HTTPS"];
                    errs.push(FieldError::not_supported(format!("{path}.scheme"), scheme, &supported));
                }
                for header in list(action, "httpHeaders") {
                    let name = text(header, "name");
                    invalid_each(errs, &format!("{path}.httpHeaders"), name, names::http_header_name(name));
                }
            }
            "tcpSocket" | "grpc" => port_or_name(at(action, "port"), &format!("{path}.port"), errs),
            "sleep" => {
                let seconds = int(action, "seconds").unwrap_or_default();
                if let Some(grace) = grace.filter(|g| !(0..=*g).contains(&seconds)) {
                    errs.push(FieldError::invalid(
                        path,
                        seconds,
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
                    ));
                }
            }
            _ => {}
        }
    }
    if !found {
        errs.push(FieldError::required(path, "must specify a handler type"));
    }
}

/// A user or group number.
pub(super) fn id(holder: &Value, field: &str, path: &str, errs: &mut Errors) {
    if let Some(id) = int(holder, field).filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        let detail = names::range_error(0, i64::from(i32::MAX));
        errs.push(FieldError::invalid(format!("{path}.{field}"), id, detail));
    }
}

fn security(sc: &Value, pod: &Pod<'_>, path: &str, errs: &mut Errors) {
    if sc.is_null() {
        return;
    }
    id(sc, "runAsUser", path, errs);
    id(sc, "runAsGroup", path, errs);
    if set(sc, "procMount") {
        let mount = text(sc, "procMount");
        let path = format!("{path}.procMount");
        if !matches!(mount, "Default" | "Unmasked") {
            errs.push(FieldError::not_supported(path.as_str(), mount, &["Default", "Unmasked"]));
        }
        let host_users = at(pod.spec, "hostUsers").as_bool() != Some(false);
        if host_users && mount == "Unmasked" {
            errs.push(FieldError::invalid(path, mount, "`hostUsers` must be false to use `Unmasked`"));
        }
    }
    seccomp(at(sc, "seccompProfile"), &format!("{path}.seccompProfile"), errs);
    if at(sc, "allowPrivilegeEscalation").as_bool() == Some(false) {
        if flag(sc, "privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errs.push(FieldError::invalid(path, internal::bad("SecurityContext", sc), detail));
        }
        if texts(at(sc, "capabilities"), "add").any(|c| c == "CAP_SYS_ADMIN") {
            let detail =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errs.push(FieldError::invalid(path, internal::bad("SecurityContext", sc), detail));
        }
    }
    windows::options(at(sc, "windowsOptions"), &format!("{path}.windowsOptions"), errs);
    app_armor(at(sc, "appArmorProfile"), &format!("{path}.appArmorProfile"), errs);
}

pub(super) fn seccomp(profile: &Value, path: &str, errs: &mut Errors) {
    if profile.is_null() {
        return;
    }
    let kind = text(profile, "type");
    match kind {
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        "" => {
            let detail = "type is required when seccompProfile is set";
            errs.push(FieldError::required(format!("{path}.type"), detail));
        }
        other => {
            let supported = ["Localhost", "RuntimeDefault", "Unconfined"];
            errs.push(FieldError::not_supported(format!("{path}.type"), other, &supported));
        }
    }
    let path = format!("{path}.localhostProfile");
    match (kind, set(profile, "localhostProfile")) {
        ("Localhost", false) => {
            errs.push(FieldError::required(path, "must be set when seccomp type is Localhost"));
        }
        ("Localhost", true) => descending_path(text(profile, "localhostProfile"), &path, errs),
        (_, true) => {
            let detail = "can only be set when seccomp type is Localhost";
            errs.push(FieldError::invalid(path, internal::bad("SeccompProfile", profile), detail));
        }
        _ => {}
    }
}

pub(super) fn app_armor(profile: &Value, path: &str, errs: &mut Errors) {
    if profile.is_null() {
        return;
    }
    let local = text(profile, "localhostProfile");
    let local_path = format!("{path}.localhostProfile");
    match text(profile, "type") {
        "Localhost" => {
            if local != local.trim() {
                let detail = "must not be padded with whitespace";
                errs.push(FieldError::invalid(local_path.as_str(), local, detail));
            } else if local.is_empty() {
                let detail = "must be set when AppArmor type is Localhost";
                errs.push(FieldError::required(local_path.as_str(), detail));
            }
            if local.len() > 4095 {
                errs.push(FieldError::too_long(local_path, 4095));
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if set(profile, "localhostProfile") {
                let detail = "can only be set when AppArmor type is Localhost";
                errs.push(FieldError::invalid(local_path, local, detail));
            }
        }
        "" => errs.push(FieldError::required(
            format!("{path}.type"),
            "type is required when appArmorProfile is set",
        )),
        other => errs.push(FieldError::not_supported(
            format!("{path}.type"),
            other,
            &["Localhost", "RuntimeDefault", "Unconfined"],
        )),
    }
}
