//! update and patch, of objects and of their status.

use super::modify::{Change, bump_generation, check_version, modify};
use super::{Context, Reply, create, lifecycle};
use crate::error::{ApiError, FieldError};
use crate::machinery::{self, FieldValidation, PatchKind};
use crate::object::{self, meta, meta_mut};
use crate::request::{dry_run, field_validation};
use crate::storage::Stored;
use crate::table::IncludeObject;
use serde_json::Value;

/// Which part of an object a request may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All but the status.
    Main,
    /// The status.
    Status,
    /// A namespace's finalizers.
    Finalize,
}

/// The object to write, from the one the client wants and the stored one.
fn computed(context: &Context, part: Part, mut new: Value, stored: &Stored) -> Result<Value, ApiError> {
    let resource = &context.resource;
    let old = &stored.object;
    check_version(context, &new, stored)?;
    meta_mut(&mut new).insert("resourceVersion".into(), stored.revision.to_string().into());
    match part {
        Part::Main => {
            lifecycle::keep_metadata(&mut new, old);
            crate::machinery::apply_defaults(&resource.gvk(), &mut new);
            (resource.strategy.prepare_update)(&mut new, old);
            bump_generation(context, &mut new, old);
        }
        Part::Status => {
            let status = new.get("status").cloned();
            let metadata = new.get("metadata").cloned();
            new = old.clone();
            if let Some(map) = new.as_object_mut() {
                object::set_or_remove(map, "status", status);
                object::set_or_remove(map, "metadata", metadata);
            }
            lifecycle::keep_metadata(&mut new, old);
            (resource.strategy.prepare_status)(&mut new, old);
            crate::machinery::apply_defaults(&resource.gvk(), &mut new);
        }
        Part::Finalize => {
            let status = old.get("status").cloned();
            if let Some(map) = new.as_object_mut() {
                object::set_or_remove(map, "status", status);
            }
            lifecycle::keep_metadata(&mut new, old);
            crate::registry::label_namespace(&mut new);
            if object::list_at(&new, &["spec", "finalizers"]).is_empty() {
                object::map_mut(&mut new, "spec").remove("finalizers");
            }
        }
    }
    crate::admission::node::update(&context.user, resource, &new, old)?;
    let errors = match part {
        Part::Main => crate::machinery::validate_update(&resource.gvk(), &new, old),
        Part::Status => crate::machinery::validate_status(&resource.gvk(), &new, old),
        Part::Finalize => crate::machinery::validate_create(&resource.gvk(), &new),
    };
    if errors.is_empty() {
        return Ok(new);
    }
    Err(ApiError::invalid(resource.error_group(), resource.kind, &context.info.name, &errors))
}

/// Warnings about what an object says; its status says nothing of the kind.
fn warnings_of(resource: &crate::registry::Resource, part: Part, object: &Value) -> Vec<String> {
    if part == Part::Main && !resource.strategy.warn_at_creation_only {
        (resource.strategy.warnings)(object)
    } else {
        Vec::new()
    }
}

pub(super) async fn update(context: &Context, part: Part) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let dry = dry_run(context.query.all("dryRun"), "UpdateOptions")?;
    let validation = field_validation(&context.query, "UpdateOptions")?;
    let resource = &context.resource;
    let decoded =
        machinery::decode(context.content_type.as_deref(), &context.body, &resource.gvk(), validation)?;
    let mut wanted = decoded.object;
    lifecycle::place(context, &mut wanted)?;
    if part == Part::Main && !resource.strategy.unconditional_update {
        let version = meta(&wanted, "resourceVersion");
        if version.is_empty()
            && crate::storage::read(&context.core.store, resource, &context.key()).await?.is_some()
        {
            let error = FieldError::invalid(
                "metadata.resourceVersion",
                crate::error::BadValue::Text("0".to_owned()),
                "must be specified for an update",
            );
            return Err(ApiError::invalid(resource.group, resource.plural, &context.info.name, &[error]));
        }
    }
    let result =
        modify(context, dry, |stored| Ok(Change::Put(computed(context, part, wanted.clone(), stored)?)))
            .await;
    match result {
        Err(error) if error.code() == 404 && part == Part::Main && resource.strategy.create_on_update => {
            meta_mut(&mut wanted).remove("resourceVersion");
            let (mut object, revision) = create::insert(context, wanted, dry).await?;
            if revision > 0 {
                meta_mut(&mut object).insert("resourceVersion".into(), revision.to_string().into());
            }
            Ok(Reply::of_value(201, resource, &object, accepted, IncludeObject::default())
                .warn(decoded.warnings))
        }
        other => {
            let object = other?.object;
            Ok(Reply::of_value(200, resource, &object, accepted, IncludeObject::default())
                .warn(decoded.warnings)
                .warn(warnings_of(resource, part, &object)))
        }
    }
}

/// The patch type of a content type; server-side apply is not served yet.
pub(super) fn patch_kind(content_type: Option<&str>) -> Result<PatchKind, ApiError> {
    match PatchKind::from_content_type(content_type.unwrap_or_default()) {
        None | Some(PatchKind::Apply) => Err(ApiError::unsupported_patch_type()),
        Some(kind) => Ok(kind),
    }
}

/// Applies the request's patch to an object and decodes the result like a body.
pub(super) fn patched(
    context: &Context,
    kind: PatchKind,
    current: &Value,
    gvk: &crate::gvk::GroupVersionKind,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let decoded = machinery::apply_patch(kind, &context.body, current, gvk, validation)?;
    *warnings = decoded.warnings;
    Ok(decoded.object)
}

pub(super) async fn patch(context: &Context, part: Part) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let kind = patch_kind(context.content_type.as_deref())?;
    let dry = dry_run(context.query.all("dryRun"), "PatchOptions")?;
    let validation = field_validation(&context.query, "PatchOptions")?;
    let resource = &context.resource;
    let mut warnings = Vec::new();
    let outcome = modify(context, dry, |stored| {
        let mut new = patched(context, kind, &stored.object, &resource.gvk(), validation, &mut warnings)?;
        lifecycle::place(context, &mut new)?;
        Ok(Change::Put(computed(context, part, new, stored)?))
    })
    .await?;
    Ok(Reply::of_value(200, resource, &outcome.object, accepted, IncludeObject::default())
        .warn(warnings)
        .warn(warnings_of(resource, part, &outcome.object)))
}
