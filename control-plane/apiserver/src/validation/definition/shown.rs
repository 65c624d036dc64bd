//! How upstream's messages show versions and schemas: as the structs they are inside the server.

use serde_json::{Map, Value};

use super::Common;
use crate::error::{BadValue, FieldError};
use crate::validation::{self, Errors, at};

/// How a field that says nothing is shown.
#[derive(Clone, Copy)]
enum Zero {
    Null,
    Empty,
    False,
}

use Zero::{Empty, False, Null};

/// Fields of a schema inside the server, in order, with their names in the API.
const SCHEMA: [(&str, &str, Zero); 44] = [
    ("ID", "id", Empty),
    ("Schema", "$schema", Empty),
    ("Ref", "$ref", Null),
    ("Description", "description", Empty),
    ("Type", "type", Empty),
    ("Nullable", "nullable", False),
    ("Format", "format", Empty),
    ("Title", "title", Empty),
    ("Default", "default", Null),
    ("Maximum", "maximum", Null),
    ("ExclusiveMaximum", "exclusiveMaximum", False),
    ("Minimum", "minimum", Null),
    ("ExclusiveMinimum", "exclusiveMinimum", False),
    ("MaxLength", "maxLength", Null),
    ("MinLength", "minLength", Null),
    ("Pattern", "pattern", Empty),
    ("MaxItems", "maxItems", Null),
    ("MinItems", "minItems", Null),
    ("UniqueItems", "uniqueItems", False),
    ("MultipleOf", "multipleOf", Null),
    ("Enum", "enum", Null),
    ("MaxProperties", "maxProperties", Null),
    ("MinProperties", "minProperties", Null),
    ("Required", "required", Null),
    ("Items", "items", Null),
    ("AllOf", "allOf", Null),
    ("OneOf", "oneOf", Null),
    ("AnyOf", "anyOf", Null),
    ("Not", "not", Null),
    ("Properties", "properties", Null),
    ("AdditionalProperties", "additionalProperties", Null),
    ("PatternProperties", "patternProperties", Null),
    ("Dependencies", "dependencies", Null),
    ("AdditionalItems", "additionalItems", Null),
    ("Definitions", "definitions", Null),
    ("ExternalDocs", "externalDocs", Null),
    ("Example", "example", Null),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields", Null),
    ("XEmbeddedResource", "x-kubernetes-embedded-resource", False),
    ("XIntOrString", "x-kubernetes-int-or-string", False),
    ("XListMapKeys", "x-kubernetes-list-map-keys", Null),
    ("XListType", "x-kubernetes-list-type", Null),
    ("XMapType", "x-kubernetes-map-type", Null),
    ("XValidations", "x-kubernetes-validations", Null),
];

/// The name inside the server of a schema's field.
fn inner_name(field: &str) -> &str {
    SCHEMA.iter().find(|(_, name, _)| *name == field).map_or(field, |(inner, _, _)| inner)
}

fn text(value: &Value) -> String {
    value.to_string()
}

fn members(fields: impl Iterator<Item = (&'static str, String)>) -> String {
    let all: Vec<String> = fields.map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", all.join(","))
}

fn map(values: &Map<String, Value>, show: impl Fn(&Value) -> String) -> String {
    let mut keys: Vec<&String> = values.keys().collect();
    keys.sort();
    let all = keys
        .into_iter()
        .filter_map(|k| values.get(k).map(|v| format!("{}:{}", Value::from(k.as_str()), show(v))));
    format!("{{{}}}", all.collect::<Vec<_>>().join(","))
}

fn all(values: &[Value], show: impl Fn(&Value) -> String) -> String {
    format!("[{}]", values.iter().map(show).collect::<Vec<_>>().join(","))
}

/// A schema or something else in its place.
fn either(value: &Value) -> String {
    match value {
        Value::Object(_) => format!("{{\"Allows\":true,\"Schema\":{}}}", schema(value)),
        Value::Bool(allows) => format!("{{\"Allows\":{allows},\"Schema\":null}}"),
        other => text(other),
    }
}

fn rule(value: &Value) -> String {
    let string = |name: &str| text(&Value::from(value.get(name).and_then(Value::as_str).unwrap_or_default()));
    members(
        [
            ("Rule", string("rule")),
            ("Message", string("message")),
            ("MessageExpression", string("messageExpression")),
            ("Reason", text(at(value, "reason"))),
            ("FieldPath", string("fieldPath")),
            ("OptionalOldSelf", text(at(value, "optionalOldSelf"))),
        ]
        .into_iter(),
    )
}

/// A schema as the struct it is.
pub(super) fn schema(value: &Value) -> String {
    members(SCHEMA.iter().map(|(inner, name, zero)| {
        let shown = match (*name, at(value, name)) {
            (_, Value::Null) => match zero {
                Null => "null".to_owned(),
                Empty => "\"\"".to_owned(),
                False => "false".to_owned(),
            },
            ("items", Value::Array(values)) => {
                format!("{{\"Schema\":null,\"JSONSchemas\":{}}}", all(values, schema))
            }
            ("items", value) => format!("{{\"Schema\":{},\"JSONSchemas\":null}}", schema(value)),
            ("allOf" | "oneOf" | "anyOf", Value::Array(values)) => all(values, schema),
            ("not", value) => schema(value),
            ("properties" | "patternProperties" | "definitions", Value::Object(values)) => {
                map(values, schema)
            }
            ("additionalProperties" | "additionalItems", value) => either(value),
            ("externalDocs", value) => members(
                [("Description", text(at(value, "description"))), ("URL", text(at(value, "url")))]
                    .into_iter(),
            ),
            ("x-kubernetes-validations", Value::Array(values)) => all(values, rule),
            (_, value) => text(value),
        };
        (*inner, shown)
    }))
}

fn scale(value: &Value) -> String {
    members(
        [
            ("SpecReplicasPath", text(at(value, "specReplicasPath"))),
            ("StatusReplicasPath", text(at(value, "statusReplicasPath"))),
            ("LabelSelectorPath", text(at(value, "labelSelectorPath"))),
        ]
        .into_iter(),
    )
}

fn or_null(value: &Value, show: impl Fn(&Value) -> String) -> String {
    if value.is_null() { "null".to_owned() } else { show(value) }
}

fn column(value: &Value) -> String {
    let string = |name: &str| text(&Value::from(value.get(name).and_then(Value::as_str).unwrap_or_default()));
    let priority = value.get("priority").and_then(Value::as_i64).unwrap_or_default().to_string();
    members(
        [
            ("Name", string("name")),
            ("Type", string("type")),
            ("Format", string("format")),
            ("Description", string("description")),
            ("Priority", priority),
            ("JSONPath", string("jsonPath")),
        ]
        .into_iter(),
    )
}

/// The versions as the structs they are, without what stands beside them.
pub(super) fn versions(common: &Common<'_>) -> BadValue {
    let shown = common.versions.iter().map(|version| {
        let own = |is: bool, field: &str| Common::own(is, version, field);
        let schema_of = own(common.schema_is_common, "schema");
        let subresources = own(common.subresources_are_common, "subresources");
        let columns = own(common.columns_are_common, "additionalPrinterColumns");
        let fields = own(common.fields_are_common, "selectableFields");
        let flag = |name: &str| (at(version, name) == &Value::Bool(true)).to_string();
        let list = |value: &Value, show: fn(&Value) -> String| {
            value.as_array().filter(|l| !l.is_empty()).map_or_else(|| "null".to_owned(), |l| all(l, show))
        };
        members(
            [
                ("Name", text(at(version, "name"))),
                ("Served", flag("served")),
                ("Storage", flag("storage")),
                ("Deprecated", flag("deprecated")),
                ("DeprecationWarning", text(at(version, "deprecationWarning"))),
                (
                    "Schema",
                    or_null(schema_of, |s| {
                        let inner = or_null(at(s, "openAPIV3Schema"), schema);
                        format!("{{\"OpenAPIV3Schema\":{inner}}}")
                    }),
                ),
                (
                    "Subresources",
                    or_null(subresources, |s| {
                        let status = or_null(at(s, "status"), |_| "{}".to_owned());
                        let scale = or_null(at(s, "scale"), scale);
                        format!("{{\"Status\":{status},\"Scale\":{scale}}}")
                    }),
                ),
                ("AdditionalPrinterColumns", list(columns, column)),
                (
                    "SelectableFields",
                    list(fields, |f| format!("{{\"JSONPath\":{}}}", text(at(f, "jsonPath")))),
                ),
            ]
            .into_iter(),
        )
    });
    BadValue::Text(format!("[{}]", shown.collect::<Vec<_>>().join(",")))
}

/// What a root schema may say when its status is a resource of its own.
pub(super) fn root_with_status(schema: &Value, path: &str, errs: &mut Errors) {
    const ALLOWED: [&str; 22] = [
        "Description",
        "Type",
        "Format",
        "Title",
        "Maximum",
        "ExclusiveMaximum",
        "Minimum",
        "ExclusiveMinimum",
        "MaxLength",
        "MinLength",
        "Pattern",
        "MaxItems",
        "MinItems",
        "UniqueItems",
        "MultipleOf",
        "Required",
        "Items",
        "Properties",
        "ExternalDocs",
        "Example",
        "XPreserveUnknownFields",
        "XValidations",
    ];
    let kind = validation::text(schema, "type");
    if !kind.is_empty() && kind != "object" {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errs.push(FieldError::invalid(format!("{path}.type"), kind, detail));
        return;
    }
    let said = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        _ => true,
    };
    let members = schema.as_object().into_iter().flatten();
    let other = members.filter(|(_, v)| said(v)).any(|(name, _)| !ALLOWED.contains(&inner_name(name)));
    if other {
        let detail = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            ALLOWED.join(" ")
        );
        errs.push(FieldError::invalid(path, BadValue::Text(self::schema(schema)), detail));
    }
}
