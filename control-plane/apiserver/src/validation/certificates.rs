//! Certificate signing requests.

use kelp_model::names;
use serde_json::Value;

use super::{Errors, at, int, invalid_each, list, same, set, text, texts};
use crate::codec;
use crate::error::FieldError;
use crate::registry::certificates::parse_request;

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";
const LEGACY: &str = "kubernetes.io/legacy-unknown";
const CONDITIONS: &str = "status.conditions";
const CERTIFICATE: &str = "status.certificate";

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// What writes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// The object itself.
    Main,
    /// `status`: certificate and failure.
    Status,
    /// `approval`: approval and denial.
    Approval,
}

fn conditions<'a>(object: &'a Value, kind: &str) -> Vec<&'a Value> {
    list(at(object, "status"), "conditions").iter().filter(|c| text(c, "type") == kind).collect()
}

fn certificate(object: &Value) -> Vec<u8> {
    codec::decode_base64(text(at(object, "status"), "certificate")).unwrap_or_default()
}

/// What holds always. What an old object does already is not held against a new one.
pub(super) fn request(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let spec = at(object, "spec");
    let bytes = codec::decode_base64(text(spec, "request")).unwrap_or_default();
    if let Err(why) = parse_request(&bytes) {
        errs.push(FieldError::invalid("spec.request", text(spec, "request"), why));
    }
    usages(spec, old.map(|old| at(old, "spec")), errs);
    let signer = text(spec, "signerName");
    let was_legacy = old.is_some_and(|old| text(at(old, "spec"), "signerName") == LEGACY);
    if signer == LEGACY && !was_legacy {
        let why = "the legacy signerName is not allowed via this API version";
        errs.push(FieldError::invalid("spec.signerName", signer, why));
    } else {
        signer_name("spec.signerName", signer, errs);
    }
    if let Some(seconds) = int(spec, "expirationSeconds").filter(|seconds| *seconds < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errs.push(FieldError::invalid("spec.expirationSeconds", seconds, why));
    }
    let mut earlier = Errors::new();
    if let Some(old) = old {
        check_conditions(old, &mut earlier);
    }
    let mut found = Errors::new();
    check_conditions(object, &mut found);
    // Only statuses are held against objects that were written in another time.
    errs.extend(found.into_iter().filter(|error| {
        error.field.ends_with(".status")
            || !earlier.iter().any(|old| old.detail == error.detail && old.kind == error.kind)
    }));
    if let Err(why) = check_certificate(&certificate(object))
        && old.is_none_or(|old| check_certificate(&certificate(old)).is_ok())
    {
        errs.push(FieldError::invalid(CERTIFICATE, "<certificate data>", why));
    }
}

fn usages(spec: &Value, old: Option<&Value>, errs: &mut Errors) {
    let own: Vec<&str> = texts(spec, "usages").collect();
    let earlier: Vec<&str> = old.into_iter().flat_map(|old| texts(old, "usages")).collect();
    if own.is_empty() {
        errs.push(FieldError::required("spec.usages", ""));
    }
    if !earlier.iter().any(|usage| !USAGES.contains(usage)) {
        for (i, usage) in own.iter().enumerate().filter(|(_, usage)| !USAGES.contains(usage)) {
            errs.push(FieldError::not_supported(format!("spec.usages[{i}]"), *usage, USAGES));
        }
    }
    let repeated = |list: &[&str], i: usize| list.iter().take(i).any(|other| list.get(i) == Some(other));
    if !(0..earlier.len()).any(|i| repeated(&earlier, i)) {
        for (i, usage) in own.iter().enumerate().filter(|(i, _)| repeated(&own, *i)) {
            errs.push(FieldError::duplicate(format!("spec.usages[{i}]"), *usage));
        }
    }
}

fn signer_name(path: &str, name: &str, errs: &mut Errors) {
    if name.is_empty() {
        errs.push(FieldError::required(path, ""));
        return;
    }
    let mut parts = name.split('/');
    let (Some(domain), Some(rest), None) = (parts.next(), parts.next(), parts.next()) else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errs.push(FieldError::invalid(path, name, why));
        return;
    };
    if domain.len() > 253 {
        errs.push(FieldError::too_long(path, 253));
    }
    let mut labels = |whole: &str, check: fn(&str) -> Vec<String>| {
        for label in whole.split('.') {
            let messages = check(label)
                .into_iter()
                .map(|m| format!("validating label {}: {m}", crate::error::quote(label)));
            invalid_each(errs, path, whole, messages.collect());
        }
    };
    labels(domain, names::dns1123_label);
    labels(rest, names::dns1123_subdomain);
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        errs.push(FieldError::invalid(path, domain, why));
    }
    let longest = 253 + 1 + (253 + 63 + 1);
    if name.len() > longest {
        errs.push(FieldError::too_long(path, longest));
    }
}

fn check_conditions(object: &Value, errs: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, condition) in list(at(object, "status"), "conditions").iter().enumerate() {
        let (kind, status) = (text(condition, "type"), text(condition, "status"));
        let path = |field: &str| format!("{CONDITIONS}[{i}].{field}");
        if kind.is_empty() {
            errs.push(FieldError::required(path("type"), ""));
        }
        let allowed: &[&str] = if matches!(kind, APPROVED | DENIED | FAILED) {
            &["True"]
        } else {
            &["False", "True", "Unknown"]
        };
        if status.is_empty() {
            errs.push(FieldError::required(path("status"), ""));
        } else if !allowed.contains(&status) {
            errs.push(FieldError::not_supported(path("status"), status, allowed));
        }
        let other = match kind {
            APPROVED => DENIED,
            DENIED => APPROVED,
            _ => "",
        };
        if !other.is_empty() && seen.contains(&other) {
            let why = "Approved and Denied conditions are mutually exclusive";
            errs.push(FieldError::invalid(CONDITIONS, kind, why));
        }
        if seen.contains(&kind) {
            errs.push(FieldError::duplicate(path("type"), kind));
        }
        seen.push(kind);
    }
}

fn check_certificate(mut pem: &[u8]) -> Result<(), String> {
    if pem.is_empty() {
        return Ok(());
    }
    let mut blocks = 0;
    while let Ok((rest, block)) = x509_parser::pem::parse_x509_pem(pem) {
        if block.label != "CERTIFICATE" {
            let label = crate::error::quote(&block.label);
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {label}"));
        }
        block.parse_x509().map_err(|error| format!("x509: malformed certificate: {error}"))?;
        blocks += 1;
        if rest.len() >= pem.len() {
            break;
        }
        pem = rest;
    }
    if blocks == 0 { Err("must contain at least one CERTIFICATE PEM block".to_owned()) } else { Ok(()) }
}

/// What an update may change.
pub(super) fn update(new: &Value, old: &Value, writer: Writer, errs: &mut Errors) {
    request(new, Some(old), errs);
    for kind in [APPROVED, DENIED, FAILED] {
        let (before, after) = (conditions(old, kind), conditions(new, kind));
        let may = match writer {
            Writer::Main => false,
            Writer::Status => kind == FAILED,
            Writer::Approval => kind != FAILED,
        };
        let kind = crate::error::quote(kind);
        let mut refuse = |what: &str| {
            errs.push(FieldError::forbidden(
                CONDITIONS,
                format!("updates may not {what} a condition of type {kind}"),
            ));
        };
        if after.len() < before.len() {
            refuse("remove");
        } else if !may && after.len() > before.len() {
            refuse("add");
        } else if !may && !before.iter().zip(&after).all(|(a, b)| same(a, b)) {
            refuse("modify");
        }
    }
    let status = |object: &Value| text(at(object, "status"), "certificate").to_owned();
    if status(new) == status(old) {
        return;
    }
    if writer != Writer::Status {
        errs.push(FieldError::forbidden(CERTIFICATE, "updates may not set certificate content"));
    } else if set(at(old, "status"), "certificate") && !status(old).is_empty() {
        errs.push(FieldError::forbidden(CERTIFICATE, "updates may not modify existing certificate content"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(check: impl Fn(&mut Errors)) -> Vec<String> {
        let mut errs = Errors::new();
        check(&mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_of_signers() {
        let of = |name: &str| errors(|errs| signer_name("s", name, errs));
        assert!(of("example.com/x").is_empty());
        assert!(of("example.com/x.y").is_empty());
        assert_eq!(of(""), ["s: Required value"]);
        assert_eq!(
            of("a/b"),
            ["s: Invalid value: \"a\": should be a domain with at least two segments separated by dots"]
        );
        assert!(of("a.b/c/d")[0].contains("must be a fully qualified domain and path"));
        assert!(of("a.B/c")[0].starts_with("s: Invalid value: \"a.B\": validating label \"B\": "));
    }

    #[test]
    fn conditions_by_who_writes() {
        let with = |list: Value| json!({"spec": {}, "status": {"conditions": list}});
        let approved = json!({"type": "Approved", "status": "True"});
        let denied = json!({"type": "Denied", "status": "True"});
        let failed = json!({"type": "Failed", "status": "True"});
        let of = |new: Value, old: Value, writer| {
            let all = errors(|errs| update(&with(new.clone()), &with(old.clone()), writer, errs));
            all.into_iter().filter(|e| e.starts_with("status")).collect::<Vec<_>>()
        };
        let add = |kind: &str| {
            format!("status.conditions: Forbidden: updates may not add a condition of type \"{kind}\"")
        };
        assert!(of(json!([approved]), json!([]), Writer::Approval).is_empty());
        assert_eq!(of(json!([approved]), json!([]), Writer::Status), [add("Approved")]);
        assert_eq!(of(json!([failed]), json!([]), Writer::Approval), [add("Failed")]);
        assert_eq!(
            of(json!([]), json!([approved]), Writer::Approval),
            ["status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""]
        );
        assert_eq!(
            of(json!([approved, denied]), json!([approved]), Writer::Approval),
            [
                "status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive"
            ]
        );
        let unsure = json!([{"type": "Approved", "status": "Unknown"}, {"type": "", "status": ""}]);
        assert_eq!(
            of(unsure, json!([]), Writer::Approval),
            [
                "status.conditions[0].status: Unsupported value: \"Unknown\": supported values: \"True\"",
                "status.conditions[1].type: Required value",
                "status.conditions[1].status: Required value"
            ]
        );
    }
}
