//! The `autoscaling/v1` Scale view of an object: where its replica count is.

use serde_json::{Map, Value, json};

use super::Resource;
use crate::object::{self, meta};

/// Where the numbers of a Scale are in an object, as paths of field names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScalePaths {
    /// The wanted count.
    pub(crate) wanted: Vec<String>,
    /// The present count.
    pub(crate) present: Vec<String>,
    /// The selector of the replicas: a LabelSelector, a map of labels, or a text.
    pub(crate) selector: Option<Vec<String>>,
}

fn path(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

impl ScalePaths {
    /// The paths of a resource: what its definition says, or those that all built-in kinds share.
    pub(crate) fn of(resource: &Resource) -> Self {
        if let Some(paths) = resource.custom.as_ref().and_then(|custom| custom.scale.clone()) {
            return paths;
        }
        ScalePaths {
            wanted: path(&["spec", "replicas"]),
            present: path(&["status", "replicas"]),
            selector: Some(path(&["spec", "selector"])),
        }
    }

    /// The Scale of an object.
    pub(crate) fn scale(&self, object: &Value) -> Value {
        let metadata = object.get("metadata").cloned().unwrap_or_default();
        let mut out = json!({
            "kind": "Scale", "apiVersion": "autoscaling/v1",
            "metadata": {"name": meta(object, "name")},
            "spec": {},
            "status": {"replicas": at(object, &self.present).and_then(Value::as_i64).unwrap_or_default()},
        });
        for field in ["namespace", "uid", "resourceVersion", "creationTimestamp"] {
            object::set_or_remove(object::meta_mut(&mut out), field, metadata.get(field).cloned());
        }
        if let Some(count) = at(object, &self.wanted).and_then(Value::as_i64).filter(|r| *r != 0) {
            out["spec"]["replicas"] = count.into();
        }
        if let Some(selector) = self.selector.as_ref().and_then(|path| at(object, path)).and_then(text_of) {
            out["status"]["selector"] = selector.into();
        }
        out
    }

    /// Where the wanted count is, as definitions say it: `.spec.replicas`.
    pub(crate) fn wanted_text(&self) -> String {
        format!(".{}", self.wanted.join("."))
    }

    /// Whether an object says the wanted count.
    pub(crate) fn has_count(&self, object: &Value) -> bool {
        at(object, &self.wanted).is_some()
    }

    /// Sets the wanted count; objects on the way are made.
    pub(crate) fn set(&self, object: &mut Value, count: i64) {
        let Some((last, way)) = self.wanted.split_last() else { return };
        let mut node = object;
        for name in way {
            if !node.is_object() {
                *node = Value::Object(Map::new());
            }
            let Value::Object(map) = node else { return };
            node = map.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()));
        }
        if !node.is_object() {
            *node = Value::Object(Map::new());
        }
        if let Value::Object(map) = node {
            map.insert(last.clone(), count.into());
        }
    }
}

fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, name| value.get(name)).filter(|v| !v.is_null())
}

/// A selector as text; none when it selects nothing in particular.
fn text_of(selector: &Value) -> Option<String> {
    match selector {
        Value::String(text) => Some(text.clone()).filter(|t| !t.is_empty()),
        Value::Object(map) if map.contains_key("matchLabels") || map.contains_key("matchExpressions") => {
            Some(crate::table::selector(Some(selector))).filter(|text| text != "<none>")
        }
        Value::Object(map) => {
            let labels: Vec<String> =
                map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
            Some(labels.join(",")).filter(|text| !text.is_empty())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_of_every_kind_become_text() {
        assert_eq!(text_of(&json!({"matchLabels": {"a": "b"}})).as_deref(), Some("a=b"));
        assert_eq!(text_of(&json!({"b": "2", "a": "1"})).as_deref(), Some("a=1,b=2"));
        assert_eq!(text_of(&json!("x in (y)")).as_deref(), Some("x in (y)"));
        assert_eq!(text_of(&json!({})), None);
    }

    #[test]
    fn counts_at_any_path() {
        let paths = ScalePaths {
            wanted: path(&["spec", "size", "n"]),
            present: path(&["status", "n"]),
            selector: None,
        };
        let mut object = json!({"metadata": {"name": "x"}, "status": {"n": 2}});
        paths.set(&mut object, 7);
        let scale = paths.scale(&object);
        assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(7), &json!(2)));
    }
}
