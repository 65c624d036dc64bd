//! Server-side apply and the bookkeeping of `metadata.managedFields`: pure functions from an object and a request to
//! the next object. The rules are those of apimachinery's `util/managedfields` and of structured-merge-diff.

mod check;
mod compare;
mod last_applied;
mod managers;
mod merge;
mod scale;
mod set;
mod shape;

use serde_json::{Map, Value};

pub use scale::{from_scale, to_scale};

use self::compare::Comparison;
use self::managers::{Entry, Operation};
use self::set::FieldSet;
use crate::codec;
use crate::error::{ApiError, Cause};
use crate::schema::TypeSchema;

/// Paths of field names.
pub type Paths = &'static [&'static [&'static str]];

/// Which fields an endpoint writes; it owns no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owns {
    /// All but what is at and below these paths.
    AllBut(Paths),
    /// What is at and below these paths; `*` is any list item or name.
    Only(Paths),
}

impl Owns {
    /// Every field.
    pub const ALL: Owns = Owns::AllBut(&[]);

    fn filter(self, set: FieldSet) -> FieldSet {
        match self {
            Owns::AllBut(paths) => set.without(paths),
            Owns::Only(paths) => set.only(paths),
        }
    }
}

/// Gives an object in another version of its kind, with its type; none when there is no such version.
pub type Convert<'a, 's> = dyn Fn(&Value, &str) -> Option<(Value, &'s TypeSchema)> + 'a;

/// As [`codec::decode_value`].
pub type Decode<'a> = dyn Fn(Value, &TypeSchema) -> Result<(Value, Vec<String>), String> + 'a;

/// Who writes, and how.
#[derive(Clone, Copy)]
pub struct Writer<'a, 's> {
    /// Name of the field manager; an empty one is `unknown`.
    pub manager: &'a str,
    /// The subresource written through, empty for the object itself.
    pub subresource: &'a str,
    /// `apiVersion` of the request's object.
    pub api_version: &'a str,
    /// RFC 3339, in whole seconds.
    pub time: &'a str,
    /// Fields that this endpoint writes.
    pub owns: Owns,
    /// The type of the request's object.
    pub schema: &'s TypeSchema,
    /// Reads what was computed as if it had been sent.
    pub decode: &'a Decode<'a>,
    /// Other versions of the object.
    pub convert: &'a Convert<'a, 's>,
}

impl<'s> Writer<'_, 's> {
    fn entry(&self, operation: Operation, set: FieldSet) -> Entry {
        Entry::new(self.manager, operation, self.api_version, self.subresource, self.time, set)
    }

    /// The object in a version; none when there is no such version.
    fn version(&self, object: &Value, api_version: &str) -> Option<(Value, &'s TypeSchema)> {
        if object.get("apiVersion").and_then(Value::as_str) == Some(api_version) {
            return Some((object.clone(), self.schema_of(api_version)?));
        }
        (self.convert)(object, api_version)
    }

    fn schema_of(&self, api_version: &str) -> Option<&'s TypeSchema> {
        if api_version == self.api_version {
            return Some(self.schema);
        }
        (self.convert)(&Value::Object(Map::new()), api_version).map(|(_, schema)| schema)
    }
}

/// Fields that nobody owns.
const UNOWNED: Paths = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// The manager of what an object had before anything was applied to it.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

fn without_entries(object: &Value) -> Value {
    let mut object = object.clone();
    managers::take(&mut object);
    object
}

/// The object of a type with nothing set.
fn blank(schema: &TypeSchema) -> Value {
    codec::decode_value(Value::Object(Map::new()), schema).map(|(v, _)| v).unwrap_or_default()
}

fn stripped(set: FieldSet) -> FieldSet {
    set.difference(&FieldSet::of_fields(UNOWNED))
}

/// What a change from `old` to `new` does to the fields of every manager but `own`: they lose what was changed and
/// what is gone. Returns what changed in the writer's version, or who would lose what when `force` is not set.
fn settle(
    old: &Value,
    new: &Value,
    entries: &mut Vec<Entry>,
    own: Option<&managers::Identity>,
    writer: &Writer<'_, '_>,
    force: bool,
) -> Result<Comparison, Vec<(Entry, FieldSet)>> {
    let filtered = |c: Comparison| c.map(|set| writer.owns.filter(set));
    let here = filtered(compare::compare(old, new, writer.schema));
    let mut versions: Vec<(String, Option<Comparison>)> = Vec::new();
    for entry in entries.iter().filter(|e| Some(&e.id) != own && e.api_version != writer.api_version) {
        if versions.iter().all(|(version, _)| *version != entry.api_version) {
            let both =
                (writer.convert)(old, &entry.api_version).zip((writer.convert)(new, &entry.api_version));
            let there = both.map(|((old, schema), (new, _))| filtered(compare::compare(&old, &new, schema)));
            versions.push((entry.api_version.clone(), there));
        }
    }
    // Nobody can own fields of a version that is no more.
    entries.retain(|e| {
        Some(&e.id) == own || !versions.iter().any(|(v, there)| *v == e.api_version && there.is_none())
    });
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|e| Some(&e.id) != own) {
        let there = versions.iter().find(|(v, _)| *v == entry.api_version).and_then(|(_, c)| c.as_ref());
        let there = there.unwrap_or(&here);
        let lost = entry.set.intersection(&there.taken());
        if !lost.is_empty() && !force {
            conflicts.push((entry.clone(), lost));
            continue;
        }
        entry.set = entry.set.difference(&lost).difference(&there.removed);
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    entries.retain(|e| !e.set.is_empty());
    Ok(here)
}

/// Notes an update in the entries.
fn update(old: &Value, new: &Value, mut entries: Vec<Entry>, writer: &Writer<'_, '_>) -> Vec<Entry> {
    let Ok(here) = settle(old, new, &mut entries, None, writer, true) else { return entries };
    let set = stripped(writer.owns.filter(here.taken().difference(&here.removed)));
    if !set.is_empty() {
        let new = writer.entry(Operation::Update, set);
        match entries.iter_mut().find(|e| e.id == new.id) {
            Some(own) => {
                own.set = new.set.union(&own.set);
                own.time = new.time;
            }
            None => entries.push(new),
        }
    }
    managers::cap(&mut entries);
    entries
}

/// Notes in `managedFields` who changed what by a create, an update or a patch; `live` is none for a create. A list
/// that the client gives counts instead of the live one when it can be read; an empty one ends tracking. An object
/// that was never tracked stays so.
pub fn track(live: Option<&Value>, new: &mut Value, writer: &Writer<'_, '_>) {
    let given = managers::take(new);
    let of_live = || live.map(managers::of).unwrap_or_default();
    let entries = match given {
        Some(list) if writer.subresource.is_empty() => {
            if managers::resets(&list) {
                Vec::new()
            } else {
                let given = managers::decode(Some(&list)).unwrap_or_default();
                if given.is_empty() { of_live() } else { given }
            }
        }
        _ => of_live(),
    };
    if entries.is_empty() && live.is_some() {
        return;
    }
    let entries = match live {
        Some(live) => update(&without_entries(live), new, entries, writer),
        None => update(&blank(writer.schema), new, entries, writer),
    };
    managers::store(new, entries);
}

/// Lets an object that differs from the old one in the times of its entries alone keep the old times.
pub fn keep_times(new: &mut Value, old: &Value) {
    let list = |object: &Value| -> Vec<Value> {
        object.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let (olds, news) = (list(old), list(new));
    if news.is_empty() || olds.len() != news.len() || olds == news {
        return;
    }
    let timeless = |entry: &Value| {
        let mut entry = entry.clone();
        if let Some(map) = entry.as_object_mut() {
            map.remove("time");
        }
        entry
    };
    if olds.iter().zip(&news).any(|(a, b)| timeless(a) != timeless(b)) {
        return;
    }
    let same = |a: &Value, b: &Value, but: &[&str]| {
        let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
        let rest = |m: &'_ Map<String, Value>| m.keys().filter(|k| !but.contains(&k.as_str())).count();
        rest(a) == rest(b)
            && a.iter().filter(|(k, _)| !but.contains(&k.as_str())).all(|(k, v)| b.get(k) == Some(v))
    };
    let metadata = |o: &Value| o.get("metadata").cloned().unwrap_or_default();
    if same(new, old, &["metadata"])
        && same(&metadata(new), &metadata(old), &["managedFields", "resourceVersion"])
        && let Some(map) = new.get_mut("metadata").and_then(Value::as_object_mut)
    {
        map.insert("managedFields".to_owned(), olds.into());
    }
}

/// A configuration to apply.
pub struct Configuration<'a> {
    /// The object, as it was sent.
    pub object: &'a Value,
    /// Takes fields that others own.
    pub force: bool,
    /// The kind it must be.
    pub kind: &'a str,
}

/// Applies a configuration to an object, or to nothing, which creates it. The outcome has its `managedFields`, and no
/// new defaults; none means that the object needs no change, but its `managedFields` may.
///
/// # Errors
/// 400 for another kind or for `managedFields` in the configuration, 500 with upstream's text for fields that do not
/// fit the type, 409 with a cause each for fields that others own, unless it is forced.
pub fn apply(
    live: Option<&Value>,
    configuration: &Configuration<'_>,
    writer: &Writer<'_, '_>,
) -> Result<Value, ApiError> {
    let config = configuration.object;
    let text = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default();
    let slash = if text("apiVersion").contains('/') { "" } else { "/" };
    let gvk = format!("{slash}{}, Kind={}", text("apiVersion"), text("kind"));
    if text("apiVersion") != writer.api_version || text("kind") != configuration.kind {
        return Err(ApiError::bad_request(format!("invalid object type: {gvk}")));
    }
    let listed = managers::decode(live.and_then(|l| l.pointer("/metadata/managedFields")))
        .map_err(|why| ApiError::plain_internal(format!("failed to decode managed fields: {why}")))?;
    if config.pointer("/metadata/managedFields").is_some_and(Value::is_array) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    check::check(config, writer.schema).map_err(|why| {
        let meta = |name: &str| config.pointer(&format!("/metadata/{name}")).and_then(Value::as_str);
        ApiError::plain_internal(format!(
            "failed to create typed patch object ({}/{}; {gvk}): {why}",
            meta("namespace").unwrap_or_default(),
            meta("name").unwrap_or_default(),
        ))
    })?;
    let base = live.map_or_else(|| blank(writer.schema), without_entries);
    let mut entries = listed;
    if live.is_some() && entries.is_empty() {
        // Fields of an object that was not tracked have an owner from now on.
        let first = Writer { manager: BEFORE_FIRST_APPLY, ..*writer };
        entries = update(&blank(writer.schema), &base, Vec::new(), &first);
    }
    let outcome = merged(&base, config, entries.clone(), writer, configuration.force).or_else(|conflicts| {
        // What client-side apply set and nobody changed since may be taken over by kubectl.
        let rest = match conflicts {
            Failure::Other(error) => return Err(Failure::Other(error)),
            Failure::Conflicts(all) if writer.manager == last_applied::MANAGER => {
                match last_applied::allowed(&base, writer) {
                    Some(allowed) => last_applied::without(all, &allowed),
                    None => return Err(Failure::Conflicts(all)),
                }
            }
            Failure::Conflicts(all) => all,
        };
        if rest.is_empty() {
            merged(&base, config, entries, writer, true)
        } else {
            Err(Failure::Conflicts(rest))
        }
    });
    let (mut result, entries) = outcome.map_err(|failure| match failure {
        Failure::Conflicts(all) => conflict_error(all),
        Failure::Other(error) => error,
    })?;
    if writer.manager == last_applied::MANAGER {
        last_applied::refresh(&mut result, config);
    }
    managers::store(&mut result, entries);
    Ok(result)
}

/// Why a configuration was not merged.
enum Failure {
    Conflicts(Vec<(Entry, FieldSet)>),
    Other(ApiError),
}

fn merged(
    base: &Value,
    config: &Value,
    mut entries: Vec<Entry>,
    writer: &Writer<'_, '_>,
    force: bool,
) -> Result<(Value, Vec<Entry>), Failure> {
    let set = writer.owns.filter(shape::field_set(config, writer.schema));
    let mut own = writer.entry(Operation::Apply, set);
    let before = entries.iter().position(|e| e.id == own.id).map(|at| entries.remove(at));
    entries.push(own.clone());
    let mut result = merge::merge(base, config, writer.schema);
    if let Some(last) = before.as_ref().filter(|l| !l.set.is_empty()) {
        result = prune(result, last, &entries, writer);
    }
    // What is merged is compared as it was sent: a zero value that is not stored is a value, too.
    settle(base, &result, &mut entries, Some(&own.id), writer, force).map_err(Failure::Conflicts)?;
    entries.retain(|e| e.id != own.id);
    own.set = stripped(own.set);
    // The time is that of the manager's last change to the object: one that never changed it has none.
    if *base == result {
        own.time = before.map(|before| before.time).unwrap_or_default();
    }
    if !own.set.is_empty() {
        entries.push(own);
    }
    let (result, _) = (writer.decode)(result, writer.schema).map_err(|why| {
        let why = format!("failed to convert new object to proper version: {why}");
        Failure::Other(ApiError::plain_internal(why))
    })?;
    Ok((result, entries))
}

/// Removes what the manager applied last time and neither it nor anybody else claims now.
fn prune(merged: Value, last: &Entry, entries: &[Entry], writer: &Writer<'_, '_>) -> Value {
    let keep = merged.clone();
    let pruned = || -> Option<Value> {
        let (merged, schema) = writer.version(&merged, &last.api_version)?;
        let parents = |set: &FieldSet, schema| shape::with_parents(set, schema);
        let all = |value: &Value, schema| parents(&shape::field_set(value, schema), schema);
        let last_set = parents(&last.set, schema);
        let mut pruned = merged.clone();
        merge::remove(&mut pruned, &last_set, schema);
        // What others own, or the new configuration has, comes back: first in the version of the last one.
        let mut versions: Vec<&str> = vec![&last.api_version];
        for entry in entries {
            if !versions.contains(&entry.api_version.as_str()) {
                versions.push(&entry.api_version);
            }
        }
        for version in versions {
            let managed = entries
                .iter()
                .filter(|e| e.api_version == version)
                .fold(FieldSet::default(), |all, e| all.union(&e.set));
            let Some((of_merged, schema)) = writer.version(&merged, version) else { continue };
            let Some((of_pruned, _)) = writer.version(&pruned, version) else { continue };
            let kept = all(&of_pruned, schema).union(&parents(&managed, schema));
            let gone = all(&of_merged, schema).difference(&kept);
            let mut next = of_merged;
            merge::remove(&mut next, &gone, schema);
            pruned = next;
        }
        // What nobody owns comes back unless the last configuration had it.
        let (pruned, _) = writer.version(&pruned, &last.api_version)?;
        let gone = all(&merged, schema).difference(&all(&pruned, schema)).intersection(&last_set);
        let mut out = merged;
        merge::remove(&mut out, &gone, schema);
        writer.version(&out, writer.api_version).map(|(out, _)| out)
    };
    pruned().unwrap_or(keep)
}

fn conflict_error(mut all: Vec<(Entry, FieldSet)>) -> ApiError {
    all.sort_by_key(|(entry, _)| entry.shown());
    let all: Vec<(String, Vec<String>)> = all.iter().map(|(e, set)| (e.shown(), set.paths())).collect();
    let count: usize = all.iter().map(|(_, paths)| paths.len()).sum();
    let message = match all.as_slice() {
        [(manager, paths)] if count == 1 => {
            format!("Apply failed with 1 conflict: conflict with {manager}: {}", paths.concat())
        }
        _ => {
            let mut lines = Vec::new();
            for (manager, paths) in &all {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(paths.iter().map(|path| format!("- {path}")));
            }
            format!("Apply failed with {count} conflicts: {}", lines.join("\n"))
        }
    };
    let causes = all.into_iter().flat_map(|(manager, paths)| {
        paths.into_iter().map(move |field| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {manager}"),
            field,
        })
    });
    ApiError::apply_conflict(message, causes.collect())
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
