use super::*;
use std::os::unix::fs::PermissionsExt;
use x509_parser::prelude::{FromDer, X509Certificate};

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary directory")
}

fn parse(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM").1.contents
}

#[test]
fn keeps_what_it_issued_and_files_are_private() {
    let dir = temp();
    let now = OffsetDateTime::now_utc();
    let pki = Pki::open(dir.path()).expect("new PKI");
    let first = pki.ensure(&LeafSpec::admin(), now).expect("issue");
    let again = Pki::open(dir.path()).expect("same PKI");
    assert_eq!(pki.ca_pem(), again.ca_pem());
    assert_eq!(first.cert_pem, again.ensure(&LeafSpec::admin(), now).expect("reuse").cert_pem);
    for (file, mode) in [("ca.key", 0o600), ("admin.key", 0o600), ("sa.key", 0o600), ("ca.crt", 0o644)] {
        let found = std::fs::metadata(dir.path().join("pki").join(file)).expect(file).permissions().mode();
        assert_eq!(found & 0o777, mode, "{file}");
    }
}

#[test]
fn renews_with_a_third_of_its_life_left() {
    let dir = temp();
    let now = OffsetDateTime::now_utc();
    let pki = Pki::open(dir.path()).expect("new PKI");
    let first = pki.ensure(&LeafSpec::scheduler(), now).expect("issue");
    let kept = pki.ensure(&LeafSpec::scheduler(), first.renew_at - time::Duration::DAY).expect("reuse");
    assert_eq!(first.cert_pem, kept.cert_pem);
    let renewed = pki.ensure(&LeafSpec::scheduler(), first.renew_at).expect("renew");
    assert_ne!(first.cert_pem, renewed.cert_pem);
    assert!(renewed.not_after > first.not_after);
}

#[test]
fn issues_again_for_new_names_a_wrong_key_or_another_authority() {
    let dir = temp();
    let now = OffsetDateTime::now_utc();
    let pki = Pki::open(dir.path()).expect("new PKI");
    let spec = LeafSpec::apiserver(vec!["kubernetes".into()], vec!["10.96.0.1".parse().expect("address")]);
    let first = pki.ensure(&spec, now).expect("issue");
    assert_eq!(first.cert_pem, pki.ensure(&spec, now).expect("reuse").cert_pem);
    let mut wider = spec.clone();
    wider.addresses.push("fd00:10:96::1".parse().expect("address"));
    let second = pki.ensure(&wider, now).expect("issue again");
    assert_ne!(first.cert_pem, second.cert_pem);
    write_atomic(&dir.path().join("pki/apiserver.key"), first.key_pem.as_bytes(), 0o600).expect("write");
    let third = pki.ensure(&wider, now).expect("wrong key");
    assert_ne!(second.cert_pem, third.cert_pem);
    std::fs::remove_file(dir.path().join("pki/ca.key")).expect("remove");
    assert!(Pki::open(dir.path()).is_err(), "a certificate without its key must not be replaced silently");
    std::fs::remove_file(dir.path().join("pki/ca.crt")).expect("remove");
    let other = Pki::open(dir.path()).expect("new authority");
    assert_ne!(third.cert_pem, other.ensure(&wider, now).expect("other authority").cert_pem);
}

#[test]
fn a_client_may_have_many_groups_and_verifies() {
    let dir = temp();
    let pki = Pki::open(dir.path()).expect("new PKI");
    for groups in
        [&[][..], &["a"], &["a", "b"], &["dev", "ops", "a-long-group-name-".repeat(20).as_str(), "über"]]
    {
        let leaf =
            pki.issue(&LeafSpec::client("x", "jane", groups), OffsetDateTime::now_utc()).expect("issue");
        let der = parse(&leaf.cert_pem);
        let (rest, cert) = X509Certificate::from_der(&der).expect("certificate");
        assert!(rest.is_empty());
        let found = cert.subject().iter_organization().map(|o| o.as_str().expect("text")).collect::<Vec<_>>();
        assert_eq!(found, groups);
        assert_eq!(cert.subject().iter_common_name().next().expect("name").as_str().expect("text"), "jane");
        // The TLS library accepts it as a client's certificate.
        let mut roots = rustls::RootCertStore::empty();
        roots.add(parse(pki.ca_pem()).into()).expect("authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .expect("verifier");
        verifier
            .verify_client_cert(&der.into(), &[], rustls::pki_types::UnixTime::now())
            .unwrap_or_else(|e| panic!("{groups:?}: {e}"));
        ReloadingCert::new(&leaf).expect("key belongs to the certificate");
    }
}

use std::sync::Arc;
