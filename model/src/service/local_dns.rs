//! The node's own DNS server as the endpoint of cluster DNS.

use kelp_common::{Address, TCP, UDP};

use super::ObjectName;
use super::state::{EndpointState, ServiceState, SliceState};

/// Port of DNS, network byte order.
const PORT: u16 = 53_u16.to_be();

/// A DNS server on this node. It serves a Service like an endpoint, by the ordinary path, while the Service has no
/// endpoint of its own that serves: an operator's server takes the Service over by having ready endpoints, and names are
/// answered until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalDns {
    /// The Service of cluster DNS.
    pub service: ObjectName,
    /// Where the server listens, at most one address of each family.
    pub addresses: Vec<Address>,
    /// Port that it listens on, over UDP and TCP, network byte order.
    pub port: u16,
}

impl LocalDns {
    /// The server as slices of a Service, if it serves it.
    pub(super) fn slices<'a, I: Iterator<Item = &'a SliceState>>(
        &self,
        name: &ObjectName,
        service: &ServiceState,
        others: impl Fn() -> I,
    ) -> Option<Vec<SliceState>> {
        let serves = |endpoint: &EndpointState| endpoint.ready || endpoint.serves_to_the_end();
        if *name != self.service || others().flat_map(|slice| &slice.endpoints).any(serves) {
            return None;
        }
        let is_dns = |port: &&super::state::Port| port.port == PORT && matches!(port.protocol, TCP | UDP);
        let slice = |address: &Address| SliceState {
            service: name.clone(),
            v4: address.is_v4(),
            ports: service
                .ports
                .iter()
                .filter(is_dns)
                .map(|port| (port.name.clone(), port.protocol, self.port))
                .collect(),
            endpoints: vec![EndpointState {
                address: *address,
                hostname: None,
                ready: true,
                serving: true,
                terminating: false,
                local: true,
                zones: Box::default(),
                nodes: Box::default(),
            }],
        };
        Some(self.addresses.iter().map(slice).collect())
    }
}
