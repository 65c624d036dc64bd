use serde_json::{Value, json};

use crate::codec::{self, FieldValidation};
use crate::error::ApiError;
use crate::gvk::GroupVersionKind;
use crate::validation::{at, list, text, update};
use crate::{defaults, registry, schema};

fn gvk() -> GroupVersionKind {
    GroupVersionKind::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition")
}

/// A definition as it is when its rules are checked.
fn prepared(body: &Value) -> Value {
    let gvk = gvk();
    let schema = schema::by_gvk(&gvk).expect("schema");
    let decoded =
        codec::decode_body(None, body.to_string().as_bytes(), &gvk, schema, FieldValidation::Strict);
    let mut object = decoded.expect("decodes").object;
    defaults::apply(&gvk, &mut object);
    let registry = registry::Registry::builtin();
    let row = registry.find(&gvk.group, &gvk.version, "customresourcedefinitions").expect("row");
    (row.strategy.prepare_create)(&mut object);
    object
}

fn refused(body: &Value) -> Vec<String> {
    crate::validation::create(&gvk(), &prepared(body)).iter().map(ToString::to_string).collect()
}

fn body(schema: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.ex.io"}, "spec": {"group": "ex.io", "scope": "Namespaced",
        "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

/// The faults of a property `p` of the root, below its path.
fn property(schema: Value) -> Vec<String> {
    const PATH: &str = "spec.validation.openAPIV3Schema.properties[p]";
    let found = refused(&body(json!({"type": "object", "properties": {"p": schema}})));
    found.into_iter().map(|e| e.strip_prefix(PATH).map_or(e.clone(), str::to_owned)).collect()
}

#[test]
fn full_definition_is_well() {
    let documents = include_str!("../../../tests/objects/cluster.yaml");
    let of_kind = documents.split("\n---").find(|d| d.contains("kind: CustomResourceDefinition"));
    let object: Value = serde_norway::from_str(of_kind.expect("document")).expect("yaml");
    assert_eq!(refused(&object), [""; 0]);
}

/// Recorded refusals, in every field; expressions are not compiled here.
#[test]
fn agrees_with_recorded_refusals() {
    let root = std::env::var_os("KELP_SHARED").map(std::path::PathBuf::from).or_else(|| {
        let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().ok()?;
        let here = workspace.parent()?.join("shared");
        if here.is_dir() { Some(here) } else { Some(workspace.parent()?.parent()?.join("shared")) }
    });
    let Some(root) = root.map(|r| r.join("data/kubernetes-1.36")).filter(|d| d.is_dir()) else {
        eprintln!("no recorded answers: set KELP_SHARED to check against them");
        return;
    };
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(root.join(name)).expect("file")).expect("json")
    };
    let (pairs, scenarios) = (read("request-response-cases.json"), read("api-scenarios.json"));
    let one = pairs.as_array().into_iter().flatten().filter(|c| text(c, "name") == "crd-no-schema");
    let many = list(&scenarios, "scenarios").iter().filter(|s| text(s, "name") == "crd-invalid");
    let mut seen = 0;
    for step in one.chain(many.flat_map(|s| list(s, "steps"))) {
        if at(step, "status") != &json!(422) {
            continue;
        }
        // What stands for a random part is no name.
        let named = step.to_string().replace("<rand>", "rand");
        let step: Value = serde_json::from_str(&named).expect("json");
        let object = prepared(at(&step, "request"));
        let errs = crate::validation::create(&gvk(), &object);
        let name = text(at(&object, "metadata"), "name");
        let found = ApiError::invalid(&gvk().group, &gvk().kind, name, &errs).to_status();
        assert_eq!(found["message"], step["response"]["message"]);
        assert_eq!(found["details"]["causes"], step["response"]["details"]["causes"]);
        seen += 1;
    }
    assert!(seen >= 16, "{seen} refusals");
}

#[test]
fn structure() {
    assert_eq!(
        property(json!({"type": "object", "properties": {"a": {"type": "string"}},
            "additionalProperties": {"type": "string"}})),
        [".additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"]
    );
    assert_eq!(property(json!({"type": "array"})), [".items: Required value: must be specified"]);
    assert_eq!(
        property(json!({"type": "object", "anyOf": [{"properties": {"a": {"type": "string"}}}]})),
        [".anyOf[0].properties[a].type: Forbidden: must be empty to be structural"]
    );
    // Only what stands at the root has to be complete.
    assert_eq!(
        refused(&body(json!({"type": "object", "anyOf": [{"properties": {"a": {"minLength": 1}}}]}))),
        [
            "spec.validation.openAPIV3Schema.properties[a]: Required value: because it is defined in spec.validation.openAPIV3Schema.anyOf[0].properties[a]"
        ]
    );
    assert_eq!(
        property(
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})
        ),
        [""; 0]
    );
    assert_eq!(
        property(json!({"type": "string", "uniqueItems": true})),
        [
            ".uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        ]
    );
    assert_eq!(
        property(json!({"type": "string", "$ref": "#/x"})),
        [".$ref: Forbidden: $ref is not supported"]
    );
    assert_eq!(
        property(json!({"type": "strange"})),
        [
            ".type: Unsupported value: \"strange\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\""
        ]
    );
    assert_eq!(
        property(json!({"type": "object", "x-kubernetes-embedded-resource": true})),
        [
            ".properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"
        ]
    );
    let roots = refused(&body(json!({"type": "object", "additionalProperties": {"type": "string"},
        "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}},
            "kind": {"type": "integer"}}})));
    let path = "spec.validation.openAPIV3Schema";
    assert!(roots.contains(&format!("{path}.additionalProperties: Forbidden: must not be used at the root")));
    assert!(
        roots.contains(&format!("{path}.properties[kind].type: Invalid value: \"integer\": must be string"))
    );
    assert!(roots.contains(&format!("{path}.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified")));
}

#[test]
fn lists_and_defaults() {
    let items = json!({"type": "object", "required": ["k"],
        "properties": {"k": {"type": "string"}, "o": {"type": "object"}}});
    let list = |keys: Value, items: &Value| {
        property(json!({"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": keys, "items": items}))
    };
    assert_eq!(list(json!(["k"]), &items), [""; 0]);
    assert_eq!(
        list(json!(["x"]), &items),
        [".x-kubernetes-list-map-keys: Invalid value: [\"x\"]: entries must all be names of item properties"]
    );
    let loose = json!({"type": "object", "properties": {"k": {"type": "string", "nullable": true}}});
    assert_eq!(
        list(json!(["k"]), &loose),
        [
            ".items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ".items.properties[k].nullable: Forbidden: this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
        ]
    );
    assert_eq!(
        property(json!({"type": "string", "x-kubernetes-map-type": "odd"})),
        [
            ".type: Invalid value: \"string\": must be object if x-kubernetes-map-type is specified",
            ".x-kubernetes-map-type: Unsupported value: \"odd\": supported values: \"atomic\", \"granular\"",
        ]
    );
    assert_eq!(
        property(json!({"type": "object", "default": {"b": 1}, "properties": {"a": {"type": "string"}}})),
        [".default: Invalid value: {\"b\":1}: must not have unknown fields"]
    );
    assert_eq!(property(json!({"type": "string", "enum": ["a"], "default": "a"})), [""; 0]);
    assert_eq!(
        property(json!({"type": "string", "enum": ["a"], "default": "b"})),
        [".default: Unsupported value: \"b\": supported values: \"a\""]
    );
}

#[test]
fn subresources_and_fields() {
    let mut object = body(json!({"type": "object", "properties": {"spec": {"type": "object",
        "properties": {"n": {"type": "integer"}, "o": {"type": "object"}}}}}));
    object["spec"]["versions"][0]["subresources"] = json!({"scale": {"specReplicasPath": ".status.n", "statusReplicasPath": "status.n", "labelSelectorPath": ".x.y"}});
    object["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.n"}, {"jsonPath": ".spec.n"}, {"jsonPath": ".spec.o"}, {"jsonPath": ".spec.q"}]);
    assert_eq!(
        refused(&object),
        [
            "spec.subresources.scale.specReplicasPath: Invalid value: \".status.n\": should be a json path under .spec",
            "spec.subresources.scale.statusReplicasPath: Invalid value: \"status.n\": must be a simple json path starting with .",
            "spec.subresources.scale.labelSelectorPath: Invalid value: \".x.y\": should be a json path under either .spec or .status",
            "spec.selectableFields[1].jsonPath: Duplicate value: \".spec.n\"",
            "spec.selectableFields[2].jsonPath: Invalid value: \".spec.o\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            "spec.selectableFields[3].jsonPath: Invalid value: \".spec.q\": is an invalid path: does not refer to a valid field",
        ]
    );
}

#[test]
fn protected_groups_and_conversion() {
    let mut object = body(json!({"type": "object"}));
    object["metadata"]["name"] = "foos.x.k8s.io".into();
    object["spec"]["group"] = "x.k8s.io".into();
    assert_eq!(
        refused(&object),
        [
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111"
        ]
    );
    object["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, an experiment"});
    assert_eq!(refused(&object), [""; 0]);
    object["spec"]["conversion"] = json!({"strategy": "None", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://a.example"}}});
    assert_eq!(
        refused(&object),
        [
            "spec.conversion.webhookClientConfig: Forbidden: should not be set when strategy is not set to Webhook",
            "spec.conversion.conversionReviewVersions: Forbidden: should not be set when strategy is not set to Webhook",
        ]
    );
    object["spec"]["conversion"]["strategy"] = "Webhook".into();
    assert_eq!(refused(&object), [""; 0]);
    object["spec"]["preserveUnknownFields"] = true.into();
    let found = refused(&object);
    assert!(
        found
            .iter()
            .any(|e| e.starts_with("spec.conversion.strategy: Invalid value: \"Webhook\": must be None if"))
    );
}

#[test]
fn what_is_established_stays() {
    let mut old = prepared(&body(json!({"type": "object"})));
    old["metadata"]["resourceVersion"] = "1".into();
    let mut new = old.clone();
    new["spec"]["names"]["kind"] = "Bar".into();
    new["spec"]["names"]["listKind"] = "BarList".into();
    let refused = |new: &Value, old: &Value| -> Vec<String> {
        update(&gvk(), new, old).iter().map(ToString::to_string).collect()
    };
    assert_eq!(refused(&new, &old), [""; 0]);
    old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    assert_eq!(refused(&new, &old), ["spec.names.kind: Invalid value: \"Bar\": field is immutable"]);
    let mut new = old.clone();
    new["spec"]["versions"][0]["name"] = "v2".into();
    new["status"]["storedVersions"] = json!(["v1", "v2"]);
    assert_eq!(
        refused(&new, &old),
        [
            "status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1 and removes v1 from status.storedVersions"
        ]
    );
}

#[test]
fn warnings_are_said() {
    let object = prepared(&body(json!({"type": "object", "properties": {
        "f": {"type": "string", "format": "odd"}, "g": {"type": "string", "format": "date-time"},
        "l": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object", "x-kubernetes-map-type": "atomic"}}}})));
    assert_eq!(
        super::warnings(&object),
        [
            "unrecognized format \"odd\"",
            "x-kubernetes-list-type: set for items of type \"object\" is not supported by server-side apply or CEL validation rules",
        ]
    );
}
