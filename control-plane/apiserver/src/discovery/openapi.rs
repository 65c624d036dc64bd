//! OpenAPI v3: an index, and a document for every group version, made from the registry and the type table.

use crate::registry::{Registry, Resource, SubresourceKind};
use crate::schema::{self, Field, ListKind, Type, TypeSchema};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// `api/v1` or `apis/apps/v1`.
fn root_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The document's fingerprint: it changes with the release and the rows, which are all it is made of.
fn hash(registry: &Registry, group: &str, version: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    for row in registry.rows().iter().filter(|r| r.group == group && r.version == version) {
        digest.update(row.plural);
        for sub in row.subresources {
            digest.update(sub.name);
        }
    }
    digest.finalize().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The index at `/openapi/v3`.
pub(super) fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for (group, versions) in registry.groups() {
        for version in versions {
            let root = root_of(group, version);
            let url = format!("/openapi/v3/{root}?hash={}", hash(registry, group, version));
            paths.insert(root, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// Name of a type in documents: `io.k8s.api.core.v1.Pod`.
fn type_name(schema: &TypeSchema) -> String {
    match schema.name.strip_prefix("meta.v1.") {
        Some(name) => format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"),
        None => format!("io.k8s.api.{}", schema.name),
    }
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const FIELDS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";

#[derive(Default)]
struct Components {
    done: BTreeMap<String, Value>,
}

impl Components {
    fn scalar(&mut self, name: &str, value: Value) -> Value {
        self.done.entry(name.to_owned()).or_insert(value);
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    fn object(&mut self, schema: &'static TypeSchema) -> Value {
        let name = type_name(schema);
        if !self.done.contains_key(&name) {
            // Types refer to themselves: the place is taken before the fields are looked at.
            self.done.insert(name.clone(), Value::Null);
            let value = self.definition(schema);
            self.done.insert(name.clone(), value);
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    fn definition(&mut self, schema: &'static TypeSchema) -> Value {
        let mut properties = Map::new();
        for field in &schema.fields {
            properties.insert(field.name.to_string(), self.property(field));
        }
        let mut out = json!({"type": "object", "properties": properties});
        let required: Vec<&str> =
            schema.fields.iter().filter(|f| f.required).map(|f| f.name.as_ref()).collect();
        if !required.is_empty() {
            out["required"] = required.into();
        }
        if schema.atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        if !schema.gvks.is_empty() {
            out["x-kubernetes-group-version-kind"] = schema
                .gvks
                .iter()
                .map(|gvk| json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind}))
                .collect();
        }
        out
    }

    fn property(&mut self, field: &'static Field) -> Value {
        let mut out = self.of_type(&field.ty);
        let reference = out.get("$ref").is_some();
        let mut extra = Map::new();
        if let Some(default) = field.default.as_deref().and_then(|d| serde_json::from_str(d).ok()) {
            extra.insert("default".into(), default);
        }
        match &field.list {
            ListKind::Unset => {}
            ListKind::Atomic => {
                extra.insert("x-kubernetes-list-type".into(), "atomic".into());
            }
            ListKind::Set => {
                extra.insert("x-kubernetes-list-type".into(), "set".into());
            }
            ListKind::Map(keys) => {
                extra.insert("x-kubernetes-list-type".into(), "map".into());
                let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
                extra.insert("x-kubernetes-list-map-keys".into(), keys.into());
            }
        }
        if field.atomic {
            extra.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        let strategy = match (field.patch_merge, field.patch_retain_keys) {
            (true, true) => Some("merge,retainKeys"),
            (true, false) => Some("merge"),
            (false, true) => Some("retainKeys"),
            (false, false) => None,
        };
        if let Some(strategy) = strategy {
            extra.insert("x-kubernetes-patch-strategy".into(), strategy.into());
        }
        if let Some(key) = &field.merge_key {
            extra.insert("x-kubernetes-patch-merge-key".into(), key.as_ref().into());
        }
        if reference && !extra.is_empty() {
            // A reference with siblings is written as an allOf.
            out = json!({"allOf": [out]});
        }
        if let Value::Object(map) = &mut out {
            map.extend(extra);
        }
        out
    }

    fn of_type(&mut self, ty: &'static Type) -> Value {
        match ty {
            Type::String(_) => json!({"type": "string"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Float64 => json!({"type": "number", "format": "double"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Quantity => {
                self.scalar(QUANTITY, json!({"oneOf": [{"type": "string"}, {"type": "number"}]}))
            }
            Type::IntOrString => self.scalar(
                INT_OR_STRING,
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            Type::Time => self.scalar(TIME, json!({"type": "string", "format": "date-time"})),
            Type::MicroTime => self.scalar(MICRO_TIME, json!({"type": "string", "format": "date-time"})),
            Type::Raw => self.scalar(RAW, json!({"type": "object"})),
            Type::FieldsV1 => self.scalar(FIELDS, json!({"type": "object"})),
            Type::Json | Type::SchemaOrArray(_) | Type::SchemaOrBool(_) | Type::SchemaOrStrings(_) => {
                json!({})
            }
            Type::List(items) | Type::Wrapped(items) => {
                json!({"type": "array", "items": self.of_type(items)})
            }
            Type::Map(values) => json!({"type": "object", "additionalProperties": self.of_type(values)}),
            Type::Object(reference) => match schema::by_name(&reference.get().name) {
                Some(schema) => self.object(schema),
                None => json!({"type": "object"}),
            },
        }
    }
}

fn query(name: &str, kind: &str) -> Value {
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

/// Query parameters of an action.
fn parameters(action: &str) -> Vec<Value> {
    let write = || {
        vec![query("dryRun", "string"), query("fieldManager", "string"), query("fieldValidation", "string")]
    };
    match action {
        "post" | "put" => write(),
        "patch" => {
            let mut all = write();
            all.push(query("force", "boolean"));
            all
        }
        "delete" => vec![
            query("dryRun", "string"),
            query("gracePeriodSeconds", "integer"),
            query("orphanDependents", "boolean"),
            query("propagationPolicy", "string"),
        ],
        "list" => vec![
            query("allowWatchBookmarks", "boolean"),
            query("continue", "string"),
            query("fieldSelector", "string"),
            query("labelSelector", "string"),
            query("limit", "integer"),
            query("resourceVersion", "string"),
            query("resourceVersionMatch", "string"),
            query("sendInitialEvents", "boolean"),
            query("timeoutSeconds", "integer"),
            query("watch", "boolean"),
        ],
        _ => Vec::new(),
    }
}

struct Operation<'a> {
    action: &'a str,
    body: Option<Value>,
    answer: Value,
    kind: (&'a str, &'a str, &'a str),
}

fn operation(operation: Operation<'_>) -> Value {
    let Operation { action, body, answer, kind } = operation;
    let content = json!({"application/json": {"schema": answer.clone()},
        "application/yaml": {"schema": answer}});
    let mut out = json!({
        "parameters": parameters(action),
        "responses": {"200": {"description": "OK", "content": content}, "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": kind.0, "version": kind.1, "kind": kind.2},
    });
    if action == "patch" {
        let patch = json!({"schema": {"type": "object"}});
        out["requestBody"] = json!({"required": true, "content": {
            "application/json-patch+json": patch, "application/merge-patch+json": patch,
            "application/strategic-merge-patch+json": patch}});
    } else if let Some(body) = body {
        out["requestBody"] = json!({"content": {"*/*": {"schema": body}}, "required": true});
    }
    out
}

fn add_resource(paths: &mut Map<String, Value>, components: &mut Components, row: &Resource) {
    let Some(own) = schema::by_gvk(&row.gvk()) else { return };
    let list_name = format!("{}List", own.name);
    let object = components.object(own);
    let list = match schema::by_name(&list_name) {
        Some(list) => components.object(list),
        None => json!({"type": "object"}),
    };
    let root = format!("/{}", root_of(row.group, row.version));
    let kind = (row.group, row.version, row.kind);
    let place = if row.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() };
    let verbs = |verb: &str| row.verbs.contains(&verb);
    let op = |action: &'static str, body: bool, answer: &Value| {
        operation(Operation { action, body: body.then(|| object.clone()), answer: answer.clone(), kind })
    };
    let mut collection = Map::new();
    if verbs("list") {
        collection.insert("get".into(), op("list", false, &list));
    }
    if verbs("create") {
        collection.insert("post".into(), op("post", true, &object));
    }
    if verbs("deletecollection") {
        collection.insert("delete".into(), op("deletecollection", false, &object));
    }
    paths.insert(format!("{place}/{}", row.plural), Value::Object(collection));
    if row.namespaced && verbs("list") {
        paths.insert(format!("{root}/{}", row.plural), json!({"get": op("list", false, &list)}));
    }
    let mut single = Map::new();
    for (verb, method, action, body) in [
        ("get", "get", "get", false),
        ("update", "put", "put", true),
        ("patch", "patch", "patch", false),
        ("delete", "delete", "delete", false),
    ] {
        if verbs(verb) {
            single.insert(method.into(), op(action, body, &object));
        }
    }
    paths.insert(format!("{place}/{}/{{name}}", row.plural), Value::Object(single));
    for sub in row.subresources.iter().filter(|s| s.does != SubresourceKind::Connect) {
        let gvk = crate::gvk::GroupVersionKind::new(sub.kind.0, sub.kind.1, sub.kind.2);
        let Some(schema) = schema::by_gvk(&gvk) else { continue };
        let body = components.object(schema);
        let mut operations = Map::new();
        for (verb, method, action) in [
            ("get", "get", "get"),
            ("update", "put", "put"),
            ("patch", "patch", "patch"),
            ("create", "post", "post"),
        ] {
            if sub.verbs.contains(&verb) {
                let of = Operation { action, body: Some(body.clone()), answer: body.clone(), kind: sub.kind };
                operations.insert(method.into(), operation(of));
            }
        }
        let path = format!("{place}/{}/{{name}}/{}", row.plural, sub.name);
        paths.insert(path, Value::Object(operations));
    }
}

/// The document of a group version, `None` when it is not served.
pub(super) fn document(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    if !registry.has_version(group, version) {
        return None;
    }
    let mut paths = Map::new();
    let mut components = Components::default();
    for row in registry.rows().iter().filter(|r| r.group == group && r.version == version) {
        add_resource(&mut paths, &mut components, row);
    }
    for name in ["meta.v1.DeleteOptions", "meta.v1.Status"] {
        if let Some(schema) = schema::by_name(name) {
            components.object(schema);
        }
    }
    Some(json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths,
        "components": {"schemas": components.done}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let registry = Registry::builtin();
        for (group, versions) in registry.groups() {
            for version in versions {
                let document = document(&registry, group, version).expect("served");
                let text = document.to_string();
                let schemas = document["components"]["schemas"].as_object().expect("schemas");
                for part in text.split("\"#/components/schemas/").skip(1) {
                    let name = part.split('"').next().expect("name");
                    assert!(schemas.get(name).is_some_and(|s| s.is_object()), "{group}/{version}: {name}");
                }
            }
        }
    }

    #[test]
    fn patches_say_how_fields_are_validated_and_lists_merged() {
        let registry = Registry::builtin();
        let document = document(&registry, "", "v1").expect("served");
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        assert!(patch["parameters"].to_string().contains("fieldValidation"));
        let containers =
            &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    }
}
