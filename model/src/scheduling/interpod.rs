//! Affinity between pods.
//!
//! A rule is about a topology: the nodes that share a label's value. Required rules are counted per label value once a
//! pod, and then each node is judged by a few look-ups.

use super::{LabelMap, MAX_NODE_SCORE, NodeInfo, PodInfo};
use crate::selector::{Operator, Requirement, Selector};
use k8s_openapi::api::core::v1 as api;
use std::collections::HashMap;
use std::sync::Arc;

/// Weight of other pods' required affinity when a pod that they want to be near is scored.
pub const HARD_AFFINITY_WEIGHT: i64 = 1;

/// Labels of the namespaces.
pub type Namespaces = HashMap<Arc<str>, LabelMap>;

/// Pods of some namespaces that are near by a topology.
#[derive(Debug, Clone)]
pub struct AffinityTerm {
    /// Label that nodes near each other share.
    pub topology_key: Arc<str>,
    selector: Selector,
    namespaces: Vec<Arc<str>>,
    namespace_selector: Option<Selector>,
}

/// The selector of an API object with a requirement per key of `match_label_keys` that the pod has; one that is
/// malformed matches nothing.
pub(super) fn selector_with_keys(
    selector: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
    labels: &LabelMap,
    keys: Option<&Vec<String>>,
    mismatched_keys: Option<&Vec<String>>,
) -> Selector {
    let Ok(plain) = Selector::from_label_selector(selector) else { return Selector::nothing() };
    let mut extra = Vec::new();
    for (keys, operator) in [(keys, Operator::In), (mismatched_keys, Operator::NotIn)] {
        for key in keys.into_iter().flatten() {
            let Some(value) = labels.get(key) else { continue };
            match Requirement::new(key.as_str(), operator, [value.to_string()]) {
                Ok(requirement) => extra.push(requirement),
                Err(_) => return Selector::nothing(),
            }
        }
    }
    if extra.is_empty() || plain.is_nothing() {
        return plain;
    }
    extra.extend_from_slice(plain.requirements());
    Selector::from_requirements(extra)
}

impl AffinityTerm {
    /// The API type's term, of a pod in `namespace` with `labels`.
    pub fn from_api(term: &api::PodAffinityTerm, namespace: &Arc<str>, labels: &LabelMap) -> Self {
        let mut namespaces =
            term.namespaces.iter().flatten().map(|n| n.as_str().into()).collect::<Vec<Arc<str>>>();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.clone());
        }
        Self {
            topology_key: term.topology_key.as_str().into(),
            selector: selector_with_keys(
                term.label_selector.as_ref(),
                labels,
                term.match_label_keys.as_ref(),
                term.mismatch_label_keys.as_ref(),
            ),
            namespaces,
            namespace_selector: term
                .namespace_selector
                .as_ref()
                .map(|s| Selector::from_label_selector(Some(s)).unwrap_or(Selector::nothing())),
        }
    }

    /// Whether the term is about `pod`.
    pub fn matches(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        let namespace = self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.is_everything()
                    || namespaces.get(&pod.namespace).is_some_and(|l| selector.matches(l))
            });
        namespace && self.selector.matches(&pod.labels)
    }
}

/// Numbers by topology key and value. Entries of zero do not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(HashMap<Arc<str>, HashMap<Arc<str>, i64>>);

impl Counts {
    fn add(&mut self, key: &Arc<str>, node: &NodeInfo, amount: i64) {
        let Some(value) = node.labels.get(key) else { return };
        if amount == 0 {
            return;
        }
        let values = self.0.entry(key.clone()).or_default();
        let count = values.entry(value.clone()).or_default();
        *count += amount;
        if *count == 0 {
            values.remove(value);
            if values.is_empty() {
                self.0.remove(key);
            }
        }
    }

    fn get(&self, key: &str, value: &str) -> i64 {
        self.0.get(key).and_then(|values| values.get(value)).copied().unwrap_or(0)
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sum over the node's own topologies.
    fn sum(&self, node: &NodeInfo) -> i64 {
        self.0
            .iter()
            .filter_map(|(key, values)| values.get(node.labels.get(key)?))
            .fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// Why a node does not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// No pod it must be near is there.
    Affinity,
    /// A pod it must not be near is there.
    AntiAffinity,
    /// A pod is there that must not be near it.
    ExistingAntiAffinity,
}

/// The required rules between an incoming pod and those already placed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    existing_anti: Counts,
    affinity: Counts,
    anti: Counts,
    matches_itself: bool,
}

impl Rules {
    /// Counts the pods on `nodes` that the incoming pod's rules are about, or whose rules are about it.
    pub fn count<'a>(
        pod: &PodInfo,
        nodes: impl IntoIterator<Item = &'a NodeInfo>,
        namespaces: &Namespaces,
    ) -> Self {
        let mut rules = Self {
            matches_itself: pod.affinity.iter().all(|term| term.matches(pod, namespaces)),
            ..Self::default()
        };
        let has_rules = !pod.affinity.is_empty() || !pod.anti_affinity.is_empty();
        for node in nodes {
            if has_rules {
                node.pods().iter().for_each(|other| rules.change(pod, other, node, 1, namespaces));
            } else if node.has_pods_with_anti_affinity() {
                let others = node.pods().iter().filter(|other| !other.anti_affinity.is_empty());
                others.for_each(|other| rules.change(pod, other, node, 1, namespaces));
            }
        }
        rules
    }

    /// Counts one more (`by` 1) or less (−1) of the pods on a node.
    pub fn change(
        &mut self,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        by: i64,
        namespaces: &Namespaces,
    ) {
        for term in &other.anti_affinity {
            if term.matches(pod, namespaces) {
                self.existing_anti.add(&term.topology_key, node, by);
            }
        }
        if !pod.affinity.is_empty() && pod.affinity.iter().all(|term| term.matches(other, namespaces)) {
            for term in &pod.affinity {
                self.affinity.add(&term.topology_key, node, by);
            }
        }
        for term in &pod.anti_affinity {
            if term.matches(other, namespaces) {
                self.anti.add(&term.topology_key, node, by);
            }
        }
    }

    /// Whether no rule applies to the pod at all.
    pub fn is_empty(&self, pod: &PodInfo) -> bool {
        self.existing_anti.is_empty() && pod.affinity.is_empty() && pod.anti_affinity.is_empty()
    }

    /// Judges a node.
    pub fn check(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Violation> {
        let mut found = true;
        for term in &pod.affinity {
            // Without the label the node is in no topology.
            let Some(value) = node.labels.get(&term.topology_key) else { return Err(Violation::Affinity) };
            found &= self.affinity.get(&term.topology_key, value) > 0;
        }
        // The first pod of a group that wants to be near itself may go anywhere.
        let first_of_its_group = self.affinity.is_empty() && self.matches_itself;
        if !found && !first_of_its_group {
            return Err(Violation::Affinity);
        }
        for term in &pod.anti_affinity {
            if let Some(value) = node.labels.get(&term.topology_key)
                && self.anti.get(&term.topology_key, value) > 0
            {
                return Err(Violation::AntiAffinity);
            }
        }
        if self.existing_anti.sum(node) > 0 { Err(Violation::ExistingAntiAffinity) } else { Ok(()) }
    }
}

/// Weights of the wishes between an incoming pod and those already placed; `None` if there are none.
pub fn wishes<'a>(
    pod: &PodInfo,
    nodes: impl IntoIterator<Item = &'a NodeInfo>,
    namespaces: &Namespaces,
) -> Option<Counts> {
    let mut weights = Counts::default();
    let has_wishes = !pod.preferred_affinity.is_empty();
    for node in nodes {
        if !has_wishes && !node.has_pods_with_affinity() {
            continue;
        }
        for other in node.pods() {
            for (weight, term) in &pod.preferred_affinity {
                if term.matches(other, namespaces) {
                    weights.add(&term.topology_key, node, *weight);
                }
            }
            for term in &other.affinity {
                if term.matches(pod, namespaces) {
                    weights.add(&term.topology_key, node, HARD_AFFINITY_WEIGHT);
                }
            }
            for (weight, term) in &other.preferred_affinity {
                if term.matches(pod, namespaces) {
                    weights.add(&term.topology_key, node, *weight);
                }
            }
        }
    }
    (!weights.is_empty()).then_some(weights)
}

/// Score of a node before [`normalize`].
pub fn score(weights: &Counts, node: &NodeInfo) -> i64 {
    weights.sum(node)
}

/// Brings scores to 0…100 between the lowest and the highest.
pub fn normalize(scores: &mut [i64]) {
    let (Some(&min), Some(&max)) = (scores.iter().min(), scores.iter().max()) else { return };
    for score in scores.iter_mut() {
        *score = if max > min {
            (MAX_NODE_SCORE as f64 * ((*score - min) as f64 / (max - min) as f64)) as i64
        } else {
            0
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::node::tests::{labelled_node, pod_of};
    use proptest::prelude::*;

    fn term(key: &str, app: &str) -> serde_json::Value {
        serde_json::json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}})
    }

    fn pod(name: &str, app: &str, near: &[(&str, &str)], far: &[(&str, &str)]) -> PodInfo {
        let terms = |list: &[(&str, &str)]| {
            let terms = list.iter().map(|(key, app)| term(key, app)).collect::<Vec<_>>();
            serde_json::json!({"requiredDuringSchedulingIgnoredDuringExecution": terms})
        };
        let spec = serde_json::json!({"containers": [], "affinity": {
            "podAffinity": terms(near), "podAntiAffinity": terms(far)}});
        pod_of(name, spec, &[("app", app)])
    }

    #[test]
    fn required_rules() {
        let mut nodes = [
            labelled_node("a1", "1", "1", &[("zone", "a"), ("host", "a1")]),
            labelled_node("a2", "1", "1", &[("zone", "a"), ("host", "a2")]),
            labelled_node("b1", "1", "1", &[("zone", "b"), ("host", "b1")]),
            labelled_node("x", "1", "1", &[("host", "x")]),
        ];
        nodes[0].add_pod(pod("db", "db", &[], &[]).into());
        nodes[2].add_pod(pod("shy", "shy", &[], &[("zone", "loud")]).into());
        let none = Namespaces::new();
        let judge = |p: &PodInfo| {
            let rules = Rules::count(p, &nodes, &none);
            nodes.iter().map(|n| rules.check(p, n).err()).collect::<Vec<_>>()
        };
        use Violation::*;
        assert_eq!(
            judge(&pod("w", "web", &[("zone", "db")], &[])),
            [None, None, Some(Affinity), Some(Affinity)]
        );
        assert_eq!(judge(&pod("w", "web", &[], &[("host", "db")])), [Some(AntiAffinity), None, None, None]);
        assert_eq!(judge(&pod("l", "loud", &[], &[])), [None, None, Some(ExistingAntiAffinity), None]);
        // The first of a group near itself goes anywhere in the topology, and nowhere out of it.
        assert_eq!(judge(&pod("s", "self", &[("zone", "self")], &[])), [None, None, None, Some(Affinity)]);
        assert_eq!(judge(&pod("o", "other", &[("zone", "self")], &[])), [Some(Affinity); 4]);
    }

    #[test]
    fn namespaces() {
        let labels = LabelMap::default();
        let own: Arc<str> = "default".into();
        let make = |json: serde_json::Value| {
            AffinityTerm::from_api(&serde_json::from_value(json).expect("term"), &own, &labels)
        };
        let all: Namespaces = [("prod".into(), [("env", "prod")].into_iter().collect())].into();
        let mut there = pod("p", "db", &[], &[]);
        assert!(make(term("zone", "db")).matches(&there, &all));
        there.namespace = "prod".into();
        assert!(!make(term("zone", "db")).matches(&there, &all));
        let mut t = term("zone", "db");
        t["namespaceSelector"] = serde_json::json!({"matchLabels": {"env": "prod"}});
        assert!(make(t.clone()).matches(&there, &all));
        t["namespaceSelector"] = serde_json::json!({});
        assert!(make(t.clone()).matches(&there, &Namespaces::new()));
        t["namespaceSelector"] = serde_json::json!({"matchLabels": {"env": "test"}});
        assert!(!make(t).matches(&there, &all));
    }

    #[test]
    fn match_label_keys() {
        let labels: LabelMap = [("version", "2")].into_iter().collect();
        let selector = Default::default();
        let keys = vec!["version".to_owned(), "absent".to_owned()];
        let s = selector_with_keys(Some(&selector), &labels, Some(&keys), None);
        assert!(s.matches(&labels) && !s.matches(&LabelMap::default()));
        let s = selector_with_keys(Some(&selector), &labels, None, Some(&keys));
        assert!(!s.matches(&labels) && s.matches(&LabelMap::default()));
    }

    #[test]
    fn wishes_are_scored_between_lowest_and_highest() {
        let spec = serde_json::json!({"containers": [], "affinity": {"podAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "podAffinityTerm": term("zone", "db")}]},
            "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "podAffinityTerm": term("zone", "batch")}]}}});
        let p = pod_of("p", spec, &[("app", "web")]);
        let mut nodes = ["a", "b", "c"].map(|z| labelled_node(z, "1", "1", &[("zone", z)]));
        nodes[0].add_pod(pod("db", "db", &[], &[]).into());
        nodes[2].add_pod(pod("batch", "batch", &[], &[]).into());
        let weights = wishes(&p, &nodes, &Namespaces::new()).expect("wishes");
        let mut scores = nodes.each_ref().map(|n| score(&weights, n));
        assert_eq!(scores, [10, 0, -5]);
        normalize(&mut scores);
        assert_eq!(scores, [100, 33, 0]);
        assert!(wishes(&pod("q", "web", &[], &[]), &nodes, &Namespaces::new()).is_none());
    }

    proptest! {
        /// Counting step by step gives what counting at once gives.
        #[test]
        fn changes_add_up(
            placed in proptest::collection::vec((0usize..3, 0usize..3, any::<bool>()), 0..12),
            removed in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let zones = ["a", "b", "c"];
            let mut nodes = zones.map(|z| labelled_node(z, "1", "1", &[("zone", z)]));
            let p = pod("p", "web", &[("zone", "x0")], &[("zone", "x1")]);
            let none = Namespaces::new();
            let mut rules = Rules::count(&p, &nodes, &none);
            for (i, (at, app, anti)) in placed.into_iter().enumerate() {
                let anti_terms: &[_] = if anti { &[("zone", "web")] } else { &[] };
                let other = Arc::new(pod(&format!("o{i}"), &format!("x{app}"), &[], anti_terms));
                rules.change(&p, &other, &nodes[at], 1, &none);
                nodes[at].add_pod(other.clone());
                if removed[i] {
                    rules.change(&p, &other, &nodes[at], -1, &none);
                    nodes[at].remove_pod(&other.uid);
                }
            }
            prop_assert_eq!(rules, Rules::count(&p, &nodes, &none));
        }
    }
}
