//! What a pod counts as, and which pods go first when there are too many.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// Annotation that lowers or raises a pod's cost of deletion (a 32-bit integer, default 0).
pub const POD_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The condition of a type, if the pod has it.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_deref()?.iter().find(|c| c.type_ == kind)
}

/// Whether the pod's `Ready` condition is `True`.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// The pod's phase, empty when it has no status.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether all containers have ended for good.
#[must_use]
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether a deletion was asked for.
#[must_use]
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod counts as a replica: neither ended nor being deleted.
#[must_use]
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_terminating(pod)
}

/// When the pod is available: `Ok(())` now, `Err(Some(wait))` after it stays ready for `wait` longer,
/// `Err(None)` when it is not ready.
///
/// # Errors
/// The time to wait, if time alone makes it available.
pub fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Result<(), Option<SignedDuration>> {
    let Some(ready) = condition(pod, "Ready").filter(|c| c.status == "True") else { return Err(None) };
    if min_ready_seconds <= 0 {
        return Ok(());
    }
    let Some(since) = &ready.last_transition_time else { return Err(None) };
    let wait = SignedDuration::from_secs(min_ready_seconds.into()) - now.duration_since(since.0);
    if wait <= SignedDuration::ZERO { Ok(()) } else { Err(Some(wait)) }
}

/// The pod's cost of deletion; a value that is no 32-bit integer counts as 0.
#[must_use]
pub fn deletion_cost(pod: &Pod) -> i32 {
    let annotations: Option<&BTreeMap<String, String>> = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|a| a.get(POD_DELETION_COST))
        .filter(|v| {
            let digits = v.strip_prefix('-').unwrap_or(v);
            !v.starts_with('+') && (digits == "0" || !digits.starts_with('0'))
        })
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// Orders pods so that those to delete first come first.
///
/// In this order: not bound to a node; Pending before Unknown before Running; not ready; lower deletion cost;
/// more pods of the same group on its node (`related`: active pods a node); ready for a shorter time; more restarts;
/// younger. Times are compared on a logarithmic scale, so that among pods of about one age the choice is
/// arbitrary (by UID) and does not always hit the youngest.
pub fn sort_for_deletion<P: AsRef<Pod>>(pods: &mut [P], related: &HashMap<String, usize>, now: Timestamp) {
    pods.sort_by(|a, b| compare_for_deletion(a.as_ref(), b.as_ref(), related, now));
}

fn compare_for_deletion(a: &Pod, b: &Pod, related: &HashMap<String, usize>, now: Timestamp) -> Ordering {
    fn node(pod: &Pod) -> &str {
        pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
    }
    fn phase_rank(pod: &Pod) -> u8 {
        match phase(pod) {
            "Pending" | "" => 0,
            "Unknown" => 1,
            _ => 2,
        }
    }
    fn ready_since(pod: &Pod) -> Option<Timestamp> {
        let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
        ready.last_transition_time.as_ref().map(|t| t.0)
    }
    let on_node = |pod: &Pod| related.get(node(pod)).copied().unwrap_or(0);
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0);

    let bound = |pod: &Pod| !node(pod).is_empty();
    bound(a)
        .cmp(&bound(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| on_node(b).cmp(&on_node(a)))
        .then_with(|| match (is_ready(a), is_ready(b)) {
            (true, true) => younger_first(ready_since(a), ready_since(b), now),
            _ => Ordering::Equal,
        })
        .then_with(|| max_restarts(b).cmp(&max_restarts(a)))
        .then_with(|| younger_first(created(a), created(b), now))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

/// No time counts as the youngest; times inside one power of two of seconds count as equal. (Letting the UID decide
/// here already would not be an order: two pods of equal times would still differ by restarts.)
fn younger_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let age = |t: Option<Timestamp>| t.map_or(-2, |t| log_age(t, now));
    age(a).cmp(&age(b))
}

fn log_age(t: Timestamp, now: Timestamp) -> i64 {
    let seconds = now.duration_since(t).as_millis() / 1000;
    if seconds <= 0 { -1 } else { i64::from(seconds.ilog2()) }
}

fn max_restarts(pod: &Pod) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let restartable = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    let sidecars: Vec<&str> = restartable
        .filter(|c| c.restart_policy.as_deref() == Some("Always"))
        .map(|c| c.name.as_str())
        .collect();
    let containers = status.container_statuses.iter().flatten();
    let inits =
        status.init_container_statuses.iter().flatten().filter(|c| sidecars.contains(&c.name.as_str()));
    containers.chain(inits).map(|c| c.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests;
