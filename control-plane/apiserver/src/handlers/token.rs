//! Tokens: `serviceaccounts/token` makes them, token reviews look at them.

use super::managed::Write;
use super::{Context, Reply, lifecycle};
use crate::auth::{self, Grant};
use crate::error::{ApiError, FieldError};
use crate::gvk::GroupVersionKind;
use crate::machinery::Model;
use crate::object::{get, int_at, list_at, map_mut, meta, meta_mut, str_at};
use crate::request::WriteOptions;
use crate::storage;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

const GROUP: &str = "authentication.k8s.io";
/// Shortest life of a token, in seconds.
const SHORTEST: i64 = 600;
/// The life that kubelets ask for when a pod says nothing: such tokens are warned about after it and live longer, for
/// clients that read them only once (upstream's `WarnOnlyBoundTokenExpiration`).
const WARN_ONLY: i64 = 3607;
/// The longer life.
const EXTENDED: i64 = 365 * 24 * 3600;

async fn object_of(context: &Context, plural: &str, namespace: &str, name: &str) -> Result<Value, ApiError> {
    let core = &context.core;
    let row = core.builtin.find("", "v1", plural).ok_or_else(ApiError::unknown_resource)?;
    let found = storage::read(&core.store, row, &row.key(namespace, name)).await?;
    found.map(|stored| stored.object).ok_or_else(|| ApiError::not_found("", plural, name))
}

fn texts(list: &[Value]) -> Vec<String> {
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Makes a token of a service account.
pub(super) async fn request(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let options = WriteOptions::parse(&context.query, "CreateOptions")?;
    let gvk = GroupVersionKind::new(GROUP, "v1", "TokenRequest");
    let decoded = Model::BuiltIn(gvk.clone()).decode(
        context.content_type.as_deref(),
        &context.body,
        options.validation,
    )?;
    let mut object = decoded.object;
    lifecycle::place(context, &mut object)?;
    Model::BuiltIn(gvk.clone()).apply_defaults(&mut object);
    let account = object_of(context, "serviceaccounts", context.namespace(), &context.info.name).await?;
    Write::of_view(&options, "token", gvk.clone()).track(context, None, &mut object)?;
    let now = Timestamp::now();
    let metadata = meta_mut(&mut object);
    metadata.insert("uid".into(), meta(&account, "uid").into());
    metadata.insert("creationTimestamp".into(), crate::object::format_time(now).into());
    let mut audiences = texts(list_at(&object, &["spec", "audiences"]));
    if audiences.is_empty() {
        audiences = context.core.tokens.audiences().to_vec();
        map_mut(&mut object, "spec").insert("audiences".into(), audiences.clone().into());
    }
    let lifetime = int_at(&object, &["spec", "expirationSeconds"]).unwrap_or_default();
    validate(lifetime)?;
    let bound = bound_object(context, &object).await?;
    crate::admission::node::token(context, &object, bound.as_ref().map(|(_, object)| object)).await?;
    let mut node = None;
    if let Some(("pod", pod)) = &bound {
        if str_at(pod, &["spec", "serviceAccountName"]) != context.info.name {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {} to pod running with different serviceaccount name.",
                crate::error::quote(&context.info.name)
            )));
        }
        let name = str_at(pod, &["spec", "nodeName"]).to_owned();
        if !name.is_empty() {
            let uid = object_of(context, "nodes", "", &name).await.ok().map(|n| meta(&n, "uid").to_owned());
            node = Some((name, uid));
        }
    }
    check_uid(&object, bound.as_ref().map(|(_, object)| object))?;
    let own = audiences.iter().all(|audience| context.core.tokens.audiences().contains(audience));
    let extended = matches!(bound, Some(("pod", _))) && lifetime == WARN_ONLY && own;
    let grant = Grant {
        account: &account,
        bound: bound.as_ref().map(|(kind, object)| (*kind, object)),
        node,
        lifetime: if extended { EXTENDED } else { lifetime },
        warn_after: if extended { lifetime } else { 0 },
        audiences: &audiences,
    };
    let token = context.core.tokens.issue(&grant, now)?;
    let end = now.checked_add(SignedDuration::from_secs(lifetime)).map_err(ApiError::internal)?;
    object["status"] = json!({"token": token, "expirationTimestamp": crate::object::format_time(end)});
    Ok(Reply::value(201, &object, accepted).warn(decoded.warnings))
}

fn validate(lifetime: i64) -> Result<(), ApiError> {
    let refuse = |why: &str| {
        let error = FieldError::invalid("spec.expirationSeconds", lifetime, why);
        Err(ApiError::invalid(GROUP, "TokenRequest", "", &[error]))
    };
    match lifetime {
        _ if lifetime < SHORTEST => refuse("may not specify a duration less than 10 minutes"),
        _ if lifetime > 1 << 32 => refuse("may not specify a duration larger than 2^32 seconds"),
        _ => Ok(()),
    }
}

/// The object that a token is to die with.
async fn bound_object(context: &Context, request: &Value) -> Result<Option<(&'static str, Value)>, ApiError> {
    let Some(reference) = get(request, &["spec", "boundObjectRef"]) else { return Ok(None) };
    let (version, kind) = (str_at(reference, &["apiVersion"]), str_at(reference, &["kind"]));
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let (kind, plural) = match (group, kind) {
        ("", "Pod") => ("pod", "pods"),
        ("", "Node") => ("node", "nodes"),
        ("", "Secret") => ("secret", "secrets"),
        _ => {
            let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
            return Err(ApiError::bad_request(why));
        }
    };
    let namespace = if kind == "node" { "" } else { context.namespace() };
    let object = object_of(context, plural, namespace, str_at(reference, &["name"])).await?;
    Ok(Some((kind, object)))
}

/// A bound object that is named with its uid must be that one.
fn check_uid(request: &Value, bound: Option<&Value>) -> Result<(), ApiError> {
    let reference = |field: &str| str_at(request, &["spec", "boundObjectRef", field]).to_owned();
    let wanted = reference("uid");
    match bound {
        Some(object) if !wanted.is_empty() && meta(object, "uid") != wanted => {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might \
                 have been deleted and then recreated"
            );
            Err(ApiError::conflict("", &reference("kind"), &reference("name"), &why))
        }
        _ => Ok(()),
    }
}

/// Answers a TokenReview.
pub(super) async fn review(context: &Context, object: &mut Value) -> Result<(), ApiError> {
    let token = str_at(object, &["spec", "token"]).to_owned();
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let mut audiences = texts(list_at(object, &["spec", "audiences"]));
    if audiences.is_empty() {
        audiences = context.core.tokens.audiences().to_vec();
    }
    object["status"] = match auth::by_token(&context.core, &token, &audiences).await {
        Ok(proven) => {
            json!({"authenticated": true, "user": proven.user.to_value(), "audiences": proven.audiences})
        }
        Err(why) => json!({"user": {}, "error": why}),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        let text = |lifetime| validate(lifetime).err().map(|e| e.message().to_owned());
        assert_eq!(text(600), None);
        assert_eq!(
            text(599).as_deref(),
            Some(
                "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes"
            )
        );
        assert!(text((1 << 32) + 1).is_some_and(|t| t.ends_with("larger than 2^32 seconds")));
    }

    #[test]
    fn a_bound_object_is_the_one_meant() {
        let request = json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "p", "uid": "1"}}});
        assert!(check_uid(&request, Some(&json!({"metadata": {"uid": "1"}}))).is_ok());
        let error = check_uid(&request, Some(&json!({"metadata": {"uid": "2"}}))).expect_err("another");
        assert_eq!(error.code(), 409);
        assert!(
            error.message().starts_with("Operation cannot be fulfilled on Pod \"p\": the UID in the bound")
        );
    }
}
