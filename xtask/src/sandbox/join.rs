//! Hosts for a control plane that is not ours: the caller runs it on the first, and agents on the others join it.

use super::hosts;
use super::layout::{Layout, MAX_NODES, NodeLayout};
use super::up::{Start, arguments, import_hello, kubelet_config, start_and_wait, text};
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Makes the LAN and the hosts; nothing runs on them.
///
/// # Errors
/// A namespace or a link cannot be made; [`super::down()`] removes what was.
pub fn make_hosts(layout: &Layout, nodes: u32) -> Result<()> {
    ensure!((1..=MAX_NODES).contains(&nodes), "{nodes} hosts: choose 1 to {MAX_NODES}");
    std::fs::create_dir_all(layout.dir()).with_context(|| format!("create {}", layout.dir().display()))?;
    hosts::ensure_lan(layout)?;
    (1..=nodes).try_for_each(|number| hosts::ensure_host(&layout.node(number)))
}

/// Starts `kelp agent` on a host after the first, with the kubeconfig in [`NodeLayout::agent_kubeconfig`] and further
/// arguments, and imports the image of the sample workload there; returns when it is ready.
///
/// # Errors
/// It does not become ready; the error ends with its log.
pub fn start_agent(
    node: &NodeLayout,
    kelp: &Path,
    hello: &Path,
    xtask: &Path,
    further: &[String],
) -> Result<()> {
    ensure!(node.number > 1, "the first host is the control plane's");
    let mut all = arguments(node, true);
    if !further.iter().any(|argument| argument == "--config") {
        all.extend(["--config".to_owned(), text(&kubelet_config(node)?)]);
    }
    all.extend_from_slice(further);
    let start = Start { port: None, xtask: xtask.to_owned(), kelp: kelp.to_owned(), arguments: all };
    start_and_wait(node, &start)?;
    import_hello(node.sandbox(), node.number..=node.number, kelp, hello)
}
