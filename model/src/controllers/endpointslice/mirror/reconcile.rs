//! From the endpoints to be mirrored and the slices that exist to the writes.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::core::v1::{Endpoints, ObjectReference};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::CONTROLLER_NAME;
use crate::controllers::endpointslice::reconcile::{name_prefix, same_ports};
use crate::controllers::endpointslice::{Group, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME, Writes};
use crate::controllers::owner::controller_reference;

/// Annotation with what `kubectl apply` wrote last: it is about the Endpoints, not about their slices.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The writes that make `existing` (all slices that mirror these Endpoints) hold exactly `groups`, one slice each.
///
/// A slice that holds the wanted endpoints in any order stays as it is. One whose family or ports nobody wants is written over
/// for a group of its family that has none. Endpoints that are being deleted get no new slices.
#[must_use]
pub fn reconcile(endpoints: &Endpoints, groups: &[Group], existing: &[EndpointSlice]) -> Writes {
    let mut writes = Writes::default();
    let meta = SliceMeta::of(endpoints);
    let mut slices: Vec<&EndpointSlice> =
        existing.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut without: Vec<&Group> = Vec::new();
    for group in groups {
        let own = slices.iter().position(|s| {
            s.address_type == group.address_type
                && same_ports(s.ports.as_deref().unwrap_or_default(), &group.ports)
        });
        match own.map(|place| slices.remove(place)) {
            Some(slice) if meta.is_on(slice) && holds(slice, &group.endpoints) => {}
            Some(slice) => writes.update.push(meta.slice(slice.metadata.clone(), group)),
            None => without.push(group),
        }
    }
    for group in without {
        match slices.iter().position(|s| s.address_type == group.address_type) {
            Some(place) => writes.update.push(meta.slice(slices.remove(place).metadata.clone(), group)),
            None if endpoints.metadata.deletion_timestamp.is_none() => {
                let named = ObjectMeta {
                    generate_name: Some(name_prefix(&meta.service)),
                    namespace: endpoints.metadata.namespace.clone(),
                    ..ObjectMeta::default()
                };
                writes.create.push(meta.slice(named, group));
            }
            None => {}
        }
    }
    writes.delete.extend(slices.into_iter().cloned());
    writes
}

/// What the slices of some Endpoints have in common.
struct SliceMeta {
    service: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    owner: OwnerReference,
}

impl SliceMeta {
    fn of(endpoints: &Endpoints) -> Self {
        let meta = &endpoints.metadata;
        let service = meta.name.clone().unwrap_or_default();
        let mut labels = meta.labels.clone().unwrap_or_default();
        labels.insert(SERVICE_NAME.into(), service.clone());
        labels.insert(MANAGED_BY.into(), CONTROLLER_NAME.into());
        let mut annotations = meta.annotations.clone().unwrap_or_default();
        annotations.retain(|key, _| key != TRIGGER_TIME && key != LAST_APPLIED);
        Self { service, labels, annotations, owner: controller_reference("v1", "Endpoints", meta) }
    }

    fn is_on(&self, slice: &EndpointSlice) -> bool {
        let meta = &slice.metadata;
        let none = BTreeMap::new();
        meta.labels.as_ref() == Some(&self.labels)
            && meta.annotations.as_ref().unwrap_or(&none) == &self.annotations
            && meta.owner_references.as_deref() == Some(std::slice::from_ref(&self.owner))
    }

    fn slice(&self, metadata: ObjectMeta, group: &Group) -> EndpointSlice {
        EndpointSlice {
            metadata: ObjectMeta {
                labels: Some(self.labels.clone()),
                annotations: (!self.annotations.is_empty()).then(|| self.annotations.clone()),
                owner_references: Some(vec![self.owner.clone()]),
                ..metadata
            },
            address_type: group.address_type.clone(),
            ports: (!group.ports.is_empty()).then(|| group.ports.clone()),
            endpoints: Some(group.endpoints.clone()),
        }
    }
}

/// What makes an endpoint the same one after a change of the rest: addresses, host name, and the object behind it.
pub(super) type Identity = (Vec<String>, String, String, String);

pub(super) fn identity(endpoint: &Endpoint) -> Identity {
    let text = |s: Option<&String>| s.cloned().unwrap_or_default();
    let target = endpoint.target_ref.as_ref();
    let mut addresses = endpoint.addresses.clone();
    addresses.sort();
    (
        addresses,
        text(endpoint.hostname.as_ref()),
        text(target.and_then(|t| t.namespace.as_ref())),
        text(target.and_then(|t| t.name.as_ref())),
    )
}

/// Whether a slice holds exactly these endpoints.
fn holds(slice: &EndpointSlice, wanted: &[Endpoint]) -> bool {
    let has = slice.endpoints.as_deref().unwrap_or_default();
    let wanted: HashMap<Identity, &Endpoint> = wanted.iter().map(|e| (identity(e), e)).collect();
    let mut seen = HashSet::new();
    has.len() == wanted.len()
        && has.iter().all(|e| {
            let id = identity(e);
            wanted.get(&id).is_some_and(|w| same(w, e)) && seen.insert(id)
        })
}

/// Whether two endpoints of one identity say the same. The version of what is behind them means nothing.
fn same(a: &Endpoint, b: &Endpoint) -> bool {
    let target = |e: &Endpoint| {
        e.target_ref.clone().map(|reference| ObjectReference { resource_version: None, ..reference })
    };
    let conditions = |e: &Endpoint| e.conditions.clone().unwrap_or_default();
    a.node_name == b.node_name && a.zone == b.zone && conditions(a) == conditions(b) && target(a) == target(b)
}
