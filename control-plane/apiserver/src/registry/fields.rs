//! Fields that selectors may name, by kind.

use super::{FieldValue, SelectableField};
use crate::object::str_at;
use std::borrow::Cow;

macro_rules! hook {
    ($label:literal, $hook:expr) => {
        SelectableField { label: Cow::Borrowed($label), value: FieldValue::Hook($hook) }
    };
}

macro_rules! field {
    ($label:literal, $($key:literal).+) => {
        hook!($label, |object| str_at(object, &[$($key),+]).to_owned())
    };
}

pub(super) static POD_FIELDS: &[SelectableField] = &[
    field!("spec.nodeName", "spec"."nodeName"),
    field!("spec.restartPolicy", "spec"."restartPolicy"),
    field!("spec.schedulerName", "spec"."schedulerName"),
    field!("spec.serviceAccountName", "spec"."serviceAccountName"),
    hook!("spec.hostNetwork", |object| crate::object::bool_at(object, &["spec", "hostNetwork"]).to_string()),
    field!("status.phase", "status"."phase"),
    hook!("status.podIP", |object| match crate::object::list_at(object, &["status", "podIPs"]).first() {
        Some(first) => str_at(first, &["ip"]).to_owned(),
        None => str_at(object, &["status", "podIP"]).to_owned(),
    }),
    field!("status.nominatedNodeName", "status"."nominatedNodeName"),
];
pub(super) static CSR_FIELDS: &[SelectableField] = &[field!("spec.signerName", "spec"."signerName")];
pub(super) static NODE_FIELDS: &[SelectableField] =
    &[hook!("spec.unschedulable", |object| crate::object::bool_at(object, &["spec", "unschedulable"])
        .to_string())];
pub(super) static NAMESPACE_FIELDS: &[SelectableField] = &[
    field!("status.phase", "status"."phase"),
    // Upstream also knows the name without its prefix.
    field!("name", "metadata"."name"),
];
pub(super) static CONTROLLER_FIELDS: &[SelectableField] =
    &[hook!("status.replicas", |object| crate::object::int_at(object, &["status", "replicas"])
        .unwrap_or_default()
        .to_string())];
/// Upstream takes this label, for which no object has a value.
pub(super) static STATEFUL_SET_FIELDS: &[SelectableField] = &[hook!("status.successful", |_| String::new())];
pub(super) static JOB_FIELDS: &[SelectableField] =
    &[hook!("status.successful", |object| crate::object::int_at(object, &["status", "succeeded"])
        .unwrap_or_default()
        .to_string())];
pub(super) static SECRET_FIELDS: &[SelectableField] = &[field!("type", "type")];
pub(super) static SERVICE_FIELDS: &[SelectableField] =
    &[field!("spec.clusterIP", "spec"."clusterIP"), field!("spec.type", "spec"."type")];
pub(super) static EVENT_FIELDS: &[SelectableField] = &[
    field!("involvedObject.kind", "involvedObject"."kind"),
    field!("involvedObject.namespace", "involvedObject"."namespace"),
    field!("involvedObject.name", "involvedObject"."name"),
    field!("involvedObject.uid", "involvedObject"."uid"),
    field!("involvedObject.apiVersion", "involvedObject"."apiVersion"),
    field!("involvedObject.resourceVersion", "involvedObject"."resourceVersion"),
    field!("involvedObject.fieldPath", "involvedObject"."fieldPath"),
    field!("reason", "reason"),
    field!("reportingComponent", "reportingComponent"),
    hook!("source", |object| match str_at(object, &["source", "component"]) {
        "" => str_at(object, &["reportingComponent"]).to_owned(),
        component => component.to_owned(),
    }),
    field!("type", "type"),
];
pub(super) static NEW_EVENT_FIELDS: &[SelectableField] = &[
    field!("regarding.kind", "regarding"."kind"),
    field!("regarding.namespace", "regarding"."namespace"),
    field!("regarding.name", "regarding"."name"),
    field!("regarding.uid", "regarding"."uid"),
    field!("regarding.apiVersion", "regarding"."apiVersion"),
    field!("regarding.resourceVersion", "regarding"."resourceVersion"),
    field!("regarding.fieldPath", "regarding"."fieldPath"),
    field!("reason", "reason"),
    field!("reportingController", "reportingController"),
    field!("type", "type"),
];
pub(super) static RESOURCE_SLICE_FIELDS: &[SelectableField] =
    &[field!("spec.nodeName", "spec"."nodeName"), field!("spec.driver", "spec"."driver")];
