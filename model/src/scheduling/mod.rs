//! What the scheduler decides with: pods and nodes in the form its plugins read, and the plugins' arithmetic.
//!
//! Amounts are integers (thousandths of a CPU, bytes). A [`PodInfo`] is made once when a pod changes, a [`NodeInfo`]
//! is updated in place as pods come and go, so that judging a pod on a node allocates nothing.

pub mod image;
pub mod interpod;
pub mod labels;
pub mod node;
pub mod node_affinity;
pub mod pod;
pub mod ports;
pub mod resources;
pub mod score;
pub mod spread;
pub mod taint;
pub mod volumes;

pub use labels::LabelMap;
pub use node::NodeInfo;
pub use node_affinity::{NodeSelector, NodeTerm, PreferredTerm};
pub use pod::PodInfo;
pub use ports::{HostPort, UsedPorts};
pub use resources::Resources;
pub use taint::{Effect, Taint, Toleration};

/// The highest score of a node.
pub const MAX_NODE_SCORE: i64 = 100;

/// How many nodes that fit are enough before scoring, of `all` nodes. `percentage` 0 adapts: 50 % of small clusters
/// down to 5 % of large ones; at least 100 nodes, and all of them in clusters smaller than that.
pub fn nodes_to_find(all: usize, percentage: u32) -> usize {
    /// Below this sampling brings nothing.
    const AT_LEAST: usize = 100;
    if all < AT_LEAST || percentage >= 100 {
        return all;
    }
    let percentage = match percentage {
        0 => 50usize.saturating_sub(all / 125).max(5),
        given => given as usize,
    };
    (all * percentage / 100).max(AT_LEAST)
}

#[cfg(test)]
mod tests {
    use super::nodes_to_find;

    #[test]
    fn sample_sizes() {
        for (all, percentage, want) in [
            (10, 40, 10),
            (99, 0, 99),
            (100, 0, 100),
            (1000, 40, 400),
            (1000, 0, 420),
            (5000, 0, 500),
            (6000, 0, 300),
            (5000, 100, 5000),
            (120, 5, 100),
        ] {
            assert_eq!(nodes_to_find(all, percentage), want, "{percentage} % of {all}");
        }
    }
}
