//! JSON patch, RFC 6902, as the library that upstream uses understands it: negative indexes count from the end of a
//! list, what is not there equals null in a test, and the whole document cannot be named.

use serde_json::{Map, Value};

use crate::codec::{self, FieldValidation, Node};
use crate::error::ApiError;

/// A patch may have this many operations.
const MAX_OPERATIONS: usize = 10_000;

/// Bytes that the copy operations of one patch may add.
const MAX_COPIED: usize = 3 << 20;

/// Applies a patch. What is unknown or repeated in its operations is added to `strict`.
///
/// # Errors
/// 400 for a malformed patch, 413 for too many operations, 422 when one of them does not fit the object.
pub(super) fn patch(
    text: &[u8],
    current: &Value,
    validation: FieldValidation,
    strict: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let checks = validation != FieldValidation::Ignore;
    let wrong = |why: String| {
        ApiError::bad_request(if checks { format!("error decoding patch: {why}") } else { why })
    };
    let node = codec::parse_node(text).map_err(wrong)?;
    let operations = match node {
        Node::Array(operations) => operations,
        Node::Null => Vec::new(),
        other => {
            let into = if checks { "[]handlers.jsonPatchOp" } else { "jsonpatch.Patch" };
            let found = other.go_kind();
            return Err(wrong(format!("json: cannot unmarshal {found} into Go value of type {into}")));
        }
    };
    if checks {
        for (i, operation) in operations.iter().enumerate() {
            check(operation, i, strict).map_err(wrong)?;
        }
    }
    let count = operations.len();
    if count > MAX_OPERATIONS {
        let why = format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}");
        return Err(ApiError::request_too_large_because(&why));
    }
    let mut document = current.clone();
    let mut copied = 0;
    for operation in operations {
        let Value::Object(operation) = operation.into_value() else { return Err(ApiError::unprocessable()) };
        run(&mut document, &operation, &mut copied).ok_or_else(ApiError::unprocessable)?;
    }
    Ok(document)
}

/// Checks the shape of an operation; names that it should not have are told.
fn check(operation: &Node, index: usize, strict: &mut Vec<String>) -> Result<(), String> {
    let members = match operation {
        Node::Object(members) => members,
        Node::Null => return Ok(()),
        other => {
            return Err(format!(
                "json: cannot unmarshal {} into Go value of type handlers.jsonPatchOp",
                other.go_kind()
            ));
        }
    };
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in members {
        let what = match name.as_str() {
            "op" | "path" | "from" if !matches!(value, Node::String(_) | Node::Null) => {
                return Err(format!(
                    "json: cannot unmarshal {} into Go struct field jsonPatchOp.{name} of type string",
                    value.go_kind()
                ));
            }
            known @ ("op" | "path" | "from" | "value") if !seen.contains(&known) => {
                seen.push(known);
                continue;
            }
            "op" | "path" | "from" | "value" => "duplicate",
            _ => "unknown",
        };
        if strict.len() < 100 {
            let path = crate::error::quote(&format!("[{index}].{name}"));
            strict.push(format!("json patch {what} field {path}"));
        }
    }
    Ok(())
}

/// Carries one operation out; none when it does not fit.
fn run(document: &mut Value, operation: &Map<String, Value>, copied: &mut usize) -> Option<()> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let path = text("path")?;
    let given = || operation.get("value").cloned();
    match text("op")? {
        "add" => add(document, path, given()?),
        "remove" => remove(document, path).map(|_| ()),
        "replace" => {
            let value = given()?;
            *find(document, path)? = value;
            Some(())
        }
        "test" => {
            let wanted = given().unwrap_or_default();
            let (holder, key) = holder(document, path)?;
            match get(holder, &key) {
                Some(present) => (*present == wanted).then_some(()),
                // A list has no place for it, an object could have.
                None => (holder.is_object() && wanted.is_null()).then_some(()),
            }
        }
        "move" => {
            let value = remove(document, text("from")?)?;
            add(document, path, value)
        }
        "copy" => {
            let value = find(document, text("from")?)?.clone();
            *copied = copied.saturating_add(size(&value));
            // A few copies of copies would fill the memory.
            (*copied <= MAX_COPIED).then(|| add(document, path, value))?
        }
        _ => None,
    }
}

fn decoded(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

/// The object or list that a path's last part is in, and that part.
fn holder<'a>(document: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let mut parts = path.split('/').skip(1).peekable();
    let mut node = document;
    loop {
        let part = decoded(parts.next()?);
        if parts.peek().is_none() {
            return (node.is_object() || node.is_array()).then_some((node, part));
        }
        node = get_mut(node, &part)?;
    }
}

/// The place in a list of some length.
fn index(part: &str, length: usize) -> Option<usize> {
    let at: i64 = part.parse().ok()?;
    let at = if at < 0 { at.checked_add(i64::try_from(length).ok()?)? } else { at };
    usize::try_from(at).ok().filter(|at| *at < length)
}

fn get<'a>(holder: &'a Value, part: &str) -> Option<&'a Value> {
    match holder {
        Value::Object(map) => map.get(part),
        Value::Array(items) => items.get(index(part, items.len())?),
        _ => None,
    }
}

fn get_mut<'a>(holder: &'a mut Value, part: &str) -> Option<&'a mut Value> {
    match holder {
        Value::Object(map) => map.get_mut(part),
        Value::Array(items) => {
            let at = index(part, items.len())?;
            items.get_mut(at)
        }
        _ => None,
    }
}

fn find<'a>(document: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let (holder, key) = holder(document, path)?;
    get_mut(holder, &key)
}

fn add(document: &mut Value, path: &str, value: Value) -> Option<()> {
    let (holder, key) = holder(document, path)?;
    match holder {
        Value::Object(map) => drop(map.insert(key, value)),
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            let at = index(&key, items.len() + 1)?;
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(document: &mut Value, path: &str) -> Option<Value> {
    let (holder, key) = holder(document, path)?;
    match holder {
        Value::Object(map) => map.remove(&key),
        Value::Array(items) => {
            let at = index(&key, items.len())?;
            Some(items.remove(at))
        }
        _ => None,
    }
}

/// Bytes of a value as JSON, roughly.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| 1 + size(item)).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, item)| 4 + key.len() + size(item)).sum::<usize>(),
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn apply(document: Value, operations: Value) -> Result<Value, u16> {
        let mut strict = Vec::new();
        patch(operations.to_string().as_bytes(), &document, FieldValidation::Warn, &mut strict)
            .map_err(|e| e.code())
    }

    fn one(operation: Value) -> Result<Value, u16> {
        apply(json!({"a": {"b": 1}, "l": [1, 2, 3], "s/t": "x"}), json!([operation]))
    }

    #[test]
    fn operations() {
        let document = |a: Value, l: Value| Ok(json!({"a": a, "l": l, "s/t": "x"}));
        let list = json!([1, 2, 3]);
        assert_eq!(
            one(json!({"op": "add", "path": "/a/c", "value": 2})),
            document(json!({"b": 1, "c": 2}), list.clone())
        );
        assert_eq!(
            one(json!({"op": "add", "path": "/l/-", "value": 4})),
            document(json!({"b": 1}), json!([1, 2, 3, 4]))
        );
        assert_eq!(
            one(json!({"op": "add", "path": "/l/-1", "value": 4})),
            document(json!({"b": 1}), json!([1, 2, 3, 4]))
        );
        assert_eq!(one(json!({"op": "remove", "path": "/l/-1"})), document(json!({"b": 1}), json!([1, 2])));
        assert_eq!(
            one(json!({"op": "replace", "path": "/l/0", "value": null})),
            document(json!({"b": 1}), json!([null, 2, 3]))
        );
        assert_eq!(
            one(json!({"op": "move", "from": "/a/b", "path": "/l/0"})),
            document(json!({}), json!([1, 1, 2, 3]))
        );
        assert_eq!(
            one(json!({"op": "copy", "from": "/s~1t", "path": "/a/b"})),
            document(json!({"b": "x"}), list.clone())
        );
        assert_eq!(
            one(json!({"op": "test", "path": "/a/b", "value": 1})),
            document(json!({"b": 1}), list.clone())
        );
        assert_eq!(
            one(json!({"op": "test", "path": "/a/z", "value": null})),
            document(json!({"b": 1}), list)
        );
        for refused in [
            json!({"op": "test", "path": "/a/b", "value": 2}),
            json!({"op": "test", "path": "/l/7", "value": null}),
            json!({"op": "remove", "path": "/z"}),
            json!({"op": "replace", "path": "/z", "value": 1}),
            json!({"op": "add", "path": "", "value": {}}),
            json!({"op": "add", "path": "/z/z", "value": 1}),
            json!({"op": "add", "path": "/l/5", "value": 1}),
            json!({"op": "jump", "path": "/a"}),
        ] {
            assert_eq!(one(refused.clone()), Err(422), "{refused}");
        }
    }

    #[test]
    fn malformed_patches() {
        let run = |text: &str, validation| {
            let mut strict = Vec::new();
            let error = patch(text.as_bytes(), &json!({}), validation, &mut strict).err();
            (error.map(|e| e.message().to_owned()).unwrap_or_default(), strict)
        };
        let warn = |text| run(text, FieldValidation::Warn);
        assert_eq!(
            warn("{}").0,
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
        );
        assert_eq!(
            run("{}", FieldValidation::Ignore).0,
            "json: cannot unmarshal object into Go value of type jsonpatch.Patch"
        );
        assert_eq!(
            warn(r#"[{"op": 1}]"#).0,
            "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string"
        );
        let (error, strict) = warn(r#"[{"op": "add", "op": "add", "path": "/a", "value": 1, "x": 2}]"#);
        assert_eq!(error, "");
        assert_eq!(strict, [r#"json patch duplicate field "[0].op""#, r#"json patch unknown field "[0].x""#]);
        let many = vec![json!({"op": "test", "path": "/a"}); MAX_OPERATIONS + 1];
        assert_eq!(
            warn(&Value::from(many).to_string()).0,
            "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
        );
    }

    #[test]
    fn copies_are_bounded() {
        let document = json!({"a": "x".repeat(1 << 20)});
        let copies: Vec<Value> =
            (0..4).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/c{i}")})).collect();
        assert_eq!(apply(document.clone(), copies[..2].into()).map(|_| ()), Ok(()));
        assert_eq!(apply(document, copies.into()), Err(422));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            "[a-z]{0,3}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c/~]{1,2}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    /// A patch that makes `new` out of `old`, both objects.
    fn difference(old: &Value, new: &Value, path: &str, out: &mut Vec<Value>) {
        let (Some(before), Some(after)) = (old.as_object(), new.as_object()) else { return };
        let at = |key: &str| format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
        for key in before.keys().filter(|key| !after.contains_key(*key)) {
            out.push(json!({"op": "remove", "path": at(key)}));
        }
        for (key, value) in after {
            match before.get(key) {
                Some(present) if present.is_object() && value.is_object() => {
                    difference(present, value, &at(key), out);
                }
                Some(present) if present == value => {}
                Some(_) => out.push(json!({"op": "replace", "path": at(key), "value": value})),
                None => out.push(json!({"op": "add", "path": at(key), "value": value})),
            }
        }
    }

    proptest! {
        #[test]
        fn a_difference_applied_is_the_new_object(old in value(), new in value()) {
            let (old, new) = (json!({"o": old}), json!({"o": new}));
            let mut operations = Vec::new();
            difference(&old, &new, "", &mut operations);
            prop_assert_eq!(apply(old, operations.into()), Ok(new));
        }
    }
}
