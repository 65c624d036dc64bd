//! Scores by resources, and bringing scores to one scale.

use super::{MAX_NODE_SCORE, NodeInfo, PodInfo, Resources};

/// A resource that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// The node runs as many pods as it may.
    Pods,
    /// CPU.
    Cpu,
    /// Memory.
    Memory,
    /// Local storage.
    EphemeralStorage,
    /// The pod's request at this index of its `scalars`.
    Scalar(usize),
}

/// Calls `found` for each resource the pod lacks on the node; the flag says that it asks for more than the node has
/// at all, so that no other pod's going would help.
pub fn insufficient(pod: &Resources, node: &NodeInfo, mut found: impl FnMut(Lack, bool)) {
    if node.pods().len() as i64 + 1 > node.allowed_pods {
        found(Lack::Pods, false);
    }
    let mut check = |lack, want: i64, have: i64, used: i64| {
        if want > 0 && want > have.saturating_sub(used) {
            found(lack, want > have);
        }
    };
    let (have, used) = (&node.allocatable, node.requested());
    check(Lack::Cpu, pod.milli_cpu, have.milli_cpu, used.milli_cpu);
    check(Lack::Memory, pod.memory, have.memory, used.memory);
    check(Lack::EphemeralStorage, pod.ephemeral_storage, have.ephemeral_storage, used.ephemeral_storage);
    for (index, (name, want)) in pod.scalars.iter().enumerate() {
        check(Lack::Scalar(index), *want, have.scalar(name), used.scalar(name));
    }
}

/// Prefers nodes with much left of CPU and memory, in equal parts, once the pod is there.
pub fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let (used_cpu, used_memory) = node.requested_non_zero();
    let one = |want: i64, used: i64, have: i64| -> Option<i64> {
        if have <= 0 {
            return None;
        }
        let taken = used.saturating_add(want);
        Some(if taken > have {
            0
        } else {
            (i128::from(have - taken) * i128::from(MAX_NODE_SCORE) / i128::from(have)) as i64
        })
    };
    let scores = [
        one(pod.non_zero_milli_cpu, used_cpu, node.allocatable.milli_cpu),
        one(pod.non_zero_memory, used_memory, node.allocatable.memory),
    ];
    let counted = scores.iter().flatten().count() as i64;
    if counted == 0 { 0 } else { scores.iter().flatten().sum::<i64>() / counted }
}

/// Prefers nodes on which CPU and memory are used to the same degree once the pod is there.
pub fn balanced_allocation(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let fraction = |want: i64, used: i64, have: i64| -> Option<f64> {
        (have > 0).then(|| (used.saturating_add(want) as f64 / have as f64).min(1.0))
    };
    let used = node.requested();
    let cpu = fraction(pod.requests.milli_cpu, used.milli_cpu, node.allocatable.milli_cpu);
    let memory = fraction(pod.requests.memory, used.memory, node.allocatable.memory);
    // The standard deviation of two numbers is half their distance.
    let deviation = match (cpu, memory) {
        (Some(cpu), Some(memory)) => ((cpu - memory) / 2.0).abs(),
        _ => 0.0,
    };
    ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
}

/// Brings scores to 0…100 by the highest; `reverse` makes the highest the worst.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores.iter_mut() {
        *score = if max == 0 {
            if reverse { MAX_NODE_SCORE } else { *score }
        } else {
            let scaled = MAX_NODE_SCORE * *score / max;
            if reverse { MAX_NODE_SCORE - scaled } else { scaled }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::node::tests::{node, pod};
    use proptest::prelude::*;

    #[test]
    fn resource_scores_of_known_cases() {
        // 4 CPU, 10 GiB, empty; the pod takes 1 CPU and 5 GiB: 75 and 50.
        let n = node("n", "4", "10Gi");
        let p = pod("p", "1", "5Gi");
        assert_eq!(least_allocated(&p, &n), 62);
        // Fractions 0.25 and 0.5: deviation 0.125.
        assert_eq!(balanced_allocation(&p, &n), 87);
        assert_eq!(balanced_allocation(&pod("q", "2", "5Gi"), &n), 100);
        assert_eq!(least_allocated(&pod("big", "5", "5Gi"), &n), 25);
    }

    #[test]
    fn lacks() {
        let mut n = node("n", "2", "1Gi");
        n.add_pod(pod("there", "1500m", "0").into());
        let lacks = |p: &PodInfo, n: &NodeInfo| {
            let mut out = Vec::new();
            insufficient(&p.requests, n, |lack, never| out.push((lack, never)));
            out
        };
        assert_eq!(lacks(&pod("a", "500m", "1Gi"), &n), []);
        assert_eq!(lacks(&pod("b", "501m", "2Gi"), &n), [(Lack::Cpu, false), (Lack::Memory, true)]);
        n.allowed_pods = 1;
        assert_eq!(lacks(&pod("c", "0", "0"), &n), [(Lack::Pods, false)]);
    }

    #[test]
    fn normalizing() {
        let mut scores = [0, 5, 10];
        normalize(&mut scores, false);
        assert_eq!(scores, [0, 50, 100]);
        normalize(&mut scores, true);
        assert_eq!(scores, [100, 50, 0]);
        let mut none = [0, 0];
        normalize(&mut none, true);
        assert_eq!(none, [100, 100]);
    }

    proptest! {
        #[test]
        fn scores_stay_in_range(cpu in 0i64..1 << 50, memory in 0i64..1 << 50, have in 0i64..1 << 50) {
            let mut n = node("n", "0", "0");
            n.allocatable.milli_cpu = have;
            n.allocatable.memory = have / 3;
            let mut p = pod("p", "0", "0");
            p.requests.milli_cpu = cpu;
            p.requests.memory = memory;
            p.non_zero_milli_cpu = cpu;
            p.non_zero_memory = memory;
            for score in [least_allocated(&p, &n), balanced_allocation(&p, &n)] {
                prop_assert!((0..=MAX_NODE_SCORE).contains(&score), "{}", score);
            }
        }

        #[test]
        fn a_pod_that_fits_leaves_no_lack_and_others_do(cpu in 0i64..5000, used in 0i64..5000, have in 0i64..5000) {
            let mut n = node("n", "0", "0");
            n.allocatable.milli_cpu = have;
            let mut there = pod("there", "0", "0");
            there.requests.milli_cpu = used;
            n.add_pod(there.into());
            let request = Resources { milli_cpu: cpu, ..Resources::default() };
            let mut lacks = 0;
            insufficient(&request, &n, |_, _| lacks += 1);
            prop_assert_eq!(lacks == 0, cpu == 0 || used + cpu <= have);
        }
    }
}
