//! create.

use super::managed::Write;
use super::{Context, Reply, lifecycle};
use crate::allocation::Held;
use crate::auth::Attributes;
use crate::custom;
use crate::error::ApiError;
use crate::machinery::{self, Model};
use crate::object::{Encoded, meta, meta_mut};
use crate::registry::Generation;
use crate::request::WriteOptions;
use crate::storage::{self, Written};
use crate::table::IncludeObject;
use serde_json::Value;

/// Attempts at a generated name.
const NAME_ATTEMPTS: usize = 8;

pub(super) async fn create(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let options = WriteOptions::parse(&context.query, "CreateOptions")?;
    let model = Model::of(&context.resource);
    let decoded = model.decode(context.content_type.as_deref(), &context.body, options.validation)?;
    let mut object = decoded.object;
    lifecycle::place(context, &mut object)?;
    let owners = lifecycle::single_owners(&mut object, false);
    let (object, revision) = insert(context, object, &options, false).await?;
    let reply = if revision == 0 {
        Reply::of_value(201, &context.resource, &object, accepted, IncludeObject::default())
    } else {
        let bytes = crate::object::encode(&context.resource.head(), &object);
        let encoded = Encoded::from_stored(&context.resource.head(), &bytes, revision)
            .ok_or_else(|| ApiError::internal("the object cannot be encoded"))?;
        Reply::object(201, &context.resource, &encoded, accepted, IncludeObject::default())
    };
    Ok(reply
        .warn(decoded.warnings)
        .warn(owners.into_iter().collect())
        .warn(context.resource.strategy.creation_warnings(&object)))
}

/// Checks that who updates or applies what does not exist may create it.
pub(super) async fn authorize(context: &Context) -> Result<(), ApiError> {
    let info = crate::request::RequestInfo { verb: "create", ..context.info.clone() };
    let asked = Attributes::of(&context.user, &info, &context.query);
    let decision = context.core.policy.authorize(&asked).await?;
    if decision.allowed { Ok(()) } else { Err(asked.forbidden(&decision.reason)) }
}

/// Begins the creation of an object of a definition; none begins while the definition goes.
fn begin(context: &Context, name: &str) -> Result<Option<custom::Creation>, ApiError> {
    let resource = &context.resource;
    let Some(custom) = &resource.custom else { return Ok(None) };
    let why = "create not allowed while custom resource definition is terminating";
    let refused = || ApiError::forbidden(resource.group(), resource.plural(), name, why);
    custom.definition().creations.begin().map(Some).ok_or_else(refused)
}

/// Makes a new object: metadata, hooks, checks, write. Returns it with its revision, 0 for a dry run. One that was
/// `applied` has its managed fields already.
pub(super) async fn insert(
    context: &Context,
    mut object: Value,
    options: &WriteOptions,
    applied: bool,
) -> Result<(Value, i64), ApiError> {
    let resource = &context.resource;
    let dry = options.dry_run;
    if !meta(&object, "resourceVersion").is_empty() {
        return Err(ApiError::plain_internal("resourceVersion should not be set on objects to be created"));
    }
    let _creation = begin(context, meta(&object, "name"))?;
    let base = meta(&object, "generateName").to_owned();
    let generate = meta(&object, "name").is_empty() && !base.is_empty();
    let lease = context.core.lease(resource).await?;
    for attempt in 1.. {
        // A generated name that is taken begins all over: hooks and checks may depend on the name.
        let last = !generate || attempt >= NAME_ATTEMPTS;
        let mut new = if last { std::mem::take(&mut object) } else { object.clone() };
        let held = made(context, &mut new, generate.then_some(base.as_str()), options, applied).await?;
        let name = meta(&new, "name").to_owned();
        let key = resource.key(context.namespace(), &name);
        if dry {
            if storage::read(&context.core.store, resource, &key).await?.is_some() {
                return Err(ApiError::already_exists(resource.group(), resource.plural(), &name));
            }
            return Ok((new, 0));
        }
        let bytes = storage::to_stored(resource, &new)?;
        match storage::write(&context.core.store, resource, &key, 0, bytes, lease, held.also()).await? {
            Written::Done(revision) => {
                held.keep();
                context.core.policy.settled(resource, revision).await;
                return Ok((new, revision));
            }
            Written::Conflict(_) if !last => {}
            Written::Conflict(_) if generate => {
                return Err(ApiError::generate_name_conflict(resource.group(), resource.plural(), &name));
            }
            Written::Conflict(present) => {
                let error = ApiError::already_exists(resource.group(), resource.plural(), &name);
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
    options: &WriteOptions,
    applied: bool,
) -> Result<Held<'a>, ApiError> {
    let resource = &context.resource;
    let model = Model::of(resource);
    let dry = options.dry_run;
    lifecycle::new_metadata(object, resource.strategy.generation != Generation::None);
    if let Some(base) = base {
        meta_mut(object).insert("name".into(), lifecycle::generated(base).into());
    }
    let name = meta(object, "name").to_owned();
    lifecycle::namespace_open(context, &name).await?;
    model.apply_defaults(object);
    if !applied {
        Write::of(context, options, "").track(context, None, object)?;
    }
    crate::admission::create(&context.core, &context.user, resource, object).await?;
    crate::auth::escalation::on_create(context, object)?;
    (resource.strategy.prepare_create)(object);
    let errors = model.validate_create(object);
    if !errors.is_empty() {
        return Err(machinery::invalid(resource, &name, object, &errors));
    }
    model.as_stored(object);
    let held = context.core.allocate(resource, None, object, dry).await?;
    crate::admission::certificates::validate(context, "", object, None).await?;
    crate::admission::validate(&context.core, resource, "", object, None, dry).await?;
    Ok(held)
}
