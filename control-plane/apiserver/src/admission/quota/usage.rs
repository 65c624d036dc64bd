//! What an object uses of a quota, which quotas are about it, and what it must say to be counted.

use super::super::podresources::{Amounts, amounts, pod_amounts, set_at_pod_level, with_overhead};
use crate::object::{get, int_at, list_at, str_at};
use crate::registry::{Resource, pod};
use kelp_model::quantity::{Format, Quantity};
use serde_json::Value;
use std::collections::BTreeMap;

const ONE: Quantity = Quantity::new(1, Format::DecimalSi);
const CLASS: &str = ".storageclass.storage.k8s.io/";

/// How a kind is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evaluator {
    /// What pods ask for.
    Pod,
    /// Services with their node ports and load balancers.
    Service,
    /// Claims with their storage, also by storage class.
    Claim,
    /// Objects alone; some kinds have a short name, too.
    Count(Option<&'static str>),
}

/// The name under which objects of a kind are counted.
fn count_name(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("count/{}", resource.plural)
    } else {
        format!("count/{}.{}", resource.plural, resource.group)
    }
}

impl Evaluator {
    /// None for kinds that are never counted.
    pub(super) fn of(resource: &Resource) -> Option<Self> {
        match (resource.group, resource.plural) {
            (_, "events") | ("", "bindings") => None,
            ("", "pods") => Some(Self::Pod),
            ("", "services") => Some(Self::Service),
            ("", "persistentvolumeclaims") => Some(Self::Claim),
            ("", "configmaps") => Some(Self::Count(Some("configmaps"))),
            ("", "resourcequotas") => Some(Self::Count(Some("resourcequotas"))),
            ("", "replicationcontrollers") => Some(Self::Count(Some("replicationcontrollers"))),
            ("", "secrets") => Some(Self::Count(Some("secrets"))),
            _ => Some(Self::Count(None)),
        }
    }

    /// Whether a write can change what is used.
    pub(super) fn handles(self, create: bool, subresource: &str) -> bool {
        match (self, subresource) {
            (Self::Pod, "resize") => !create,
            (Self::Service, "") => true,
            (Self::Claim, "" | "status") => true,
            (Self::Pod | Self::Count(_), "") => create,
            _ => false,
        }
    }

    /// Whether the object counts for a resource of a quota.
    pub(super) fn counts(self, resource: &Resource, name: &str) -> bool {
        if name == count_name(resource) {
            return true;
        }
        match self {
            Self::Count(alias) => alias == Some(name),
            Self::Service => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
            Self::Claim => {
                let base = name.split_once(CLASS).map_or(name, |(_, base)| base);
                matches!(base, "persistentvolumeclaims" | "requests.storage")
            }
            Self::Pod => {
                matches!(
                    name,
                    "pods"
                        | "cpu"
                        | "memory"
                        | "ephemeral-storage"
                        | "requests.cpu"
                        | "requests.memory"
                        | "requests.ephemeral-storage"
                        | "limits.cpu"
                        | "limits.memory"
                        | "limits.ephemeral-storage"
                ) || name.starts_with("hugepages-")
                    || name.starts_with("requests.hugepages-")
                    || (name.starts_with("requests.") && !native(name))
            }
        }
    }

    /// What the object uses.
    pub(super) fn usage(self, resource: &Resource, object: &Value) -> Amounts {
        let mut used = Amounts::from([(count_name(resource), ONE)]);
        match self {
            Self::Count(alias) => used.extend(alias.map(|name| (name.to_owned(), ONE))),
            Self::Service => service(object, &mut used),
            Self::Claim => claim(object, &mut used),
            Self::Pod if !ended(object) => {
                let of = |field: &str| with_overhead(object, field, pod_amounts(object, field));
                compute(&of("requests"), &of("limits"), &mut used);
            }
            Self::Pod => {}
        }
        used
    }

    /// What the object has to say so that it can be counted; the text of upstream's error if it does not.
    pub(super) fn missing(self, names: &[&str], object: &Value) -> Option<String> {
        if self != Self::Pod || set_at_pod_level(object) {
            return None;
        }
        const EXPLICIT: [&str; 6] =
            ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
        let mut missing: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for list in ["containers", "initContainers"] {
            for container in list_at(object, &["spec", list]) {
                let of = |field| amounts(get(container, &["resources", field]));
                let mut own = Amounts::new();
                compute(&of("requests"), &of("limits"), &mut own);
                for name in names.iter().filter(|n| EXPLICIT.contains(n) && !own.contains_key(**n)) {
                    missing.entry(name).or_default().push(str_at(container, &["name"]).to_owned());
                }
            }
        }
        if missing.is_empty() {
            return None;
        }
        let parts: Vec<String> = missing
            .into_iter()
            .map(|(name, mut containers)| {
                containers.sort();
                containers.dedup();
                format!("{name} for: {}", containers.join(","))
            })
            .collect();
        Some(format!("must specify {}", parts.join("; ")))
    }

    /// Whether the object is in a scope of a quota.
    pub(super) fn in_scope(self, scope: &Scope<'_>, object: &Value) -> bool {
        match (self, scope.name) {
            (Self::Pod, "Terminating") => {
                int_at(object, &["spec", "activeDeadlineSeconds"]).is_some_and(|s| s >= 0)
            }
            (Self::Pod, "NotTerminating") => {
                int_at(object, &["spec", "activeDeadlineSeconds"]).is_none_or(|s| s < 0)
            }
            (Self::Pod, "BestEffort") => pod::qos_class(object) == "BestEffort",
            (Self::Pod, "NotBestEffort") => pod::qos_class(object) != "BestEffort",
            (Self::Pod, "PriorityClass") => {
                let class = str_at(object, &["spec", "priorityClassName"]);
                scope.matches((!class.is_empty()).then_some(class))
            }
            (Self::Pod, "CrossNamespacePodAffinity") => crosses_namespaces(object),
            (Self::Claim, "VolumeAttributesClass") => {
                let names = [
                    str_at(object, &["spec", "volumeAttributesClassName"]),
                    str_at(object, &["status", "currentVolumeAttributesClassName"]),
                    str_at(object, &["status", "modifyVolumeStatus", "targetVolumeAttributesClassName"]),
                ];
                let mut present = names.into_iter().filter(|n| !n.is_empty()).peekable();
                match present.peek() {
                    None => scope.matches(None),
                    Some(_) => present.any(|name| scope.matches(Some(name))),
                }
            }
            _ => false,
        }
    }
}

/// A scope of a quota with what it wants of the scope's value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    name: &'a str,
    operator: &'a str,
    values: &'a [Value],
}

impl<'a> Scope<'a> {
    /// The scopes of a quota, of both fields.
    pub(super) fn of(quota: &'a Value) -> Vec<Self> {
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

fn native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// A pod that has ended, or outlived its grace period, uses no computing any more.
fn ended(object: &Value) -> bool {
    if matches!(str_at(object, &["status", "phase"]), "Succeeded" | "Failed") {
        return true;
    }
    let time = str_at(object, &["metadata", "deletionTimestamp"]).parse::<jiff::Timestamp>();
    let grace = int_at(object, &["metadata", "deletionGracePeriodSeconds"]);
    match (time, grace) {
        (Ok(time), Some(grace)) => {
            jiff::Timestamp::now().as_second() > time.as_second().saturating_add(grace)
        }
        _ => false,
    }
}

fn compute(requests: &Amounts, limits: &Amounts, used: &mut Amounts) {
    used.insert("pods".to_owned(), ONE);
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(request) = requests.get(name) {
            used.insert(name.to_owned(), *request);
            used.insert(format!("requests.{name}"), *request);
        }
        if let Some(limit) = limits.get(name) {
            used.insert(format!("limits.{name}"), *limit);
        }
    }
    for (name, request) in requests {
        if name.starts_with("hugepages-") {
            used.insert(name.clone(), *request);
            used.insert(format!("requests.{name}"), *request);
        } else if !native(name) && !name.starts_with("requests.") {
            used.insert(format!("requests.{name}"), *request);
        }
    }
}

fn service(object: &Value, used: &mut Amounts) {
    let ports = list_at(object, &["spec", "ports"]);
    let with_number = || ports.iter().filter(|p| int_at(p, &["nodePort"]).is_some_and(|n| n != 0)).count();
    let (node_ports, balancers) = match str_at(object, &["spec", "type"]) {
        "NodePort" => (ports.len(), 0),
        "LoadBalancer" => {
            let allocate = get(object, &["spec", "allocateLoadBalancerNodePorts"]).and_then(Value::as_bool);
            (if allocate == Some(false) { with_number() } else { ports.len() }, 1)
        }
        _ => (0, 0),
    };
    let count = |n: usize| Quantity::new(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSi);
    used.insert("services".to_owned(), ONE);
    used.insert("services.nodeports".to_owned(), count(node_ports));
    used.insert("services.loadbalancers".to_owned(), count(balancers));
}

fn claim(object: &Value, used: &mut Amounts) {
    let old = ["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"];
    let class = match get(object, &old).and_then(Value::as_str) {
        Some(class) => class,
        None => str_at(object, &["spec", "storageClassName"]),
    };
    let storage =
        |path: &[&str]| get(object, path).and_then(Value::as_str).and_then(|q| Quantity::parse(q).ok());
    let asked = storage(&["spec", "resources", "requests", "storage"]);
    let allocated = storage(&["status", "allocatedResources", "storage"]);
    let mut put = |name: &str, amount: Quantity| {
        used.insert(name.to_owned(), amount);
        if !class.is_empty() {
            used.insert(format!("{class}{CLASS}{name}"), amount);
        }
    };
    put("persistentvolumeclaims", ONE);
    if let Some(asked) = asked {
        put("requests.storage", allocated.map_or(asked, |a| a.max(asked)));
    }
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
