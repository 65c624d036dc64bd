//! `DeleteOptions` of a request.

use super::super::Context;
use crate::codec;
use crate::error::{ApiError, FieldError};
use crate::gvk::GroupVersionKind;
use crate::machinery::{self, FieldValidation, Model};
use crate::object::{self, list_at};
use crate::request::{DeleteOptions, Propagation, dry_run_error};
use serde_json::{Value, json};

/// The options in the body; without a body, those in the query.
pub(super) fn of_request(context: &Context) -> Result<DeleteOptions, ApiError> {
    of_value(&if context.body.is_empty() { in_query(context)? } else { in_body(context)? })
}

/// Checks options in their JSON form. The option to delete what cannot be read belongs to a feature that is off in
/// Kubernetes 1.36, which leaves it out unread.
///
/// # Errors
/// 422 with every wrong option.
pub(in crate::handlers) fn of_value(options: &Value) -> Result<DeleteOptions, ApiError> {
    let mut errors = Vec::new();
    let policy = object::get(options, &["propagationPolicy"]).and_then(Value::as_str);
    let orphan_dependents = object::get(options, &["orphanDependents"]).and_then(Value::as_bool);
    if let (Some(policy), Some(_)) = (policy, orphan_dependents) {
        let detail = "orphanDependents and deletionPropagation cannot be both set";
        errors.push(FieldError::invalid("propagationPolicy", policy, detail));
    }
    let propagation = match policy {
        None => orphan_dependents.map(|o| if o { Propagation::Orphan } else { Propagation::Background }),
        Some("Background") => Some(Propagation::Background),
        Some("Foreground") => Some(Propagation::Foreground),
        Some("Orphan") => Some(Propagation::Orphan),
        Some(other) => {
            let known = ["Foreground", "Background", "Orphan", "nil"];
            errors.push(FieldError::not_supported("propagationPolicy", other, &known));
            None
        }
    };
    let dry: Vec<&str> = list_at(options, &["dryRun"]).iter().filter_map(Value::as_str).collect();
    errors.extend(dry_run_error(&dry));
    if !errors.is_empty() {
        return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &errors));
    }
    let precondition = |name: &str| {
        object::get(options, &["preconditions", name]).and_then(Value::as_str).map(str::to_owned)
    };
    Ok(DeleteOptions {
        grace_period: object::int_at(options, &["gracePeriodSeconds"]),
        propagation,
        orphan_dependents,
        uid: precondition("uid"),
        resource_version: precondition("resourceVersion"),
        dry_run: !dry.is_empty(),
    })
}

fn in_query(context: &Context) -> Result<Value, ApiError> {
    let query = &context.query;
    let mut out = json!({});
    if let Some(seconds) = query.int("gracePeriodSeconds")? {
        out["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(policy) = query.get("propagationPolicy") {
        out["propagationPolicy"] = policy.into();
    }
    if query.get("orphanDependents").is_some() {
        out["orphanDependents"] = query.flag("orphanDependents").into();
    }
    let dry: Vec<&str> = query.all("dryRun").collect();
    if !dry.is_empty() {
        out["dryRun"] = dry.into();
    }
    Ok(out)
}

/// Upstream decodes these options with a scheme of their own, whose words differ from those of other bodies: any
/// version of the kind is taken, and nothing is said about unknown fields.
fn in_body(context: &Context) -> Result<Value, ApiError> {
    let kind = GroupVersionKind::new("", "v1", "DeleteOptions");
    let media = context.content_type.as_deref().unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    let unreadable = |format: &str, why: String| {
        ApiError::bad_request(format!("couldn't get version/kind; {format} parse error: {why}"))
    };
    let value = match media {
        "" | "*/*" | "application/json" => {
            codec::parse_json(&context.body).map_err(|why| unreadable("json", why))?
        }
        "application/yaml" => codec::parse_yaml(&context.body).map_err(|why| unreadable("yaml", why))?,
        _ => {
            let ignore = FieldValidation::Ignore;
            return Model::BuiltIn(kind.clone()).decode(Some(media), &context.body, ignore).map(|d| d.object);
        }
    };
    let named = object::str_at(&value, &["kind"]);
    if !matches!(named, "" | "DeleteOptions") {
        return Err(ApiError::bad_request(format!(
            "no kind {} is registered for version {} in scheme \
             \"pkg/apis/meta/internalversion/scheme/register.go:27\"",
            crate::error::quote(named),
            crate::error::quote(object::str_at(&value, &["apiVersion"]))
        )));
    }
    let schema = machinery::schema_of(&kind)?;
    codec::decode_value(value, schema).map(|(value, _)| value).map_err(ApiError::bad_request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_option_is_named() {
        let options = json!({"propagationPolicy": "Never", "orphanDependents": true, "dryRun": ["Some"]});
        let error = of_value(&options).expect_err("wrong");
        assert_eq!(error.code(), 422);
        assert_eq!(error.details().map(|d| d.causes.len()), Some(3));
    }

    #[test]
    fn both_ways_to_say_what_becomes_of_dependents() {
        let options = of_value(&json!({"orphanDependents": false})).expect("options");
        assert_eq!(options.propagation, Some(Propagation::Background));
        assert_eq!(options.orphan_dependents, Some(false));
        let options = of_value(&json!({"propagationPolicy": "Orphan"})).expect("options");
        assert_eq!((options.propagation, options.orphan_dependents), (Some(Propagation::Orphan), None));
    }
}
