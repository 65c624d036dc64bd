//! API services.

use kelp_model::names;
use serde_json::Value;

use super::{Errors, at, flag, int, invalid_each, meta, set, simple, text};
use crate::error::FieldError;
use crate::gvk::GroupVersionKind;

/// Checks an APIService with its metadata: its name is made of its version and group.
pub(super) fn api_service(gvk: &GroupVersionKind, object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    let (group, version) = (text(spec, "group"), text(spec, "version"));
    meta::create(gvk, object, errs);
    let name = text(at(object, "metadata"), "name");
    let wanted = format!("{version}.{group}");
    if !name.is_empty() && name != wanted && names::path_segment_name(name).is_empty() {
        let quoted = crate::error::quote(&wanted);
        let detail = format!("must be `spec.version+\".\"+spec.group`: {quoted}");
        errs.push(FieldError::invalid("metadata.name", name, detail));
    }
    if group.is_empty() && version != "v1" {
        let detail = "only v1 may have an empty group and it better be legacy kube";
        errs.push(FieldError::required("spec.group", detail));
    }
    if !group.is_empty() {
        invalid_each(errs, "spec.group", group, names::dns1123_subdomain(group));
    }
    invalid_each(errs, "spec.version", version, names::dns1035_label(version));
    for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let value = int(spec, field).unwrap_or_default();
        if !(1..=max).contains(&value) {
            let detail = format!("must be positive and less than {max}");
            errs.push(FieldError::invalid(format!("spec.{field}"), value, detail));
        }
    }
    let authority = simple::base64_length(at(spec, "caBundle"));
    let insecure = flag(spec, "insecureSkipTLSVerify");
    let service = at(spec, "service");
    if !set(spec, "service") {
        if authority != 0 {
            let detail = "local APIServices may not have a caBundle";
            errs.push(FieldError::invalid("spec.caBundle", format!("{authority} bytes"), detail));
        }
        if insecure {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            errs.push(FieldError::invalid("spec.insecureSkipTLSVerify", Value::Bool(true), detail));
        }
        return;
    }
    for field in ["namespace", "name"] {
        if text(service, field).is_empty() {
            errs.push(FieldError::required(format!("spec.service.{field}"), ""));
        }
    }
    let port = int(service, "port").unwrap_or_default();
    let messages = names::port_number(port);
    if !messages.is_empty() {
        let detail = format!("port is not valid: {}", messages.join(", "));
        errs.push(FieldError::invalid("spec.service.port", port, detail));
    }
    if insecure && authority != 0 {
        let detail = "may not be true if caBundle is present";
        errs.push(FieldError::invalid("spec.insecureSkipTLSVerify", Value::Bool(true), detail));
    }
}
