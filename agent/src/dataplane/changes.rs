//! What the kernel tells of its devices and addresses.

use futures::StreamExt;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup};

use super::DatapathError;
use super::kernel::failed;

/// Told of changes by the kernel.
pub(crate) struct Changes {
    /// Asks the kernel how things are.
    pub handle: Handle,
    messages: futures::channel::mpsc::UnboundedReceiver<(
        NetlinkMessage<RouteNetlinkMessage>,
        rtnetlink::sys::SocketAddr,
    )>,
}

impl Changes {
    /// Listens to these groups in the network namespace of the calling thread, as long as this lives; `action` is what an
    /// error says was not possible.
    pub fn open(groups: &[MulticastGroup], action: &'static str) -> Result<Self, DatapathError> {
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(groups).map_err(failed(action))?;
        tokio::spawn(connection);
        Ok(Self { handle, messages })
    }

    /// Waits for messages of which one matters. Changes come in bursts: one look is enough for all that are here. `None` when
    /// there will be no more.
    pub async fn next(
        &mut self,
        matters: impl Fn(&NetlinkMessage<RouteNetlinkMessage>) -> bool,
    ) -> Option<()> {
        loop {
            let (message, _) = self.messages.next().await?;
            let mut found = matters(&message);
            while let Ok((message, _)) = self.messages.try_recv() {
                found |= matters(&message);
            }
            if found {
                return Some(());
            }
        }
    }
}
