//! Spreading pods over topologies.

use super::interpod::selector_with_keys;
use super::node::ZONE_LABEL;
use super::{LabelMap, MAX_NODE_SCORE, NodeInfo, PodInfo, taint};
use crate::selector::Selector;
use k8s_openapi::api::core::v1 as api;
use std::collections::HashMap;
use std::sync::Arc;

/// Label of a node's host name: a topology of its own for each node.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// How pods of a kind are spread over the values of a label.
#[derive(Debug, Clone)]
pub struct SpreadConstraint {
    /// How far counts may differ, from 1.
    pub max_skew: i64,
    /// Label whose values are the domains.
    pub topology_key: Arc<str>,
    /// Pods that are counted, in the pod's own namespace.
    pub selector: Selector,
    /// With fewer domains than this the smallest count is taken as 0.
    pub min_domains: usize,
    /// A pod that cannot fulfil it is not scheduled; otherwise it is a wish.
    pub required: bool,
    /// Only nodes that the pod's node affinity allows are counted.
    pub honor_affinity: bool,
    /// Only nodes whose taints the pod tolerates are counted.
    pub honor_taints: bool,
}

impl SpreadConstraint {
    /// The API type's constraint, of a pod with `labels`.
    pub fn from_api(c: &api::TopologySpreadConstraint, labels: &LabelMap) -> Self {
        Self {
            max_skew: c.max_skew.into(),
            topology_key: c.topology_key.as_str().into(),
            selector: selector_with_keys(
                c.label_selector.as_ref(),
                labels,
                c.match_label_keys.as_ref(),
                None,
            ),
            min_domains: c.min_domains.and_then(|n| usize::try_from(n).ok()).unwrap_or(1),
            required: c.when_unsatisfiable != "ScheduleAnyway",
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    fn counts_node(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        (!self.honor_affinity || pod.node_selector.matches_node(node))
            && (!self.honor_taints || taint::tolerated(&node.taints, &pod.tolerations))
    }

    fn counts_pod(&self, pod: &PodInfo, other: &PodInfo) -> bool {
        !other.terminating && other.namespace == pod.namespace && self.selector.matches(&other.labels)
    }

    fn count_on(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        if self.selector.is_everything() || self.selector.is_nothing() {
            return 0;
        }
        node.pods().iter().filter(|other| self.counts_pod(pod, other)).count() as i64
    }
}

fn has_all_keys<'a>(constraints: impl IntoIterator<Item = &'a SpreadConstraint>, node: &NodeInfo) -> bool {
    constraints.into_iter().all(|c| node.labels.get(&c.topology_key).is_some())
}

/// Why a node does not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// It is in no domain.
    MissingLabel,
    /// Its domain has too many already.
    Skew,
}

/// Pods by domain for each required constraint of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domains(Vec<Domain>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Domain {
    counts: HashMap<Arc<str>, i64>,
    smallest: i64,
    matches_itself: bool,
}

impl Domain {
    fn update_smallest(&mut self, constraint: &SpreadConstraint) {
        self.smallest = if self.counts.len() < constraint.min_domains {
            0
        } else {
            self.counts.values().copied().min().unwrap_or(i64::from(i32::MAX))
        };
    }
}

fn required(pod: &PodInfo) -> impl Iterator<Item = &SpreadConstraint> {
    pod.spread.iter().filter(|c| c.required)
}

impl Domains {
    /// Counts the pods on `nodes`; `None` if the pod has no required constraint.
    pub fn count<'a>(pod: &PodInfo, nodes: impl IntoIterator<Item = &'a NodeInfo>) -> Option<Self> {
        required(pod).next()?;
        let mut domains = required(pod)
            .map(|c| Domain { matches_itself: c.selector.matches(&pod.labels), ..Domain::default() })
            .collect::<Vec<_>>();
        for node in nodes {
            if !has_all_keys(required(pod), node) {
                continue;
            }
            for (c, domain) in required(pod).zip(&mut domains) {
                if let Some(value) = node.labels.get(&c.topology_key).filter(|_| c.counts_node(pod, node)) {
                    *domain.counts.entry(value.clone()).or_default() += c.count_on(pod, node);
                }
            }
        }
        for (c, domain) in required(pod).zip(&mut domains) {
            domain.update_smallest(c);
        }
        Some(Self(domains))
    }

    /// Counts one more (`by` 1) or less (−1) of the pods on a node.
    pub fn change(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        if !has_all_keys(required(pod), node) {
            return;
        }
        for (c, domain) in required(pod).zip(&mut self.0) {
            let counted = !c.selector.is_everything() && c.counts_pod(pod, other) && c.counts_node(pod, node);
            if let Some(value) = node.labels.get(&c.topology_key).filter(|_| counted) {
                *domain.counts.entry(value.clone()).or_default() += by;
                domain.update_smallest(c);
            }
        }
    }

    /// Judges a node.
    pub fn check(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Violation> {
        for (c, domain) in required(pod).zip(&self.0) {
            let value = node.labels.get(&c.topology_key).ok_or(Violation::MissingLabel)?;
            let there = domain.counts.get(value).copied().unwrap_or(0);
            if there + i64::from(domain.matches_itself) - domain.smallest > c.max_skew {
                return Err(Violation::Skew);
            }
        }
        Ok(())
    }
}

/// What the wished-for constraints say about the nodes that fit.
#[derive(Debug, Clone)]
pub struct Wishes {
    constraints: Vec<Wish>,
    /// Nodes without all the labels get no score.
    all_keys: bool,
}

#[derive(Debug, Clone)]
struct Wish {
    constraint: SpreadConstraint,
    /// None for the host name: each node is its own domain.
    counts: Option<HashMap<Arc<str>, i64>>,
    weight: f64,
}

impl Wishes {
    /// Counts the pods of `all` nodes in the domains of the nodes that `fit`. With `all_keys` (constraints of the pod
    /// itself, not defaults) nodes that lack one of the labels do not take part. `None` if there is nothing to wish.
    pub fn count<'a>(
        pod: &PodInfo,
        constraints: impl IntoIterator<Item = &'a SpreadConstraint>,
        all_keys: bool,
        fit: &[&NodeInfo],
        all: impl IntoIterator<Item = &'a NodeInfo>,
    ) -> Option<Self> {
        let mut wishes = constraints
            .into_iter()
            .filter(|c| !c.required)
            .map(|c| Wish {
                constraint: c.clone(),
                counts: (*c.topology_key != *HOSTNAME_LABEL).then(HashMap::new),
                weight: 0.0,
            })
            .collect::<Vec<_>>();
        if wishes.is_empty() {
            return None;
        }
        let keys = wishes.iter().map(|w| w.constraint.topology_key.clone()).collect::<Vec<_>>();
        let takes_part = |node: &NodeInfo| !all_keys || keys.iter().all(|key| node.labels.get(key).is_some());
        let mut taking_part = 0;
        for node in fit.iter().filter(|node| takes_part(node)) {
            taking_part += 1;
            for wish in &mut wishes {
                if let (Some(counts), Some(value)) =
                    (&mut wish.counts, node.labels.get(&wish.constraint.topology_key))
                {
                    counts.entry(value.clone()).or_insert(0);
                }
            }
        }
        for wish in &mut wishes {
            let size = wish.counts.as_ref().map_or(taking_part, HashMap::len);
            // Many small domains must not drown few large ones.
            wish.weight = (size as f64 + 2.0).ln();
        }
        for node in all {
            if !takes_part(node) {
                continue;
            }
            for wish in &mut wishes {
                let Some(counts) = &mut wish.counts else { continue };
                let Some(value) = node.labels.get(&wish.constraint.topology_key) else { continue };
                if let Some(count) = counts.get_mut(value).filter(|_| wish.constraint.counts_node(pod, node))
                {
                    *count += wish.constraint.count_on(pod, node);
                }
            }
        }
        Some(Self { constraints: wishes, all_keys })
    }

    /// Score of a node before [`Wishes::normalize`], lower is better; `None` if it takes no part.
    pub fn score(&self, pod: &PodInfo, node: &NodeInfo) -> Option<i64> {
        if self.all_keys && !has_all_keys(self.constraints.iter().map(|w| &w.constraint), node) {
            return None;
        }
        let mut score = 0.0;
        for wish in &self.constraints {
            let Some(value) = node.labels.get(&wish.constraint.topology_key) else { continue };
            let count = match &wish.counts {
                Some(counts) => counts.get(value).copied().unwrap_or(0),
                None => wish.constraint.count_on(pod, node),
            };
            score += count as f64 * wish.weight + (wish.constraint.max_skew - 1) as f64;
        }
        Some(score.round() as i64)
    }

    /// Brings scores to 0…100, fewest pods first; nodes that take no part get 0.
    pub fn normalize(scores: &mut [Option<i64>]) {
        let (Some(min), Some(max)) = (scores.iter().flatten().min(), scores.iter().flatten().max()) else {
            return;
        };
        let (min, max) = (*min, *max);
        for score in scores.iter_mut().flatten() {
            *score = if max == 0 { MAX_NODE_SCORE } else { MAX_NODE_SCORE * (max + min - *score) / max };
        }
    }
}

/// The wish that holds for pods of a set without constraints of their own: spread over zones and hosts.
///
/// Upstream's default constraints (zone with a skew of 5, host name with 3), where the pods that count are those of
/// the same set.
#[derive(Debug, Clone, Default)]
pub struct SetWish {
    hosts: HashMap<Arc<str>, i64>,
    zones: HashMap<Arc<str>, i64>,
    host_weight: f64,
    zone_weight: f64,
}

/// Allowed skew over hosts, as upstream's default constraint has it.
const SET_HOST_SKEW: i64 = 3;
/// Allowed skew over zones.
const SET_ZONE_SKEW: i64 = 5;

impl SetWish {
    /// Takes the nodes that `fit`, and the numbers of the set's pods on the nodes that have any.
    pub fn count<'a>(
        pod: &PodInfo,
        fit: &[&NodeInfo],
        there: impl IntoIterator<Item = (&'a NodeInfo, i64)>,
    ) -> Self {
        let mut zones: HashMap<_, _> =
            fit.iter().filter_map(|node| Some((node.labels.get(ZONE_LABEL)?.clone(), 0))).collect();
        let mut hosts = HashMap::new();
        for (node, count) in there {
            hosts.insert(node.name.clone(), count);
            if let Some(zone) = node.labels.get(ZONE_LABEL).and_then(|zone| zones.get_mut(zone))
                && pod.node_selector.matches_node(node)
            {
                *zone += count;
            }
        }
        let weight = |domains: usize| (domains as f64 + 2.0).ln();
        Self { host_weight: weight(fit.len()), zone_weight: weight(zones.len()), hosts, zones }
    }

    /// Score of a node before [`Wishes::normalize`], lower is better.
    pub fn score(&self, node: &NodeInfo) -> i64 {
        let on_host = self.hosts.get(&node.name).copied().unwrap_or(0);
        let mut score = on_host as f64 * self.host_weight + (SET_HOST_SKEW - 1) as f64;
        if let Some(zone) = node.labels.get(ZONE_LABEL) {
            let in_zone = self.zones.get(zone).copied().unwrap_or(0);
            score += in_zone as f64 * self.zone_weight + (SET_ZONE_SKEW - 1) as f64;
        }
        score.round() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::node::tests::{labelled_node, pod_of};
    use proptest::prelude::*;

    fn pod(name: &str, constraints: serde_json::Value) -> PodInfo {
        pod_of(
            name,
            serde_json::json!({"containers": [], "topologySpreadConstraints": constraints}),
            &[("app", "web")],
        )
    }

    fn constraint(key: &str, skew: i32, when: &str) -> serde_json::Value {
        serde_json::json!({"maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}}})
    }

    fn zones(counts: &[usize]) -> Vec<NodeInfo> {
        let names = ["a", "b", "c", "d"];
        counts
            .iter()
            .zip(names)
            .map(|(count, zone)| {
                let mut n = labelled_node(zone, "1", "1", &[("zone", zone), (HOSTNAME_LABEL, zone)]);
                for i in 0..*count {
                    n.add_pod(pod(&format!("{zone}{i}"), serde_json::json!([])).into());
                }
                n
            })
            .collect()
    }

    fn judge(p: &PodInfo, nodes: &[NodeInfo]) -> Vec<Option<Violation>> {
        let domains = Domains::count(p, nodes).expect("constraints");
        nodes.iter().map(|n| domains.check(p, n).err()).collect()
    }

    #[test]
    fn required_constraints() {
        use Violation::*;
        let p = pod("p", serde_json::json!([constraint("zone", 1, "DoNotSchedule")]));
        assert_eq!(judge(&p, &zones(&[2, 1, 1])), [Some(Skew), None, None]);
        assert_eq!(judge(&p, &zones(&[2, 2, 2])), [None, None, None]);
        let mut nodes = zones(&[1, 0]);
        nodes.push(labelled_node("x", "1", "1", &[]));
        assert_eq!(judge(&p, &nodes), [Some(Skew), None, Some(MissingLabel)]);
        let mut few = constraint("zone", 1, "DoNotSchedule");
        few["minDomains"] = 3.into();
        assert_eq!(judge(&pod("p", serde_json::json!([few])), &zones(&[1, 1])), [Some(Skew), Some(Skew)]);
        assert!(Domains::count(&pod("p", serde_json::json!([])), &nodes).is_none());
    }

    #[test]
    fn nodes_the_pod_cannot_use_are_not_counted() {
        let mut p = pod("p", serde_json::json!([constraint("zone", 1, "DoNotSchedule")]));
        p.node_selector = super::super::NodeSelector::from_api(
            None,
            Some(
                &serde_json::from_value(serde_json::json!({"nodeSelectorTerms": [{"matchExpressions":
                [{"key": "zone", "operator": "NotIn", "values": ["c"]}]}]}))
                .expect("selector"),
            ),
        );
        // Zone c, empty, would make the others too full.
        assert_eq!(judge(&p, &zones(&[1, 1, 0]))[..2], [None, None]);
        p.spread[0].honor_affinity = false;
        assert_eq!(judge(&p, &zones(&[1, 1, 0]))[..2], [Some(Violation::Skew), Some(Violation::Skew)]);
    }

    #[test]
    fn wishes_prefer_the_emptier_domain() {
        let p = pod(
            "p",
            serde_json::json!([
                constraint("zone", 1, "ScheduleAnyway"),
                constraint(HOSTNAME_LABEL, 1, "ScheduleAnyway")
            ]),
        );
        let mut nodes = zones(&[3, 1, 0]);
        nodes.push(labelled_node("x", "1", "1", &[]));
        let fit = nodes.iter().collect::<Vec<_>>();
        let wishes = Wishes::count(&p, &p.spread, true, &fit, &nodes).expect("wishes");
        let mut scores = nodes.iter().map(|n| wishes.score(&p, n)).collect::<Vec<_>>();
        Wishes::normalize(&mut scores);
        assert_eq!(scores, [Some(0), Some(70), Some(100), None]);
    }

    #[test]
    fn a_set_prefers_empty_hosts_in_empty_zones() {
        let host = |name: &str, zone: &str| labelled_node(name, "1", "1", &[(ZONE_LABEL, zone)]);
        let nodes = [host("a1", "a"), host("a2", "a"), host("b1", "b"), host("b2", "b")];
        let fit = nodes.iter().collect::<Vec<_>>();
        let wish = SetWish::count(&pod("p", serde_json::json!([])), &fit, [(&nodes[0], 2), (&nodes[2], 1)]);
        let mut scores = nodes.iter().map(|n| Some(wish.score(n))).collect::<Vec<_>>();
        Wishes::normalize(&mut scores);
        let order = |a: usize, b: usize| scores[a].cmp(&scores[b]);
        assert!(order(3, 2).is_gt() && order(2, 0).is_gt() && order(1, 0).is_gt() && order(3, 1).is_gt());
        assert_eq!(scores[3], Some(100));
    }

    proptest! {
        /// A pod that always goes where the constraint allows never exceeds the skew.
        #[test]
        fn following_the_rule_keeps_the_skew(picks in proptest::collection::vec(0usize..4, 1..30), skew in 1i32..4) {
            let mut nodes = zones(&[0, 0, 0, 0]);
            for (i, pick) in picks.into_iter().enumerate() {
                let p = pod(&format!("p{i}"), serde_json::json!([constraint("zone", skew, "DoNotSchedule")]));
                let allowed = judge(&p, &nodes);
                let free = (0..4).filter(|n| allowed[*n].is_none()).collect::<Vec<_>>();
                prop_assert!(!free.is_empty());
                nodes[free[pick % free.len()]].add_pod(p.into());
                let counts = nodes.iter().map(|n| n.pods().len()).collect::<Vec<_>>();
                let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap();
                prop_assert!(spread <= skew as usize, "{:?}", counts);
            }
        }

        /// Counting step by step gives what counting at once gives.
        #[test]
        fn changes_add_up(counts in proptest::collection::vec(0usize..4, 3), at in 0usize..3) {
            let mut nodes = zones(&counts);
            let p = pod("p", serde_json::json!([constraint("zone", 1, "DoNotSchedule")]));
            let other = Arc::new(pod("other", serde_json::json!([])));
            let mut domains = Domains::count(&p, &nodes).unwrap();
            domains.change(&p, &other, &nodes[at], 1);
            nodes[at].add_pod(other);
            prop_assert_eq!(domains, Domains::count(&p, &nodes).unwrap());
        }
    }
}
