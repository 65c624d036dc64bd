//! Certificate signing requests: approves those of nodes for themselves, signs what is approved, removes what is over.

mod approve;
mod clean;
mod request;
mod sign;

pub use approve::start as approving;
pub use clean::start as cleaning;
pub use sign::{Signer, start as signing};

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

/// Whether a request has a condition of a type that holds.
fn has(csr: &CertificateSigningRequest, type_: &str) -> bool {
    let conditions = csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == type_ && c.status == "True")
}

/// Whether it was decided upon.
fn is_decided(csr: &CertificateSigningRequest) -> bool {
    has(csr, "Approved") || has(csr, "Denied")
}

/// Whether it has its certificate.
fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}
