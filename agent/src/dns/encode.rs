//! Messages as bytes of bounded length.

use hickory_proto::ProtoError;
use hickory_proto::op::Message;
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// Largest datagram that is sent or asked for: it fits into every link without fragments (DNS flag day 2020).
pub(super) const MAX_DATAGRAM: u16 = 1232;
/// Largest datagram to a client that says nothing (RFC 1035).
const MIN_DATAGRAM: u16 = 512;
/// Byte and bit of the header that say that records are missing.
const TRUNCATED: (usize, u8) = (2, 0x02);

/// The largest datagram for the client that asked.
pub(super) fn datagram_limit(request: &Message) -> u16 {
    request.edns.as_ref().map_or(MIN_DATAGRAM, |edns| edns.max_payload().clamp(MIN_DATAGRAM, MAX_DATAGRAM))
}

/// The message in at most `limit` bytes. What is left out first is not missed (additional records); then as many answers
/// are kept as fit, and the message says that it is truncated: the client asks again over TCP, or makes do.
///
/// # Errors
/// A name in it is not valid.
pub(super) fn encode(message: &mut Message, limit: u16) -> Result<Vec<u8>, ProtoError> {
    let whole = attempt(message, limit)?;
    if !is_truncated(&whole) || message.truncation {
        return Ok(whole);
    }
    message.additionals.clear();
    let without_additional = attempt(message, limit)?;
    if !is_truncated(&without_additional) {
        return Ok(without_additional);
    }
    message.metadata.truncation = true;
    message.authorities.clear();
    let answers = std::mem::take(&mut message.answers);
    // The most answers that leave room for the rest of the message, OPT included.
    let (mut fits, mut too_many) = (0, answers.len() + 1);
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        message.answers = answers.iter().take(middle).cloned().collect();
        message.metadata.truncation = false;
        if is_truncated(&attempt(message, limit)?) {
            too_many = middle;
        } else {
            fits = middle;
        }
    }
    message.answers = answers.into_iter().take(fits).collect();
    message.metadata.truncation = true;
    attempt(message, limit)
}

fn attempt(message: &Message, limit: u16) -> Result<Vec<u8>, ProtoError> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder)?;
    Ok(bytes)
}

fn is_truncated(bytes: &[u8]) -> bool {
    bytes.get(TRUNCATED.0).is_some_and(|byte| byte & TRUNCATED.1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Edns, OpCode, Query};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    fn message(answers: u8, additionals: u8) -> Message {
        let name = Name::from_ascii("peers.ns.svc.cluster.local.").unwrap();
        let record = |n| Record::from_rdata(name.clone(), 5, RData::A(A::new(10, 244, 0, n)));
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        message.add_answers((0..answers).map(record));
        message.add_additionals((0..additionals).map(record));
        message.set_edns(Edns::new());
        message
    }

    #[test]
    fn what_does_not_fit_is_left_out_in_order() {
        for (answers, additionals, limit) in
            [(1, 0, 512), (200, 200, 512), (20, 200, 512), (200, 0, 1232), (0, 60, 512), (255, 255, 65_535)]
        {
            let mut whole = message(answers, additionals);
            let bytes = encode(&mut whole, limit).unwrap();
            assert!(bytes.len() <= usize::from(limit));
            let read = Message::from_vec(&bytes).unwrap();
            assert!(read.edns.is_some(), "{answers} {additionals}");
            let all = read.answers.len() == usize::from(answers);
            assert_eq!(read.truncation, !all, "{answers} {additionals} in {limit}");
            // A record takes 16 bytes, its name being a pointer.
            assert!(all || bytes.len() + 16 > usize::from(limit), "{} of {limit}", bytes.len());
            if !all || bytes.len() + 16 * usize::from(additionals) > usize::from(limit) {
                assert!(read.additionals.is_empty());
            }
        }
    }

    #[test]
    fn a_client_says_what_it_takes() {
        let mut request = message(0, 0);
        for (says, gets) in [(100, 512), (512, 512), (1000, 1000), (4096, 1232)] {
            request.edns.as_mut().unwrap().set_max_payload(says);
            assert_eq!(datagram_limit(&request), gets);
        }
        request.edns = None;
        assert_eq!(datagram_limit(&request), 512);
    }
}
