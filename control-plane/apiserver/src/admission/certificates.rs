//! Who may approve and sign certificate requests, and which nobody may make (upstream's `CertificateApproval`,
//! `CertificateSigning` and `CertificateSubjectRestriction`).

use crate::auth::{Attributes, MASTERS};
use crate::codec;
use crate::error::{ApiError, quote};
use crate::handlers::Context;
use crate::object::{get, meta, str_at};
use crate::registry::certificates::{GROUP, parse_request};
use serde_json::Value;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// Checks a valid request before it is written.
pub(crate) async fn validate(
    context: &Context,
    subresource: &str,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    if context.resource.group() != GROUP {
        return Ok(());
    }
    let refuse =
        |why: &str| Err(ApiError::forbidden(GROUP, context.resource.plural(), meta(object, "name"), why));
    let Some(old) = old else {
        let restricted = str_at(object, &["spec", "signerName"]) == CLIENT;
        let bytes = codec::decode_base64(str_at(object, &["spec", "request"])).unwrap_or_default();
        let subject = parse_request(&bytes).unwrap_or_default();
        if restricted && subject.organizations.iter().any(|group| group == MASTERS) {
            return refuse(&format!("use of {CLIENT} signer with {MASTERS} group is not allowed"));
        }
        return Ok(());
    };
    // The signer is that of the stored object: the new one cannot change it.
    let signer = str_at(old, &["spec", "signerName"]);
    let (verb, action) = match subresource {
        "approval" => ("approve", "approve"),
        "status" => {
            let same = |field: &str| get(object, &["status", field]) == get(old, &["status", field]);
            if same("certificate") && same("conditions") {
                return Ok(());
            }
            ("sign", "sign")
        }
        _ => return Ok(()),
    };
    if may(context, verb, signer).await? {
        return Ok(());
    }
    refuse(&format!("user not permitted to {action} requests with signerName {}", quote(signer)))
}

/// Whether the user has a right about a signer, by its name or by its domain.
async fn may(context: &Context, verb: &str, signer: &str) -> Result<bool, ApiError> {
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let mut a = Attributes::empty(&context.user);
        (a.verb, a.name) = (verb.to_owned().into(), name.into());
        (a.group, a.version, a.resource) = (GROUP.into(), "*".into(), "signers".into());
        if context.core.policy.authorize(&a).await?.allowed {
            return Ok(true);
        }
    }
    Ok(false)
}
