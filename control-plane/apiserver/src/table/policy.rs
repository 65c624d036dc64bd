//! Rows of disruption budgets, quotas, component statuses.

use super::*;
use crate::object::{int_at, list_at, str_at};

/// PodDisruptionBudgets.
pub static BUDGET_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown("Min Available", "string", "The minimum number of pods that must be available."),
        shown("Max Unavailable", "string", "The maximum number of pods that may be unavailable."),
        shown(
            "Allowed Disruptions",
            "integer",
            "Calculated number of pods that may be disrupted at this time.",
        ),
        age_column(),
    ],
    cells: budget,
    conditions: no_conditions,
};

/// ResourceQuotas.
pub static RESOURCE_QUOTA_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown(
            "Request",
            "string",
            "Request represents a minimum amount of cpu/memory that a container may consume.",
        ),
        shown(
            "Limit",
            "string",
            "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
        ),
        age_column(),
    ],
    cells: quota,
    conditions: no_conditions,
};

/// ComponentStatuses.
pub static COMPONENT_STATUS_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown("Status", "string", "Status of the component conditions"),
        shown("Message", "string", "Message of the component conditions"),
        shown("Error", "string", "Error of the component conditions"),
    ],
    cells: component_status,
    conditions: no_conditions,
};

fn budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = |field: &str| match get(object, &["spec", field]) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => "N/A".to_owned(),
    };
    vec![
        meta(object, "name").into(),
        bound("minAvailable").into(),
        bound("maxUnavailable").into(),
        int_at(object, &["status", "disruptionsAllowed"]).unwrap_or_default().into(),
        age(object, now),
    ]
}

fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let hard = get(object, &["status", "hard"]).and_then(Value::as_object);
    let used = |name: &str| match str_at(object, &["status", "used", name]) {
        "" => "0",
        text => text,
    };
    let mut all: Vec<(&String, &Value)> = hard.into_iter().flatten().collect();
    all.sort_by_key(|(name, _)| *name);
    let list = |limits: bool| {
        all.iter()
            .filter(|(name, _)| name.starts_with("limits") == limits)
            .map(|(name, hard)| format!("{name}: {}/{}", used(name), hard.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(", ")
    };
    vec![meta(object, "name").into(), list(false).into(), list(true).into(), age(object, now)]
}

fn component_status(object: &Value, _: Timestamp) -> Vec<Value> {
    let healthy = list_at(object, &["conditions"]).iter().find(|c| str_at(c, &["type"]) == "Healthy");
    let (status, message, error) = match healthy {
        Some(c) => {
            let status = if str_at(c, &["status"]) == "True" { "Healthy" } else { "Unhealthy" };
            (status, str_at(c, &["message"]), str_at(c, &["error"]))
        }
        None => ("Unknown", "", ""),
    };
    vec![meta(object, "name").into(), status.into(), message.into(), error.into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells() {
        let now = Timestamp::now();
        let pdb = json!({"metadata": {"name": "d"}, "spec": {"maxUnavailable": "25%"}, "status": {"disruptionsAllowed": 2}});
        assert_eq!(budget(&pdb, now)[1..4], [json!("N/A"), json!("25%"), json!(2)]);
        let q = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "3", "limits.cpu": "1"}, "used": {"pods": "1"}}});
        assert_eq!(quota(&q, now)[1..3], [json!("pods: 1/3"), json!("limits.cpu: 0/1")]);
        let status = |conditions: Value| {
            component_status(&json!({"metadata": {"name": "c"}, "conditions": conditions}), now)
        };
        assert_eq!(status(json!([]))[1], "Unknown");
        assert_eq!(
            status(json!([{"type": "Healthy", "status": "False", "error": "e"}]))[1..],
            [json!("Unhealthy"), json!(""), json!("e")]
        );
    }
}
