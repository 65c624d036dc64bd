//! HorizontalPodAutoscaler between `autoscaling/v1` and `autoscaling/v2`. What version 1 has no fields for travels in
//! annotations, as texts of JSON whose members stand in the order of upstream's types.

use crate::object::{get, int_at, list_at, map_mut, meta_mut, set_or_remove, str_at};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const ALL: [&str; 4] = [METRICS, BEHAVIOR, CURRENT, CONDITIONS];

/// Percentage of the requested CPU that is aimed at when nothing is said.
const DEFAULT_UTILIZATION: i64 = 80;

/// A metric of version 1, wanted or measured, with the members of all kinds of source; absent ones are left out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metric {
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_resource: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external: Option<Source>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric_selector: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_average_utilization: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_average_utilization: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_value: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_value: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_average_value: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_average_value: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    average_value: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Reference {
    kind: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_version: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    r#type: String,
    status: String,
    last_transition_time: Option<Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

/// Upstream writes its internal type here, whose members have Go's names.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Behavior {
    scale_up: Option<Rules>,
    scale_down: Option<Rules>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Rules {
    stabilization_window_seconds: Option<i64>,
    select_policy: Option<String>,
    policies: Option<Vec<Policy>>,
    tolerance: Option<Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Policy {
    r#type: String,
    value: i64,
    period_seconds: i64,
}

fn value_at(object: &Value, path: &[&str]) -> Option<Value> {
    get(object, path).filter(|v| !v.is_null()).cloned()
}

fn text_at(object: &Value, path: &[&str]) -> String {
    str_at(object, path).to_owned()
}

fn or_zero(value: Option<Value>) -> Option<Value> {
    Some(value.unwrap_or_else(|| "0".into()))
}

fn reference(object: &Value) -> Reference {
    Reference {
        kind: text_at(object, &["kind"]),
        name: text_at(object, &["name"]),
        api_version: text_at(object, &["apiVersion"]),
    }
}

/// A version 2 metric (`current`: its measured form) as version 1 writes it.
fn old_metric(metric: &Value, current: bool) -> Metric {
    let part = if current { "current" } else { "target" };
    let source = |field: &str| get(metric, &[field]).filter(|s| !s.is_null());
    let of_resource = |s: &Value| {
        let utilization = int_at(s, &[part, "averageUtilization"]);
        let average = value_at(s, &[part, "averageValue"]);
        let mut out = Source { name: Some(text_at(s, &["name"])), ..Source::default() };
        if current {
            out.current_average_utilization = utilization;
            out.current_average_value = or_zero(average);
        } else {
            out.target_average_utilization = utilization;
            out.target_average_value = average;
        }
        out
    };
    Metric {
        r#type: text_at(metric, &["type"]),
        object: source("object").map(|s| {
            let value = or_zero(value_at(s, &[part, "value"]));
            let (target_value, current_value) = if current { (None, value) } else { (value, None) };
            Source {
                target: Some(reference(&value_at(s, &["describedObject"]).unwrap_or_default())),
                metric_name: Some(text_at(s, &["metric", "name"])),
                target_value,
                current_value,
                selector: value_at(s, &["metric", "selector"]),
                average_value: value_at(s, &[part, "averageValue"]),
                ..Source::default()
            }
        }),
        pods: source("pods").map(|s| {
            let value = or_zero(value_at(s, &[part, "averageValue"]));
            let (target_average_value, current_average_value) =
                if current { (None, value) } else { (value, None) };
            Source {
                metric_name: Some(text_at(s, &["metric", "name"])),
                target_average_value,
                current_average_value,
                selector: value_at(s, &["metric", "selector"]),
                ..Source::default()
            }
        }),
        resource: source("resource").map(of_resource),
        container_resource: source("containerResource")
            .map(|s| Source { container: Some(text_at(s, &["container"])), ..of_resource(s) }),
        external: source("external").map(|s| {
            let (value, average) = (value_at(s, &[part, "value"]), value_at(s, &[part, "averageValue"]));
            let mut out = Source {
                metric_name: Some(text_at(s, &["metric", "name"])),
                metric_selector: value_at(s, &["metric", "selector"]),
                ..Source::default()
            };
            if current {
                out.current_value = or_zero(value);
                out.current_average_value = average;
            } else {
                out.target_value = value;
                out.target_average_value = average;
            }
            out
        }),
    }
}

fn put(object: &mut Value, field: &str, value: Option<impl Into<Value>>) {
    if let (Value::Object(map), Some(value)) = (object, value) {
        map.insert(field.to_owned(), value.into());
    }
}

fn metric_identifier(name: Option<String>, selector: Option<Value>) -> Value {
    let mut out = json!({"name": name.unwrap_or_default()});
    put(&mut out, "selector", selector);
    out
}

fn target(kind: &str, value: Option<Value>, average: Option<Value>, utilization: Option<i64>) -> Value {
    let mut out = json!({});
    put(&mut out, "type", (!kind.is_empty()).then_some(kind));
    put(&mut out, "value", value);
    put(&mut out, "averageValue", average);
    put(&mut out, "averageUtilization", utilization);
    out
}

/// A version 1 metric in version 2.
fn new_metric(metric: Metric, current: bool) -> Value {
    let part = if current { "current" } else { "target" };
    let kind = |kind: &'static str| if current { "" } else { kind };
    let mut out = json!({"type": metric.r#type});
    let of_resource = |s: Source| {
        let utilization = s.target_average_utilization.or(s.current_average_utilization);
        let average = s.target_average_value.or(s.current_average_value);
        let kind = kind(if utilization.is_some() { "Utilization" } else { "AverageValue" });
        json!({"name": s.name.unwrap_or_default(), part: target(kind, None, average, utilization)})
    };
    put(
        &mut out,
        "object",
        metric.object.map(|s| {
            let kind = kind(if s.average_value.is_some() { "AverageValue" } else { "Value" });
            let value = s.target_value.or(s.current_value);
            json!({"describedObject": s.target.unwrap_or_default(),
                "metric": metric_identifier(s.metric_name, s.selector),
                part: target(kind, value, s.average_value, None)})
        }),
    );
    put(
        &mut out,
        "pods",
        metric.pods.map(|s| {
            let average = s.target_average_value.or(s.current_average_value);
            json!({"metric": metric_identifier(s.metric_name, s.selector),
                part: target(kind("AverageValue"), None, average, None)})
        }),
    );
    put(&mut out, "resource", metric.resource.map(of_resource));
    put(
        &mut out,
        "containerResource",
        metric.container_resource.map(|mut s| {
            let container = s.container.take().unwrap_or_default();
            let mut source = of_resource(s);
            source["container"] = container.into();
            source
        }),
    );
    put(
        &mut out,
        "external",
        metric.external.map(|s| {
            let average = s.target_average_value.or(s.current_average_value);
            let kind = kind(if average.is_some() { "AverageValue" } else { "Value" });
            json!({"metric": metric_identifier(s.metric_name, s.metric_selector),
                part: target(kind, s.target_value.or(s.current_value), average, None)})
        }),
    );
    out
}

fn old_rules(rules: &Value) -> Rules {
    Rules {
        stabilization_window_seconds: int_at(rules, &["stabilizationWindowSeconds"]),
        select_policy: value_at(rules, &["selectPolicy"]).and_then(|v| v.as_str().map(str::to_owned)),
        policies: get(rules, &["policies"]).and_then(Value::as_array).map(|all| {
            all.iter()
                .map(|p| Policy {
                    r#type: text_at(p, &["type"]),
                    value: int_at(p, &["value"]).unwrap_or_default(),
                    period_seconds: int_at(p, &["periodSeconds"]).unwrap_or_default(),
                })
                .collect()
        }),
        tolerance: value_at(rules, &["tolerance"]),
    }
}

fn new_rules(rules: Rules) -> Value {
    let mut out = json!({});
    put(&mut out, "stabilizationWindowSeconds", rules.stabilization_window_seconds);
    put(&mut out, "selectPolicy", rules.select_policy);
    let policies = rules.policies.map(|all| {
        all.into_iter()
            .map(|p| json!({"type": p.r#type, "value": p.value, "periodSeconds": p.period_seconds}))
            .collect::<Vec<Value>>()
    });
    put(&mut out, "policies", policies);
    put(&mut out, "tolerance", rules.tolerance);
    out
}

fn annotate(object: &mut Value, key: &str, text: &impl Serialize) {
    // Types of strings and numbers cannot fail to be written.
    let Ok(text) = serde_json::to_string(text) else { return };
    let annotations = meta_mut(object).entry("annotations").or_insert_with(|| json!({}));
    if !annotations.is_object() {
        *annotations = json!({});
    }
    annotations[key] = text.into();
}

fn take_annotations(object: &mut Value) -> [Option<String>; 4] {
    let mut out = ALL.map(|key| value_at(object, &["metadata", "annotations", key]));
    if let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") {
        annotations.retain(|key, _| !ALL.contains(&key.as_str()));
        if annotations.is_empty() {
            meta_mut(object).remove("annotations");
        }
    }
    std::array::from_fn(|i| out.get_mut(i).and_then(|v| v.take()?.as_str().map(str::to_owned)))
}

fn is_cpu_utilization(metric: &Value) -> bool {
    str_at(metric, &["type"]) == "Resource" && str_at(metric, &["resource", "name"]) == "cpu"
}

/// `autoscaling/v2` → `autoscaling/v1`.
pub(crate) fn from_stored(object: &mut Value) {
    let _ = take_annotations(object);
    let spec = value_at(object, &["spec"]).unwrap_or_default();
    let status = value_at(object, &["status"]).unwrap_or_default();
    let metrics = list_at(&spec, &["metrics"]);
    let utilization = |m: &Value| int_at(m, &["resource", "target", "averageUtilization"]);
    let others: Vec<Metric> = metrics
        .iter()
        .filter(|m| !(is_cpu_utilization(m) && utilization(m).is_some()))
        .map(|m| old_metric(m, false))
        .collect();
    let current = list_at(&status, &["currentMetrics"]);
    let conditions: Vec<Condition> = list_at(&status, &["conditions"])
        .iter()
        .map(|c| Condition {
            r#type: text_at(c, &["type"]),
            status: text_at(c, &["status"]),
            last_transition_time: value_at(c, &["lastTransitionTime"]),
            reason: text_at(c, &["reason"]),
            message: text_at(c, &["message"]),
        })
        .collect();
    if !others.is_empty() {
        annotate(object, METRICS, &others);
    }
    if !current.is_empty() {
        annotate(object, CURRENT, &current.iter().map(|m| old_metric(m, true)).collect::<Vec<_>>());
    }
    if !conditions.is_empty() {
        annotate(object, CONDITIONS, &conditions);
    }
    if let Some(behavior) = value_at(&spec, &["behavior"]) {
        let rules = |name: &str| value_at(&behavior, &[name]).map(|r| old_rules(&r));
        let behavior = Behavior { scale_up: rules("scaleUp"), scale_down: rules("scaleDown") };
        annotate(object, BEHAVIOR, &behavior);
    }
    let wanted = metrics.iter().find(|m| is_cpu_utilization(m)).and_then(utilization);
    let measured = current
        .iter()
        .find(|m| is_cpu_utilization(m))
        .and_then(|m| int_at(m, &["resource", "current", "averageUtilization"]));
    let spec = map_mut(object, "spec");
    spec.remove("metrics");
    spec.remove("behavior");
    set_or_remove(spec, "targetCPUUtilizationPercentage", wanted.map(Value::from));
    let status = map_mut(object, "status");
    status.remove("currentMetrics");
    status.remove("conditions");
    set_or_remove(status, "currentCPUUtilizationPercentage", measured.map(Value::from));
    for field in ["currentReplicas", "desiredReplicas"] {
        status.entry(field).or_insert_with(|| 0.into());
    }
    object["apiVersion"] = "autoscaling/v1".into();
}

/// `autoscaling/v1` → `autoscaling/v2`.
pub(crate) fn to_stored(object: &mut Value) {
    if str_at(object, &["apiVersion"]) == "autoscaling/v2" {
        return;
    }
    let [metrics, behavior, current, conditions] = take_annotations(object);
    let cpu = |part: &str, kind: &str, utilization: Value| {
        let kind = if part == "current" { "" } else { kind };
        json!({"type": "Resource", "resource": {"name": "cpu",
            part: target(kind, None, None, utilization.as_i64())}})
    };
    let spec = map_mut(object, "spec");
    let own = spec.remove("targetCPUUtilizationPercentage").filter(|v| !v.is_null());
    let own = own.map(|utilization| cpu("target", "Utilization", utilization));
    let others = metrics.and_then(|text| serde_json::from_str::<Vec<Metric>>(&text).ok());
    let mut all: Vec<Value> = others.into_iter().flatten().map(|m| new_metric(m, false)).collect();
    all.extend(own);
    if all.is_empty() {
        all.push(cpu("target", "Utilization", DEFAULT_UTILIZATION.into()));
    }
    spec.insert("metrics".into(), all.into());
    if let Some(Ok(behavior)) = behavior.map(|text| serde_json::from_str::<Behavior>(&text))
        && (behavior.scale_up.is_some() || behavior.scale_down.is_some())
    {
        let mut out = json!({});
        put(&mut out, "scaleUp", behavior.scale_up.map(new_rules));
        put(&mut out, "scaleDown", behavior.scale_down.map(new_rules));
        spec.insert("behavior".into(), out);
    }
    let status = map_mut(object, "status");
    if status.get("currentReplicas").is_some_and(|r| *r == 0) {
        status.remove("currentReplicas");
    }
    let measured = status.remove("currentCPUUtilizationPercentage").filter(|v| !v.is_null());
    let measured = measured.map(|utilization| vec![cpu("current", "", utilization)]);
    let full = current
        .and_then(|text| serde_json::from_str::<Vec<Metric>>(&text).ok())
        .map(|all| all.into_iter().map(|m| new_metric(m, true)).collect::<Vec<Value>>());
    let list = full.or(measured).map_or(Value::Null, Value::from);
    status.insert("currentMetrics".into(), list);
    if let Some(Ok(conditions)) = conditions.map(|text| serde_json::from_str::<Vec<Condition>>(&text)) {
        let conditions: Vec<Value> =
            conditions.into_iter().filter_map(|c| serde_json::to_value(c).ok()).collect();
        status.insert("conditions".into(), conditions.into());
    }
    object["apiVersion"] = "autoscaling/v2".into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Value {
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h", "annotations": {"mine": "x"}},
        "spec": {"minReplicas": 1, "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "w"},
            "metrics": [
                {"type": "Pods", "pods": {"metric": {"name": "rps"},
                    "target": {"type": "AverageValue", "averageValue": "10"}}},
                {"type": "Object", "object": {"metric": {"name": "q"},
                    "describedObject": {"kind": "Service", "name": "s", "apiVersion": "v1"},
                    "target": {"type": "Value", "value": "5"}}},
                {"type": "External", "external": {"metric": {"name": "e", "selector": {"matchLabels": {"a": "b"}}},
                    "target": {"type": "AverageValue", "averageValue": "1"}}},
                {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c",
                    "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                {"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 55}}}],
            "behavior": {"scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}}},
        "status": {"currentReplicas": 2, "desiredReplicas": 2,
            "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                "current": {"averageUtilization": 40, "averageValue": "40m"}}}],
            "conditions": [{"type": "AbleToScale", "status": "True", "reason": "r", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    }

    #[test]
    fn there_and_back_keeps_all() {
        let mut object = stored();
        from_stored(&mut object);
        assert_eq!(object["apiVersion"], "autoscaling/v1");
        assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 55);
        assert_eq!(object["status"]["currentCPUUtilizationPercentage"], 40);
        assert!(object["spec"].get("metrics").is_none());
        to_stored(&mut object);
        assert_eq!(object, stored());
    }

    #[test]
    fn annotations_are_upstreams_texts() {
        let mut object = stored();
        from_stored(&mut object);
        let annotations = &object["metadata"]["annotations"];
        assert_eq!(
            annotations[CURRENT],
            r#"[{"type":"Resource","resource":{"name":"cpu","currentAverageUtilization":40,"currentAverageValue":"40m"}}]"#
        );
        assert_eq!(
            annotations[BEHAVIOR],
            r#"{"ScaleUp":{"StabilizationWindowSeconds":0,"SelectPolicy":"Max","Policies":[{"Type":"Pods","Value":4,"PeriodSeconds":15}],"Tolerance":null},"ScaleDown":null}"#
        );
        assert_eq!(
            annotations[CONDITIONS],
            r#"[{"type":"AbleToScale","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z","reason":"r","message":"m"}]"#
        );
        assert!(annotations[METRICS].as_str().is_some_and(|t| t.starts_with(
            r#"[{"type":"Pods","pods":{"metricName":"rps","targetAverageValue":"10"}},{"type":"Object","object":{"target":{"kind":"Service","name":"s","apiVersion":"v1"},"metricName":"q","targetValue":"5"}}"#
        )));
        assert_eq!(annotations["mine"], "x");
    }

    #[test]
    fn the_first_version_aims_at_80_percent() {
        let mut object = json!({"apiVersion": "autoscaling/v1", "metadata": {},
            "spec": {"maxReplicas": 2}, "status": {"currentReplicas": 0, "desiredReplicas": 0}});
        to_stored(&mut object);
        assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(object["status"], json!({"desiredReplicas": 0, "currentMetrics": null}));
        from_stored(&mut object);
        assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 80);
        assert_eq!(object["status"], json!({"currentReplicas": 0, "desiredReplicas": 0}));
    }

    #[test]
    fn damaged_annotations_are_dropped() {
        let mut object = json!({"apiVersion": "autoscaling/v1", "spec": {"maxReplicas": 2},
            "metadata": {"annotations": {METRICS: "{", BEHAVIOR: "[]", CURRENT: "x", CONDITIONS: ""}}});
        to_stored(&mut object);
        assert_eq!(object["metadata"], json!({}));
        assert_eq!(object["spec"]["metrics"].as_array().map(Vec::len), Some(1));
    }
}
