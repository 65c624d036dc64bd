use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema;

fn deployment() -> Value {
    let body = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"app": "w"}}, "template": {
            "metadata": {"labels": {"app": "w", "x": "y"}},
            "spec": {"nodeSelector": {"a": "b"}, "containers": [
                {"name": "a", "image": "i:1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
                {"name": "b", "image": "i:1"}]}}}
    });
    codec::decode_value(body, deployment_schema()).unwrap().0
}

fn deployment_schema() -> &'static TypeSchema {
    schema::by_name("apps.v1.Deployment").unwrap()
}

fn smp(patch: Value) -> Result<Value, ApiError> {
    apply(PatchKind::StrategicMerge, patch.to_string().as_bytes(), &deployment(), deployment_schema())
}

fn pod_spec(patch: Value) -> Value {
    smp(json!({"spec": {"template": {"spec": patch}}})).unwrap()["spec"]["template"]["spec"].take()
}

#[test]
fn lists_merge_by_key() {
    let spec = pod_spec(json!({"containers": [{"name": "b", "image": "i:2"}, {"name": "n", "image": "n"}]}));
    let names: Vec<_> = spec["containers"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["a", "b", "n"]);
    assert_eq!(spec["containers"][1]["image"], "i:2");
    assert_eq!(spec["containers"][0]["env"].as_array().unwrap().len(), 2);
}

#[test]
fn directives() {
    let spec = pod_spec(json!({"containers": [
        {"name": "b", "$patch": "delete"}, {"name": "a", "env": [{"name": "X", "$patch": "delete"}]}]}));
    assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
    assert_eq!(spec["containers"][0]["env"], json!([{"name": "Y", "value": "2"}]));

    assert_eq!(pod_spec(json!({"nodeSelector": {"$patch": "delete"}})).get("nodeSelector"), None);
    assert_eq!(
        pod_spec(json!({"nodeSelector": {"c": "d", "$patch": "replace"}}))["nodeSelector"],
        json!({"c": "d"})
    );

    let spec = pod_spec(json!({"containers": [{"name": "n", "image": "n"}, {"$patch": "replace"}]}));
    assert_eq!(spec["containers"], json!([{"name": "n", "image": "n", "resources": {}}]));

    let spec = pod_spec(json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
                               "containers": [{"name": "a", "image": "i:2"}]}));
    assert_eq!(
        (&spec["containers"][0]["name"], &spec["containers"][1]["image"]),
        (&json!("b"), &json!("i:2"))
    );

    // A directive where there is nothing to patch drops the value.
    let d = smp(json!({"metadata": {"labels": {"l": "1", "$patch": "merge"}}})).unwrap();
    assert_eq!(d["metadata"], json!({"name": "d"}));

    let d = smp(json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}})).unwrap();
    assert_eq!(d["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn primitive_lists() {
    let schema = schema::by_name("core.v1.ConfigMap").unwrap();
    let with =
        |list: &[&str]| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"finalizers": list}});
    let run = |list: &[&str], patch: Value| {
        let out =
            apply(PatchKind::StrategicMerge, patch.to_string().as_bytes(), &with(list), schema).unwrap();
        out["metadata"]["finalizers"].clone()
    };
    assert_eq!(
        run(&["e/a", "e/b"], json!({"metadata": {"finalizers": ["e/c"]}})),
        json!(["e/c", "e/a", "e/b"])
    );
    assert_eq!(
        run(
            &["e/c", "e/a", "e/b"],
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["e/a", "e/b"]}})
        ),
        json!(["e/c"])
    );
    let both = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["e/c"],
                                   "$setElementOrder/finalizers": ["e/d"], "finalizers": ["e/d"]}});
    assert_eq!(run(&["e/c"], both), json!(["e/d"]));
    assert_eq!(run(&["e/c"], json!({"metadata": {"finalizers": null}})), Value::Null);
}

#[test]
fn upstream_messages() {
    for (patch, code, want) in [
        (
            json!({"spec": {"template": {"spec": {"containers": [{"image": "x"}]}}}}),
            500,
            "map: map[image:x] does not contain declared merge key: name",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": "x"}}}}),
            422,
            " \"\" is invalid: patch: Invalid value: \"map[spec:map[template:map[spec:map[containers:x]]]]\": cannot restore slice from string",
        ),
        (
            json!({"spec": {"replicas": "x"}}),
            422,
            " \"\" is invalid: patch: Invalid value: \"map[spec:map[replicas:x]]\": unrecognized type: int32",
        ),
        (
            json!({"spec": {"template": {"spec": {"$setElementOrder/containers": [{"name": "b"}],
                   "containers": [{"name": "a", "image": "i:3"}]}}}}),
            500,
            "The order in patch list:\n[map[image:i:3 name:a]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n",
        ),
    ] {
        let e = smp(patch).unwrap_err();
        assert_eq!((e.code(), e.message()), (code, want));
    }
    let run = |kind, patch: &str, how| {
        let r = apply_checked(kind, patch.as_bytes(), &deployment(), deployment_schema(), how);
        r.map_or_else(|e| e.message().to_owned(), |d| format!("{:?}", d.warnings))
    };
    use FieldValidation::{Strict, Warn};
    for (kind, patch, how, want) in [
        (
            PatchKind::StrategicMerge,
            "[]",
            Warn,
            "json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (
            PatchKind::StrategicMerge,
            "{bad",
            Warn,
            "invalid character 'b' looking for beginning of object key string",
        ),
        (PatchKind::StrategicMerge, r#"{"spec":{"nope":1}}"#, Warn, r#"["unknown field \"spec.nope\""]"#),
        (
            PatchKind::StrategicMerge,
            r#"{"spec":{"nope":1}}"#,
            Strict,
            " \"\" is invalid: patch: Invalid value: \"map[spec:map[nope:1]]\": strict decoding error: unknown field \"spec.nope\"",
        ),
        (
            PatchKind::Merge,
            "[1]",
            Warn,
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (
            PatchKind::Merge,
            "nope",
            Warn,
            "error decoding patch: invalid character 'o' in literal null (expecting 'u')",
        ),
        (
            PatchKind::Merge,
            r#"{"spec":{"replicas":1,"replicas":2}}"#,
            Warn,
            r#"["duplicate field \"spec.replicas\""]"#,
        ),
        (
            PatchKind::Json,
            r#"[{"op":"remove","path":"/nope"}]"#,
            Warn,
            "the server rejected our request due to an error in our request",
        ),
    ] {
        assert_eq!(run(kind, patch, how), want, "{patch}");
    }
    let kind = apply(PatchKind::Merge, br#"{"kind":"Secret"}"#, &deployment(), deployment_schema());
    assert_eq!(kind.unwrap_err().code(), 422);
}

#[test]
fn merge_and_json_patches() {
    let run = |kind, patch: &str| apply(kind, patch.as_bytes(), &deployment(), deployment_schema()).unwrap();
    let d = run(PatchKind::Merge, r#"{"spec":{"replicas":3,"template":{"metadata":{"labels":{"x":null}}}}}"#);
    assert_eq!(
        (&d["spec"]["replicas"], &d["spec"]["template"]["metadata"]),
        (&json!(3), &json!({"labels": {"app": "w"}}))
    );
    let d = run(
        PatchKind::Json,
        r#"[{"op":"add","path":"/spec/replicas","value":2},{"op":"test","path":"/spec/replicas","value":2}]"#,
    );
    assert_eq!(d["spec"]["replicas"], 2);
}

fn value() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(json!("x")), Just(json!("b")), Just(json!(1)), Just(Value::Null), Just(json!(true))];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let key = prop_oneof![
            Just("spec"),
            Just("template"),
            Just("metadata"),
            Just("labels"),
            Just("containers"),
            Just("name"),
            Just("env"),
            Just("$patch"),
            Just("$retainKeys"),
            Just("$setElementOrder/containers"),
            Just("$deleteFromPrimitiveList/finalizers"),
            Just("finalizers"),
            Just("image"),
            Just("replicas"),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            proptest::collection::btree_map(key, inner, 0..3)
                .prop_map(|m| Value::Object(m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    #[test]
    fn patches_never_panic(patch in value()) {
        let patch = json!({"spec": {"template": patch.clone()}, "metadata": patch}).to_string();
        for kind in [PatchKind::StrategicMerge, PatchKind::Merge, PatchKind::Json] {
            let _ = apply(kind, patch.as_bytes(), &deployment(), deployment_schema());
        }
    }

    /// A patch that applies has the same outcome when it is applied again, and the empty patch changes nothing.
    #[test]
    fn strategic_merge_is_idempotent(
        names in proptest::collection::btree_set("[a-e]", 0..4), image in "[a-z]{1,3}",
        label in "[a-c]", drop in any::<bool>(),
    ) {
        let containers: Vec<Value> = names.iter().map(|n| json!({"name": n, "image": image})).collect();
        let patch = json!({"spec": {"template": {
            "metadata": {"labels": {label: if drop { Value::Null } else { json!("v") }}},
            "spec": {"containers": containers}}}}).to_string();
        let schema = deployment_schema();
        let once = apply(PatchKind::StrategicMerge, patch.as_bytes(), &deployment(), schema).unwrap();
        let twice = apply(PatchKind::StrategicMerge, patch.as_bytes(), &once, schema).unwrap();
        prop_assert_eq!(&once, &twice);
        for kind in [PatchKind::StrategicMerge, PatchKind::Merge] {
            prop_assert_eq!(&apply(kind, b"{}", &once, schema).unwrap(), &once);
        }
    }

    /// Merging with the object itself changes nothing.
    #[test]
    fn own_object_is_neutral(replicas in 0i32..9) {
        let mut object = deployment();
        object["spec"]["replicas"] = replicas.into();
        for kind in [PatchKind::StrategicMerge, PatchKind::Merge] {
            prop_assert_eq!(&apply(kind, object.to_string().as_bytes(), &object, deployment_schema()).unwrap(), &object);
        }
    }
}
