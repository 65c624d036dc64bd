use super::*;
use proptest::prelude::*;
use serde_json::json;

/// A schema with every way in which members can be known, unknown, defaulted or null.
fn schema() -> Structural {
    Structural::parse(&json!({"type": "object", "properties": {
        "spec": {"type": "object", "default": {"a": 1}, "properties": {
            "a": {"type": "integer", "default": 7},
            "b": {"type": "string", "nullable": true},
            "c": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"d": {"type": "string", "default": "d"}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {
                "a": {"type": "string", "default": "x"}, "b": {"type": "string"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "default": {}, "properties": {
                "a": {"type": "integer", "default": 0}}}},
            "any": {"type": "object", "additionalProperties": true},
            "either": {"x-kubernetes-int-or-string": true},
        }},
    }}))
}

/// Values whose members are often those of the schema.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-d]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        let name = prop::sample::select(vec!["a", "b", "c", "d", "list", "map", "any", "either", "x"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..5).prop_map(|members| {
                members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            }),
        ]
    })
}

proptest! {
    #[test]
    fn what_was_pruned_has_nothing_to_prune(spec in value()) {
        let schema = schema();
        let mut once = json!({"kind": "K", "apiVersion": "g/v1", "metadata": {"name": "n"}, "spec": spec, "x": 1});
        let gone = prune(&mut once, &schema);
        prop_assert!(gone.contains(&"x".to_owned()));
        let mut twice = once.clone();
        prop_assert_eq!(prune(&mut twice, &schema), Vec::<String>::new());
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn defaults_are_set_once_and_are_not_pruned(spec in value()) {
        let schema = schema();
        let mut once = json!({"kind": "K", "apiVersion": "g/v1", "metadata": {"name": "n"}, "spec": spec});
        prune(&mut once, &schema);
        schema.apply_defaults(&mut once);
        let mut twice = once.clone();
        schema.apply_defaults(&mut twice);
        prop_assert_eq!(&twice, &once);
        prop_assert_eq!(prune(&mut twice, &schema), Vec::<String>::new());
    }

    #[test]
    fn any_value_is_checked_without_harm(new in value(), old in value()) {
        let schema = schema();
        let (new, old) = (json!({"spec": new}), json!({"spec": old}));
        let faults = check_value(&new, &schema, "");
        // What was there before is no fault of the one who leaves it.
        prop_assert!(check_update(&new, &new, &schema, "").is_empty());
        prop_assert!(check_update(&new, &old, &schema, "").len() <= faults.len());
        check_lists(&new, &schema);
    }
}

#[test]
fn defaults_go_where_nothing_was_said() {
    let schema = schema();
    let mut object = json!({"metadata": {}});
    schema.apply_defaults(&mut object);
    assert_eq!(object["spec"], json!({"a": 1}));
    let mut object = json!({"spec": {"a": null, "c": {}, "list": [{}], "map": {"k": {}}}});
    schema.apply_defaults(&mut object);
    assert_eq!(
        object["spec"],
        json!({"a": 7, "c": {"d": "d"}, "list": [{"a": "x"}], "map": {"k": {"a": 0}}})
    );
}

#[test]
fn an_unknown_field_is_named_by_its_path() {
    let mut object = json!({"kind": "K", "apiVersion": "g/v1", "metadata": {"anything": 1},
        "spec": {"list": [{"a": "", "q": 1}], "c": {"kept": {"q": 1}}, "map": {"k": {"q": 1}}, "any": {"q": 1}}});
    assert_eq!(prune(&mut object, &schema()), ["spec.list[0].q", "spec.map.k.q"]);
    assert_eq!(object["spec"]["c"], json!({"kept": {"q": 1}}));
}
