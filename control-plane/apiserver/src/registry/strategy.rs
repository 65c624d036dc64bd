//! What a kind may do differently: hooks around create, update and delete.

use serde_json::Value;

/// When `metadata.generation` is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// Never.
    None,
    /// 1 at creation, then one more whenever anything but metadata and status changes.
    Spec,
    /// As [`Generation::Spec`], and one more whenever annotations change.
    SpecAndAnnotations,
    /// As [`Generation::Spec`], but a changed status counts, too.
    AllButMetadata,
    /// 1 at creation, and so for ever.
    Once,
}

/// Resources whose creation takes numbers out of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Nothing.
    None,
    /// Cluster addresses and node ports of a Service.
    Service,
    /// The address that an IPAddress names.
    Address,
}

/// How a deletion of an object goes on after finalizers and preconditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grace {
    /// Removed at once.
    None,
    /// A pod: the node ends it first.
    Pod,
}

/// Hooks of a kind. A hook sees whole objects as JSON and must not fail; checks belong to validation.
pub struct Strategy {
    /// Generation rule.
    pub generation: Generation,
    /// Clears and sets fields of a new object before it is validated.
    pub prepare_create: fn(&mut Value),
    /// Carries fields of the old object over to the new one before an update is validated.
    pub prepare_update: fn(&mut Value, &Value),
    /// The same for the status subresource, after everything but the status was carried over.
    pub prepare_status: fn(&mut Value, &Value),
    /// The same for another subresource that changes a part of the object; it is given the subresource's name.
    pub prepare_part: fn(&str, &mut Value, &Value),
    /// An update of a missing object creates it.
    pub create_on_update: bool,
    /// Updates without a resourceVersion are allowed.
    pub unconditional_update: bool,
    /// Numbers taken at creation.
    pub allocation: Allocation,
    /// Deletion.
    pub grace: Grace,
    /// Seconds objects live; 0 for ever.
    pub ttl_seconds: i64,
    /// Warnings about a written object.
    pub warnings: fn(&Value) -> Vec<String>,
    /// Warnings are given at creation only.
    pub warn_at_creation_only: bool,
    /// Warnings about a written object, given before the others at creation (told by the second argument), and when an
    /// update made a new generation.
    pub generation_warnings: fn(&Value, bool) -> Vec<String>,
    /// Warnings about a written status.
    pub status_warnings: fn(&Value) -> Vec<String>,
    /// Deletion answers with the object, not with a Status.
    pub delete_returns_object: bool,
    /// A deletion that names no propagation policy leaves the dependents behind.
    pub orphan_dependents: bool,
    /// A warning for deletions that name no propagation policy.
    pub orphan_warning: Option<&'static str>,
}

fn nothing(_: &mut Value) {}
fn nothing_either(_: &mut Value, _: &Value) {}

impl Strategy {
    /// No hook at all.
    pub const PLAIN: Strategy = Strategy {
        generation: Generation::None,
        prepare_create: nothing,
        prepare_update: nothing_either,
        prepare_status: nothing_either,
        prepare_part: |_, _, _| {},
        create_on_update: false,
        unconditional_update: true,
        allocation: Allocation::None,
        grace: Grace::None,
        ttl_seconds: 0,
        warnings: |_| Vec::new(),
        warn_at_creation_only: false,
        generation_warnings: |_, _| Vec::new(),
        status_warnings: |_| Vec::new(),
        delete_returns_object: false,
        orphan_dependents: false,
        orphan_warning: None,
    };

    /// Warnings about a new object.
    pub fn creation_warnings(&self, object: &Value) -> Vec<String> {
        let mut out = (self.generation_warnings)(object, true);
        out.extend((self.warnings)(object));
        out
    }

    /// Warnings about an updated object that had another generation before, or had not.
    pub fn update_warnings(&self, object: &Value, generation_before: Option<i64>) -> Vec<String> {
        let mut out = Vec::new();
        if crate::object::int_at(object, &["metadata", "generation"]) != generation_before {
            out.extend((self.generation_warnings)(object, false));
        }
        if !self.warn_at_creation_only {
            out.extend((self.warnings)(object));
        }
        out
    }
}
