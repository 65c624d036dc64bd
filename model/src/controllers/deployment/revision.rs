//! Revision numbers and the annotations a Deployment keeps on its ReplicaSets.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ReplicaSet;

/// The revision of a Deployment or of a ReplicaSet's template.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revisions of a ReplicaSet whose template was used again, separated by commas.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The deployment's size when the ReplicaSet was last sized.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The deployment's size and surge when the ReplicaSet was last sized.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Why a revision was made (shown by `kubectl rollout history`).
pub const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

/// Annotations of a Deployment that its ReplicaSets do not inherit.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// Longest revision history kept, in bytes.
const MAX_HISTORY: usize = 2000;

/// The revision of a ReplicaSet, if its annotation is a number.
#[must_use]
pub fn revision(rs: &ReplicaSet) -> Option<i64> {
    rs.metadata.annotations.as_ref()?.get(REVISION)?.parse().ok()
}

/// The highest revision of the sets, 0 for none.
#[must_use]
pub fn max_revision<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    sets.into_iter().filter_map(revision).max().unwrap_or(0)
}

/// The annotations of the new ReplicaSet: those of the deployment, with `next` as its revision and, when the set was
/// an older revision before, that one added to its history.
#[must_use]
pub fn next_annotations(
    deployment: &BTreeMap<String, String>,
    set: &BTreeMap<String, String>,
    next: i64,
) -> BTreeMap<String, String> {
    let mut out = set.clone();
    for (key, value) in deployment {
        if !NOT_COPIED.contains(&key.as_str()) {
            out.insert(key.clone(), value.clone());
        }
    }
    let before = set.get(REVISION);
    let number = match before.map(|r| r.parse::<i64>()) {
        None => 0,
        Some(Ok(number)) => number,
        // Someone else's writing: do not touch.
        Some(Err(_)) => return out,
    };
    if number < next {
        out.insert(REVISION.into(), next.to_string());
        if let Some(before) = before {
            let history = out.get(REVISION_HISTORY).map_or("", String::as_str);
            let mut history: Vec<&str> = history.split(',').filter(|r| !r.is_empty()).collect();
            history.push(before);
            while history.iter().map(|r| r.len() + 1).sum::<usize>() > MAX_HISTORY && history.len() > 1 {
                history.remove(0);
            }
            let history = history.join(",");
            out.insert(REVISION_HISTORY.into(), history);
        }
    }
    out
}
