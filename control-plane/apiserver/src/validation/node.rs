//! Nodes.

use kelp_model::names;
use serde_json::{Value, json};

use super::{Errors, at, invalid_each, list, map, net, one_of, resources, text, texts};
use crate::error::{FieldError, FieldErrorKind};

pub(super) fn create(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    taints(spec, errs);
    node_resources(object, errs);
    let cidrs: Vec<&str> = texts(spec, "podCIDRs").collect();
    for (i, cidr) in cidrs.iter().enumerate() {
        net::cidr(errs, &format!("spec.podCIDRs[{i}]"), cidr);
    }
    if cidrs.len() > 1 {
        if !net::dual_stack(&cidrs) || cidrs.len() > 2 {
            errs.push(FieldError::invalid(
                "spec.podCIDRs",
                at(spec, "podCIDRs"),
                "may specify no more than one CIDR for each IP family",
            ));
        }
        for (i, cidr) in cidrs.iter().enumerate().filter(|(i, c)| cidrs[..*i].contains(c)) {
            errs.push(FieldError::duplicate(format!("spec.podCIDRs[{i}]"), *cidr));
        }
    }
}

fn node_resources(object: &Value, errs: &mut Errors) {
    for field in ["capacity", "allocatable"] {
        for (name, value) in map(at(object, "status"), field) {
            resources::quantity_value(name, value, &format!("status.{field}.{name}"), errs);
        }
    }
}

fn taints(spec: &Value, errs: &mut Errors) {
    let taints = list(spec, "taints");
    for (i, taint) in taints.iter().enumerate() {
        // Upstream's path.
        let path = format!("metadata.taints[{i}]");
        let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        invalid_each(errs, &format!("{path}.key"), key, names::qualified_name(key));
        let bad = names::label_value(value);
        if !bad.is_empty() {
            errs.push(FieldError::invalid(format!("{path}.value"), value, bad.join(";")));
        }
        one_of(errs, &format!("{path}.effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        if taints[..i].iter().any(|t| text(t, "key") == key && text(t, "effect") == effect) {
            let shown = super::service::ordered(&[
                ("Key", json!(key)),
                ("Value", json!(value)),
                ("Effect", json!(effect)),
                ("TimeAdded", at(taint, "timeAdded").clone()),
            ]);
            let detail = "taints must be unique by key and effect pair";
            errs.push(FieldError::new(FieldErrorKind::Duplicate, path, shown, detail));
        }
    }
}

pub(super) fn update(new: &Value, old: &Value, errs: &mut Errors) {
    node_resources(new, errs);
    let addresses = list(at(new, "status"), "addresses");
    for (i, address) in addresses.iter().enumerate().filter(|(i, a)| addresses[..*i].contains(a)) {
        let shown = super::service::ordered(&[
            ("Type", at(address, "type").clone()),
            ("Address", at(address, "address").clone()),
        ]);
        errs.push(FieldError::new(FieldErrorKind::Duplicate, format!("status.addresses[{i}]"), shown, ""));
    }
    let (new, old) = (at(new, "spec"), at(old, "spec"));
    let (new_cidrs, old_cidrs) = (list(new, "podCIDRs"), list(old, "podCIDRs"));
    if !old_cidrs.is_empty() && new_cidrs != old_cidrs {
        errs.push(FieldError::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    let provider = text(old, "providerID");
    if !provider.is_empty() && provider != text(new, "providerID") {
        errs.push(FieldError::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    taints(new, errs);
    if text(new, "externalID") != text(old, "externalID") {
        errs.push(FieldError::forbidden("spec.externalID", "may not be updated"));
    }
}
