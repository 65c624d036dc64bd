//! A host that shuts down: which pods end when, by upstream's rules.

use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// How long pods of at least a priority get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// Least priority of such pods.
    pub priority: i32,
    /// Time to stop, seconds.
    pub seconds: i64,
}

/// Pods that end together.
#[derive(Debug, Clone)]
pub struct Group {
    /// Time they get, seconds.
    pub seconds: i64,
    /// The pods.
    pub pods: Vec<Arc<Pod>>,
}

/// The groups in the order in which they end: the lowest priority first. `periods` are ordered by priority; a pod below
/// the lowest is of the lowest. Groups without pods are left out: nobody waits for them.
pub fn groups(periods: &[Period], pods: impl IntoIterator<Item = Arc<Pod>>) -> Vec<Group> {
    let mut groups: Vec<Group> =
        periods.iter().map(|p| Group { seconds: p.seconds, pods: Vec::new() }).collect();
    for pod in pods {
        let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        let above = periods.partition_point(|p| p.priority <= priority);
        if let Some(group) = groups.get_mut(above.saturating_sub(1)) {
            group.pods.push(pod);
        }
    }
    groups.retain(|g| !g.pods.is_empty());
    groups
}

/// How long the whole shutdown may be held up, seconds.
pub fn total(periods: &[Period]) -> i64 {
    periods.iter().map(|p| p.seconds.max(0)).fold(0, i64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod(priority: i32) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": priority.to_string()}, "spec": {"priority": priority, "containers": []}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn names(groups: &[Group]) -> Vec<(i64, Vec<String>)> {
        let name = |p: &Arc<Pod>| p.metadata.name.clone().unwrap_or_default();
        groups.iter().map(|g| (g.seconds, g.pods.iter().map(name).collect())).collect()
    }

    #[test]
    fn pods_end_with_those_of_their_range() {
        let periods =
            [(0, 20), (100, 7), (2_000_000_000, 10)].map(|(priority, seconds)| Period { priority, seconds });
        let found = groups(&periods, [-5, 0, 99, 2_000_001_000].map(pod));
        let expected =
            [(20, vec!["-5".to_owned(), "0".into(), "99".into()]), (10, vec!["2000001000".to_owned()])];
        assert_eq!(names(&found), expected);
        assert_eq!(names(&groups(&periods, [pod(100)])), [(7, vec!["100".to_owned()])]);
        assert_eq!(total(&periods), 37);
        assert!(groups(&[], [pod(1)]).is_empty());
    }

    proptest! {
        #[test]
        fn every_pod_is_in_one_group_and_higher_ones_are_later(
            mut limits in proptest::collection::btree_set(-10i32..10, 1..5),
            priorities in proptest::collection::vec(-15i32..15, 0..20),
        ) {
            let periods: Vec<Period> = std::mem::take(&mut limits)
                .into_iter()
                .enumerate()
                .map(|(i, priority)| Period { priority, seconds: i64::try_from(i).unwrap() })
                .collect();
            let found = groups(&periods, priorities.iter().map(|p| pod(*p)));
            let all: Vec<Vec<i32>> = found
                .iter()
                .map(|g| g.pods.iter().map(|p| p.spec.as_ref().unwrap().priority.unwrap()).collect())
                .collect();
            prop_assert_eq!(all.iter().map(Vec::len).sum::<usize>(), priorities.len());
            for pair in all.windows(2) {
                prop_assert!(pair[0].iter().max() < pair[1].iter().min());
            }
        }
    }
}
