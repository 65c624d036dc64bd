//! A container's own restart policy and its rules.

use super::{Errors, at, list, one_of, set, text};
use crate::error::FieldError;
use serde_json::Value;

/// Most rules of a container.
const MAX_RULES: usize = 20;
/// Most exit codes of a rule.
const MAX_CODES: usize = 255;

/// Checks `restartPolicy` and `restartPolicyRules` of a container or init container.
pub(super) fn policy(container: &Value, path: &str, errs: &mut Errors) {
    let rules = list(container, "restartPolicyRules");
    let policy = format!("{path}.restartPolicy");
    if set(container, "restartPolicy") {
        one_of(errs, &policy, text(container, "restartPolicy"), &["Always", "OnFailure", "Never"]);
    } else if !rules.is_empty() {
        errs.push(FieldError::required(policy, "must specify restartPolicy when restart rules are used"));
    }
    let path = format!("{path}.restartPolicyRules");
    if rules.len() > MAX_RULES {
        errs.push(FieldError::too_many(path.clone(), rules.len(), MAX_RULES));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let actions = ["Restart", "RestartAllContainers"];
        supported(errs, format!("{path}.action"), text(rule, "action"), &actions);
        let path = format!("{path}.exitCodes");
        if !set(rule, "exitCodes") {
            errs.push(FieldError::required(path, "must be specified"));
            continue;
        }
        let codes = at(rule, "exitCodes");
        supported(errs, format!("{path}.operator"), text(codes, "operator"), &["In", "NotIn"]);
        let values = list(codes, "values");
        if values.len() > MAX_CODES {
            errs.push(FieldError::too_many(format!("{path}.values"), values.len(), MAX_CODES));
        }
    }
}

fn supported(errs: &mut Errors, path: String, value: &str, values: &[&str]) {
    if !values.contains(&value) {
        errs.push(FieldError::not_supported(path, value, values));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(container: Value) -> Vec<String> {
        let mut errs = Errors::default();
        policy(&container, "spec.containers[0]", &mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules() {
        let codes = json!({"operator": "In", "values": [3]});
        let rule = |action: &str, codes: &Value| json!([{"action": action, "exitCodes": codes}]);
        assert!(messages(json!({})).is_empty());
        for action in ["Restart", "RestartAllContainers"] {
            let ok = json!({"restartPolicy": "Never", "restartPolicyRules": rule(action, &codes)});
            assert!(messages(ok).is_empty(), "{action}");
        }
        for (container, message) in [
            (
                json!({"restartPolicy": "Sometimes"}),
                r#"restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never""#,
            ),
            (
                json!({"restartPolicyRules": rule("Restart", &codes)}),
                "restartPolicy: Required value: must specify restartPolicy when restart rules are used",
            ),
            (
                json!({"restartPolicy": "Never", "restartPolicyRules": rule("DoNotRestart", &codes)}),
                r#"restartPolicyRules[0].action: Unsupported value: "DoNotRestart": supported values: "Restart", "RestartAllContainers""#,
            ),
            (
                json!({"restartPolicy": "Never", "restartPolicyRules": rule("Restart", &json!({"operator": "Equals"}))}),
                r#"restartPolicyRules[0].exitCodes.operator: Unsupported value: "Equals": supported values: "In", "NotIn""#,
            ),
            (
                json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart"}]}),
                "restartPolicyRules[0].exitCodes: Required value: must be specified",
            ),
        ] {
            assert_eq!(messages(container), [format!("spec.containers[0].{message}")]);
        }
    }
}
