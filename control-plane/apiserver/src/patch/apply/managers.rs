//! `metadata.managedFields` as a list of managers: reading, writing, order, cap.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::set::FieldSet;

/// Entries of updates beyond this number are merged, the oldest first.
const MAX_UPDATE_MANAGERS: usize = 10;

/// The manager that merged entries go to.
const OLD_CHANGES: &str = "ancient-changes";

/// What a manager did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// Who an entry belongs to: entries with the same identity are one. The version does not count for applied entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
}

/// One entry of `managedFields`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) id: Identity,
    /// The version that the fields are named in.
    pub(super) api_version: String,
    /// RFC 3339, empty when the manager never changed the object.
    pub(super) time: String,
    pub(super) set: FieldSet,
}

impl Entry {
    pub(super) fn new(
        manager: &str,
        operation: Operation,
        api_version: &str,
        subresource: &str,
        time: &str,
        set: FieldSet,
    ) -> Self {
        let named = if manager.is_empty() { "unknown" } else { manager };
        let id = Identity {
            manager: named.to_owned(),
            operation,
            api_version: if operation == Operation::Apply { String::new() } else { api_version.to_owned() },
            subresource: subresource.to_owned(),
        };
        Entry { id, api_version: api_version.to_owned(), time: time.to_owned(), set }
    }

    pub(super) fn applied(&self) -> bool {
        self.id.operation == Operation::Apply
    }

    /// The manager as conflicts name it.
    pub(super) fn shown(&self) -> String {
        let mut out = crate::error::quote(&self.id.manager);
        if !self.id.subresource.is_empty() {
            out.push_str(&format!(" with subresource {}", crate::error::quote(&self.id.subresource)));
        }
        if !self.applied() {
            out.push_str(&format!(" using {}", self.id.api_version));
        }
        out
    }

    /// Seconds, 0 without a time.
    fn seconds(&self) -> i64 {
        self.time.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second)
    }
}

/// Reads a list of entries.
///
/// # Errors
/// Upstream's text for the first entry that says nothing, or nothing readable.
pub(super) fn decode(list: Option<&Value>) -> Result<Vec<Entry>, String> {
    let mut out: Vec<Entry> = Vec::new();
    for (i, e) in list.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let text = |name: &str| e.get(name).and_then(Value::as_str).unwrap_or_default();
        let operation = match text("operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        if text("apiVersion").is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        match text("fieldsType") {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
            other => {
                let shown = crate::error::quote(other);
                return Err(format!("invalid fieldsType {shown} in managed fields entry {i}"));
            }
        }
        let fields = e.get("fieldsV1").unwrap_or(&Value::Null);
        let set =
            FieldSet::from_value(fields).map_err(|()| "error decoding versioned set: error decoding set")?;
        let mut entry = Entry::new(
            text("manager"),
            operation,
            text("apiVersion"),
            text("subresource"),
            text("time"),
            set,
        );
        // An entry without a name keeps none.
        entry.id.manager = text("manager").to_owned();
        out.retain(|other| other.id != entry.id);
        out.push(entry);
    }
    Ok(out)
}

/// The entries of an object; of what cannot be read, none.
pub(super) fn of(object: &Value) -> Vec<Entry> {
    decode(object.pointer("/metadata/managedFields")).unwrap_or_default()
}

/// The list as it is written: applied entries first, then by time and name.
pub(super) fn encode(mut entries: Vec<Entry>) -> Vec<Value> {
    entries.sort_by(|a, b| {
        let key = |e: &Entry| (e.id.operation, e.seconds());
        key(a).cmp(&key(b)).then_with(|| {
            (&a.id.manager, &a.api_version, &a.id.subresource).cmp(&(
                &b.id.manager,
                &b.api_version,
                &b.id.subresource,
            ))
        })
    });
    entries
        .into_iter()
        .map(|e| {
            let operation = if e.applied() { "Apply" } else { "Update" };
            let mut out = json!({"operation": operation, "apiVersion": e.api_version,
                                 "fieldsType": "FieldsV1", "fieldsV1": e.set.to_value()});
            for (name, value) in
                [("manager", &e.id.manager), ("time", &e.time), ("subresource", &e.id.subresource)]
            {
                if !value.is_empty() {
                    out[name] = value.as_str().into();
                }
            }
            out
        })
        .collect()
}

/// Writes the entries into an object.
pub(super) fn store(object: &mut Value, entries: Vec<Entry>) {
    let Value::Object(object) = object else { return };
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(metadata) = metadata else { return };
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), encode(entries).into());
    }
}

/// Takes the list out of an object.
pub(super) fn take(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata").and_then(Value::as_object_mut)?.remove("managedFields")
}

/// Whether a list given by a client says that tracking is to begin anew.
pub(super) fn resets(list: &Value) -> bool {
    match list.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Merges the oldest updates until their number is allowed.
pub(super) fn cap(entries: &mut Vec<Entry>) {
    let mut updates: Vec<Identity> = {
        let mut all: Vec<&Entry> = entries.iter().filter(|e| !e.applied()).collect();
        if all.len() <= MAX_UPDATE_MANAGERS {
            return;
        }
        all.sort_by(|a, b| a.seconds().cmp(&b.seconds()).then_with(|| order(&a.id).cmp(&order(&b.id))));
        all.into_iter().map(|e| e.id.clone()).collect()
    };
    let mut length = updates.len();
    let mut first: BTreeMap<String, Identity> = BTreeMap::new();
    for id in updates.drain(..) {
        if length <= MAX_UPDATE_MANAGERS {
            break;
        }
        let Some(at) = entries.iter().position(|e| e.id == id) else { continue };
        let version = entries.get(at).map(|e| e.api_version.clone()).unwrap_or_default();
        let Some(first_id) = first.get(&version) else {
            first.insert(version, id);
            continue;
        };
        let bucket = Entry::new(OLD_CHANGES, Operation::Update, &version, "", "", FieldSet::default());
        if !entries.iter().any(|e| e.id == bucket.id)
            && let Some(oldest) = entries.iter_mut().find(|e| e.id == *first_id)
        {
            oldest.id = bucket.id.clone();
        }
        if id == bucket.id {
            continue;
        }
        let merged = entries.remove(at);
        if let Some(bucket) = entries.iter_mut().find(|e| e.id == bucket.id) {
            bucket.set = std::mem::take(&mut bucket.set).union(&merged.set);
            // The merged entry is the younger one.
            bucket.time = merged.time;
        }
        length -= 1;
    }
}

/// The order of identities: that of their JSON texts.
fn order(id: &Identity) -> (&str, Operation, &str, &str) {
    (&id.manager, id.operation, &id.api_version, &id.subresource)
}
