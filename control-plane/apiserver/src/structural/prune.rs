//! Pruning: what a schema does not know is removed.

use super::{Additional, Path, Structural};
use serde_json::Value;

/// Members that every resource has; those of the root and of embedded resources are not the schema's.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes unknown fields of a resource; the paths of what was removed, sorted.
pub(crate) fn prune(object: &mut Value, schema: &Structural) -> Vec<String> {
    let mut gone = Vec::new();
    let mut pruner = Pruner { path: Path::default(), gone: &mut gone };
    pruner.members(object, Some(schema), true, false);
    gone.sort();
    gone
}

struct Pruner<'a> {
    path: Path,
    gone: &'a mut Vec<String>,
}

impl Pruner<'_> {
    fn walk(&mut self, value: &mut Value, schema: Option<&Structural>) {
        self.members(value, schema, schema.is_some_and(|s| s.embedded), false);
    }

    /// `keep`: unknown fields stay although the schema itself does not say so.
    fn members(&mut self, value: &mut Value, schema: Option<&Structural>, embedded: bool, keep: bool) {
        let keep = keep || schema.is_some_and(|s| s.preserve_unknown);
        match value {
            Value::Object(map) => map.retain(|name, member| {
                if embedded && META.contains(&name.as_str()) {
                    return true;
                }
                let place = self.path.len();
                self.path.push_field(name);
                let stays = match known(schema, name) {
                    Some(inner) => {
                        self.walk(member, inner);
                        true
                    }
                    None => {
                        if !keep {
                            self.gone.push(self.path.as_str().to_owned());
                        }
                        keep
                    }
                };
                self.path.truncate(place);
                stays
            }),
            Value::Array(items) => {
                let inner = schema.and_then(|s| s.items.as_deref());
                if keep && inner.is_none() {
                    return;
                }
                for (at, item) in items.iter_mut().enumerate() {
                    let place = self.path.len();
                    self.path.push_index(at);
                    self.members(item, inner, inner.is_some_and(|s| s.embedded), keep);
                    self.path.truncate(place);
                }
            }
            _ => {}
        }
    }
}

/// The schema of a member that is known: none when nothing is said of what it holds.
fn known<'s>(schema: Option<&'s Structural>, name: &str) -> Option<Option<&'s Structural>> {
    let schema = schema?;
    match (schema.properties.get(name), schema.additional.as_ref()) {
        (Some(property), _) => Some(Some(property)),
        (None, Some(Additional::Schema(inner))) => Some(Some(inner.as_ref())),
        (None, Some(Additional::Any)) => Some(None),
        (None, None) => None,
    }
}
