//! CPUs that containers have to themselves (`cpuManagerPolicy`).
//!
//! Reads: the machine's CPUs, the checkpoint. Writes: the checkpoint, in upstream's file and format.
//!
//! A container's CPUs are chosen before its pod starts and are its own until the pod has ended. The checkpoint is written
//! before anybody is told: an agent that starts anew knows who has what.

use crate::kubelet_config::Settings;
use k8s_openapi::api::core::v1::Pod;
use kelp_model::cpus::{CheckpointError, CpuSet, Place, State, Topology, whole_cpus};
use kelp_model::pod::spec::containers;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// The checkpoint, by upstream's name.
const FILE: &str = "cpu_manager_state";
const STATIC: &str = "static";
/// Options of the policy `static` that are honoured.
const FULL_CORES: &str = "full-pcpus-only";
const STRICT: &str = "strict-cpu-reservation";

/// What keeps the agent from giving CPUs away.
#[derive(Debug, thiserror::Error)]
pub enum CpusError {
    /// The configuration asks for what cannot be.
    #[error("[cpumanager] {0}")]
    Configuration(String),
    /// The checkpoint does not fit.
    #[error(
        "could not restore state from checkpoint: {why}, please drain this node and delete the CPU manager checkpoint file {file:?} before restarting Kubelet"
    )]
    Checkpoint {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        #[source]
        why: CheckpointError,
    },
    /// The checkpoint cannot be read or written.
    #[error("cannot use the CPU manager checkpoint file {file:?}")]
    File {
        /// The file.
        file: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
}

/// Why a pod does not get its CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `status.reason`.
    pub reason: &'static str,
    /// What is told.
    pub message: String,
}

/// The CPUs of this node. Clones share them.
#[derive(Clone)]
pub struct Cpus(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    topology: Topology,
    reserved: CpuSet,
    full_cores: bool,
    file: Option<PathBuf>,
    /// The CPUs that are shared.
    shared: watch::Sender<CpuSet>,
}

impl Default for Cpus {
    /// All CPUs are everybody's, and nothing is written.
    fn default() -> Self {
        Self::of_state(
            State::new("none", CpuSet::default()),
            Topology::default(),
            CpuSet::default(),
            false,
            None,
        )
    }
}

impl Cpus {
    fn of_state(
        state: State,
        topology: Topology,
        reserved: CpuSet,
        full_cores: bool,
        file: Option<PathBuf>,
    ) -> Self {
        let shared = watch::channel(state.shared.clone()).0;
        Self(Arc::new(Inner { state: Mutex::new(state), topology, reserved, full_cores, file, shared }))
    }

    /// The machine's CPUs by the configuration, and who has some by the checkpoint in `dir`.
    ///
    /// # Errors
    /// The configuration cannot be met, or the checkpoint is damaged, of another policy or of another machine.
    pub fn open(settings: &Settings, dir: &Path) -> Result<Self, CpusError> {
        Self::with(settings, dir, read_topology(Path::new("/sys/devices/system")))
    }

    fn with(settings: &Settings, dir: &Path, topology: Topology) -> Result<Self, CpusError> {
        let is_static = settings.cpu_manager_policy == STATIC;
        let options = &settings.cpu_manager_policy_options;
        let wrong = |text: String| Err(CpusError::Configuration(text));
        let on = |name: &str| options.get(name).is_some_and(|value| value == "true");
        for (name, value) in options {
            if ![FULL_CORES, STRICT].contains(&name.as_str()) {
                return wrong(format!("unsupported cpumanager option: {name:?}"));
            }
            if !["true", "false"].contains(&value.as_str()) {
                return wrong(format!("bad value for option {name:?}: {value:?} is true or false"));
            }
        }
        if !is_static && !options.is_empty() {
            return wrong("invalid configuration: policy 'none' takes no options".into());
        }
        let (mut reserved, strict) = (CpuSet::default(), on(STRICT));
        if is_static {
            reserved = reserve(settings, &topology)?;
        }
        let file = dir.join(FILE);
        let failed = |source| CpusError::File { file: file.clone(), source };
        let policy = if is_static { STATIC } else { "none" };
        let state = match std::fs::read_to_string(&file) {
            Ok(text) => {
                let checked = State::restore(&text, policy).and_then(|state| {
                    if is_static && !(state.shared.is_empty() && state.own.is_empty()) {
                        state.validate(&topology.cpus(), &reserved, strict)?;
                    }
                    Ok(state)
                });
                checked.map_err(|why| CpusError::Checkpoint { file: file.clone(), why })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::new(policy, CpuSet::default()),
            Err(error) => return Err(failed(error)),
        };
        let cpus = Self::of_state(state, topology, reserved, on(FULL_CORES), Some(file.clone()));
        {
            let mut state = cpus.0.state.lock();
            if is_static && state.shared.is_empty() && state.own.is_empty() {
                let all = cpus.0.topology.cpus();
                state.shared = if strict { all.without(&cpus.0.reserved) } else { all };
            }
            cpus.write(&state).map_err(failed)?;
            cpus.0.shared.send_replace(state.shared.clone());
        }
        Ok(cpus)
    }

    fn is_static(&self) -> bool {
        self.0.state.lock().policy == STATIC
    }

    fn write(&self, state: &State) -> io::Result<()> {
        let Some(file) = &self.0.file else { return Ok(()) };
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let temporary = file.with_extension("tmp");
        std::fs::write(&temporary, state.checkpoint())?;
        std::fs::rename(temporary, file)
    }

    /// Gives the containers of a pod their CPUs, unless they have them.
    ///
    /// # Errors
    /// There are too few.
    pub fn allocate(&self, pod: &Pod) -> Result<(), Refusal> {
        let wanted: Vec<usize> = pod
            .spec
            .iter()
            .flat_map(containers)
            .map(|(_, c)| whole_cpus(pod, c))
            .filter(|n| *n > 0)
            .collect();
        if wanted.is_empty() || !self.is_static() {
            return Ok(());
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut state = self.0.state.lock();
        if state.own.contains_key(uid) {
            return Ok(());
        }
        crate::metrics::CPU_PINNED.count(&[]);
        let result = self.choose(&mut state, pod, &wanted);
        if result.is_err() {
            crate::metrics::CPU_PINNED_ERRORS.count(&[]);
        }
        result
    }

    fn choose(&self, state: &mut State, pod: &Pod, wanted: &[usize]) -> Result<(), Refusal> {
        let unexpected = |why: String| Refusal {
            reason: "UnexpectedAdmissionError",
            message: format!("Allocate failed due to {why}, which is unexpected"),
        };
        self.align(state, wanted)?;
        let mut next = state.clone();
        next.allocate(&self.0.topology, &self.0.reserved, pod).map_err(|e| unexpected(e.to_string()))?;
        self.write(&next).map_err(|e| unexpected(e.to_string()))?;
        *state = next;
        self.0.shared.send_replace(state.shared.clone());
        Ok(())
    }

    /// Whether whole cores can be had, where only those are given away.
    fn align(&self, state: &State, wanted: &[usize]) -> Result<(), Refusal> {
        if !self.0.full_cores {
            return Ok(());
        }
        let per_core = self.0.topology.per_core();
        let refused = |message: String| Err(Refusal { reason: "SMTAlignmentError", message });
        let kept = self.0.topology.whole_cores(&self.0.reserved);
        let free = state.shared.without(&kept).len();
        for wanted in wanted {
            if wanted % per_core != 0 {
                return refused(format!(
                    "SMT Alignment Error: requested {wanted} cpus not multiple cpus per core = {per_core}"
                ));
            }
            if *wanted > free {
                return refused(format!(
                    "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {free}, requested CPUs = {wanted}, CPUs per core = {per_core}"
                ));
            }
        }
        Ok(())
    }

    /// Takes a pod's CPUs back.
    pub fn release(&self, uid: &str) {
        let mut state = self.0.state.lock();
        if !state.release(uid) {
            return;
        }
        if let Err(error) = self.write(&state) {
            tracing::warn!(uid, %error, "the CPU manager's checkpoint is not written");
        }
        self.0.shared.send_replace(state.shared.clone());
    }

    /// The CPUs that a container may run on; `None`: on all.
    pub fn of(&self, uid: &str, container: &str) -> Option<String> {
        let state = self.0.state.lock();
        (state.policy == STATIC).then(|| state.exclusive(uid, container).unwrap_or(&state.shared).to_string())
    }

    /// The CPUs that a container has to itself.
    pub fn exclusive(&self, uid: &str, container: &str) -> Vec<i64> {
        let state = self.0.state.lock();
        numbers(state.exclusive(uid, container).unwrap_or(&CpuSet::default()))
    }

    /// Whether a container, or any of the pod, has CPUs to itself: its time on them is not limited then.
    pub fn has_own(&self, uid: &str, container: Option<&str>) -> bool {
        let state = self.0.state.lock();
        match (state.own.get(uid), container) {
            (Some(own), Some(container)) => own.contains_key(container),
            (own, None) => own.is_some(),
            (None, Some(_)) => false,
        }
    }

    /// The CPUs that can be given to containers alone.
    pub fn allocatable(&self) -> Vec<i64> {
        match self.is_static() {
            true => numbers(&self.0.topology.cpus().without(&self.0.reserved)),
            false => Vec::new(),
        }
    }

    /// Changes when the CPUs do that are shared.
    pub fn follow(&self) -> watch::Receiver<CpuSet> {
        self.0.shared.subscribe()
    }
}

fn numbers(cpus: &CpuSet) -> Vec<i64> {
    cpus.0.iter().map(|cpu| i64::from(*cpu)).collect()
}

/// The CPUs that nobody gets alone: those that are named, else as many as are reserved.
fn reserve(settings: &Settings, topology: &Topology) -> Result<CpuSet, CpusError> {
    let wrong = |text: String| CpusError::Configuration(text);
    let milli = settings.reserved("cpu").milli_value();
    if milli <= 0 {
        return Err(wrong(
            "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero".into(),
        ));
    }
    let count = usize::try_from(milli.div_euclid(1000) + i64::from(milli % 1000 > 0)).unwrap_or(usize::MAX);
    let all = topology.cpus();
    let named: CpuSet = settings
        .reserved_system_cpus
        .parse()
        .map_err(|e: kelp_model::cpus::NoCpuSet| wrong(e.to_string()))?;
    let reserved = if named.is_empty() { topology.take(&all, count).unwrap_or_default() } else { named };
    if reserved.len() != count || !reserved.without(&all).is_empty() {
        return Err(wrong(format!(
            "unable to reserve the required amount of CPUs (size of {reserved} did not equal {count})"
        )));
    }
    Ok(reserved)
}

/// The machine's CPUs by sysfs: those online, their sockets, cores and NUMA nodes.
fn read_topology(system: &Path) -> Topology {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let set = |path: PathBuf| read(path).parse::<CpuSet>().unwrap_or_default();
    let mut numa: BTreeMap<u32, u32> = BTreeMap::new();
    for node in set(system.join("node/online")).0 {
        for cpu in set(system.join(format!("node/node{node}/cpulist"))).0 {
            numa.insert(cpu, node);
        }
    }
    let places = set(system.join("cpu/online")).0.into_iter().map(|cpu| {
        let dir = system.join(format!("cpu/cpu{cpu}/topology"));
        let siblings = set(dir.join("thread_siblings_list"));
        let place = Place {
            numa: numa.get(&cpu).copied().unwrap_or(0),
            socket: read(dir.join("physical_package_id")).trim().parse().unwrap_or(0),
            core: siblings.0.first().copied().unwrap_or(cpu),
        };
        (cpu, place)
    });
    Topology(places.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet_config::KubeletConfig;
    use serde_json::json;

    /// Two cores with two threads each.
    fn topology() -> Topology {
        Topology((0..4).map(|cpu| (cpu, Place { numa: 0, socket: 0, core: cpu / 2 * 2 })).collect())
    }

    fn settings(policy: &str, reserved: &str, options: &[&str]) -> Settings {
        let mut settings = KubeletConfig::default().settings;
        settings.cpu_manager_policy = policy.into();
        settings.reserved_system_cpus = reserved.into();
        settings.cpu_manager_policy_options =
            options.iter().map(|name| ((*name).to_owned(), "true".to_owned())).collect();
        settings
    }

    fn pod(uid: &str, cpu: &str) -> Pod {
        let list = json!({"cpu": cpu, "memory": "1Mi"});
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": list, "limits": list}}]}}))
        .unwrap()
    }

    #[test]
    fn cpus_are_given_kept_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Cpus::with(&settings(STATIC, "0", &[]), dir.path(), topology());
        let cpus = open().unwrap();
        let mut shared = cpus.follow();
        assert_eq!(cpus.allocatable(), [1, 2, 3]);
        cpus.allocate(&pod("a", "2")).unwrap();
        assert!(shared.has_changed().unwrap());
        assert_eq!(shared.borrow_and_update().to_string(), "0-1");
        assert_eq!(cpus.exclusive("a", "c"), [2, 3]);
        assert!(cpus.has_own("a", None) && cpus.has_own("a", Some("c")) && !cpus.has_own("a", Some("x")));
        cpus.allocate(&pod("b", "500m")).unwrap();
        assert_eq!((cpus.of("a", "c").as_deref(), cpus.of("b", "c").as_deref()), (Some("2-3"), Some("0-1")));
        assert!(!cpus.has_own("b", None));
        let refusal = cpus.allocate(&pod("d", "2")).unwrap_err();
        assert_eq!(refusal.reason, "UnexpectedAdmissionError");
        assert_eq!(
            refusal.message,
            "Allocate failed due to not enough cpus available to satisfy request: requested=2, available=1, which is unexpected"
        );
        drop(cpus);
        let cpus = open().unwrap();
        assert_eq!(cpus.exclusive("a", "c"), [2, 3], "a new agent knows");
        cpus.release("a");
        assert_eq!(cpus.of("b", "c").as_deref(), Some("0-3"));
        let other = Cpus::with(&settings("none", "", &[]), dir.path(), topology()).err().unwrap();
        assert!(other.to_string().contains("differs from state checkpoint policy \"static\""), "{other}");
    }

    #[test]
    fn without_the_policy_nothing_is_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let cpus = Cpus::with(&settings("none", "", &[]), dir.path(), topology()).unwrap();
        cpus.allocate(&pod("a", "2")).unwrap();
        assert_eq!(cpus.of("a", "c"), None);
        assert!(cpus.exclusive("a", "c").is_empty() && cpus.allocatable().is_empty());
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(text, r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#);
    }

    #[test]
    fn options_and_reservations() {
        let open = |reserved: &str, options: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            Cpus::with(&settings(STATIC, reserved, options), dir.path(), topology())
        };
        let error = |reserved: &str, options: &[&str]| open(reserved, options).err().unwrap().to_string();
        assert!(error("", &[]).ends_with("to be greater than zero"));
        assert!(error("7", &[]).starts_with("[cpumanager] unable to reserve"));
        assert_eq!(error("0", &["no-such"]), "[cpumanager] unsupported cpumanager option: \"no-such\"");
        let cpus = open("0", &[FULL_CORES, STRICT]).unwrap();
        assert_eq!(cpus.of("x", "c").as_deref(), Some("1-3"), "reserved ones are not shared");
        let refusal = cpus.allocate(&pod("a", "1")).unwrap_err();
        assert_eq!(refusal.reason, "SMTAlignmentError");
        assert_eq!(refusal.message, "SMT Alignment Error: requested 1 cpus not multiple cpus per core = 2");
        cpus.allocate(&pod("a", "2")).unwrap();
        assert_eq!(cpus.exclusive("a", "c"), [2, 3]);
    }

    #[test]
    fn this_machine() {
        let topology = read_topology(Path::new("/sys/devices/system"));
        assert!(!topology.0.is_empty());
        assert!(topology.0.values().all(|place| topology.0.contains_key(&place.core)), "{topology:?}");
    }
}
