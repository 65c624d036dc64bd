//! Reviews: questions about identity and rights that are answered and not stored.

use super::managed::Write;
use super::{Context, Reply};
use crate::auth::{Attributes, UserInfo};
use crate::error::{ApiError, BadValue, FieldError};
use crate::machinery::Model;
use crate::object::{get, list_at, meta, str_at};
use crate::request::WriteOptions;
use crate::selector::{FieldSelector, FieldTerm};
use serde_json::{Value, json};

const GROUP: &str = "authorization.k8s.io";

/// Whether a resource is a review.
pub(super) fn is_review(resource: &crate::registry::Resource) -> bool {
    matches!(resource.group(), "authentication.k8s.io" | GROUP)
}

/// Answers a review.
pub(super) async fn create(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let options = WriteOptions::parse(&context.query, "CreateOptions")?;
    let gvk = context.resource.gvk();
    let decoded = Model::BuiltIn(gvk.clone()).decode(
        context.content_type.as_deref(),
        &context.body,
        options.validation,
    )?;
    let mut object = decoded.object;
    match context.resource.kind() {
        "SelfSubjectReview" => {
            crate::object::meta_mut(&mut object)
                .insert("creationTimestamp".into(), crate::object::now().into());
            object["status"] = json!({"userInfo": context.user.to_value()});
        }
        "SelfSubjectRulesReview" => rules(context, &mut object).await?,
        "TokenReview" => {
            Write::of(context, &options, "").track(context, None, &mut object)?;
            super::token::review(context, &mut object).await?;
        }
        kind => {
            if kind == "LocalSubjectAccessReview" {
                super::lifecycle::place(context, &mut object)?;
            }
            validate(kind, &object)?;
            Write::of(context, &options, "").track(context, None, &mut object)?;
            let own = kind == "SelfSubjectAccessReview";
            let spec = object.get("spec").cloned().unwrap_or_default();
            let user = if own { context.user.clone() } else { UserInfo::of_review(&spec) };
            let decision = context.core.policy.authorize(&asked(&user, &spec)).await?;
            let mut status = json!({"allowed": decision.allowed});
            if !decision.reason.is_empty() {
                status["reason"] = decision.reason.into();
            }
            object["status"] = status;
        }
    }
    Ok(Reply::value(201, &object, accepted).warn(decoded.warnings))
}

/// All rules of the asking user in a namespace.
async fn rules(context: &Context, object: &mut Value) -> Result<(), ApiError> {
    let namespace = str_at(object, &["spec", "namespace"]).to_owned();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    context.core.policy.ready().await?;
    let found = context.core.policy.rules_for(&context.user, &namespace);
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in &found.rules {
        if !rule.resources.is_empty() {
            let mut out = json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                out["resourceNames"] = rule.names.clone().into();
            }
            resources.push(out);
        }
        if !rule.urls.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
        }
    }
    object["spec"] = json!({});
    object["status"] =
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": found.incomplete});
    if !found.error.is_empty() {
        object["status"]["evaluationError"] = found.error.into();
    }
    Ok(())
}

/// The question of a review's spec.
fn asked<'a>(user: &'a UserInfo, spec: &'a Value) -> Attributes<'a> {
    let mut a = Attributes::empty(user);
    if let Some(path) = get(spec, &["nonResourceAttributes"]) {
        a.is_resource = false;
        (a.verb, a.path) = (str_at(path, &["verb"]).into(), str_at(path, &["path"]).into());
        return a;
    }
    let text = |field: &str| str_at(spec, &["resourceAttributes", field]);
    (a.verb, a.group, a.version) = (text("verb").into(), text("group").into(), text("version").into());
    (a.resource, a.subresource) = (text("resource").into(), text("subresource").into());
    (a.namespace, a.name) = (text("namespace").into(), text("name").into());
    if a.version.is_empty() {
        a.version = "*".into();
    }
    let selector = get(spec, &["resourceAttributes", "fieldSelector"]);
    a.fields = selector.map(fields).unwrap_or_default();
    a
}

/// A field selector of a review; requirements that are no equality restrict nothing that authorization looks at.
fn fields(selector: &Value) -> FieldSelector {
    let raw = str_at(selector, &["rawSelector"]);
    if !raw.is_empty() {
        return FieldSelector::parse(raw).unwrap_or_default();
    }
    let term = |requirement: &Value| match list_at(requirement, &["values"]) {
        [value] if str_at(requirement, &["operator"]) == "In" => Some(FieldTerm {
            field: str_at(requirement, &["key"]).to_owned(),
            value: value.as_str()?.to_owned(),
            equal: true,
        }),
        _ => None,
    };
    FieldSelector { terms: list_at(selector, &["requirements"]).iter().filter_map(term).collect() }
}

fn validate(kind: &str, object: &Value) -> Result<(), ApiError> {
    let spec = object.get("spec").cloned().unwrap_or_default();
    let resource = get(&spec, &["resourceAttributes"]);
    let path = get(&spec, &["nonResourceAttributes"]);
    let mut errors = Vec::new();
    let mut invalid =
        |field: &str, value: BadValue, why: &str| errors.push(FieldError::invalid(field, value, why));
    match (resource, path) {
        (Some(_), Some(path)) => invalid(
            "spec.nonResourceAttributes",
            BadValue::Json(path.clone()),
            "cannot be specified in combination with resourceAttributes",
        ),
        (None, None) => invalid(
            "spec.resourceAttributes",
            BadValue::Json(Value::Null),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
    if kind != "SelfSubjectAccessReview"
        && str_at(&spec, &["user"]).is_empty()
        && list_at(&spec, &["groups"]).is_empty()
    {
        invalid("spec.user", "".into(), "at least one of user or group must be specified");
    }
    let local = kind == "LocalSubjectAccessReview";
    let metadata = object.get("metadata").and_then(Value::as_object);
    let filled = metadata.into_iter().flatten().any(|(field, value)| {
        let empty = match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        !empty && field != "managedFields" && !(local && field == "namespace")
    });
    if filled {
        let value = object.get("metadata").cloned().unwrap_or_default();
        invalid("metadata", BadValue::Json(value), "must be empty");
    }
    if local {
        let namespace = resource.map(|r| str_at(r, &["namespace"]));
        if let Some(namespace) = namespace.filter(|n| *n != meta(object, "namespace")) {
            invalid("spec.resourceAttributes.namespace", namespace.into(), "must match metadata.namespace");
        }
        if let Some(path) = path {
            invalid(
                "spec.nonResourceAttributes",
                BadValue::Json(path.clone()),
                "disallowed on this kind of request",
            );
        }
    }
    for selector in ["fieldSelector", "labelSelector"] {
        if let Some(found) = resource.and_then(|r| get(r, &[selector])) {
            validate_selector(found, &format!("spec.resourceAttributes.{selector}"), &mut errors);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(GROUP, "", "", &errors)) }
}

fn validate_selector(selector: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let raw = str_at(selector, &["rawSelector"]);
    let requirements = list_at(selector, &["requirements"]);
    if !raw.is_empty() && !requirements.is_empty() {
        let why = "may not specified at the same time as requirements";
        errors.push(FieldError::invalid(format!("{path}.rawSelector"), raw, why));
    }
    if raw.is_empty() && requirements.is_empty() {
        let why = format!("when {path} is specified, requirements or rawSelector is required");
        errors.push(FieldError::required(format!("{path}.requirements"), why));
    }
    for (i, requirement) in requirements.iter().enumerate() {
        let path = format!("{path}.requirements[{i}]");
        let values = list_at(requirement, &["values"]);
        if str_at(requirement, &["key"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.key"), "must be specified"));
        }
        match str_at(requirement, &["operator"]) {
            operator @ ("In" | "NotIn") if values.is_empty() => {
                let why = format!("must be specified when `operator` is '{operator}'");
                errors.push(FieldError::required(format!("{path}.values"), why));
            }
            operator @ ("Exists" | "DoesNotExist") if !values.is_empty() => {
                let why = format!("may not be specified when `operator` is '{operator}'");
                errors.push(FieldError::forbidden(format!("{path}.values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                format!("{path}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &str, object: &Value) -> String {
        validate(kind, object).map_or_else(|e| e.message().to_owned(), |()| String::new())
    }

    #[test]
    fn what_reviews_must_say() {
        let both = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        assert_eq!(
            message("SelfSubjectAccessReview", &json!({"spec": {}})),
            format!(
                ".authorization.k8s.io \"\" is invalid: spec.resourceAttributes: Invalid value: null: {both}"
            )
        );
        let local = json!({"metadata": {"namespace": "n"}, "spec": {"user": "u",
            "resourceAttributes": {"namespace": "n"}}});
        assert_eq!(message("LocalSubjectAccessReview", &local), "");
        let paths = json!({"metadata": {"namespace": "n"}, "spec": {"user": "u", "nonResourceAttributes": {"path": "/"}}});
        assert!(message("LocalSubjectAccessReview", &paths).contains("disallowed on this kind of request"));
        let named = json!({"metadata": {"name": "x"}, "spec": {"user": "u", "resourceAttributes": {}}});
        assert!(
            message("SubjectAccessReview", &named)
                .contains("metadata: Invalid value: {\"name\":\"x\"}: must be empty")
        );
        let selector = json!({"spec": {"user": "u", "resourceAttributes": {"fieldSelector": {}}}});
        assert!(
            message("SubjectAccessReview", &selector).contains("requirements or rawSelector is required")
        );
    }

    #[test]
    fn the_question_of_a_spec() {
        let user = UserInfo::anonymous();
        let spec = json!({"resourceAttributes": {"verb": "list", "resource": "pods", "fieldSelector":
            {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n"]}]}}});
        let a = asked(&user, &spec);
        assert_eq!((&*a.verb, &*a.resource, a.fields.exact("spec.nodeName")), ("list", "pods", Some("n")));
        let spec = json!({"nonResourceAttributes": {"verb": "get", "path": "/x"}});
        assert_eq!((&*asked(&user, &spec).path, asked(&user, &spec).is_resource), ("/x", false));
    }
}
