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
mod row;
pub(crate) mod scale;
mod scheduling;
mod served;
mod service;
mod storage;
mod strategy;
mod warnings;

pub(crate) use claims::protect;
pub(crate) use core::label_namespace;
pub(crate) use metrics::GROUP as METRICS_GROUP;
pub use row::*;
pub use served::*;
pub use strategy::*;

use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// An autoscaler in the form that is stored.
pub(crate) fn autoscaler_stored(object: &Value) -> std::borrow::Cow<'_, Value> {
    if crate::object::str_at(object, &["apiVersion"]) == "autoscaling/v2" {
        return std::borrow::Cow::Borrowed(object);
    }
    let mut stored = object.clone();
    autoscaling::to_stored(&mut stored);
    std::borrow::Cow::Owned(stored)
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

/// Names to whatever stands under them; looked up without making a key.
type Names<T> = HashMap<Box<str>, T>;

/// All resources, by group, version and plural.
#[derive(Default)]
pub struct Registry {
    resources: Vec<Arc<Resource>>,
    index: Names<Names<Names<usize>>>,
}

impl Registry {
    /// The built-in resources.
    pub fn builtin() -> Self {
        Self::of(builtin().into_iter().map(|row| Arc::new(row.into())))
    }

    /// The built-in resources and the resource metrics API, for a server that can ask nodes.
    pub(crate) fn with_metrics() -> Self {
        Self::of(builtin().into_iter().chain(metrics::rows()).map(|row| Arc::new(row.into())))
    }

    /// These resources and others; one that has the place of another is left out.
    pub(crate) fn with(&self, others: impl Iterator<Item = Arc<Resource>>) -> Self {
        let new = others.filter(|r| self.find(r.group(), r.version(), r.plural()).is_none());
        Self::of(self.resources.iter().cloned().chain(new))
    }

    fn of(resources: impl Iterator<Item = Arc<Resource>>) -> Self {
        let mut resources: Vec<Arc<Resource>> = resources.collect();
        // Stable: the versions of a group stay in the order of their rows, the preferred one first.
        resources.sort_by(|a, b| {
            let rank = |r: &Resource| group_rank(r.group());
            rank(a).cmp(&rank(b)).then_with(|| a.group().cmp(b.group()))
        });
        let mut index = Names::<Names<Names<usize>>>::new();
        for (at, resource) in resources.iter().enumerate() {
            let versions = index.entry(resource.group().into()).or_default();
            versions.entry(resource.version().into()).or_default().insert(resource.plural().into(), at);
        }
        Registry { resources, index }
    }

    /// All resources in discovery order.
    pub fn rows(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// The place of a path's resource among [`rows`](Self::rows).
    pub(crate) fn position(&self, group: &str, version: &str, plural: &str) -> Option<usize> {
        self.index.get(group)?.get(version)?.get(plural).copied()
    }

    /// The resource of a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.get(self.position(group, version, plural)?)
    }

    /// Whether a group version is served.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.index.get(group).is_some_and(|versions| versions.contains_key(version))
    }

    /// Groups in discovery order with their versions, the core group first.
    pub fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut out: Vec<(&str, Vec<&str>)> = Vec::new();
        for row in &self.resources {
            match out.last_mut().filter(|(group, _)| *group == row.group()) {
                Some((_, versions)) if versions.contains(&row.version()) => {}
                Some((_, versions)) => versions.push(row.version()),
                None => out.push((row.group(), vec![row.version()])),
            }
        }
        out
    }
}

/// The rows of all built-in resources but metrics.
fn builtin() -> Vec<Row> {
    [
        core::rows(),
        claims::rows(),
        apps::rows(),
        auth::reviews(),
        auth::rbac(),
        certificates::rows(),
        autoscaling::rows(),
        batch::rows(),
        policy::rows(),
        networking::rows(),
        storage::rows(),
        scheduling::rows(),
        resource::rows(),
        flowcontrol::rows(),
        admissionregistration::rows(),
        extensions::rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests;
