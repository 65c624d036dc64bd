//! Server-side apply and the bookkeeping of `metadata.managedFields`: pure functions from an object and a request to
//! the next object.

mod set;
mod walk;

use serde_json::{Map, Value, json};

use self::set::FieldSet;
use crate::codec;
use crate::error::{ApiError, Cause};
use crate::schema::TypeSchema;

/// Who writes, and how.
#[derive(Debug, Clone)]
pub struct Writer<'a> {
    /// Name of the field manager.
    pub manager: &'a str,
    /// The subresource written through, empty for the object itself.
    pub subresource: &'a str,
    /// `apiVersion` of the request's object.
    pub api_version: &'a str,
    /// RFC 3339, in whole seconds.
    pub time: &'a str,
    /// Fields that this endpoint does not write (`["status"]` for the main one).
    pub ignored: &'a [&'a [&'a str]],
}

/// Fields that nobody owns.
const UNOWNED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
    &["metadata", "deletionTimestamp"],
];

/// One entry of `managedFields`.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    operation: &'static str,
    api_version: String,
    subresource: String,
    time: String,
    set: FieldSet,
}

impl Entry {
    fn is(&self, writer: &Writer<'_>, operation: &str) -> bool {
        self.manager == writer.manager
            && self.operation == operation
            && self.subresource == writer.subresource
            && self.api_version == writer.api_version
    }

    fn new(writer: &Writer<'_>, operation: &'static str, set: FieldSet) -> Self {
        Entry {
            manager: writer.manager.to_owned(),
            operation,
            api_version: writer.api_version.to_owned(),
            subresource: writer.subresource.to_owned(),
            time: writer.time.to_owned(),
            set,
        }
    }

    /// The manager as conflicts name it.
    fn shown(&self) -> String {
        let mut out = crate::error::quote(&self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {}", crate::error::quote(&self.subresource)));
        }
        if self.operation == "Update" {
            out.push_str(&format!(" using {}", self.api_version));
            if !self.time.is_empty() {
                out.push_str(&format!(" at {}", self.time));
            }
        }
        out
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .map(|e| {
            let text = |name: &str| e.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            Entry {
                manager: text("manager"),
                operation: if text("operation") == "Apply" { "Apply" } else { "Update" },
                api_version: text("apiVersion"),
                subresource: text("subresource"),
                time: text("time"),
                set: FieldSet::from_value(e.get("fieldsV1").unwrap_or(&Value::Null)),
            }
        })
        .collect()
}

fn store(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.set.is_empty());
    // Applied entries first, then by time and name, as upstream stores them; those without a time come last.
    entries.sort_by(|a, b| {
        let key = |e: &'_ Entry| (e.operation, e.time.is_empty());
        (key(a), &a.time, &a.manager, &a.api_version, &a.subresource).cmp(&(
            key(b),
            &b.time,
            &b.manager,
            &b.api_version,
            &b.subresource,
        ))
    });
    let list: Vec<Value> = entries
        .iter()
        .map(|e| {
            let mut out = json!({"manager": e.manager, "operation": e.operation, "apiVersion": e.api_version,
                                 "fieldsType": "FieldsV1", "fieldsV1": e.set.to_value()});
            for (name, value) in [("time", &e.time), ("subresource", &e.subresource)] {
                if !value.is_empty() {
                    out[name] = value.as_str().into();
                }
            }
            out
        })
        .collect();
    let Value::Object(object) = object else { return };
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(metadata) = metadata else { return };
    if list.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), list.into());
    }
}

fn without_entries(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
    }
    object
}

/// The object of a type with nothing set.
fn blank(schema: &TypeSchema) -> Value {
    codec::decode_value(Value::Object(Map::new()), schema).map(|(v, _)| v).unwrap_or_default()
}

fn owned(set: FieldSet, writer: &Writer<'_>) -> FieldSet {
    set.without(&UNOWNED).without(writer.ignored)
}

/// Notes in `managedFields` who changed what by a create, an update or a patch; `old` is none for a create. An object
/// that was never tracked stays so.
pub fn track(old: Option<&Value>, new: &mut Value, writer: &Writer<'_>, schema: &TypeSchema) {
    let mut managers = old.map(entries).unwrap_or_default();
    if old.is_some() && managers.is_empty() {
        store(new, managers);
        return;
    }
    let before = old.map_or_else(|| blank(schema), without_entries);
    let difference = walk::compare(&before, &without_entries(new), schema);
    let taken = difference.added.union(&difference.modified);
    for manager in managers.iter_mut().filter(|m| !m.is(writer, "Update")) {
        manager.set = manager.set.difference(&taken).difference(&difference.removed);
    }
    let taken = owned(taken, writer);
    match managers.iter_mut().find(|m| m.is(writer, "Update")) {
        Some(own) => {
            own.set = own.set.difference(&difference.removed);
            if !taken.is_empty() {
                own.set = own.set.union(&taken);
                own.time = writer.time.to_owned();
            }
        }
        None => managers.push(Entry::new(writer, "Update", taken)),
    }
    store(new, managers);
}

/// Applies a configuration (YAML or JSON) to an object, or to nothing, which creates it. The outcome has its
/// `managedFields`, and no new defaults.
///
/// # Errors
/// 400 for what cannot be read, 500 with upstream's text for fields that do not fit the type, 409 with a cause each for
/// fields that others own, unless `force`.
pub fn apply(
    live: Option<&Value>,
    patch: &[u8],
    writer: &Writer<'_>,
    force: bool,
    schema: &TypeSchema,
) -> Result<Value, ApiError> {
    let config =
        codec::parse_yaml(patch).map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
    let text = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default();
    if !config.is_object() {
        return Err(ApiError::bad_request("error decoding YAML: the configuration is no object"));
    }
    if config.pointer("/metadata/managedFields").is_some_and(|m| !m.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    if text("apiVersion") != writer.api_version {
        return Err(ApiError::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {}, expected: {}",
            text("apiVersion"),
            writer.api_version
        )));
    }
    walk::check(&config, schema).map_err(|why| {
        let meta = |name: &str| {
            config.pointer(&format!("/metadata/{name}")).and_then(Value::as_str).unwrap_or_default()
        };
        let group = if writer.api_version.contains('/') { "" } else { "/" };
        ApiError::plain_internal(format!(
            "failed to create typed patch object ({}/{}; {group}{}, Kind={}): {why}",
            meta("namespace"),
            meta("name"),
            writer.api_version,
            text("kind")
        ))
    })?;
    let mut managers = live.map(entries).unwrap_or_default();
    let base = live.map_or_else(|| blank(schema), without_entries);
    if live.is_some() && managers.is_empty() {
        // Fields of an object that was not tracked have an owner from now on.
        let first = Writer { manager: "before-first-apply", subresource: "", ignored: &[], ..writer.clone() };
        let set = owned(walk::compare(&blank(schema), &base, schema).added, &first);
        managers.push(Entry::new(&first, "Update", set));
    }
    let merged = walk::merge(&base, &config, schema);
    let set = owned(walk::field_set(&config, schema), writer);
    let last = managers.iter().find(|m| m.is(writer, "Apply")).map(|m| m.set.clone());
    let mut own = Entry::new(writer, "Apply", set);
    let mut others: Vec<Entry> = managers.into_iter().filter(|m| !m.is(writer, "Apply")).collect();
    let mut result = merged;
    if let Some(last) = last.as_ref().filter(|l| !l.is_empty()) {
        let kept = others.iter().fold(own.set.clone(), |all, m| all.union(&m.set));
        let gone = walk::with_parents(last, schema).difference(&walk::with_parents(&kept, schema));
        walk::remove(&mut result, &gone, schema);
    }
    let (mut result, _) = codec::decode_value(result, schema).map_err(ApiError::bad_request)?;
    let difference = walk::compare(&base, &result, schema);
    let changed = difference.added.union(&difference.modified);
    let mut causes = Vec::new();
    for other in &mut others {
        let conflict = other.set.intersection(&changed);
        if !conflict.is_empty() {
            if !force {
                causes.extend(conflict.paths().into_iter().map(|path| (other.shown(), path)));
            }
            other.set = other.set.difference(&conflict);
        }
        other.set = other.set.difference(&difference.removed);
    }
    if !causes.is_empty() {
        return Err(conflicts(causes));
    }
    // The time is that of the manager's last change to the object: one that never changed it has none.
    if live.is_some() && base == result {
        let before = live.map(entries).unwrap_or_default().into_iter().find(|m| m.is(writer, "Apply"));
        own.time = before.map(|before| before.time).unwrap_or_default();
    }
    others.push(own);
    store(&mut result, others);
    Ok(result)
}

fn conflicts(mut all: Vec<(String, String)>) -> ApiError {
    all.sort();
    let message = if let [(manager, path)] = all.as_slice() {
        format!("Apply failed with 1 conflict: conflict with {manager}: {path}")
    } else {
        let mut lines = Vec::new();
        let mut last = "";
        for (manager, path) in &all {
            if manager != last {
                lines.push(format!("conflicts with {manager}:"));
                last = manager;
            }
            lines.push(format!("- {path}"));
        }
        format!("Apply failed with {} conflicts: {}", all.len(), lines.join("\n"))
    };
    let causes = all
        .into_iter()
        .map(|(manager, field)| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {manager}"),
            field,
        })
        .collect();
    ApiError::apply_conflict(message, causes)
}

#[cfg(test)]
mod tests;
