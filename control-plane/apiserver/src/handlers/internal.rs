//! Requests that the server makes to itself.

use super::{Context, serve};
use crate::auth::UserInfo;
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
    let resource = core.registry.find(group, "v1", plural).ok_or_else(ApiError::unknown_resource)?.clone();
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
        resource,
        seat: parking_lot::Mutex::new(None),
    };
    serve(context).await.map(|_| ())
}
