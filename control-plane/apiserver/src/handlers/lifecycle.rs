//! Rules that hold for objects of every kind around creation and update: metadata, namespaces.

use super::Context;
use crate::error::ApiError;
use crate::object::{self, is_deleting, meta, meta_mut, str_at};
use rand::Rng;
use serde_json::{Value, json};

/// Letters and digits of generated names, without vowels and look-alikes.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest base of a generated name.
const MAX_BASE: usize = 63 - 5;

/// A name from a generateName.
pub(crate) fn generated(base: &str) -> String {
    let mut rng = rand::rng();
    let mut out: String = base.chars().take(MAX_BASE).collect();
    for _ in 0..5 {
        let at = rng.random_range(0..SUFFIX.len());
        out.push(SUFFIX.get(at).copied().unwrap_or(b'x') as char);
    }
    out
}

/// Checks name and namespace of a body against the path, and fills the namespace in.
pub(super) fn place(context: &Context, object: &mut Value) -> Result<(), ApiError> {
    let namespace = context.namespace().to_owned();
    let own = meta(object, "namespace").to_owned();
    if context.resource.namespaced {
        if own.is_empty() {
            meta_mut(object).insert("namespace".into(), namespace.into());
        } else if own != namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    } else {
        meta_mut(object).remove("namespace");
    }
    let name = meta(object, "name").to_owned();
    if !context.info.name.is_empty() {
        if name.is_empty() {
            meta_mut(object).insert("name".into(), context.info.name.clone().into());
        } else if name != context.info.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                context.info.name
            )));
        }
    }
    Ok(())
}

/// Metadata of a new object that only the server sets.
pub(super) fn new_metadata(object: &mut Value, generation: bool) {
    if generation {
        meta_mut(object).remove("generation");
    }
    let metadata = meta_mut(object);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), object::now().into());
    if generation {
        metadata.insert("generation".into(), 1.into());
    }
    tidy(object);
}

/// Drops owner references that are listed twice; the warning about them. A patch meets them later than other writes.
pub(super) fn single_owners(object: &mut Value, patched: bool) -> Option<String> {
    let owners = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut)?;
    let mut seen: Vec<Value> = Vec::new();
    let mut twice: Vec<String> = Vec::new();
    owners.retain(|owner| {
        if seen.contains(owner) {
            twice.push(str_at(owner, &["uid"]).to_owned());
            return false;
        }
        seen.push(owner.clone());
        true
    });
    let when = if patched { " after mutating admission happens" } else { "" };
    (!twice.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, \
             and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        )
    })
}

/// Leaves out metadata that is empty, as upstream's serialization does.
pub(super) fn tidy(object: &mut Value) {
    let metadata = meta_mut(object);
    for field in ["labels", "annotations", "finalizers", "ownerReferences", "generateName", "managedFields"] {
        let empty = match metadata.get(field) {
            Some(Value::Null) => true,
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::String(text)) => text.is_empty(),
            _ => false,
        };
        if empty {
            metadata.remove(field);
        }
    }
}

/// Metadata that an update cannot change, taken from the old object.
pub(super) fn keep_metadata(new: &mut Value, old: &Value) {
    let metadata = meta_mut(new);
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
    {
        let value = old.pointer("/metadata").and_then(|m| m.get(field)).cloned();
        object::set_or_remove(metadata, field, value);
    }
    metadata.remove("selfLink");
    tidy(new);
}

/// Whether anything but metadata and status differs.
pub(super) fn spec_differs(new: &Value, old: &Value) -> bool {
    let part = |object: &Value| -> Vec<(String, Value)> {
        object
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status" | "kind" | "apiVersion"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    let (mut a, mut b) = (part(new), part(old));
    a.sort_by(|x, y| x.0.cmp(&y.0));
    b.sort_by(|x, y| x.0.cmp(&y.0));
    a != b
}

/// Refuses creation in a namespace that is missing or being deleted.
pub(super) async fn namespace_open(context: &Context, object_name: &str) -> Result<(), ApiError> {
    if !context.resource.namespaced {
        return Ok(());
    }
    let name = context.namespace();
    let Some(namespaces) = context.core.builtin.find("", "v1", "namespaces") else { return Ok(()) };
    // What the cache calls active is active, or was a moment ago; in doubt the store knows.
    let cache = context.core.cache(namespaces);
    cache.wait_loaded().await?;
    let cached = cache.get("", name);
    if cached.is_some_and(|entry| entry.field(namespaces, "status.phase") == Some("Active")) {
        return Ok(());
    }
    let key = namespaces.key("", name);
    let found = crate::storage::read(&context.core.store, namespaces, &key).await?;
    let Some(namespace) = found else { return Err(ApiError::not_found("", "namespaces", name)) };
    let terminating =
        is_deleting(&namespace.object) || str_at(&namespace.object, &["status", "phase"]) == "Terminating";
    if terminating {
        let why = format!("unable to create new content in namespace {name} because it is being terminated");
        return Err(ApiError::forbidden(
            context.resource.group(),
            context.resource.plural(),
            object_name,
            &why,
        )
        .with_cause(
            "NamespaceTerminating",
            &format!("namespace {name} is being terminated"),
            "metadata.namespace",
        ));
    }
    Ok(())
}

/// The Status of a deletion that left nothing behind.
pub(super) fn success(context: &Context, object: &Value) -> Value {
    let mut details = json!({"name": meta(object, "name"), "kind": context.resource.plural(),
        "uid": meta(object, "uid")});
    if !context.resource.group().is_empty() {
        details["group"] = context.resource.group().into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
