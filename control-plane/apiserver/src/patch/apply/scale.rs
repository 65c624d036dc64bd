//! `managedFields` between an object and its scale subresource, where the only field is the replica count.

use serde_json::Value;

use super::managers::{self, Entry};
use super::set::FieldSet;

const SCALE: &str = "autoscaling/v1";
const REPLICAS: &[&str] = &["spec", "replicas"];

/// The entries of the scale: of the managers that own the count, which is at `path` in the object's `versions`.
#[must_use]
pub fn to_scale(object: &Value, versions: &[&str], path: &[&str]) -> Vec<Value> {
    let owners = managers::of(object).into_iter();
    let entries = owners.filter(|e| versions.contains(&e.api_version.as_str()) && e.set.has(path));
    let entries =
        entries.map(|e| Entry { api_version: SCALE.to_owned(), set: FieldSet::of_fields(&[REPLICAS]), ..e });
    managers::encode(entries.collect())
}

/// The entries of the object after a write of the scale, whose entries are in `scale`.
#[must_use]
pub fn from_scale(
    object: &Value,
    scale: &Value,
    api_version: &str,
    versions: &[&str],
    path: &[&str],
) -> Vec<Value> {
    let count = FieldSet::of_fields(&[path]);
    let parents = managers::of(object);
    let mut scales = managers::of(scale);
    let mut out: Vec<Entry> = Vec::new();
    for parent in &parents {
        if !versions.contains(&parent.api_version.as_str()) {
            continue;
        }
        let mut entry = parent.clone();
        if parent.set.has(path) {
            match scales.iter().position(|s| s.id == parent.id) {
                Some(at) => drop(scales.remove(at)),
                // Another manager has the count now.
                None => entry.set = parent.set.difference(&count),
            }
        }
        if !entry.set.is_empty() {
            out.push(entry);
        }
    }
    for scale in scales.into_iter().filter(|s| s.set.has(REPLICAS)) {
        // The time is that of the same manager's entry of the object, as upstream has it.
        let time = parents.iter().find(|p| p.id == scale.id).map(|p| p.time.clone()).unwrap_or_default();
        out.retain(|e| e.id != scale.id);
        out.push(Entry { api_version: api_version.to_owned(), time, set: count.clone(), ..scale });
    }
    managers::encode(out)
}
