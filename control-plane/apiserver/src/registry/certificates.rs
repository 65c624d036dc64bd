//! Certificate signing requests: the row, who asks, and what becomes of a request.

use super::core::BASE;
use super::fields::CSR_FIELDS;
use super::*;
use crate::auth::{UserInfo, extra_value};
use crate::object::{get, list_at, map_mut, now, str_at};
use crate::table;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// API group of signing requests.
pub(crate) const GROUP: &str = "certificates.k8s.io";

const VERBS: &[&str] = &["get", "patch", "update"];

static CSR: Strategy = Strategy {
    prepare_create: |object| object["status"] = serde_json::json!({}),
    prepare_update: |new, old| super::core::carry(new, old, &["spec", "status"]),
    prepare_status: set_times,
    prepare_part: |_, new, old| prepare_approval(new, old),
    ..Strategy::PLAIN
};

static CSR_SUB: &[Subresource] = &[
    Subresource {
        name: "approval",
        does: SubresourceKind::Part,
        kind: Some((GROUP, "v1", "CertificateSigningRequest")),
        verbs: VERBS,
    },
    Subresource {
        name: "status",
        does: SubresourceKind::Status,
        kind: Some((GROUP, "v1", "CertificateSigningRequest")),
        verbs: VERBS,
    },
];

pub(super) fn rows() -> Vec<Row> {
    vec![Row {
        group: GROUP,
        plural: "certificatesigningrequests",
        singular: "certificatesigningrequest",
        kind: "CertificateSigningRequest",
        namespaced: false,
        short_names: &["csr"],
        subresources: CSR_SUB,
        storage_prefix: "/registry/certificatesigningrequests/",
        fields: CSR_FIELDS,
        own_field_labels: true,
        table: &table::CSR_TABLE,
        strategy: &CSR,
        ..BASE
    }]
}

/// A new request says who makes it.
pub(crate) fn set_requester(user: &UserInfo, object: &mut Value) {
    let spec = map_mut(object, "spec");
    let mut put = |field: &str, value: Option<Value>| crate::object::set_or_remove(spec, field, value);
    put("username", Some(user.name.as_str().into()));
    put("uid", Some(user.uid.as_str().into()).filter(|_| !user.uid.is_empty()));
    put("groups", Some(user.groups.clone().into()).filter(|_| !user.groups.is_empty()));
    put("extra", Some(extra_value(&user.extra)).filter(|_| !user.extra.is_empty()));
}

/// What an approval may change: the conditions.
fn prepare_approval(new: &mut Value, old: &Value) {
    let certificate = get(old, &["status", "certificate"]).cloned();
    let spec = old.get("spec").cloned();
    if let Some(object) = new.as_object_mut() {
        crate::object::set_or_remove(object, "spec", spec);
    }
    crate::object::set_or_remove(map_mut(new, "status"), "certificate", certificate);
    set_times(new, old);
}

/// Conditions without times get them; one that was there keeps the time of its transition.
fn set_times(new: &mut Value, old: &Value) {
    let now = now();
    let earlier = list_at(old, &["status", "conditions"]);
    let conditions = map_mut(new, "status").get_mut("conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter(|condition| condition.is_object()) {
        let missing = |field: &str| str_at(condition, &[field]).is_empty();
        let same = |other: &&Value| {
            ["type", "status"].iter().all(|field| str_at(other, &[field]) == str_at(condition, &[field]))
        };
        let transition = earlier
            .iter()
            .find(same)
            .map(|other| str_at(other, &["lastTransitionTime"]).to_owned())
            .filter(|time| !time.is_empty())
            .unwrap_or_else(|| now.clone());
        let (update, moved) = (missing("lastUpdateTime"), missing("lastTransitionTime"));
        if update {
            condition["lastUpdateTime"] = now.as_str().into();
        }
        if moved {
            condition["lastTransitionTime"] = transition.into();
        }
    }
}

/// Subject of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Common name.
    pub(crate) name: String,
    /// Organizations.
    pub(crate) organizations: Vec<String>,
}

/// Reads a PEM certificate request and checks its signature.
///
/// # Errors
/// Upstream's text for what is no PEM block of the kind; our own for what is wrong inside.
pub(crate) fn parse_request(pem: &[u8]) -> Result<Subject, String> {
    const BLOCK: &str = "CERTIFICATE REQUEST";
    let not_pem = || format!("PEM block type must be {BLOCK}");
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| not_pem())?;
    if block.label != BLOCK && block.label != "NEW CERTIFICATE REQUEST" {
        return Err(not_pem());
    }
    let (_, request) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|error| format!("x509: malformed certificate request: {error}"))?;
    verify(&request)?;
    let subject = &request.certification_request_info.subject;
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
    Ok(Subject {
        name: subject.iter_common_name().next().and_then(text).unwrap_or_default(),
        organizations: subject.iter_organization().filter_map(text).collect(),
    })
}

/// Checks that who made the request has the key.
fn verify(request: &X509CertificationRequest<'_>) -> Result<(), String> {
    let info = &request.certification_request_info;
    let key = &info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|oid| oid.to_id_string());
    let algorithm = request.signature_algorithm.algorithm.to_id_string();
    let p384 = curve.as_deref() == Some("1.3.132.0.34");
    let by: &dyn VerificationAlgorithm = match algorithm.as_str() {
        "1.2.840.10045.4.3.2" if p384 => &signature::ECDSA_P384_SHA256_ASN1,
        "1.2.840.10045.4.3.2" => &signature::ECDSA_P256_SHA256_ASN1,
        "1.2.840.10045.4.3.3" if p384 => &signature::ECDSA_P384_SHA384_ASN1,
        "1.2.840.10045.4.3.3" => &signature::ECDSA_P256_SHA384_ASN1,
        "1.2.840.113549.1.1.11" => &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
        "1.2.840.113549.1.1.12" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "1.2.840.113549.1.1.13" => &signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
        "1.3.101.112" => &signature::ED25519,
        _ => return Err("x509: cannot verify signature: algorithm unimplemented".to_owned()),
    };
    UnparsedPublicKey::new(by, &key.subject_public_key.data)
        .verify(info.raw, &request.signature_value.data)
        .map_err(|_| "x509: certificate request signature is invalid".to_owned())
}

/// What a node may ask for: its own identity, as certificate for the API server or for serving.
pub(crate) fn node_request(node: &str, object: &Value) -> Result<(), String> {
    let signer = str_at(object, &["spec", "signerName"]);
    if !matches!(signer, "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet") {
        return Ok(());
    }
    let bytes = crate::codec::decode_base64(str_at(object, &["spec", "request"])).unwrap_or_default();
    let subject = parse_request(&bytes).map_err(|why| format!("unable to parse csr: {why}"))?;
    if subject.name != format!("system:node:{node}") {
        return Err(format!("can only create a node CSR with CN=system:node:{node}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(name: &str, organization: &str) -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        params.serialize_request(&key).and_then(|request| request.pem()).expect("a request")
    }

    #[test]
    fn requests_are_read_and_their_signature_checked() {
        let pem = request("alice", "dev");
        let subject = Subject { name: "alice".into(), organizations: vec!["dev".into()] };
        assert_eq!(parse_request(pem.as_bytes()), Ok(subject));
        assert_eq!(parse_request(b"x"), Err("PEM block type must be CERTIFICATE REQUEST".into()));
        // One bit of the subject makes the signature another's.
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("pem");
        let mut der = block.contents.clone();
        let at = der.windows(5).position(|w| w == b"alice").expect("the name");
        der[at] = b'b';
        let (_, forged) = X509CertificationRequest::from_der(&der).expect("still a request");
        assert!(verify(&forged).is_err());
    }

    #[test]
    fn a_node_asks_for_itself() {
        use base64::Engine;
        let ask = |name: &str, signer: &str| {
            let request = base64::engine::general_purpose::STANDARD.encode(request(name, "system:nodes"));
            node_request("n", &json!({"spec": {"signerName": signer, "request": request}}))
        };
        let serving = "kubernetes.io/kubelet-serving";
        assert_eq!(ask("system:node:n", serving), Ok(()));
        assert_eq!(
            ask("system:node:o", serving),
            Err("can only create a node CSR with CN=system:node:n".into())
        );
        assert_eq!(ask("system:node:o", "example.com/x"), Ok(()));
    }

    #[test]
    fn times_of_conditions() {
        let old = json!({"status": {"certificate": "Yw==", "conditions": [{"type": "Approved", "status": "True",
            "lastTransitionTime": "2020-01-01T00:00:00Z"}]}});
        let mut new = json!({"status": {"certificate": "eA==", "conditions": [{"type": "Approved", "status": "True"},
            {"type": "Failed", "status": "True"}]}});
        prepare_approval(&mut new, &old);
        assert_eq!(new["status"]["certificate"], "Yw==");
        assert_eq!(new["status"]["conditions"][0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert!(str_at(&new["status"]["conditions"][1], &["lastTransitionTime"]).len() == 20);
        assert!(str_at(&new["status"]["conditions"][0], &["lastUpdateTime"]).starts_with("20"));
    }
}
