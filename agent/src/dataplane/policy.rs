//! Keeps the policy maps in step with the API and with the pods of this node.
//!
//! Reads: the watch of NetworkPolicies; once there is one, those of all Namespaces and Pods; the pods that the network
//! attaches. Writes: the policy maps and the policies of endpoints.
//!
//! A pod gets its policies before it runs. While they are not known (the lists are not complete yet), a new pod reaches
//! nobody and is reached by its node alone; a pod that ran before the agent keeps the policies it had. What cannot be
//! written because a map is full allows nothing: it is told in an Event and tried again.

use std::sync::Arc;
use std::time::Duration;

use kelp_common::policy::POLICY_UNKNOWN;
use kelp_common::{Address, EndpointValue, maps};
use kelp_model::policy::{Compiler, EndpointPolicy, Op, PodFacts, Problem, Tables};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::events::Events;
use super::maps::Table;
use super::names::TableNames;
use super::{DatapathError, sys};

mod follow;
mod tables;

pub use follow::{Change, Source, follow_api};
pub(super) use tables::PolicyMaps;

/// How long a new pod waits for the first complete lists before it starts without any permission.
const PATIENCE: Duration = Duration::from_secs(10);

/// The policies of this node's pods; shared by the pod network and the task that follows the API.
#[derive(Debug)]
pub struct Policies {
    engine: Mutex<Engine>,
    /// Whether the lists are complete; always, when no policies are followed.
    listed: watch::Sender<bool>,
    /// Something could not be written.
    failed: Notify,
}

#[derive(Debug)]
struct Engine {
    compiler: Compiler,
    maps: PolicyMaps,
    names: TableNames,
    endpoints: Table<Address, EndpointValue>,
    events: Events,
    /// Whether policies are followed at all.
    followed: bool,
    listed: bool,
    /// Whether the maps hold what was planned, but for what was left out.
    intact: bool,
    /// What had no room.
    left_out: Vec<Op>,
    /// Whether tables of other spaces may be there.
    leftovers: bool,
    told: Vec<Problem>,
}

impl Policies {
    /// The policies in these maps. What a former agent wrote stays in use until its pods are attached again.
    pub(super) fn open(
        (maps, names): (PolicyMaps, TableNames),
        endpoints: Table<Address, EndpointValue>,
        events: Events,
        followed: bool,
    ) -> Result<Self, DatapathError> {
        let mut space = 0;
        endpoints.scan(|_, endpoint| space = space.max(endpoint.space))?;
        // Never 0, which is the space of nothing.
        let compiler = Compiler::new(space.checked_add(1).unwrap_or(1));
        let engine = Engine {
            compiler,
            maps,
            names,
            endpoints,
            events,
            followed,
            listed: !followed,
            intact: true,
            left_out: Vec::new(),
            leftovers: true,
            told: Vec::new(),
        };
        Ok(Self { engine: Mutex::new(engine), listed: watch::Sender::new(!followed), failed: Notify::new() })
    }

    /// Makes a pod's addresses known, with its policies.
    pub(super) async fn attach(
        &self,
        value: EndpointValue,
        addresses: &[Address],
        pod: Option<&PodFacts>,
    ) -> Result<(), DatapathError> {
        let known = self.engine.lock().known(&value, addresses)?.is_some();
        if !known && pod.is_some() {
            let mut listed = self.listed.subscribe();
            // After that time the pod starts, isolated.
            let _ = tokio::time::timeout(PATIENCE, listed.wait_for(|listed| *listed)).await;
        }
        let mut engine = self.engine.lock();
        let result = engine.attach(value, addresses, pod);
        if !engine.intact || !engine.left_out.is_empty() {
            self.failed.notify_one();
        }
        result
    }

    /// Forgets a pod's addresses; returns its endpoint, if it was known.
    pub(super) fn detach(&self, addresses: &[Address]) -> Result<Option<EndpointValue>, DatapathError> {
        let mut engine = self.engine.lock();
        let result = engine.detach(addresses);
        if !engine.intact || !engine.left_out.is_empty() {
            self.failed.notify_one();
        }
        result
    }

    /// Takes over changes, which say whether the lists are complete then, and writes them unless they are to be `held`.
    /// Returns whether everything is written.
    pub(super) fn observe(&self, held: bool, change: impl FnOnce(&mut Compiler) -> bool) -> bool {
        let mut engine = self.engine.lock();
        let listed = change(&mut engine.compiler);
        engine.listed = listed;
        engine.tell_problems();
        let written = if held { false } else { engine.reconcile() };
        let intact = engine.left_out.is_empty() && engine.intact && (written || !listed);
        drop(engine);
        self.listed.send_if_modified(|known| std::mem::replace(known, listed) != listed);
        intact
    }

    /// How many pods of this node are attached.
    #[must_use]
    pub fn local_count(&self) -> usize {
        self.engine.lock().compiler.local_count()
    }
}

impl Engine {
    /// What is known of an endpoint that is attached again.
    fn known(
        &self,
        value: &EndpointValue,
        addresses: &[Address],
    ) -> Result<Option<EndpointValue>, DatapathError> {
        let Some(first) = addresses.first() else { return Ok(None) };
        Ok(self.endpoints.get(first)?.filter(|known| known.ifindex == value.ifindex))
    }

    fn attach(
        &mut self,
        value: EndpointValue,
        addresses: &[Address],
        pod: Option<&PodFacts>,
    ) -> Result<(), DatapathError> {
        let known = self.known(&value, addresses)?;
        let mut policy = match (known, pod) {
            (Some(known), _) => EndpointPolicy {
                addresses: addresses.to_vec(),
                space: known.space,
                ingress: known.ingress,
                egress: known.egress,
            },
            (None, Some(_)) if self.followed => EndpointPolicy::unknown(addresses.to_vec()),
            _ => EndpointPolicy::default(),
        };
        if let Some(pod) = pod.filter(|_| self.followed) {
            self.compiler.attach(pod.clone(), addresses.to_vec());
            if self.reconcile()
                && let Some(planned) = self.compiler.policy_of(&pod.uid)
            {
                policy = planned;
            }
        }
        let isolated_since = known.map_or(0, |known| since(&known, policy.ingress | policy.egress != 0));
        let EndpointPolicy { space, ingress, egress, .. } = policy;
        for address in addresses {
            self.endpoints
                .put(address, &EndpointValue { space, ingress, egress, isolated_since, ..value })?;
        }
        self.sweep();
        Ok(())
    }

    fn detach(&mut self, addresses: &[Address]) -> Result<Option<EndpointValue>, DatapathError> {
        let mut found = None;
        for address in addresses {
            if let Some(endpoint) = self.endpoints.get(address)? {
                self.endpoints.delete(address)?;
                found = Some(endpoint);
            }
        }
        self.compiler.detach_addresses(addresses);
        if self.reconcile() && self.compiler.has_policies() {
            self.name_tables();
        }
        Ok(found)
    }

    /// Writes what changed; returns whether the maps hold what the compiler knows, but for what had no room.
    fn reconcile(&mut self) -> bool {
        if !self.listed {
            return false;
        }
        if !self.intact {
            let space = self.compiler.space().checked_add(1).unwrap_or(1);
            self.compiler.start_over(space);
            self.leftovers = true;
            self.left_out.clear();
        }
        let started = std::time::Instant::now();
        let mut ops = self.compiler.plan();
        let left_out = std::mem::take(&mut self.left_out);
        let again = left_out.into_iter().filter(|old| !ops.iter().any(|op| op.replaces(old)));
        let before: Vec<Op> = again.collect();
        ops.extend(before.iter().cloned());
        ops.extend((!before.is_empty()).then_some(Op::Revise));
        let mut full = None;
        for op in &ops {
            // Ranges come with the longest prefix first: without room for an exception the rule has to be left out.
            let blocked = matches!(op, Op::PutPrefix(..)) && full == Some(maps::PREFIXES);
            let result =
                if blocked { Err(DatapathError::Full { map: maps::PREFIXES }) } else { self.execute(op) };
            match result {
                Ok(()) => {}
                // What does not fit allows nothing; the rest is in effect.
                Err(DatapathError::Full { map }) => {
                    self.left_out.push(op.clone());
                    full = Some(map);
                }
                Err(error) => {
                    tracing::warn!(error = %super::chain(&error), "policies not written, trying again");
                    self.intact = false;
                    return false;
                }
            }
        }
        if let Some(map) = full.filter(|_| self.left_out != before) {
            self.events.policies_full(map, self.left_out.len());
        }
        self.intact = true;
        if !ops.is_empty() {
            tracing::debug!(operations = ops.len(), elapsed = ?started.elapsed(), "policies written");
        }
        self.sweep();
        if ops.iter().any(|op| matches!(op, Op::SetEndpoint(_))) {
            self.name_tables();
        }
        true
    }

    fn execute(&mut self, op: &Op) -> Result<(), DatapathError> {
        let Op::SetEndpoint(policy) = op else { return self.maps.apply(op) };
        for address in &policy.addresses {
            // One that is just being attached is written by that.
            let Some(known) = self.endpoints.get(address)? else { continue };
            let EndpointPolicy { space, ingress, egress, .. } = *policy;
            let isolated_since = since(&known, ingress | egress != 0);
            self.endpoints
                .put(address, &EndpointValue { space, ingress, egress, isolated_since, ..known })?;
        }
        Ok(())
    }

    /// Tells tools which policies the tables are of.
    fn name_tables(&mut self) {
        let (space, tables) = (self.compiler.space(), self.compiler.table_policies());
        self.names.follow(space, tables, self.leftovers);
    }

    /// Removes the tables of other spaces when no endpoint needs them any more.
    fn sweep(&mut self) {
        if !self.leftovers || !self.listed || !self.intact {
            return;
        }
        let space = self.compiler.space();
        let mut used = false;
        let scan =
            self.endpoints.scan(|_, endpoint| used |= endpoint.is_isolated() && endpoint.space != space);
        if scan.is_ok() && !used {
            match self.maps.retain_space(space) {
                Ok(()) => {
                    self.leftovers = false;
                    self.name_tables();
                }
                Err(error) => tracing::warn!(error = %super::chain(&error), "old policies not removed"),
            }
        }
    }

    fn tell_problems(&mut self) {
        let problems: Vec<Problem> = self.compiler.problems().collect();
        for problem in problems.iter().filter(|problem| !self.told.contains(problem)) {
            self.events.broken_policy(problem);
        }
        self.told = problems;
    }
}

/// Since when policies apply to a pod that runs.
fn since(known: &EndpointValue, isolated: bool) -> u32 {
    let was = known.is_isolated() && known.ingress != POLICY_UNKNOWN;
    match (was, isolated) {
        (_, false) => 0,
        (true, true) => known.isolated_since,
        (false, true) if known.is_isolated() => 0,
        (false, true) => sys::monotonic_seconds(),
    }
}

/// What the maps hold, for tests and tools.
///
/// # Errors
/// When the kernel refuses.
pub fn read(policies: &Arc<Policies>) -> Result<Tables, DatapathError> {
    let engine = policies.engine.lock();
    let mut tables = engine.maps.read()?;
    engine.endpoints.scan(|address, endpoint| {
        tables.endpoints.insert(*address, (endpoint.space, endpoint.ingress, endpoint.egress));
    })?;
    Ok(tables)
}
