//! CSI drivers on this node: who is there, and the volumes that they serve.
//!
//! A driver's registrar puts a socket into `plugins_registry`; [`registry`] asks it who it is and writes the CSINode.
//! [`volumes`] has volumes staged once a node and published for each pod. Paths are upstream's below the agent's data
//! directory, so that drivers and their manifests work as they are when that is the kubelet's.
//!
//! What is to be taken down is on the disk (`vol_data.json`) before a driver is called: an agent that was killed at any step
//! goes on from there.

mod client;
mod expand;
mod node;
mod places;
pub mod proto;
pub mod registry;
mod statistics;
pub mod volumes;

pub use client::{AccessMode, Capabilities, Driver, NodeInfo, Usage, Volume};

use crate::pod::tokens::Tokens;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// The drivers of this node. Clones share them.
#[derive(Clone)]
pub struct Csi {
    inner: Arc<Inner>,
}

struct Inner {
    client: kube::Client,
    node_name: String,
    data_dir: PathBuf,
    tokens: Tokens,
    drivers: Mutex<BTreeMap<String, Driver>>,
    /// Unique names of attachable volumes that pods use.
    in_use: watch::Sender<BTreeSet<String>>,
    /// One call about a volume at a time.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Csi {
    /// No driver yet.
    #[must_use]
    pub fn new(client: kube::Client, node_name: String, data_dir: &Path, tokens: Tokens) -> Self {
        let inner = Inner {
            client,
            node_name,
            data_dir: data_dir.to_owned(),
            tokens,
            drivers: Mutex::default(),
            in_use: watch::channel(BTreeSet::new()).0,
            turns: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Where drivers register.
    #[must_use]
    pub fn registry_dir(&self) -> PathBuf {
        self.inner.data_dir.join("plugins_registry")
    }

    /// Volumes that the node's status names as in use.
    #[must_use]
    pub fn in_use(&self) -> watch::Receiver<BTreeSet<String>> {
        self.inner.in_use.subscribe()
    }

    /// The driver of a name.
    ///
    /// # Errors
    /// It has not registered, in upstream's words.
    pub fn driver(&self, name: &str) -> Result<Driver, String> {
        let found = self.inner.drivers.lock().get(name).cloned();
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    /// Waits for the turn to do something about a volume.
    async fn turn(&self, volume: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.inner.turns.lock();
            // Those that nobody waits for are forgotten.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(volume.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
