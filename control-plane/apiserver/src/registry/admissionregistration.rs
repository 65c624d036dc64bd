//! Rows of the group `admissionregistration.k8s.io`.

use super::core::{BASE, carry};
use super::*;
use crate::table;
use serde_json::json;

static CONFIGURATION: Strategy =
    Strategy { generation: Generation::Spec, unconditional_update: false, ..Strategy::PLAIN };

static VALIDATING_POLICY: Strategy = Strategy {
    prepare_create: |object| object["status"] = json!({}),
    prepare_update: |new, old| carry(new, old, &["status"]),
    ..CONFIGURATION
};

static VALIDATING_POLICY_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy")),
    verbs: &["get", "patch", "update"],
}];

pub(super) fn rows() -> Vec<Row> {
    const GROUP: Row = Row {
        group: "admissionregistration.k8s.io",
        namespaced: false,
        categories: &["api-extensions"],
        strategy: &CONFIGURATION,
        ..BASE
    };
    vec![
        Row {
            plural: "mutatingadmissionpolicies",
            singular: "mutatingadmissionpolicy",
            kind: "MutatingAdmissionPolicy",
            storage_prefix: "/registry/admissionregistration.k8s.io/mutatingadmissionpolicies/",
            table: &table::MUTATING_POLICY_TABLE,
            ..GROUP
        },
        Row {
            plural: "mutatingadmissionpolicybindings",
            singular: "mutatingadmissionpolicybinding",
            kind: "MutatingAdmissionPolicyBinding",
            storage_prefix: "/registry/admissionregistration.k8s.io/mutatingadmissionpolicybindings/",
            table: &table::POLICY_BINDING_TABLE,
            ..GROUP
        },
        Row {
            plural: "mutatingwebhookconfigurations",
            singular: "mutatingwebhookconfiguration",
            kind: "MutatingWebhookConfiguration",
            storage_prefix: "/registry/admissionregistration.k8s.io/mutatingwebhookconfigurations/",
            table: &table::WEBHOOK_CONFIGURATION_TABLE,
            ..GROUP
        },
        Row {
            plural: "validatingadmissionpolicies",
            singular: "validatingadmissionpolicy",
            kind: "ValidatingAdmissionPolicy",
            subresources: VALIDATING_POLICY_SUB,
            storage_prefix: "/registry/admissionregistration.k8s.io/validatingadmissionpolicies/",
            table: &table::VALIDATING_POLICY_TABLE,
            strategy: &VALIDATING_POLICY,
            ..GROUP
        },
        Row {
            plural: "validatingadmissionpolicybindings",
            singular: "validatingadmissionpolicybinding",
            kind: "ValidatingAdmissionPolicyBinding",
            storage_prefix: "/registry/admissionregistration.k8s.io/validatingadmissionpolicybindings/",
            table: &table::POLICY_BINDING_TABLE,
            ..GROUP
        },
        Row {
            plural: "validatingwebhookconfigurations",
            singular: "validatingwebhookconfiguration",
            kind: "ValidatingWebhookConfiguration",
            storage_prefix: "/registry/admissionregistration.k8s.io/validatingwebhookconfigurations/",
            table: &table::WEBHOOK_CONFIGURATION_TABLE,
            ..GROUP
        },
    ]
}
