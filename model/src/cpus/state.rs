//! Who has which CPUs, and the checkpoint of it in upstream's format (`cpu_manager_state`).

use super::{CpuSet, NotEnough, Topology};
use crate::pod::qos::{Qos, qos_class};
use crate::pod::quantity;
use crate::pod::spec::{Kind, containers};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// CPUs by policy `static` or `none`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The policy's name.
    pub policy: String,
    /// CPUs that are shared.
    pub shared: CpuSet,
    /// CPUs of containers alone: pod UID, container.
    pub own: BTreeMap<String, BTreeMap<String, CpuSet>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Checkpoint {
    policy_name: String,
    default_cpu_set: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: BTreeMap<String, BTreeMap<String, String>>,
    checksum: u64,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// It is not what was written.
    #[error("checkpoint is corrupted: {0}")]
    Corrupt(String),
    /// It is of another policy.
    #[error("configured policy {configured:?} differs from state checkpoint policy {found:?}")]
    Policy {
        /// The policy that is configured.
        configured: String,
        /// That of the checkpoint.
        found: String,
    },
    /// It does not suit the machine or what is reserved.
    #[error("{0}")]
    Unsuitable(String),
}

/// FNV-1a of 32 bits.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl Checkpoint {
    /// Upstream's checksum: a hash of how Go's debug printer shows the structure.
    fn sum(&self) -> u64 {
        let mut entries = String::new();
        for (pod, containers) in &self.entries {
            let inner: Vec<String> = containers.iter().map(|(name, cpus)| format!("{name}:{cpus}")).collect();
            let space = if entries.is_empty() { "" } else { " " };
            let _ = write!(entries, "{space}{pod}:map[{}]", inner.join(" "));
        }
        let shown = format!(
            "(*state.CPUManagerCheckpoint){{PolicyName:(string){} DefaultCPUSet:(string){} \
             Entries:(map[string]map[string]string)map[{entries}] Checksum:(checksum.Checksum)0}}",
            self.policy_name, self.default_cpu_set
        );
        fnv(&shown).into()
    }
}

impl State {
    /// A state in which all CPUs are shared; without the policy `static` nobody asks which.
    pub fn new(policy: &str, shared: CpuSet) -> Self {
        Self { policy: policy.to_owned(), shared, own: BTreeMap::new() }
    }

    /// The text of its checkpoint.
    pub fn checkpoint(&self) -> String {
        let texts = |own: &BTreeMap<String, CpuSet>| {
            own.iter().map(|(name, cpus)| (name.clone(), cpus.to_string())).collect()
        };
        let mut checkpoint = Checkpoint {
            policy_name: self.policy.clone(),
            default_cpu_set: self.shared.to_string(),
            entries: self.own.iter().map(|(pod, own)| (pod.clone(), texts(own))).collect(),
            checksum: 0,
        };
        checkpoint.checksum = checkpoint.sum();
        serde_json::to_string(&checkpoint).unwrap_or_default()
    }

    /// Reads a checkpoint of the policy that is configured.
    ///
    /// # Errors
    /// It is damaged or of another policy.
    pub fn restore(text: &str, policy: &str) -> Result<Self, CheckpointError> {
        let corrupt = |why: &dyn std::fmt::Display| CheckpointError::Corrupt(why.to_string());
        let read: Checkpoint = serde_json::from_str(text).map_err(|e| corrupt(&e))?;
        let sum = read.sum();
        if read.checksum != sum {
            return Err(corrupt(&format!("its checksum is {}, not {sum}", read.checksum)));
        }
        if read.policy_name != policy {
            let configured = policy.to_owned();
            return Err(CheckpointError::Policy { configured, found: read.policy_name });
        }
        let mut state = Self::new(policy, read.default_cpu_set.parse().map_err(|e| corrupt(&e))?);
        for (pod, own) in read.entries {
            let parsed: Result<BTreeMap<String, CpuSet>, _> =
                own.into_iter().map(|(name, cpus)| cpus.parse().map(|cpus| (name, cpus))).collect();
            state.own.insert(pod, parsed.map_err(|e| corrupt(&e))?);
        }
        Ok(state)
    }

    /// Whether the state of policy `static` suits the machine's CPUs and those that are reserved; `strict`: those are not
    /// shared either.
    ///
    /// # Errors
    /// It does not; the texts are upstream's.
    pub fn validate(&self, all: &CpuSet, reserved: &CpuSet, strict: bool) -> Result<(), CheckpointError> {
        let wrong = |text: String| Err(CheckpointError::Unsuitable(text));
        let both = reserved.common(&self.shared);
        if strict && !both.is_empty() {
            let shared = self.shared.to_string();
            return wrong(format!(
                "some of strictly reserved cpus: \"{both}\" are present in defaultCpuSet: {shared:?}"
            ));
        }
        if !strict && both != *reserved {
            let shared = self.shared.to_string();
            return wrong(format!(
                "not all reserved cpus: \"{reserved}\" are present in defaultCpuSet: {shared:?}"
            ));
        }
        let mut known = self.shared.clone();
        for (pod, own) in &self.own {
            for (name, cpus) in own {
                if !self.shared.common(cpus).is_empty() {
                    return wrong(format!(
                        "pod: {pod}, container: {name} cpuset: \"{cpus}\" overlaps with default cpuset \"{}\"",
                        self.shared
                    ));
                }
                known = known.union(cpus);
            }
        }
        let all = if strict { all.without(reserved) } else { all.clone() };
        if known != all {
            return wrong(format!(
                "current set of available CPUs \"{all}\" doesn't match with CPUs in state \"{known}\""
            ));
        }
        Ok(())
    }

    /// Gives the containers of a pod their CPUs. Those of init containers that end are the next ones' too.
    ///
    /// # Errors
    /// There are too few; the pod then has none.
    pub fn allocate(&mut self, topology: &Topology, reserved: &CpuSet, pod: &Pod) -> Result<(), NotEnough> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if self.own.contains_key(&uid) {
            return Ok(());
        }
        let mut reusable = CpuSet::default();
        for (kind, container) in pod.spec.iter().flat_map(containers) {
            let wanted = whole_cpus(pod, container);
            if wanted == 0 || kind == Kind::Ephemeral {
                continue;
            }
            let available = self.shared.without(reserved).union(&reusable);
            let cpus = match topology.take(&available, wanted) {
                Ok(cpus) => cpus,
                Err(error) => {
                    self.release(&uid);
                    return Err(error);
                }
            };
            self.shared = self.shared.without(&cpus);
            reusable = match kind {
                Kind::Init => reusable.union(&cpus),
                _ => reusable.without(&cpus),
            };
            self.own.entry(uid.clone()).or_default().insert(container.name.clone(), cpus);
        }
        Ok(())
    }

    /// Takes a pod's CPUs back. Whether it had any.
    pub fn release(&mut self, uid: &str) -> bool {
        let Some(own) = self.own.remove(uid) else { return false };
        for cpus in own.values() {
            self.shared = self.shared.union(cpus);
        }
        true
    }

    /// CPUs that a container has to itself.
    pub fn exclusive(&self, uid: &str, container: &str) -> Option<&CpuSet> {
        self.own.get(uid)?.get(container)
    }
}

/// How many CPUs a container gets to itself: what it asks for, if that is a whole number and its pod is guaranteed.
pub fn whole_cpus(pod: &Pod, container: &Container) -> usize {
    let whole = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    let pod_level = whole.is_some_and(|r| r.requests.is_some() || r.limits.is_some());
    if qos_class(pod) != Qos::Guaranteed || pod_level {
        return 0;
    }
    let resources = container.resources.as_ref();
    let cpu = |list: Option<&BTreeMap<String, _>>| list?.get("cpu").and_then(quantity::milli);
    let asked = resources.and_then(|r| cpu(r.requests.as_ref()).or_else(|| cpu(r.limits.as_ref())));
    let milli = asked.unwrap_or(0);
    if milli % 1000 == 0 { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::super::take::tests::two_sockets;
    use super::*;
    use serde_json::json;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    fn guaranteed(uid: &str, init: &[&str], main: &[&str]) -> Pod {
        let container = |prefix: &str, index: usize, cpu: &str| {
            let list = json!({"cpu": cpu, "memory": "1Mi"});
            json!({"name": format!("{prefix}{index}"), "resources": {"requests": list, "limits": list}})
        };
        let of = |prefix: &str, cpus: &[&str]| -> Vec<_> {
            cpus.iter().enumerate().map(|(index, cpu)| container(prefix, index, cpu)).collect()
        };
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {
            "initContainers": of("i", init), "containers": of("c", main)}}))
        .unwrap()
    }

    #[test]
    fn checkpoints_are_upstreams() {
        // Sums that upstream's own files have.
        let none = State::new("none", CpuSet::default());
        assert_eq!(none.checkpoint(), r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#);
        let text = r#"{"policyName":"none","defaultCpuSet":"1-3","entries":{"pod":{"container1":"4-6","container2":"1-3"}},"checksum":3610638499}"#;
        let state = State::restore(text, "none").unwrap();
        assert_eq!(state.exclusive("pod", "container1"), Some(&set("4-6")));
        assert_eq!(state.checkpoint(), text);
        assert!(matches!(
            State::restore(&text.replace("4-6", "4-7"), "none"),
            Err(CheckpointError::Corrupt(_))
        ));
        assert_eq!(
            State::restore(text, "static").unwrap_err().to_string(),
            "configured policy \"static\" differs from state checkpoint policy \"none\""
        );
        assert!(State::restore("", "none").is_err());
    }

    #[test]
    fn whole_cpus_of_guaranteed_pods_are_their_own() {
        let topology = two_sockets();
        let reserved = set("0,6");
        let mut state = State::new("static", topology.cpus());
        state.allocate(&topology, &reserved, &guaranteed("a", &[], &["2", "1500m", "1"])).unwrap();
        assert_eq!(state.exclusive("a", "c0"), Some(&set("2,8")));
        assert_eq!(state.exclusive("a", "c1"), None, "it shares");
        assert_eq!(state.exclusive("a", "c2"), Some(&set("4")));
        assert_eq!(state.shared, set("0-1,3,5-7,9-11"));
        state.validate(&topology.cpus(), &reserved, false).unwrap();
        let before = state.clone();
        let error = state.allocate(&topology, &reserved, &guaranteed("b", &[], &["2", "9"])).unwrap_err();
        assert_eq!((error.requested, error.available), (9, 5));
        assert_eq!(state, before, "all or nothing");
        state.allocate(&topology, &reserved, &guaranteed("a", &[], &["2"])).unwrap();
        assert_eq!(state, before, "asked again");
        assert!(state.release("a") && !state.release("a"));
        assert_eq!(state.shared, topology.cpus());
    }

    #[test]
    fn init_containers_leave_theirs_to_the_next() {
        let topology = two_sockets();
        let mut state = State::new("static", topology.cpus());
        state.allocate(&topology, &set("0"), &guaranteed("a", &["4"], &["2"])).unwrap();
        let (init, main) = (state.exclusive("a", "i0").unwrap(), state.exclusive("a", "c0").unwrap());
        assert_eq!((init.len(), main.len()), (4, 2));
        assert_eq!(main.without(init), CpuSet::default());
    }

    #[test]
    fn others_share() {
        let mut pod = guaranteed("a", &[], &["2"]);
        assert_eq!(whole_cpus(&pod, &pod.spec.clone().unwrap().containers[0]), 2);
        let spec = pod.spec.as_mut().unwrap();
        spec.containers[0].resources.as_mut().unwrap().limits = None;
        assert_eq!(whole_cpus(&pod, &pod.spec.clone().unwrap().containers[0]), 0, "burstable");
    }

    #[test]
    fn a_state_that_does_not_suit_the_machine() {
        let topology = two_sockets();
        let all = topology.cpus();
        let why = |state: &State, reserved: &str, strict| {
            state.validate(&all, &set(reserved), strict).unwrap_err().to_string()
        };
        let mut state = State::new("static", set("0-9"));
        assert_eq!(
            why(&state, "0", false),
            "current set of available CPUs \"0-11\" doesn't match with CPUs in state \"0-9\""
        );
        assert!(why(&state, "10", false).starts_with("not all reserved cpus: \"10\""));
        assert!(why(&state, "0", true).starts_with("some of strictly reserved cpus: \"0\""));
        state.own.insert("p".into(), [("c".to_owned(), set("9-11"))].into());
        assert!(why(&state, "0", false).contains("overlaps with default cpuset"));
    }
}
