//! Rows of the group `networking.k8s.io`.

use super::core::{BASE, carry};
use super::*;
use crate::table;
use serde_json::json;

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

static INGRESS: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: |object| object["status"] = json!({"loadBalancer": {}}),
    prepare_update: |new, old| carry(new, old, &["status"]),
    warnings: ingress_warnings,
    warn_at_creation_only: true,
    ..Strategy::PLAIN
};

static WITH_GENERATION: Strategy = Strategy { generation: Generation::Spec, ..Strategy::PLAIN };

static NETWORK_POLICY: Strategy =
    Strategy { generation: Generation::Spec, warnings: policy_warnings, ..Strategy::PLAIN };

static IP_ADDRESS: Strategy = Strategy { allocation: Allocation::Address, ..Strategy::PLAIN };

static SERVICE_CIDR: Strategy = Strategy {
    prepare_create: |object| object["status"] = json!({}),
    prepare_update: |new, old| carry(new, old, &["status"]),
    ..Strategy::PLAIN
};

/// The annotation that named an Ingress's class before the field did.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

fn ingress_warnings(object: &Value) -> Vec<String> {
    let annotated = object.pointer("/metadata/annotations").and_then(|a| a.get(CLASS_ANNOTATION)).is_some();
    if annotated && crate::object::get(object, &["spec", "ingressClassName"]).is_none() {
        let quoted = crate::error::quote(CLASS_ANNOTATION);
        return vec![format!(
            "annotation {quoted} is deprecated, please use 'spec.ingressClassName' instead"
        )];
    }
    Vec::new()
}

fn policy_warnings(object: &Value) -> Vec<String> {
    use crate::object::{list_at, str_at};
    let mut out = Vec::new();
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list_at(object, &["spec", rules]).iter().enumerate() {
            for (j, peer) in list_at(rule, &[peers]).iter().enumerate() {
                let path = format!("spec.{rules}[{i}].{peers}[{j}].ipBlock");
                let Some(block) = peer.get("ipBlock").filter(|b| b.is_object()) else { continue };
                out.extend(crate::validation::cidr_warnings(
                    &format!("{path}.cidr"),
                    str_at(block, &["cidr"]),
                ));
                for (k, except) in list_at(block, &["except"]).iter().enumerate() {
                    let path = format!("{path}.except[{k}]");
                    out.extend(crate::validation::cidr_warnings(&path, except.as_str().unwrap_or_default()));
                }
            }
        }
    }
    out
}

static INGRESS_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("networking.k8s.io", "v1", "Ingress")),
    verbs: STATUS_VERBS,
}];
static SERVICE_CIDR_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("networking.k8s.io", "v1", "ServiceCIDR")),
    verbs: STATUS_VERBS,
}];

pub(super) fn rows() -> Vec<Row> {
    const GROUP: Row = Row { group: "networking.k8s.io", ..BASE };
    vec![
        Row {
            plural: "ingressclasses",
            singular: "ingressclass",
            kind: "IngressClass",
            namespaced: false,
            storage_prefix: "/registry/networking.k8s.io/ingressclasses/",
            table: &table::INGRESS_CLASS_TABLE,
            strategy: &WITH_GENERATION,
            ..GROUP
        },
        Row {
            plural: "ingresses",
            singular: "ingress",
            kind: "Ingress",
            short_names: &["ing"],
            subresources: INGRESS_SUB,
            storage_prefix: "/registry/networking.k8s.io/ingresses/",
            table: &table::INGRESS_TABLE,
            strategy: &INGRESS,
            ..GROUP
        },
        Row {
            plural: "ipaddresses",
            singular: "ipaddress",
            kind: "IPAddress",
            namespaced: false,
            short_names: &["ip"],
            storage_prefix: "/registry/networking.k8s.io/ipaddresses/",
            table: &table::IP_ADDRESS_TABLE,
            strategy: &IP_ADDRESS,
            ..GROUP
        },
        Row {
            plural: "networkpolicies",
            singular: "networkpolicy",
            kind: "NetworkPolicy",
            short_names: &["netpol"],
            storage_prefix: "/registry/networking.k8s.io/networkpolicies/",
            table: &table::NETWORK_POLICY_TABLE,
            strategy: &NETWORK_POLICY,
            ..GROUP
        },
        Row {
            plural: "servicecidrs",
            singular: "servicecidr",
            kind: "ServiceCIDR",
            namespaced: false,
            subresources: SERVICE_CIDR_SUB,
            storage_prefix: "/registry/networking.k8s.io/servicecidrs/",
            table: &table::SERVICE_CIDR_TABLE,
            strategy: &SERVICE_CIDR,
            ..GROUP
        },
    ]
}
