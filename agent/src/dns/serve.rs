//! The sockets: datagrams and connections, as many at a time as are good for the node.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Clients;
use super::answer::{Resolver, failure};
use super::encode::{datagram_limit, encode};
use crate::metrics::{DNS_DURATION, DNS_REQUESTS, DNS_RESPONSES};

/// Questions that wait for others at one time.
const MAX_WAITING: usize = 1024;
/// Connections at one time.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Largest question that is read.
const MAX_QUESTION: usize = 4096;
/// Length of a message's header.
const HEADER: usize = 12;
/// A pause when a socket fails, so that one that goes on failing costs nothing.
const PAUSE: Duration = Duration::from_millis(100);

/// The server of all sockets.
#[derive(Debug)]
pub(super) struct Server {
    resolver: Arc<Resolver>,
    clients: Clients,
    waiting: Arc<Semaphore>,
    connected: Arc<Semaphore>,
}

impl Server {
    pub fn new(resolver: Arc<Resolver>, clients: Clients) -> Self {
        let (waiting, connected) = (Semaphore::new(MAX_WAITING), Semaphore::new(MAX_CONNECTIONS));
        Self { resolver, clients, waiting: Arc::new(waiting), connected: Arc::new(connected) }
    }

    /// Reads: questions in datagrams. Writes: answers.
    pub async fn datagrams(self: Arc<Self>, socket: UdpSocket, shutdown: CancellationToken) {
        let socket = Arc::new(socket);
        let work = async {
            let mut bytes = vec![0; MAX_QUESTION];
            loop {
                let (length, client) = match socket.recv_from(&mut bytes).await {
                    Ok(received) => received,
                    Err(error) => {
                        tracing::debug!(%error, "a datagram to cluster DNS cannot be received");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                };
                if self.clients.admit(client.ip()) {
                    self.datagram(&socket, bytes.get(..length).unwrap_or_default(), client).await;
                }
            }
        };
        shutdown.run_until_cancelled(work).await;
    }

    async fn datagram(self: &Arc<Self>, socket: &Arc<UdpSocket>, bytes: &[u8], client: SocketAddr) {
        let request = match read(bytes) {
            Ok(request) => request,
            Err(refusal) => return send(socket, refusal, client).await,
        };
        let asked = Asked::new(&request, "udp", client);
        let limit = datagram_limit(&request);
        if let Some(response) = self.resolver.answer_now(&request) {
            return send(socket, self.done(&asked, response, limit), client).await;
        }
        let Ok(permit) = self.waiting.clone().try_acquire_owned() else {
            let response = failure(&request);
            return send(socket, self.done(&asked, response, limit), client).await;
        };
        let (this, socket) = (self.clone(), socket.clone());
        tokio::spawn(async move {
            let response = this.resolver.answer(&request).await;
            send(&socket, this.done(&asked, response, limit), client).await;
            drop(permit);
        });
    }

    /// Reads: connections, and questions on them. Writes: answers.
    pub async fn connections(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let work = async {
            loop {
                // While there are too many, the next ones wait in the kernel.
                let Ok(permit) = self.connected.clone().acquire_owned().await else { return };
                let (stream, client) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::debug!(%error, "a connection to cluster DNS cannot be accepted");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                };
                if !self.clients.admit(client.ip()) {
                    continue;
                }
                let (this, shutdown) = (self.clone(), shutdown.clone());
                tokio::spawn(async move {
                    // A client that goes away is not worth a word.
                    let _ = shutdown.run_until_cancelled(this.connection(stream, client)).await;
                    drop(permit);
                });
            }
        };
        shutdown.run_until_cancelled(work).await;
    }

    async fn connection(&self, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
        loop {
            let bytes = tokio::time::timeout(IDLE, async {
                let length = usize::from(stream.read_u16().await?);
                if length > MAX_QUESTION {
                    return Err(io::Error::from(io::ErrorKind::InvalidData));
                }
                let mut bytes = vec![0; length];
                stream.read_exact(&mut bytes).await?;
                Ok(bytes)
            })
            .await??;
            let answer = match read(&bytes) {
                Ok(request) => {
                    let asked = Asked::new(&request, "tcp", client);
                    let response = match self.resolver.answer_now(&request) {
                        Some(response) => response,
                        None => self.resolver.answer(&request).await,
                    };
                    self.done(&asked, response, u16::MAX)
                }
                Err(Some(refusal)) => Some(refusal),
                Err(None) => None,
            };
            let Some(answer) = answer else { return Ok(()) };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend(answer);
            tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    /// The response as bytes, counted.
    fn done(&self, asked: &Asked, mut response: Message, limit: u16) -> Option<Vec<u8>> {
        asked.count(self.resolver.zone.domain(), response.metadata.response_code);
        let failed = |error| tracing::debug!(%error, "an answer of cluster DNS cannot be written");
        encode(&mut response, limit).map_err(failed).ok()
    }
}

/// A question, for the metrics.
struct Asked {
    since: Instant,
    transport: &'static str,
    family: &'static str,
    name: String,
    kind: &'static str,
}

impl Asked {
    fn new(request: &Message, transport: &'static str, client: SocketAddr) -> Self {
        let query = request.queries.first();
        Self {
            since: Instant::now(),
            transport,
            family: if client.is_ipv4() { "1" } else { "2" },
            name: query.map(|query| query.name().to_ascii()).unwrap_or_default(),
            kind: query.map_or("other", |query| label(query.query_type())),
        }
    }

    fn count(&self, domain: &str, code: ResponseCode) {
        let name = self.name.trim_end_matches('.').to_ascii_lowercase();
        let is_ours = name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let zone = if is_ours { format!("{domain}.") } else { ".".to_owned() };
        DNS_REQUESTS.count(&[&zone, self.transport, self.family, self.kind]);
        DNS_RESPONSES.count(&[&zone, code_label(code)]);
        DNS_DURATION.observe(&[&zone], self.since.elapsed().as_secs_f64());
    }
}

/// Types by which questions are told apart: as CoreDNS does, so that no client can make labels without end.
fn label(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::CNAME => "CNAME",
        RecordType::MX => "MX",
        RecordType::NS => "NS",
        RecordType::PTR => "PTR",
        RecordType::SOA => "SOA",
        RecordType::SRV => "SRV",
        RecordType::TXT => "TXT",
        RecordType::HTTPS => "HTTPS",
        RecordType::ANY => "ANY",
        _ => "other",
    }
}

fn code_label(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
    }
}

/// A question; or what to say to bytes that are none, which may be nothing.
fn read(bytes: &[u8]) -> Result<Message, Option<Vec<u8>>> {
    match Message::from_vec(bytes) {
        Ok(message) if message.message_type == MessageType::Query => Ok(message),
        // To answer an answer would be to begin a loop.
        Ok(_) => Err(None),
        Err(_) => {
            let (Some([high, low, flags]), true) = (bytes.first_chunk::<3>(), bytes.len() >= HEADER) else {
                return Err(None);
            };
            if flags & 0x80 != 0 {
                return Err(None);
            }
            let id = u16::from_be_bytes([*high, *low]);
            Err(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok())
        }
    }
}

async fn send(socket: &UdpSocket, bytes: Option<Vec<u8>>, client: SocketAddr) {
    let Some(bytes) = bytes else { return };
    if let Err(error) = socket.send_to(&bytes, client).await {
        tracing::debug!(%error, %client, "an answer of cluster DNS cannot be sent");
    }
}
