//! Certificate signing requests: approved, signed, refused.

mod harness;

use anyhow::{Context, Result};
use harness::{Cluster, eventually, settings};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kelp_controllers::certificates::Signer;
use kube::api::{Api, PostParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair};
use serde_json::json;
use std::time::Duration;

fn authority() -> Result<Signer> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "authority");
    let certificate = params.self_signed(&key)?.pem();
    Ok(Signer { certificate, key: key.serialize_pem(), life: Duration::from_secs(86_400) })
}

fn request(name: &str, signer: &str, organization: &str, user: &str) -> Result<CertificateSigningRequest> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, user);
    let pem = params.serialize_request(&KeyPair::generate()?)?.pem()?;
    let mut made: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"request": "", "signerName": signer, "usages": ["digital signature", "client auth"]}}))?;
    made.spec.request.0 = pem.into_bytes();
    Ok(made)
}

fn conditions(csr: &CertificateSigningRequest) -> Vec<(String, String, String)> {
    let list = csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    list.map(|c| {
        (c.type_.clone(), c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_get_certificates_and_others_wait_for_approval() -> Result<()> {
    let signer = Some(authority()?);
    let cluster = Cluster::start(kelp_controllers::Config { signer, ..settings() }).await?;
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let kubelet = "kubernetes.io/kube-apiserver-client-kubelet";
    // The administrator may ask for the certificate of any node.
    let made = request("node", kubelet, "system:nodes", "system:node:n1")?;
    api.create(&PostParams::default(), &made).await?;
    let signed = eventually("the node's certificate", || async {
        let found = api.get("node").await?;
        Ok(found.status.as_ref().is_some_and(|s| s.certificate.is_some()).then_some(found))
    })
    .await?;
    let text = "Auto approving kubelet client certificate after SubjectAccessReview.";
    assert_eq!(conditions(&signed), [("Approved".to_owned(), "AutoApproved".into(), text.into())]);

    let client = "kubernetes.io/kube-apiserver-client";
    api.create(&PostParams::default(), &request("jane", client, "devs", "jane")?).await?;
    api.create(&PostParams::default(), &request("bad", kubelet, "wrong", "system:node:x")?).await?;
    for name in ["jane", "bad"] {
        let mut found = api.get(name).await?;
        assert!(conditions(&found).is_empty(), "nobody decides by itself");
        let approved = json!({"conditions": [
            {"type": "Approved", "status": "True", "reason": "ByHand", "message": "by hand"}]});
        found.status = Some(serde_json::from_value(approved)?);
        let _: CertificateSigningRequest =
            api.replace_subresource("approval", name, &PostParams::default(), &found).await?;
    }
    eventually("the client's certificate", || async {
        let found = api.get("jane").await?;
        Ok(found.status.context("no status")?.certificate.map(|_| ()))
    })
    .await?;
    let failed = eventually("the refusal", || async {
        let found = conditions(&api.get("bad").await?);
        Ok((found.len() == 2).then_some(found))
    })
    .await?;
    let text = "subject organization is not system:nodes";
    assert_eq!(failed[1], ("Failed".to_owned(), "SignerValidationFailure".into(), text.into()));
    Ok(())
}
