//! What the node is in, for those who take pods or report about it.

use kelp_model::eviction::Condition;
use std::collections::BTreeSet;
use tokio::sync::watch;

/// State of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeState {
    /// What it is short of.
    pub pressure: BTreeSet<Condition>,
    /// The host is shutting down.
    pub shutting_down: bool,
}

/// Its newest state; everybody may change their part of it.
#[derive(Debug, Clone)]
pub struct States(watch::Sender<NodeState>);

impl Default for States {
    fn default() -> Self {
        Self(watch::channel(NodeState::default()).0)
    }
}

impl States {
    /// The state now.
    pub fn now(&self) -> NodeState {
        self.0.borrow().clone()
    }

    /// Tells of changes.
    pub fn follow(&self) -> watch::Receiver<NodeState> {
        self.0.subscribe()
    }

    /// Changes it; who follows is told only when something is different.
    pub fn change(&self, change: impl FnOnce(&mut NodeState)) {
        self.0.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            before != *state
        });
    }
}
