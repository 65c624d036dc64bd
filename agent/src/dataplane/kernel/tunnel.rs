//! The device of tunnels between nodes: VXLAN whose other ends the programs name, a packet at a time. There is one on a node,
//! for both families. It is found again by its name.

use std::io;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::netlink::Connection;

/// Name of the device.
pub const DEVICE: &str = "kelp-vxlan";

/// The device as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// Largest IP packet, bytes.
    mtu: u32,
    is_up: bool,
    /// Its UDP port when the programs name the other ends; `None` for a device of another kind.
    port: Option<u16>,
}

impl Device {
    fn of(message: &LinkMessage) -> Self {
        let mut device = Self {
            ifindex: message.header.index,
            is_up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        let (mut kind, mut external, mut port) = (false, false, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(InfoKind::Vxlan) => kind = true,
                            LinkInfo::Data(InfoData::Vxlan(data)) => {
                                external |= data.contains(&InfoVxlan::CollectMetadata(true));
                                port = data.iter().find_map(|data| match data {
                                    InfoVxlan::Port(port) => Some(*port),
                                    _ => None,
                                });
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        device.port = port.filter(|_| kind && external);
        device
    }
}

/// The device of that name, if there is one of ours.
pub fn find(netlink: &mut Connection) -> io::Result<Option<Device>> {
    Ok(look(netlink)?.filter(|device| device.port.is_some()))
}

fn look(netlink: &mut Connection) -> io::Result<Option<Device>> {
    let message = LinkUnspec::new_with_name(DEVICE).build();
    let mut found = None;
    let result = netlink.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK, |answer| {
        if let RouteNetlinkMessage::NewLink(message) = answer {
            found = Some(Device::of(&message));
        }
    });
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        result => result.map(|()| found),
    }
}

/// Makes the device, or makes the one that is there what it should be; one with another port is replaced. Returns its index.
pub fn ensure(netlink: &mut Connection, port: u16, mtu: u32) -> io::Result<u32> {
    let device = match look(netlink)? {
        Some(Device { port: None, .. }) => {
            return Err(io::Error::other(format!(
                "there is another device with the name {DEVICE}; rename or remove it"
            )));
        }
        Some(device) if device.port == Some(port) => device,
        other => {
            if let Some(device) = other {
                remove(netlink, device.ifindex)?;
            }
            // Nobody's hardware address has to be found out: what is inside is for the node at the other end.
            let message = LinkMessageBuilder::<LinkVxlan>::new(DEVICE)
                .collect_metadata(true)
                .learning(false)
                .port(port);
            let message = message.mtu(mtu).arp(false).build();
            let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
            netlink.ask(RouteNetlinkMessage::NewLink(message), flags, |_| {})?;
            look(netlink)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?
        }
    };
    if device.mtu != mtu || !device.is_up {
        let message = LinkUnspec::new_with_index(device.ifindex).mtu(mtu).up().build();
        let result = netlink.ask(RouteNetlinkMessage::SetLink(message), NLM_F_ACK, |_| {});
        result.map_err(|error| match error.raw_os_error() {
            Some(libc::EADDRINUSE) => io::Error::new(
                error.kind(),
                format!(
                    "another tunnel uses UDP port {port}; choose one by --tunnel-port, the same on all nodes"
                ),
            ),
            _ => error,
        })?;
    }
    Ok(device.ifindex)
}

/// Has the device of this index take IP packets of so many bytes; it may be gone.
pub fn resize(netlink: &mut Connection, ifindex: u32, mtu: u32) -> io::Result<()> {
    let message = LinkUnspec::new_with_index(ifindex).mtu(mtu).build();
    match netlink.ask(RouteNetlinkMessage::SetLink(message), NLM_F_ACK, |_| {}) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

/// Removes the device of this index; it may be gone.
pub fn remove(netlink: &mut Connection, ifindex: u32) -> io::Result<()> {
    let message = LinkUnspec::new_with_index(ifindex).build();
    match netlink.ask(RouteNetlinkMessage::DelLink(message), NLM_F_ACK, |_| {}) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}
