//! Pods that fill the node's disk beyond what they may: emptyDir sizeLimit and ephemeral-storage limits.
//!
//! Nothing tells that a directory has grown, so those pods that have a limit are measured now and then, as upstream
//! does.

use super::{Wake, Worker, after};
use crate::disk;
use crate::network::PodNetwork;
use crate::pod::events::Kind;
use crate::runtime::Runtime;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kelp_model::pod::spec::containers;
use kelp_model::pod::view::Observed;
use kelp_model::quantity::Quantity;
use std::path::PathBuf;
use std::time::Duration;

/// How often a pod with limits is measured: upstream's period of its eviction manager.
const PERIOD: Duration = Duration::from_secs(10);
/// Seconds that the containers of such a pod get to stop.
const GRACE: i64 = 1;

/// What a pod may write.
#[derive(Debug, Default)]
struct Limits {
    /// emptyDir volumes on disk: name, and limit if there is one.
    volumes: Vec<(String, Option<ApiQuantity>)>,
    /// Containers with a limit.
    containers: Vec<(String, ApiQuantity)>,
    /// The limits of all containers together.
    total: Option<Quantity>,
}

fn amount(quantity: &ApiQuantity) -> Quantity {
    Quantity::parse(&quantity.0).unwrap_or(Quantity::ZERO)
}

fn bytes(quantity: Quantity) -> u64 {
    u64::try_from(quantity.value()).unwrap_or(0)
}

fn limits(pod: &Pod) -> Limits {
    let mut found = Limits::default();
    let Some(spec) = &pod.spec else { return found };
    for volume in spec.volumes.iter().flatten() {
        if let Some(empty) =
            volume.empty_dir.as_ref().filter(|e| e.medium.as_deref().unwrap_or_default().is_empty())
        {
            let limit = empty.size_limit.clone().filter(|q| amount(q).signum() > 0);
            found.volumes.push((volume.name.clone(), limit));
        }
    }
    for (_, container) in containers(spec) {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        if let Some(limit) = limits.and_then(|l| l.get("ephemeral-storage")) {
            found.containers.push((container.name.clone(), limit.clone()));
            found.total = Some(found.total.unwrap_or(Quantity::ZERO) + amount(limit));
        }
    }
    found
}

impl Limits {
    fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.volumes.iter().all(|(_, limit)| limit.is_none())
    }

    /// Upstream's text about the first limit that is exceeded. `volumes` and `containers` are bytes in use.
    fn exceeded(&self, volumes: &[u64], containers: &[(String, u64)]) -> Option<String> {
        for ((name, limit), used) in self.volumes.iter().zip(volumes) {
            if let Some(limit) = limit.as_ref().filter(|limit| *used > bytes(amount(limit))) {
                let shown = amount(limit);
                return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit \"{shown}\". "));
            }
        }
        let all: u64 = volumes.iter().sum::<u64>() + containers.iter().map(|(_, used)| used).sum::<u64>();
        if let Some(total) = self.total.filter(|total| all > bytes(*total)) {
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
            ));
        }
        let over = self.containers.iter().find(|(name, limit)| {
            containers.iter().any(|(n, used)| n == name && *used > bytes(amount(limit)))
        });
        let (name, limit) = over?;
        Some(format!("Container {name} exceeded its local ephemeral storage limit \"{}\". ", amount(limit)))
    }
}

impl<R: Runtime, N: PodNetwork> Worker<R, N> {
    /// Measures the pod when it is time to. `true`: it uses too much and has to end; else when to look again.
    pub(super) async fn uses_too_much(&mut self, observed: &Observed) -> (bool, Wake) {
        let limits = limits(&self.pod);
        let isolates = self.context.config.kubelet.settings.local_storage_capacity_isolation;
        if !isolates || limits.is_empty() || observed.containers.is_empty() {
            return (false, None);
        }
        let now = Timestamp::now();
        if let Some(at) = self.measure_at.filter(|at| *at > now) {
            return (false, Some(at));
        }
        let first = self.measure_at.is_none();
        self.measure_at = after(PERIOD);
        if first {
            return (false, self.measure_at);
        }
        let uid = self.reference.uid.clone();
        let mut written = Vec::new();
        for record in &observed.containers {
            let id = format!("{}.{}", record.name, record.attempt);
            let used = self.context.runtime.writable_bytes(&uid, &id).await.unwrap_or(0);
            written.push((record.name.clone(), used));
        }
        let config = &self.context.config;
        let volumes_dir = config.pod_dir(&uid).join("volumes");
        let dirs: Vec<PathBuf> = limits.volumes.iter().map(|(name, _)| volumes_dir.join(name)).collect();
        let logs = config.pod_logs(&self.reference.namespace, &self.reference.name, &uid);
        let measured = tokio::task::spawn_blocking(move || {
            for (name, used) in &mut written {
                *used += disk::usage(&logs.join(&*name));
            }
            (dirs.iter().map(|dir| disk::usage(dir)).collect::<Vec<u64>>(), written)
        });
        let Ok((volumes, containers)) = measured.await else { return (false, self.measure_at) };
        let Some(text) = limits.exceeded(&volumes, &containers) else { return (false, self.measure_at) };
        self.context.events.pod(&self.reference, Kind::Warning, "Evicted", text.clone());
        self.evicted = Some(("Evicted".into(), text));
        self.grace = Some(GRACE);
        (true, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_of_upstream() {
        let pod: Pod = serde_json::from_value(
            json!({"spec": {"volumes": [{"name": "d", "emptyDir": {"sizeLimit": "5Mi"}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}], "containers":
            [{"name": "a", "resources": {"limits": {"ephemeral-storage": "3Mi"}}},
             {"name": "b", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}]}}),
        )
        .unwrap();
        let limits = limits(&pod);
        assert!(!limits.is_empty() && limits.volumes.len() == 1);
        let mib = 1 << 20;
        let of = |volume: u64, a: u64, b: u64| {
            limits.exceeded(&[volume * mib], &[("a".into(), a * mib), ("b".into(), b * mib)])
        };
        assert_eq!(of(1, 1, 1), None);
        assert_eq!(of(6, 0, 0).unwrap(), "Usage of EmptyDir volume \"d\" exceeds the limit \"5Mi\". ");
        assert_eq!(
            of(2, 2, 2).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "
        );
        assert_eq!(of(0, 0, 3).unwrap(), "Container b exceeded its local ephemeral storage limit \"2Mi\". ");
        let none: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "a"}]}})).unwrap();
        assert!(super::limits(&none).is_empty());
    }
}
