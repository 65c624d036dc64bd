use super::*;
use serde_json::json;

fn faults(schema: Value, new: Value, old: Option<Value>) -> Vec<String> {
    let schema = Structural::parse(&schema);
    let rules = Rules::compile(&schema).expect("rules");
    let errs = rules.check(&new, old.as_ref(), &schema);
    errs.iter().map(|e| format!("{}: {}", e.field, e.body())).collect()
}

#[test]
fn a_schema_without_rules_has_none() {
    assert!(Rules::compile(&Structural::parse(&json!({"type": "object"}))).is_none());
}

#[test]
fn faults_are_told_at_their_place() {
    let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.name != 'bad'"}],
        "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.n < 5", "messageExpression": "string(self.n) + ' is too much'", "fieldPath": ".n"},
                {"rule": "self.m.all(k, k != 'x')", "fieldPath": ".m['x']", "reason": "FieldValueForbidden",
                    "message": "no x"},
                {"rule": "self.absent.size() > 0", "message": "there"}],
            "properties": {"n": {"type": "integer"}, "absent": {"type": "string"},
                "m": {"type": "object", "additionalProperties": {"type": "integer",
                    "x-kubernetes-validations": [{"rule": "self > 0", "message": "positive"}]}},
                "l": {"type": "array", "items": {"type": "string",
                    "x-kubernetes-validations": [{"rule": "self != ''", "reason": "FieldValueRequired"}]}}}}}});
    let new = json!({"metadata": {"name": "bad"}, "spec": {"n": 7, "m": {"x": 0}, "l": ["a", ""]}});
    assert_eq!(
        faults(schema, new, None),
        [
            "<nil>: Invalid value: failed rule: self.metadata.name != 'bad'",
            "spec.n: Invalid value: 7 is too much",
            "spec.m[x]: Forbidden: no x",
            "spec: Invalid value: \"object\": no such key: absent evaluating rule: there",
            "spec.l[1]: Required value: failed rule: self != ''",
            "spec.m[x]: Invalid value: 0: positive",
        ]
    );
}

#[test]
fn what_was_is_seen_where_it_is_found_again() {
    let schema = json!({"type": "object", "properties": {
        "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "fixed"}]},
        "first": {"type": "integer", "x-kubernetes-validations": [
            {"rule": "oldSelf.hasValue() || self == 0", "optionalOldSelf": true, "message": "from 0"}]},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer",
                "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "grows"}]}}}},
        "even": {"type": "integer", "x-kubernetes-validations": [{"rule": "self % 2 == 0", "message": "even"}]}}});
    let new = json!({"fixed": "b", "first": 5, "even": 3,
        "list": [{"k": "new", "v": 0}, {"k": "b", "v": 1}, {"k": "a", "v": 2}]});
    let old = json!({"fixed": "a", "first": 1, "even": 3, "list": [{"k": "a", "v": 2}, {"k": "b", "v": 2}]});
    // What did not change is not held against anyone.
    assert_eq!(
        faults(schema.clone(), new.clone(), Some(old)),
        ["fixed: Invalid value: \"b\": fixed", "list[1].v: Invalid value: 1: grows"]
    );
    assert_eq!(
        faults(schema, new, None),
        ["even: Invalid value: 3: even", "first: Invalid value: 5: from 0"]
    );
}

#[test]
fn rules_that_cost_too_much_end_the_check() {
    let expensive = "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c > 0)))";
    let schema = json!({"type": "object",
        "x-kubernetes-validations": [{"rule": expensive}, {"rule": "false", "message": "never told"}],
        "properties": {"l": {"type": "array", "items": {"type": "integer"}}}});
    let new = json!({"l": (1..2000).collect::<Vec<_>>()});
    assert_eq!(
        faults(schema, new, None),
        [format!(
            "<nil>: Invalid value: \"object\": 'operation cancelled: actual cost limit exceeded': no further validation \
             rules will be run due to call cost exceeds limit for rule: {expensive}"
        )]
    );
}

#[test]
fn many_rules_share_one_budget() {
    let rule = json!({"rule": "self.l.all(a, self.l.all(b, a + b > 0))"});
    let schema = json!({"type": "object", "x-kubernetes-validations": vec![rule; 100],
        "properties": {"l": {"type": "array", "items": {"type": "integer"}}}});
    let new = json!({"l": (1..200).collect::<Vec<_>>()});
    assert_eq!(
        faults(schema, new, None),
        [
            "<nil>: Invalid value: \"object\": validation failed due to running out of cost budget, no further validation \
          rules will be run"
        ]
    );
}
