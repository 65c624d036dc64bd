//! Custom resources: what a CustomResourceDefinition says, and the task that serves what definitions define.
//!
//! A definition that is served is a [`Definition`]; each of its versions becomes a resource of the registry, whose
//! objects go the way of all others. What is different (reading bodies, defaults, checks, stored form) asks the
//! [`Version`].

mod convert;
mod creations;
mod decode;
mod definition;
mod jsonpath;
mod keeper;
mod naming;
mod printer;
mod rules;
mod validate;

use crate::error::ApiError;
use crate::object;
use crate::registry::Resource;
use serde_json::Value;

pub(crate) use creations::Creation;
pub(crate) use definition::{Definition, LAST_VERBS, Version};
pub(crate) use keeper::Keeper;
pub(crate) use printer::Printer;

/// The finalizer that keeps a definition until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Group of definitions.
pub(crate) const GROUP: &str = "apiextensions.k8s.io";
/// Plural name of definitions.
pub(crate) const DEFINITIONS: &str = "customresourcedefinitions";

/// Whether a resource is that of the definitions.
pub(crate) fn is_definition(resource: &Resource) -> bool {
    resource.group() == GROUP && resource.plural() == DEFINITIONS
}

/// A definition whose deletion begins: it stays until its objects are gone.
pub(crate) fn deleted(mut definition: Value) -> Value {
    let mut finalizers = object::list_at(&definition, &["metadata", "finalizers"]).to_vec();
    if !finalizers.iter().any(|finalizer| finalizer == CLEANUP) {
        finalizers.push(CLEANUP.into());
    }
    let now = object::now();
    let metadata = object::meta_mut(&mut definition);
    metadata.insert("finalizers".into(), finalizers.into());
    metadata.insert("deletionTimestamp".into(), now.clone().into());
    let pending = naming::Condition {
        kind: "Terminating",
        is_true: true,
        reason: "InstanceDeletionPending",
        message: "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"
            .to_owned(),
    };
    naming::set(&mut definition, &pending, &now);
    definition
}

/// Checks what the deletion of a definition is about.
///
/// # Errors
/// 409 for another UID or version.
pub(crate) fn preconditions(
    uid: Option<&str>,
    version: Option<&str>,
    definition: &Value,
) -> Result<(), ApiError> {
    for (what, field, wanted) in [("UID", "uid", uid), ("ResourceVersion", "resourceVersion", version)] {
        let present = object::meta(definition, field);
        if let Some(wanted) = wanted
            && wanted != present
        {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {present}"
            );
            return Err(ApiError::conflict(GROUP, DEFINITIONS, object::meta(definition, "name"), &why));
        }
    }
    Ok(())
}
