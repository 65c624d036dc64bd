//! Expressions of validation rules: they must fit the types of the schema they stand in. What they may cost is not
//! estimated.

use serde_json::Value;

use crate::cel;
use crate::error::{BadValue, FieldError};
use crate::validation::{Errors, at, flag, list, set, text};

/// Checks the rules of a schema without faults. `unkeyed` is the list, if any, whose items have no old values.
pub(super) fn check(schema: &Value, path: &str, root: bool, unkeyed: Option<&str>, errs: &mut Errors) {
    let root = root || flag(schema, "x-kubernetes-embedded-resource");
    for (i, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        let path = format!("{path}.x-kubernetes-validations[{i}]");
        let optional = flag(rule, "optionalOldSelf");
        let mut fault = |field: &str, why: String| {
            errs.push(FieldError::invalid(format!("{path}.{field}"), shown(rule), why));
        };
        let checked = match cel::check(schema, root, optional, text(rule, "rule")) {
            Ok(checked) => checked,
            Err(why) => {
                fault("rule", format!("compilation failed: {why}"));
                continue;
            }
        };
        if !checked.output.is("bool") {
            fault("rule", "cel expression must evaluate to a bool".to_owned());
            continue;
        }
        let message = text(rule, "messageExpression");
        if !message.is_empty() {
            match cel::check(schema, root, optional, message) {
                Ok(checked) if checked.output.is("string") => {}
                Ok(_) => fault("messageExpression", "messageExpression must evaluate to a string".to_owned()),
                Err(why) => {
                    fault("messageExpression", format!("messageExpression compilation failed: {why}"))
                }
            }
        }
        if checked.uses_old_self {
            if let Some(list) = unkeyed {
                let why = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {list}"
                );
                errs.push(FieldError::invalid(format!("{path}.rule"), text(rule, "rule"), why));
            }
        } else if set(rule, "optionalOldSelf") {
            let why = "may not be set if oldSelf is not used in rule";
            errs.push(FieldError::invalid(format!("{path}.optionalOldSelf"), Value::Bool(optional), why));
        }
    }
}

/// The rule as messages show it: the struct it is inside the server, escaped as Go's JSON is.
fn shown(rule: &Value) -> BadValue {
    let quoted = |field: &str| go_json(&Value::from(text(rule, field)));
    let pointer = |field: &str| go_json(at(rule, field));
    BadValue::Text(format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
        quoted("rule"),
        quoted("message"),
        quoted("messageExpression"),
        pointer("reason"),
        quoted("fieldPath"),
        pointer("optionalOldSelf"),
    ))
}

/// JSON as Go writes it: without characters that HTML gives a meaning.
fn go_json(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(schema: &Value) -> Vec<String> {
        let mut errs = Errors::new();
        super::super::openapi::check(schema, "s", &mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_about_a_missing_field_is_told_as_upstream_tells_it() {
        let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.x > 1"}]});
        assert_eq!(
            faults(&schema),
            [concat!(
                "s.x-kubernetes-validations[0].rule: Invalid value: ",
                r#"{"Rule":"self.x \u003e 1","Message":"","MessageExpression":"","Reason":null,"FieldPath":"","OptionalOldSelf":null}"#,
                ": compilation failed: ERROR: <input>:1:5: undefined field 'x'\n | self.x > 1\n | ....^"
            )]
        );
    }

    #[test]
    fn results_have_the_right_type_and_old_values_exist() {
        let rules = |rules: Value| {
            json!({"type": "object", "properties": {"n": {"type": "integer"}, "l": {
            "type": "array", "items": {"type": "object", "properties": {"v": {"type": "integer"}},
            "x-kubernetes-validations": rules}}}})
        };
        let with = |rule: Value| faults(&rules(json!([rule])));
        assert!(with(json!({"rule": "self.v > 1", "messageExpression": "string(self.v)"})).is_empty());
        assert!(with(json!({"rule": "self.v"})).concat().ends_with("cel expression must evaluate to a bool"));
        let message = with(json!({"rule": "true", "messageExpression": "self.v"})).concat();
        assert!(message.ends_with("messageExpression must evaluate to a string"), "{message}");
        let old = with(json!({"rule": "self.v >= oldSelf.v"})).concat();
        assert!(old.ends_with("uncorrelatable portion of the schema within s.properties[l]"), "{old}");
        let unused = with(json!({"rule": "true", "optionalOldSelf": true})).concat();
        assert!(unused.contains("may not be set if oldSelf is not used in rule"), "{unused}");
    }

    #[test]
    fn faults_of_the_schema_come_alone_and_alternatives_are_not_compiled() {
        let faulty = json!({"type": "object", "uniqueItems": true,
            "x-kubernetes-validations": [{"rule": "self.x > 1"}]});
        assert_eq!(faults(&faulty).len(), 1);
        let aside = json!({"type": "object", "not": {"x-kubernetes-validations": [{"rule": "self.x > 1"}]}});
        assert!(faults(&aside).is_empty());
    }
}
