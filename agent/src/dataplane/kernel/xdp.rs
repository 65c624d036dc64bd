//! XDP at the uplink: whether the program is attached there, and how; what somebody else attached stays.
//!
//! A device has one XDP program, which the kernel tells by netlink. Ours is held by a link, as the others are (see
//! [`super::attach`]): it is pinned, and found without its pin among all links by the program that is on the device.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::attach::{detach_pinned, is_ours};
use super::{Kernel, failed, loopback};
use crate::dataplane::DatapathError;
use crate::dataplane::config::Xdp;
use crate::dataplane::sys::query::{self, Target};
use crate::dataplane::sys::{self, AttachType};

/// The program of the uplink.
pub(super) const PROGRAM: &str = "xdp_from_net";
/// The name of its link's pin.
pub(super) const PIN: &str = "uplink-xdp";

/// Where a device runs its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dataplane) enum Mode {
    /// In its driver.
    Native,
    /// In the kernel's stack, when a buffer is made.
    Generic,
    /// On the device itself.
    Offloaded,
}

impl Mode {
    /// `XDP_FLAGS_*`.
    const fn flag(self) -> u32 {
        match self {
            Self::Generic => 1 << 1,
            Self::Native => 1 << 2,
            Self::Offloaded => 1 << 3,
        }
    }
}

/// What the kernel tells of a device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::dataplane) struct Device {
    /// Whether it is one end of a pair of virtual devices.
    pub is_veth: bool,
    /// Its XDP programs' ids.
    pub programs: Vec<(Mode, u32)>,
}

impl Device {
    /// Looks at a device of the calling thread's network namespace.
    pub fn look(ifindex: u32) -> io::Result<Self> {
        let mut request = LinkMessage::default();
        request.header.index = ifindex;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        let mut message =
            NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::GetLink(request)));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&bytes, 0)?;
        let (answer, _) = socket.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Self::of(&link)),
            NetlinkPayload::Error(error) => Err(error.to_io()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn of(link: &LinkMessage) -> Self {
        let mut device = Self::default();
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::LinkInfo(facts) => {
                    device.is_veth = facts.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                LinkAttribute::Xdp(facts) => {
                    device.programs = facts
                        .iter()
                        .filter_map(|fact| match fact {
                            LinkXdp::DrvProgId(id) => Some((Mode::Native, *id)),
                            LinkXdp::SkbProgId(id) => Some((Mode::Generic, *id)),
                            LinkXdp::HwProgId(id) => Some((Mode::Offloaded, *id)),
                            _ => None,
                        })
                        .collect();
                }
                _ => {}
            }
        }
        device
    }
}

/// What is attached to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Our program, as it is wanted.
    Ours,
    /// A program of somebody else.
    Others,
}

impl Kernel {
    /// Attaches the XDP program to the uplink, or swaps it in where it is attached, or detaches it, as the setting says.
    /// One of somebody else's stays, and ours is not attached then.
    ///
    /// # Errors
    /// When the device is gone, or cannot do what is asked for; with [`Xdp::Auto`] that is none.
    pub fn attach_xdp(&self, name: &str, ifindex: u32, wanted: Xdp) -> Result<(), DatapathError> {
        let action = |what: &str| format!("{what} the uplink {name} (XDP)");
        let was_attached = self.directory.join("links").join(PIN).exists();
        let device = Device::look(ifindex).map_err(failed(action("look at")))?;
        let mode = match wanted {
            // What is sent back by a veth device gets lost unless its other end has a program as well, and others pay for
            // one with the large segments that they may no longer send.
            Xdp::Auto if device.is_veth => None,
            Xdp::Auto | Xdp::Native => Some(Mode::Native),
            Xdp::Generic => Some(Mode::Generic),
            Xdp::Off => None,
        };
        let mode = match mode.map(|mode| loopback::forward().map(|()| mode)).transpose() {
            Ok(mode) => mode,
            Err(error) if wanted == Xdp::Auto => {
                tracing::info!(uplink = name, %error, "not attached as XDP: programs cannot look up routes");
                None
            }
            Err(error) => {
                return Err(failed("let the loopback device forward, for XDP; --xdp=auto does without")(
                    error,
                ));
            }
        };
        let found =
            self.adopt_xdp(ifindex, &device, mode).map_err(failed(action("look after the program of")))?;
        let Some(mode) = mode else {
            if was_attached {
                loopback::rest().map_err(failed("let the loopback device rest"))?;
            }
            return Ok(());
        };
        if found == Found::Others {
            tracing::warn!(uplink = name, "not attached as XDP: another program is, and stays");
            return Ok(());
        }
        if found == Found::Nothing {
            let link = sys::link_create(self.program(PROGRAM)?, ifindex, AttachType::Xdp, mode.flag());
            let link = match link {
                Err(error) if wanted == Xdp::Auto => {
                    tracing::info!(uplink = name, %error, "not attached as XDP: the device has no use for it");
                    return Ok(());
                }
                link => link.map_err(failed(format!(
                    "attach to the uplink {name} as {mode:?} XDP; --xdp=auto does without"
                )))?,
            };
            sys::pin(link.as_fd(), &self.directory.join("links").join(PIN)).map_err(failed("pin a link"))?;
        }
        tracing::info!(uplink = name, ?mode, "attached as XDP");
        Ok(())
    }

    /// Takes over what a former agent attached to a device in the mode that is wanted, and detaches what is ours otherwise.
    /// Returns what is attached then.
    fn adopt_xdp(&self, ifindex: u32, device: &Device, wanted: Option<Mode>) -> io::Result<Found> {
        let path = self.directory.join("links").join(PIN);
        let pinned = match sys::open_pin(&path) {
            Ok(link) => Some(link),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let holds = |link: &OwnedFd, program: u32| {
            query::link_info(link.as_fd()).is_ok_and(|info| {
                info.target == Target::Device(ifindex)
                    && info.attach_type == AttachType::Xdp as u32
                    && info.program == program
            })
        };
        let mut found = Found::Nothing;
        for (mode, program) in &device.programs {
            if !is_ours(*program, PROGRAM)? {
                found = Found::Others;
                continue;
            }
            if let Some(link) = pinned.as_ref().filter(|link| holds(link, *program)) {
                if Some(*mode) == wanted {
                    sys::link_update(link.as_fd(), self.program(PROGRAM).map_err(io::Error::other)?)?;
                    return Ok(Found::Ours);
                }
                continue;
            }
            let Some(link) = query::links()?.into_iter().find(|link| holds(link, *program)) else { continue };
            if Some(*mode) != wanted {
                query::link_detach(link.as_fd())?;
                continue;
            }
            tracing::warn!(
                program = PROGRAM,
                "found attached though its pin is gone; is a bpffs mounted over another?"
            );
            sys::link_update(link.as_fd(), self.program(PROGRAM).map_err(io::Error::other)?)?;
            // One of another place or mode.
            detach_pinned(&path).map_err(io::Error::other)?;
            sys::pin(link.as_fd(), &path)?;
            return Ok(Found::Ours);
        }
        detach_pinned(&path).map_err(io::Error::other)?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_by_their_mode() {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
            LinkAttribute::Xdp(vec![LinkXdp::ProgId(7), LinkXdp::DrvProgId(7), LinkXdp::SkbProgId(8)]),
        ];
        let device = Device { is_veth: true, programs: vec![(Mode::Native, 7), (Mode::Generic, 8)] };
        assert_eq!(Device::of(&link), device);
    }
}
