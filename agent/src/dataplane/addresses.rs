//! The addresses of the node that have node ports: all of its own but loopback and link-local ones. (Loopback addresses
//! have them in sockets of the host.) The kernel tells of every change.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt;
use kelp_common::Address;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use tokio_util::sync::CancellationToken;

use super::DatapathError;
use super::changes::Changes;
use super::kernel::failed;
use super::maps::Table;

/// Keeps the map of node addresses in step with the kernel.
#[derive(Debug)]
pub(super) struct NodeAddresses {
    table: Table<Address, u32>,
    /// Addresses that are the node's whatever the kernel says.
    configured: Vec<IpAddr>,
}

/// Told of changes by the kernel.
pub(super) struct Watch(Changes);

impl Watch {
    /// Listens in the network namespace of the calling thread, as long as this lives.
    pub fn open() -> Result<Self, DatapathError> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        Changes::open(&groups, "watch the node's addresses").map(Self)
    }
}

impl NodeAddresses {
    pub fn new(table: Table<Address, u32>, configured: Vec<IpAddr>) -> Self {
        Self { table, configured }
    }

    /// Writes the addresses as they are now.
    pub async fn write(&self, watch: &Watch) -> Result<(), DatapathError> {
        let mut list = watch.0.handle.address().get().execute();
        let mut own = Vec::new();
        while let Some(message) = list.try_next().await.map_err(failed("list the node's addresses"))? {
            // The local address of a point-to-point device is its own, the other one the peer's.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let any = || {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            };
            own.extend(local.or_else(any));
        }
        let wanted: BTreeSet<Address> = own
            .into_iter()
            .chain(self.configured.iter().copied())
            .filter(|address| !address.is_loopback() && !is_link_local(address))
            .map(Address::from)
            .collect();
        let mut known = BTreeSet::new();
        self.table.scan(|address, _| {
            known.insert(*address);
        })?;
        for address in wanted.difference(&known) {
            self.table.put(address, &1)?;
        }
        let stale: Vec<Address> = known.difference(&wanted).copied().collect();
        self.table.delete_all(&stale)
    }

    /// Follows the kernel until `shutdown`.
    pub async fn run(self, mut watch: Watch, shutdown: CancellationToken) {
        let work = async {
            while watch.0.next(is_change).await.is_some() {
                if let Err(error) = self.write(&watch).await {
                    tracing::warn!(error = %super::chain(&error), "the node's addresses not written");
                }
            }
        };
        shutdown.run_until_cancelled(work).await;
    }
}

fn is_change(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    matches!(
        message.payload,
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_))
            | NetlinkPayload::Overrun(_)
    )
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
