//! LimitRanger: limit ranges of a namespace fill in what containers ask for, and bound containers, pods and claims.

use crate::cache::Filter;
use crate::error::ApiError;
use crate::object::{get, is_deleting, list_at, map_mut, meta, meta_mut, str_at};
use crate::registry::Resource;
use crate::server::Core;
use kelp_model::quantity::Quantity;
use kelp_model::quota::amounts::{Amounts, Source, amounts, pod_amounts};
use serde_json::{Value, json};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The limit ranges of a namespace, by name.
async fn ranges(core: &Core, namespace: &str) -> Result<Vec<Value>, ApiError> {
    let Some(row) = core.builtin.find("", "v1", "limitranges") else { return Ok(Vec::new()) };
    let cache = core.cache(row);
    cache.wait_loaded().await?;
    let filter = Filter { namespace: namespace.to_owned(), ..Filter::default() };
    Ok(cache.snapshot(&filter, None).entries.iter().map(|entry| entry.encoded.parse()).collect())
}

/// The kinds that limit ranges speak of.
fn concerns(resource: &Resource) -> bool {
    resource.group().is_empty() && matches!(resource.kind(), "Pod" | "PersistentVolumeClaim")
}

/// Fills in a new pod's requests and limits.
pub(super) async fn mutate(core: &Core, resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    if !(resource.group().is_empty() && resource.kind() == "Pod") {
        return Ok(());
    }
    for range in ranges(core, meta(object, "namespace")).await? {
        fill(&range, object);
    }
    Ok(())
}

/// Refuses what is out of bounds. `old` is the stored object at an update.
pub(super) async fn validate(
    core: &Core,
    resource: &Resource,
    subresource: &str,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let pod_update = resource.kind() == "Pod" && old.is_some();
    let supported = if pod_update { subresource == "resize" } else { subresource.is_empty() };
    if !concerns(resource) || !supported || old.is_some_and(is_deleting) {
        return Ok(());
    }
    for range in ranges(core, meta(object, "namespace")).await? {
        let errors = violations(&range, resource.kind(), object);
        if let Some(why) = aggregate(errors) {
            return Err(ApiError::forbidden(resource.group(), resource.plural(), meta(object, "name"), &why));
        }
    }
    Ok(())
}

/// Several messages as one, each once.
fn aggregate(errors: Vec<String>) -> Option<String> {
    let mut once: Vec<String> = Vec::new();
    for error in errors {
        if !once.contains(&error) {
            once.push(error);
        }
    }
    match once.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        all => Some(format!("[{}]", all.join(", "))),
    }
}

fn fill(range: &Value, pod: &mut Value) {
    let mut defaults: [(&str, Amounts); 2] = [("requests", Amounts::new()), ("limits", Amounts::new())];
    for limit in list_at(range, &["spec", "limits"]).iter().filter(|l| str_at(l, &["type"]) == "Container") {
        for ((_, all), field) in defaults.iter_mut().zip(["defaultRequest", "default"]) {
            all.extend(amounts(get(limit, &[field])));
        }
    }
    let mut notes = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = map_mut(pod, "spec").get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = str_at(container, &["name"]).to_owned();
            for (field, all) in &defaults {
                let set = fill_container(container, field, all);
                if !set.is_empty() {
                    let kind = field.trim_end_matches('s');
                    notes.push(format!("{} {kind} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let annotations = meta_mut(pod).entry("annotations").or_insert_with(|| json!({}));
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations[ANNOTATION] = format!("LimitRanger plugin set: {}", notes.join("; ")).into();
    }
}

/// Sets the amounts that a container lacks; the names of those.
fn fill_container(container: &mut Value, field: &str, all: &Amounts) -> Vec<String> {
    let missing: Vec<(&String, &Quantity)> = all
        .iter()
        .filter(|(name, _)| get(container, &["resources", field, name.as_str()]).is_none())
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let resources = map_mut(container, "resources");
    let amounts = resources.entry(field).or_insert_with(|| json!({}));
    if !amounts.is_object() {
        *amounts = json!({});
    }
    for (name, quantity) in &missing {
        amounts[name.as_str()] = quantity.to_string().into();
    }
    missing.into_iter().map(|(name, _)| name.clone()).collect()
}

fn violations(range: &Value, kind: &str, object: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    for limit in list_at(range, &["spec", "limits"]) {
        match (str_at(limit, &["type"]), kind) {
            ("Container", "Pod") => {
                for list in ["containers", "initContainers"] {
                    for container in list_at(object, &["spec", list]) {
                        let of = |field| amounts(get(container, &["resources", field]));
                        bounds(limit, "Container", &of("requests"), &of("limits"), &mut errors);
                    }
                }
            }
            ("Pod", "Pod") => {
                let of = |field| pod_amounts(object, field, Source::Spec);
                bounds(limit, "Pod", &of("requests"), &of("limits"), &mut errors);
            }
            ("PersistentVolumeClaim", "PersistentVolumeClaim") => {
                let requests = amounts(get(object, &["spec", "resources", "requests"]));
                for (name, bound) in amounts(get(limit, &["min"])) {
                    errors.extend(below("PersistentVolumeClaim", &name, bound, &requests, &Amounts::new()));
                }
                for (name, bound) in amounts(get(limit, &["max"])) {
                    errors.extend(request_above(&name, bound, &requests));
                }
            }
            _ => {}
        }
    }
    errors
}

fn bounds(limit: &Value, kind: &str, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
    for (name, bound) in amounts(get(limit, &["min"])) {
        errors.extend(below(kind, &name, bound, requests, limits));
    }
    for (name, bound) in amounts(get(limit, &["max"])) {
        errors.extend(above(kind, &name, bound, requests, limits));
    }
    for (name, bound) in amounts(get(limit, &["maxLimitRequestRatio"])) {
        errors.extend(ratio(kind, &name, bound, requests, limits));
    }
}

fn below(kind: &str, name: &str, bound: Quantity, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let start = format!("minimum {name} usage per {kind} is {bound}");
    match (requests.get(name), limits.get(name)) {
        (None, _) => Some(format!("{start}.  No request is specified")),
        (Some(request), _) if bound > *request => Some(format!("{start}, but request is {request}")),
        (_, Some(limit)) if bound > *limit => Some(format!("{start}, but limit is {limit}")),
        _ => None,
    }
}

fn above(kind: &str, name: &str, bound: Quantity, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let start = format!("maximum {name} usage per {kind} is {bound}");
    match (requests.get(name), limits.get(name)) {
        (_, None) => Some(format!("{start}.  No limit is specified")),
        (_, Some(limit)) if *limit > bound => Some(format!("{start}, but limit is {limit}")),
        (Some(request), _) if *request > bound => Some(format!("{start}, but request is {request}")),
        _ => None,
    }
}

/// Claims have requests only.
fn request_above(name: &str, bound: Quantity, requests: &Amounts) -> Option<String> {
    let start = format!("maximum {name} usage per PersistentVolumeClaim is {bound}");
    match requests.get(name) {
        None => Some(format!("{start}.  No request is specified")),
        Some(request) if *request > bound => Some(format!("{start}, but request is {request}")),
        Some(_) => None,
    }
}

fn ratio(kind: &str, name: &str, bound: Quantity, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let start = format!("{name} max limit to request ratio per {kind} is {bound}, but");
    let present = |all: &Amounts| all.get(name).filter(|q| !q.is_zero()).copied();
    let Some(request) = present(requests) else {
        return Some(format!("{start} no request is specified or request is 0"));
    };
    let Some(limit) = present(limits) else {
        return Some(format!("{start} no limit is specified or limit is 0"));
    };
    // Whole numbers where both are, thousandths where one has a fraction: so the quotient has upstream's digits.
    let whole = request.is_multiple_of_scale(0) && limit.is_multiple_of_scale(0);
    let (limit, request) = if whole {
        (limit.value() as f64, request.value() as f64)
    } else {
        (limit.milli_value() as f64, request.milli_value() as f64)
    };
    let observed = limit / request;
    let allowed = bound.milli_value() as f64 / 1000.0;
    (observed > allowed).then(|| format!("{start} provided ratio is {observed:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(limits: Value) -> Value {
        json!({"spec": {"limits": limits}})
    }

    #[test]
    fn defaults_are_filled_in_and_noted() {
        let range = range(json!([{"type": "Container", "default": {"cpu": "500m", "memory": "128Mi"},
            "defaultRequest": {"cpu": "100m", "memory": "128Mi"}}]));
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"name": "c"},
            {"name": "d", "resources": {"requests": {"cpu": "200m"}, "limits": {"cpu": "300m"}}}],
            "initContainers": [{"name": "i"}]}});
        fill(&range, &mut pod);
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu, memory request for container c; cpu, memory limit for container c; memory \
             request for container d; memory limit for container d; cpu, memory request for init container i; cpu, \
             memory limit for init container i"
        );
        let d = json!({"requests": {"cpu": "200m", "memory": "128Mi"}, "limits": {"cpu": "300m", "memory": "128Mi"}});
        assert_eq!(pod["spec"]["containers"][1]["resources"], d);
        let filled = pod.clone();
        fill(&range, &mut pod);
        assert_eq!(pod, filled);
    }

    #[test]
    fn bounds_of_containers_pods_and_claims() {
        let range = range(json!([
            {"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "100m"}, "maxLimitRequestRatio": {"cpu": "2"}},
            {"type": "Pod", "max": {"memory": "100Mi"}},
            {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}]));
        let pod = |requests: Value, limits: Value| {
            let spec =
                json!({"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]});
            aggregate(violations(&range, "Pod", &json!({"spec": spec}))).unwrap_or_default()
        };
        assert_eq!(pod(json!({"cpu": "500m"}), json!({"cpu": "1", "memory": "1Mi"})), "");
        assert_eq!(
            pod(json!({"cpu": "3"}), json!({"cpu": "3"})),
            "[maximum cpu usage per Container is 1, but limit is 3, maximum memory usage per Pod is 100Mi.  No limit is \
             specified]"
        );
        assert_eq!(
            pod(json!({"cpu": "100m"}), json!({"cpu": "900m", "memory": "1Mi"})),
            "cpu max limit to request ratio per Container is 2, but provided ratio is 9.000000"
        );
        let claim = |storage: &str| {
            let claim = json!({"spec": {"resources": {"requests": {"storage": storage}}}});
            aggregate(violations(&range, "PersistentVolumeClaim", &claim)).unwrap_or_default()
        };
        assert_eq!(claim("1Gi"), "");
        assert_eq!(
            claim("1Mi"),
            "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"
        );
        assert_eq!(
            claim("3Gi"),
            "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"
        );
    }
}
