//! Which EndpointSlices a Service needs, and the fewest writes that get there.

mod desired;
pub mod mirror;
mod reconcile;
mod trigger;

pub use desired::{desired_groups, endpoint_ports, pod_address, service_families, target_port, target_ref};
pub use reconcile::{Writes, reconcile};
pub use trigger::{TRIGGER_TIME, TriggerTimes, annotate};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort};

/// Label that names the Service of a slice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that says who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] for slices of Services with a selector.
pub const CONTROLLER_NAME: &str = "endpointslice-controller.k8s.io";
/// Label of slices and Endpoints of headless Services (empty value).
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Endpoints a slice holds at most.
pub const MAX_ENDPOINTS: usize = 100;

/// Endpoints that share an address type and ports, and so may share slices.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// `IPv4` or `IPv6`.
    pub address_type: String,
    /// Ports, in the order of the Service.
    pub ports: Vec<EndpointPort>,
    /// Endpoints, each pod once.
    pub endpoints: Vec<Endpoint>,
}

#[cfg(test)]
mod tests;
