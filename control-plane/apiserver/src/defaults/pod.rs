//! Pods and pod templates.

use serde_json::{Map, Value, json};

use super::{default, default_pointer, items, member, text, unset};

const CONTAINER_LISTS: [&str; 2] = ["initContainers", "containers"];

/// A Pod: what a template gets, and what only pods get.
pub(super) fn pod(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    pod_spec(spec);
    for list in CONTAINER_LISTS {
        for container in items(spec, list) {
            requests_from_limits(container);
        }
    }
    pod_level_requests(spec);
    default_pointer(spec, "enableServiceLinks", true);
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for list in CONTAINER_LISTS {
            for port in items(spec, list).flat_map(|c| items(c, "ports")) {
                let number = port.get("containerPort").cloned().unwrap_or(Value::Null);
                default_pointer(port, "hostPort", number);
            }
        }
    }
}

/// A PodTemplateSpec.
pub(super) fn template(template: Option<&mut Value>) {
    if let Some(spec) = template.and_then(|t| member(t, "spec")) {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Value) {
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "restartPolicy", "Always");
    default_pointer(spec, "securityContext", json!({}));
    default_pointer(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "schedulerName", "default-scheduler");
    for volume_ in items(spec, "volumes") {
        volume(volume_);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for c in items(spec, list) {
            container(c);
        }
    }
    one_account(spec);
}

/// The account has an old name, which every object has too; where they differ the new one counts.
fn one_account(spec: &mut Value) {
    let pair = match (text(spec, "serviceAccountName"), text(spec, "serviceAccount")) {
        ("", "") => return,
        ("", old) => old.to_owned(),
        (name, _) => name.to_owned(),
    };
    spec["serviceAccountName"] = pair.as_str().into();
    spec["serviceAccount"] = pair.into();
}

fn container(c: &mut Value) {
    let policy = pull_policy(text(c, "image"));
    default(c, "imagePullPolicy", policy);
    default(c, "terminationMessagePath", "/dev/termination-log");
    default(c, "terminationMessagePolicy", "File");
    for port in items(c, "ports") {
        default(port, "protocol", "TCP");
    }
    for env in items(c, "env") {
        if let Some(field) = env.pointer_mut("/valueFrom/fieldRef") {
            default(field, "apiVersion", "v1");
        }
        if let Some(file) = env.pointer_mut("/valueFrom/fileKeyRef") {
            default_pointer(file, "optional", false);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = c.get_mut(name).filter(|p| p.is_object()) {
            for (field, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                default_pointer(probe, field, value);
            }
            handler(probe);
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(hook) = c.pointer_mut(&format!("/lifecycle/{name}")) {
            handler(hook);
        }
    }
}

fn handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|g| g.is_object()) {
        default(get, "path", "/");
        default(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc").filter(|g| g.is_object()) {
        default_pointer(grpc, "service", "");
    }
}

/// `Always` for the tag `latest`, which a name without tag and digest means, too.
pub(crate) fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = match image.split_once('@') {
        Some((name, _)) => (name, true),
        None => (image, false),
    };
    let last = name.rsplit('/').next().unwrap_or_default();
    let latest = match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => !digest && !image.is_empty() && !image.contains(char::is_whitespace),
    };
    if latest { "Always" } else { "IfNotPresent" }
}

/// Requests that are not set are the limits.
fn requests_from_limits(container: &mut Value) {
    let Some(resources) = container.get_mut("resources") else { return };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let Some(Value::Object(requests)) = member(resources, "requests") else { return };
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

/// Requests of the whole pod that are not set are its limits, or the sum that its containers ask for.
fn pod_level_requests(spec: &mut Value) {
    let Some(Value::Object(limits)) = spec.pointer("/resources/limits").cloned() else { return };
    let sums = container_requests(spec);
    let Some(requests) = spec.get_mut("resources").and_then(|r| member(r, "requests")) else { return };
    let Value::Object(requests) = requests else { return };
    for (name, limit) in limits {
        let supported = matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-");
        if supported && unset(requests, &name) {
            let sum = sums.get(&name).filter(|_| !name.starts_with("hugepages-")).cloned();
            requests.insert(name, sum.unwrap_or(limit));
        }
    }
}

/// What the containers of a pod ask for together: the main ones and sidecars summed, or the largest init container.
fn container_requests(spec: &Value) -> Map<String, Value> {
    use kelp_model::quantity::Quantity;
    let mut sum: std::collections::BTreeMap<String, Quantity> = Default::default();
    let list = |name: &str| spec.get(name).and_then(Value::as_array).into_iter().flatten();
    let requests = |c: &Value| -> Vec<(String, Quantity)> {
        let map = c.pointer("/resources/requests").and_then(Value::as_object).into_iter().flatten();
        map.filter_map(|(k, v)| Some((k.clone(), Quantity::parse(v.as_str()?).ok()?))).collect()
    };
    let sidecar = |c: &&Value| text(c, "restartPolicy") == "Always";
    for c in list("containers").chain(list("initContainers").filter(sidecar)) {
        for (name, q) in requests(c) {
            let entry = sum.entry(name).or_insert(Quantity::ZERO);
            *entry = *entry + q;
        }
    }
    for c in list("initContainers").filter(|c| !sidecar(c)) {
        for (name, q) in requests(c) {
            let entry = sum.entry(name).or_insert(Quantity::ZERO);
            *entry = (*entry).max(q);
        }
    }
    sum.into_iter().map(|(k, q)| (k, q.to_string().into())).collect()
}

const MODE: i32 = 0o644;

fn volume(v: &mut Value) {
    let Value::Object(map) = &*v else { return };
    if map.keys().all(|k| k == "name") {
        default_pointer(v, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(s) = v.get_mut(source).filter(|s| s.is_object()) {
            default_pointer(s, "defaultMode", MODE);
        }
    }
    if let Some(api) = v.get_mut("downwardAPI") {
        downward(api);
    }
    for source in v.get_mut("projected").into_iter().flat_map(|p| items(p, "sources")) {
        if let Some(token) = source.get_mut("serviceAccountToken") {
            default_pointer(token, "expirationSeconds", 3600);
        }
        if let Some(api) = source.get_mut("downwardAPI") {
            downward(api);
        }
    }
    if let Some(path) = v.get_mut("hostPath") {
        default_pointer(path, "type", "");
    }
    if let Some(disk) = v.get_mut("azureDisk") {
        default_pointer(disk, "readOnly", false);
    }
    if let Some(spec) = v.pointer_mut("/ephemeral/volumeClaimTemplate/spec") {
        default_pointer(spec, "volumeMode", "Filesystem");
    }
    if let Some(image) = v.get_mut("image").filter(|i| i.is_object()) {
        let policy = pull_policy(text(image, "reference"));
        default(image, "pullPolicy", policy);
    }
}

fn downward(api: &mut Value) {
    for item in items(api, "items") {
        if let Some(field) = item.get_mut("fieldRef").filter(|f| f.is_object()) {
            default(field, "apiVersion", "v1");
        }
    }
}
