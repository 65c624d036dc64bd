//! The way from client-side to server-side apply: what `kubectl apply` noted in its annotation is not in conflict
//! with the same configuration applied by the manager `kubectl`.

use serde_json::Value;

use super::managers::Entry;
use super::set::FieldSet;
use super::{Writer, check, compare, shape};
use crate::codec;

/// The manager whose conflicts the annotation resolves.
pub(super) const MANAGER: &str = "kubectl";

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// All annotations together may have this many bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

fn annotation(object: &Value) -> Option<&str> {
    let text = object.get("metadata")?.get("annotations")?.get(ANNOTATION)?.as_str()?;
    (!text.is_empty()).then_some(text)
}

/// Fields of the last configuration that are still as it set them; none when there is no usable annotation.
pub(super) fn allowed(live: &Value, writer: &Writer<'_, '_>) -> Option<FieldSet> {
    let last = codec::parse_json(annotation(live)?.as_bytes()).ok()?;
    if last.get("apiVersion").and_then(Value::as_str) != Some(writer.api_version) {
        return None;
    }
    check::check(&last, writer.schema).ok()?;
    let difference = compare::compare(&last, live, writer.schema);
    let set = shape::field_set(&last, writer.schema);
    Some(set.difference(&difference.modified).difference(&difference.added).difference(&difference.removed))
}

/// The conflicts about other fields.
pub(super) fn without(conflicts: Vec<(Entry, FieldSet)>, allowed: &FieldSet) -> Vec<(Entry, FieldSet)> {
    let rest = conflicts.into_iter().map(|(entry, set)| (entry, set.difference(allowed)));
    rest.filter(|(_, set)| !set.is_empty()).collect()
}

/// Brings the annotation, where there is one, up to date with what was applied.
pub(super) fn refresh(object: &mut Value, config: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(map) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        map.remove(ANNOTATION);
    }
    if let Some(map) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        map.insert(ANNOTATION.to_owned(), format!("{config}\n").into());
        let size: usize = map.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
        if size > MAX_ANNOTATIONS {
            map.remove(ANNOTATION);
        }
    }
}
