//! Pods of this node that another agent connected, beside which only the dataplane runs.
//!
//! The programs must know them: a client from outside that is led to one needs no other source address, as the answer
//! passes this node anyway, and the packet is left to the host's stack, which has the way there.
//!
//! Reads: the watch of the node's Pods. Writes: endpoints without a device.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kelp_common::{Address, EndpointValue, maps};
use kelp_model::service::pod_addresses;
use kube::runtime::watcher::Event;

use super::DatapathError;
use super::kernel::Kernel;
use super::maps::Table;

/// The node's pods by their uids, and what the map holds of them.
#[derive(Debug)]
pub(super) struct ForeignPods {
    table: Table<Address, EndpointValue>,
    pods: BTreeMap<String, Vec<Address>>,
    /// Pods of a list that is not whole yet.
    listed: BTreeMap<String, Vec<Address>>,
    written: BTreeSet<Address>,
}

impl ForeignPods {
    /// Starts with what an earlier agent wrote; it stays until the first list is whole.
    pub fn open(kernel: &Kernel) -> Result<Self, DatapathError> {
        let table: Table<Address, EndpointValue> = Table::open(kernel, maps::ENDPOINTS)?;
        let mut written = BTreeSet::new();
        table.scan(|address, endpoint| {
            if endpoint.ifindex == 0 {
                written.insert(*address);
            }
        })?;
        Ok(Self { table, pods: BTreeMap::new(), listed: BTreeMap::new(), written })
    }

    /// Takes over an event, before anybody else does: a service must not lead to a pod that the programs do not know.
    pub fn observe(&mut self, event: &Event<Pod>) {
        let entry = |pod: &Pod| (pod.metadata.uid.clone().unwrap_or_default(), pod_addresses(pod));
        match event {
            Event::Init => return self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.extend([entry(pod)]);
                return;
            }
            Event::InitDone => self.pods = std::mem::take(&mut self.listed),
            Event::Apply(pod) => self.pods.extend([entry(pod)]),
            Event::Delete(pod) => {
                self.pods.remove(&entry(pod).0);
            }
        }
        if let Err(error) = self.write() {
            tracing::warn!(
                error = %super::chain(&error),
                "addresses of the node's pods not written, trying again with their next change"
            );
        }
    }

    fn write(&mut self) -> Result<(), DatapathError> {
        let wanted: BTreeSet<Address> = self.pods.values().flatten().copied().collect();
        for address in wanted.difference(&self.written.clone()) {
            self.table.put(address, &EndpointValue::default())?;
            self.written.insert(*address);
        }
        let gone: Vec<Address> = self.written.difference(&wanted).copied().collect();
        self.table.delete_all(&gone)?;
        self.written = wanted;
        Ok(())
    }
}
