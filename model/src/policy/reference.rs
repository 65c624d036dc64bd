//! NetworkPolicy read off its documentation, object by object and without any table: what the compiler is compared with.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The objects of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    pub namespaces: Vec<Namespace>,
    pub pods: Vec<Pod>,
    pub policies: Vec<NetworkPolicy>,
    /// Names of the pods whose node decides.
    pub local: Vec<String>,
}

impl Cluster {
    fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.iter().find(|pod| {
            let status = pod.status.clone().unwrap_or_default();
            let host = pod.spec.as_ref().unwrap().host_network == Some(true);
            let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
            let own = status.pod_ips.unwrap_or_default();
            !host && !ended && own.iter().any(|ip| ip.ip.parse() == Ok(address))
        })
    }

    /// Whether a new flow may begin, as far as the node of the local pods decides.
    pub fn admits(&self, source: IpAddr, destination: IpAddr, protocol: &str, port: u16) -> bool {
        if source == destination {
            return true;
        }
        let ends = (self.pod_at(source), self.pod_at(destination));
        let is_local = |pod: &&Pod| self.local.contains(pod.metadata.name.as_ref().unwrap());
        let ports = |list: &Option<Vec<NetworkPolicyPort>>| match list.as_deref() {
            None | Some([]) => true,
            Some(list) => list.iter().any(|entry| port_matches(entry, ends.1, protocol, port)),
        };
        let peers = |policy: &NetworkPolicy, list: &Option<Vec<NetworkPolicyPeer>>, address, pod| match list
            .as_deref()
        {
            None | Some([]) => true,
            Some(list) => list.iter().any(|peer| self.peer_matches(policy, peer, address, pod)),
        };
        let mut allowed = true;
        if let Some(pod) = ends.0.filter(is_local) {
            let about: Vec<_> = self.selecting(pod).filter(|policy| has_type(policy, "Egress")).collect();
            allowed &= about.is_empty()
                || about.iter().any(|policy| {
                    let rules = policy.spec.as_ref().unwrap().egress.as_deref().unwrap_or_default();
                    rules
                        .iter()
                        .any(|rule| ports(&rule.ports) && peers(policy, &rule.to, destination, ends.1))
                });
        }
        if let Some(pod) = ends.1.filter(is_local) {
            let about: Vec<_> = self.selecting(pod).filter(|policy| has_type(policy, "Ingress")).collect();
            allowed &= about.is_empty()
                || about.iter().any(|policy| {
                    let rules = policy.spec.as_ref().unwrap().ingress.as_deref().unwrap_or_default();
                    rules.iter().any(|rule| ports(&rule.ports) && peers(policy, &rule.from, source, ends.0))
                });
        }
        allowed
    }

    fn selecting<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a NetworkPolicy> {
        self.policies.iter().filter(|policy| {
            policy.metadata.namespace == pod.metadata.namespace
                && selects(policy.spec.as_ref().unwrap().pod_selector.as_ref(), pod.metadata.labels.as_ref())
        })
    }

    fn peer_matches(
        &self,
        policy: &NetworkPolicy,
        peer: &NetworkPolicyPeer,
        address: IpAddr,
        pod: Option<&Pod>,
    ) -> bool {
        if let Some(block) = &peer.ip_block {
            let except = block.except.as_deref().unwrap_or_default();
            return contains(&block.cidr, address) && !except.iter().any(|except| contains(except, address));
        }
        let Some(pod) = pod else { return false };
        let namespace = match &peer.namespace_selector {
            None => pod.metadata.namespace == policy.metadata.namespace,
            Some(selector) => {
                let found = self.namespaces.iter().find(|n| n.metadata.name == pod.metadata.namespace);
                selects(Some(selector), found.and_then(|found| found.metadata.labels.as_ref()))
            }
        };
        namespace && selects(peer.pod_selector.as_ref(), pod.metadata.labels.as_ref())
    }
}

fn has_type(policy: &NetworkPolicy, name: &str) -> bool {
    let spec = policy.spec.as_ref().unwrap();
    match spec.policy_types.as_deref() {
        None | Some([]) => name == "Ingress" || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        Some(types) => types.iter().any(|kind| kind == name),
    }
}

/// Here an absent selector has no requirement: callers know what it means.
fn selects(
    selector: Option<&LabelSelector>,
    labels: Option<&std::collections::BTreeMap<String, String>>,
) -> bool {
    let Some(selector) = selector else { return true };
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted))
        && selector.match_expressions.iter().flatten().all(|expression| {
            let has = value(&expression.key);
            let among = has.is_some_and(|has| expression.values.iter().flatten().any(|wanted| wanted == has));
            match expression.operator.as_str() {
                "In" => among,
                "NotIn" => !among,
                "Exists" => has.is_some(),
                _ => has.is_none(),
            }
        })
}

fn port_matches(entry: &NetworkPolicyPort, receiver: Option<&Pod>, protocol: &str, port: u16) -> bool {
    if entry.protocol.as_deref().unwrap_or("TCP") != protocol {
        return false;
    }
    match (&entry.port, entry.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), end) => (*first..=end.unwrap_or(*first)).contains(&i32::from(port)),
        (Some(IntOrString::String(name)), _) => receiver.is_some_and(|pod| {
            let containers = &pod.spec.as_ref().unwrap().containers;
            containers.iter().flat_map(|c| c.ports.iter().flatten()).any(|own| {
                own.name.as_ref() == Some(name)
                    && own.protocol.as_deref().unwrap_or("TCP") == protocol
                    && own.container_port == i32::from(port)
            })
        }),
    }
}

fn contains(cidr: &str, address: IpAddr) -> bool {
    let (network, prefix) = cidr.split_once('/').unwrap();
    let prefix: u32 = prefix.parse().unwrap();
    match (network.parse().unwrap(), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u32::from(network) ^ u32::from(address)).checked_shr(32 - prefix).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            (u128::from(network) ^ u128::from(address)).checked_shr(128 - prefix).unwrap_or(0) == 0
        }
        _ => false,
    }
}
