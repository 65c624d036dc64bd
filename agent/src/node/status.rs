//! The Node's status from facts: pure.

use crate::config::AgentConfig;
use crate::image::Image;
use crate::node::facts::Facts;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kelp_model::eviction::{self, Condition, Signal};
use kelp_model::quantity::{Format, Quantity as Amount};
use std::collections::{BTreeMap, BTreeSet};

/// The Kubernetes version whose kubelet this agent stands in for.
pub const KUBELET_VERSION: &str = concat!("v1.36.0+kelp.", env!("CARGO_PKG_VERSION"));

fn capacity(facts: &Facts, config: &AgentConfig) -> BTreeMap<String, Quantity> {
    let mut map = BTreeMap::new();
    let mut set = |key: &str, value: String| map.insert(key.to_owned(), Quantity(value));
    set("cpu", facts.cpus.to_string());
    set("memory", format!("{}Ki", facts.memory_kib));
    set("pods", config.max_pods.to_string());
    set("ephemeral-storage", format!("{}Ki", facts.disk_kib));
    for (size, bytes) in &facts.huge_pages {
        set(&format!("hugepages-{size}"), bytes.to_string());
    }
    for device in &facts.devices {
        set(&device.resource, device.capacity.to_string());
    }
    map
}

/// What of the capacity is for pods: not what is reserved, nor what hard eviction thresholds keep free, nor, of the
/// memory, huge pages.
fn allocatable(facts: &Facts, config: &AgentConfig) -> BTreeMap<String, Quantity> {
    let settings = &config.kubelet.settings;
    let thresholds = settings.thresholds();
    let zero = Amount::ZERO;
    let mut map = capacity(facts, config);
    for (resource, signal) in [
        ("cpu", None),
        ("memory", Some(Signal::MemoryAvailable)),
        ("ephemeral-storage", Some(Signal::NodeFsAvailable)),
    ] {
        let Some(shown) = map.get_mut(resource) else { continue };
        let all = Amount::parse(&shown.0).unwrap_or(zero);
        let kept = signal.map_or(zero, |signal| eviction::reserved(&thresholds, signal, &all));
        let mut left = all - settings.reserved(resource) - kept;
        if resource == "memory" {
            for (_, bytes) in &facts.huge_pages {
                left = left - Amount::new(i64::try_from(*bytes).unwrap_or(i64::MAX), Format::BinarySi);
            }
        }
        *shown = Quantity(if left.signum() < 0 { zero } else { left }.to_string());
    }
    for device in &facts.devices {
        map.insert(device.resource.clone(), Quantity(device.allocatable.to_string()));
    }
    map
}

/// What of the features that a scheduler asks for this node has, by name.
const DECLARED_FEATURES: [&str; 4] = [
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "RestartAllContainersOnContainerExits",
];

/// Handlers of RuntimeClasses; all are the same runtime.
fn runtime_handlers(config: &AgentConfig, facts: &Facts) -> Vec<NodeRuntimeHandler> {
    let features = NodeRuntimeHandlerFeatures {
        recursive_read_only_mounts: Some(true),
        user_namespaces: Some(maps_ids(&facts.kernel)),
    };
    let names = std::iter::once(String::new()).chain(config.runtime_handlers.iter().cloned());
    names.map(|name| NodeRuntimeHandler { name: Some(name), features: Some(features.clone()) }).collect()
}

/// Whether a kernel can map the owners of files of every file system that volumes are on: tmpfs came last, in 6.3.
fn maps_ids(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version| version >= (6, 3))
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
    pressure: &BTreeSet<Condition>,
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
    let of = |condition| pressure.contains(&condition);
    let (memory, disk, pids) = (of(Condition::Memory), of(Condition::Disk), of(Condition::Pids));
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
    pressure: &BTreeSet<Condition>,
    not_ready: &NotReady,
    old: &NodeStatus,
    now: Timestamp,
) -> NodeStatus {
    let shown = usize::try_from(config.kubelet.settings.node_status_max_images).ok();
    let mut images: Vec<&Image> = images.iter().collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let image = |image: &&Image| ContainerImage {
        names: Some(image.digests.iter().chain(&image.names).cloned().collect()),
        size_bytes: i64::try_from(image.size).ok(),
    };
    NodeStatus {
        capacity: Some(capacity(facts, config)),
        allocatable: Some(allocatable(facts, config)),
        conditions: Some(conditions(pressure, not_ready, old.conditions.as_deref().unwrap_or_default(), now)),
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
            swap: (facts.swap_kib > 0)
                .then(|| NodeSwapStatus { capacity: i64::try_from(facts.swap_kib * 1024).ok() }),
        }),
        // -1: all of them.
        images: Some(images.iter().take(shown.unwrap_or(usize::MAX)).map(image).collect()),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        runtime_handlers: Some(runtime_handlers(config, facts)),
        declared_features: Some(DECLARED_FEATURES.map(str::to_owned).to_vec()),
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
            disk_kib: 264_212_084,
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
        let s = status(&config, &facts(), &[], &BTreeSet::new(), &None, &NodeStatus::default(), at(1));
        let text = |m: &Option<BTreeMap<String, Quantity>>, k: &str| m.as_ref().unwrap()[k].0.clone();
        assert_eq!(text(&s.capacity, "memory"), "24684084Ki");
        assert_eq!(text(&s.allocatable, "memory"), "24581684Ki");
        assert_eq!(text(&s.capacity, "ephemeral-storage"), "264212084Ki");
        assert_eq!(text(&s.allocatable, "ephemeral-storage"), "243497856212");
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
        let handlers = s.runtime_handlers.unwrap();
        let names: Vec<_> = handlers.iter().map(|h| h.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["", "runc"]);
        for (release, can) in [("6.18.44-x", true), ("6.3", true), ("5.15.0-1", false), ("", false)] {
            assert_eq!(maps_ids(release), can, "{release}");
        }
    }

    #[test]
    fn reservations_are_not_for_pods() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        let text = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\nmaxPods: 7\n\
            systemReserved: {cpu: 100m, memory: 1Gi}\nkubeReserved: {cpu: 50m, memory: 24Mi, ephemeral-storage: 1Gi}\n";
        std::fs::write(&file, text).unwrap();
        let mut config = AgentConfig::new("node1", vec![]);
        config.adopt(crate::kubelet_config::KubeletConfig::load(Some(&file), None).unwrap()).unwrap();
        let facts = Facts { huge_pages: vec![("2Mi".into(), 4 << 20)], ..facts() };
        let found = allocatable(&facts, &config);
        let shown = |name: &str| found[name].0.as_str();
        assert_eq!((shown("cpu"), shown("pods")), ("1850m", "7"));
        assert_eq!(shown("memory"), format!("{}Ki", 24_684_084 - (1024 + 24 + 100 + 4) * 1024));
        assert_eq!(shown("ephemeral-storage"), (243_497_856_212_i64 - (1 << 30)).to_string());
        let none = Facts { memory_kib: 1000, ..facts };
        assert_eq!(allocatable(&none, &config)["memory"].0, "0");
    }

    #[test]
    fn heartbeats_are_no_change_and_transitions_are_kept() {
        let config = AgentConfig::new("node1", vec![]);
        let none = BTreeSet::new();
        let first = status(&config, &facts(), &[], &none, &None, &NodeStatus::default(), at(1));
        let second = status(&config, &facts(), &[], &none, &None, &first, at(2));
        assert!(is_same(&first, &second) && first != second);
        let third = status(&config, &facts(), &[], &none, &Some("why".into()), &second, at(3));
        assert!(!is_same(&second, &third));
        let ready = third.conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(
            (ready.last_transition_time.clone().unwrap().0, ready.message.as_deref()),
            (at(3), Some("why"))
        );
        assert_eq!(third.conditions.as_ref().unwrap()[0].last_transition_time.clone().unwrap().0, at(1));
    }
}
