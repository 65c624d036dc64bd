//! Which endpoints traffic goes to, as in upstream's kube-proxy (`CategorizeEndpoints`):
//!
//! - Cluster traffic: ready endpoints, of this node or zone when the hints say so; when no endpoint is ready, those that
//!   still serve while they terminate (KEP-1669).
//! - Local traffic: ready endpoints of this node; when there are none, those of this node that serve while they
//!   terminate. Hints do not count.
//! - Hints count when every ready endpoint has one and at least one names this node (`forNodes`, KEP-3015) or zone
//!   (`forZones`, KEP-2433).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kelp_common::{Address, UDP};

use super::BackendKey;
use super::state::{EndpointState, Port, SliceState};

/// Where this node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Site {
    /// Name of the node.
    pub node: Arc<str>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
}

/// What the hints of the ready endpoints ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preference {
    None,
    Node,
    Zone,
}

/// The endpoints behind one port of a Service in one family.
pub(super) struct Endpoints<'a> {
    found: BTreeMap<BackendKey, &'a EndpointState>,
    site: &'a Site,
}

impl<'a> Endpoints<'a> {
    /// Without repetition: an endpoint that is in two slices counts as its better self.
    pub fn new(slices: &[&'a SliceState], port: &Port, v4: bool, site: &'a Site) -> Self {
        let mut found: BTreeMap<BackendKey, &EndpointState> = BTreeMap::new();
        for slice in slices.iter().filter(|slice| slice.v4 == v4) {
            for (_, protocol, number) in slice
                .ports
                .iter()
                .filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol)
            {
                for endpoint in &slice.endpoints {
                    let key = BackendKey { address: endpoint.address, port: *number, protocol: *protocol };
                    let rank = |endpoint: &EndpointState| (endpoint.ready, endpoint.serving);
                    match found.get(&key) {
                        Some(known) if rank(known) >= rank(endpoint) => {}
                        _ => {
                            found.insert(key, endpoint);
                        }
                    }
                }
            }
        }
        Self { found, site }
    }

    /// Whether any endpoint of the cluster takes new connections.
    pub fn exist(&self) -> bool {
        self.found.values().any(|endpoint| endpoint.ready || endpoint.serves_to_the_end())
    }

    /// The endpoints that new connections go to.
    pub fn choose(&self, local: bool) -> Vec<BackendKey> {
        let pick = |wanted: &dyn Fn(&EndpointState) -> bool| -> Vec<BackendKey> {
            let wanted =
                self.found.iter().filter(|(_, endpoint)| (!local || endpoint.local) && wanted(endpoint));
            wanted.map(|(key, _)| *key).collect()
        };
        let preference = if local { Preference::None } else { self.preference() };
        let ready = pick(&|endpoint| endpoint.ready && self.is_preferred(endpoint, preference));
        if ready.is_empty() { pick(&EndpointState::serves_to_the_end) } else { ready }
    }

    /// The endpoints that established connections may go on using. Datagrams are never established: they only stay
    /// with an endpoint that serves.
    pub fn lasting(&self) -> impl Iterator<Item = BackendKey> {
        self.found
            .iter()
            .filter(|(key, endpoint)| key.protocol != UDP || endpoint.ready || endpoint.serving)
            .map(|(key, _)| *key)
    }

    /// The endpoints that serve, terminating or not.
    pub fn serving(&self) -> BTreeSet<BackendKey> {
        let serving = self.found.iter().filter(|(_, endpoint)| endpoint.ready || endpoint.serving);
        serving.map(|(key, _)| *key).collect()
    }

    fn preference(&self) -> Preference {
        let ready = || self.found.values().filter(|endpoint| endpoint.ready);
        if ready().next().is_none() {
            return Preference::None;
        }
        if ready().all(|endpoint| !endpoint.nodes.is_empty())
            && ready().any(|endpoint| self.is_preferred(endpoint, Preference::Node))
        {
            return Preference::Node;
        }
        if ready().all(|endpoint| !endpoint.zones.is_empty())
            && ready().any(|endpoint| self.is_preferred(endpoint, Preference::Zone))
        {
            return Preference::Zone;
        }
        Preference::None
    }

    fn is_preferred(&self, endpoint: &EndpointState, preference: Preference) -> bool {
        match preference {
            Preference::None => true,
            Preference::Node => endpoint.nodes.contains(&self.site.node),
            Preference::Zone => self.site.zone.as_ref().is_some_and(|zone| endpoint.zones.contains(zone)),
        }
    }
}

/// Ready endpoints on this node, of the family that has more: a dual-stack pod counts once.
pub(super) fn local_ready(slices: &[&SliceState]) -> usize {
    let count = |v4: bool| {
        let endpoints = slices.iter().filter(|slice| slice.v4 == v4).flat_map(|slice| &slice.endpoints);
        let ready = endpoints.filter(|endpoint| endpoint.local && endpoint.ready);
        ready.map(|endpoint| endpoint.address).collect::<BTreeSet<Address>>().len()
    };
    count(true).max(count(false))
}
