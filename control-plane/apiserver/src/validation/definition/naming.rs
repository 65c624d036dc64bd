//! Names of a definition, and the leave to use a group that is Kubernetes' own.

use kelp_model::names;
use serde_json::Value;

use crate::error::FieldError;
use crate::validation::{Errors, at, text, texts};

/// A label that begins with a letter, all faults in one text.
pub(super) fn label(value: &str, path: &str, before: &str, errs: &mut Errors) {
    let messages = names::dns1035_label(&value.to_lowercase());
    // Where mixed case is allowed, words before the message say so.
    let messages = if before.is_empty() { names::dns1035_label(value) } else { messages };
    if !messages.is_empty() {
        errs.push(FieldError::invalid(path, value, format!("{before}{}", messages.join(","))));
    }
}

/// Names that a definition has to say.
pub(super) fn resource_names(names_of: &Value, errs: &mut Errors) {
    for field in ["plural", "singular", "kind", "listKind"] {
        if text(names_of, field).is_empty() {
            errs.push(FieldError::required(format!("spec.names.{field}"), ""));
        }
    }
    accepted(names_of, "spec.names", errs);
}

/// Names of a resource; those that are empty are not looked at.
pub(super) fn accepted(names_of: &Value, path: &str, errs: &mut Errors) {
    const MIXED: &str = "may have mixed case, but should otherwise match: ";
    for (field, before) in [("plural", ""), ("singular", ""), ("kind", MIXED), ("listKind", MIXED)] {
        let value = text(names_of, field);
        if !value.is_empty() {
            label(value, &format!("{path}.{field}"), before, errs);
        }
    }
    for (i, name) in texts(names_of, "shortNames").enumerate() {
        label(name, &format!("{path}.shortNames[{i}]"), "", errs);
    }
    let (kind, list_kind) = (text(names_of, "kind"), text(names_of, "listKind"));
    if !kind.is_empty() && kind == list_kind {
        let detail = "kind and listKind may not be the same";
        errs.push(FieldError::invalid(format!("{path}.listKind"), list_kind, detail));
    }
    for (i, category) in texts(names_of, "categories").enumerate() {
        label(category, &format!("{path}.categories[{i}]"), "", errs);
    }
}

const APPROVED: &str = "api-approved.kubernetes.io";

/// Whether the annotation of a group that is Kubernetes' own approves it: the reason when it does not.
fn approval_fault(annotation: &str) -> Option<String> {
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let quoted = crate::error::quote(APPROVED);
    if annotation.is_empty() {
        return Some(format!("protected groups must have approval annotation {quoted}, {SEE}"));
    }
    let url = annotation.split_once("://").is_some_and(|(scheme, rest)| {
        let letters = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
        scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && scheme.bytes().all(letters)
            && !rest.starts_with(['/', '?', '#'])
            && !rest.is_empty()
    });
    (!url && !annotation.starts_with("unapproved")).then(|| {
        format!("protected groups must have approval annotation {quoted} with either a URL or a reason starting with \"unapproved\", {SEE}")
    })
}

fn is_protected(group: &str) -> bool {
    let protected = |root: &str| group == root || group.ends_with(&format!(".{root}"));
    protected("k8s.io") || protected("kubernetes.io")
}

/// What the condition about the approval of a protected group says: the reason, whether it is approved, and the text.
pub(crate) fn approval_state(object: &Value) -> Option<(&'static str, bool, String)> {
    if !is_protected(text(at(object, "spec"), "group")) {
        return None;
    }
    let annotation = text(at(at(object, "metadata"), "annotations"), APPROVED);
    Some(match approval_fault(annotation) {
        Some(why) if annotation.is_empty() => ("MissingAnnotation", false, why),
        Some(why) => ("InvalidAnnotation", false, why),
        None if annotation.starts_with("unapproved") => {
            ("UnapprovedAnnotation", false, format!("not approved: {}", crate::error::quote(annotation)))
        }
        None => ("ApprovedAnnotation", true, format!("approved in {annotation}")),
    })
}

/// A protected group needs an annotation, unless one that is missing was so before.
pub(super) fn approval(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let group = text(at(object, "spec"), "group");
    if !is_protected(group) {
        return;
    }
    let annotation = |o: &Value| text(at(at(o, "metadata"), "annotations"), APPROVED).to_owned();
    let now = annotation(object);
    let state = |a: &str| (a.is_empty(), a.starts_with("unapproved"), approval_fault(a).is_none());
    if old.is_some_and(|old| state(&annotation(old)) == state(&now)) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVED}]");
    match approval_fault(&now) {
        Some(why) if now.is_empty() => errs.push(FieldError::required(path, why)),
        Some(why) => errs.push(FieldError::invalid(path, now, why)),
        None => {}
    }
}
