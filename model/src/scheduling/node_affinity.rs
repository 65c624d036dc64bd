//! Node selectors and node affinity.

use super::{LabelMap, NodeInfo};
use crate::selector::{Operator, Requirement};
use k8s_openapi::api::core::v1 as api;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One term: every requirement must hold. An empty term, or one that is malformed, matches no node.
#[derive(Debug, Clone, Default)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    /// Wanted names of the node (`matchFields`), and whether they are excluded instead.
    names: Vec<(Vec<Arc<str>>, bool)>,
    matches_nothing: bool,
}

impl NodeTerm {
    /// The API type's term.
    pub fn from_api(term: &api::NodeSelectorTerm) -> Self {
        let mut out = Self::default();
        for e in term.match_expressions.iter().flatten() {
            let operator = match e.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::GreaterThan,
                "Lt" => Operator::LessThan,
                _ => {
                    out.matches_nothing = true;
                    continue;
                }
            };
            match Requirement::new(e.key.as_str(), operator, e.values.iter().flatten().cloned()) {
                Ok(requirement) => out.labels.push(requirement),
                Err(_) => out.matches_nothing = true,
            }
        }
        for e in term.match_fields.iter().flatten() {
            let names = e.values.iter().flatten().map(|n| n.as_str().into()).collect();
            match (e.key.as_str(), e.operator.as_str()) {
                ("metadata.name", "In") => out.names.push((names, false)),
                ("metadata.name", "NotIn") => out.names.push((names, true)),
                _ => out.matches_nothing = true,
            }
        }
        out.matches_nothing |= out.labels.is_empty() && out.names.is_empty();
        out
    }

    /// Whether a node fulfils the term.
    pub fn matches(&self, name: &str, labels: &LabelMap) -> bool {
        !self.matches_nothing
            && self.labels.iter().all(|r| r.matches(labels))
            && self.names.iter().all(|(names, excluded)| names.iter().any(|n| **n == *name) != *excluded)
    }

    /// The only nodes that can match, if the term names them.
    fn only_names(&self) -> Option<&[Arc<str>]> {
        self.names.iter().find(|(_, excluded)| !excluded).map(|(names, _)| names.as_slice())
    }
}

/// A wish with a weight.
#[derive(Debug, Clone)]
pub struct PreferredTerm {
    /// 1 to 100.
    pub weight: i64,
    /// The wish; an empty one is fulfilled by no node.
    pub term: NodeTerm,
}

/// Which nodes a pod may go to: `spec.nodeSelector` and required node affinity.
#[derive(Debug, Clone, Default)]
pub struct NodeSelector {
    labels: Vec<(Box<str>, Box<str>)>,
    /// One of these must match; none: no affinity.
    terms: Option<Vec<NodeTerm>>,
}

impl NodeSelector {
    /// The selector of a pod's spec.
    pub fn from_api(labels: Option<&BTreeMap<String, String>>, required: Option<&api::NodeSelector>) -> Self {
        Self {
            labels: labels
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.as_str().into(), v.as_str().into()))
                .collect(),
            terms: required.map(|s| s.node_selector_terms.iter().map(NodeTerm::from_api).collect()),
        }
    }

    /// Whether every node will do.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.terms.is_none()
    }

    /// Whether a node will do.
    pub fn matches(&self, name: &str, labels: &LabelMap) -> bool {
        self.labels.iter().all(|(k, v)| labels.get(k).is_some_and(|found| **found == **v))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)))
    }

    /// Whether a node will do.
    pub fn matches_node(&self, node: &NodeInfo) -> bool {
        self.matches(&node.name, &node.labels)
    }

    /// The only nodes that can match, sorted, if every term names them (pods of daemon sets).
    pub fn only_names(&self) -> Option<Vec<Arc<str>>> {
        let terms = self.terms.as_ref().filter(|terms| !terms.is_empty())?;
        let mut names = Vec::new();
        for term in terms {
            names.extend_from_slice(term.only_names()?);
        }
        names.sort_unstable();
        names.dedup();
        Some(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(json: serde_json::Value) -> NodeSelector {
        let api: api::NodeSelector = serde_json::from_value(json).expect("selector");
        NodeSelector::from_api(None, Some(&api))
    }

    #[test]
    fn terms_are_alternatives_and_their_parts_are_not() {
        let labels: LabelMap = [("zone", "a"), ("size", "7")].into_iter().collect();
        for (terms, want) in [
            (
                serde_json::json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]),
                true,
            ),
            (
                serde_json::json!([{"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["6"]}]}]),
                true,
            ),
            (
                serde_json::json!([{"matchExpressions": [{"key": "size", "operator": "Lt", "values": ["7"]}]}]),
                false,
            ),
            (serde_json::json!([{"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}]), true),
            (serde_json::json!([{}]), false),
            (serde_json::json!([]), false),
            (
                serde_json::json!([{}, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]),
                true,
            ),
            (
                serde_json::json!([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}]),
                false,
            ),
            (
                serde_json::json!([{"matchExpressions": [{"key": "zone", "operator": "Exists"}],
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]),
                false,
            ),
            (
                serde_json::json!([{"matchExpressions": [{"key": "zone", "operator": "Like", "values": ["a"]}]}]),
                false,
            ),
        ] {
            let selector = required(serde_json::json!({"nodeSelectorTerms": terms}));
            assert_eq!(selector.matches("n1", &labels), want, "{terms}");
        }
    }

    #[test]
    fn names_are_known_only_if_every_term_has_them() {
        let named = serde_json::json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2", "n1"]}]});
        let other = serde_json::json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}]});
        let one = required(serde_json::json!({"nodeSelectorTerms": [named]}));
        assert_eq!(one.only_names().expect("names").iter().map(|n| &**n).collect::<Vec<_>>(), ["n1", "n2"]);
        assert!(required(serde_json::json!({"nodeSelectorTerms": [named, other]})).only_names().is_none());
        assert!(NodeSelector::default().only_names().is_none());
    }
}
