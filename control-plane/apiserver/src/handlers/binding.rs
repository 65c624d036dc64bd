//! Binding a pod to a node: `pods/binding` and `bindings`.

use super::modify::{Change, modify};
use super::{Context, Reply, lifecycle};
use crate::error::ApiError;
use crate::gvk::GroupVersionKind;
use crate::machinery::{self, Model};
use crate::object::meta;
use crate::registry::pod;
use crate::request::{Accepted, WriteOptions};
use crate::validation;
use serde_json::json;

fn kind() -> GroupVersionKind {
    GroupVersionKind::new("", "v1", "Binding")
}

/// The answer to an action that leaves nothing to show.
pub(super) fn done(accepted: Accepted) -> Reply {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Reply::value(201, &status, accepted)
}

/// POST to `bindings`: the pod is named by the body.
pub(super) async fn bind_named(mut context: Context) -> Result<Reply, ApiError> {
    let ignore = machinery::FieldValidation::Ignore;
    let decoded = Model::BuiltIn(kind()).decode(context.content_type.as_deref(), &context.body, ignore)?;
    context.info.name = meta(&decoded.object, "name").to_owned();
    let pods = context.core.builtin.find("", "v1", "pods").ok_or_else(ApiError::unknown_resource)?.clone();
    context.cache = context.core.cache(&pods).clone();
    context.resource = pods;
    bind(&context).await
}

/// POST to `binding` of a pod.
pub(super) async fn bind(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let options = WriteOptions::parse(&context.query, "CreateOptions")?;
    let decoded =
        Model::BuiltIn(kind()).decode(context.content_type.as_deref(), &context.body, options.validation)?;
    let mut binding = decoded.object;
    if meta(&binding, "name") != context.info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    lifecycle::place(context, &mut binding)?;
    let errors = validation::binding(&binding);
    if !errors.is_empty() {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let text = if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) };
        return Err(ApiError::plain_internal(text));
    }
    modify(context, options.dry_run, |stored| {
        let name = &context.info.name;
        for (field, shown) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let (wanted, present) = (meta(&binding, field), meta(&stored.object, field));
            if !wanted.is_empty() && wanted != present {
                let why = format!(
                    "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: \
                     Precondition failed: {shown} in precondition: {wanted}, {shown} in object meta: {present}",
                    context.key()
                );
                return Err(ApiError::conflict("", "pods", name, &why));
            }
        }
        pod::bind(&stored.object, &binding)
            .map(Change::Put)
            .map_err(|why| ApiError::conflict("", "pods/binding", name, &why))
    })
    .await?;
    Ok(done(accepted).warn(decoded.warnings))
}
