//! Removes requests that are over: an hour after they were signed, denied or failed, a day after they were made when nobody
//! decided, and when their certificate has ended.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::Api;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{has, is_decided, is_issued};
use crate::context::Context;
use crate::error::Result;
use crate::informer::{Change, key_of};
use crate::queue::Queue;
use crate::write;

/// Upstream's times.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// Starts the controller. Reads and removes requests.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let requests = context.informer::<CertificateSigningRequest>();
    let queue = Queue::new();
    let q = queue.clone();
    requests.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            q.add(key_of(&change.object().metadata));
        }
    });
    let client = context.client.clone();
    let again = queue.clone();
    context.workers("csr-cleaner", &queue, 1, move |name| {
        let (requests, client, again) = (requests.clone(), client.clone(), again.clone());
        async move {
            let Some(csr) = requests.get(&name) else { return Ok(()) };
            let Some(end) = end(&csr) else { return Ok(()) };
            let left = end.duration_since(Timestamp::now());
            if left > SignedDuration::ZERO {
                again.add_after(name, left.unsigned_abs());
                return Ok(());
            }
            write::delete(&Api::<CertificateSigningRequest>::all(client), &*csr, None).await
        }
    });
    Ok(())
}

/// When a request is over; `None`: not by time.
fn end(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let conditions = || csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let after = |type_: &str| {
        let mut own = conditions().filter(|c| c.type_ == type_);
        own.find_map(|c| c.last_update_time.as_ref())?.0.checked_add(DECIDED).ok()
    };
    let made = || csr.metadata.creation_timestamp.as_ref()?.0.checked_add(PENDING).ok();
    let pending = if is_decided(csr) || has(csr, "Failed") { None } else { made() };
    let issued = if is_issued(csr) { after("Approved") } else { None };
    [after("Denied"), after("Failed"), issued, expiry(csr), pending].into_iter().flatten().min()
}

/// End of the certificate of an approved request.
fn expiry(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let pem = &csr.status.as_ref().filter(|_| has(csr, "Approved"))?.certificate.as_ref()?.0;
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_end_by_what_became_of_them() {
        let at = "2026-01-01T00:00:00Z";
        let of = |conditions: serde_json::Value, certificate: Option<&str>| {
            let csr: CertificateSigningRequest = serde_json::from_value(json!({
                "metadata": {"name": "r", "creationTimestamp": "2025-12-31T00:00:00Z"},
                "spec": {"request": "", "signerName": "s"},
                "status": {"conditions": conditions, "certificate": certificate}}))
            .unwrap();
            end(&csr).map(|t| t.to_string())
        };
        let condition = |type_: &str| json!([{"type": type_, "status": "True", "lastUpdateTime": at}]);
        assert_eq!(of(json!([]), None).as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(of(condition("Denied"), None).as_deref(), Some("2026-01-01T01:00:00Z"));
        assert_eq!(of(condition("Failed"), None).as_deref(), Some("2026-01-01T01:00:00Z"));
        assert_eq!(of(condition("Approved"), None), None, "it waits for its certificate");
        assert_eq!(of(condition("Approved"), Some("eA==")).as_deref(), Some("2026-01-01T01:00:00Z"));
    }
}
