//! Approves requests of nodes for client certificates: of those that may ask for any node's (`nodeclient`), or for their
//! own (`selfnodeclient`). Serving certificates are for somebody else to approve.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};

use super::request::{self, KUBELET_CLIENT};
use super::{is_decided, is_issued};
use crate::context::Context;
use crate::error::Result;
use crate::informer::key_of;
use crate::queue::Queue;

/// Who may ask for what: subresource that is reviewed, and upstream's message of the approval.
const SELF: (&str, &str) =
    ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.");
const ANY: (&str, &str) =
    ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");

/// Starts the controller. Reads requests; writes their approval.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let requests = context.informer::<CertificateSigningRequest>();
    let queue = Queue::new();
    let q = queue.clone();
    requests.on_change(move |change| q.add(key_of(&change.object().metadata)));
    let client = context.client.clone();
    context.workers("csr-approving", &queue, 1, move |name| {
        let (requests, client) = (requests.clone(), client.clone());
        async move {
            let Some(csr) = requests.get(&name) else { return Ok(()) };
            if is_issued(&csr) || is_decided(&csr) {
                return Ok(());
            }
            for (subresource, message) in asked(&csr)? {
                if is_allowed(&client, &csr, subresource).await? {
                    return approve(&client, &csr, message).await;
                }
            }
            Ok(())
        }
    });
    Ok(())
}

/// What the requester must be allowed for the request, any of it; nothing when it is not one to approve here.
fn asked(csr: &CertificateSigningRequest) -> Result<Vec<(&'static str, &'static str)>> {
    if csr.spec.signer_name != KUBELET_CLIENT {
        return Ok(Vec::new());
    }
    let request = match request::parse(&csr.spec.request.0) {
        Ok(request) => request,
        // Trying again would not help.
        Err(error) => {
            tracing::warn!(name = csr.metadata.name, error, "a certificate signing request cannot be read");
            return Ok(Vec::new());
        }
    };
    if request::kubelet_client(&request, csr.spec.usages.as_deref().unwrap_or_default()).is_err() {
        return Ok(Vec::new());
    }
    let own = csr.spec.username.as_deref() == Some(request.common_name.as_str());
    Ok(own.then_some(SELF).into_iter().chain([ANY]).collect())
}

async fn is_allowed(
    client: &kube::Client,
    csr: &CertificateSigningRequest,
    subresource: &str,
) -> Result<bool> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: csr.spec.username.clone(),
            uid: csr.spec.uid.clone(),
            groups: csr.spec.groups.clone(),
            extra: csr.spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                version: Some("*".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(subresource.to_owned()),
                verb: Some("create".into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer =
        Api::<SubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}

async fn approve(client: &kube::Client, csr: &CertificateSigningRequest, message: &str) -> Result<()> {
    let mut approved = csr.clone();
    let now = Time(Timestamp::now());
    let condition = CertificateSigningRequestCondition {
        type_: "Approved".into(),
        status: "True".into(),
        reason: Some("AutoApproved".into()),
        message: Some(message.to_owned()),
        last_update_time: Some(now),
        ..CertificateSigningRequestCondition::default()
    };
    let status = approved.status.get_or_insert_with(CertificateSigningRequestStatus::default);
    status.conditions.get_or_insert_default().push(condition);
    put(client, "approval", &approved).await
}

/// Writes a subresource of a request, bound to the version that was read.
pub(super) async fn put(
    client: &kube::Client,
    subresource: &str,
    csr: &CertificateSigningRequest,
) -> Result<()> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = csr.metadata.name.as_deref().unwrap_or_default();
    let _: CertificateSigningRequest =
        api.replace_subresource(subresource, name, &PostParams::default(), csr).await?;
    Ok(())
}
