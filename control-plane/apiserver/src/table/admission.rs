//! Rows of admission webhooks and policies.

use super::*;
use crate::object::{list_at, str_at};

/// Validating and mutating webhook configurations.
pub static WEBHOOK_CONFIGURATION_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "Webhooks",
            "integer",
            "Webhooks indicates the number of webhooks registered in this configuration",
        ),
        Column::AGE,
    ],
    cells: webhook_configuration,
    conditions: no_conditions,
};
/// ValidatingAdmissionPolicies.
pub static VALIDATING_POLICY_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "Validations",
            "integer",
            "Validations indicates the number of validation rules defined in this configuration",
        ),
        Column::new(
            "ParamKind",
            "string",
            "ParamKind specifies the kind of resources used to parameterize this policy",
        ),
        Column::AGE,
    ],
    cells: validating_policy,
    conditions: no_conditions,
};
/// MutatingAdmissionPolicies.
pub static MUTATING_POLICY_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "Mutations",
            "integer",
            "Mutation indicates the number of mutations rules defined in this configuration",
        ),
        Column::new(
            "ParamKind",
            "string",
            "ParamKind specifies the kind of resources used to parameterize this policy",
        ),
        Column::AGE,
    ],
    cells: mutating_policy,
    conditions: no_conditions,
};
/// Bindings of admission policies.
pub static POLICY_BINDING_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "PolicyName",
            "string",
            "PolicyName indicates the policy definition which the policy binding binded to",
        ),
        Column::new(
            "ParamRef",
            "string",
            "ParamRef indicates the param resource which sets the configration param",
        ),
        Column::AGE,
    ],
    cells: policy_binding,
    conditions: no_conditions,
};

fn webhook_configuration(object: &Value, now: Timestamp) -> Vec<Value> {
    let webhooks = list_at(object, &["webhooks"]).len();
    vec![meta(object, "name").into(), webhooks.into(), age(object, now)]
}

fn policy(object: &Value, rules: &str, now: Timestamp) -> Vec<Value> {
    let parameters = match get(object, &["spec", "paramKind"]) {
        None => "<unset>".to_owned(),
        Some(kind) => format!("{}/{}", str_at(kind, &["apiVersion"]), str_at(kind, &["kind"])),
    };
    let rules = list_at(object, &["spec", rules]).len();
    vec![meta(object, "name").into(), rules.into(), parameters.into(), age(object, now)]
}

fn validating_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    policy(object, "validations", now)
}

fn mutating_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    policy(object, "mutations", now)
}

/// A label selector as Go prints its message.
fn go_selector(value: &Value) -> String {
    let mut labels: Vec<(&String, &Value)> =
        value.get("matchLabels").and_then(Value::as_object).into_iter().flatten().collect();
    labels.sort_by_key(|(key, _)| *key);
    let labels: String =
        labels.iter().map(|(k, v)| format!("{k}: {},", v.as_str().unwrap_or_default())).collect();
    let expressions: String = list_at(value, &["matchExpressions"])
        .iter()
        .map(|e| {
            let values: Vec<&str> = list_at(e, &["values"]).iter().filter_map(Value::as_str).collect();
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},",
                str_at(e, &["key"]),
                str_at(e, &["operator"]),
                values.join(" ")
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

fn policy_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match get(object, &["spec", "paramRef"]) {
        None => "<unset>".to_owned(),
        Some(p) => match (str_at(p, &["name"]), str_at(p, &["namespace"]), get(p, &["selector"])) {
            ("", _, Some(selector)) => go_selector(selector),
            ("", _, None) => "<unset>".to_owned(),
            (name, "", _) => format!("*/{name}"),
            (name, namespace, _) => format!("{namespace}/{name}"),
        },
    };
    let policy = str_at(object, &["spec", "policyName"]);
    vec![meta(object, "name").into(), policy.into(), parameters.into(), age(object, now)]
}
