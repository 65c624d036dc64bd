//! Rows of horizontal pod autoscalers, of both versions.

use super::*;
use crate::object::{int_at, list_at, str_at};
use crate::registry::autoscaler_stored;

/// HorizontalPodAutoscalers.
pub static AUTOSCALER_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown(
            "Reference",
            "string",
            "scaleTargetRef points to the target resource to scale, and is used to the pods for which metrics should be collected, as well as to actually change the replica count.",
        ),
        shown(
            "Targets",
            "string",
            "metrics contains the specifications for which to use to calculate the desired replica count (the maximum replica count across all metrics will be used).  The desired replica count is calculated multiplying the ratio between the target value and the current value by the current number of pods.  Ergo, metrics used must decrease as the pod count is increased, and vice-versa.  See the individual metric source types for more information about how each type of metric must respond.",
        ),
        shown(
            "MinPods",
            "string",
            "minReplicas is the lower limit for the number of replicas to which the autoscaler can scale down.  It defaults to 1 pod.  minReplicas is allowed to be 0 if the alpha feature gate HPAScaleToZero is enabled and at least one Object or External metric is configured.  Scaling is active as long as at least one metric value is available.",
        ),
        shown(
            "MaxPods",
            "string",
            "maxReplicas is the upper limit for the number of replicas to which the autoscaler can scale up. It cannot be less that minReplicas.",
        ),
        shown(
            "Replicas",
            "string",
            "currentReplicas is current number of replicas of pods managed by this autoscaler, as last seen by the autoscaler.",
        ),
        age_column(),
    ],
    cells: autoscaler,
    conditions: no_conditions,
};

/// Metrics shown; the others are counted.
const SHOWN: usize = 2;

const UNKNOWN: &str = "<unknown>";

fn amount<'a>(source: &'a Value, path: &[&str]) -> Option<&'a str> {
    get(source, path).and_then(Value::as_str)
}

/// What is measured and what is wanted of one metric; `status` is the metric in the same place of the status.
fn metric(spec: &Value, status: Option<&Value>) -> String {
    let kind = str_at(spec, &["type"]);
    let field = match kind {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let wanted = |name: &str| amount(spec, &[field, "target", name]);
    let source = status.and_then(|s| get(s, &[field]));
    let measured = |name: &str| source.and_then(|s| amount(s, &["current", name]));
    // A quantity that a source does not have shows as zero.
    let present = |name: &str| source.map_or(UNKNOWN, |_| measured(name).unwrap_or("0"));
    match kind {
        "External" | "Object" => match wanted("averageValue") {
            Some(target) => format!("{}/{target} (avg)", measured("averageValue").unwrap_or(UNKNOWN)),
            None => format!("{}/{}", present("value"), wanted("value").unwrap_or("<nil>")),
        },
        "Pods" => format!("{}/{}", present("averageValue"), wanted("averageValue").unwrap_or("<nil>")),
        _ => {
            let name = str_at(spec, &[field, "name"]);
            if let Some(target) = wanted("averageValue") {
                return format!("{name}: {}/{target}", present("averageValue"));
            }
            let percent = |number: Option<i64>| number.map(|n| format!("{n}%"));
            let current = source.and_then(|s| int_at(s, &["current", "averageUtilization"]));
            let target = int_at(spec, &[field, "target", "averageUtilization"]);
            format!(
                "{name}: {}/{}",
                percent(current).unwrap_or_else(|| UNKNOWN.to_owned()),
                percent(target).unwrap_or_else(|| "<auto>".to_owned())
            )
        }
    }
}

fn metrics(object: &Value) -> String {
    let specs = list_at(object, &["spec", "metrics"]);
    let statuses = list_at(object, &["status", "currentMetrics"]);
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let shown: Vec<String> =
        specs.iter().take(SHOWN).enumerate().map(|(i, spec)| metric(spec, statuses.get(i))).collect();
    let text = shown.join(", ");
    match specs.len().saturating_sub(SHOWN) {
        0 => text,
        more => format!("{text} + {more} more..."),
    }
}

fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let object = &*autoscaler_stored(object);
    let target = |field: &str| str_at(object, &["spec", "scaleTargetRef", field]).to_owned();
    let least = int_at(object, &["spec", "minReplicas"]).map_or("<unset>".to_owned(), |n| n.to_string());
    vec![
        meta(object, "name").into(),
        format!("{}/{}", target("kind"), target("name")).into(),
        metrics(object).into(),
        least.into(),
        int_at(object, &["spec", "maxReplicas"]).unwrap_or_default().into(),
        int_at(object, &["status", "currentReplicas"]).unwrap_or_default().into(),
        age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_every_type() {
        let utilization =
            json!({"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}});
        let current =
            json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7}}});
        assert_eq!(metric(&utilization, None), "cpu: <unknown>/80%");
        assert_eq!(metric(&utilization, Some(&current)), "cpu: 7%/80%");
        let pods = json!({"type": "Pods", "pods": {"target": {"averageValue": "10"}}});
        assert_eq!(metric(&pods, None), "<unknown>/10");
        let external = json!({"type": "External", "external": {"target": {"averageValue": "1"}}});
        let current = json!({"external": {"current": {"averageValue": "3"}}});
        assert_eq!(metric(&external, Some(&current)), "3/1 (avg)");
        let object = json!({"type": "Object", "object": {"target": {"value": "5"}}});
        assert_eq!(metric(&object, Some(&json!({"object": {"current": {"value": "2"}}}))), "2/5");
        let all = json!({"spec": {"metrics": [utilization, pods, external]}});
        assert_eq!(metrics(&all), "cpu: <unknown>/80%, <unknown>/10 + 1 more...");
        assert_eq!(metrics(&json!({})), "<none>");
    }
}
