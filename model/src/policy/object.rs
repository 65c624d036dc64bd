//! The fields of NetworkPolicies and Pods that decide, in upstream's meaning.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kelp_common::{Address, SCTP, TCP, UDP};

use super::ports::PortRange;
use super::range::Range;
use crate::selector::Selector;
use crate::service::ObjectName;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A static pod's mirror has the uid of the pod in this annotation.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyState {
    /// The pods of its namespace that it is about.
    pub selector: Selector,
    /// What may reach them; `None` when the policy says nothing about it.
    pub ingress: Option<Vec<Rule>>,
    /// What they may reach; `None` when the policy says nothing about it.
    pub egress: Option<Vec<Rule>>,
}

/// One of the rules that add up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The other side: any of these; `None` is everybody.
    pub peers: Option<Vec<Peer>>,
    /// The ports at the receiving side: any of these; `None` is everything.
    pub ports: Option<Vec<Port>>,
}

/// The other side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Pods by their labels, in these namespaces.
    Pods(Namespaces, Selector),
    /// A range without some ranges.
    Block(Range, Vec<Range>),
}

/// The namespaces of pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Namespaces {
    /// The policy's.
    Own(Arc<str>),
    /// Those with such labels.
    Selected(Selector),
}

/// Ports at the receiving side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// By number.
    Numbers(PortRange),
    /// The receiving pod's port of this name and protocol.
    Named(Arc<str>, u8),
}

/// A named port of a pod: name, protocol number, port.
pub type NamedPort = (Arc<str>, u8, u16);

/// What policies ask of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Namespace and name.
    pub name: ObjectName,
    /// Uid as the node's agent knows it (a mirror pod's is that of its static pod).
    pub uid: Arc<str>,
    /// Labels.
    pub labels: Labels,
    /// Ports with a name, sorted.
    pub ports: Vec<NamedPort>,
}

/// A pod as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodState {
    /// What policies ask of it.
    pub facts: PodFacts,
    /// Its addresses, sorted.
    pub addresses: Vec<Address>,
    /// When it was created, microseconds.
    pub created: i64,
}

impl PodFacts {
    /// The facts of a pod; nothing when it has no namespace or no name.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let name = ObjectName::new(pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?);
        let annotations = pod.metadata.annotations.as_ref();
        let uid = annotations.and_then(|all| all.get(MIRROR_ANNOTATION)).or(pod.metadata.uid.as_ref());
        let spec = pod.spec.as_ref();
        let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
        let sidecars = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).filter(sidecar);
        let containers = spec.iter().flat_map(|spec| &spec.containers);
        let mut ports: Vec<NamedPort> = containers
            .chain(sidecars)
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| {
                let name = port.name.as_deref().filter(|name| !name.is_empty())?;
                let number = u16::try_from(port.container_port).ok().filter(|port| *port != 0)?;
                Some((Arc::from(name), protocol(port.protocol.as_deref())?, number))
            })
            .collect();
        ports.sort_unstable();
        ports.dedup();
        Some(Self {
            name,
            uid: uid.map(String::as_str).unwrap_or_default().into(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            ports,
        })
    }
}

/// The pod as policies see it; nothing for one that has ended (its address may be another's) or whose address is the
/// node's.
#[must_use]
pub fn pod_state(pod: &Pod) -> Option<PodState> {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let ended = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
    if ended || spec.is_some_and(|spec| spec.host_network == Some(true)) {
        return None;
    }
    let all =
        status.iter().flat_map(|status| status.pod_ips.iter().flatten().map(|address| address.ip.as_str()));
    let first = status.and_then(|status| status.pod_ip.as_deref());
    let mut addresses: Vec<Address> = all
        .chain(first)
        .filter_map(|text| text.parse::<std::net::IpAddr>().ok())
        .map(Address::from)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let created = pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_microsecond());
    Some(PodState { facts: PodFacts::of(pod)?, addresses, created })
}

/// A policy, and what of it cannot be used: such a part allows nothing, the rest holds. Nothing at all when it cannot be
/// told whom the policy is about.
#[must_use]
pub fn policy_state(policy: &NetworkPolicy) -> (Option<PolicyState>, Vec<String>) {
    let mut problems = Vec::new();
    let spec = policy.spec.clone().unwrap_or_default();
    let namespace: Arc<str> = policy.metadata.namespace.as_deref().unwrap_or_default().into();
    // An absent selector is an empty one: all pods of the namespace.
    let selector = match Selector::from_label_selector(Some(&spec.pod_selector.unwrap_or_default())) {
        Ok(selector) => selector,
        Err(error) => {
            problems.push(format!("spec.podSelector: {error}; the policy has no effect"));
            return (None, problems);
        }
    };
    let types = spec.policy_types.unwrap_or_default();
    let has = |name: &str| types.iter().any(|kind| kind == name);
    // Without types every policy is about ingress, and one that has egress rules about egress too.
    let ingress = types.is_empty() || has("Ingress");
    let egress =
        has("Egress") || (types.is_empty() && spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
    let mut rule =
        |path: &str, peers: Option<Vec<NetworkPolicyPeer>>, ports: Option<Vec<NetworkPolicyPort>>| Rule {
            peers: peers.filter(|peers| !peers.is_empty()).map(|peers| {
                let peers = peers.iter().enumerate();
                peers
                    .filter_map(|(i, peer)| {
                        let path = format!("{path}[{i}]");
                        peer_of(&namespace, peer)
                            .map_err(|problem| problems.push(format!("{path}{problem}")))
                            .ok()
                    })
                    .collect()
            }),
            ports: ports
                .filter(|ports| !ports.is_empty())
                .map(|ports| ports.iter().filter_map(port_of).collect()),
        };
    let ingress = ingress.then(|| {
        let rules = spec.ingress.into_iter().flatten().enumerate();
        rules.map(|(i, r)| rule(&format!("spec.ingress[{i}].from"), r.from, r.ports)).collect()
    });
    let egress = egress.then(|| {
        let rules = spec.egress.into_iter().flatten().enumerate();
        rules.map(|(i, r)| rule(&format!("spec.egress[{i}].to"), r.to, r.ports)).collect()
    });
    (Some(PolicyState { selector, ingress, egress }), problems)
}

fn peer_of(namespace: &Arc<str>, peer: &NetworkPolicyPeer) -> Result<Peer, String> {
    const NOTHING: &str = "the peer matches nothing";
    if let Some(block) = &peer.ip_block {
        let parse = |path: &str, text: &str| {
            text.parse::<Range>().map_err(|error| format!(".ipBlock.{path}: {error}; {NOTHING}"))
        };
        let range = parse("cidr", &block.cidr)?;
        let mut except = Vec::new();
        for (i, text) in block.except.iter().flatten().enumerate() {
            except.push(parse(&format!("except[{i}]"), text)?);
        }
        except.sort_unstable();
        except.dedup();
        return Ok(Peer::Block(range, except));
    }
    let selector = |path: &str, selector| {
        Selector::from_label_selector(Some(selector)).map_err(|error| format!(".{path}: {error}; {NOTHING}"))
    };
    let namespaces = match &peer.namespace_selector {
        Some(namespaces) => Namespaces::Selected(selector("namespaceSelector", namespaces)?),
        None => Namespaces::Own(namespace.clone()),
    };
    match (&peer.pod_selector, &peer.namespace_selector) {
        (Some(pods), _) => Ok(Peer::Pods(namespaces, selector("podSelector", pods)?)),
        (None, Some(_)) => Ok(Peer::Pods(namespaces, Selector::everything())),
        (None, None) => Err(format!(": must specify a peer; {NOTHING}")),
    }
}

/// The ports; nothing for an entry that the API would refuse.
fn port_of(port: &NetworkPolicyPort) -> Option<Port> {
    let protocol = protocol(port.protocol.as_deref())?;
    let number = |number: i32| u16::try_from(number).ok().filter(|number| *number != 0);
    match (&port.port, port.end_port) {
        (None, None) => Some(Port::Numbers((protocol, 0, u16::MAX))),
        (Some(IntOrString::Int(first)), None) => {
            let first = number(*first)?;
            Some(Port::Numbers((protocol, first, first)))
        }
        (Some(IntOrString::Int(first)), Some(last)) => {
            let (first, last) = (number(*first)?, number(last)?);
            (first <= last).then_some(Port::Numbers((protocol, first, last)))
        }
        (Some(IntOrString::String(name)), None) => Some(Port::Named(name.as_str().into(), protocol)),
        _ => None,
    }
}

fn protocol(name: Option<&str>) -> Option<u8> {
    match name {
        None | Some("" | "TCP") => Some(TCP),
        Some("UDP") => Some(UDP),
        Some("SCTP") => Some(SCTP),
        Some(_) => None,
    }
}
