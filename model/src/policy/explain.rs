//! Which rule of which NetworkPolicy decides about a flow: read off the objects, for people. What is enforced is what
//! [`super::Compiler`] makes of the same objects; tools compare the two.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kelp_common::Address;
use serde::Serialize;

use super::compile::in_block;
use super::object::{Labels, Namespaces, Peer, PodFacts, Port, Rule, policy_state};
use crate::service::ObjectName;

/// One end of a flow, behind every translation.
#[derive(Debug, Clone)]
pub struct End {
    /// Its address.
    pub address: Address,
    /// The pod that has the address, on any node.
    pub pod: Option<PodFacts>,
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleName {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub policy: String,
    /// The rule's path in the object, such as `spec.ingress[0]`.
    pub rule: String,
}

/// What the policies say about one direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "decision")]
pub enum Reason {
    /// No policy is about it.
    NotIsolated,
    /// These rules allow it.
    Allowed {
        /// All that do.
        rules: Vec<RuleName>,
    },
    /// Policies are about it, and none of their rules allows it.
    Denied {
        /// `namespace/name` of those policies.
        policies: Vec<String>,
    },
}

impl Reason {
    /// Whether the flow may begin, as far as this direction decides.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        !matches!(self, Self::Denied { .. })
    }
}

/// What the policies say about a flow: about what its source may send, and what its destination may receive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// About the source.
    pub egress: Reason,
    /// About the destination.
    pub ingress: Reason,
}

/// Explains a flow of a protocol to a port (host byte order; 0 for protocols without). `namespaces` are the labels of
/// Namespaces; one that is not there has none.
#[must_use]
pub fn explain(
    policies: &[NetworkPolicy],
    namespaces: &BTreeMap<Arc<str>, Labels>,
    (source, destination): (&End, &End),
    protocol: u8,
    port: u16,
) -> Explanation {
    if source.address == destination.address {
        // A pod may always reach itself.
        return Explanation { egress: Reason::NotIsolated, ingress: Reason::NotIsolated };
    }
    let matches = |rule: &Rule, peer: &End| {
        let ports = rule.ports.as_ref().is_none_or(|ports| {
            ports.iter().any(|wanted| port_matches(wanted, destination.pod.as_ref(), protocol, port))
        });
        let peers = rule.peers.as_ref();
        ports && peers.is_none_or(|peers| peers.iter().any(|wanted| peer_matches(wanted, peer, namespaces)))
    };
    let about = |pod: Option<&PodFacts>, peer: &End, ingress: bool| {
        let Some(pod) = pod else { return Reason::NotIsolated };
        let (mut allowing, mut isolating) = (Vec::new(), Vec::new());
        for policy in policies {
            let (Some(namespace), Some(name)) = (&policy.metadata.namespace, &policy.metadata.name) else {
                continue;
            };
            if **namespace != *pod.name.namespace {
                continue;
            }
            let Some(state) = policy_state(policy).0.filter(|state| state.selector.matches(&pod.labels))
            else {
                continue;
            };
            let (rules, path) = if ingress { (state.ingress, "ingress") } else { (state.egress, "egress") };
            let Some(rules) = rules else { continue };
            isolating.push(ObjectName::new(namespace, name).to_string());
            let found = rules.iter().enumerate().filter(|(_, rule)| matches(rule, peer));
            allowing.extend(found.map(|(number, _)| RuleName {
                namespace: namespace.clone(),
                policy: name.clone(),
                rule: format!("spec.{path}[{number}]"),
            }));
        }
        match (isolating.is_empty(), allowing.is_empty()) {
            (true, _) => Reason::NotIsolated,
            (false, false) => Reason::Allowed { rules: allowing },
            (false, true) => Reason::Denied { policies: isolating },
        }
    };
    Explanation {
        egress: about(source.pod.as_ref(), destination, false),
        ingress: about(destination.pod.as_ref(), source, true),
    }
}

fn peer_matches(peer: &Peer, end: &End, namespaces: &BTreeMap<Arc<str>, Labels>) -> bool {
    match peer {
        Peer::Block(range, except) => in_block(&end.address, range, except),
        Peer::Pods(wanted, pods) => end.pod.as_ref().is_some_and(|pod| {
            let namespace = match wanted {
                Namespaces::Own(own) => pod.name.namespace == *own,
                Namespaces::Selected(selector) => selector.matches(&namespaces.get(&pod.name.namespace)),
            };
            namespace && pods.matches(&pod.labels)
        }),
    }
}

fn port_matches(wanted: &Port, receiver: Option<&PodFacts>, protocol: u8, port: u16) -> bool {
    match wanted {
        Port::Numbers((of, first, last)) => *of == protocol && (*first..=*last).contains(&port),
        Port::Named(name, of) => {
            *of == protocol
                && receiver.is_some_and(|pod| {
                    pod.ports
                        .iter()
                        .any(|(own, of, number)| own == name && *of == protocol && *number == port)
                })
        }
    }
}
