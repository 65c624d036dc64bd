//! Endpoints that somebody writes for a Service without a selector, mirrored to EndpointSlices.
//!
//! Each subset of the Endpoints becomes at most one slice an address family: the bound on what is mirrored of a subset is the
//! bound on a slice, so nothing is ever spread over several.

mod reconcile;
mod subsets;

pub use reconcile::reconcile;
pub use subsets::{Mirrored, mirrored};

use k8s_openapi::api::core::v1::{Endpoints, Service};

/// Value of [`super::MANAGED_BY`] for slices that mirror Endpoints.
pub const CONTROLLER_NAME: &str = "endpointslicemirroring-controller.k8s.io";
/// Label that keeps Endpoints from being mirrored (`true`): whoever writes them writes slices, too.
pub const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of Endpoints that are an election's ballot, not addresses.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one subset that are mirrored unless configured otherwise.
pub const MAX_ADDRESSES: usize = 1000;

/// Whether Endpoints are meant to be mirrored, as far as they themselves say.
#[must_use]
pub fn wants_mirror(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    let skip = meta.labels.as_ref().and_then(|l| l.get(SKIP_MIRROR)).is_some_and(|v| v == "true");
    let ballot = meta.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER));
    !skip && !ballot
}

/// Whether the Endpoints of a Service are somebody's own: with a selector, slices come from the pods.
#[must_use]
pub fn has_own_endpoints(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.selector.as_ref()).is_none_or(|selector| selector.is_empty())
}

#[cfg(test)]
mod tests;
