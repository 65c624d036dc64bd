//! Numbers of pods in `/metrics`, counted when they are asked for.

use super::Server;
use super::exposition::Exposition;
use crate::disk;
use crate::pod::volumes::{claims, plugin};
use crate::runtime::{Runtime, SandboxStatus};
use k8s_openapi::api::core::v1::Pod;
use kelp_model::pod::admission::is_static;
use kelp_model::pod::spec::is_terminal;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a pod is, as `kubelet_working_pods` names it.
fn lifecycle(pod: &Pod) -> &'static str {
    match (is_terminal(pod), pod.metadata.deletion_timestamp.is_some()) {
        (true, _) => "terminated",
        (false, true) => "terminating",
        (false, false) => "sync",
    }
}

fn origin(pod: &Pod) -> &'static str {
    if is_static(pod) { "true" } else { "" }
}

/// Pods by configuration, lifecycle and whether they are static; every combination that there can be.
fn working(pods: &[Arc<Pod>], sandboxes: &[SandboxStatus]) -> BTreeMap<[&'static str; 3], u32> {
    let mut found = BTreeMap::new();
    for (config, lifecycles, origins) in [
        ("desired", &["sync", "terminating", "terminated"][..], &["", "true"][..]),
        ("orphan", &["terminating", "terminated"], &["", "true"]),
        ("runtime_only", &["terminating", "terminated"], &["unknown"]),
    ] {
        for lifecycle in lifecycles {
            found.extend(origins.iter().map(|origin| ([config, *lifecycle, *origin], 0)));
        }
    }
    let mut add = |key| *found.entry(key).or_insert(0) += 1;
    for pod in pods {
        add(["desired", lifecycle(pod), origin(pod)]);
    }
    let known = |id: &str| pods.iter().any(|p| p.metadata.uid.as_deref() == Some(id));
    for _ in sandboxes.iter().filter(|s| !known(&s.id)) {
        add(["runtime_only", "terminating", "unknown"]);
    }
    found
}

impl<R: Runtime + Clone> Server<R> {
    /// Adds them.
    pub(super) fn count_pods(&self, all: &mut Exposition, sandboxes: &[SandboxStatus]) {
        let pods: Vec<Arc<Pod>> = self.pods.read().values().cloned().collect();
        let mut by_origin = BTreeMap::from([("", (0u32, 0u32)), ("true", (0, 0))]);
        let mut added = 0;
        for pod in &pods {
            let (desired, active) = by_origin.entry(origin(pod)).or_default();
            *desired += 1;
            *active += u32::from(!is_terminal(pod));
            added += pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_ref()).map_or(0, Vec::len);
        }
        for (origin, (desired, active)) in by_origin {
            let labels = [("static", origin)];
            all.gauge(
                "kubelet_desired_pods",
                "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not \
                 from the apiserver.",
                &labels,
                f64::from(desired),
                None,
            );
            all.gauge(
                "kubelet_active_pods",
                "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting \
                 new pods. static is true if the pod is not from the apiserver.",
                &labels,
                f64::from(active),
                None,
            );
        }
        all.gauge(
            "kubelet_managed_ephemeral_containers",
            "[ALPHA] Current number of ephemeral containers in pods managed by this kubelet.",
            &[],
            added as f64,
            None,
        );
        for ([config, lifecycle, origin], count) in working(&pods, sandboxes) {
            all.gauge(
                "kubelet_working_pods",
                "[ALPHA] Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod \
                 is desired, orphaned, or runtime only (also orphaned), and whether the pod is static.",
                &[("config", config), ("lifecycle", lifecycle), ("static", origin)],
                f64::from(count),
                None,
            );
        }
        self.measure_logs(all, &pods);
        self.count_volumes(all, &pods);
    }

    fn measure_logs(&self, all: &mut Exposition, pods: &[Arc<Pod>]) {
        for pod in pods {
            let text = |s: &Option<String>| s.clone().unwrap_or_default();
            let meta = &pod.metadata;
            let (namespace, name, uid) = (text(&meta.namespace), text(&meta.name), text(&meta.uid));
            let dir = self.config.pod_logs(&namespace, &name, &uid);
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let container = entry.file_name().to_string_lossy().into_owned();
                all.gauge(
                    "kubelet_container_log_filesystem_used_bytes",
                    "[ALPHA] Bytes used by the container's logs on the filesystem.",
                    &[("container", &container), ("namespace", &namespace), ("pod", &name), ("uid", &uid)],
                    disk::usage(&entry.path()) as f64,
                    None,
                );
            }
        }
    }

    /// Volumes that pods want, and those that are there.
    fn count_volumes(&self, all: &mut Exposition, pods: &[Arc<Pod>]) {
        let mut found: BTreeMap<(&'static str, &'static str), u32> = BTreeMap::new();
        for pod in pods.iter().filter(|p| !is_terminal(p)) {
            let dir = self.config.pod_dir(pod.metadata.uid.as_deref().unwrap_or_default());
            let claimed = claims::load(&dir);
            for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
                let plugin = plugin(volume, claimed.get(&volume.name));
                *found.entry((plugin, "desired_state_of_world")).or_default() += 1;
                // Volumes are set up before the sandbox, all of them.
                if dir.join("resolv.conf").exists() {
                    *found.entry((plugin, "actual_state_of_world")).or_default() += 1;
                }
            }
        }
        for ((plugin, state), count) in found {
            all.gauge(
                "volume_manager_total_volumes",
                "[ALPHA] Number of volumes in Volume Manager",
                &[("plugin_name", plugin), ("state", state)],
                f64::from(count),
                None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_counted_by_where_they_are() {
        let pod = |uid: &str, more: serde_json::Value| {
            let mut pod = json!({"metadata": {"uid": uid}, "spec": {"containers": []}});
            for (key, value) in more.as_object().unwrap() {
                for (field, value) in value.as_object().unwrap() {
                    pod[key][field] = value.clone();
                }
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let pods = [
            pod("a", json!({})),
            pod("b", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            pod("c", json!({"status": {"phase": "Failed"}})),
            pod("d", json!({"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}})),
        ];
        let found = working(&pods, &[]);
        assert_eq!(found.len(), 12);
        assert_eq!(found[&["desired", "sync", ""]], 1);
        assert_eq!(found[&["desired", "terminating", ""]], 1);
        assert_eq!(found[&["desired", "terminated", ""]], 1);
        assert_eq!(found[&["desired", "sync", "true"]], 1);
        assert_eq!(found.values().sum::<u32>(), 4);
    }
}
