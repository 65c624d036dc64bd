//! Why a pod does not fit, for machines and for people.

use super::{PluginSet, Rejection};
use crate::cluster::NodeId;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What a scheduling cycle that found no node learned.
#[derive(Debug, Clone, Default)]
pub struct Diagnosis {
    /// Number of nodes.
    pub nodes: usize,
    /// Rejected nodes, each with its reasons.
    pub rejected: Vec<(NodeId, Rejection)>,
    /// Nodes ruled out before they were looked at, and why.
    pub ruled_out: Option<(usize, String)>,
    /// Message of the pre-filter that rejected the pod as such.
    pub pre_filter: Option<String>,
    /// Plugins that rejected the pod or a node.
    pub plugins: PluginSet,
    /// Message of the post-filters.
    pub post_filter: Option<String>,
}

/// `2 Insufficient cpu, 1 node(s) were unschedulable`, sorted as text.
pub fn histogram<'a>(reasons: impl IntoIterator<Item = (&'a str, usize)>) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for (reason, count) in reasons {
        *counts.entry(reason).or_default() += count;
    }
    let mut lines = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>();
    lines.sort_unstable();
    lines.join(", ")
}

impl Diagnosis {
    /// Upstream's message: `0/5 nodes are available: …`.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut text = format!("0/{} nodes are available:", self.nodes);
        match &self.pre_filter {
            Some(reason) => {
                text.push(' ');
                text.push_str(reason);
                text.push('.');
            }
            None => {
                let rejected =
                    self.rejected.iter().flat_map(|(_, r)| r.reasons.iter().map(|r| (Cow::as_ref(r), 1)));
                let ruled_out = self.ruled_out.iter().map(|(count, reason)| (reason.as_str(), *count));
                let reasons = histogram(rejected.chain(ruled_out));
                if !reasons.is_empty() {
                    text.push(' ');
                    text.push_str(&reasons);
                    text.push('.');
                }
            }
        }
        if let Some(more) = &self.post_filter {
            text.push(' ');
            text.push_str(more);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let cpu = || Rejection::new("Insufficient cpu");
        let d = Diagnosis {
            nodes: 12,
            rejected: (0..11)
                .map(|n| (NodeId(n), cpu()))
                .chain([(NodeId(11), Rejection::unresolvable("node(s) were unschedulable"))])
                .collect(),
            post_filter: Some("preemption: x.".into()),
            ..Diagnosis::default()
        };
        assert_eq!(
            d.message(),
            "0/12 nodes are available: 1 node(s) were unschedulable, 11 Insufficient cpu. preemption: x."
        );
        assert_eq!(Diagnosis::default().message(), "no nodes available to schedule pods");
    }
}
