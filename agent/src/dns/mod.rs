//! Cluster DNS on this node.
//!
//! | Task | Reads | Writes |
//! |---|---|---|
//! | [`run`] | questions over UDP and TCP, the dataplane's index, the watch of Namespaces, the node's resolv.conf | – (answers) |
//!
//! Names of the cluster are computed from the Services and EndpointSlices that the dataplane follows anyway
//! ([`kelp_model::dns`]); other names are asked of the node's own servers (`forward`). The server listens at the node's
//! addresses; the service path leads the Service of cluster DNS there as long as nothing else serves it ([`LocalDns`]). Only pods and the node itself are answered.

mod answer;
mod encode;
mod forward;
mod namespaces;
mod serve;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use futures::Stream;
use kelp_common::{Address, Cidr};
use kelp_model::dns::Zone;
use kelp_model::service::{Index, LocalDns, ObjectName};
use nix::sys::socket::sockopt::SockType as SocketType;
use nix::sys::socket::{SockType, getsockopt};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use answer::Resolver;
use forward::Forwarder;
pub use namespaces::{NamespaceEvent, watch_namespaces};

/// Namespace and name of the Service of cluster DNS.
pub const SERVICE: (&str, &str) = ("kube-system", "kube-dns");
/// Port the server listens on, unless told otherwise: port 53 of a node is often taken.
pub const DEFAULT_PORT: u16 = 10_053;

/// Settings of the server.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's domain.
    pub domain: String,
    /// Service addresses of cluster DNS: never asked, and what the server's own name stands for.
    pub servers: Vec<IpAddr>,
    /// Ranges of the cluster (first address, prefix length), whose names nobody else knows.
    pub ranges: Vec<(IpAddr, u8)>,
    /// Who is answered: ranges of pods. The node itself always is.
    pub clients: Vec<(IpAddr, u8)>,
    /// The node's resolv.conf: who is asked about other names. Read again when it changes.
    pub resolv_conf: PathBuf,
    /// Port of those who are asked.
    pub upstream_port: u16,
}

/// Where the cluster's names come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// Services and endpoints.
    pub index: Arc<RwLock<Index>>,
    /// Whether the index is complete: until then the cluster's names wait.
    pub complete: watch::Receiver<bool>,
}

/// What keeps the server from starting.
#[derive(Debug, thiserror::Error)]
#[error("cluster DNS cannot listen on {address}; choose another port with --dns-port, or --dns=off")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// The sockets of the server, a pair for each address.
#[derive(Debug)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Listens on a port of these addresses. Sockets of an earlier run that do are taken over, with what waits in them;
    /// others are closed.
    ///
    /// # Errors
    /// The port is taken, or an address is not this host's.
    pub fn open(addresses: &[IpAddr], port: u16, kept: Vec<OwnedFd>) -> Result<Self, ListenError> {
        let (mut kept_udp, mut kept_tcp) = (Vec::new(), Vec::new());
        for fd in kept {
            match getsockopt(&fd, SocketType) {
                Ok(SockType::Datagram) => kept_udp.push(UdpSocket::from(fd)),
                Ok(SockType::Stream) => kept_tcp.push(TcpListener::from(fd)),
                _ => {}
            }
        }
        let mut sockets = Self { udp: Vec::new(), tcp: Vec::new() };
        for address in addresses {
            let address = SocketAddr::new(*address, port);
            let failed = |source| ListenError { address, source };
            let is_ours = |own: io::Result<SocketAddr>| own.is_ok_and(|own| own == address);
            let udp = match kept_udp.iter().position(|socket| is_ours(socket.local_addr())) {
                Some(index) => kept_udp.swap_remove(index),
                None => UdpSocket::bind(address).map_err(failed)?,
            };
            let tcp = match kept_tcp.iter().position(|socket| is_ours(socket.local_addr())) {
                Some(index) => kept_tcp.swap_remove(index),
                None => TcpListener::bind(address).map_err(failed)?,
            };
            sockets.udp.push(udp);
            sockets.tcp.push(tcp);
        }
        Ok(sockets)
    }

    /// The addresses of the UDP sockets.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.udp.iter().map(UdpSocket::local_addr).collect()
    }

    /// The server as the endpoint of the Service of cluster DNS.
    ///
    /// # Errors
    /// The kernel does not tell the addresses.
    pub fn backend(&self) -> io::Result<LocalDns> {
        let addresses = self.addresses()?;
        let (namespace, name) = SERVICE;
        Ok(LocalDns {
            service: ObjectName::new(namespace, name),
            port: addresses.first().map_or(0, SocketAddr::port).to_be(),
            addresses: addresses.iter().map(|address| address.ip().into()).collect(),
        })
    }

    /// The descriptors, to be kept beyond this process.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.udp.iter().map(AsFd::as_fd).chain(self.tcp.iter().map(AsFd::as_fd))
    }
}

/// Answers until `shutdown`. `namespaces` tells which there are; as long as it tells nothing, any may be there.
///
/// # Errors
/// A socket cannot be used.
pub async fn run(
    config: Config,
    sockets: Sockets,
    source: Source,
    namespaces: impl Stream<Item = NamespaceEvent> + Send + 'static,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let own: Vec<IpAddr> = sockets.addresses()?.iter().map(SocketAddr::ip).collect();
    let clients = Clients::new(&config.clients, &own);
    let zone = Zone::new(&config.domain, config.servers.clone(), &config.ranges);
    let forwarder = Forwarder::new(config.resolv_conf, config.servers, config.upstream_port);
    let known = Arc::default();
    let resolver = Arc::new(Resolver { zone, source, namespaces: Arc::clone(&known), forwarder });
    let server = Arc::new(serve::Server::new(resolver, clients));
    let mut tasks = JoinSet::new();
    tasks.spawn(namespaces::follow(namespaces, known, shutdown.clone()));
    for socket in sockets.udp {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        tasks.spawn(server.clone().datagrams(socket, shutdown.clone()));
    }
    for listener in sockets.tcp {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tasks.spawn(server.clone().connections(listener, shutdown.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task of cluster DNS failed");
        }
    }
    Ok(())
}

/// Who is answered. A server that answers everybody is used to flood third parties.
#[derive(Debug)]
struct Clients(Vec<Cidr>);

impl Clients {
    fn new(ranges: &[(IpAddr, u8)], own: &[IpAddr]) -> Self {
        let ranges = ranges.iter().map(|(network, prefix)| Cidr::new(*network, *prefix));
        Self(ranges.chain(own.iter().map(|address| Cidr::new(*address, 128))).collect())
    }

    fn admit(&self, client: IpAddr) -> bool {
        let address = Address::from(client);
        client.to_canonical().is_loopback() || self.0.iter().any(|range| range.contains(&address))
    }
}

#[cfg(test)]
mod tests;
