//! Scopes: which objects a quota is about.

use crate::json::{get, int_at, list_at, str_at};
use crate::pod::qos;
use serde_json::Value;

/// A scope of a quota with what it wants of the scope's value.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    name: &'a str,
    operator: &'a str,
    values: &'a [Value],
}

impl<'a> Scope<'a> {
    /// The scopes of a quota, of both fields.
    #[must_use]
    pub fn of(quota: &'a Value) -> Vec<Self> {
        let plain = list_at(quota, &["spec", "scopes"]).iter().filter_map(Value::as_str).map(|name| Scope {
            name,
            operator: "Exists",
            values: &[],
        });
        let selected = list_at(quota, &["spec", "scopeSelector", "matchExpressions"]).iter().map(|e| Scope {
            name: str_at(e, &["scopeName"]),
            operator: str_at(e, &["operator"]),
            values: list_at(e, &["values"]),
        });
        plain.chain(selected).collect()
    }

    /// Whether a pod is in the scope.
    #[must_use]
    pub fn has_pod(&self, pod: &Value) -> bool {
        match self.name {
            "Terminating" => is_terminating(pod),
            "NotTerminating" => !is_terminating(pod),
            "BestEffort" => qos::class_of_json(pod) == "BestEffort",
            "NotBestEffort" => qos::class_of_json(pod) != "BestEffort",
            "PriorityClass" => {
                let class = str_at(pod, &["spec", "priorityClassName"]);
                self.matches((!class.is_empty()).then_some(class))
            }
            "CrossNamespacePodAffinity" => crosses_namespaces(pod),
            _ => false,
        }
    }

    /// Whether a claim is in the scope.
    #[must_use]
    pub fn has_claim(&self, claim: &Value) -> bool {
        if self.name != "VolumeAttributesClass" {
            return false;
        }
        let names = [
            str_at(claim, &["spec", "volumeAttributesClassName"]),
            str_at(claim, &["status", "currentVolumeAttributesClassName"]),
            str_at(claim, &["status", "modifyVolumeStatus", "targetVolumeAttributesClassName"]),
        ];
        let mut present = names.into_iter().filter(|n| !n.is_empty()).peekable();
        match present.peek() {
            None => self.matches(None),
            Some(_) => present.any(|name| self.matches(Some(name))),
        }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        match self.operator {
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "In" => value.is_some_and(listed),
            "NotIn" => !value.is_some_and(listed),
            _ => false,
        }
    }
}

/// Whether the pod ends by itself some time.
#[must_use]
pub fn is_terminating(pod: &Value) -> bool {
    int_at(pod, &["spec", "activeDeadlineSeconds"]).is_some_and(|s| s >= 0)
}

/// Pod (anti)affinity that looks into other namespaces.
fn crosses_namespaces(object: &Value) -> bool {
    let far = |term: &Value| {
        !list_at(term, &["namespaces"]).is_empty()
            || get(term, &["namespaceSelector"]).is_some_and(|s| !s.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = |list: &'static str| list_at(object, &["spec", "affinity", kind, list]);
        terms("requiredDuringSchedulingIgnoredDuringExecution").iter().any(far)
            || terms("preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|t| get(t, &["podAffinityTerm"]).is_some_and(far))
    })
}
