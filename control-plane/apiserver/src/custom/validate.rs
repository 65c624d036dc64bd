//! Checks of custom resources. The order and the words are those of upstream's `customResourceStrategy`.

use super::Version;
use crate::error::{FieldError, FieldErrorKind};
use crate::object::{finalizers, str_at};
use crate::structural;
use crate::validation;
use kelp_model::names;
use serde_json::Value;

/// Said when some faults hide others.
const NOT_CHECKED: &str = "some validation rules were not checked because the object was invalid; correct the \
                           existing errors to complete validation";

impl Version {
    /// Checks a new object.
    pub(crate) fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errs = self.kind_of(object);
        if !errs.is_empty() {
            return errs;
        }
        errs.extend(validation::metadata_create(self.definition().namespaced, object));
        errs.extend(structural::check_value(object, &self.schema, ""));
        self.scale_spec(object, &mut errs);
        self.scale_status(object, &mut errs);
        errs.extend(structural::validate_embedded(object, &self.schema));
        errs.extend(structural::check_lists(object, &self.schema));
        self.rules_of(object, None, &mut errs);
        errs
    }

    /// Checks a changed object.
    pub(crate) fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        // Upstream checks the metadata of every update once for all kinds.
        let mut errs = validation::metadata_update(new, old);
        let kind = self.kind_of(new);
        if !kind.is_empty() {
            errs.extend(kind);
            return errs;
        }
        errs.extend(validation::metadata_update(new, old));
        errs.extend(structural::check_update(new, old, &self.schema, ""));
        self.scale_spec(new, &mut errs);
        self.scale_status(new, &mut errs);
        errs.extend(structural::validate_embedded(new, &self.schema));
        self.lists(new, old, &mut errs);
        self.rules_of(new, Some(old), &mut errs);
        errs
    }

    /// Checks a changed status.
    pub(crate) fn validate_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errs = validation::metadata_update(new, old);
        let kind = self.kind_of(new);
        if !kind.is_empty() {
            errs.extend(kind);
            return errs;
        }
        errs.extend(validation::metadata_update(new, old));
        if let (Some(status), Some(schema)) = (new.get("status"), self.schema.properties.get("status")) {
            let before = old.get("status").unwrap_or(&Value::Null);
            errs.extend(structural::check_update(status, before, schema, "status"));
        }
        self.scale_status(new, &mut errs);
        self.lists(new, old, &mut errs);
        self.rules_of(new, Some(old), &mut errs);
        errs
    }

    fn kind_of(&self, object: &Value) -> Vec<FieldError> {
        let mut errs = Vec::new();
        let (kind, version) = (&*self.definition().kind, self.api_version());
        for (field, wanted) in [("kind", kind), ("apiVersion", &version)] {
            let found = str_at(object, &[field]);
            if found != wanted {
                errs.push(FieldError::invalid(field, found, format!("must be {wanted}")));
            }
        }
        errs
    }

    /// Lists that held an item twice before may go on doing so.
    fn lists(&self, new: &Value, old: &Value, errs: &mut Vec<FieldError>) {
        let found = structural::check_lists(new, &self.schema);
        if !found.is_empty() && structural::check_lists(old, &self.schema).is_empty() {
            errs.extend(found);
        }
    }

    fn rules_of(&self, new: &Value, old: Option<&Value>, errs: &mut Vec<FieldError>) {
        use FieldErrorKind as K;
        let Some(rules) = &self.rules else { return };
        let hides = |e: &FieldError| {
            matches!(e.kind, K::NotSupported | K::Required | K::TooLong | K::TooMany | K::TypeInvalid)
        };
        if errs.iter().any(hides) {
            errs.push(FieldError::invalid("<nil>", Value::Null, NOT_CHECKED));
        } else {
            errs.extend(rules.check(new, old, &self.schema));
        }
    }

    fn scale_spec(&self, object: &Value, errs: &mut Vec<FieldError>) {
        if let Some(scale) = &self.scale {
            count(object, &scale.wanted, errs);
        }
    }

    fn scale_status(&self, object: &Value, errs: &mut Vec<FieldError>) {
        let Some(scale) = &self.scale else { return };
        count(object, &scale.present, errs);
        if let Some(path) = &scale.selector
            && let Some(value) = at(object, path).filter(|value| !value.is_string())
        {
            errs.push(accessor(path, value, "string", Value::from("")));
        }
    }
}

fn at<'v>(object: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(object, |value, name| value.get(name))
}

fn accessor(path: &[String], value: &Value, wanted: &str, shown: Value) -> FieldError {
    let path = format!(".{}", path.join("."));
    let found = match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    let text = crate::patch::go_value(value);
    let why = format!("{path} accessor error: {text} is of the type {found}, expected {wanted}");
    FieldError::invalid(path, shown, why)
}

/// A count of replicas.
fn count(object: &Value, path: &[String], errs: &mut Vec<FieldError>) {
    let Some(value) = at(object, path) else { return };
    let shown = || format!(".{}", path.join("."));
    match value.as_i64() {
        None => errs.push(accessor(path, value, "int64", 0.into())),
        Some(count) if count < 0 => {
            errs.push(FieldError::invalid(shown(), count, "should be a non-negative integer"));
        }
        Some(count) if count > i64::from(i32::MAX) => {
            let why = format!("should be less than or equal to {}", i32::MAX);
            errs.push(FieldError::invalid(shown(), count, why));
        }
        Some(_) => {}
    }
}

/// Finalizers with names that others may use, too.
pub(super) fn finalizer_warnings(object: &Value) -> Vec<String> {
    const PATH: &str = "metadata.finalizers";
    let mut all: Vec<&str> = finalizers(object).collect();
    all.sort_unstable();
    all.dedup();
    let mut out = Vec::new();
    for name in all {
        let quoted = crate::error::quote(name);
        out.extend(names::qualified_name(name).into_iter().map(|why| format!("{PATH}: {quoted}: {why}")));
        if name.contains('/') || matches!(name, "orphan" | "foregroundDeletion" | "kubernetes") {
            continue;
        }
        let path = if name.contains('.') { " including a path (/)" } else { "" };
        out.push(format!(
            "{PATH}: {quoted}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other \
             finalizer writers"
        ));
    }
    out
}
