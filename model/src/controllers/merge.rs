//! The smallest JSON merge patch (RFC 7396) that turns one object into another.

use serde_json::{Map, Value};

/// The merge patch that turns `old` into `new`, or `None` when there is nothing to change.
///
/// Objects of the Kubernetes API carry no explicit `null`, which a merge patch cannot express as a value:
/// a `null` member of `new` counts as absent.
#[must_use]
pub fn merge_diff(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for (key, value) in new {
                match old.get(key) {
                    _ if value.is_null() => {
                        if old.get(key).is_some_and(|v| !v.is_null()) {
                            patch.insert(key.clone(), Value::Null);
                        }
                    }
                    Some(before) => {
                        if let Some(inner) = merge_diff(before, value) {
                            patch.insert(key.clone(), inner);
                        }
                    }
                    None => {
                        patch.insert(key.clone(), value.clone());
                    }
                }
            }
            for (key, value) in old {
                if !new.contains_key(key) && !value.is_null() {
                    patch.insert(key.clone(), Value::Null);
                }
            }
            if patch.is_empty() { None } else { Some(Value::Object(patch)) }
        }
        _ if old == new => None,
        _ => Some(new.clone()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// RFC 7396, written from its pseudo-code.
    fn apply(target: &Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut out = target.as_object().cloned().unwrap_or_default();
        for (key, value) in patch {
            if value.is_null() {
                out.remove(key);
            } else {
                let before = out.get(key).cloned().unwrap_or(Value::Null);
                out.insert(key.clone(), apply(&before, value));
            }
        }
        Value::Object(out)
    }

    fn object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0i64..4).prop_map(Value::from),
            "[ab]{0,2}".prop_map(Value::from),
            prop::collection::vec((0i64..3).prop_map(Value::from), 0..3).prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(3, 24, 4, |inner| {
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        });
        prop::collection::btree_map("[a-d]", value, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_the_new_object(old in object(), new in object()) {
            match merge_diff(&old, &new) {
                None => prop_assert_eq!(old, new),
                Some(patch) => prop_assert_eq!(apply(&old, &patch), new),
            }
        }
    }

    #[test]
    fn names_only_what_changed() {
        let old = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"replicas": 1}});
        let new = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"replicas": 2}});
        assert_eq!(
            merge_diff(&old, &new),
            Some(json!({"metadata": {"labels": {"b": null}}, "spec": {"replicas": 2}}))
        );
        assert_eq!(merge_diff(&old, &old), None);
    }
}
