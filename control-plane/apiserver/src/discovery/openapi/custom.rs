//! Schemas of custom resources. Source: `controller/openapi/builder/builder.go` and `controller/openapi/v2` of
//! apiextensions-apiserver.

use super::gnostic::Version;
use super::schema::{META, Schemas, reference};
use crate::custom::Version as Custom;
use crate::object::{bool_at, get, list_at, str_at};
use crate::registry::Resource;
use serde_json::{Map, Value, json};

/// Texts of the members that every object has.
const CONVENTIONS: &str =
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values.";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase.";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";

/// `com.example.stable.v1.CronTab` for `stable.example.com`.
fn model_name(row: &Resource, kind: &str) -> String {
    let mut parts: Vec<&str> = row.group().split('.').collect();
    parts.reverse();
    format!("{}.{}.{kind}", parts.join("."), row.version())
}

/// References to the object and the list of a row, whose schemas will be in the document.
pub(super) fn add(row: &Resource, version: &Custom, schemas: &mut Schemas) -> (Value, Value) {
    let v2 = schemas.version() == Version::V2;
    let own = get(&version.definition().spec, &["versions"])
        .and_then(Value::as_array)
        .and_then(|all| all.iter().find(|v| str_at(v, &["name"]) == row.version()))
        .cloned()
        .unwrap_or_default();
    let mut object = object(get(&own, &["schema", "openAPIV3Schema"]), version.definition().preserve_all, v2);
    let (name, list_name) = (model_name(row, row.kind()), model_name(row, row.list_kind()));
    let mut list = list(row, &name);
    let fields: Vec<Value> = list_at(&own, &["selectableFields"])
        .iter()
        .map(|field| json!({"fieldPath": str_at(field, &["jsonPath"]).trim_start_matches('.')}))
        .collect();
    for (schema, kind) in [(&mut object, row.kind()), (&mut list, row.list_kind())] {
        schema["x-kubernetes-group-version-kind"] =
            json!([{"group": row.group(), "kind": kind, "version": row.version()}]);
        if !fields.is_empty() {
            schema["x-kubernetes-selectable-fields"] = fields.clone().into();
        }
    }
    schemas.named("meta.v1.ObjectMeta");
    schemas.named("meta.v1.ListMeta");
    (schemas.fixed(&name, object), schemas.fixed(&list_name, list))
}

fn text(description: &str, part: &str) -> Value {
    json!({"type": "string", "description": format!("{description} More info: {CONVENTIONS}#{part}")})
}

fn type_meta() -> [(&'static str, Value); 2] {
    [("apiVersion", text(API_VERSION, "resources")), ("kind", text(KIND, "types-kinds"))]
}

/// A reference with siblings is written as an allOf.
fn metadata(name: &str, description: &str, part: &str) -> Value {
    json!({"allOf": [reference(&format!("{META}{name}"))],
        "description": format!("{description} More info: {CONVENTIONS}#{part}")})
}

fn object_meta() -> Value {
    metadata("ObjectMeta", "Standard object's metadata.", "metadata")
}

/// Adds members to the properties of a schema.
fn extend(schema: &mut Value, members: impl IntoIterator<Item = (&'static str, Value)>) {
    for (name, member) in members {
        schema["properties"][name] = member;
    }
}

fn list(row: &Resource, item: &str) -> Value {
    let mut out = json!({
        "type": "object",
        "description": format!("{} is a list of {}", row.list_kind(), row.kind()),
        "required": ["items"],
        "properties": {
            "items": {
                "type": "array",
                "description": format!("List of {}. More info: {CONVENTIONS}", row.plural()),
                "items": reference(item),
            },
            "metadata": metadata("ListMeta", "Standard list metadata.", "types-kinds"),
        },
    });
    extend(&mut out, type_meta());
    out
}

/// The schema of an object. Where nothing is said of the members, they are not named either: a client would refuse all
/// others.
fn object(schema: Option<&Value>, preserve_all: bool, v2: bool) -> Value {
    let Some(schema) = schema else { return json!({"type": "object"}) };
    if v2 && (preserve_all || bool_at(schema, &[PRESERVE])) {
        return json!({"type": "object"});
    }
    let mut out = published(schema, v2);
    extend(&mut out, [("metadata", object_meta())]);
    extend(&mut out, type_meta());
    out
}

/// Members of a schema that have schemas by name, in a list, and alone.
const NAMED: &[&str] = &["properties"];
const LISTED: &[&str] = &["allOf", "anyOf", "oneOf"];
const ALONE: &[&str] = &["items", "additionalProperties", "not"];
/// Members that are values of the described kind.
const VALUES: &[&str] = &["default", "example", "enum"];

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

/// A schema of a definition as documents have it.
fn published(schema: &Value, v2: bool) -> Value {
    let mut out = Map::new();
    for (key, value) in schema.as_object().into_iter().flatten() {
        let name = key.as_str();
        let value = if NAMED.contains(&name) {
            let all = value.as_object().into_iter().flatten();
            all.map(|(name, schema)| (name.clone(), published(schema, v2))).collect()
        } else if LISTED.contains(&name) {
            value.as_array().into_iter().flatten().map(|schema| published(schema, v2)).collect()
        } else if ALONE.contains(&name) && value.is_object() {
            published(value, v2)
        } else {
            value.clone()
        };
        let says_much = VALUES.contains(&name) || ALONE.contains(&name);
        if says_much && !value.is_null() || !is_nothing(&value) {
            out.insert(key.clone(), value);
        }
    }
    let mut out = Value::Object(out);
    unfold(&mut out);
    if v2 {
        narrow(&mut out, schema);
    }
    embed(&mut out, v2);
    out
}

/// A number or a text is said in a way that other readers understand, too.
fn unfold(schema: &mut Value) {
    if !bool_at(schema, &[INT_OR_STRING]) {
        return;
    }
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    let says = |schema: &Value| schema["anyOf"] == either;
    if says(schema) || schema["allOf"].get(0).is_some_and(says) {
        return;
    }
    if schema.get("anyOf").is_none() {
        schema["anyOf"] = either;
        return;
    }
    let mut all = vec![json!({"anyOf": either})];
    all.extend_from_slice(list_at(schema, &["allOf"]));
    schema["allOf"] = all.into();
}

/// Leaves out what v2 cannot say and what readers of it misunderstand: `whole` is the schema as the definition has it.
fn narrow(schema: &mut Value, whole: &Value) {
    let mut drop = vec!["allOf", "anyOf", "oneOf", "not", "nullable"];
    let (nullable, preserve) = (bool_at(whole, &["nullable"]), bool_at(whole, &[PRESERVE]));
    if nullable || preserve {
        drop.extend(["items", "properties"]);
    }
    let kind = str_at(whole, &["type"]);
    let bare_array = kind == "array" && (preserve || whole.get("items").is_none());
    if nullable || bare_array || preserve && kind == "object" {
        drop.push("type");
    }
    let null = |schema: Option<&Value>| schema.is_some_and(|schema| bool_at(schema, &["nullable"]));
    let properties = whole.get("properties");
    let required: Vec<Value> = list_at(whole, &["required"])
        .iter()
        .filter(|name| !null(name.as_str().and_then(|name| properties?.get(name))))
        .cloned()
        .collect();
    if required.is_empty() || null(whole.get("additionalProperties")) {
        drop.push("required");
    } else {
        schema["required"] = required.into();
    }
    if let Value::Object(members) = schema {
        members.retain(|name, _| !drop.contains(&name.as_str()));
    }
}

/// Whole objects inside of objects have what all objects have.
fn embed(schema: &mut Value, v2: bool) {
    if !bool_at(schema, &["x-kubernetes-embedded-resource"]) || v2 && bool_at(schema, &[PRESERVE]) {
        return;
    }
    let version = "apiVersion defines the versioned schema of this representation of an object.";
    let kind = "kind is a string value representing the type of this object. In CamelCase.";
    let [version, kind] = [text(version, "resources"), text(kind, "types-kinds")];
    extend(schema, [("apiVersion", version), ("kind", kind), ("metadata", object_meta())]);
    let mut required = list_at(schema, &["required"]).to_vec();
    for name in ["kind", "apiVersion"] {
        if !required.iter().any(|r| r == name) {
            required.push(name.into());
        }
    }
    schema["required"] = required.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(schema: Value) -> (Value, Value) {
        (published(&schema, false), published(&schema, true))
    }

    #[test]
    fn v2_says_less() {
        let (v3, v2) = both(json!({"type": "object", "required": ["a", "b"], "properties": {
            "a": {"type": "string", "nullable": true, "oneOf": [{"format": "ipv4"}]},
            "b": {"type": "array", "items": {"type": "integer"}, "x-kubernetes-list-type": "set"},
            "c": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"known": {"type": "string"}}},
            "d": {"not": {"required": ["x"]}, "minimum": 0, "type": "integer", "description": ""},
        }}));
        assert_eq!(v3["required"], json!(["a", "b"]));
        assert_eq!(v3["properties"]["a"]["nullable"], json!(true));
        assert_eq!(
            v3["properties"]["d"],
            json!({"not": {"required": ["x"]}, "minimum": 0, "type": "integer"})
        );
        assert_eq!(
            v2,
            json!({"type": "object", "required": ["b"], "properties": {
                "a": {},
                "b": {"type": "array", "items": {"type": "integer"}, "x-kubernetes-list-type": "set"},
                "c": {"x-kubernetes-preserve-unknown-fields": true},
                "d": {"minimum": 0, "type": "integer"},
            }})
        );
    }

    #[test]
    fn a_number_or_a_text_is_said_once() {
        let either = json!([{"type": "integer"}, {"type": "string"}]);
        let (plain, _) = both(json!({"x-kubernetes-int-or-string": true}));
        assert_eq!(plain["anyOf"], either);
        let (said, _) = both(json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": either}]}));
        assert_eq!(said.get("anyOf"), None);
        let (beside, _) = both(json!({"x-kubernetes-int-or-string": true, "anyOf": [{"minimum": 3}],
            "allOf": [{"maximum": 5}]}));
        assert_eq!(beside["allOf"], json!([{"anyOf": either}, {"maximum": 5}]));
    }

    #[test]
    fn whole_objects_inside_have_their_members() {
        let (v3, v2) = both(json!({"type": "object", "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true}));
        assert_eq!(v3["required"], json!(["kind", "apiVersion"]));
        assert!(v3["properties"]["metadata"]["allOf"].is_array());
        assert_eq!(v2.get("properties"), None, "clients would refuse all other members");
    }

    #[test]
    fn values_are_kept_as_they_are() {
        let (v3, _) =
            both(json!({"type": "object", "default": {}, "enum": [false, ""], "additionalProperties": false,
            "title": "", "uniqueItems": false}));
        assert_eq!(
            v3,
            json!({"type": "object", "default": {}, "enum": [false, ""], "additionalProperties": false})
        );
    }

    #[test]
    fn nothing_is_named_where_nothing_is_known() {
        assert_eq!(object(None, false, false), json!({"type": "object"}));
        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        assert_eq!(object(Some(&open), false, true), json!({"type": "object"}));
        assert!(object(Some(&open), false, false)["properties"]["metadata"].is_object());
    }
}
