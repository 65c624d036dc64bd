//! The loop of every change: read, compute, write if nothing else was written in between.

use super::{Context, lifecycle};
use crate::error::{ApiError, FieldError};
use crate::object::{is_deleting, meta_mut};
use crate::storage::{self, Stored, Written};
use serde_json::Value;

/// Attempts of a change that others overtake.
const ATTEMPTS: usize = 100;

/// What to do with an object.
pub(super) enum Change {
    /// Write it, or remove it when its deletion is complete.
    Put(Value),
    /// Write it, whatever its state.
    Mark(Value),
    /// Remove it; the state to answer with.
    Remove(Value),
    /// Write its last state for watchers to see, then remove it.
    MarkThenRemove(Value),
}

/// Result of a change.
pub(super) struct Outcome {
    /// The object after it (before, when removed).
    pub(super) object: Value,
    /// Revision of the object.
    pub(super) revision: i64,
    /// It was removed.
    pub(super) removed: bool,
}

/// Nothing keeps an object that is being deleted any longer.
pub(super) fn is_done(object: &Value) -> bool {
    is_deleting(object)
        && crate::object::finalizers(object).next().is_none()
        && crate::object::int_at(object, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or_default() == 0
        && (crate::object::str_at(object, &["kind"]) != "Namespace"
            || crate::object::list_at(object, &["spec", "finalizers"]).is_empty())
}

/// Runs `compute` on the stored object until its result could be written. `compute` is told by its error when the
/// client's own resourceVersion is the reason to give up.
pub(super) async fn modify(
    context: &Context,
    dry: bool,
    mut compute: impl FnMut(&Stored) -> Result<Change, ApiError> + Send,
) -> Result<Outcome, ApiError> {
    let resource = &context.resource;
    let store = &context.core.store;
    let key = context.key();
    let mut current = storage::read(store, resource, &key).await?;
    for _ in 0..ATTEMPTS {
        let Some(stored) = current else { return Err(context.not_found()) };
        let (object, revision, update) = match compute(&stored)? {
            Change::Put(object) if is_done(&object) => (object, stored.revision, true),
            Change::Remove(object) => (object, stored.revision, false),
            Change::MarkThenRemove(object) => match put(context, &stored, object, &key, dry).await? {
                Ok(outcome) => (outcome.object, outcome.revision, false),
                Err(conflict) => {
                    current = conflict;
                    continue;
                }
            },
            Change::Put(object) | Change::Mark(object) => {
                match put(context, &stored, object, &key, dry).await? {
                    Ok(outcome) => return Ok(outcome),
                    Err(conflict) => {
                        current = conflict;
                        continue;
                    }
                }
            }
        };
        if dry {
            return Ok(Outcome { object, revision, removed: true });
        }
        let also = context.core.removed_too(resource, &stored.object);
        match storage::remove(store, resource, &key, revision, also).await? {
            Written::Done(removed) => {
                context.core.release(resource, &stored.object).await;
                context.core.policy.settled(resource, removed).await;
                // An update that ends a deletion answers with the version it saw, a deletion with its own.
                let shown = if update { revision } else { removed };
                return Ok(Outcome { object: versioned(object, shown), revision: shown, removed: true });
            }
            Written::Conflict(present) => current = present,
        }
    }
    Err(ApiError::modified(resource.group(), resource.plural(), &context.info.name))
}

/// The object with a resourceVersion.
fn versioned(mut object: Value, revision: i64) -> Value {
    meta_mut(&mut object).insert("resourceVersion".into(), revision.to_string().into());
    object
}

async fn put(
    context: &Context,
    stored: &Stored,
    mut object: Value,
    key: &str,
    dry: bool,
) -> Result<Result<Outcome, Option<Stored>>, ApiError> {
    let resource = &context.resource;
    let held = context.core.allocate(resource, Some(&stored.object), &mut object, dry).await?;
    let bytes = storage::to_stored(resource, &object)?;
    let with_version = |object: Value, revision: i64| Outcome {
        object: versioned(object, revision),
        revision,
        removed: false,
    };
    let part = context.info.subresource.as_str();
    crate::admission::certificates::validate(context, part, &object, Some(&stored.object)).await?;
    if !stored.is_same(&bytes) {
        let (core, subresource) = (&context.core, context.info.subresource.as_str());
        crate::admission::validate(core, resource, subresource, &object, Some(&stored.object), dry).await?;
    }
    if dry || stored.is_same(&bytes) {
        // Nothing changes: no write, no event, the old version.
        return Ok(Ok(with_version(object, stored.revision)));
    }
    let lease = context.core.lease(resource).await?;
    let also = held.also();
    match storage::write(&context.core.store, resource, key, stored.revision, bytes, lease, also).await? {
        Written::Done(revision) => {
            held.keep();
            context.core.policy.settled(resource, revision).await;
            Ok(Ok(with_version(object, revision)))
        }
        Written::Conflict(present) => Ok(Err(present)),
    }
}

/// Checks the client's resourceVersion and UID against the stored object.
pub(super) fn check_version(context: &Context, new: &Value, stored: &Stored) -> Result<(), ApiError> {
    let resource = &context.resource;
    let version = crate::object::meta(new, "resourceVersion");
    let uid = crate::object::meta(new, "uid");
    let present = crate::object::meta(&stored.object, "uid");
    if !uid.is_empty() && uid != present {
        if context.info.verb == "patch" {
            let immutable = || FieldError::invalid("metadata.uid", uid, "field is immutable");
            let errors = [immutable(), immutable()];
            return Err(ApiError::invalid(resource.group(), resource.kind(), &context.info.name, &errors));
        }
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {present}");
        return Err(ApiError::conflict(resource.group(), resource.plural(), &context.info.name, &why));
    }
    if version.is_empty() || version == "0" {
        return Ok(());
    }
    match version.parse::<i64>() {
        Ok(version) if version == stored.revision => Ok(()),
        Ok(_) => Err(ApiError::modified(resource.group(), resource.plural(), &context.info.name)),
        Err(_) => {
            let error =
                FieldError::invalid("metadata.resourceVersion", version, "must be specified for an update");
            Err(ApiError::invalid(resource.group(), resource.kind(), &context.info.name, &[error]))
        }
    }
}

/// One more generation when what the kind counts differs.
pub(super) fn bump_generation(context: &Context, new: &mut Value, old: &Value) {
    use crate::registry::Generation;
    let annotations = |object: &Value| object.pointer("/metadata/annotations").cloned().unwrap_or_default();
    let bumps = match context.resource.strategy.generation {
        Generation::None | Generation::Once => false,
        Generation::Spec => lifecycle::spec_differs(new, old),
        Generation::AllButMetadata => {
            lifecycle::spec_differs(new, old) || new.get("status") != old.get("status")
        }
        Generation::SpecAndAnnotations => {
            lifecycle::spec_differs(new, old) || annotations(new) != annotations(old)
        }
    };
    if bumps {
        let generation = crate::object::int_at(old, &["metadata", "generation"]).unwrap_or_default() + 1;
        meta_mut(new).insert("generation".into(), generation.into());
    }
}
