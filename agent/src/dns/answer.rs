//! From a question to its answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use kelp_model::dns::{self, Answer, Namespaces, Zone};
use parking_lot::RwLock;
use rand::seq::SliceRandom;

use super::Source;
use super::encode::MAX_DATAGRAM;
use super::forward::Forwarder;

/// Seconds that clients may keep records of the cluster: CoreDNS's default. Endpoints come and go.
const TTL: u32 = 5;
/// Other names that are followed for one question.
const MAX_ALIASES: usize = 8;
/// How long a question waits for the first complete list of Services: less than clients wait for an answer.
const LIST_PATIENCE: Duration = Duration::from_secs(4);
/// Times in the zone's SOA record, as CoreDNS has them, seconds: refresh, retry, expire.
const SOA_TIMES: (i32, i32, i32) = (7200, 1800, 86_400);

/// Answers questions.
#[derive(Debug)]
pub(super) struct Resolver {
    pub zone: Zone,
    pub source: Source,
    pub namespaces: Arc<RwLock<Namespaces>>,
    pub forwarder: Forwarder,
}

/// What the cluster's state says to a name.
enum Known {
    /// Everything; the answer is complete.
    All,
    /// Ask about another name.
    Alias(Name),
    /// It is not the cluster's name.
    Elsewhere,
}

impl Resolver {
    /// Answers what needs no waiting.
    pub fn answer_now(&self, request: &Message) -> Option<Message> {
        let (mut response, query) = match begin(request) {
            Ok(begun) => begun,
            Err(refusal) => return Some(*refusal),
        };
        let name = query.name().to_ascii();
        if !*self.source.complete.borrow() && self.may_be_ours(&name) {
            return None;
        }
        match self.known(query.name(), query.query_type(), &mut response) {
            Ok(Known::All) => Some(response),
            Ok(Known::Alias(_) | Known::Elsewhere) => None,
            Err(_) => Some(failure(request)),
        }
    }

    /// Answers a question.
    pub async fn answer(&self, request: &Message) -> Message {
        let (response, query) = match begin(request) {
            Ok(begun) => begun,
            Err(refusal) => return *refusal,
        };
        self.resolve(response, query).await.unwrap_or_else(|error| {
            tracing::debug!(%error, name = %query.name(), "a question of cluster DNS cannot be answered");
            failure(request)
        })
    }

    async fn resolve(&self, mut response: Message, query: &Query) -> Result<Message, ProtoError> {
        let (mut name, kind) = (query.name().clone(), query.query_type());
        if self.may_be_ours(&name.to_ascii()) && !self.is_complete().await {
            return Ok(with_code(response, ResponseCode::ServFail));
        }
        for _ in 0..MAX_ALIASES {
            match self.known(&name, kind, &mut response)? {
                Known::All => return Ok(response),
                Known::Alias(target) => name = target,
                Known::Elsewhere => {
                    let found = self.forwarder.ask(Query::query(name, kind)).await;
                    response.metadata.response_code = found.code;
                    response.answers.extend(found.answers);
                    response.authorities.extend(found.authorities);
                    return Ok(response);
                }
            }
        }
        Ok(with_code(response, ResponseCode::ServFail))
    }

    /// Whether the cluster's state decides about a name, or may.
    fn may_be_ours(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.');
        self.zone.contains(name) || name.to_ascii_lowercase().ends_with(".arpa")
    }

    /// Waits for the first complete list of Services.
    async fn is_complete(&self) -> bool {
        let mut complete = self.source.complete.clone();
        let listed = async move { complete.wait_for(|complete| *complete).await.is_ok() };
        tokio::time::timeout(LIST_PATIENCE, listed).await.unwrap_or(false)
    }

    /// Adds what the cluster's state says.
    fn known(&self, name: &Name, kind: RecordType, response: &mut Message) -> Result<Known, ProtoError> {
        let text = name.to_ascii();
        let text = text.trim_end_matches('.');
        let answer = self.zone.answer(&self.source.index.read(), &self.namespaces.read(), text, asked(kind));
        let record = |data| Record::from_rdata(name.clone(), TTL, data);
        match answer {
            Answer::NotOurs => return Ok(Known::Elsewhere),
            Answer::NoName => {
                response.metadata.response_code = ResponseCode::NXDomain;
                response.add_authority(self.authority(name)?);
            }
            Answer::NoData => {
                response.add_authority(self.authority(name)?);
            }
            Answer::Records { records, additional } => {
                let mut answers = Vec::with_capacity(records.len());
                for data in &records {
                    answers.push(record(self.data(data)?));
                }
                // Many clients use the first address only.
                if matches!(records.first(), Some(dns::Record::Address(_))) {
                    answers.shuffle(&mut rand::rng());
                }
                response.add_answers(answers);
                if let (Some(dns::Record::Alias(target)), true) = (records.first(), kind != RecordType::CNAME)
                {
                    response.metadata.authoritative = true;
                    return Ok(Known::Alias(absolute(target)?));
                }
                for (target, address) in additional {
                    let data = self.data(&dns::Record::Address(address))?;
                    response.add_additional(Record::from_rdata(absolute(&target)?, TTL, data));
                }
            }
        }
        response.metadata.authoritative = true;
        Ok(Known::All)
    }

    fn data(&self, record: &dns::Record) -> Result<RData, ProtoError> {
        Ok(match record {
            dns::Record::Address(std::net::IpAddr::V4(address)) => RData::A(A(*address)),
            dns::Record::Address(std::net::IpAddr::V6(address)) => RData::AAAA(AAAA(*address)),
            dns::Record::Alias(name) => RData::CNAME(CNAME(absolute(name)?)),
            dns::Record::Pointer(name) => RData::PTR(PTR(absolute(name)?)),
            dns::Record::NameServer(name) => RData::NS(NS(absolute(name)?)),
            dns::Record::Server { weight, port, target } => {
                RData::SRV(SRV::new(0, *weight, *port, absolute(target)?))
            }
            dns::Record::Text(text) => RData::TXT(TXT::new(vec![(*text).to_owned()])),
            dns::Record::Authority => RData::SOA(self.start_of_authority()?),
        })
    }

    /// The record that says for how long the absence of a name may be believed.
    fn authority(&self, name: &Name) -> Result<Record, ProtoError> {
        let domain = absolute(self.zone.domain())?;
        let owner = if domain.zone_of(name) {
            domain
        } else {
            // The name of an address: of the two last labels, as CoreDNS serves them.
            name.trim_to(2)
        };
        Ok(Record::from_rdata(owner, TTL, RData::SOA(self.start_of_authority()?)))
    }

    fn start_of_authority(&self) -> Result<SOA, ProtoError> {
        let (refresh, retry, expire) = SOA_TIMES;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let person = format!("hostmaster.{}", self.zone.domain());
        // A serial number wraps around (RFC 1982).
        let serial = u32::try_from(now % (1 << 32)).unwrap_or_default();
        Ok(SOA::new(absolute(&self.zone.server())?, absolute(&person)?, serial, refresh, retry, expire, TTL))
    }
}

/// The beginning of a response and the question; or the whole response to what is no question that can be answered.
fn begin(request: &Message) -> Result<(Message, &Query), Box<Message>> {
    let mut response = Message::response(request.id, request.op_code);
    response.metadata.recursion_desired = request.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.checking_disabled = request.checking_disabled;
    response.add_queries(request.queries.iter().cloned());
    if let Some(edns) = &request.edns {
        let mut own = Edns::new();
        own.set_max_payload(MAX_DATAGRAM).set_dnssec_ok(edns.flags().dnssec_ok);
        response.set_edns(own);
        if edns.version() != 0 {
            return Err(with_code(response, ResponseCode::BADVERS).into());
        }
    }
    if request.op_code != OpCode::Query {
        return Err(with_code(response, ResponseCode::NotImp).into());
    }
    let [query] = request.queries.as_slice() else {
        return Err(with_code(response, ResponseCode::FormErr).into());
    };
    let is_transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if query.query_class() != DNSClass::IN || is_transfer {
        return Err(with_code(response, ResponseCode::Refused).into());
    }
    Ok((response, query))
}

fn with_code(mut response: Message, code: ResponseCode) -> Message {
    response.metadata.response_code = code;
    response
}

/// What is said when a question cannot be answered.
pub(super) fn failure(request: &Message) -> Message {
    let response = match begin(request) {
        Ok((response, _)) => response,
        Err(refusal) => *refusal,
    };
    with_code(response, ResponseCode::ServFail)
}

fn asked(kind: RecordType) -> dns::RecordType {
    match kind {
        RecordType::A => dns::RecordType::A,
        RecordType::AAAA => dns::RecordType::Aaaa,
        RecordType::CNAME => dns::RecordType::Cname,
        RecordType::NS => dns::RecordType::Ns,
        RecordType::PTR => dns::RecordType::Ptr,
        RecordType::SOA => dns::RecordType::Soa,
        RecordType::SRV => dns::RecordType::Srv,
        RecordType::TXT => dns::RecordType::Txt,
        RecordType::ANY => dns::RecordType::Any,
        _ => dns::RecordType::Other,
    }
}

/// A name from the root.
fn absolute(name: &str) -> Result<Name, ProtoError> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    Ok(name)
}
