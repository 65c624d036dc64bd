//! What an object uses of a quota, which quotas are about it, and what it must say to be counted.

use super::amounts::{Amounts, Source, add, amounts, pod_amounts, set_at_pod_level, with_overhead};
use super::scope::{Scope, is_terminating};
use crate::json::{get, int_at, list_at, str_at};
use crate::quantity::{Format, Quantity};
use serde_json::Value;
use std::collections::BTreeMap;

const ONE: Quantity = Quantity::new(1, Format::DecimalSi);
const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// Devices that a request for all of them may get at most.
const ALL_DEVICES: i64 = 32;

/// How a kind is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// What pods ask for.
    Pod,
    /// Services with their node ports and load balancers.
    Service,
    /// Claims of storage, also by storage class.
    Claim,
    /// Claims of devices, by device class.
    DeviceClaim,
    /// Objects alone.
    Number,
}

/// Counts the objects of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluator {
    how: How,
    /// `count/PLURAL.GROUP`, the number of objects.
    count: String,
    /// Older name of that number, which some kinds have.
    alias: Option<&'static str>,
}

fn count(n: i64) -> Quantity {
    Quantity::new(n, Format::DecimalSi)
}

impl Evaluator {
    /// The evaluator of a namespaced kind; none for kinds that are never counted.
    #[must_use]
    pub fn of(group: &str, plural: &str) -> Option<Self> {
        let (how, alias) = match (group, plural) {
            (_, "events") | ("", "bindings") => return None,
            ("", "pods") => (How::Pod, None),
            ("", "services") => (How::Service, None),
            ("", "persistentvolumeclaims") => (How::Claim, None),
            ("resource.k8s.io", "resourceclaims") => (How::DeviceClaim, None),
            ("", "configmaps") => (How::Number, Some("configmaps")),
            ("", "resourcequotas") => (How::Number, Some("resourcequotas")),
            ("", "replicationcontrollers") => (How::Number, Some("replicationcontrollers")),
            ("", "secrets") => (How::Number, Some("secrets")),
            _ => (How::Number, None),
        };
        let dot = if group.is_empty() { "" } else { "." };
        Some(Evaluator { how, count: format!("count/{plural}{dot}{group}"), alias })
    }

    /// Whether only the number of objects counts.
    #[must_use]
    pub fn needs_number_only(&self) -> bool {
        self.how == How::Number
    }

    /// Whether a write can change what is used; `old` is the object before an update.
    #[must_use]
    pub fn handles(&self, subresource: &str, object: &Value, old: Option<&Value>) -> bool {
        match (self.how, subresource) {
            (How::Pod, "resize") => old.is_some(),
            // A deadline moves a pod from one scope to another.
            (How::Pod, "") => old.is_none_or(|old| is_terminating(old) != is_terminating(object)),
            (How::Service | How::DeviceClaim, "") => true,
            (How::Claim, "" | "status") => true,
            (How::Number, "") => old.is_none(),
            _ => false,
        }
    }

    /// Whether the kind counts for a resource of a quota.
    #[must_use]
    pub fn counts(&self, name: &str) -> bool {
        if name == self.count || self.alias == Some(name) {
            return true;
        }
        match self.how {
            How::Number => false,
            How::Service => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
            How::DeviceClaim => name.ends_with(DEVICE_CLASS),
            How::Claim => {
                let base = name.split_once(STORAGE_CLASS).map_or(name, |(_, base)| base);
                matches!(base, "persistentvolumeclaims" | "requests.storage")
            }
            How::Pod => {
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

    /// What a number of objects use, whatever they are.
    #[must_use]
    pub fn usage_of(&self, number: usize) -> Amounts {
        let number = count(i64::try_from(number).unwrap_or(i64::MAX));
        let alias = self.alias.map(|name| (name.to_owned(), number));
        [(self.count.clone(), number)].into_iter().chain(alias).collect()
    }

    /// What an object uses at a time, in seconds since 1970.
    #[must_use]
    pub fn usage(&self, object: &Value, now: i64) -> Amounts {
        let mut used = self.usage_of(1);
        match self.how {
            How::Number => {}
            How::Service => service(object, &mut used),
            How::Claim => claim(object, &mut used),
            How::DeviceClaim => device_claim(object, &mut used),
            How::Pod if has_ended(object) || outlived(object).is_some_and(|time| now > time) => {}
            How::Pod => {
                let of =
                    |field: &str| with_overhead(object, field, pod_amounts(object, field, Source::Status));
                compute(&of("requests"), &of("limits"), &mut used);
            }
        }
        used
    }

    /// The time after which an object uses less although nothing about it changes, in seconds since 1970.
    #[must_use]
    pub fn expires(&self, object: &Value) -> Option<i64> {
        if self.how == How::Pod && !has_ended(object) { outlived(object) } else { None }
    }

    /// Whether an update changes what a quota should say, at a time in seconds since 1970.
    #[must_use]
    pub fn differs(&self, quota: &Value, old: &Value, new: &Value, now: i64) -> bool {
        self.in_scopes(quota, old) != self.in_scopes(quota, new)
            || self.usage(old, now) != self.usage(new, now)
    }

    /// Whether a quota is about the kind.
    #[must_use]
    pub fn concerns(&self, quota: &Value) -> bool {
        let hard = get(quota, &["spec", "hard"]).and_then(Value::as_object);
        hard.is_some_and(|hard| hard.keys().any(|name| self.counts(name)))
    }

    /// What the object has to say so that it can be counted; the text of upstream's error if it does not.
    #[must_use]
    pub fn missing(&self, names: &[&str], object: &Value) -> Option<String> {
        if self.how != How::Pod || set_at_pod_level(object) {
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

    /// Whether the object is in all scopes of a quota.
    #[must_use]
    pub fn in_scopes(&self, quota: &Value, object: &Value) -> bool {
        Scope::of(quota).iter().all(|scope| match self.how {
            How::Pod => scope.has_pod(object),
            How::Claim => scope.has_claim(object),
            _ => false,
        })
    }
}

fn native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// A pod that has ended uses no computing any more.
fn has_ended(object: &Value) -> bool {
    matches!(str_at(object, &["status", "phase"]), "Succeeded" | "Failed")
}

/// When a pod being deleted outlives its grace period and counts as ended.
fn outlived(object: &Value) -> Option<i64> {
    let time: jiff::Timestamp = str_at(object, &["metadata", "deletionTimestamp"]).parse().ok()?;
    let grace = int_at(object, &["metadata", "deletionGracePeriodSeconds"])?;
    Some(time.as_second().saturating_add(grace))
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
    let count = |n: usize| count(i64::try_from(n).unwrap_or(i64::MAX));
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
            used.insert(format!("{class}{STORAGE_CLASS}{name}"), amount);
        }
    };
    put("persistentvolumeclaims", ONE);
    if let Some(asked) = asked {
        // Whole bytes, which quotas are checked to be.
        put("requests.storage", allocated.map_or(asked, |a| a.max(asked)).round_up(0));
    }
}

/// The devices that a claim may get at most, by class. Of alternatives the largest counts, for each class by itself.
fn device_claim(object: &Value, used: &mut Amounts) {
    let devices = |request: &Value| {
        let number = match str_at(request, &["allocationMode"]) {
            "ExactCount" => int_at(request, &["count"]).unwrap_or_default(),
            "All" => ALL_DEVICES,
            _ => 0,
        };
        (format!("{}{DEVICE_CLASS}", str_at(request, &["deviceClassName"])), count(number))
    };
    for request in list_at(object, &["spec", "devices", "requests"]) {
        let mut most = Amounts::new();
        for alternative in list_at(request, &["firstAvailable"]).iter().chain(get(request, &["exactly"])) {
            let (name, number) = devices(alternative);
            if most.get(&name).is_none_or(|present| number > *present) {
                most.insert(name, number);
            }
        }
        add(used, &most);
    }
}
