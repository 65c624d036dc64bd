//! Autoscaling, networking, storage classes, RBAC, admission and other configuration kinds.

use serde_json::{Value, json};

use super::{default, default_pointer, items, member, text};

pub(super) fn autoscaler(object: &mut Value, version: &str) {
    let Some(spec) = member(object, "spec") else { return };
    default_pointer(spec, "minReplicas", 1);
    if version == "v1" {
        return;
    }
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec["metrics"] = json!([{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 80}}}]);
    }
    let Some(behavior) = spec.get_mut("behavior").filter(|b| b.is_object()) else { return };
    if let Some(up) = member(behavior, "scaleUp") {
        default_pointer(up, "stabilizationWindowSeconds", 0);
        default_pointer(up, "selectPolicy", "Max");
        default_pointer(
            up,
            "policies",
            json!([{"type": "Pods", "value": 4, "periodSeconds": 15},
                   {"type": "Percent", "value": 100, "periodSeconds": 15}]),
        );
    }
    if let Some(down) = member(behavior, "scaleDown") {
        default_pointer(down, "selectPolicy", "Max");
        default_pointer(down, "policies", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
    }
}

pub(super) fn network_policy(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    for direction in ["ingress", "egress"] {
        for port in items(spec, direction).flat_map(|r| items(r, "ports")) {
            default_pointer(port, "protocol", "TCP");
        }
    }
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let mut types = vec!["Ingress"];
        if spec.get("egress").and_then(Value::as_array).is_some_and(|e| !e.is_empty()) {
            types.push("Egress");
        }
        spec["policyTypes"] = json!(types);
    }
}

pub(super) fn ingress_class(object: &mut Value) {
    if let Some(parameters) = object.pointer_mut("/spec/parameters") {
        default_pointer(parameters, "scope", "Cluster");
    }
}

pub(super) fn storage_class(object: &mut Value) {
    default_pointer(object, "reclaimPolicy", "Delete");
    default_pointer(object, "volumeBindingMode", "Immediate");
}

pub(super) fn csi_driver(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    default_pointer(spec, "attachRequired", true);
    default_pointer(spec, "podInfoOnMount", false);
    default_pointer(spec, "storageCapacity", false);
    default_pointer(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    default_pointer(spec, "volumeLifecycleModes", json!(["Persistent"]));
    default_pointer(spec, "requiresRepublish", false);
    default_pointer(spec, "seLinuxMount", false);
}

pub(super) fn priority_class(object: &mut Value) {
    default_pointer(object, "preemptionPolicy", "PreemptLowerPriority");
}

pub(super) fn role_binding(object: &mut Value) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if let Some(role) = object.get_mut("roleRef") {
        default(role, "apiGroup", GROUP);
    }
    for subject in items(object, "subjects").filter(|s| matches!(text(s, "kind"), "User" | "Group")) {
        default(subject, "apiGroup", GROUP);
    }
}

pub(super) fn admission(object: &mut Value, kind: &str) {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            for webhook in items(object, "webhooks") {
                default_pointer(webhook, "failurePolicy", "Fail");
                default_pointer(webhook, "matchPolicy", "Equivalent");
                default_pointer(webhook, "namespaceSelector", json!({}));
                default_pointer(webhook, "objectSelector", json!({}));
                default_pointer(webhook, "timeoutSeconds", 10);
                if kind.starts_with("Mutating") {
                    default_pointer(webhook, "reinvocationPolicy", "Never");
                }
                if let Some(service) = webhook.pointer_mut("/clientConfig/service") {
                    default_pointer(service, "port", 443);
                }
                for rule in items(webhook, "rules") {
                    default_pointer(rule, "scope", "*");
                }
            }
        }
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
            let Some(spec) = member(object, "spec") else { return };
            default_pointer(spec, "failurePolicy", "Fail");
            if let Some(constraints) = spec.get_mut("matchConstraints").filter(|c| c.is_object()) {
                match_resources(constraints);
            }
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            if let Some(m) = object.pointer_mut("/spec/matchResources").filter(|m| m.is_object()) {
                match_resources(m);
            }
        }
        _ => {}
    }
}

fn match_resources(value: &mut Value) {
    default_pointer(value, "matchPolicy", "Equivalent");
    default_pointer(value, "namespaceSelector", json!({}));
    default_pointer(value, "objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in items(value, list) {
            default_pointer(rule, "scope", "*");
        }
    }
}

pub(super) fn flow_control(object: &mut Value, kind: &str) {
    let Some(spec) = member(object, "spec") else { return };
    if kind == "FlowSchema" {
        if spec.get("matchingPrecedence").is_none_or(|p| p == 0) {
            spec["matchingPrecedence"] = 1000.into();
        }
        return;
    }
    if let Some(exempt) = spec.get_mut("exempt").filter(|e| e.is_object()) {
        default_pointer(exempt, "nominalConcurrencyShares", 0);
        default_pointer(exempt, "lendablePercent", 0);
    }
    if let Some(limited) = spec.get_mut("limited").filter(|l| l.is_object()) {
        default_pointer(limited, "nominalConcurrencyShares", 30);
        default_pointer(limited, "lendablePercent", 0);
        if let Some(queuing) = limited.pointer_mut("/limitResponse/queuing") {
            for (name, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                if queuing.get(name).is_none_or(|v| v == 0) {
                    queuing[name] = value.into();
                }
            }
        }
    }
}

pub(super) fn api_service(object: &mut Value) {
    if let Some(service) = object.pointer_mut("/spec/service").filter(|s| s.is_object()) {
        default_pointer(service, "port", 443);
    }
}

pub(super) fn custom_resource_definition(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    if let Some(names) = spec.get_mut("names") {
        let kind = text(names, "kind").to_owned();
        default(names, "singular", kind.to_lowercase());
        if !kind.is_empty() {
            default(names, "listKind", format!("{kind}List"));
        }
    }
    if let Some(conversion) = member(spec, "conversion") {
        if conversion.as_object().is_some_and(serde_json::Map::is_empty) {
            default(conversion, "strategy", "None");
        }
        if let Some(service) = conversion.pointer_mut("/webhook/clientConfig/service") {
            default_pointer(service, "port", 443);
        }
    }
}
