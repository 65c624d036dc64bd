//! Flows that are remembered: those that the packet path translates, those that sockets were given another destination
//! for, and those that network policies have judged.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kelp_common::flow::{FLOW_CLOSED, FLOW_ESTABLISHED, FLOW_FIN, FLOW_REPLY, lifetime};
use kelp_common::policy::{
    CONNECTION_CLOSED, CONNECTION_ESTABLISHED, CONNECTION_FIN_FIRST, CONNECTION_FIN_SECOND,
    CONNECTION_FORBIDDEN, CONNECTION_FORBIDDEN_EGRESS, CONNECTION_OPENED_BY_SECOND,
};
use kelp_common::service::SCOPE_CLUSTER;
use kelp_common::{
    Address, ConnectionValue, FlowKey, FlowValue, FrontendKey, FrontendValue, NamespaceValue, SocketKey,
    SocketValue, maps,
};
use serde::Serialize;

use super::{Filter, Names, Object, Pins, ServicePort, ViewError, protocol_name};
use crate::dataplane::sys;

/// Who remembers a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Packets are translated one by one.
    Packet,
    /// The socket was connected to another destination, and no packet needs to be looked at.
    Socket,
    /// Network policies apply to one of the ends. A flow that is also translated has another entry for that.
    Policy,
}

/// How far a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Only one end has sent.
    New,
    /// Both ends have sent.
    Established,
    /// TCP: one end has said that it will send nothing more.
    Closing,
    /// TCP: both have, or the connection was reset.
    Closed,
}

/// What a translation changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Nat {
    /// Nothing.
    None,
    /// The source.
    Source,
    /// The destination.
    Destination,
    /// Both.
    Both,
}

/// The ends of a flow, from who opened it to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Ends {
    /// Who opened it; nothing for a socket of a process whose address is not known. Port 0 is one that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SocketAddr>,
    /// To whom. For an ICMP echo the ports are its identifier, on the side of who asks.
    pub destination: SocketAddr,
}

impl Ends {
    fn of(source: &Address, source_port: u16, destination: &Address, destination_port: u16) -> Self {
        Self { source: Some(socket(source, source_port)), destination: socket(destination, destination_port) }
    }
}

fn socket(address: &Address, port: u16) -> SocketAddr {
    SocketAddr::new((*address).into(), u16::from_be(port))
}

/// A remembered flow, both directions together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conversation {
    /// Who remembers it.
    pub path: Path,
    /// The protocol.
    pub protocol: String,
    /// How far it is; not known for sockets, whose state is the kernel's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// The ends as who opened the flow names them.
    pub original: Ends,
    /// The ends as whom it was opened to sees them.
    pub translated: Ends,
    /// What the translation changes.
    pub nat: Nat,
    /// The Service that was named, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServicePort>,
    /// Id of the backend; nothing when no service is involved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<u32>,
    /// The pod of this node that opened it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_pod: Option<Object>,
    /// The pod of this node to which it was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_pod: Option<Object>,
    /// What the policies said; nothing for other entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
    /// Seconds since a packet was seen, ±1; not known for sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u32>,
    /// Seconds after which it is forgotten unless a packet comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// What is needed to say what flows are about.
struct Context {
    names: Names,
    frontends: BTreeMap<FrontendKey, FrontendValue>,
    /// Seconds of the monotonic clock.
    now: u32,
}

impl Context {
    /// The service at an address, or of a node port there.
    fn service(&self, address: &Address, port: u16, protocol: u32) -> Option<ServicePort> {
        let protocol = u8::try_from(protocol).ok()?;
        let at = |address| FrontendKey { address, port, protocol, scope: SCOPE_CLUSTER };
        let found =
            self.frontends.get(&at(*address)).or_else(|| self.frontends.get(&at(address.any_of_family())));
        self.names.services.get(&found?.table).cloned()
    }

    fn pod(&self, address: &Address) -> Option<Object> {
        self.names.pods.get(address).cloned()
    }

    /// Seconds left, and seconds since the last packet, of an entry with this lifetime.
    fn times(&self, expires: u32, lifetime: u32) -> (u32, u32) {
        let left = expires.saturating_sub(self.now);
        (left, lifetime.saturating_sub(left))
    }

    /// A flow of the packet path by the entry of the direction in which it was opened, and that of its replies if it is
    /// there.
    fn packet(&self, key: &FlowKey, value: &FlowValue, reply: Option<&FlowValue>) -> Conversation {
        let flags = value.flags | reply.map_or(0, |reply| reply.flags);
        let (mut left, mut idle) = self.times(value.expires, lifetime(key.protocol, value.flags));
        if let Some(reply) = reply {
            // A flow lives while one of its directions does.
            let of_reply = self.times(reply.expires, lifetime(key.protocol, reply.flags));
            (left, idle) = (left.max(of_reply.0), idle.min(of_reply.1));
        }
        let source = (key.source, key.source_port) != (value.source, value.source_port);
        let destination =
            (key.destination, key.destination_port) != (value.destination, value.destination_port);
        let service = (value.backend != 0)
            .then(|| self.service(&key.destination, key.destination_port, key.protocol))
            .flatten();
        Conversation {
            path: Path::Packet,
            protocol: protocol_name(key.protocol),
            state: Some(state(
                flags & FLOW_ESTABLISHED != 0,
                flags & FLOW_FIN != 0,
                flags & FLOW_CLOSED != 0,
            )),
            original: Ends::of(&key.source, key.source_port, &key.destination, key.destination_port),
            translated: Ends::of(
                &value.source,
                value.source_port,
                &value.destination,
                value.destination_port,
            ),
            nat: match (source, destination) {
                (false, false) => Nat::None,
                (true, false) => Nat::Source,
                (false, true) => Nat::Destination,
                (true, true) => Nat::Both,
            },
            service,
            backend: Some(value.backend).filter(|backend| *backend != 0),
            source_pod: self.pod(&key.source),
            destination_pod: self.pod(&value.destination),
            verdict: None,
            idle_seconds: Some(idle),
            timeout_seconds: Some(left),
        }
    }

    /// A destination of a socket. Its own port is not known.
    fn socket(&self, key: &SocketKey, value: &SocketValue, client: Option<Address>) -> Conversation {
        let source = client.map(|address| SocketAddr::new(address.into(), 0));
        let port = u16::try_from(key.port).unwrap_or_default();
        Conversation {
            path: Path::Socket,
            protocol: protocol_name(value.protocol.into()),
            state: None,
            original: Ends { source, destination: socket(&value.address, value.port) },
            translated: Ends { source, destination: socket(&key.address, port) },
            nat: Nat::Destination,
            service: self.service(&value.address, value.port, value.protocol.into()),
            backend: Some(value.backend),
            source_pod: client.and_then(|address| self.pod(&address)),
            destination_pod: self.pod(&key.address),
            verdict: None,
            idle_seconds: None,
            timeout_seconds: None,
        }
    }

    /// A flow that policies have judged.
    fn judged(&self, key: &FlowKey, value: &ConnectionValue) -> Conversation {
        let has = |bit| value.flags & bit != 0;
        let (first, second) = ((key.source, key.source_port), (key.destination, key.destination_port));
        let (from, to) = if has(CONNECTION_OPENED_BY_SECOND) { (second, first) } else { (first, second) };
        let flags = if has(CONNECTION_CLOSED) { FLOW_CLOSED } else { 0 }
            | if has(CONNECTION_ESTABLISHED) { FLOW_ESTABLISHED } else { 0 };
        let (left, idle) = self.times(value.expires, lifetime(key.protocol, flags));
        let ends = Ends::of(&from.0, from.1, &to.0, to.1);
        Conversation {
            path: Path::Policy,
            protocol: protocol_name(key.protocol),
            state: Some(state(
                has(CONNECTION_ESTABLISHED),
                has(CONNECTION_FIN_FIRST | CONNECTION_FIN_SECOND),
                has(CONNECTION_CLOSED),
            )),
            original: ends,
            translated: ends,
            nat: Nat::None,
            service: None,
            backend: None,
            source_pod: self.pod(&from.0),
            destination_pod: self.pod(&to.0),
            verdict: Some(match (has(CONNECTION_FORBIDDEN), has(CONNECTION_FORBIDDEN_EGRESS)) {
                (false, _) => "allowed",
                (true, false) => "forbidden: ingress",
                (true, true) => "forbidden: egress",
            }),
            idle_seconds: Some(idle),
            timeout_seconds: Some(left),
        }
    }
}

fn state(established: bool, closing: bool, closed: bool) -> State {
    match (established, closing, closed) {
        (_, _, true) => State::Closed,
        (_, true, _) => State::Closing,
        (true, ..) => State::Established,
        _ => State::New,
    }
}

/// The flows in the maps that have not expired, by who remembers them and then by their ends.
///
/// # Errors
/// When no dataplane has its maps there, or the kernel refuses.
pub fn conversations(pins: &Pins, filter: &Filter) -> Result<Vec<Conversation>, ViewError> {
    let frontends = pins.content(maps::FRONTENDS)?;
    let context = Context { names: pins.names()?, frontends, now: sys::monotonic_seconds() };
    let mut rows = packet_flows(pins, filter, &context)?;
    let clients: BTreeMap<u64, NamespaceValue> = pins.content(maps::NAMESPACES)?;
    pins.table::<SocketKey, SocketValue>(maps::SOCKETS)?.scan(|key, value| {
        let client = clients.get(&value.namespace).and_then(|namespace| {
            let known = namespace.addresses.iter().filter(|address| **address != Address::ANY_V6);
            known.copied().find(|address| address.is_v4() == key.address.is_v4())
        });
        let addresses = [key.address, value.address, client.unwrap_or(key.address)];
        if filter.admits_protocol(value.protocol.into()) && filter.admits_address(&addresses) {
            rows.push(context.socket(key, value, client));
        }
    })?;
    pins.table::<FlowKey, ConnectionValue>(maps::CONNECTIONS)?.scan(|key, value| {
        let living = value.expires >= context.now;
        let wanted =
            filter.admits_protocol(key.protocol) && filter.admits_address(&[key.source, key.destination]);
        if living && wanted {
            rows.push(context.judged(key, value));
        }
    })?;
    rows.retain(|row| {
        let pods = row.source_pod.iter().chain(&row.destination_pod).map(|pod| pod.namespace.as_str());
        let services = row.service.iter().map(|service| service.namespace.as_str());
        filter.admits_service(row.service.iter()) && filter.admits_namespace(pods.chain(services))
    });
    rows.sort_by_cached_key(|row| (row.path, row.protocol.clone(), row.original, row.translated));
    Ok(rows)
}

fn packet_flows(pins: &Pins, filter: &Filter, context: &Context) -> Result<Vec<Conversation>, ViewError> {
    let identity =
        |key: &FlowKey| (key.source, key.source_port, key.destination, key.destination_port, key.protocol);
    let (mut opened, mut replies) = (Vec::new(), BTreeMap::new());
    pins.table::<FlowKey, FlowValue>(maps::FLOWS)?.scan(|key, value| {
        if value.flags & FLOW_REPLY == 0 {
            opened.push((*key, *value));
        } else {
            replies.insert(identity(key), (*key, *value));
        }
    })?;
    let mut rows = Vec::new();
    let mut show = |key: &FlowKey, value: &FlowValue, reply: Option<&FlowValue>| {
        let living = value.expires >= context.now || reply.is_some_and(|reply| reply.expires >= context.now);
        let addresses = [key.source, key.destination, value.source, value.destination];
        if living && filter.admits_protocol(key.protocol) && filter.admits_address(&addresses) {
            rows.push(context.packet(key, value, reply));
        }
    };
    for (key, value) in &opened {
        let reply = replies.remove(&identity(&value.reverse_key(key.protocol)));
        show(key, value, reply.as_ref().map(|(_, reply)| reply));
    }
    // What is left of flows whose other half was forgotten to make room: their first half follows from the second.
    for (key, value) in replies.values() {
        let forward = FlowValue {
            source: key.destination,
            destination: key.source,
            source_port: key.destination_port,
            destination_port: key.source_port,
            ..*value
        };
        show(&value.reverse_key(key.protocol), &forward, None);
    }
    Ok(rows)
}
