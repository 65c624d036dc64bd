//! create.

use super::{Context, Reply, lifecycle};
use crate::error::ApiError;
use crate::machinery;
use crate::object::{Encoded, meta, meta_mut};
use crate::registry::Generation;
use crate::request::{dry_run, field_validation};
use crate::storage::{self, Written};
use crate::table::IncludeObject;
use serde_json::Value;

/// Attempts at a generated name.
const NAME_ATTEMPTS: usize = 8;

pub(super) async fn create(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let dry = dry_run(context.query.all("dryRun"), "CreateOptions")?;
    let validation = field_validation(&context.query, "CreateOptions")?;
    let decoded = machinery::decode(
        context.content_type.as_deref(),
        &context.body,
        &context.resource.gvk(),
        validation,
    )?;
    let mut object = decoded.object;
    lifecycle::place(context, &mut object)?;
    let (object, revision) = insert(context, object, dry).await?;
    let reply = if revision == 0 {
        Reply::of_value(201, &context.resource, &object, accepted, IncludeObject::default())
    } else {
        let bytes = crate::object::encode(&context.resource.head(), &object);
        let encoded = Encoded::from_stored(&context.resource.head(), &bytes, revision)
            .ok_or_else(|| ApiError::internal("the object cannot be encoded"))?;
        Reply::object(201, &context.resource, &encoded, accepted, IncludeObject::default())
    };
    Ok(reply.warn(decoded.warnings).warn((context.resource.strategy.warnings)(&object)))
}

/// Makes a new object: metadata, hooks, checks, write. Returns it with its revision, 0 for a dry run.
pub(super) async fn insert(
    context: &Context,
    mut object: Value,
    dry: bool,
) -> Result<(Value, i64), ApiError> {
    let resource = &context.resource;
    if !meta(&object, "resourceVersion").is_empty() {
        return Err(ApiError::plain_internal("resourceVersion should not be set on objects to be created"));
    }
    let base = meta(&object, "generateName").to_owned();
    let generate = meta(&object, "name").is_empty() && !base.is_empty();
    lifecycle::new_metadata(&mut object, resource.strategy.generation != Generation::None);
    if generate {
        meta_mut(&mut object).insert("name".into(), lifecycle::generated(&base).into());
    }
    let name = meta(&object, "name").to_owned();
    lifecycle::namespace_open(context, &name).await?;
    crate::machinery::apply_defaults(&resource.gvk(), &mut object);
    (resource.strategy.prepare_create)(&mut object);
    crate::admission::create(&context.core, &context.user, resource, &mut object).await?;
    let errors = crate::machinery::validate_create(&resource.gvk(), &object);
    if !errors.is_empty() {
        return Err(ApiError::invalid(resource.error_group(), resource.kind, &name, &errors));
    }
    let held = context.core.allocate(resource, None, &mut object, dry).await?;
    let lease = context.core.lease(resource).await?;
    for attempt in 1.. {
        let name = meta(&object, "name").to_owned();
        let key = resource.key(context.namespace(), &name);
        if dry {
            if storage::read(&context.core.store, resource, &key).await?.is_some() {
                return Err(ApiError::already_exists(resource.group, resource.plural, &name));
            }
            return Ok((object, 0));
        }
        let bytes = storage::to_stored(resource, &object);
        match storage::write(&context.core.store, resource, &key, 0, bytes, lease).await {
            Ok(Written::Done(revision)) => {
                held.keep();
                return Ok((object, revision));
            }
            Ok(Written::Conflict(_)) if generate && attempt < NAME_ATTEMPTS => {
                meta_mut(&mut object).insert("name".into(), lifecycle::generated(&base).into());
            }
            Ok(Written::Conflict(_)) if generate => {
                return Err(ApiError::generate_name_conflict(resource.group, resource.plural, &name));
            }
            Ok(Written::Conflict(present)) => {
                let error = ApiError::already_exists(resource.group, resource.plural, &name);
                let leaving = present.is_some_and(|p| crate::object::is_deleting(&p.object));
                return Err(if leaving { error.with_prefix("object is being deleted: ") } else { error });
            }
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::internal("no name was found"))
}
