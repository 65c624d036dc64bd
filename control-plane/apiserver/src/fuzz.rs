//! Input of any kind: nothing panics, nothing takes memory or time without bound, and what was understood survives the
//! way there and back.

use crate::codec::{self, FieldValidation, decode_body};
use crate::gvk::GroupVersionKind;
use crate::machinery::{Model, PatchKind};
use crate::schema::{self, TypeSchema};
use crate::selector::{FieldSelector, LabelSelector};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const PROTOBUF: Option<&str> = Some("application/vnd.kubernetes.protobuf");
const JSON: Option<&str> = Some("application/json");
const YAML: Option<&str> = Some("application/yaml");

fn pod() -> GroupVersionKind {
    GroupVersionKind::new("", "v1", "Pod")
}

fn model() -> Model<'static> {
    Model::BuiltIn(pod())
}

fn pod_schema() -> &'static TypeSchema {
    schema::by_gvk(&pod()).expect("schema")
}

fn decoded(content_type: Option<&str>, body: &[u8]) -> Result<Value, (u16, String)> {
    decode_body(content_type, body, &pod(), pod_schema(), FieldValidation::Warn)
        .map(|d| d.object)
        .map_err(|e| (e.code(), e.message().to_owned()))
}

/// Names that occur in pods, and some that do not.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(vec![
            "metadata", "spec", "status", "name", "labels", "annotations", "containers", "env", "value", "ports",
            "containerPort", "resources", "limits", "volumes", "configMap", "items", "conditions", "type", "tolerations",
            "finalizers", "ownerReferences", "$patch", "$deleteFromPrimitiveList/finalizers", "$retainKeys",
            "$setElementOrder/containers", "managedFields", "creationTimestamp", "securityContext", "hostNetwork",
        ]).prop_map(str::to_owned),
        1 => ".{0,8}",
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        proptest::sample::select(vec![
            "delete",
            "replace",
            "merge",
            "100m",
            "1Gi",
            "2024-01-01T00:00:00Z",
            "a"
        ])
        .prop_map(Value::from),
        ".{0,10}".prop_map(Value::from),
    ]
}

fn document() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((name(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A pod that the decoder understands. It has containers: protobuf does not tell an empty list from none.
fn valid_pod() -> impl Strategy<Value = Value> {
    let text = || "[a-z]{1,8}";
    let container =
        (text(), text(), proptest::option::of(any::<i32>()), proptest::option::of("[0-9]{1,4}m?")).prop_map(
            |(name, image, port, cpu)| {
                let mut out = json!({"name": name, "image": image});
                if let Some(port) = port {
                    out["ports"] = json!([{"containerPort": port}]);
                }
                if let Some(cpu) = cpu {
                    out["resources"] = json!({"limits": {"cpu": cpu}});
                }
                out
            },
        );
    let labels = proptest::collection::btree_map(text(), ".{0,6}", 0..4);
    (text(), labels, proptest::collection::vec(container, 1..4), any::<Option<i64>>(), any::<bool>()).prop_map(
        |(name, labels, containers, grace, host)| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
                "spec": {"containers": containers, "terminationGracePeriodSeconds": grace, "hostNetwork": host}})
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_body_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,120}") {
        for content in [JSON, YAML, PROTOBUF] {
            let _ = decoded(content, &bytes);
            let _ = decoded(content, text.as_bytes());
            let _ = decoded(content, &[b"k8s\0", bytes.as_slice()].concat());
        }
    }

    #[test]
    fn no_document_panics(document in document()) {
        let text = document.to_string();
        let _ = decoded(JSON, text.as_bytes());
        let _ = decoded(YAML, text.as_bytes());
        if let Some(body) = codec::encode_protobuf(&json!({"apiVersion": "v1", "kind": "Pod", "spec": document})) {
            let _ = decoded(PROTOBUF, &body);
        }
    }

    /// One object in three encodings is the same object, and once decoded it decodes to itself.
    #[test]
    fn encodings_agree(pod in valid_pod()) {
        let json = decoded(JSON, pod.to_string().as_bytes()).expect("JSON");
        let yaml = decoded(YAML, serde_norway::to_string(&pod).expect("YAML").as_bytes()).expect("decodes");
        prop_assert_eq!(&json, &yaml);
        let body = codec::encode_protobuf(&json).expect("schema");
        prop_assert_eq!(&decoded(PROTOBUF, &body).expect("decodes"), &json);
        prop_assert_eq!(&decoded(JSON, json.to_string().as_bytes()).expect("decodes"), &json);
    }

    /// Broken protobuf is refused or understood, never more.
    #[test]
    fn broken_protobuf(pod in valid_pod(), at in any::<proptest::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut body = codec::encode_protobuf(&pod).expect("schema");
        let at = at.index(body.len());
        if cut {
            body.truncate(at);
        } else if let Some(slot) = body.get_mut(at) {
            *slot = byte;
        }
        if let Err((code, _)) = decoded(PROTOBUF, &body) {
            prop_assert_eq!(code, 400);
        }
    }

    #[test]
    fn no_patch_panics(pod in valid_pod(), patch in document(), raw in ".{0,60}") {
        for kind in [PatchKind::Json, PatchKind::Merge, PatchKind::StrategicMerge] {
            let _ = model().apply_patch(kind, patch.to_string().as_bytes(), &pod, FieldValidation::Warn);
            let _ = model().apply_patch(kind, raw.as_bytes(), &pod, FieldValidation::Strict);
        }
    }

    #[test]
    fn no_json_patch_panics(
        pod in valid_pod(),
        operations in proptest::collection::vec(
            (
                proptest::sample::select(vec!["add", "remove", "replace", "move", "copy", "test", "x"]),
                proptest::sample::select(vec!["", "/", "/spec", "/spec/containers/0", "/spec/containers/-", "/metadata/labels/a~1b", "/spec/containers/99999999999999999999", "x"]),
                proptest::sample::select(vec!["", "/spec", "/spec/containers/0", "/metadata", "/spec/containers/1/name"]),
                scalar(),
            ),
            0..6,
        ),
    ) {
        let patch: Value = operations
            .into_iter()
            .map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}))
            .collect();
        let _ = model().apply_patch(PatchKind::Json, patch.to_string().as_bytes(), &pod, FieldValidation::Warn);
    }

    /// A merge patch that is applied again changes nothing.
    #[test]
    fn merge_patches_are_idempotent(pod in valid_pod(), labels in proptest::collection::btree_map("[a-z]{1,4}", proptest::option::of("[a-z]{0,4}"), 0..4)) {
        let patch = json!({"metadata": {"labels": labels}}).to_string();
        for kind in [PatchKind::Merge, PatchKind::StrategicMerge] {
            let apply = |on: &Value| model().apply_patch(kind, patch.as_bytes(), on, FieldValidation::Warn);
            let once = apply(&pod).expect("applies").object;
            prop_assert_eq!(&apply(&once).expect("applies").object, &once);
        }
    }

    #[test]
    fn selectors_match_by_their_terms(
        labels in proptest::collection::btree_map("[a-c]", "[0-2]", 0..3),
        key in "[a-c]",
        values in proptest::collection::btree_set("[0-2]", 1..3),
    ) {
        let list = values.iter().cloned().collect::<Vec<_>>().join(",");
        let matches = |text: &str| {
            LabelSelector::parse(text).expect("selector").matches(|key| labels.get(key).map(String::as_str))
        };
        let holds = labels.get(&key).is_some_and(|v| values.contains(v));
        prop_assert_eq!(matches(&format!("{key} in ({list})")), holds);
        prop_assert_eq!(matches(&format!("{key} notin ({list})")), !holds);
        prop_assert_eq!(matches(&key), labels.contains_key(&key));
        prop_assert_eq!(matches(&format!("!{key}")), !labels.contains_key(&key));
    }

    #[test]
    fn no_selector_panics(text in "[ a-z0-9!=<>(),/.-]{0,40}", any in ".{0,40}") {
        for text in [text, any] {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }

    /// A quantity's canonical text is a quantity of the same value.
    #[test]
    fn quantities_survive(text in "[+-]?[0-9]{1,12}(\\.[0-9]{0,6})?(n|u|m|k|M|G|T|Ki|Mi|Gi|e[0-9]|E-?[0-9])?", any in ".{0,24}") {
        use kelp_model::quantity::Quantity;
        let _ = Quantity::parse(&any);
        if let Ok(quantity) = Quantity::parse(&text) {
            let again = Quantity::parse(&quantity.to_string()).expect("canonical");
            prop_assert_eq!(again.to_string(), quantity.to_string());
        }
    }
}

/// What follows would not end (or not fit) if its cost grew with the square of the input or faster.
fn run<T>(what: impl FnOnce() -> T) -> T {
    what()
}

#[test]
fn deep_documents_are_refused() {
    let nested =
        |open: &str, close: &str, depth: usize| format!("{}{}", open.repeat(depth), close.repeat(depth));
    for depth in [200, 1_000_000] {
        for text in
            [nested("[", "]", depth), nested("{\"a\":", "}", depth), nested("{\"spec\":", "1}", depth)]
        {
            let (code, _) = decoded(JSON, text.as_bytes()).expect_err("too deep");
            assert_eq!(code, 400);
        }
        let text = format!("{{\"metadata\":{}1{}}}", "{\"a\":".repeat(depth), "}".repeat(depth));
        assert!(decoded(JSON, text.as_bytes()).expect_err("too deep").1.contains("exceeded max depth"));
    }
    let (code, _) = decoded(YAML, nested("[", "]", 100_000).as_bytes()).expect_err("too deep");
    assert_eq!(code, 400);
    let (code, _) = decoded(YAML, "- ".repeat(100_000).as_bytes()).expect_err("too deep");
    assert_eq!(code, 400);
}

#[test]
fn what_is_stored_can_be_read_again() {
    let crd = GroupVersionKind::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let schema = schema::by_gvk(&crd).expect("schema");
    for depth in [40, 55, 100, 118, 200] {
        let mut inner = json!({"type": "string"});
        for _ in 0..depth {
            inner = json!({"items": inner});
        }
        let body = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": inner}}]}});
        for (content, bytes) in [
            (JSON, body.to_string().into_bytes()),
            (PROTOBUF, {
                let whole = json!({"apiVersion": crd.api_version(), "kind": crd.kind, "spec": body["spec"]});
                codec::encode_protobuf(&whole).expect("schema")
            }),
        ] {
            if let Ok(decoded) = decode_body(content, &bytes, &crd, schema, FieldValidation::Warn) {
                let stored = crate::object::encode(
                    &crate::object::head(&crd.kind, &crd.api_version()),
                    &decoded.object,
                );
                assert!(serde_json::from_slice::<Value>(&stored).is_ok(), "{depth}");
            } else {
                assert!(depth >= 100, "{depth}");
            }
        }
    }
}

#[test]
fn yaml_bombs_do_not_go_off() {
    let mut laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for one in b'a'..=b'y' {
        let (one, next) = (char::from(one), char::from(one + 1));
        let again = vec![format!("*{one}"); 9].join(",");
        laughs.push_str(&format!("{next}: &{next} [{again}]\n"));
    }
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a,".repeat(100_000));
    let endless = "a: &a [*a]\n";
    for bomb in [laughs.as_str(), long.as_str(), endless] {
        let (code, message) = run(|| decoded(YAML, bomb.as_bytes())).expect_err("refused");
        assert_eq!(code, 400, "{message}");
    }
    let honest = "metadata: {name: a, labels: &l {a: b}}\nspec: {nodeSelector: *l, containers: []}\n";
    assert_eq!(decoded(YAML, honest.as_bytes()).expect("decodes")["spec"]["nodeSelector"], json!({"a": "b"}));
    let two = "metadata: {name: first}\n---\nmetadata: {name: second}\n";
    assert_eq!(decoded(YAML, two.as_bytes()).expect("decodes")["metadata"]["name"], "first");
}

#[test]
fn many_small_things_are_refused() {
    let many = |open: &str, item: &str, close: &str| {
        format!("{open}{}{close}", vec![item; (3 << 20) / (item.len() + 1)].join(","))
    };
    let empty = many("{\"spec\":{\"containers\":[", "{}", "]}}");
    assert_eq!(run(|| decoded(JSON, empty.as_bytes())).expect_err("too many").0, 400);
    let mut messages = Vec::new();
    // Pod.spec (2) of empty containers (2).
    let spec = [0x12u8, 0].repeat(1 << 20);
    messages.extend_from_slice(b"k8s\0\x12");
    let put = |mut value: usize, out: &mut Vec<u8>| {
        while value >= 0x80 {
            out.push((value as u8) | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    };
    let mut raw = vec![0x12];
    put(spec.len(), &mut raw);
    raw.extend_from_slice(&spec);
    put(raw.len(), &mut messages);
    messages.extend_from_slice(&raw);
    let error = run(|| decoded(PROTOBUF, &messages)).expect_err("too many");
    assert!(error.1.contains("messages"), "{}", error.1);
    // Repeated fields, known and unknown, cost what they are long.
    for item in ["\"kind\":\"Pod\"", "\"a\":1", "\"metadata\":{}"] {
        let text = many("{", item, "}");
        let _ = run(|| decoded(JSON, text.as_bytes()));
    }
    let half = many("", "\"a\":1", "");
    let other = half.replace('a', "kind").replace('1', "\"Pod\"");
    let text = format!("{{{half},{other}}}");
    let _ = run(|| decoded(JSON, text.as_bytes()));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
    let patch = format!("{{{half}}}");
    for kind in [PatchKind::Merge, PatchKind::StrategicMerge] {
        let _ = run(|| model().apply_patch(kind, patch.as_bytes(), &pod, FieldValidation::Warn));
    }
}

#[test]
fn copies_of_copies_do_not_fill_the_memory() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "annotations": {"a": "x".repeat(1000)}}});
    let copy = json!({"op": "copy", "from": "/metadata/annotations", "path": "/metadata/annotations/b"});
    let patch = Value::from(vec![copy; 60]).to_string();
    let error = run(|| model().apply_patch(PatchKind::Json, patch.as_bytes(), &pod, FieldValidation::Warn))
        .expect_err("too much");
    assert_eq!(error.code(), 422);
}

#[test]
fn huge_selectors_are_parsed_and_matched_in_time() {
    let values: Vec<String> = (0..100_000).map(|n| format!("v{n}")).collect();
    let text = format!("a in ({})", values.join(","));
    let selector = run(|| LabelSelector::parse(&text)).expect("selector");
    run(|| {
        for n in 0..10_000 {
            let value = format!("v{n}");
            assert!(selector.matches(|_| Some(&value)));
        }
    });
    let terms: Vec<String> = (0..50_000).map(|n| format!("k{n}=v")).collect();
    let text = terms.join(",");
    let _ = run(|| LabelSelector::parse(&text));
    let _ = run(|| FieldSelector::parse(&text));
}
