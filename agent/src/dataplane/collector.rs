//! Removes flows that have expired, and those of pods that are gone.
//!
//! The map forgets the least recently used by itself; this keeps it small, so that nothing in use is forgotten.

use std::collections::BTreeSet;
use std::time::Duration;

use kelp_common::{Address, FlowKey, FlowValue};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::maps::Table;
use super::{DatapathError, sys};

/// Shortest and longest pause between two rounds: the pause doubles while there is nothing to remove.
const PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(300));

/// Works until `shutdown`. Nothing is removed before the services are in the maps.
pub(super) async fn run(
    flows: Table<FlowKey, FlowValue>,
    mut removals: mpsc::UnboundedReceiver<Vec<Address>>,
    mut synced: watch::Receiver<bool>,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => return,
        done = synced.wait_for(|synced| *synced) => if done.is_err() { return },
    }
    let flows = std::sync::Arc::new(flows);
    let mut pause = PAUSE.0;
    loop {
        let mut gone = BTreeSet::new();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            addresses = removals.recv() => {
                let Some(addresses) = addresses else { return };
                gone.extend(addresses);
                while let Ok(more) = removals.try_recv() {
                    gone.extend(more);
                }
            }
        }
        let timer = gone.is_empty();
        let flows = flows.clone();
        // A scan of a full map takes tens of milliseconds.
        let round = tokio::task::spawn_blocking(move || collect(&flows, &gone)).await;
        match round {
            Ok(Ok(removed)) if timer => pause = if removed == 0 { (pause * 2).min(PAUSE.1) } else { PAUSE.0 },
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(error = %super::chain(&error), "expired flows not removed"),
            Err(error) => tracing::warn!(%error, "expired flows not removed"),
        }
    }
}

/// Removes expired flows and those of the addresses in `gone`; returns how many directions went.
fn collect(flows: &Table<FlowKey, FlowValue>, gone: &BTreeSet<Address>) -> Result<usize, DatapathError> {
    let now = sys::monotonic_seconds();
    let mut expired = Vec::new();
    let mut living = BTreeSet::new();
    let identity =
        |key: &FlowKey| (key.source, key.destination, key.source_port, key.destination_port, key.protocol);
    flows.scan(|key, value| {
        let dead = [key.source, key.destination, value.source, value.destination]
            .iter()
            .any(|address| gone.contains(address));
        if dead {
            expired.push((*key, None));
        } else if value.expires < now {
            expired.push((*key, Some(identity(&value.reverse_key(key.protocol)))));
        } else {
            living.insert(identity(key));
        }
    })?;
    // A flow lives while one of its directions does.
    let keys: Vec<FlowKey> = expired
        .into_iter()
        .filter(|(_, peer)| peer.is_none_or(|peer| !living.contains(&peer)))
        .map(|(key, _)| key)
        .collect();
    flows.delete_all(&keys)?;
    Ok(keys.len())
}
