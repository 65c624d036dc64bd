//! The two forms of an Event: `v1`, which is stored, and `events.k8s.io/v1`.

use serde_json::{Map, Value};

/// Pairs of field names, `events.k8s.io` first.
const RENAMED: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(map: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = map.remove(from) {
        map.insert(to.to_owned(), value);
    }
}

/// `events.k8s.io/v1` → `v1`.
pub(super) fn to_core(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    for (new, old) in RENAMED {
        rename(map, new, old);
    }
    for field in ["reportingComponent", "reportingInstance"] {
        map.entry(field).or_insert_with(|| "".into());
    }
    map.insert("apiVersion".into(), "v1".into());
}

/// `v1` → `events.k8s.io/v1`.
pub(super) fn from_core(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    for (new, old) in RENAMED {
        rename(map, old, new);
    }
    // The core form writes these even when they are empty.
    for field in ["reportingController", "reportingInstance"] {
        if map.get(field).and_then(Value::as_str) == Some("") {
            map.remove(field);
        }
    }
    map.insert("apiVersion".into(), "events.k8s.io/v1".into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conversion_there_and_back_keeps_all() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "deprecatedCount": 3,
            "regarding": {"kind": "Pod"}, "reportingController": "c", "reportingInstance": "i", "metadata": {"name": "e"}});
        let mut other = event.clone();
        to_core(&mut other);
        assert_eq!(other["message"], "n");
        assert_eq!(other["involvedObject"]["kind"], "Pod");
        from_core(&mut other);
        assert_eq!(other, event);
    }
}
