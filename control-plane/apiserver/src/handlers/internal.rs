//! Requests that the server makes to itself, and kinds that are answered without being stored.

use super::{Context, Reply, serve};
use crate::auth::UserInfo;
use crate::error::ApiError;
use crate::object::{get, meta, str_at};
use crate::request::{Accepted, Query, RequestInfo};
use crate::server::Core;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;

/// Creates or updates an object as the server itself.
pub(crate) async fn internal(
    core: &Arc<Core>,
    verb: &'static str,
    group: &str,
    plural: &str,
    object: Value,
) -> Result<(), ApiError> {
    let resource = core.registry.find(group, "v1", plural).ok_or_else(ApiError::unknown_resource)?.clone();
    let info = RequestInfo {
        is_resource: true,
        verb,
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: plural.to_owned(),
        namespace: meta(&object, "namespace").to_owned(),
        name: if verb == "create" { String::new() } else { meta(&object, "name").to_owned() },
        ..RequestInfo::default()
    };
    let context = Context {
        core: core.clone(),
        info,
        query: Query::default(),
        accept: None,
        content_type: Some("application/json".to_owned()),
        pretty: false,
        body: object.to_string().into(),
        user: UserInfo::admin("system:apiserver"),
        user_agent: "kube-apiserver".to_owned(),
        resource,
    };
    serve(context).await.map(|_| ())
}

/// A request for a kind that is computed and not stored.
pub(crate) struct Review<'a> {
    pub(crate) info: &'a RequestInfo,
    pub(crate) user: &'a UserInfo,
    #[expect(dead_code, reason = "reviews take dryRun once they are validated")]
    pub(crate) query: &'a Query,
    pub(crate) content_type: Option<String>,
    pub(crate) body: &'a Bytes,
    pub(crate) accepted: Accepted,
}

/// Answers self subject reviews; `None` for other resources.
pub(crate) fn virtual_resource(core: &Core, review: Review<'_>) -> Option<Result<Reply, ApiError>> {
    let kind = match (review.info.group.as_str(), review.info.resource.as_str()) {
        ("authorization.k8s.io", "selfsubjectaccessreviews") => "SelfSubjectAccessReview",
        ("authentication.k8s.io", "selfsubjectreviews") => "SelfSubjectReview",
        _ => return None,
    };
    if review.info.version != "v1" {
        return None;
    }
    if review.info.verb != "create" {
        return Some(Err(ApiError::method_not_allowed()));
    }
    Some(answer(core, &review, kind))
}

fn answer(core: &Core, review: &Review<'_>, kind: &str) -> Result<Reply, ApiError> {
    let gvk = crate::gvk::GroupVersionKind::new(review.info.group.as_str(), "v1", kind);
    let decoded = crate::machinery::decode(
        review.content_type.as_deref(),
        review.body,
        &gvk,
        crate::machinery::FieldValidation::Warn,
    )?;
    let mut object = decoded.object;
    if kind == "SelfSubjectReview" {
        crate::object::meta_mut(&mut object).insert("creationTimestamp".into(), crate::object::now().into());
        object["status"] = json!({"userInfo": {"username": review.user.name, "groups": review.user.groups}});
        return Ok(Reply::value(201, &object, review.accepted));
    }
    let asked = match (
        get(&object, &["spec", "resourceAttributes"]),
        get(&object, &["spec", "nonResourceAttributes"]),
    ) {
        (Some(attributes), None) => RequestInfo {
            is_resource: true,
            verb: known_verb(str_at(attributes, &["verb"])),
            group: str_at(attributes, &["group"]).to_owned(),
            version: str_at(attributes, &["version"]).to_owned(),
            namespace: str_at(attributes, &["namespace"]).to_owned(),
            resource: str_at(attributes, &["resource"]).to_owned(),
            subresource: str_at(attributes, &["subresource"]).to_owned(),
            name: str_at(attributes, &["name"]).to_owned(),
            ..RequestInfo::default()
        },
        (None, Some(attributes)) => RequestInfo {
            verb: known_verb(str_at(attributes, &["verb"])),
            path: str_at(attributes, &["path"]).to_owned(),
            ..RequestInfo::default()
        },
        _ => {
            let error = crate::error::FieldError::invalid(
                "spec.resourceAttributes",
                crate::error::BadValue::Json(Value::Null),
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            );
            return Err(ApiError::invalid("authorization.k8s.io", kind, "", &[error]));
        }
    };
    object["status"] = json!({"allowed": core.authorizer.allows(review.user, &asked)});
    Ok(Reply::value(201, &object, review.accepted).warn(decoded.warnings))
}

/// Verbs that rules name; any other is allowed to those who may do everything.
fn known_verb(verb: &str) -> &'static str {
    ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]
        .into_iter()
        .find(|known| *known == verb)
        .unwrap_or("*")
}
