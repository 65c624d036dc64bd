//! cgroup values of pods and containers, as upstream computes them.

use crate::eviction::is_critical;
use crate::pod::qos::{Qos, qos_class};
use crate::pod::quantity;
use crate::pod::spec::{Kind, containers};
use crate::quantity::Quantity as Amount;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// cgroup limits; `None` leaves the kernel's default. Shares are in the scale of cgroup v1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU weight, 2..=262144.
    pub cpu_shares: Option<u64>,
    /// CPU time a period, µs.
    pub cpu_quota_us: Option<i64>,
    /// CPU period, µs.
    pub cpu_period_us: Option<u64>,
    /// Memory, bytes.
    pub memory: Option<i64>,
    /// Swap beyond the memory, bytes.
    pub swap: Option<i64>,
    /// `oom_score_adj`, −1000..=1000.
    pub oom_score_adj: Option<i32>,
}

/// CPU period, µs.
const PERIOD_US: u64 = 100_000;
/// Least CPU quota the kernel takes, µs.
const MIN_QUOTA_US: i64 = 1000;
/// Least and greatest CPU shares.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// CPU shares of a number of milli-CPUs: `milli × 1024 / 1000` in the kernel's range.
pub fn shares(milli_cpu: i128) -> u64 {
    let shares = u64::try_from(milli_cpu.max(0) * 1024 / 1000).unwrap_or(u64::MAX);
    shares.clamp(*SHARES.start(), *SHARES.end())
}

/// CPU quota in µs a [`PERIOD_US`].
fn quota(milli_cpu: i128) -> i64 {
    i64::try_from(milli_cpu.saturating_mul(i128::from(PERIOD_US)) / 1000)
        .unwrap_or(i64::MAX)
        .max(MIN_QUOTA_US)
}

fn get(map: Option<&BTreeMap<String, Quantity>>, key: &str, milli: bool) -> Option<i128> {
    let quantity = map?.get(key)?;
    if milli { quantity::milli(quantity) } else { quantity::value(quantity) }
}

/// What a container asks for: cpu in thousandths, memory in bytes; a missing request is the limit.
fn request(resources: &ResourceRequirements, key: &str) -> Option<i128> {
    let milli = key == "cpu";
    get(resources.requests.as_ref(), key, milli).or_else(|| get(resources.limits.as_ref(), key, milli))
}

fn limit(resources: &ResourceRequirements, key: &str) -> Option<i128> {
    get(resources.limits.as_ref(), key, key == "cpu").filter(|v| *v > 0)
}

/// A container without a limit of its own may use what the pod as a whole may.
fn effective(pod: &Pod, container: &Container) -> ResourceRequirements {
    let mut resources = requirements(container);
    let whole = pod.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.limits.as_ref());
    for key in ["cpu", "memory"] {
        if let (None, Some(q)) = (limit(&resources, key), whole.and_then(|l| l.get(key))) {
            resources.limits.get_or_insert_default().insert(key.to_owned(), q.clone());
        }
    }
    resources
}

fn requirements(container: &Container) -> ResourceRequirements {
    container.resources.clone().unwrap_or_default()
}

/// cgroup values of one container. `node_memory` is the node's capacity in bytes.
pub fn container_limits(pod: &Pod, container: &Container, node_memory: u64) -> Limits {
    let resources = effective(pod, container);
    let cpu_limit = limit(&resources, "cpu");
    Limits {
        cpu_shares: Some(shares(request(&resources, "cpu").unwrap_or(0))),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US),
        memory: limit(&resources, "memory").and_then(|v| i64::try_from(v).ok()),
        swap: None,
        oom_score_adj: Some(oom_score_adj(pod, container, node_memory)),
    }
}

/// Swap that containers get (`memorySwap` of the KubeletConfiguration).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swap {
    /// `LimitedSwap`: some get a part of it. Else none gets any.
    pub limited: bool,
    /// Swap of the node, bytes.
    pub total: u64,
}

/// How much swap a container may use, bytes. With `LimitedSwap` it is as large a part of the node's swap as its request is
/// of the node's memory, for containers of burstable pods that are not critical and may use more memory than they ask for.
pub fn swap_limit(pod: &Pod, container: &Container, swap: Swap, node_memory: u64) -> i64 {
    let resources = requirements(container);
    let asked = request(&resources, "memory").unwrap_or(0);
    let limited = get(resources.limits.as_ref(), "memory", false).unwrap_or(0);
    if !swap.limited || qos_class(pod) != Qos::Burstable || is_critical(pod) || asked == limited {
        return 0;
    }
    let (asked, memory) = (u64::try_from(asked).unwrap_or(0), node_memory);
    if memory == 0 || asked > memory {
        return 0;
    }
    // Upstream's arithmetic, in binary fractions.
    let part = asked as f64 / memory as f64 * swap.total as f64;
    part as i64
}

/// cgroup values of the pod as a whole: requests summed, limits only when every container has one.
pub fn pod_limits(pod: &Pod) -> Limits {
    let Some(spec) = &pod.spec else { return Limits::default() };
    let pod_level = spec.resources.clone().unwrap_or_default();
    let sum = |key: &str, of: &dyn Fn(&ResourceRequirements, &str) -> Option<i128>| -> (i128, bool) {
        // Init containers run one after the other, beside the sidecars started before them.
        let (mut main, mut sidecars, mut init_peak, mut all) = (0i128, 0i128, 0i128, true);
        for (kind, container) in containers(spec) {
            let amount = of(&requirements(container), key);
            all &= amount.is_some();
            let amount = amount.unwrap_or(0);
            match kind {
                Kind::Main | Kind::Ephemeral => main += amount,
                Kind::Sidecar => {
                    sidecars += amount;
                    init_peak = init_peak.max(sidecars);
                }
                Kind::Init => init_peak = init_peak.max(sidecars + amount),
            }
        }
        let overhead = get(spec.overhead.as_ref(), key, key == "cpu").unwrap_or(0);
        ((main + sidecars).max(init_peak) + overhead, all)
    };
    let cpu_request = request(&pod_level, "cpu").unwrap_or_else(|| sum("cpu", &request).0);
    let whole_limit = |key: &str| {
        limit(&pod_level, key).or_else(|| {
            let (total, all) = sum(key, &limit);
            (all && total > 0).then_some(total)
        })
    };
    let cpu_limit = whole_limit("cpu");
    Limits {
        cpu_shares: Some(if qos_class(pod) == Qos::BestEffort {
            *SHARES.start()
        } else {
            shares(cpu_request)
        }),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US),
        memory: whole_limit("memory").and_then(|v| i64::try_from(v).ok()),
        swap: None,
        oom_score_adj: None,
    }
}

type List = BTreeMap<String, Quantity>;

/// A list of the pod as a whole, as its status shows it: what `of` gives of each container, summed as the pod's
/// cgroup is, with the pod's own values in their place.
fn whole(pod: &Pod, of: &dyn Fn(&ResourceRequirements) -> Option<List>) -> List {
    let Some(spec) = &pod.spec else { return List::new() };
    let amount = |q: &Quantity| Amount::parse(&q.0).unwrap_or(Amount::ZERO);
    let add = |sum: &mut BTreeMap<String, Amount>, list: &List| {
        for (name, q) in list {
            let old = sum.get(name).copied().unwrap_or(Amount::ZERO);
            sum.insert(name.clone(), old + amount(q));
        }
    };
    let raise = |most: &mut BTreeMap<String, Amount>, list: &BTreeMap<String, Amount>| {
        for (name, q) in list {
            if most.get(name).is_none_or(|old| old < q) {
                most.insert(name.clone(), *q);
            }
        }
    };
    let (mut sum, mut sidecars, mut peak) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (kind, container) in containers(spec) {
        let Some(list) = container.resources.as_ref().and_then(of) else { continue };
        match kind {
            Kind::Main | Kind::Ephemeral => add(&mut sum, &list),
            Kind::Sidecar => {
                add(&mut sum, &list);
                add(&mut sidecars, &list);
                raise(&mut peak, &sidecars);
            }
            Kind::Init => {
                let mut at_once = sidecars.clone();
                add(&mut at_once, &list);
                raise(&mut peak, &at_once);
            }
        }
    }
    raise(&mut sum, &peak);
    let mut list: List = sum.into_iter().map(|(name, q)| (name, Quantity(q.to_string()))).collect();
    list.extend(spec.resources.as_ref().and_then(of).unwrap_or_default());
    list
}

/// `status.allocatedResources` of a pod: what its containers request together.
pub fn status_allocated(pod: &Pod) -> List {
    whole(pod, &|r| r.requests.clone())
}

/// `status.resources` of a pod: what its cgroup is set to. No cgroup says how much memory was asked for, so that a pod which
/// ran by its last status (`old`) keeps showing what it showed then, as under upstream.
pub fn status_resources(pod: &Pod, old: &PodStatus) -> ResourceRequirements {
    let limits = pod_limits(pod);
    let mut list = whole(pod, &|r| r.limits.clone());
    // Without a limit on every container the pod has none.
    list.retain(|name, _| match name.as_str() {
        "cpu" => limits.cpu_quota_us.is_some(),
        "memory" => limits.memory.is_some(),
        "ephemeral-storage" => false,
        _ => true,
    });
    let mut requests = status_allocated(pod);
    requests.remove("ephemeral-storage");
    let shown = old.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("memory"));
    if let Some(memory) = shown.filter(|_| old.phase.as_deref() == Some("Running")) {
        requests.insert("memory".into(), memory.clone());
    }
    let some = |list: List| (!list.is_empty()).then_some(list);
    ResourceRequirements { limits: some(list), requests: some(requests), claims: None }
}

/// `oom_score_adj` of a container: −997 for guaranteed and node-critical pods, 1000 for best effort, and in between
/// the less the more memory it asks for.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: u64) -> i32 {
    /// Priority from which a pod counts as critical to its node.
    const SYSTEM_CRITICAL: i32 = 2_000_000_000;
    if pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0) >= SYSTEM_CRITICAL {
        return -997;
    }
    match qos_class(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let own = |c: &Container| request(&requirements(c), "memory").unwrap_or(0).max(0);
            let mut asked = own(container);
            // What the pod as a whole asks for beyond its containers is shared out evenly.
            let spec = pod.spec.as_ref();
            let whole = spec.and_then(|s| s.resources.as_ref()).and_then(|r| request(r, "memory"));
            if let (Some(whole), Some(spec)) = (whole, spec) {
                let together: i128 = spec.containers.iter().map(own).sum();
                let count = i128::try_from(spec.containers.len().max(1)).unwrap_or(1);
                asked += (whole - together).max(0) / count;
            }
            let capacity = i128::from(node_memory.max(1));
            let score = 1000 - 1000 * asked / capacity;
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// The pod's cgroup below the node's root: `kubepods[/<class>]/pod<uid>`.
pub fn pod_cgroup(pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    match qos_class(pod) {
        Qos::Guaranteed => format!("kubepods/pod{uid}"),
        Qos::Burstable => format!("kubepods/burstable/pod{uid}"),
        Qos::BestEffort => format!("kubepods/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn guaranteed_container() {
        let p = pod(json!([{"name": "c", "resources": {"limits": {"cpu": "100m", "memory": "64Mi"},
            "requests": {"cpu": "100m", "memory": "64Mi"}}}]));
        let limits = container_limits(&p, &p.spec.as_ref().unwrap().containers[0], 1 << 34);
        assert_eq!(
            limits,
            Limits {
                cpu_shares: Some(102),
                cpu_quota_us: Some(10_000),
                cpu_period_us: Some(100_000),
                memory: Some(64 << 20),
                swap: None,
                oom_score_adj: Some(-997)
            }
        );
        assert_eq!(pod_limits(&p), Limits { oom_score_adj: None, ..limits });
        assert_eq!(pod_cgroup(&p), "kubepods/podu");
    }

    #[test]
    fn limited_swap_is_for_burstable_containers_in_proportion() {
        let swap = Swap { limited: true, total: 8 << 30 };
        let of = |resources: serde_json::Value, swap: Swap| {
            let pod = pod(json!([{"name": "c", "resources": resources}]));
            swap_limit(&pod, &pod.spec.as_ref().unwrap().containers[0], swap, 16 << 30)
        };
        let burstable = json!({"requests": {"memory": "2Gi"}, "limits": {"memory": "4Gi"}});
        assert_eq!(of(burstable.clone(), swap), 1 << 30);
        assert_eq!(of(json!({"requests": {"memory": "2Gi"}}), swap), 1 << 30);
        assert_eq!(of(burstable.clone(), Swap { limited: false, ..swap }), 0, "NoSwap");
        assert_eq!(of(json!({}), swap), 0, "best effort");
        assert_eq!(of(json!({"requests": {"cpu": "1"}}), swap), 0, "it asks for no memory");
        let whole =
            json!({"requests": {"memory": "2Gi", "cpu": "1"}, "limits": {"memory": "2Gi", "cpu": "2"}});
        assert_eq!(of(whole, swap), 0, "it may use no more than it asks for");
        assert_eq!(of(json!({"requests": {"memory": "32Gi"}}), swap), 0, "more than the node has");
        let mut critical = pod(json!([{"name": "c", "resources": burstable}]));
        critical.spec.as_mut().unwrap().priority = Some(2_000_000_000);
        let container = critical.spec.as_ref().unwrap().containers[0].clone();
        assert_eq!(swap_limit(&critical, &container, swap, 16 << 30), 0);
    }

    #[test]
    fn a_running_pod_shows_the_memory_request_from_before_a_resize() {
        let of = |request: &str, limit: &str| {
            pod(json!([{"name": "c", "resources": {"requests": {"cpu": "1", "memory": request},
                "limits": {"memory": limit}}}]))
        };
        let memory = |r: &ResourceRequirements| {
            let of = |list: &Option<List>| list.as_ref().unwrap()["memory"].0.clone();
            (of(&r.requests), of(&r.limits))
        };
        let texts = |request: &str, limit: &str| (request.to_owned(), limit.to_owned());
        let first = status_resources(&of("64Mi", "128Mi"), &PodStatus::default());
        assert_eq!(memory(&first), texts("64Mi", "128Mi"));
        let mut old =
            PodStatus { phase: Some("Running".into()), resources: Some(first), ..PodStatus::default() };
        assert_eq!(memory(&status_resources(&of("96Mi", "256Mi"), &old)), texts("64Mi", "256Mi"));
        old.phase = Some("Pending".into());
        assert_eq!(memory(&status_resources(&of("96Mi", "256Mi"), &old)), texts("96Mi", "256Mi"));
    }

    #[test]
    fn best_effort_and_burstable() {
        let p = pod(json!([{"name": "c"}]));
        let c = &p.spec.as_ref().unwrap().containers[0];
        assert_eq!(container_limits(&p, c, 1 << 34).cpu_shares, Some(2));
        assert_eq!(oom_score_adj(&p, c, 1 << 34), 1000);
        assert_eq!(pod_limits(&p), Limits { cpu_shares: Some(2), ..Limits::default() });
        let p = pod(
            json!([{"name": "c", "resources": {"requests": {"memory": "4Gi", "cpu": "1"}}}, {"name": "d"}]),
        );
        let containers = &p.spec.as_ref().unwrap().containers;
        assert_eq!(oom_score_adj(&p, &containers[0], 16 << 30), 750);
        assert_eq!(oom_score_adj(&p, &containers[1], 16 << 30), 999);
        assert_eq!(pod_limits(&p).memory, None);
        assert_eq!(pod_limits(&p).cpu_shares, Some(1024));
        assert_eq!(pod_cgroup(&p), "kubepods/burstable/podu");
    }

    #[test]
    fn tiny_limits_stay_in_the_kernels_range() {
        assert_eq!(shares(0), 2);
        assert_eq!(shares(1), 2);
        assert_eq!(shares(i128::MAX / 2048), 262_144);
        assert_eq!(quota(1), 1000);
    }
}
