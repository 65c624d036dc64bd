//! Which names a definition gets (`pkg/controller/status/naming_controller.go` of apiextensions-apiserver).

use crate::error::quote;
use crate::object::{get, list_at, str_at};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// A condition, without its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) kind: &'static str,
    pub(super) is_true: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Whether a condition of the definition is `True`.
pub(super) fn has(definition: &Value, condition: &str) -> bool {
    status_of(definition, condition) == Some("True")
}

fn condition_of<'v>(definition: &'v Value, kind: &str) -> Option<&'v Value> {
    list_at(definition, &["status", "conditions"]).iter().find(|c| str_at(c, &["type"]) == kind)
}

fn status_of<'v>(definition: &'v Value, kind: &str) -> Option<&'v str> {
    condition_of(definition, kind).map(|c| str_at(c, &["status"]))
}

/// Whether the definition is going, so that no new objects of it are taken.
pub(super) fn is_terminating(definition: &Value) -> bool {
    crate::object::is_deleting(definition) || has(definition, "Terminating")
}

fn conditions_mut(definition: &mut Value) -> Option<&mut Vec<Value>> {
    let status = definition.as_object_mut()?.entry("status").or_insert_with(|| json!({}));
    let conditions = status.as_object_mut()?.entry("conditions").or_insert(Value::Null);
    if conditions.is_null() {
        *conditions = json!([]);
    }
    conditions.as_array_mut()
}

/// Sets a condition; whether that changed the definition. The time of transition changes with the status alone.
pub(super) fn set(definition: &mut Value, condition: &Condition, now: &str) -> bool {
    let status = if condition.is_true { "True" } else { "False" };
    let known = condition_of(definition, condition.kind);
    if known.is_some_and(|c| {
        str_at(c, &["status"]) == status
            && str_at(c, &["reason"]) == condition.reason
            && str_at(c, &["message"]) == condition.message
    }) {
        return false;
    }
    let since =
        known.filter(|c| str_at(c, &["status"]) == status).map(|c| str_at(c, &["lastTransitionTime"]));
    let entry = json!({
        "lastTransitionTime": since.filter(|t| !t.is_empty()).unwrap_or(now),
        "message": condition.message,
        "reason": condition.reason,
        "status": status,
        "type": condition.kind,
    });
    let Some(conditions) = conditions_mut(definition) else { return false };
    match conditions.iter_mut().find(|c| str_at(c, &["type"]) == condition.kind) {
        Some(slot) => *slot = entry,
        None => conditions.push(entry),
    }
    true
}

/// What is to be said of the approval of a group that is Kubernetes' own.
pub(super) fn approval(definition: &Value) -> Option<Condition> {
    let (reason, is_true, message) = crate::validation::approval_state(definition)?;
    Some(Condition { kind: "KubernetesAPIApprovalPolicyConformant", is_true, reason, message })
}

/// The names that definitions of one group hold.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Plural, singular and short names.
    resources: HashSet<String>,
    /// Kinds and kinds of lists.
    kinds: HashSet<String>,
}

impl Taken {
    /// Of all definitions of a group.
    pub(super) fn of<'v>(definitions: impl Iterator<Item = &'v Value>, group: &str) -> Self {
        let mut out = Taken::default();
        for definition in definitions.filter(|d| str_at(d, &["spec", "group"]) == group) {
            let names = &["status", "acceptedNames"];
            let Some(names) = get(definition, names) else { continue };
            out.resources
                .extend([str_at(names, &["plural"]), str_at(names, &["singular"])].map(str::to_owned));
            out.resources.extend(texts(names, "shortNames").map(str::to_owned));
            out.kinds.extend([str_at(names, &["kind"]), str_at(names, &["listKind"])].map(str::to_owned));
        }
        out
    }
}

fn texts<'v>(names: &'v Value, list: &str) -> impl Iterator<Item = &'v str> {
    list_at(names, &[list]).iter().filter_map(Value::as_str)
}

/// The names that a definition gets, and what its conditions `NamesAccepted` and `Established` say of it (the latter
/// only when it is not established).
pub(super) fn decide(definition: &Value, taken: &Taken) -> (Value, Vec<Condition>) {
    let wanted = get(definition, &["spec", "names"]).cloned().unwrap_or_default();
    let held = get(definition, &["status", "acceptedNames"]).cloned().unwrap_or_default();
    let mut accepted = held.as_object().cloned().unwrap_or_default();
    let mut conflict = None;
    let free = |name: &str, taken: &HashSet<String>| match taken.contains(name) {
        true => Err(format!("{} is already in use", quote(name))),
        false => Ok(()),
    };
    let mut one = |field: &str, taken: &HashSet<String>, reason, accepted: &mut Map<String, Value>| {
        let (new, old) = (str_at(&wanted, &[field]), str_at(&held, &[field]));
        match if new == old { Ok(()) } else { free(new, taken) } {
            Ok(()) => _ = accepted.insert(field.to_owned(), Value::from(new)),
            Err(message) => conflict = Some((reason, message)),
        }
    };
    one("plural", &taken.resources, "PluralConflict", &mut accepted);
    one("singular", &taken.resources, "SingularConflict", &mut accepted);
    let mut short = None;
    if !texts(&wanted, "shortNames").eq(texts(&held, "shortNames")) {
        let own: HashSet<&str> = texts(&held, "shortNames").collect();
        let new = texts(&wanted, "shortNames").filter(|name| !own.contains(name));
        let errors: Vec<String> = new.filter_map(|name| free(name, &taken.resources).err()).collect();
        match errors.as_slice() {
            [] => copy_list("shortNames", &wanted, &mut accepted),
            [one] => short = Some(one.clone()),
            many => short = Some(format!("[{}]", many.join(", "))),
        }
    }
    one("kind", &taken.kinds, "KindConflict", &mut accepted);
    one("listKind", &taken.kinds, "ListKindConflict", &mut accepted);
    // Of several conflicts the last one is told, in the order of upstream's checks.
    let conflict = match (conflict, short) {
        (Some((reason @ ("KindConflict" | "ListKindConflict"), message)), _) => Some((reason, message)),
        (_, Some(message)) => Some(("ShortNamesConflict", message)),
        (conflict, None) => conflict,
    };
    copy_list("categories", &wanted, &mut accepted);
    let mut conditions = vec![match &conflict {
        Some((reason, message)) => {
            Condition { kind: "NamesAccepted", is_true: false, reason, message: message.clone() }
        }
        None => Condition {
            kind: "NamesAccepted",
            is_true: true,
            reason: "NoConflicts",
            message: "no conflicts found".to_owned(),
        },
    }];
    if !has(definition, "Established") {
        let installing = Condition {
            kind: "Established",
            is_true: false,
            reason: "Installing",
            message: "the initial names have been accepted".to_owned(),
        };
        let refused = Condition {
            kind: "Established",
            is_true: false,
            reason: "NotAccepted",
            message: "not all names are accepted".to_owned(),
        };
        if conflict.is_none() {
            conditions.push(installing);
        } else if status_of(definition, "Established").is_none() {
            conditions.push(refused);
        }
    }
    (Value::Object(accepted), conditions)
}

fn copy_list(field: &str, from: &Value, to: &mut Map<String, Value>) {
    match from.get(field).filter(|list| list.as_array().is_some_and(|l| !l.is_empty())) {
        Some(list) => _ = to.insert(field.to_owned(), list.clone()),
        None => _ = to.remove(field),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, spec: Value, accepted: Value) -> Value {
        json!({"metadata": {"name": name}, "spec": {"group": "g", "names": spec},
            "status": {"acceptedNames": accepted, "conditions": null}})
    }

    fn decided(definition: &Value, all: &[Value]) -> (Value, String, String) {
        let (names, conditions) = decide(definition, &Taken::of(all.iter(), "g"));
        let first = conditions.first().expect("NamesAccepted");
        (names, first.reason.to_owned(), first.message.clone())
    }

    #[test]
    fn names_are_given_to_the_first_and_kept() {
        let names =
            json!({"plural": "as", "singular": "a", "kind": "A", "listKind": "AList", "shortNames": ["x"]});
        let blank = json!({"plural": "", "kind": ""});
        let first = definition("as.g", names.clone(), blank.clone());
        let (given, reason, _) = decided(&first, std::slice::from_ref(&first));
        assert_eq!((&given, reason.as_str()), (&names, "NoConflicts"));
        let holder = definition("as.g", names.clone(), given);
        // The same again changes nothing, in whatever order they come.
        let other = definition(
            "bs.g",
            json!({"plural": "bs", "singular": "a", "kind": "B", "listKind": "BList"}),
            blank,
        );
        for all in [[holder.clone(), other.clone()], [other.clone(), holder.clone()]] {
            let (given, reason, message) = decided(&other, &all);
            assert_eq!((reason.as_str(), message.as_str()), ("SingularConflict", "\"a\" is already in use"));
            assert_eq!((&given["plural"], given.get("singular")), (&json!("bs"), None));
            assert_eq!(decided(&holder, &all).1, "NoConflicts");
        }
        // Names that a definition gives up are free.
        let (given, reason, _) = decided(&other, std::slice::from_ref(&other));
        assert_eq!((&given["singular"], reason.as_str()), (&json!("a"), "NoConflicts"));
    }

    #[test]
    fn the_time_of_a_condition_is_that_of_its_status() {
        let mut object = json!({"status": {"conditions": null}});
        let mut condition =
            Condition { kind: "Established", is_true: false, reason: "Installing", message: "m".to_owned() };
        assert!(set(&mut object, &condition, "1"));
        assert!(!set(&mut object, &condition, "2"));
        condition.reason = "NotAccepted";
        assert!(set(&mut object, &condition, "2"));
        assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], "1");
        condition.is_true = true;
        assert!(set(&mut object, &condition, "3"));
        assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], "3");
        assert!(has(&object, "Established"));
    }
}
