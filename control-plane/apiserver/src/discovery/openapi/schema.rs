//! Schemas of types, made from the type table.

use super::descriptions::Descriptions;
use super::facts::Facts;
use super::gnostic::Version;
use crate::schema::{self, Field, ListKind, Type, TypeSchema};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Where references point to in an OpenAPI v3 document.
pub(super) const PREFIX: &str = "#/components/schemas/";

pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
/// Answer of `/version`.
pub(super) const VERSION: &str = "io.k8s.apimachinery.pkg.version.Info";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// Name of a type in documents: `io.k8s.api.core.v1.Pod`.
pub(super) fn document_name(name: &str) -> String {
    match name.split('.').next().unwrap_or_default() {
        "meta" => format!("io.k8s.apimachinery.pkg.apis.{name}"),
        "apiextensions" => format!("io.k8s.apiextensions-apiserver.pkg.apis.{name}"),
        "apiregistration" => format!("io.k8s.kube-aggregator.pkg.apis.{name}"),
        _ => format!("io.k8s.api.{name}"),
    }
}

pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("{PREFIX}{name}")})
}

/// The schemas that one document needs.
pub(super) struct Schemas {
    /// Form of the document. Schemas are made for v3 and become those of v2 at the end, but those of definitions, of
    /// which v2 has less.
    version: Version,
    /// Group and version of the document; kinds of every group are named for them, too.
    scope: Vec<(Box<str>, Box<str>)>,
    /// Names of object types that were referred to.
    known: BTreeSet<String>,
    /// Those of them that are not written yet.
    todo: Vec<&'static TypeSchema>,
    /// Types that the table lacks.
    fixed: BTreeMap<String, Value>,
    texts: Descriptions,
}

impl Schemas {
    /// For a document of these group versions.
    pub(super) fn of(version: Version, scope: Vec<(Box<str>, Box<str>)>, texts: Descriptions) -> Self {
        Schemas { version, scope, known: BTreeSet::new(), todo: Vec::new(), fixed: BTreeMap::new(), texts }
    }

    /// Form of the document.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// What types are.
    pub(super) fn texts(&self) -> &Descriptions {
        &self.texts
    }

    /// A reference to an object type; its schema will be in the document.
    pub(super) fn object(&mut self, schema: &'static TypeSchema) -> Value {
        let name = document_name(&schema.name);
        let out = reference(&name);
        // Types refer to themselves: the name is known before the fields are looked at.
        if self.known.insert(name) {
            self.todo.push(schema);
        }
        out
    }

    /// A reference to a type by its name in the table (`meta.v1.Status`).
    pub(super) fn named(&mut self, name: &str) -> Value {
        match schema::by_name(name) {
            Some(schema) => self.object(schema),
            None => json!({"type": "object"}),
        }
    }

    /// A reference to a type that the table lacks, with its schema.
    pub(super) fn fixed(&mut self, name: &str, mut value: Value) -> Value {
        if !self.fixed.contains_key(name) {
            if let Some(text) = self.texts.of_type(name) {
                value["description"] = text.into();
            }
            if let Some(properties) = value.get_mut("properties").and_then(Value::as_object_mut) {
                for (field, property) in properties {
                    if let Some(text) = self.texts.of_field(name, field) {
                        property["description"] = text.into();
                    }
                }
            }
            self.fixed.insert(name.to_owned(), value);
        }
        reference(name)
    }

    /// A reference to the answer of `/version`.
    pub(super) fn server_version(&mut self) -> Value {
        let required = [
            "major",
            "minor",
            "gitVersion",
            "gitCommit",
            "gitTreeState",
            "buildDate",
            "goVersion",
            "compiler",
            "platform",
        ];
        let optional = ["emulationMajor", "emulationMinor", "minCompatibilityMajor", "minCompatibilityMinor"];
        let mut properties = Map::new();
        for name in required {
            properties.insert(name.to_owned(), json!({"type": "string", "default": ""}));
        }
        for name in optional {
            properties.insert(name.to_owned(), json!({"type": "string"}));
        }
        self.fixed(VERSION, json!({"type": "object", "required": required, "properties": properties}))
    }

    /// Whether nothing was referred to.
    pub(super) fn is_empty(&self) -> bool {
        self.todo.is_empty() && self.fixed.is_empty()
    }

    /// Hands over all schemas that were referred to, and those that they refer to, one at a time: together they are
    /// large.
    pub(super) fn finish(mut self, sink: &mut dyn FnMut(&str, &Value)) {
        while let Some(schema) = self.todo.pop() {
            let value = self.definition(schema);
            sink(&document_name(&schema.name), &value);
        }
        for (name, value) in &self.fixed {
            sink(name, value);
        }
    }

    fn definition(&mut self, schema: &'static TypeSchema) -> Value {
        let mut out = json!({"type": "object"});
        if let Some(text) = self.text_of(schema, None) {
            out["description"] = text.into();
        }
        let mut properties = Map::new();
        for field in &schema.fields {
            properties.insert(field.name.to_string(), self.property(schema, field));
        }
        if !properties.is_empty() {
            out["properties"] = properties.into();
        }
        let required = required(schema);
        if !required.is_empty() {
            out["required"] = required.into();
        }
        if schema.atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        let kinds = self.kinds(schema);
        if !kinds.is_empty() {
            out["x-kubernetes-group-version-kind"] = kinds.into();
        }
        if let Some(union) = Facts::get().union(&schema.name) {
            let fields: Map<String, Value> =
                union.fields.iter().map(|(field, value)| ((*field).to_owned(), (*value).into())).collect();
            let mut value = json!({"fields-to-discriminateBy": fields});
            if let Some(discriminator) = union.discriminator {
                value["discriminator"] = discriminator.into();
            }
            out["x-kubernetes-unions"] = json!([value]);
        }
        out
    }

    /// Kinds that the type is served as. Two kinds belong to every group: they are named for the core group and for
    /// the document's own.
    fn kinds(&self, schema: &TypeSchema) -> Vec<Value> {
        let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "kind": kind, "version": version});
        let mut out: Vec<Value> = schema.gvks.iter().map(|g| kind(&g.group, &g.version, &g.kind)).collect();
        if matches!(schema.name.as_ref(), "meta.v1.DeleteOptions" | "meta.v1.WatchEvent") {
            for (group, version) in &self.scope {
                let own = kind(group, version, schema.short_name());
                if !out.contains(&own) {
                    out.push(own);
                }
            }
        }
        out
    }

    /// What a type or a field of it is. The source has no texts of lists, so they are described by their items.
    fn text_of(&self, schema: &TypeSchema, field: Option<&Field>) -> Option<String> {
        let name = document_name(&schema.name);
        let found = match field {
            None => self.texts.of_type(&name),
            Some(field) => self.texts.of_field(&name, &field.name),
        };
        if found.is_some() {
            return found.map(str::to_owned);
        }
        let item = name.strip_suffix("List").filter(|_| schema.field("items").is_some())?;
        let kind = schema.short_name().trim_end_matches("List");
        match field.map(|f| f.name.as_ref()) {
            None => Some(format!("{kind}List is a list of {kind} objects.")),
            Some("items") => Some(format!("items is the list of {kind} objects.")),
            Some("metadata") => Some("metadata is the list's metadata.".to_owned()),
            Some(shared) => self.texts.of_field(item, shared).map(str::to_owned),
        }
    }

    fn property(&mut self, of: &'static TypeSchema, field: &'static Field) -> Value {
        let facts = Facts::get();
        let path = format!("{}.{}", of.name, field.name);
        let mut out = self.of_type(&field.ty);
        let mut extra = Map::new();
        let text = self.text_of(of, Some(field)).unwrap_or_default();
        let text = format!("{text}{}", possible_values(&field.ty, &text));
        if !text.is_empty() {
            extra.insert("description".into(), text.into());
        }
        if let Some(default) = default_of(field, facts.default_of(&path)) {
            extra.insert("default".into(), default);
        }
        merge_facts(field, &mut extra);
        if facts.is_replaced(&path) {
            extra.insert("x-kubernetes-patch-strategy".into(), "replace".into());
        }
        if facts.is_granular(&path) {
            extra.insert("x-kubernetes-map-type".into(), "granular".into());
        }
        if out.get("$ref").is_some() && !facts.is_plain(&path) {
            // A reference with siblings is written as an allOf.
            out = json!({"allOf": [out]});
        }
        if let Value::Object(map) = &mut out {
            map.extend(extra);
        }
        out
    }

    fn of_type(&mut self, ty: &'static Type) -> Value {
        let time = || json!({"type": "string", "format": "date-time"});
        match ty {
            Type::String(name) => match name.and_then(|name| Facts::get().values(name)) {
                Some(values) => json!({"type": "string", "enum": values}),
                None => json!({"type": "string"}),
            },
            Type::Bool => json!({"type": "boolean"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Float64 => json!({"type": "number", "format": "double"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Quantity => {
                self.fixed(QUANTITY, json!({"oneOf": [{"type": "string"}, {"type": "number"}]}))
            }
            Type::IntOrString => self.fixed(
                INT_OR_STRING,
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            Type::Time => self.fixed(&format!("{META}Time"), time()),
            Type::MicroTime => self.fixed(&format!("{META}MicroTime"), time()),
            Type::Raw => self.fixed(RAW, json!({"type": "object"})),
            Type::FieldsV1 => self.fixed(&format!("{META}FieldsV1"), json!({"type": "object"})),
            Type::Json | Type::Deduced => self.fixed(&format!("{EXTENSIONS}JSON"), json!({})),
            Type::SchemaOrArray(_) => self.fixed(&format!("{EXTENSIONS}JSONSchemaPropsOrArray"), json!({})),
            Type::SchemaOrBool(_) => self.fixed(&format!("{EXTENSIONS}JSONSchemaPropsOrBool"), json!({})),
            Type::SchemaOrStrings(_) => {
                self.fixed(&format!("{EXTENSIONS}JSONSchemaPropsOrStringArray"), json!({}))
            }
            Type::List(items) | Type::Wrapped(items) => {
                json!({"type": "array", "items": self.of_type(items)})
            }
            Type::Map(values) => json!({"type": "object", "additionalProperties": self.of_type(values)}),
            Type::Object(link) => self.named(&link.get().name),
        }
    }
}

/// The values of an enumeration, as texts of its fields end with.
fn possible_values(ty: &Type, text: &str) -> String {
    let Type::String(Some(name)) = ty else { return String::new() };
    let Some(values) = Facts::get().values(name) else { return String::new() };
    let lines: Vec<String> = values.iter().map(|value| format!(" - `{value:?}`")).collect();
    let gap = if text.is_empty() { "" } else { "\n\n" };
    format!("{gap}Possible enum values:\n{}", lines.join("\n"))
}

/// Required fields in the order of their protobuf numbers, which is nearly that of Go's declarations.
fn required(schema: &TypeSchema) -> Vec<&str> {
    let mut fields: Vec<&Field> = schema.fields.iter().filter(|f| f.required).collect();
    fields.sort_by_key(|f| f.number);
    fields.into_iter().map(|f| f.name.as_ref()).collect()
}

/// What is written for an absent field: structs that are no pointers exist always; scalars that Go cannot leave out are
/// zero.
fn default_of(field: &Field, fact: Option<&Value>) -> Option<Value> {
    if let Some(fact) = fact {
        return Some(fact.clone());
    }
    if let Some(text) = field.default.as_deref() {
        return serde_json::from_str(text).ok();
    }
    if field.pointer {
        return None;
    }
    let absent = field.omit_empty || field.omit_zero;
    match &field.ty {
        Type::Object(_) => Some(json!({})),
        Type::String(_) if !absent => Some("".into()),
        Type::Bool if !absent => Some(false.into()),
        Type::Int32 | Type::Int64 | Type::Float64 if !absent => Some(0.into()),
        _ => None,
    }
}

/// List and map kinds, keys, and what strategic merge patch does.
fn merge_facts(field: &Field, extra: &mut Map<String, Value>) {
    let list_type = match &field.list {
        ListKind::Unset => None,
        ListKind::Atomic => Some("atomic"),
        ListKind::Set => Some("set"),
        ListKind::Map(keys) => {
            let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
            extra.insert("x-kubernetes-list-map-keys".into(), keys.into());
            Some("map")
        }
    };
    if let Some(kind) = list_type {
        extra.insert("x-kubernetes-list-type".into(), kind.into());
    } else if field.atomic {
        // Bytes are a list of bytes in Go.
        let key =
            if matches!(field.ty, Type::Bytes) { "x-kubernetes-list-type" } else { "x-kubernetes-map-type" };
        extra.insert(key.into(), "atomic".into());
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
}
