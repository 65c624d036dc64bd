//! The metadata of every object.

use kelp_model::names;
use serde_json::Value;

use super::{Errors, at, flag, immutable, int, invalid_each, list, map, nonnegative, text, texts};
use crate::error::FieldError;
use crate::gvk::GroupVersionKind;

/// How names of a kind look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// A DNS-1123 subdomain: most kinds.
    Subdomain,
    /// A DNS-1123 label: namespaces, services.
    Label,
    /// Anything that can be a segment of a path: RBAC kinds, and those with rules of their own.
    PathSegment,
    /// An address: IPAddresses.
    Address,
}

impl NameRule {
    /// The rule for a kind.
    #[must_use]
    pub fn of(gvk: &GroupVersionKind) -> Self {
        match (gvk.group.as_str(), gvk.kind.as_str()) {
            ("", "Namespace" | "Service") | ("apps", "StatefulSet") => Self::Label,
            // Upstream checks no name of its own for these.
            ("policy", _) => Self::PathSegment,
            ("rbac.authorization.k8s.io", _) | ("certificates.k8s.io", _) => Self::PathSegment,
            ("storage.k8s.io", "CSIDriver") | ("apiregistration.k8s.io", _) => Self::PathSegment,
            ("networking.k8s.io", "IPAddress") => Self::Address,
            _ => Self::Subdomain,
        }
    }

    /// What is wrong with a name, nothing when it is valid.
    #[must_use]
    pub fn check(self, name: &str) -> Vec<String> {
        match self {
            Self::Subdomain => names::dns1123_subdomain(name),
            Self::Label => names::dns1123_label(name),
            Self::PathSegment => names::path_segment_name(name),
            Self::Address => super::networking::address_name(name),
        }
    }

    /// As [`NameRule::check`] for a prefix that random letters follow.
    fn check_prefix(self, prefix: &str) -> Vec<String> {
        match prefix.strip_suffix('-').filter(|p| !p.is_empty()) {
            Some(rest) => self.check(&format!("{rest}a")),
            None => self.check(prefix),
        }
    }
}

/// True for kinds that live in no namespace.
fn cluster_scoped(gvk: &GroupVersionKind) -> bool {
    match gvk.group.as_str() {
        "" => matches!(gvk.kind.as_str(), "Namespace" | "Node" | "PersistentVolume"),
        "rbac.authorization.k8s.io" => gvk.kind.starts_with("Cluster"),
        "storage.k8s.io" => gvk.kind != "CSIStorageCapacity",
        "resource.k8s.io" => matches!(gvk.kind.as_str(), "DeviceClass" | "ResourceSlice"),
        "networking.k8s.io" => matches!(gvk.kind.as_str(), "IngressClass" | "IPAddress" | "ServiceCIDR"),
        "admissionregistration.k8s.io"
        | "apiextensions.k8s.io"
        | "apiregistration.k8s.io"
        | "certificates.k8s.io"
        | "flowcontrol.apiserver.k8s.io"
        | "node.k8s.io"
        | "scheduling.k8s.io" => true,
        _ => false,
    }
}

pub(super) fn create(gvk: &GroupVersionKind, object: &Value, errs: &mut Errors) {
    create_by(NameRule::of(gvk), !cluster_scoped(gvk), object, errs);
}

/// The metadata of a new object whose names follow a rule.
pub(super) fn create_by(rule: NameRule, namespaced: bool, object: &Value, errs: &mut Errors) {
    let meta = at(object, "metadata");
    let (name, prefix) = (text(meta, "name"), text(meta, "generateName"));
    // Services and namespaces check the name that was made of the prefix only.
    if !prefix.is_empty() && rule != NameRule::Label {
        invalid_each(errs, "metadata.generateName", prefix, rule.check_prefix(prefix));
    }
    if name.is_empty() {
        errs.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        invalid_each(errs, "metadata.name", name, rule.check(name));
    }
    let namespace = text(meta, "namespace");
    if !namespaced {
        if !namespace.is_empty() {
            errs.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
        }
    } else if namespace.is_empty() {
        errs.push(FieldError::required("metadata.namespace", ""));
    } else {
        invalid_each(errs, "metadata.namespace", namespace, names::dns1123_label(namespace));
    }
    nonnegative(errs, "metadata.generation", int(meta, "generation").unwrap_or_default());
    labels(meta, "labels", "metadata.labels", errs);
    annotations(meta, "metadata.annotations", errs);
    owners(meta, errs);
    finalizers(meta, errs);
    managed_fields(meta, errs);
}

pub(super) fn update(new: &Value, old: &Value, errs: &mut Errors) {
    let (new, old) = (at(new, "metadata"), at(old, "metadata"));
    if !at(old, "deletionTimestamp").is_null() {
        let known: Vec<&str> = texts(old, "finalizers").collect();
        let mut extra: Vec<&str> = texts(new, "finalizers").filter(|f| !known.contains(f)).collect();
        extra.sort_unstable();
        extra.dedup();
        if !extra.is_empty() {
            let quoted: Vec<String> = extra.iter().map(|f| crate::error::quote(f)).collect();
            errs.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    quoted.join(", ")
                ),
            ));
        }
    }
    if text(new, "resourceVersion").is_empty() {
        errs.push(FieldError::invalid("metadata.resourceVersion", "", "must be specified for an update"));
    }
    let generation = |m| int(m, "generation").unwrap_or_default();
    if generation(new) < generation(old) {
        errs.push(FieldError::invalid("metadata.generation", generation(new), "must not be decremented"));
    }
    for name in ["name", "namespace", "uid"] {
        let (n, o) = (text(new, name), text(old, name));
        if n != o {
            errs.push(FieldError::invalid(format!("metadata.{name}"), n, "field is immutable"));
        }
    }
    for name in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        immutable(errs, &format!("metadata.{name}"), at(new, name), at(old, name));
    }
    labels(new, "labels", "metadata.labels", errs);
    annotations(new, "metadata.annotations", errs);
    owners(new, errs);
    managed_fields(new, errs);
}

/// A map of labels.
pub(super) fn labels(holder: &Value, name: &str, path: &str, errs: &mut Errors) {
    for (key, value) in map(holder, name) {
        invalid_each(errs, path, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        invalid_each(errs, path, value, names::label_value(value));
    }
}

/// Conditions of the common type (`metav1.Condition`).
pub(super) fn conditions(status: &Value, path: &str, errs: &mut Errors) {
    const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
    const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";
    const FORMAT: &str = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?";
    let all = list(status, "conditions");
    for (i, condition) in all.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let kind = text(condition, "type");
        if all[..i].iter().any(|c| text(c, "type") == kind) {
            errs.push(FieldError::duplicate(path.as_str(), kind));
        }
        if kind.is_empty() {
            errs.push(FieldError::required(format!("{path}.type"), "is required"));
        } else {
            invalid_each(errs, &format!("{path}.type"), kind, names::qualified_name(kind));
        }
        super::one_of(errs, &format!("{path}.status"), text(condition, "status"), &STATUSES);
        if let Some(generation) = int(condition, "observedGeneration").filter(|g| *g < 0) {
            let detail = "must be greater than or equal to zero";
            errs.push(FieldError::invalid(format!("{path}.observedGeneration"), generation, detail));
        }
        if text(condition, "lastTransitionTime").is_empty() {
            errs.push(FieldError::required(format!("{path}.lastTransitionTime"), ""));
        }
        let reason = text(condition, "reason");
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = reason.as_bytes();
        if reason.is_empty() {
            errs.push(FieldError::required(format!("{path}.reason"), ""));
        } else if !(bytes.first().is_some_and(u8::is_ascii_alphabetic)
            && bytes.last().is_some_and(|b| word(*b))
            && bytes.iter().all(|b| word(*b) || matches!(b, b',' | b':')))
        {
            let examples = ["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"];
            let detail = names::regex_error(REASON, FORMAT, &examples);
            errs.push(FieldError::invalid(format!("{path}.reason"), reason, detail));
        }
        for (field, limit) in [("reason", 1 << 10), ("message", 32 << 10)] {
            if text(condition, field).len() > limit {
                errs.push(FieldError::too_long(format!("{path}.{field}"), limit));
            }
        }
    }
}

/// All annotations together may have this many bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

pub(super) fn annotations(meta: &Value, path: &str, errs: &mut Errors) {
    let mut size = 0;
    for (key, value) in map(meta, "annotations") {
        invalid_each(errs, path, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > MAX_ANNOTATIONS {
        errs.push(FieldError::too_long(path, MAX_ANNOTATIONS));
    }
}

fn owners(meta: &Value, errs: &mut Errors) {
    const PATH: &str = "metadata.ownerReferences";
    let mut controller = None;
    for owner in list(meta, "ownerReferences") {
        let (api_version, kind) = (text(owner, "apiVersion"), text(owner, "kind"));
        let version = api_version.rsplit('/').next().unwrap_or_default();
        if version.is_empty() {
            errs.push(FieldError::invalid(
                format!("{PATH}.apiVersion"),
                api_version,
                "version must not be empty",
            ));
        }
        for name in ["kind", "name", "uid"] {
            if text(owner, name).is_empty() {
                errs.push(FieldError::invalid(format!("{PATH}.{name}"), "", "must not be empty"));
            }
        }
        if api_version == "v1" && kind == "Event" {
            errs.push(FieldError::invalid(PATH, owner, "/v1, Kind=Event is disallowed from being an owner"));
        }
        if flag(owner, "controller") {
            let name = format!("{kind}/{}", text(owner, "name"));
            match &controller {
                None => controller = Some(name),
                Some(first) => errs.push(FieldError::invalid(
                    PATH,
                    at(meta, "ownerReferences"),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                    ),
                )),
            }
        }
    }
}

fn finalizers(meta: &Value, errs: &mut Errors) {
    const PATH: &str = "metadata.finalizers";
    for finalizer in texts(meta, "finalizers") {
        invalid_each(errs, PATH, finalizer, names::qualified_name(finalizer));
    }
    let has = |name: &str| texts(meta, "finalizers").any(|f| f == name);
    if has("orphan") && has("foregroundDeletion") {
        errs.push(FieldError::invalid(
            PATH,
            at(meta, "finalizers"),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
}

/// A field manager's name may have this many bytes.
const MAX_MANAGER: usize = 128;

fn managed_fields(meta: &Value, errs: &mut Errors) {
    for (i, entry) in list(meta, "managedFields").iter().enumerate() {
        let path = format!("metadata.managedFields[{i}]");
        let operation = text(entry, "operation");
        if operation != "Apply" && operation != "Update" {
            errs.push(FieldError::invalid(
                format!("{path}.operation"),
                operation,
                "must be `Apply` or `Update`",
            ));
        }
        let kind = text(entry, "fieldsType");
        if !kind.is_empty() && kind != "FieldsV1" {
            errs.push(FieldError::invalid(format!("{path}.fieldsType"), kind, "must be `FieldsV1`"));
        }
        if text(entry, "manager").len() > MAX_MANAGER {
            errs.push(FieldError::too_long(format!("{path}.manager"), MAX_MANAGER));
        }
        if text(entry, "subresource").len() > 256 {
            errs.push(FieldError::too_long(format!("{path}.subresource"), 256));
        }
    }
}
