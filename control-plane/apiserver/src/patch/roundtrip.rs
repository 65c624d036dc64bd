//! A strategic merge patch that was made of the difference of two objects makes the one into the other.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{PatchKind, apply};
use crate::codec;
use crate::schema::{self, Field, Type, TypeSchema};

type Object = Map<String, Value>;

fn empty() -> Object {
    Object::new()
}

/// The patch from `old` to `new`, as clients compute it.
fn difference(old: &Object, new: &Object, schema: Option<&TypeSchema>) -> Object {
    let mut out = empty();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        out.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        let field = schema.and_then(|s| s.field(key));
        match (old.get(key), value) {
            (Some(present), value) if present == value => {}
            (Some(Value::Object(before)), Value::Object(after)) => {
                let below = difference(before, after, field.and_then(|f| f.ty.object()));
                out.insert(key.clone(), Value::Object(below));
            }
            (Some(Value::Array(before)), Value::Array(after)) => match field {
                Some(field) if field.patch_merge => lists(key, before, after, field, &mut out),
                _ => drop(out.insert(key.clone(), value.clone())),
            },
            _ => drop(out.insert(key.clone(), value.clone())),
        }
    }
    out
}

fn lists(key: &str, before: &[Value], after: &[Value], field: &Field, out: &mut Object) {
    let order = format!("$setElementOrder/{key}");
    let Some(merge_key) = field.merge_key.as_deref() else {
        let gone: Vec<&Value> = before.iter().filter(|b| !after.contains(b)).collect();
        if !gone.is_empty() {
            out.insert(format!("$deleteFromPrimitiveList/{key}"), json!(gone));
        }
        let added: Vec<&Value> = after.iter().filter(|a| !before.contains(a)).collect();
        if !added.is_empty() {
            out.insert(key.to_owned(), json!(added));
        }
        out.insert(order, json!(after));
        return;
    };
    let id = |item: &Value| item[merge_key].clone();
    let item_schema = field.ty.items().and_then(Type::object);
    let mut changes = Vec::new();
    for item in after {
        match before.iter().find(|b| id(b) == id(item)) {
            Some(present) if present == item => {}
            Some(present) => {
                let (b, a) = (present.as_object().unwrap(), item.as_object().unwrap());
                let mut change = difference(b, a, item_schema);
                change.insert(merge_key.to_owned(), id(item));
                changes.push(Value::Object(change));
            }
            None => changes.push(item.clone()),
        }
    }
    for gone in before.iter().filter(|b| !after.iter().any(|a| id(a) == id(b))) {
        changes.push(json!({"$patch": "delete", merge_key: id(gone)}));
    }
    if !changes.is_empty() {
        out.insert(key.to_owned(), changes.into());
    }
    let ids: Vec<Value> = after.iter().map(|a| json!({merge_key: id(a)})).collect();
    out.insert(order, ids.into());
}

fn named(names: &'static str) -> impl Strategy<Value = Vec<String>> {
    prop::sample::subsequence(names.chars().map(String::from).collect::<Vec<_>>(), 0..=names.len())
        .prop_shuffle()
}

fn container() -> impl Strategy<Value = Value> {
    let env = named("XYZ").prop_flat_map(|names| {
        let count = names.len();
        (Just(names), prop::collection::vec("[0-3]", count))
    });
    (prop::option::of("[ij]:[12]"), env, prop::option::of(prop::collection::vec("[ab]", 0..3))).prop_map(
        |(image, (names, values), args)| {
            let env: Vec<Value> =
                names.iter().zip(values).map(|(n, v)| json!({"name": n, "value": v})).collect();
            let mut out = json!({"env": env});
            if let Some(image) = image {
                out["image"] = image.into();
            }
            if let Some(args) = args {
                out["args"] = args.into();
            }
            out
        },
    )
}

fn deployment() -> impl Strategy<Value = Value> {
    let containers = named("abc").prop_flat_map(|names| {
        let count = names.len();
        (Just(names), prop::collection::vec(container(), count))
    });
    let labels = prop::collection::btree_map("[k-m]", "[v-x]", 0..4);
    (containers, labels, named("fgh"), prop::option::of(0..4_i64), named("sec")).prop_map(
        |((names, containers), labels, finalizers, replicas, secrets)| {
            let containers: Vec<Value> = names
                .iter()
                .zip(containers)
                .map(|(name, mut c)| {
                    c["name"] = name.as_str().into();
                    c
                })
                .collect();
            let finalizers: Vec<String> = finalizers.iter().map(|f| format!("e.com/{f}")).collect();
            let secrets: Vec<Value> = secrets.iter().map(|s| json!({"name": s})).collect();
            let mut out = json!({"apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "d", "labels": labels, "finalizers": finalizers},
                "spec": {"selector": {"matchLabels": {"app": "w"}}, "template": {
                    "metadata": {"labels": {"app": "w"}},
                    "spec": {"containers": containers, "imagePullSecrets": secrets}}}});
            if let Some(replicas) = replicas {
                out["spec"]["replicas"] = replicas.into();
            }
            out
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_difference_applied_is_the_new_object(old in deployment(), new in deployment()) {
        let schema = schema::by_name("apps.v1.Deployment").unwrap();
        let canonical = |value: Value| codec::decode_value(value, schema).unwrap().0;
        let (old, new) = (canonical(old), canonical(new));
        let patch = difference(old.as_object().unwrap(), new.as_object().unwrap(), Some(schema));
        let patch = Value::Object(patch).to_string();
        let out = apply(PatchKind::StrategicMerge, patch.as_bytes(), &old, schema);
        prop_assert_eq!(out.map_err(|e| e.message().to_owned()), Ok(new), "{}", patch);
    }
}
