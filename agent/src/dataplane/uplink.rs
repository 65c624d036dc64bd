//! The device to other nodes and the outside, and the largest packet that it takes, which may change while the agent runs. The
//! kernel tells of every change.

use std::io;

use futures::TryStreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use tokio_util::sync::CancellationToken;

use super::DatapathError;
use super::changes::Changes;
use super::kernel::failed;
use super::sys;

/// What Ethernet carries: taken where no uplink is known.
const USUAL_MTU: u32 = 1_500;

/// The largest IP packets of pods, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodMtu {
    /// Of their devices: what the uplink takes.
    pub device: u32,
    /// Of their routes: what also fits through every tunnel in use, so that nothing has to be sent a second time.
    pub route: u32,
}

impl PodMtu {
    /// Of a node whose uplink and tunnels take this much; 0 where that is not known, or where there are none.
    #[must_use]
    pub fn new(uplink: u32, tunnels: u32) -> Self {
        let device = if uplink == 0 { USUAL_MTU } else { uplink };
        let route = if tunnels == 0 { device } else { tunnels.min(device) };
        Self { device, route }
    }
}

/// The device to other nodes and the outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Uplink {
    /// 0 when there is none.
    pub ifindex: u32,
    /// 0 when it is not known.
    pub mtu: u32,
}

impl Uplink {
    /// The device of this name in the network namespace of the calling thread.
    pub fn find(name: Option<&str>) -> Result<Self, DatapathError> {
        let Some(name) = name else { return Ok(Self { ifindex: 0, mtu: 0 }) };
        let ifindex =
            nix::net::if_::if_nametoindex(name).map_err(failed(format!("find the uplink {name}")))?;
        let mtu = sys::device_mtu(name).map_err(failed(format!("look at the uplink {name}")))?;
        Ok(Self { ifindex, mtu })
    }
}

/// Told of changes by the kernel.
pub(crate) struct Watch(Changes);

impl Watch {
    /// Listens in the network namespace of the calling thread, as long as this lives.
    pub fn open() -> Result<Self, DatapathError> {
        Changes::open(&[MulticastGroup::Link], "watch the uplink").map(Self)
    }

    /// Tells the MTU of the device with this index whenever it may have changed, until `shutdown`.
    pub async fn run(mut self, ifindex: u32, mut tell: impl FnMut(u32), shutdown: CancellationToken) {
        let work = async {
            while self.0.next(|message| is_about(message, ifindex)).await.is_some() {
                match self.mtu(ifindex).await {
                    Ok(mtu) => tell(mtu),
                    Err(error) => {
                        tracing::warn!(error = %super::chain(&error), "a change of the uplink is not followed");
                    }
                }
            }
        };
        shutdown.run_until_cancelled(work).await;
    }

    async fn mtu(&self, ifindex: u32) -> Result<u32, DatapathError> {
        let link = self.0.handle.link().get().match_index(ifindex).execute().try_next().await;
        let link = link.map_err(failed("look at the uplink"))?;
        let mtu = link.iter().flat_map(|link| &link.attributes).find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        mtu.ok_or_else(|| failed("look at the uplink")(io::Error::from_raw_os_error(libc::ENODEV)))
    }
}

fn is_about(message: &NetlinkMessage<RouteNetlinkMessage>, ifindex: u32) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => link.header.index == ifindex,
        NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_send_what_fits_through_every_tunnel_and_receive_what_the_uplink_takes() {
        let of = |uplink, tunnels| {
            let PodMtu { device, route } = PodMtu::new(uplink, tunnels);
            (device, route)
        };
        assert_eq!((of(1_500, 1_450), of(9_000, 0)), ((1_500, 1_450), (9_000, 9_000)));
        // Where the uplink carries less than IPv6 needs, what is outside is divided, but what is inside is not larger.
        assert_eq!((of(1_200, 1_280), of(0, 0)), ((1_200, 1_200), (1_500, 1_500)));
    }
}
