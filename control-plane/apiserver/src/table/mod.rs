//! Tables: what `kubectl get` prints.

mod admission;
mod autoscaling;
mod batch;
mod certificates;
mod claims;
mod columns;
mod config;
mod duration;
mod extensions;
mod flowcontrol;
mod network;
mod networking;
mod node;
mod pod;
mod policy;
mod rbac;
mod scheduling;
mod storage;
mod workload;

pub use admission::*;
pub use autoscaling::*;
pub use batch::*;
pub use certificates::*;
pub use claims::*;
pub use columns::*;
pub use config::*;
pub use duration::*;
pub use extensions::*;
pub use flowcontrol::*;
pub use network::*;
pub use networking::*;
pub use node::*;
pub use pod::*;
pub use policy::*;
pub use rbac::*;
pub use scheduling::*;
pub use storage::*;
pub use workload::*;

use crate::object::{Encoded, get, meta};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// A column.
#[derive(Debug)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub kind: &'static str,
    /// `name` for the name column.
    pub format: &'static str,
    /// 0: always shown; 1: shown with `-o wide`.
    pub priority: u8,
    /// Text of `kubectl explain` for the field shown.
    pub description: &'static str,
}

impl Column {
    /// The first column of nearly every kind.
    pub const NAME: Column = Column::named("Name", "string", NAME_DOC);
    /// The age column.
    pub const AGE: Column = Column::new("Age", "string", AGE_DOC);

    /// A column that is always shown.
    pub const fn new(name: &'static str, kind: &'static str, description: &'static str) -> Column {
        Column { name, kind, format: "", priority: 0, description }
    }

    /// A column that is always shown and has the format of names.
    pub const fn named(name: &'static str, kind: &'static str, description: &'static str) -> Column {
        Column { name, kind, format: "name", priority: 0, description }
    }
}

/// Columns of a kind and the cells of an object.
pub struct TableSpec {
    /// Columns.
    pub columns: &'static [Column],
    /// One cell a column.
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
    /// Row conditions, e.g. of a completed pod.
    pub conditions: fn(&Value) -> Option<Value>,
}

/// Columns of a resource and the cells of its objects.
pub enum Table {
    /// Those of a built-in kind.
    Spec(&'static TableSpec),
    /// Those that a definition of a custom resource asks for.
    Printer(crate::custom::Printer),
}

impl Table {
    /// Column definitions as JSON.
    pub fn definitions(&self) -> Value {
        match self {
            Table::Spec(spec) => definitions(spec),
            Table::Printer(printer) => printer.definitions(),
        }
    }

    /// One cell a column.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match self {
            Table::Spec(spec) => (spec.cells)(object, now),
            Table::Printer(printer) => printer.cells(object, now),
        }
    }

    /// Row conditions, e.g. of a completed pod.
    pub fn conditions(&self, object: &Value) -> Option<Value> {
        match self {
            Table::Spec(spec) => (spec.conditions)(object),
            Table::Printer(_) => None,
        }
    }
}

/// What a row carries of its object (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// A PartialObjectMetadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// From the query parameter; `None` when it has no such value.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "None" => Some(Self::None),
            "" | "Metadata" => Some(Self::Metadata),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// Kinds without a table of their own: name and time of creation.
pub static DEFAULT_TABLE: TableSpec = TableSpec {
    columns: DEFAULT,
    cells: |object, _| vec![meta(object, "name").into(), meta(object, "creationTimestamp").into()],
    conditions: no_conditions,
};

pub(crate) fn no_conditions(_: &Value) -> Option<Value> {
    None
}

fn definitions(spec: &TableSpec) -> Value {
    spec.columns
        .iter()
        .map(|c| {
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description,
                   "priority": c.priority})
        })
        .collect()
}

/// The PartialObjectMetadata of an object.
pub fn partial(object: &Value, version: &str) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
           "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({}))})
}

/// The row of an object.
pub fn row(table: &Table, object: &Value, include: IncludeObject, version: &str, now: Timestamp) -> Value {
    let mut row = Map::new();
    row.insert("cells".into(), table.cells(object, now).into());
    if let Some(conditions) = table.conditions(object) {
        row.insert("conditions".into(), conditions);
    }
    let shown = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial(object, version),
        IncludeObject::Object => object.clone(),
    };
    row.insert("object".into(), shown);
    Value::Object(row)
}

/// Appends the row of a serialized object as JSON; the object is shown without being built again.
pub fn append_row(
    out: &mut Vec<u8>,
    table: &Table,
    encoded: &Encoded,
    include: IncludeObject,
    version: &str,
    now: Timestamp,
) {
    let object = encoded.parse_lean();
    // Writing JSON into a Vec cannot fail.
    out.extend_from_slice(b"{\"cells\":");
    let _ = serde_json::to_writer(&mut *out, &table.cells(&object, now));
    if let Some(conditions) = table.conditions(&object) {
        out.extend_from_slice(b",\"conditions\":");
        let _ = serde_json::to_writer(&mut *out, &conditions);
    }
    out.extend_from_slice(b",\"object\":");
    match include {
        IncludeObject::None => out.extend_from_slice(b"null"),
        IncludeObject::Metadata => append_partial(out, encoded, version),
        IncludeObject::Object => out.extend_from_slice(encoded.full()),
    }
    out.push(b'}');
}

/// Appends the PartialObjectMetadata of a serialized object as JSON.
pub fn append_partial(out: &mut Vec<u8>, encoded: &Encoded, version: &str) {
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/");
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    out.extend_from_slice(encoded.metadata());
    out.push(b'}');
}

/// A Table of one object or a page of a list; `columns` says whether the definitions are repeated.
pub fn table(
    table: &Table,
    metadata: Value,
    objects: &[Encoded],
    include: IncludeObject,
    version: &str,
    columns: bool,
) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> =
        objects.iter().map(|object| row(table, &object.parse(), include, version, now)).collect();
    json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
           "columnDefinitions": if columns { table.definitions() } else { Value::Null }, "rows": rows})
}

/// The age cell of an object.
pub(crate) fn age(object: &Value, now: Timestamp) -> Value {
    since(meta(object, "creationTimestamp"), now).into()
}

/// Time passed since an RFC 3339 time, `<unknown>` when there is none.
pub(crate) fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human(now.as_second() - time.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// `a=b,c=d` of a map of strings, `<none>` when empty.
pub(crate) fn pairs(map: Option<&Value>) -> String {
    let Some(map) = map.and_then(Value::as_object).filter(|m| !m.is_empty()) else {
        return "<none>".to_owned();
    };
    let mut all: Vec<String> =
        map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    all.sort();
    all.join(",")
}

/// A LabelSelector object in string form, `<none>` when empty.
pub(crate) fn selector(value: Option<&Value>) -> String {
    let Some(value) = value else { return "<none>".to_owned() };
    let mut parts: Vec<(String, String)> = Vec::new();
    for (key, v) in value.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        parts.push((key.clone(), format!("{key}={}", v.as_str().unwrap_or_default())));
    }
    for expression in get(value, &["matchExpressions"]).and_then(Value::as_array).into_iter().flatten() {
        let key = crate::object::str_at(expression, &["key"]);
        let mut values: Vec<&str> =
            crate::object::list_at(expression, &["values"]).iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match crate::object::str_at(expression, &["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key.to_owned(), text));
    }
    if parts.is_empty() {
        return "<none>".to_owned();
    }
    parts.sort();
    parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

/// Names and images of the containers of a pod template.
pub(crate) fn containers(object: &Value, path: &[&str]) -> (String, String) {
    let list = crate::object::list_at(object, path);
    let join =
        |field: &str| list.iter().map(|c| crate::object::str_at(c, &[field])).collect::<Vec<_>>().join(",");
    (join("name"), join("image"))
}
