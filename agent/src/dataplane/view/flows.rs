//! What happens to flows, as the kernel's programs tell it while somebody listens; see [`kelp_common::event`].

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use jiff::Timestamp;
use kelp_common::event::{
    self, FlowEvent, FlowSwitch, HOOK_FROM_NET, HOOK_FROM_POD, HOOK_SOCKET, HOOK_TO_NET, HOOK_TO_POD,
    HOOK_XDP, VERDICT_DROPPED, VERDICT_FORWARDED, VERDICT_REFUSED, VERDICT_TRANSLATED,
};
use kelp_common::maps::counter;
use kelp_common::policy::POLICY_UNKNOWN;
use kelp_common::service::SCOPE_CLUSTER;
use kelp_common::{Address, FrontendKey, FrontendValue, NodeConfig, PodName, PolicyNames, ServiceName, maps};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::{Object, Pins, ServicePort, ViewError, protocol_name};
use crate::dataplane::kernel::failed;
use crate::dataplane::maps::Table;
use crate::dataplane::sys::{self, Plain};

/// Seconds for which the programs tell of flows without a word of their listener.
const LEASE: u32 = 5;
/// How often a listener says that it is there.
const RENEWAL: Duration = Duration::from_secs(1);

// SAFETY: integers without padding; the size is asserted where the type is defined.
unsafe impl Plain for FlowSwitch {}

/// What became of a packet, or of a destination in a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It goes on as it is.
    Forwarded,
    /// It goes on with other addresses.
    Translated,
    /// It is gone.
    Dropped,
    /// The sender was told that there is nothing.
    Refused,
}

impl Verdict {
    fn of(number: u8) -> Option<Self> {
        match number {
            VERDICT_FORWARDED => Some(Self::Forwarded),
            VERDICT_TRANSLATED => Some(Self::Translated),
            VERDICT_DROPPED => Some(Self::Dropped),
            VERDICT_REFUSED => Some(Self::Refused),
            _ => None,
        }
    }
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Identity {
    /// A pod of this node.
    Pod(Object),
    /// This node.
    Node,
    /// A pod whose name is not known: of another node.
    Cluster,
    /// A service address.
    Service,
    /// Anybody else.
    Outside,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(pod) => pod.fmt(f),
            Self::Node => f.write_str("node"),
            Self::Cluster => f.write_str("cluster"),
            Self::Service => f.write_str("service"),
            Self::Outside => f.write_str("outside"),
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowReport {
    /// When.
    pub time: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was dropped or refused: a name of `kelp_dataplane_drops_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Where it was seen: `from-pod`, `to-pod`, `from-net`, `to-net` or `socket`.
    pub seen: &'static str,
    /// The protocol.
    pub protocol: String,
    /// The source as it came. Of a socket's destination port 0, as it has none yet.
    pub source: SocketAddr,
    /// Who that is.
    pub source_identity: Identity,
    /// The destination as it came.
    pub destination: SocketAddr,
    /// Who that is.
    pub destination_identity: Identity,
    /// The source as it goes on, if it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translated_source: Option<SocketAddr>,
    /// The destination as it goes on, or would have, if it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translated_destination: Option<SocketAddr>,
    /// Who that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translated_identity: Option<Identity>,
    /// The Service at the destination as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServicePort>,
    /// The network policies of which none allows it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Object>,
}

/// Whom a flow is from or to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Party {
    /// An address range.
    Range(IpAddr, u8),
    /// A pod or service by its name, in a namespace or in any.
    Name(Option<String>, String),
}

impl std::str::FromStr for Party {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Range(address, if address.is_ipv4() { 32 } else { 128 }));
        }
        let named = |name: &str| !name.is_empty() && !name.contains(['/', ':']);
        match text.split_once('/') {
            Some((network, prefix)) if network.parse::<IpAddr>().is_ok() => {
                let network: IpAddr = network.parse().map_err(|_| format!("{network:?} is no address"))?;
                let longest = if network.is_ipv4() { 32 } else { 128 };
                let prefix = prefix.parse().ok().filter(|prefix| *prefix <= longest);
                let prefix =
                    prefix.ok_or_else(|| format!("{text:?}: the prefix is not one from 0 to {longest}"))?;
                Ok(Self::Range(network, prefix))
            }
            Some((namespace, name)) if named(namespace) && named(name) => {
                Ok(Self::Name(Some(namespace.to_owned()), name.to_owned()))
            }
            None if named(text) => Ok(Self::Name(None, text.to_owned())),
            _ => Err(format!("{text:?} is no address, range, NAME or NAMESPACE/NAME")),
        }
    }
}

impl Party {
    fn is(&self, address: &SocketAddr, identity: &Identity, service: Option<&ServicePort>) -> bool {
        let (namespace, wanted) = match self {
            Self::Range(network, prefix) => {
                return kelp_common::Cidr::new(*network, *prefix).contains(&Address::from(address.ip()));
            }
            Self::Name(namespace, name) => (namespace, name),
        };
        let matches = |space: &str, name: &str| {
            name == wanted && namespace.as_ref().is_none_or(|wanted| wanted == space)
        };
        match identity {
            Identity::Pod(pod) if matches(&pod.namespace, &pod.name) => true,
            Identity::Node | Identity::Cluster | Identity::Outside
                if namespace.is_none() && identity.to_string() == *wanted =>
            {
                true
            }
            _ => service.is_some_and(|service| matches(&service.namespace, &service.name)),
        }
    }
}

/// Which events to show: those that match everything that is given.
#[derive(Debug, Clone, Default)]
pub struct FlowFilter {
    /// With one of these verdicts; all when there is none.
    pub verdicts: Vec<Verdict>,
    /// From these.
    pub from: Option<Party>,
    /// To these, before or behind the translation.
    pub to: Option<Party>,
    /// Of this protocol number.
    pub protocol: Option<u8>,
    /// With this port on either side, before or behind the translation.
    pub port: Option<u16>,
    /// Dropped or refused for this reason.
    pub reason: Option<String>,
}

impl FlowFilter {
    /// Whether an event is to be shown.
    #[must_use]
    pub fn admits(&self, flow: &FlowReport) -> bool {
        let translated = flow.translated_destination.as_ref().zip(flow.translated_identity.as_ref());
        let to = self.to.as_ref().is_none_or(|to| {
            to.is(&flow.destination, &flow.destination_identity, flow.service.as_ref())
                || translated.is_some_and(|(address, identity)| to.is(address, identity, None))
        });
        let ports =
            [Some(flow.source), Some(flow.destination), flow.translated_source, flow.translated_destination];
        to && (self.verdicts.is_empty() || self.verdicts.contains(&flow.verdict))
            && self.from.as_ref().is_none_or(|from| from.is(&flow.source, &flow.source_identity, None))
            && self.protocol.is_none_or(|protocol| protocol_name(protocol.into()) == flow.protocol)
            && self.port.is_none_or(|port| ports.into_iter().flatten().any(|end| end.port() == port))
            && self.reason.as_deref().is_none_or(|reason| flow.reason == Some(reason))
    }
}

/// Events that were not told since the listener came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Lost {
    /// Because there were more than the rate allows.
    pub rate: u64,
    /// Because the listener was slow.
    pub ring: u64,
}

/// Somebody who listens. The programs tell of flows while it is there; there is one at a time.
pub struct Listener {
    ring: RingBuf<MapData>,
    switch: Table<u32, FlowSwitch>,
    state: Table<u32, u64>,
    cpus: usize,
    lost_before: Lost,
    rate: u32,
    describer: Describer,
    _alone: Flock<File>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl Listener {
    /// Begins to listen; at most `rate` events a second and CPU are told.
    ///
    /// # Errors
    /// When no dataplane has its maps there, another listener is there, or the kernel refuses.
    pub fn open(pins: &Pins, rate: u32) -> Result<Self, ViewError> {
        let switch = pins.table(maps::FLOW_SWITCH)?;
        let state = pins.table(maps::FLOW_STATE)?;
        let directory = pins.directory.join("maps");
        let file = File::open(&directory).map_err(failed(format!("open {}", directory.display())))?;
        let alone = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
            if error == nix::errno::Errno::EWOULDBLOCK {
                ViewError::Busy
            } else {
                ViewError::Kernel(failed("lock the directory of maps")(std::io::Error::from(error)))
            }
        })?;
        let action = || failed(format!("open the map {}", maps::FLOW_EVENTS));
        let data = MapData::from_pin(directory.join(maps::FLOW_EVENTS)).map_err(action())?;
        let map = Map::from_map_data(data).map_err(action())?;
        let mut ring = RingBuf::try_from(map).map_err(action())?;
        // What an earlier listener left.
        while ring.next().is_some() {}
        let cpus = crate::dataplane::possible_cpus()?;
        let describer = Describer::open(pins)?;
        let mut this =
            Self { ring, switch, state, cpus, lost_before: Lost::default(), rate, describer, _alone: alone };
        this.lost_before = this.lost_ever()?;
        this.renew()?;
        Ok(this)
    }

    /// Says that the listener is there.
    fn renew(&self) -> Result<(), ViewError> {
        let until = sys::monotonic_seconds().saturating_add(LEASE);
        Ok(self.switch.put(&0, &FlowSwitch { until, rate: self.rate })?)
    }

    /// Waits for events, at most as long as said and at most a second.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&mut self, patience: Duration) -> Result<Vec<FlowReport>, ViewError> {
        self.renew()?;
        let patience = PollTimeout::try_from(patience.min(RENEWAL)).unwrap_or(PollTimeout::ZERO);
        let found = poll(&mut [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)], patience);
        match found {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(failed("wait for events")(std::io::Error::from(error)).into()),
        }
        let mut reports = Vec::new();
        while let Some(item) = self.ring.next() {
            if item.len() < size_of::<FlowEvent>() {
                continue;
            }
            // SAFETY: the programs write whole events, of integers only; the copy needs no alignment.
            let event = unsafe { item.as_ptr().cast::<FlowEvent>().read_unaligned() };
            reports.extend(self.describer.describe(&event)?);
        }
        Ok(reports)
    }

    /// What was not told.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lost(&self) -> Result<Lost, ViewError> {
        let Lost { rate, ring } = self.lost_ever()?;
        // An agent of another layout may have begun anew.
        Ok(Lost {
            rate: rate.saturating_sub(self.lost_before.rate),
            ring: ring.saturating_sub(self.lost_before.ring),
        })
    }

    fn lost_ever(&self) -> Result<Lost, ViewError> {
        Ok(Lost { rate: self.sum(event::state::LOST_RATE)?, ring: self.sum(event::state::LOST_RING)? })
    }

    fn sum(&self, index: u32) -> Result<u64, ViewError> {
        let values = sys::map_lookup_percpu(self.state.fd(), index, self.cpus);
        Ok(values.map_err(failed("count what was lost"))?.iter().sum())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Else the programs forget the listener a little later.
        let _ = self.switch.put(&0, &FlowSwitch::default());
    }
}

/// Knows what addresses are, by the maps.
#[derive(Debug)]
struct Describer {
    frontends: Table<FrontendKey, FrontendValue>,
    services: Option<Table<u32, ServiceName>>,
    pods: Option<Table<Address, PodName>>,
    policies: Option<Table<u64, PolicyNames>>,
    nodes: Table<Address, u32>,
    config: Table<u32, NodeConfig>,
    /// The monotonic clock and the time, at one moment; nanoseconds.
    clock: (i128, Timestamp),
}

impl Describer {
    fn open(pins: &Pins) -> Result<Self, ViewError> {
        Ok(Self {
            frontends: pins.table(maps::FRONTENDS)?,
            services: Table::open_pin(&pins.directory, maps::SERVICE_NAMES)?,
            pods: Table::open_pin(&pins.directory, maps::POD_NAMES)?,
            policies: Table::open_pin(&pins.directory, maps::POLICY_NAMES)?,
            nodes: pins.table(maps::NODE_ADDRESSES)?,
            config: pins.table(maps::NODE_CONFIG)?,
            clock: (i128::from(sys::monotonic_nanoseconds()), Timestamp::now()),
        })
    }

    fn describe(&self, event: &FlowEvent) -> Result<Option<FlowReport>, ViewError> {
        let Some(verdict) = Verdict::of(event.verdict) else { return Ok(None) };
        let key = &event.key;
        let end = |address: &Address, port: u16| SocketAddr::new((*address).into(), u16::from_be(port));
        let (source, destination) =
            (end(&key.source, key.source_port), end(&key.destination, key.destination_port));
        let new_source = end(&event.source, event.source_port);
        let new_destination = end(&event.destination, event.destination_port);
        let stops = matches!(verdict, Verdict::Dropped | Verdict::Refused);
        let is_other = new_destination != destination;
        let config = self.config.get(&0)?.unwrap_or_default();
        Ok(Some(FlowReport {
            time: self.time(event.time),
            verdict,
            reason: reason(event.reason).filter(|_| stops),
            seen: match event.hook {
                HOOK_FROM_POD => "from-pod",
                HOOK_TO_POD => "to-pod",
                HOOK_FROM_NET => "from-net",
                HOOK_TO_NET => "to-net",
                HOOK_SOCKET => "socket",
                HOOK_XDP => "xdp",
                _ => "?",
            },
            protocol: protocol_name(key.protocol),
            source,
            source_identity: self.identity(&key.source, &config)?,
            destination,
            destination_identity: self.identity(&key.destination, &config)?,
            translated_source: (new_source != source).then_some(new_source),
            translated_destination: is_other.then_some(new_destination),
            translated_identity: if is_other {
                Some(self.identity(&event.destination, &config)?)
            } else {
                None
            },
            service: self.service(&key.destination, key.destination_port, key.protocol)?,
            policies: self.policies(event.space, event.policy)?,
        }))
    }

    /// The time of a moment of the monotonic clock.
    fn time(&self, nanoseconds: u64) -> String {
        let (monotonic, time) = self.clock;
        let at = time.as_nanosecond() + i128::from(nanoseconds) - monotonic;
        Timestamp::from_nanosecond(at).unwrap_or(time).to_string()
    }

    fn identity(&self, address: &Address, config: &NodeConfig) -> Result<Identity, ViewError> {
        if let Some(pods) = &self.pods
            && let Some(name) = pods.get(address)?
        {
            return Ok(Identity::Pod(Object::of(name.parts())));
        }
        let is_in = |ranges: &[kelp_common::Cidr; 2]| ranges.iter().any(|range| range.contains(address));
        Ok(if *address == Address::ANY_V6 || address.is_loopback() || self.nodes.get(address)?.is_some() {
            // (A socket without an address is of a process of this node that is in no pod.)
            Identity::Node
        } else if is_in(&config.services) {
            Identity::Service
        } else if is_in(&config.cluster) || is_in(&config.pods) {
            Identity::Cluster
        } else {
            Identity::Outside
        })
    }

    fn service(&self, address: &Address, port: u16, protocol: u32) -> Result<Option<ServicePort>, ViewError> {
        let (Some(names), Ok(protocol)) = (&self.services, u8::try_from(protocol)) else { return Ok(None) };
        let at = |address| FrontendKey { address, port, protocol, scope: SCOPE_CLUSTER };
        let mut found = self.frontends.get(&at(*address))?;
        if found.is_none() && (address.is_loopback() || self.nodes.get(address)?.is_some()) {
            found = self.frontends.get(&at(address.any_of_family()))?;
        }
        let Some(frontend) = found else { return Ok(None) };
        Ok(names.get(&frontend.table)?.map(|name| ServicePort::of(&name)))
    }

    fn policies(&self, space: u32, policy: u32) -> Result<Vec<Object>, ViewError> {
        let Some(names) = self.policies.as_ref().filter(|_| policy != 0 && policy != POLICY_UNKNOWN) else {
            return Ok(Vec::new());
        };
        let name = names.get(&kelp_common::name::policy_key(space, policy))?;
        Ok(name.map_or_else(Vec::new, |name| Object::all_of(&name)))
    }
}

/// The reasons for which packets and connections are dropped or refused.
#[must_use]
pub fn reasons() -> &'static [&'static str] {
    &counter::NAMES
}

/// The name of the counter in an event.
fn reason(number: u8) -> Option<&'static str> {
    counter::NAMES.get(usize::from(number.checked_sub(1)?)).copied()
}
