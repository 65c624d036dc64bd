//! create.

use super::{Context, Reply, lifecycle};
use crate::allocation::Held;
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
    let lease = context.core.lease(resource).await?;
    for attempt in 1.. {
        // A generated name that is taken begins all over: hooks and checks may depend on the name.
        let last = !generate || attempt >= NAME_ATTEMPTS;
        let mut new = if last { std::mem::take(&mut object) } else { object.clone() };
        let held = made(context, &mut new, generate.then_some(base.as_str()), dry).await?;
        let name = meta(&new, "name").to_owned();
        let key = resource.key(context.namespace(), &name);
        if dry {
            if storage::read(&context.core.store, resource, &key).await?.is_some() {
                return Err(ApiError::already_exists(resource.group, resource.plural, &name));
            }
            return Ok((new, 0));
        }
        let bytes = storage::to_stored(resource, &new);
        match storage::write(&context.core.store, resource, &key, 0, bytes, lease).await? {
            Written::Done(revision) => {
                held.keep();
                return Ok((new, revision));
            }
            Written::Conflict(_) if !last => {}
            Written::Conflict(_) if generate => {
                return Err(ApiError::generate_name_conflict(resource.group, resource.plural, &name));
            }
            Written::Conflict(present) => {
                let error = ApiError::already_exists(resource.group, resource.plural, &name);
                let leaving = present.is_some_and(|p| crate::object::is_deleting(&p.object));
                return Err(if leaving { error.with_prefix("object is being deleted: ") } else { error });
            }
        }
    }
    Err(ApiError::internal("no name was found"))
}

/// Completes and checks a new object; `base` is what its name is generated from.
async fn made<'a>(
    context: &'a Context,
    object: &mut Value,
    base: Option<&str>,
    dry: bool,
) -> Result<Held<'a>, ApiError> {
    let resource = &context.resource;
    lifecycle::new_metadata(object, resource.strategy.generation != Generation::None);
    if let Some(base) = base {
        meta_mut(object).insert("name".into(), lifecycle::generated(base).into());
    }
    let name = meta(object, "name").to_owned();
    lifecycle::namespace_open(context, &name).await?;
    crate::machinery::apply_defaults(&resource.gvk(), object);
    crate::admission::create(&context.core, &context.user, resource, object).await?;
    (resource.strategy.prepare_create)(object);
    let errors = crate::machinery::validate_create(&resource.gvk(), object);
    if !errors.is_empty() {
        return Err(ApiError::invalid(resource.error_group(), resource.kind, &name, &errors));
    }
    let held = context.core.allocate(resource, None, object, dry).await?;
    crate::admission::validate(&context.core, resource, "", object, None, dry).await?;
    Ok(held)
}
