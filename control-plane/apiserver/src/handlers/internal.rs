//! Requests that the server makes to itself.

use super::{Context, ReplyBody, serve};
use crate::auth::UserInfo;
use crate::cache::{Cache, Entry};
use crate::error::ApiError;
use crate::object::meta;
use crate::request::{Query, RequestInfo};
use crate::server::Core;
use serde_json::Value;
use std::sync::Arc;

/// Creates or updates an object as the server itself.
pub(crate) async fn internal(
    core: &Arc<Core>,
    verb: &'static str,
    group: &str,
    plural: &str,
    object: Value,
) -> Result<(), ApiError> {
    internal_part(core, verb, group, plural, "", object).await
}

/// As [`internal`], of a subresource when it is named.
pub(crate) async fn internal_part(
    core: &Arc<Core>,
    verb: &'static str,
    group: &str,
    plural: &str,
    subresource: &'static str,
    object: Value,
) -> Result<(), ApiError> {
    written(core, verb, group, plural, subresource, object).await.map(|_| ())
}

/// As [`internal_part`]; the object that the request is answered with.
pub(crate) async fn written(
    core: &Arc<Core>,
    verb: &'static str,
    group: &str,
    plural: &str,
    subresource: &'static str,
    object: Value,
) -> Result<Value, ApiError> {
    let resource = core.builtin.find(group, "v1", plural).ok_or_else(ApiError::unknown_resource)?.clone();
    let info = RequestInfo {
        is_resource: true,
        verb,
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: plural.to_owned(),
        subresource: subresource.to_owned(),
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
        cache: core.cache(&resource).clone(),
        resource,
        seat: parking_lot::Mutex::new(None),
    };
    match serve(context).await?.body {
        ReplyBody::Full(body) => serde_json::from_slice(&body).map_err(ApiError::internal),
        // Single objects are answered in one piece.
        ReplyBody::Chunks(_) | ReplyBody::Stream(_) => Ok(Value::Null),
    }
}

/// Deletes objects of a cache's resource that are not being deleted yet.
pub(crate) async fn delete_all(
    core: &Arc<Core>,
    cache: &Arc<Cache>,
    objects: &[Arc<Entry>],
) -> Result<(), ApiError> {
    for entry in objects.iter().filter(|entry| !crate::object::is_deleting(&entry.encoded.parse_lean())) {
        let resource = cache.resource.clone();
        let info = RequestInfo {
            is_resource: true,
            verb: "delete",
            group: resource.group().to_owned(),
            version: resource.version().to_owned(),
            resource: resource.plural().to_owned(),
            namespace: entry.namespace().to_owned(),
            name: entry.name().to_owned(),
            ..RequestInfo::default()
        };
        let context = Context { info, cache: cache.clone(), ..Context::as_server(core, resource) };
        match serve(context).await {
            Err(error) if error.code() != 404 => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
