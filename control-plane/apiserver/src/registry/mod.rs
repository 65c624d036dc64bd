//! The registry: one row for every resource the server knows. Everything generic (handlers, cache, discovery, tables)
//! reads rows; what is special to a kind is in the row's hooks.

mod admissionregistration;
mod apps;
mod auth;
mod autoscaling;
mod batch;
pub(crate) mod certificates;
mod claims;
mod core;
mod deployment;
pub(crate) mod event;
mod extensions;
mod fields;
mod flowcontrol;
mod metrics;
mod networking;
pub(crate) mod node;
pub(crate) mod owned;
pub(crate) mod pod;
mod policy;
mod resource;
pub(crate) mod scale;
mod scheduling;
mod service;
mod storage;
mod strategy;
mod warnings;

pub(crate) use claims::protect;
pub(crate) use core::label_namespace;
pub(crate) use metrics::GROUP as METRICS_GROUP;
pub use strategy::*;

use crate::gvk::GroupVersionKind;
use crate::table::TableSpec;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// Verbs of an ordinary resource.
pub const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// What a subresource does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubresourceKind {
    /// The object with only its status changeable.
    Status,
    /// `autoscaling/v1` Scale view of the replica count.
    Scale,
    /// Binds a pod to a node.
    Binding,
    /// Deletes a pod if its disruption budgets allow it.
    Eviction,
    /// Changes a namespace's finalizers.
    Finalize,
    /// The object with only a part of it changeable, as the strategy's `prepare_part` says.
    Part,
    /// A stream or report of the node that runs the pod.
    Connect,
    /// A token of a service account.
    Token,
}

/// A subresource of a resource.
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    /// Path element.
    pub name: &'static str,
    /// What it does.
    pub does: SubresourceKind,
    /// Group, version and kind of its bodies.
    pub kind: (&'static str, &'static str, &'static str),
    /// Verbs served.
    pub verbs: &'static [&'static str],
}

/// A field that field selectors may name beside `metadata.name` and `metadata.namespace`.
#[derive(Debug, Clone, Copy)]
pub struct SelectableField {
    /// Label as in the selector.
    pub label: &'static str,
    /// Its value in an object.
    pub value: fn(&Value) -> String,
}

/// One row of the registry.
pub struct Resource {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Plural name, as in paths.
    pub plural: &'static str,
    /// Singular name.
    pub singular: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Objects are in namespaces.
    pub namespaced: bool,
    /// Short names.
    pub short_names: &'static [&'static str],
    /// Categories, e.g. `all`.
    pub categories: &'static [&'static str],
    /// Verbs served.
    pub verbs: &'static [&'static str],
    /// Subresources.
    pub subresources: &'static [Subresource],
    /// First part of its keys in the store, with the ending slash.
    pub storage_prefix: &'static str,
    /// Kind and version that are stored, when they differ from the row's own.
    pub stored_as: Option<StoredAs>,
    /// Fields for selectors.
    pub fields: &'static [SelectableField],
    /// The kind has a conversion of its own for field labels, with another error message.
    pub own_field_labels: bool,
    /// That message where it is not the usual one, before and after the label.
    pub field_label_error: Option<(&'static str, &'static str)>,
    /// Columns.
    pub table: &'static TableSpec,
    /// What is special about the kind.
    pub strategy: &'static Strategy,
    /// A warning every request for the resource gets.
    pub deprecated: Option<&'static str>,
}

/// Stored form of a resource that is served in more than one group.
pub struct StoredAs {
    /// Kind stored.
    pub kind: &'static str,
    /// Its apiVersion.
    pub api_version: &'static str,
    /// From the served to the stored form.
    pub encode: fn(&mut Value),
    /// From the stored to the served form.
    pub decode: fn(&mut Value),
}

/// An autoscaler in the form that is stored.
pub(crate) fn autoscaler_stored(object: &Value) -> std::borrow::Cow<'_, Value> {
    if crate::object::str_at(object, &["apiVersion"]) == "autoscaling/v2" {
        return std::borrow::Cow::Borrowed(object);
    }
    let mut stored = object.clone();
    autoscaling::to_stored(&mut stored);
    std::borrow::Cow::Owned(stored)
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.group, self.version, self.plural)
    }
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Group, version and kind.
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind::new(self.group, self.version, self.kind)
    }

    /// Group that validation names: that of the stored form, if it is another.
    pub fn error_group(&self) -> &str {
        match &self.stored_as {
            Some(form) => form.api_version.split_once('/').map_or("", |(group, _)| group),
            None => self.group,
        }
    }

    /// Kind of its lists.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// First bytes of its serialized objects as served.
    pub fn head(&self) -> String {
        crate::object::head(self.kind, &self.api_version())
    }

    /// Key of an object in the store.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}{namespace}/{name}", self.storage_prefix)
        } else {
            format!("{}{name}", self.storage_prefix)
        }
    }

    /// Prefix of the keys of a namespace, or of all with an empty one.
    pub fn prefix(&self, namespace: &str) -> String {
        if self.namespaced && !namespace.is_empty() {
            format!("{}{namespace}/", self.storage_prefix)
        } else {
            self.storage_prefix.to_owned()
        }
    }

    /// A subresource by name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// Groups in the order in which discovery lists them, by upstream's group priorities: it decides whose kind a short or
/// plural name means. Others follow by name.
const GROUP_ORDER: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

fn group_rank(group: &str) -> usize {
    GROUP_ORDER.iter().position(|known| *known == group).unwrap_or(GROUP_ORDER.len())
}

/// All rows, by group, version and plural.
pub struct Registry {
    rows: Vec<Arc<Resource>>,
    index: HashMap<(String, String, String), Arc<Resource>>,
}

impl Registry {
    /// The built-in resources.
    pub fn builtin() -> Self {
        let mut rows: Vec<Arc<Resource>> = Vec::new();
        rows.extend(core::rows().into_iter().map(Arc::new));
        rows.extend(claims::rows().into_iter().map(Arc::new));
        rows.extend(apps::rows().into_iter().map(Arc::new));
        rows.extend(auth::reviews().into_iter().map(Arc::new));
        rows.extend(auth::rbac().into_iter().map(Arc::new));
        rows.extend(certificates::rows().into_iter().map(Arc::new));
        rows.extend(autoscaling::rows().into_iter().map(Arc::new));
        rows.extend(batch::rows().into_iter().map(Arc::new));
        rows.extend(policy::rows().into_iter().map(Arc::new));
        rows.extend(networking::rows().into_iter().map(Arc::new));
        rows.extend(storage::rows().into_iter().map(Arc::new));
        rows.extend(scheduling::rows().into_iter().map(Arc::new));
        rows.extend(resource::rows().into_iter().map(Arc::new));
        rows.extend(flowcontrol::rows().into_iter().map(Arc::new));
        rows.extend(admissionregistration::rows().into_iter().map(Arc::new));
        rows.extend(extensions::rows().into_iter().map(Arc::new));
        Self::of(rows)
    }

    /// With the resource metrics API, for a server that can ask nodes.
    pub(crate) fn with_metrics(mut self) -> Self {
        self.rows.extend(metrics::rows().into_iter().map(Arc::new));
        Self::of(self.rows)
    }

    fn of(mut rows: Vec<Arc<Resource>>) -> Self {
        // Stable: the versions of a group stay in the order of their rows, the preferred one first.
        rows.sort_by_key(|row| (group_rank(row.group), row.group));
        let index = rows
            .iter()
            .map(|row| ((row.group.to_owned(), row.version.to_owned(), row.plural.to_owned()), row.clone()))
            .collect();
        Registry { rows, index }
    }

    /// All rows in discovery order.
    pub fn rows(&self) -> &[Arc<Resource>] {
        &self.rows
    }

    /// The row of a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.index.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// Whether a group version is served.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.rows.iter().any(|row| row.group == group && row.version == version)
    }

    /// Groups in discovery order with their versions, the core group first.
    pub fn groups(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let mut out: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
        for row in &self.rows {
            match out.iter_mut().find(|(group, _)| *group == row.group) {
                Some((_, versions)) if versions.contains(&row.version) => {}
                Some((_, versions)) => versions.push(row.version),
                None => out.push((row.group, vec![row.version])),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests;
