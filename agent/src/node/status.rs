//! The Node's status from facts: pure.

use crate::config::AgentConfig;
use crate::image::Image;
use crate::node::facts::Facts;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

/// The Kubernetes version whose kubelet this agent stands in for.
pub const KUBELET_VERSION: &str = concat!("v1.36.0+kelp.", env!("CARGO_PKG_VERSION"));
/// Memory that pods do not get: upstream's eviction threshold, KiB.
const MEMORY_RESERVE_KIB: u64 = 100 << 10;
/// Most images listed.
const IMAGES: usize = 50;
/// Thresholds of the pressure conditions.
const DISK_PRESSURE_PERMILLE: u64 = 100;

fn capacity(facts: &Facts, config: &AgentConfig, allocatable: bool) -> BTreeMap<String, Quantity> {
    let mut map = BTreeMap::new();
    let mut set = |key: &str, value: String| map.insert(key.to_owned(), Quantity(value));
    set("cpu", facts.cpus.to_string());
    let memory =
        if allocatable { facts.memory_kib.saturating_sub(MEMORY_RESERVE_KIB) } else { facts.memory_kib };
    set("memory", format!("{memory}Ki"));
    set("pods", config.max_pods.to_string());
    if allocatable {
        set("ephemeral-storage", (facts.disk_kib * 1024 / 10 * 9).to_string());
    } else {
        set("ephemeral-storage", format!("{}Ki", facts.disk_kib));
    }
    for (size, bytes) in &facts.huge_pages {
        set(&format!("hugepages-{size}"), bytes.to_string());
    }
    map
}

/// Addresses of the node.
pub fn addresses(config: &AgentConfig) -> Vec<NodeAddress> {
    let ips =
        config.node_ips.iter().map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.to_string() });
    ips.chain([NodeAddress { type_: "Hostname".into(), address: config.node_name.clone() }]).collect()
}

/// Labels every node has.
pub fn labels(config: &AgentConfig) -> BTreeMap<String, String> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut labels = BTreeMap::new();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/arch"), arch.to_owned());
        labels.insert(format!("{prefix}/os"), "linux".to_owned());
    }
    labels.insert("kubernetes.io/hostname".into(), config.node_name.clone());
    labels.extend(config.node_labels.clone());
    labels
}

/// Why the node is not ready; `None` when it is.
pub type NotReady = Option<String>;

/// The agent's conditions, with upstream's reasons and messages.
pub fn conditions(
    facts: &Facts,
    not_ready: &NotReady,
    old: &[NodeCondition],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let make = |type_: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let before = old.iter().find(|c| c.type_ == type_ && c.status == status);
        NodeCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        }
    };
    let memory = facts.memory_available_kib < MEMORY_RESERVE_KIB;
    let disk = facts.disk_kib > 0 && facts.disk_free_permille < DISK_PRESSURE_PERMILLE;
    let (used, most) = facts.pids;
    let pids = most > 0 && used * 10 > most * 9;
    let pressure = |type_: &str, on: bool, yes: (&str, &str), no: (&str, &str)| {
        let (reason, message) = if on { yes } else { no };
        make(type_, on, reason, message)
    };
    let mut list = vec![
        pressure(
            "MemoryPressure",
            memory,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            pids,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        match not_ready {
            None => make("Ready", true, "KubeletReady", "kubelet is posting ready status"),
            Some(why) => make("Ready", false, "KubeletNotReady", why),
        },
    ];
    let ours: Vec<String> = list.iter().map(|c| c.type_.clone()).collect();
    list.extend(old.iter().filter(|c| !ours.contains(&c.type_)).cloned());
    list
}

/// The whole status. `old` is the present one: transition times and other writers' fields are kept.
pub fn status(
    config: &AgentConfig,
    facts: &Facts,
    images: &[Image],
    not_ready: &NotReady,
    old: &NodeStatus,
    now: Timestamp,
) -> NodeStatus {
    let mut images: Vec<&Image> = images.iter().collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let image = |image: &&Image| ContainerImage {
        names: Some(image.digests.iter().chain(&image.names).cloned().collect()),
        size_bytes: i64::try_from(image.size).ok(),
    };
    NodeStatus {
        capacity: Some(capacity(facts, config, false)),
        allocatable: Some(capacity(facts, config, true)),
        conditions: Some(conditions(facts, not_ready, old.conditions.as_deref().unwrap_or_default(), now)),
        addresses: Some(addresses(config)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.kubelet_port) }),
        }),
        node_info: Some(NodeSystemInfo {
            machine_id: facts.machine_id.clone(),
            system_uuid: facts.system_uuid.clone(),
            boot_id: facts.boot_id.clone(),
            kernel_version: facts.kernel.clone(),
            os_image: facts.os_image.clone(),
            container_runtime_version: concat!("kelp://", env!("CARGO_PKG_VERSION")).into(),
            kubelet_version: KUBELET_VERSION.into(),
            kube_proxy_version: String::new(),
            operating_system: "linux".into(),
            architecture: labels(config).remove("kubernetes.io/arch").unwrap_or_default(),
            swap: None,
        }),
        images: Some(images.iter().take(IMAGES).map(image).collect()),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        ..old.clone()
    }
}

/// The same but for heartbeats, which alone are no reason to write.
pub fn is_same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let plain = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            cpus: 2,
            memory_kib: 24_684_084,
            memory_available_kib: 20_000_000,
            disk_kib: 264_212_084,
            disk_free_permille: 900,
            pids: (100, 32_768),
            huge_pages: vec![("1Gi".into(), 0), ("2Mi".into(), 0)],
            ..Facts::default()
        }
    }

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).unwrap()
    }

    #[test]
    fn as_recorded() {
        let config = AgentConfig::new("node1", vec!["192.0.2.1".parse().unwrap()]);
        let s = status(&config, &facts(), &[], &None, &NodeStatus::default(), at(1));
        let text = |m: &Option<BTreeMap<String, Quantity>>, k: &str| m.as_ref().unwrap()[k].0.clone();
        assert_eq!(text(&s.capacity, "memory"), "24684084Ki");
        assert_eq!(text(&s.allocatable, "memory"), "24581684Ki");
        assert_eq!(text(&s.capacity, "ephemeral-storage"), "264212084Ki");
        assert_eq!(text(&s.allocatable, "hugepages-2Mi"), "0");
        let conditions: Vec<_> = s
            .conditions
            .as_ref()
            .unwrap()
            .iter()
            .map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_deref().unwrap()))
            .collect();
        assert_eq!(
            conditions,
            [
                ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                ("PIDPressure", "False", "KubeletHasSufficientPID"),
                ("Ready", "True", "KubeletReady")
            ]
        );
        assert_eq!(s.addresses.unwrap()[0].address, "192.0.2.1");
    }

    #[test]
    fn heartbeats_are_no_change_and_transitions_are_kept() {
        let config = AgentConfig::new("node1", vec![]);
        let first = status(&config, &facts(), &[], &None, &NodeStatus::default(), at(1));
        let second = status(&config, &facts(), &[], &None, &first, at(2));
        assert!(is_same(&first, &second) && first != second);
        let third = status(&config, &facts(), &[], &Some("why".into()), &second, at(3));
        assert!(!is_same(&second, &third));
        let ready = third.conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(
            (ready.last_transition_time.clone().unwrap().0, ready.message.as_deref()),
            (at(3), Some("why"))
        );
        assert_eq!(third.conditions.as_ref().unwrap()[0].last_transition_time.clone().unwrap().0, at(1));
    }
}
