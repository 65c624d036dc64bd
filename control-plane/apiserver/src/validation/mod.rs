//! Validation: upstream's rules, field paths and words, over objects in canonical form with defaults set.
//!
//! Kinds without rules of their own here get the rules for every object's metadata.

mod admission;
mod annotations;
mod apps;
mod autoscaling;
mod batch;
mod certificates;
mod claims;
mod conditions;
mod container;
mod definition;
mod device;
mod discovery;
mod events;
mod extensions;
mod flowcontrol;
mod groups;
mod inline;
mod internal;
mod meta;
mod net;
mod networking;
mod node;
mod pod;
mod podspec;
mod policy;
mod rbac;
mod resize;
mod resources;
mod restart;
mod scheduling;
mod selector;
mod service;
mod simple;
mod sources;
mod storage;
mod volume;
mod webhook;
mod windows;

use serde_json::{Map, Value};

use crate::error::FieldError;
use crate::gvk::GroupVersionKind;

pub(crate) use definition::{approval_state, warnings as definition_warnings};
pub use meta::NameRule;
pub(crate) use scheduling::SYSTEM_CLASSES;

pub(crate) use net::{cidr_warnings, ip_warnings};
pub use service::cluster_ips as service_cluster_ips;

/// Errors of one validation.
type Errors = Vec<FieldError>;

const NULL: &Value = &Value::Null;

/// Validates an object that is to be created. Its name has been generated, its namespace set.
#[must_use]
pub fn create(gvk: &GroupVersionKind, object: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    if groups::handles(gvk) {
        groups::create(gvk, object, &mut errs);
        return errs;
    }
    if !(gvk.kind == "Event" && gvk.group.is_empty()) {
        meta::create(gvk, object, &mut errs);
    }
    spec(gvk, object, &mut errs, None);
    errs
}

/// Validates an update of everything but the status.
#[must_use]
pub fn update(gvk: &GroupVersionKind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    if groups::handles(gvk) {
        groups::update(gvk, new, old, &mut errs);
        return errs;
    }
    // Upstream checks the metadata of every update once for all kinds.
    meta::update(new, old, &mut errs);
    for check in update_checks(gvk) {
        match check {
            Check::Meta => meta::update(new, old, &mut errs),
            Check::NewMeta => meta::create(gvk, new, &mut errs),
            Check::AsNew => {
                meta::create(gvk, new, &mut errs);
                spec(gvk, new, &mut errs, None);
            }
            Check::Rest => update_spec(gvk, new, old, &mut errs),
        }
    }
    errs
}

/// A part of a kind's own check of an update. Errors that several parts find are several causes.
#[derive(Debug, Clone, Copy)]
enum Check {
    /// The metadata as of an update.
    Meta,
    /// The metadata as of a new object.
    NewMeta,
    /// The whole object as a new one.
    AsNew,
    /// The rules of the kind for updates.
    Rest,
}

/// What upstream's strategies and their validation functions check at an update, in their order.
fn update_checks(gvk: &GroupVersionKind) -> &'static [Check] {
    use Check::{AsNew, Meta, NewMeta, Rest};
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Event") | ("policy", "PodDisruptionBudget") => &[Rest],
        ("", "Node" | "ReplicationController") | ("apps", "DaemonSet" | "ReplicaSet") | ("batch", "Job") => {
            &[AsNew, Meta, Rest]
        }
        ("", "Namespace") => &[AsNew, Meta],
        ("", "LimitRange") => &[AsNew],
        ("", "PersistentVolume") => &[AsNew, NewMeta, Rest],
        ("", "PersistentVolumeClaim") => &[AsNew, Meta, NewMeta, Rest],
        ("", "ServiceAccount") => &[Meta, NewMeta],
        _ => &[Meta, Rest],
    }
}

fn update_spec(gvk: &GroupVersionKind, new: &Value, old: &Value, errs: &mut Errors) {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => pod::update(gvk, new, old, errs),
        ("", "Service") => service::update(new, old, errs),
        ("", "Node") => node::update(new, old, errs),
        ("", "ConfigMap") => simple::config_map_update(gvk, new, old, errs),
        ("", "Secret") => simple::secret_update(gvk, new, old, errs),
        ("" | "events.k8s.io", "Event") => events::update(gvk, new, old, errs),
        ("discovery.k8s.io", "EndpointSlice") => discovery::slice_update(new, old, errs),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") => {
            spec(gvk, new, errs, Some(old));
            apps::update(&gvk.kind, new, old, errs);
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            certificates::update(new, old, certificates::Writer::Main, errs);
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            spec(gvk, new, errs, Some(old));
            rbac::binding_update(new, old, errs);
        }
        _ => spec(gvk, new, errs, Some(old)),
    }
}

/// Validates an update of the status subresource.
#[must_use]
pub fn update_status(gvk: &GroupVersionKind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    if groups::handles(gvk) {
        groups::status(gvk, new, old, &mut errs);
        return errs;
    }
    meta::update(new, old, &mut errs);
    meta::update(new, old, &mut errs);
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => pod::status(new, old, &mut errs),
        ("", "Service") => service::status(new, &mut errs),
        ("", "Node") => node::update(new, old, &mut errs),
        ("", "Namespace") => simple::namespace_status(new, &mut errs),
        ("apps", _) | ("", "ReplicationController") => apps::status(&gvk.kind, new, old, &mut errs),
        ("", "PersistentVolumeClaim") => claims::claim_status(new, &mut errs),
        ("", "ResourceQuota") => resources::quota_status(new, &mut errs),
        ("batch", "Job") => batch::status(new, old, &mut errs),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaling::status(new, &mut errs),
        ("policy", "PodDisruptionBudget") => policy::status(new, &mut errs),
        ("certificates.k8s.io", _) => certificates::update(new, old, certificates::Writer::Status, &mut errs),
        _ => {}
    }
    errs
}

/// Validates an update of another subresource that writes the object itself: `finalize` of a Namespace,
/// `ephemeralcontainers` and `resize` of a Pod.
#[must_use]
pub fn update_subresource(
    gvk: &GroupVersionKind,
    subresource: &str,
    new: &Value,
    old: &Value,
) -> Vec<FieldError> {
    let mut errs = Errors::new();
    match (gvk.kind.as_str(), subresource) {
        ("Namespace", "finalize") => {
            meta::update(new, old, &mut errs);
            meta::update(new, old, &mut errs);
            simple::namespace_finalizers(new, &mut errs);
        }
        ("Pod", "ephemeralcontainers") => {
            meta::update(new, old, &mut errs);
            meta::update(new, old, &mut errs);
            pod::ephemeral_containers(gvk, new, old, &mut errs);
        }
        ("Pod", "resize") => {
            meta::update(new, old, &mut errs);
            meta::update(new, old, &mut errs);
            resize::resize(gvk, new, old, &mut errs);
        }
        ("CertificateSigningRequest", "approval") => {
            meta::update(new, old, &mut errs);
            meta::update(new, old, &mut errs);
            certificates::update(new, old, certificates::Writer::Approval, &mut errs);
        }
        (_, "status") => return update_status(gvk, new, old),
        _ => return update(gvk, new, old),
    }
    errs
}

/// Validates the metadata of a new custom resource.
pub(crate) fn metadata_create(namespaced: bool, object: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    meta::create_by(NameRule::Subdomain, namespaced, object, &mut errs);
    errs
}

/// Validates the metadata of a changed custom resource.
pub(crate) fn metadata_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    meta::update(new, old, &mut errs);
    errs
}

/// Validates the metadata of a resource that is embedded in another, at `path`; it needs no name.
pub(crate) fn embedded_metadata(metadata: &Value, path: &str) -> Vec<FieldError> {
    let mut metadata = metadata.clone();
    let named = !text(&metadata, "name").is_empty();
    if !named && let Some(map) = metadata.as_object_mut() {
        map.insert("name".to_owned(), "fakename".into());
    }
    let namespaced = !text(&metadata, "namespace").is_empty();
    let mut errs = Errors::new();
    let object = serde_json::json!({"metadata": metadata});
    meta::create_by(NameRule::PathSegment, namespaced, &object, &mut errs);
    for error in &mut errs {
        if let Some(rest) = error.field.strip_prefix("metadata") {
            error.field = format!("{path}{rest}");
        }
    }
    errs
}

/// Validates the body of `pods/binding`.
#[must_use]
pub fn binding(object: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    pod::binding(object, &mut errs);
    errs
}

/// Validates the body of a scale subresource.
#[must_use]
pub fn scale(object: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    let replicas = int(at(object, "spec"), "replicas").unwrap_or_default();
    nonnegative(&mut errs, "spec.replicas", replicas);
    errs
}

/// The rules of single kinds that hold for creations and updates.
fn spec(gvk: &GroupVersionKind, object: &Value, errs: &mut Errors, old: Option<&Value>) {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => pod::create(object, errs),
        ("", "PodTemplate") => podspec::template(at(object, "template"), "template", errs),
        ("", "Service") => service::create(object, errs),
        ("", "Node") => node::create(object, errs),
        ("", "ConfigMap") => simple::config_map(object, errs),
        ("", "Secret") => simple::secret(object, errs),
        ("", "Namespace") => simple::namespace(object, errs),
        ("", "Endpoints") => discovery::endpoints(object, errs),
        ("", "LimitRange") => resources::limit_range(object, errs),
        ("", "ResourceQuota") => resources::quota(object, old, errs),
        ("discovery.k8s.io", "EndpointSlice") => discovery::slice(object, errs),
        ("" | "events.k8s.io", "Event") => events::create(gvk, object, errs),
        ("coordination.k8s.io", "Lease") => simple::lease(object, errs),
        ("apps", _) | ("", "ReplicationController") => apps::create(&gvk.kind, object, old, errs),
        ("", "PersistentVolume") => claims::volume(object, old, errs),
        ("", "PersistentVolumeClaim") => claims::claim(object, old, errs),
        ("batch", "Job") => batch::job(object, old, errs),
        ("batch", "CronJob") => batch::cron_job(object, old, errs),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaling::autoscaler(object, old, errs),
        ("policy", "PodDisruptionBudget") => policy::budget(object, errs),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => rbac::role(&gvk.kind, object, errs),
        ("certificates.k8s.io", "CertificateSigningRequest") => certificates::request(object, old, errs),
        ("rbac.authorization.k8s.io", _) => rbac::binding(&gvk.kind, object, errs),
        _ => {}
    }
}

// Readers: what is missing or of another type is null, empty or none.

fn at<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(NULL)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    at(value, name).as_str().unwrap_or_default()
}

fn int(value: &Value, name: &str) -> Option<i64> {
    at(value, name).as_i64()
}

fn flag(value: &Value, name: &str) -> bool {
    at(value, name).as_bool() == Some(true)
}

fn set(value: &Value, name: &str) -> bool {
    !at(value, name).is_null()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    at(value, name).as_array().map(Vec::as_slice).unwrap_or_default()
}

fn map<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(value, name).as_object().into_iter().flat_map(Map::iter)
}

/// The texts of a list of strings.
fn texts<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a str> {
    list(value, name).iter().map(|v| v.as_str().unwrap_or_default())
}

// Rules used in many places.

/// Adds an `Invalid value` error for each message.
fn invalid_each(errs: &mut Errors, path: &str, value: &str, messages: Vec<String>) {
    errs.extend(messages.into_iter().map(|m| FieldError::invalid(path, value, m)));
}

fn nonnegative(errs: &mut Errors, path: &str, value: i64) {
    if value < 0 {
        errs.push(FieldError::invalid(path, value, "must be greater than or equal to 0"));
    }
}

/// A field that must not change.
fn immutable(errs: &mut Errors, path: &str, new: &Value, old: &Value) {
    if !same(new, old) {
        errs.push(FieldError::invalid(path, new, "field is immutable"));
    }
}

/// Equality in upstream's sense: nothing, null and empty lists and maps are the same.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(NULL)))
                && y.iter().all(|(k, v)| x.contains_key(k) || same(NULL, v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        (Value::Null, Value::Object(m)) | (Value::Object(m), Value::Null) => m.is_empty(),
        (Value::Null, Value::Array(l)) | (Value::Array(l), Value::Null) => l.is_empty(),
        (Value::String(x), Value::String(y)) => x == y,
        _ => a == b,
    }
}

/// A value out of a fixed set; the empty text is `Required`.
fn one_of(errs: &mut Errors, path: &str, value: &str, supported: &[&str]) {
    if value.is_empty() {
        errs.push(FieldError::required(path, ""));
    } else if !supported.contains(&value) {
        errs.push(FieldError::not_supported(path, value, supported));
    }
}

#[cfg(test)]
mod tests;
