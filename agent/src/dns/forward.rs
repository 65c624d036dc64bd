//! Names that are not the cluster's: asked of the servers in the node's resolv.conf, and remembered for a while.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{DnsRequest, DnsRequestOptions, Query, ResponseCode};
use hickory_proto::rr::Record;
use hickory_resolver::config::{NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::{NameServerPool, PoolContext, ResponseCache, TlsConfig, TtlConfig};
use kelp_model::pod::hosts::Resolv;
use parking_lot::Mutex;

use super::encode::MAX_DATAGRAM;
use crate::metrics::{DNS_CACHE_HITS, DNS_CACHE_MISSES};

/// Answers that are remembered.
const CACHED: u64 = 10_000;
/// Longest time that an answer is remembered: as in the configuration that CoreDNS is usually deployed with.
const MAX_AGE: Duration = Duration::from_secs(30);
/// How long it is remembered that a name could not be resolved (RFC 2308 allows five minutes).
const FAILURE_SECONDS: u32 = 5;
/// How long servers get, all of them together: less than half of what clients wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// When no server was heard after so many questions on end, further ones are not asked for a moment.
const SILENT: u32 = 3;
/// The moment.
const PAUSE: Duration = Duration::from_secs(1);
/// resolv.conf is looked at again after this time.
const LOOK: Duration = Duration::from_secs(1);
/// Servers that are asked at most.
const MAX_SERVERS: usize = 15;
/// Questions under way to one server.
const AT_ONCE: usize = 1024;

type Pool = NameServerPool<TokioRuntimeProvider>;

/// What others said.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
}

impl Found {
    fn failure(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }

    fn none(why: &NoRecords) -> Self {
        let soa = why.soa.as_ref().map(|soa| soa.as_ref().clone().into_record_of_rdata());
        Self { code: why.response_code, answers: Vec::new(), authorities: soa.into_iter().collect() }
    }
}

/// Asks others.
pub(super) struct Forwarder {
    path: PathBuf,
    /// Addresses of cluster DNS: to ask them would be to ask oneself.
    own: Vec<IpAddr>,
    /// Port of the servers.
    port: u16,
    servers: Mutex<Servers>,
    cache: ResponseCache,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The servers of resolv.conf, as it was when it was last looked at.
#[derive(Default)]
struct Servers {
    pool: Option<Pool>,
    addresses: Vec<IpAddr>,
    looked: Option<Instant>,
    changed: Option<SystemTime>,
    /// Questions on end that nobody answered.
    unanswered: u32,
    paused_until: Option<Instant>,
}

impl Forwarder {
    pub fn new(path: PathBuf, own: Vec<IpAddr>, port: u16) -> Self {
        let mut options = ResolverOpts::default();
        options.positive_max_ttl = Some(MAX_AGE);
        options.negative_max_ttl = Some(MAX_AGE);
        let cache = ResponseCache::new(CACHED, TtlConfig::from_opts(&options));
        Self { path, own, port, servers: Mutex::default(), cache }
    }

    /// Asks, or remembers.
    pub async fn ask(&self, query: Query) -> Found {
        match self.cache.get(&query, Instant::now()) {
            Some(Ok(message)) => {
                DNS_CACHE_HITS.count(&["success"]);
                let (answers, authorities) = (message.answers, message.authorities);
                return Found { code: message.metadata.response_code, answers, authorities };
            }
            Some(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
                DNS_CACHE_HITS.count(&["denial"]);
                return Found::none(&none);
            }
            _ => DNS_CACHE_MISSES.count(&[]),
        }
        let Some(pool) = self.pool() else { return Found::failure(ResponseCode::ServFail) };
        let mut options = DnsRequestOptions::default();
        options.edns_payload_len = MAX_DATAGRAM;
        let answer = pool.send(DnsRequest::from_query(query.clone(), options)).first_answer().await;
        self.heard(!matches!(answer, Err(NetError::Timeout)));
        let now = Instant::now();
        match answer {
            Ok(response) => {
                let message = response.into_message();
                let found = Found {
                    code: message.metadata.response_code,
                    answers: message.answers.clone(),
                    authorities: message.authorities.clone(),
                };
                self.cache.insert(query, Ok(message), now);
                found
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let found = Found::none(&none);
                self.cache.insert(query, Err(DnsError::NoRecordsFound(none).into()), now);
                found
            }
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Found::failure(code),
            Err(error) => {
                tracing::debug!(%error, name = %query.name(), "no server of the node answers");
                let mut failure = NoRecords::new(query.clone(), ResponseCode::ServFail);
                failure.negative_ttl = Some(FAILURE_SECONDS);
                self.cache.insert(query, Err(DnsError::NoRecordsFound(failure).into()), now);
                Found::failure(ResponseCode::ServFail)
            }
        }
    }

    /// The servers to ask; none while they are silent.
    fn pool(&self) -> Option<Pool> {
        let mut servers = self.servers.lock();
        let now = Instant::now();
        if servers.looked.is_none_or(|at| now.duration_since(at) >= LOOK) {
            servers.looked = Some(now);
            self.look(&mut servers);
        }
        if servers.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        servers.pool.clone()
    }

    /// Reads resolv.conf, if it changed.
    fn look(&self, servers: &mut Servers) {
        let changed = std::fs::metadata(&self.path).and_then(|metadata| metadata.modified()).ok();
        if changed.is_some() && changed == servers.changed {
            return;
        }
        servers.changed = changed;
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let addresses: Vec<IpAddr> = Resolv::parse(&text)
            .nameservers
            .iter()
            .filter_map(|server| server.parse().ok())
            .filter(|address| !self.own.contains(address))
            .take(MAX_SERVERS)
            .collect();
        if addresses == servers.addresses {
            return;
        }
        servers.pool = pool_of(&addresses, self.port);
        tracing::info!(servers = ?addresses, file = %self.path.display(), "cluster DNS asks these about other names");
        (servers.addresses, servers.unanswered, servers.paused_until) = (addresses, 0, None);
    }

    /// Whether a server was heard.
    fn heard(&self, heard: bool) {
        let mut servers = self.servers.lock();
        if heard {
            (servers.unanswered, servers.paused_until) = (0, None);
            return;
        }
        servers.unanswered = servers.unanswered.saturating_add(1);
        if servers.unanswered >= SILENT {
            servers.paused_until = Some(Instant::now() + PAUSE);
        }
    }
}

fn pool_of(addresses: &[IpAddr], port: u16) -> Option<Pool> {
    if addresses.is_empty() {
        return None;
    }
    let mut options = ResolverOpts::default();
    options.timeout = PATIENCE;
    options.max_active_requests = AT_ONCE;
    options.edns_payload_len = MAX_DATAGRAM;
    let tls = TlsConfig::new().ok()?;
    let servers = addresses.iter().map(|address| {
        let mut server = NameServerConfig::udp_and_tcp(*address);
        for connection in &mut server.connections {
            connection.port = port;
        }
        server
    });
    let context = Arc::new(PoolContext::new(options, tls));
    Some(NameServerPool::from_config(servers, context, TokioRuntimeProvider::default()))
}
