//! Preferring nodes that have a pod's images.

use super::MAX_NODE_SCORE;

/// Images smaller than this together are not worth a preference, bytes.
const MIN_BYTES: i64 = 23 * 1024 * 1024;
/// More than this per container adds nothing, bytes.
const MAX_BYTES_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

/// An image's name with a tag: `latest` if it has neither tag nor digest.
pub fn normalized(name: &str) -> String {
    // A colon before the last slash belongs to the registry's port.
    if name.rfind(':').is_none_or(|colon| name.rfind('/').is_some_and(|slash| slash > colon)) {
        format!("{name}:latest")
    } else {
        name.to_owned()
    }
}

/// What one image on the node adds: its size, scaled by the share of nodes that have it, so that pods do not all go
/// where an image happens to be first.
pub fn share(bytes: i64, nodes_with_it: usize, nodes: usize) -> i64 {
    (bytes as f64 * (nodes_with_it as f64 / nodes.max(1) as f64)) as i64
}

/// The score of a node that has images of these (scaled) bytes in all.
pub fn score(sum: i64, containers: usize) -> i64 {
    let max = MAX_BYTES_PER_CONTAINER.saturating_mul(containers.max(1) as i64);
    let sum = sum.clamp(MIN_BYTES, max);
    MAX_NODE_SCORE * (sum - MIN_BYTES) / (max - MIN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_scores() {
        assert_eq!(normalized("nginx"), "nginx:latest");
        assert_eq!(normalized("r.example:5000/a/b"), "r.example:5000/a/b:latest");
        assert_eq!(normalized("r.example:5000/a/b:1"), "r.example:5000/a/b:1");
        assert_eq!(normalized("a@sha256:00"), "a@sha256:00");
        assert_eq!(score(0, 1), 0);
        assert_eq!(score(i64::MAX, 2), MAX_NODE_SCORE);
        assert_eq!(score(MIN_BYTES + (MAX_BYTES_PER_CONTAINER - MIN_BYTES) / 2, 1), 50);
        assert_eq!(share(1000, 1, 4), 250);
    }
}
