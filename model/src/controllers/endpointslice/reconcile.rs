//! From the endpoints wanted and the slices that exist to the writes.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{CONTROLLER_NAME, Group, HEADLESS, MANAGED_BY, MAX_ENDPOINTS, SERVICE_NAME};
use crate::controllers::owner::controller_reference;

/// What to write, least first: a slice is in at most one list.
#[derive(Debug, Default, PartialEq)]
pub struct Writes {
    /// New slices (named by the server from `generateName`).
    pub create: Vec<EndpointSlice>,
    /// Slices with changed contents, their metadata as it was but for labels and owner.
    pub update: Vec<EndpointSlice>,
    /// Slices that are no longer needed.
    pub delete: Vec<EndpointSlice>,
}

/// The writes that make `existing` (all slices of the Service by this controller) hold exactly `groups`.
///
/// Endpoints stay in the slice they are in; new ones fill slices that are written anyway, then the fullest slice with
/// room for all, then new slices. Slices whose address type or ports nobody wants are first reused for a group
/// without slices, the rest deleted.
#[must_use]
pub fn reconcile(service: &Service, groups: &[Group], existing: &[EndpointSlice]) -> Writes {
    let mut writes = Writes::default();
    let labels = slice_labels(service);
    let mut unused: Vec<&EndpointSlice> = Vec::new();
    let mut slices_of: Vec<Vec<&EndpointSlice>> = vec![Vec::new(); groups.len()];
    for slice in existing {
        if slice.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let group = groups.iter().position(|g| {
            g.address_type == slice.address_type
                && same_ports(&g.ports, slice.ports.as_deref().unwrap_or_default())
        });
        match group {
            Some(i) => slices_of[i].push(slice),
            None => unused.push(slice),
        }
    }

    for (group, slices) in groups.iter().zip(slices_of) {
        let mut slices: Vec<EndpointSlice> = slices.into_iter().cloned().collect();
        if slices.is_empty()
            && let Some(i) = unused.iter().position(|s| s.address_type == group.address_type)
        {
            // The ports changed, or an empty slice gets its first endpoints: write over it.
            let mut reused = unused.remove(i).clone();
            reused.ports = Some(group.ports.clone());
            slices.push(reused);
        }
        reconcile_group(service, group, slices, existing, &labels, &mut writes);
    }
    writes.delete.extend(unused.into_iter().cloned());
    writes
}

fn reconcile_group(
    service: &Service,
    group: &Group,
    mut slices: Vec<EndpointSlice>,
    existing: &[EndpointSlice],
    labels: &BTreeMap<String, String>,
    writes: &mut Writes,
) {
    // Sort by what is kept: the emptiest slices come last and are given up first.
    let mut wanted: HashMap<String, &Endpoint> = group.endpoints.iter().map(|e| (identity(e), e)).collect();
    let mut order: Vec<String> = group.endpoints.iter().map(identity).collect();
    for slice in &mut slices {
        let endpoints = slice.endpoints.take().unwrap_or_default();
        slice.endpoints =
            Some(endpoints.iter().filter_map(|e| wanted.remove(&identity(e))).cloned().collect::<Vec<_>>());
    }
    order.retain(|id| wanted.contains_key(id));
    let mut new: Vec<Endpoint> = Vec::new();
    for id in order {
        if let Some(endpoint) = wanted.remove(&id) {
            new.push(endpoint.clone());
        }
    }

    let before: HashMap<&str, &EndpointSlice> = existing.iter().map(|s| (slice_name(s), s)).collect();
    let owner = controller_reference("v1", "Service", &service.metadata);
    let changed = |slice: &EndpointSlice| -> bool {
        before.get(slice_name(slice)).is_none_or(|old| {
            old.metadata.labels.as_ref() != Some(labels)
                || old.metadata.owner_references.as_deref() != Some(std::slice::from_ref(&owner))
                || !same_ports(old.ports.as_deref().unwrap_or_default(), &group.ports)
                || old.endpoints.as_deref().unwrap_or_default()
                    != slice.endpoints.as_deref().unwrap_or_default()
        })
    };
    let len = |slice: &EndpointSlice| slice.endpoints.as_ref().map_or(0, Vec::len);

    // Fill slices that are written anyway, the fullest first.
    let mut indices: Vec<usize> = (0..slices.len()).collect();
    indices.sort_by_key(|i| std::cmp::Reverse(len(&slices[*i])));
    let mut new = new.into_iter().peekable();
    for i in indices {
        if !changed(&slices[i]) {
            continue;
        }
        // An emptied slice is used only when there is something to put in.
        while len(&slices[i]) < MAX_ENDPOINTS {
            let Some(endpoint) = new.next() else { break };
            slices[i].endpoints.get_or_insert_default().push(endpoint);
        }
    }
    // One more write: the fullest unchanged slice that has room for the whole rest (of the last slice).
    let rest = new.len() % MAX_ENDPOINTS;
    if rest > 0 {
        let fits = slices
            .iter_mut()
            .filter(|s| !changed(s) && len(s) + rest <= MAX_ENDPOINTS)
            .max_by_key(|s| s.endpoints.as_ref().map_or(0, Vec::len));
        if let Some(slice) = fits {
            slice.endpoints.get_or_insert_default().extend(new.by_ref().take(rest));
        }
    }
    while new.peek().is_some() {
        let endpoints: Vec<Endpoint> = new.by_ref().take(MAX_ENDPOINTS).collect();
        writes.create.push(new_slice(service, group, labels, endpoints));
    }

    // An empty slice is kept only as the group's placeholder.
    let in_use = slices.iter().filter(|s| len(s) > 0).count() + writes_of(&writes.create, group);
    let mut keep_empty = usize::from(in_use == 0);
    if slices.is_empty() && writes_of(&writes.create, group) == 0 {
        writes.create.push(new_slice(service, group, labels, Vec::new()));
    }
    for slice in slices {
        if len(&slice) == 0 {
            if keep_empty == 0 {
                writes.delete.extend(before.get(slice_name(&slice)).map(|s| (*s).clone()));
                continue;
            }
            keep_empty -= 1;
        }
        if changed(&slice) {
            let mut slice = slice;
            slice.metadata.labels = Some(labels.clone());
            slice.metadata.owner_references = Some(vec![owner.clone()]);
            slice.ports = Some(group.ports.clone());
            writes.update.push(slice);
        }
    }
}

fn writes_of(create: &[EndpointSlice], group: &Group) -> usize {
    create
        .iter()
        .filter(|s| {
            s.address_type == group.address_type
                && same_ports(s.ports.as_deref().unwrap_or_default(), &group.ports)
        })
        .count()
}

/// What makes an endpoint the same one after a change of its conditions: its pod, or its address without one.
fn identity(endpoint: &Endpoint) -> String {
    match endpoint.target_ref.as_ref().and_then(|r| r.uid.as_deref()) {
        Some(uid) => uid.to_owned(),
        None => endpoint.addresses.join(","),
    }
}

fn slice_name(slice: &EndpointSlice) -> &str {
    slice.metadata.name.as_deref().unwrap_or_default()
}

pub(super) fn same_ports(a: &[EndpointPort], b: &[EndpointPort]) -> bool {
    a.len() == b.len() && a.iter().all(|p| b.contains(p))
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Labels of a Service's slices: the Service's own, and who writes them for whom.
fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), CONTROLLER_NAME.into());
    labels
}

/// What the server makes the name of a Service's slice of. It adds a suffix, to at most 253 bytes.
pub(super) fn name_prefix(service: &str) -> String {
    format!("{}-", service.get(..service.len().min(247)).unwrap_or(service))
}

fn new_slice(
    service: &Service,
    group: &Group,
    labels: &BTreeMap<String, String>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(name_prefix(name)),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![controller_reference("v1", "Service", &service.metadata)]),
            ..ObjectMeta::default()
        },
        address_type: group.address_type.clone(),
        ports: (!group.ports.is_empty()).then(|| group.ports.clone()),
        endpoints: Some(endpoints),
    }
}
