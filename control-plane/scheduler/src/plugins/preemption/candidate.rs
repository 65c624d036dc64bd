//! Which node's pods to evict.

use kelp_model::scheduling::PodInfo;
use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

/// A node and the pods that would have to go.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The node.
    pub node: Arc<str>,
    /// The pods, most important first.
    pub victims: Vec<Arc<PodInfo>>,
}

/// Orders pods by priority, then by how long they run.
pub fn most_important_first(a: &Arc<PodInfo>, b: &Arc<PodInfo>) -> Ordering {
    let started = |pod: &PodInfo| pod.started.map_or(i128::MAX, |t| t.as_nanosecond());
    b.priority.cmp(&a.priority).then_with(|| started(a).cmp(&started(b)))
}

impl Candidate {
    /// The best: lowest priority of its most important victim, then lowest sum of priorities, then fewest victims, then
    /// the one whose most important victims started last; the first among equals.
    pub fn best(candidates: Vec<Self>) -> Option<Self> {
        candidates.into_iter().min_by_key(Self::cost)
    }

    fn cost(&self) -> (i32, i64, usize, Reverse<i128>) {
        let highest = self.victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
        // Offset so that also a victim of negative priority adds to the sum.
        let sum = self.victims.iter().map(|v| i64::from(v.priority) - i64::from(i32::MIN)).sum();
        let earliest = self
            .victims
            .iter()
            .filter(|v| v.priority == highest)
            .map(|v| v.started.map_or(i128::MAX, |t| t.as_nanosecond()))
            .min();
        (highest, sum, self.victims.len(), Reverse(earliest.unwrap_or(i128::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(node: &str, victims: &[(i32, i64)]) -> Candidate {
        let pod = |(priority, started): &(i32, i64)| {
            let started = jiff::Timestamp::from_second(*started).ok();
            Arc::new(PodInfo { priority: *priority, started, ..PodInfo::default() })
        };
        Candidate { node: node.into(), victims: victims.iter().map(pod).collect() }
    }

    #[test]
    fn the_cheapest_is_taken() {
        for (candidates, want) in [
            (vec![candidate("a", &[(100, 0)]), candidate("b", &[(10, 0), (10, 0)])], "b"),
            (vec![candidate("a", &[(10, 0), (10, 0)]), candidate("b", &[(10, 0)])], "b"),
            (vec![candidate("a", &[(10, 5)]), candidate("b", &[(10, 9)]), candidate("c", &[(10, 7)])], "b"),
            (vec![candidate("a", &[(10, 5)]), candidate("b", &[(10, 5)])], "a"),
            (vec![candidate("a", &[(-5, 0), (-5, 0)]), candidate("b", &[(-5, 0), (-9, 0), (-9, 0)])], "a"),
        ] {
            assert_eq!(&*Candidate::best(candidates).expect("candidate").node, want);
        }
        assert!(Candidate::best(Vec::new()).is_none());
    }
}
