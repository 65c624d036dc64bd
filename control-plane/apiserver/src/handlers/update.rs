//! update and patch, of objects and of their status.

use super::managed::Write;
use super::modify::{Change, bump_generation, check_version, modify};
use super::{Context, Reply, create, lifecycle};
use crate::error::{ApiError, FieldError};
use crate::machinery::{self, FieldValidation, Model, PatchKind};
use crate::object::{self, meta, meta_mut};
use crate::patch::apply;
use crate::request::WriteOptions;
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
    /// What the subresource of this name is for.
    Named(&'static str),
}

impl Part {
    /// The subresource that writes it.
    fn subresource(self) -> &'static str {
        match self {
            Part::Main => "",
            Part::Status => "status",
            Part::Finalize => "finalize",
            Part::Named(name) => name,
        }
    }
}

/// The object to write, from the one the client wants and the stored one. A `write` notes the managed fields; one that
/// was applied has them.
pub(super) fn computed(
    context: &Context,
    part: Part,
    mut new: Value,
    stored: &Stored,
    write: Option<&Write<'_>>,
) -> Result<Value, ApiError> {
    let resource = &context.resource;
    let model = Model::of(resource);
    let old = &stored.object;
    check_version(context, &new, stored)?;
    meta_mut(&mut new).insert("resourceVersion".into(), stored.revision.to_string().into());
    model.apply_defaults(&mut new);
    if matches!(part, Part::Main) {
        crate::admission::update(resource, &mut new);
    }
    if let Some(write) = write {
        write.track(context, Some(old), &mut new)?;
    }
    match part {
        Part::Main => {
            lifecycle::keep_metadata(&mut new, old);
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
        }
        Part::Named(name) => {
            (resource.strategy.prepare_part)(name, &mut new, old);
            lifecycle::keep_metadata(&mut new, old);
            bump_generation(context, &mut new, old);
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
    crate::admission::node::update(&context.user, resource, part.subresource(), &new, old)?;
    crate::auth::escalation::on_update(context, &new, old)?;
    let errors = match part {
        Part::Main => model.validate_update(&new, old),
        Part::Status => model.validate_status(&new, old),
        Part::Finalize | Part::Named(_) => {
            crate::validation::update_subresource(&resource.gvk(), part.subresource(), &new, old)
        }
    };
    if errors.is_empty() {
        model.as_stored(&mut new);
        apply::keep_times(&mut new, old);
        return Ok(new);
    }
    Err(machinery::invalid(resource, &context.info.name, &new, &errors))
}

/// Warnings about what the written part of an object says.
fn warnings_of(
    resource: &crate::registry::Resource,
    part: Part,
    object: &Value,
    before: Option<i64>,
) -> Vec<String> {
    match part {
        Part::Main => resource.strategy.update_warnings(object, before),
        Part::Status => (resource.strategy.status_warnings)(object),
        Part::Finalize | Part::Named(_) => Vec::new(),
    }
}

fn generation(object: &Value) -> Option<i64> {
    object::int_at(object, &["metadata", "generation"])
}

pub(super) async fn update(context: &Context, part: Part) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let options = WriteOptions::parse(&context.query, "UpdateOptions")?;
    let resource = &context.resource;
    let write = Write::of(context, &options, part.subresource());
    let content_type = context.content_type.as_deref();
    let decoded = Model::of(resource).decode(content_type, &context.body, options.validation)?;
    let mut wanted = decoded.object;
    lifecycle::place(context, &mut wanted)?;
    let mut warnings = decoded.warnings;
    warnings.extend(lifecycle::single_owners(&mut wanted, false));
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
            return Err(ApiError::invalid(resource.group(), resource.plural(), &context.info.name, &[error]));
        }
    }
    let mut before = None;
    let result = modify(context, options.dry_run, |stored| {
        before = generation(&stored.object);
        Ok(Change::Put(computed(context, part, wanted.clone(), stored, Some(&write))?))
    })
    .await;
    match result {
        Err(error) if error.code() == 404 && part == Part::Main && resource.strategy.create_on_update => {
            meta_mut(&mut wanted).remove("resourceVersion");
            create::authorize(context).await?;
            let (mut object, revision) = create::insert(context, wanted, &options, false).await?;
            if revision > 0 {
                meta_mut(&mut object).insert("resourceVersion".into(), revision.to_string().into());
            }
            Ok(Reply::of_value(201, resource, &object, accepted, IncludeObject::default())
                .warn(warnings)
                .warn(resource.strategy.creation_warnings(&object)))
        }
        other => {
            let object = other?.object;
            Ok(Reply::of_value(200, resource, &object, accepted, IncludeObject::default())
                .warn(warnings)
                .warn(warnings_of(resource, part, &object, before)))
        }
    }
}

/// Patch types of custom resources, which have no strategic merge.
const CUSTOM_PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// The type of the request's patch.
pub(super) fn patch_kind(context: &Context) -> Result<PatchKind, ApiError> {
    let kind = PatchKind::from_content_type(context.content_type.as_deref().unwrap_or_default());
    match &context.resource.custom {
        None => kind.ok_or_else(ApiError::unsupported_patch_type),
        Some(_) => kind
            .filter(|kind| *kind != PatchKind::StrategicMerge)
            .ok_or_else(|| ApiError::unsupported_media_type(CUSTOM_PATCHES)),
    }
}

/// Applies the request's patch to an object and decodes the result like a body.
pub(super) fn patched(
    context: &Context,
    kind: PatchKind,
    current: &Value,
    model: &Model<'_>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let decoded = model.apply_patch(kind, &context.body, current, validation)?;
    *warnings = decoded.warnings;
    Ok(decoded.object)
}

pub(super) async fn patch(context: &Context, part: Part) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let kind = patch_kind(context)?;
    let options = WriteOptions::of_patch(&context.query, kind)?;
    let write = Write::of(context, &options, part.subresource());
    if kind == PatchKind::Apply {
        return applied(context, part, &write).await;
    }
    let resource = &context.resource;
    let mut warnings = Vec::new();
    let mut before = None;
    let outcome = modify(context, options.dry_run, |stored| {
        before = generation(&stored.object);
        let model = Model::of(resource);
        let mut new = patched(context, kind, &stored.object, &model, options.validation, &mut warnings)?;
        lifecycle::place(context, &mut new)?;
        warnings.extend(lifecycle::single_owners(&mut new, true));
        Ok(Change::Put(computed(context, part, new, stored, Some(&write))?))
    })
    .await?;
    Ok(Reply::of_value(200, resource, &outcome.object, accepted, IncludeObject::default())
        .warn(warnings)
        .warn(warnings_of(resource, part, &outcome.object, before)))
}

/// Attempts at an apply that meets an object which others create and remove.
const APPLY_ATTEMPTS: usize = 10;

/// Server-side apply: changes the object, or creates it.
async fn applied(context: &Context, part: Part, write: &Write<'_>) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let resource = &context.resource;
    let decoded = machinery::decode_configuration(&context.body, write.options.validation)?;
    let dry = write.options.dry_run;
    for _ in 0..APPLY_ATTEMPTS {
        let mut before = None;
        let outcome = modify(context, dry, |stored| {
            before = generation(&stored.object);
            let mut new = write.apply(context, Some(&stored.object), &decoded.object)?;
            lifecycle::place(context, &mut new)?;
            Ok(Change::Put(computed(context, part, new, stored, None)?))
        })
        .await;
        let (code, object, warnings) = match outcome {
            Err(error) if error.code() == 404 && part == Part::Main => {
                let mut new = write.apply(context, None, &decoded.object)?;
                let uid = meta(&new, "uid");
                if !uid.is_empty() {
                    let why = format!(
                        "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    );
                    return Err(ApiError::conflict(
                        resource.group(),
                        resource.plural(),
                        &context.info.name,
                        &why,
                    ));
                }
                lifecycle::place(context, &mut new)?;
                meta_mut(&mut new).remove("resourceVersion");
                create::authorize(context).await?;
                match create::insert(context, new, write.options, true).await {
                    // Somebody was faster: the object is there to be changed.
                    Err(error) if error.reason() == "AlreadyExists" && !dry => continue,
                    Err(error) => return Err(error),
                    Ok((mut object, revision)) => {
                        if revision > 0 {
                            let version = revision.to_string();
                            meta_mut(&mut object).insert("resourceVersion".into(), version.into());
                        }
                        let warnings = resource.strategy.creation_warnings(&object);
                        (201, object, warnings)
                    }
                }
            }
            other => {
                let object = other?.object;
                let warnings = warnings_of(resource, part, &object, before);
                (200, object, warnings)
            }
        };
        return Ok(Reply::of_value(code, resource, &object, accepted, IncludeObject::default())
            .warn(decoded.warnings)
            .warn(warnings));
    }
    Err(ApiError::modified(resource.group(), resource.plural(), &context.info.name))
}
