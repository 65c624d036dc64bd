//! Pods on a fake runtime, a fake network and a fake API server; and in [`real`] on the real runtime and network.

mod pull;
mod real;
mod walk;

use crate::config::AgentConfig;
use crate::image::ImageConfig;
use crate::network::{Bandwidth, NetworkError, PodNetwork};
use crate::pod::classes::Classes;
use crate::pod::context::{Context, Images, ResolvedImage};
use crate::pod::events::Recorder;
use crate::pod::manager::Manager;
use crate::pod::objects::Objects;
use crate::pod::pulls::Pulls;
use crate::pod::services::Services;
use crate::pod::status_manager::StatusManager;
use crate::pod::users::UserNamespaces;
use crate::runtime::fake::{Call, FakeRuntime, Fault, FaultyRuntime};
use crate::runtime::{ExecResult, Runtime};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{self, Pod, PodStatus};
use kelp_model::policy::PodFacts;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// An API server that has pods, takes status patches and deletes, and keeps events.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    pods: BTreeMap<String, Value>,
    /// Every status that was ever shown of a pod, by name.
    history: Vec<(String, PodStatus)>,
    events: Vec<String>,
    deleted: Vec<String>,
}

/// As much of a strategic merge as the status manager's patches need.
fn merge(target: &mut Value, patch: &Value) {
    let (Value::Object(target), Value::Object(patch)) = (&mut *target, patch) else {
        *target = patch.clone();
        return;
    };
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        let by = match key.as_str() {
            "conditions" => Some("type"),
            "podIPs" | "hostIPs" => Some("ip"),
            _ => None,
        };
        match (by, value) {
            (_, Value::Null) => {
                target.remove(key);
            }
            (Some(by), Value::Array(items)) => {
                let mut list = target.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
                for item in items {
                    let at = list.iter().position(|l| l[by] == item[by]);
                    match (at, item["$patch"] == "delete") {
                        (Some(at), true) => drop(list.remove(at)),
                        (Some(at), false) => merge(&mut list[at], item),
                        (None, _) => list.push(item.clone()),
                    }
                }
                if let Some(order) = patch.get(&format!("$setElementOrder/{key}")).and_then(Value::as_array) {
                    list.sort_by_key(|l| order.iter().position(|o| o[by] == l[by]));
                }
                target.insert(key.clone(), Value::Array(list));
            }
            (None, Value::Object(_)) if key == "status" || key == "metadata" => {
                merge(target.entry(key.clone()).or_insert(json!({})), value);
            }
            _ if value.is_object() && by.is_none() && !matches!(key.as_str(), "state" | "lastState") => {
                target.insert(key.clone(), value.clone());
            }
            _ => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

impl Api {
    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let (code, answer) = api.answer(parts.method.as_str(), parts.uri.path(), &body);
                Ok::<_, std::convert::Infallible>(
                    http::Response::builder()
                        .status(code)
                        .body(Body::from(answer.to_string().into_bytes()))
                        .unwrap(),
                )
            }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut state = self.0.lock();
        let missing = |code: u16, reason: &str| {
            (
                code,
                json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}),
            )
        };
        let parts: Vec<&str> = path.split('/').collect();
        match (method, parts.get(5).copied(), parts.get(6).copied(), parts.get(7).copied()) {
            ("PATCH", Some("pods"), Some(name), Some("status")) => {
                let Some(pod) = state.pods.get_mut(name) else { return missing(404, "NotFound") };
                if pod["metadata"]["uid"] != body["metadata"]["uid"] {
                    return missing(409, "Precondition failed: UID in precondition");
                }
                merge(pod, body);
                let pod = pod.clone();
                let status = serde_json::from_value(pod["status"].clone()).unwrap();
                state.history.push((name.to_owned(), status));
                (200, pod)
            }
            ("DELETE", Some("pods"), Some(name), None) => {
                assert_eq!(body["gracePeriodSeconds"], 0);
                let same = state
                    .pods
                    .get(name)
                    .is_some_and(|p| p["metadata"]["uid"] == body["preconditions"]["uid"]);
                if !same {
                    return missing(404, "NotFound");
                }
                state.deleted.push(name.to_owned());
                (200, state.pods.remove(name).unwrap())
            }
            ("POST", Some("events"), None, None) => {
                let field = body["involvedObject"]["fieldPath"].as_str().unwrap_or_default().to_owned();
                let (reason, message) = (body["reason"].as_str().unwrap(), body["message"].as_str().unwrap());
                state.events.push(format!("{reason} {field} {message}"));
                (201, body.clone())
            }
            ("PATCH", Some("events"), ..) => (200, json!({"metadata": {"name": "e"}, "involvedObject": {}})),
            _ => missing(404, "NotFound"),
        }
    }

    fn add(&self, pod: &Pod) {
        self.0.lock().pods.insert(pod.metadata.name.clone().unwrap(), serde_json::to_value(pod).unwrap());
    }

    fn pod(&self, name: &str) -> Option<Pod> {
        self.0.lock().pods.get(name).map(|p| serde_json::from_value(p.clone()).unwrap())
    }

    fn status(&self, name: &str) -> PodStatus {
        self.pod(name).and_then(|p| p.status).unwrap_or_default()
    }

    fn phases(&self, name: &str) -> Vec<String> {
        let mut all: Vec<String> = self
            .0
            .lock()
            .history
            .iter()
            .filter(|(n, _)| n == name)
            .filter_map(|(_, s)| s.phase.clone())
            .collect();
        all.dedup();
        all
    }

    fn has_event(&self, text: &str) -> bool {
        self.0.lock().events.iter().any(|e| e.contains(text))
    }
}

/// Hands out addresses and remembers who has one.
#[derive(Clone, Default)]
struct FakeNetwork(Arc<Mutex<BTreeMap<String, IpAddr>>>);

impl PodNetwork for FakeNetwork {
    async fn connect(
        &self,
        pod: &PodFacts,
        _: Bandwidth,
        _netns: &Path,
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let mut leases = self.0.lock();
        let next = u8::try_from(leases.len() + 2).unwrap();
        Ok(vec![*leases.entry(pod.uid.to_string()).or_insert(IpAddr::from([10, 244, 0, next]))])
    }

    async fn disconnect(&self, uid: &str) -> Result<(), NetworkError> {
        self.0.lock().remove(uid);
        Ok(())
    }
}

struct Node<R: Runtime> {
    api: Api,
    runtime: FakeRuntime,
    network: FakeNetwork,
    manager: Manager<R, FakeNetwork>,
    shutdown: CancellationToken,
}

/// What outlives an agent.
struct World {
    api: Api,
    runtime: FakeRuntime,
    network: FakeNetwork,
    dir: tempfile::TempDir,
    pulls: Option<Pulls>,
}

impl World {
    fn new() -> Self {
        Self {
            api: Api::default(),
            runtime: FakeRuntime::new(),
            network: FakeNetwork::default(),
            dir: tempfile::tempdir().unwrap(),
            pulls: None,
        }
    }

    fn agent(&self) -> Node<FakeRuntime> {
        self.agent_on(self.runtime.clone())
    }

    fn agent_on<R: Runtime>(&self, runtime: R) -> Node<R> {
        let shutdown = CancellationToken::new();
        let client = self.api.client();
        let mut config = AgentConfig::new("node1", vec!["192.0.2.1".parse().unwrap()]);
        config.data_dir = self.dir.path().join("data");
        config.pod_log_dir = self.dir.path().join("logs");
        let (status, write_status) = StatusManager::new(client.clone(), shutdown.clone());
        let (events, write_events) =
            Recorder::new(client, "node1".into(), Default::default(), shutdown.clone());
        tokio::spawn(write_status);
        tokio::spawn(write_events);
        // The events of the runtime reach the workers through a task here; the manager's own loop needs a watch.
        let images = Images::new(|reference| {
            let config = ImageConfig { cmd: vec!["run".into()], ..ImageConfig::default() };
            Ok((reference != "absent").then(|| ResolvedImage { id: "sha256:00".into(), config }))
        });
        let images = match &self.pulls {
            Some(pulls) => images.pulling(pulls.clone()),
            None => images,
        };
        let context = Arc::new(Context {
            volumes: crate::pod::volumes::NodeVolumes::alone(),
            node: tokio::sync::watch::channel(None).1,
            states: Default::default(),
            devices: Default::default(),
            cpus: Default::default(),
            pods: Default::default(),
            config,
            runtime,
            network: self.network.clone(),
            images,
            objects: Objects::fixed([]),
            services: Services::none(),
            status,
            events,
            classes: Classes::new(self.api.client(), vec!["runc".into()]),
            users: UserNamespaces::open(&self.dir.path().join("data/pods"), 110),
            node_milli_cpu: 2000,
            node_memory: 1 << 34,
            swap: None,
        });
        let manager = Manager::new(context, Default::default(), shutdown.clone());
        Node {
            api: self.api.clone(),
            runtime: self.runtime.clone(),
            network: self.network.clone(),
            manager,
            shutdown,
        }
    }

    fn pod_dir(&self, uid: &str) -> std::path::PathBuf {
        self.dir.path().join("data/pods").join(uid)
    }
}

impl<R: Runtime> Node<R> {
    fn create(&mut self, pod: &Pod) {
        self.api.add(pod);
        self.manager.apply(pod.clone());
    }

    /// Asks for deletion as the API server does.
    fn delete(&mut self, name: &str, grace: i64) {
        let mut pod = self.api.pod(name).unwrap();
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.api.add(&pod);
        self.manager.apply(pod);
    }

    /// Passes the runtime's events on until `done`.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        let mut events = self.runtime.events();
        while !done(self) {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{what}: {:?}",
                self.api.0.lock().history.last()
            );
            // A hint instead of an event: the manager's loop is not part of these tests.
            let _ = tokio::time::timeout(Duration::from_millis(20), events.recv()).await;
            self.manager.wake_all();
        }
    }

    async fn until_ready(&mut self, name: &str) {
        self.until("ready", |n| is_ready(&n.api.status(name))).await;
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.manager.drain().await;
    }
}

fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn pod(name: &str, spec: Value) -> Pod {
    let mut spec = spec;
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if container["image"].is_null() {
                container["image"] = json!("image");
            }
        }
    }
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}"),
        "generation": 1}, "spec": spec}))
    .unwrap()
}

fn waiting(status: &PodStatus, index: usize) -> String {
    let state =
        status.container_statuses.as_ref().and_then(|s| s.get(index)?.state.clone()).unwrap_or_default();
    state.waiting.and_then(|w| w.reason).unwrap_or_default()
}

#[tokio::test]
async fn a_pod_runs_to_completion_and_is_not_run_again() {
    let world = World::new();
    let mut node = world.agent();
    node.create(&pod("p", json!({"restartPolicy": "Never", "containers": [{"name": "c"}]})));
    node.until_ready("p").await;
    assert_eq!(node.api.status("p").pod_ip.as_deref(), Some("10.244.0.2"));
    assert!(node.runtime.exit("uid-p", "c.0", 0));
    node.until("succeeded", |n| n.api.status("p").phase.as_deref() == Some("Succeeded")).await;
    // Statuses that were overtaken are not sent.
    assert!(
        node.api.phases("p").ends_with(&["Running".into(), "Succeeded".into()]),
        "{:?}",
        node.api.phases("p")
    );
    assert!(node.runtime.list().await.unwrap().is_empty() && node.network.0.lock().is_empty());
    for event in [
        "Pulled spec.containers{c} Container image \"image\" already present on machine and can be accessed by the pod",
        "Created spec.containers{c} Container created",
        "Started spec.containers{c} Container started",
    ] {
        node.until(event, |n| n.api.has_event(event)).await;
    }
    let last = node.api.pod("p").unwrap();
    node.stop().await;
    // Whatever the API server remembers: a restarted agent does not run it again, even if the last status was lost.
    for status in [last.status.clone(), None] {
        let mut node = world.agent();
        node.runtime.clear_calls();
        let mut again = last.clone();
        again.status = status;
        node.create(&again);
        node.until("succeeded again", |n| n.api.status("p").phase.as_deref() == Some("Succeeded")).await;
        assert!(!node.runtime.calls().iter().any(|c| matches!(c, Call::StartContainer(..))));
        node.stop().await;
    }
}

#[tokio::test]
async fn a_bandwidth_that_makes_no_sense_keeps_a_pod_from_starting() {
    let world = World::new();
    let mut node = world.agent();
    let mut slow = pod("p", json!({"containers": [{"name": "c"}]}));
    slow.metadata.annotations = Some([("kubernetes.io/egress-bandwidth".to_owned(), "1".to_owned())].into());
    node.create(&slow);
    let event = "Failed to create pod sandbox: failed to setup network for sandbox \"uid-p\": \
                 reading pod bandwidth annotations: resource is unreasonably small (< 1kbit)";
    node.until("told", |n| n.api.has_event(event)).await;
    assert!(!node.runtime.calls().iter().any(|c| matches!(c, Call::StartContainer(..))));
    node.delete("p", 1);
    node.until("deleted", |n| n.api.pod("p").is_none()).await;
    node.stop().await;
}

#[tokio::test]
async fn a_crash_loop_restarts_once_and_then_backs_off() {
    let world = World::new();
    let mut node = world.agent();
    node.create(&pod("p", json!({"containers": [{"name": "c"}]})));
    node.until_ready("p").await;
    node.runtime.exit("uid-p", "c.0", 1);
    node.until("restarted", |n| {
        n.api.status("p").container_statuses.is_some_and(|s| s[0].restart_count == 1 && s[0].ready)
    })
    .await;
    node.runtime.exit("uid-p", "c.1", 1);
    node.until("backing off", |n| waiting(&n.api.status("p"), 0) == "CrashLoopBackOff").await;
    let status = node.api.status("p");
    let message = status.container_statuses.as_ref().unwrap()[0]
        .state
        .as_ref()
        .unwrap()
        .waiting
        .as_ref()
        .unwrap()
        .message
        .clone();
    assert_eq!(message.unwrap(), "back-off 10s restarting failed container=c pod=p_n(uid-p)");
    assert_eq!(status.phase.as_deref(), Some("Running"));
    node.until("event", |n| n.api.has_event("Back-off restarting failed container c in pod p_n(uid-p)"))
        .await;
    let starts = node.runtime.calls().iter().filter(|c| matches!(c, Call::StartContainer(..))).count();
    assert_eq!(starts, 2);
    node.stop().await;
}

#[tokio::test]
async fn deletion_kills_after_the_grace_period_and_leaves_no_trace() {
    let world = World::new();
    let mut node = world.agent();
    node.runtime.ignore_term("stubborn");
    node.create(&pod("p", json!({"containers": [{"name": "stubborn"}, {"name": "kind"}]})));
    node.until_ready("p").await;
    let start = Instant::now();
    node.delete("p", 3);
    node.until("deleted", |n| n.api.pod("p").is_none()).await;
    assert!(
        start.elapsed() >= Duration::from_secs(3) && start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    assert!(node.runtime.calls().contains(&Call::Signal("uid-p".into(), "stubborn.0".into(), libc::SIGKILL)));
    assert!(!node.runtime.calls().contains(&Call::Signal("uid-p".into(), "kind.0".into(), libc::SIGKILL)));
    let last = node.api.0.lock().history.last().unwrap().1.clone();
    assert_eq!(last.phase.as_deref(), Some("Failed"));
    assert_eq!(
        last.container_statuses.unwrap()[1].state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code,
        137
    );
    assert!(node.runtime.list().await.unwrap().is_empty() && node.network.0.lock().is_empty());
    assert!(!world.pod_dir("uid-p").exists());
    node.manager.drain().await;
}

#[tokio::test]
async fn a_second_deletion_shortens_the_wait() {
    let world = World::new();
    let mut node = world.agent();
    node.runtime.ignore_term("c");
    node.create(&pod("p", json!({"containers": [{"name": "c"}]})));
    node.until_ready("p").await;
    let start = Instant::now();
    node.delete("p", 3600);
    node.until("told", |n| {
        n.runtime.calls().contains(&Call::Signal("uid-p".into(), "c.0".into(), libc::SIGTERM))
    })
    .await;
    node.delete("p", 0);
    node.until("deleted", |n| n.api.pod("p").is_none()).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    node.manager.drain().await;
}

#[tokio::test]
async fn a_restarted_agent_changes_nothing() {
    let world = World::new();
    let mut node = world.agent();
    let spec = json!({"containers": [{"name": "a", "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}, {"name": "b"}]});
    node.create(&pod("p", spec));
    node.until_ready("p").await;
    node.stop().await;
    let before = world.api.pod("p").unwrap();
    world.api.0.lock().history.clear();
    world.runtime.clear_calls();
    let mut node = world.agent();
    node.manager.apply(before.clone());
    node.manager.reset(&HashSet::from(["uid-p".to_owned()])).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    node.manager.wake_all();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.api.0.lock().history.len(), 0, "no status is written: {:?}", world.api.0.lock().history);
    assert!(world.runtime.calls().iter().all(|c| matches!(c, Call::Exec(..))), "{:?}", world.runtime.calls());
    assert_eq!(world.api.pod("p").unwrap().status, before.status);
    node.stop().await;
}

#[tokio::test]
async fn who_a_container_runs_as_is_found_by_an_agent_that_did_not_start_it() {
    let world = World::new();
    let mut node = world.agent();
    let first = pod("p", json!({"containers": [{"name": "c"}]}));
    node.create(&first);
    node.until_ready("p").await;
    node.stop().await;
    // The agent died before it said anything about the container.
    world.api.0.lock().pods.insert("p".to_owned(), json!(first));
    let mut node = world.agent();
    node.manager.apply(first);
    node.manager.reset(&HashSet::from(["uid-p".to_owned()])).await;
    node.until_ready("p").await;
    let status = world.api.pod("p").unwrap().status.unwrap();
    let user = status.container_statuses.unwrap()[0].user.clone().unwrap();
    assert_eq!(json!(user), json!({"linux": {"uid": 7, "gid": 7, "supplementalGroups": [7]}}));
    node.stop().await;
}

#[tokio::test]
async fn pods_that_vanished_meanwhile_are_ended_by_the_first_full_list_alone() {
    let world = World::new();
    let mut node = world.agent();
    node.create(&pod("gone", json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "c"}]})));
    node.create(&pod("stays", json!({"containers": [{"name": "c"}]})));
    node.until_ready("gone").await;
    node.until_ready("stays").await;
    node.stop().await;
    let stays = world.api.pod("stays").unwrap();
    world.api.0.lock().pods.remove("gone");
    let mut node = world.agent();
    node.manager.apply(stays);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.runtime.list().await.unwrap().len(), 2, "nothing is ended before the list is complete");
    node.manager.reset(&HashSet::from(["uid-stays".to_owned()])).await;
    node.until("ended", |n| n.network.0.lock().len() == 1).await;
    node.until("removed", |_| !world.pod_dir("uid-gone").exists()).await;
    let left = world.runtime.list().await.unwrap();
    assert_eq!((left.len(), left[0].id.as_str()), (1, "uid-stays"));
    node.stop().await;
}

#[tokio::test]
async fn init_containers_sidecars_and_the_order_of_ending() {
    let world = World::new();
    let mut node = world.agent();
    let spec = json!({"initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "i"}, {"name": "s2", "restartPolicy": "Always"}],
                      "containers": [{"name": "m"}]});
    node.create(&pod("p", spec));
    node.until("init runs", |n| n.runtime.container_spec("uid-p", "i.0").is_some()).await;
    assert!(node.runtime.container_spec("uid-p", "m.0").is_none());
    node.runtime.exit("uid-p", "i.0", 0);
    node.until_ready("p").await;
    let starts: Vec<String> = node
        .runtime
        .calls()
        .into_iter()
        .filter_map(|c| match c {
            Call::StartContainer(_, id) => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(starts, ["s1.0", "i.0", "s2.0", "m.0"]);
    node.runtime.exit("uid-p", "s2.0", 1);
    node.until("sidecar again", |n| n.runtime.container_spec("uid-p", "s2.1").is_some()).await;
    node.delete("p", 10);
    node.until("deleted", |n| n.api.pod("p").is_none()).await;
    let signals: Vec<String> = node
        .runtime
        .calls()
        .into_iter()
        .filter_map(|c| match c {
            Call::Signal(_, id, _) => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(signals, ["m.0", "s2.1", "s1.0"]);
    node.manager.drain().await;
}

#[tokio::test]
async fn a_missing_image_a_wrong_command_and_a_missing_object_say_so() {
    let world = World::new();
    let mut node = world.agent();
    node.create(&pod(
        "never",
        json!({"containers": [{"name": "c", "image": "absent", "imagePullPolicy": "Never"}]}),
    ));
    node.create(&pod("pull", json!({"containers": [{"name": "c", "image": "absent"}]})));
    node.runtime.fail_start("bad", "exec: \"/no/such\": stat /no/such: no such file or directory", 128);
    node.create(&pod("start", json!({"restartPolicy": "Never", "containers": [{"name": "bad"}]})));
    node.create(&pod(
        "env",
        json!({"containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "no-such-cm"}}]}]}),
    ));
    node.until("never", |n| waiting(&n.api.status("never"), 0) == "ErrImageNeverPull").await;
    node.until("pull", |n| waiting(&n.api.status("pull"), 0) == "ErrImagePull").await;
    node.until("env", |n| waiting(&n.api.status("env"), 0) == "CreateContainerConfigError").await;
    node.until("start", |n| n.api.status("start").phase.as_deref() == Some("Failed")).await;
    let t =
        node.api.status("start").container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((t.exit_code, t.reason.as_deref()), (128, Some("StartError")));
    for event in [
        "Failed spec.containers{c} Error: ErrImageNeverPull",
        "Failed spec.containers{c} Error: ErrImagePull",
        "Error: configmap \"no-such-cm\" not found",
        "kelp image import",
    ] {
        node.until(event, |n| n.api.has_event(event)).await;
    }
    node.until("backs off", |n| waiting(&n.api.status("pull"), 0) == "ImagePullBackOff").await;
    for name in ["never", "pull", "env", "start"] {
        node.delete(name, 1);
        node.until("deleted", |n| n.api.pod(name).is_none()).await;
    }
    assert!(node.network.0.lock().is_empty());
    node.manager.drain().await;
}

#[tokio::test]
async fn probes_gate_readiness_and_restart_what_is_sick() {
    let world = World::new();
    let mut node = world.agent();
    let healthy = Arc::new(Mutex::new((false, true)));
    let state = healthy.clone();
    node.runtime.on_exec(move |_, _, argv| {
        let (ready, alive) = *state.lock();
        let ok = match argv[0].as_str() {
            "ready" => ready,
            _ => alive,
        };
        ExecResult {
            exit_code: i32::from(!ok),
            stdout: b"not yet\n".to_vec(),
            stderr: vec![],
            timed_out: false,
        }
    });
    let probe =
        |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1});
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [
        {"name": "c", "readinessProbe": probe("ready"), "livenessProbe": probe("alive")}]});
    node.create(&pod("p", spec));
    node.until("unready", |n| {
        n.api.has_event("Unhealthy spec.containers{c} Readiness probe failed: not yet\n")
    })
    .await;
    assert!(!is_ready(&node.api.status("p")) && node.api.status("p").phase.as_deref() == Some("Running"));
    healthy.lock().0 = true;
    node.until_ready("p").await;
    healthy.lock().1 = false;
    node.until("killed", |n| {
        n.runtime.calls().contains(&Call::Signal("uid-p".into(), "c.0".into(), libc::SIGTERM))
    })
    .await;
    healthy.lock().1 = true;
    node.until("restarted", |n| {
        n.api.status("p").container_statuses.is_some_and(|s| s[0].restart_count == 1)
    })
    .await;
    node.until("event", |n| {
        n.api.has_event("Killing spec.containers{c} Container c failed liveness probe, will be restarted")
    })
    .await;
    node.until_ready("p").await;
    let states: Vec<v1::ContainerState> = {
        let api = node.api.0.lock();
        let statuses = api.history.iter().filter(|(name, _)| name == "p");
        statuses.filter_map(|(_, s)| s.container_statuses.as_ref()?[0].state.clone()).collect()
    };
    assert!(
        states.iter().all(|s| s.terminated.is_none()),
        "nobody sees it between its end and its start: {states:?}"
    );
    node.stop().await;
}

#[tokio::test]
async fn hooks() {
    let world = World::new();
    let mut node = world.agent();
    node.runtime.on_exec(|_, _, argv| {
        let code = i32::from(argv[0] == "fail") * 7;
        ExecResult { exit_code: code, stdout: vec![], stderr: vec![], timed_out: false }
    });
    let hook = |kind: &str, command: &str| json!({"containers": [{"name": "c", "lifecycle": {kind: {"exec": {"command": [command]}}}}], "terminationGracePeriodSeconds": 1});
    node.create(&pod("bad", hook("postStart", "fail")));
    node.create(&pod("good", hook("postStart", "true")));
    node.create(&pod("stop", hook("preStop", "fail")));
    node.until_ready("good").await;
    node.until("bad", |n| {
        waiting(&n.api.status("bad"), 0) == "PostStartHookError"
            || waiting(&n.api.status("bad"), 0) == "CrashLoopBackOff"
    })
    .await;
    node.until("told", |n| n.api.has_event("Killing spec.containers{c} FailedPostStartHook")).await;
    node.until("told", |n| n.api.has_event("FailedPostStartHook spec.containers{c} PostStartHook failed"))
        .await;
    node.until_ready("stop").await;
    node.delete("stop", 5);
    node.until("deleted", |n| n.api.pod("stop").is_none()).await;
    node.until("told", |n| n.api.has_event("FailedPreStopHook spec.containers{c} PreStopHook failed")).await;
    let calls = node.runtime.calls();
    let exec = calls.iter().position(|c| matches!(c, Call::Exec(s, ..) if s == "uid-stop")).unwrap();
    let term = calls.iter().position(|c| matches!(c, Call::Signal(s, ..) if s == "uid-stop")).unwrap();
    assert!(exec < term);
    node.stop().await;
}

#[tokio::test]
async fn a_lost_sandbox_is_made_again_with_its_restart_count() {
    let world = World::new();
    let mut node = world.agent();
    node.create(&pod("p", json!({"containers": [{"name": "c"}]})));
    node.until_ready("p").await;
    assert!(node.runtime.lose_shim("uid-p"));
    node.until("again", |n| {
        n.api.status("p").container_statuses.is_some_and(|s| s[0].restart_count == 1 && s[0].ready)
    })
    .await;
    for event in ["SandboxChanged", "Killing spec.containers{c} Stopping container c"] {
        node.until("told", |n| n.api.has_event(event)).await;
    }
    let container = &node.api.status("p").container_statuses.unwrap()[0];
    let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref()).unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (143, Some("Error")), "it was asked to stop");
    // Until it runs again its last life is what is shown.
    let history: Vec<PodStatus> = node.api.0.lock().history.iter().map(|(_, s)| s.clone()).collect();
    let ran = history.iter().position(|s| s.phase.as_deref() == Some("Running")).unwrap();
    let shows = |s: &PodStatus| {
        let state = s.container_statuses.as_ref().and_then(|c| c[0].state.clone());
        state.is_some_and(|s| s.running.is_some())
    };
    assert!(history[ran..].iter().all(shows), "{:#?}", &history[ran..]);
    node.stop().await;
}

#[tokio::test]
async fn a_pod_that_is_not_started_again_ends_with_its_sandbox() {
    let world = World::new();
    let mut node = world.agent();
    node.create(&pod("p", json!({"restartPolicy": "Never", "containers": [{"name": "c"}]})));
    node.until_ready("p").await;
    assert!(node.runtime.lose_shim("uid-p"));
    node.until("failed", |n| n.api.status("p").phase.as_deref() == Some("Failed")).await;
    let container = &node.api.status("p").container_statuses.unwrap()[0];
    let end = container.state.as_ref().and_then(|s| s.terminated.as_ref()).unwrap();
    assert_eq!(end.exit_code, 143);
    assert!(!node.api.has_event("SandboxChanged"));
    node.stop().await;
}

#[tokio::test]
async fn pods_have_users_of_their_own_while_they_are_there() {
    let world = World::new();
    let mut node = world.agent();
    for name in ["a", "b"] {
        node.create(&pod(name, json!({"hostUsers": false, "containers": [{"name": "c"}]})));
        node.until_ready(name).await;
    }
    let range = |node: &Node<FakeRuntime>, name: &str| {
        node.runtime.sandbox_spec(&format!("uid-{name}")).unwrap().users.unwrap()
    };
    let (a, b) = (range(&node, "a"), range(&node, "b"));
    assert_eq!((a.host, b.host, a.length), (65_536, 131_072, 65_536));
    node.delete("a", 0);
    node.until("deleted", |n| n.api.pod("a").is_none()).await;
    node.create(&pod("c", json!({"hostUsers": false, "containers": [{"name": "c"}]})));
    node.until_ready("c").await;
    assert_eq!(range(&node, "c"), a);
    node.create(&pod("d", json!({"containers": [{"name": "c"}]})));
    node.until_ready("d").await;
    assert_eq!(node.runtime.sandbox_spec("uid-d").unwrap().users, None);
    node.stop().await;
}

#[tokio::test]
async fn all_containers_start_anew_when_one_asks_for_it() {
    let world = World::new();
    let mut node = world.agent();
    node.create(&pod(
        "p",
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "main"},
        {"name": "watch", "restartPolicy": "Never", "restartPolicyRules":
            [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}]}]}),
    ));
    node.until("init", |n| n.runtime.exit("uid-p", "i.0", 0)).await;
    node.until_ready("p").await;
    let sandbox = node.api.status("p").pod_ip;
    assert!(node.runtime.exit("uid-p", "watch.0", 88));
    node.until("init again", |n| n.runtime.exit("uid-p", "i.1", 0)).await;
    node.until_ready("p").await;
    let status = node.api.status("p");
    let counts: Vec<i32> = status.container_statuses.iter().flatten().map(|c| c.restart_count).collect();
    assert_eq!(counts, [1, 1]);
    assert_eq!(status.init_container_statuses.unwrap()[0].restart_count, 1);
    assert_eq!(status.pod_ip, sandbox, "the sandbox stays");
    let created = node.runtime.calls().iter().filter(|c| matches!(c, Call::CreateSandbox(_))).count();
    assert_eq!(created, 1);
    node.stop().await;
}

#[tokio::test]
async fn a_missing_runtime_class_is_told() {
    let world = World::new();
    let mut node = world.agent();
    node.create(&pod("p", json!({"runtimeClassName": "absent", "containers": [{"name": "c"}]})));
    let text = "Failed to create pod sandbox: runtimeclass.node.k8s.io \"absent\" not found";
    node.until("told", |n| n.api.has_event(text)).await;
    assert!(node.runtime.list().await.unwrap().is_empty());
    node.stop().await;
}

#[tokio::test]
async fn an_active_deadline_ends_the_pod() {
    let world = World::new();
    let mut node = world.agent();
    node.create(&pod("p", json!({"activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 1, "containers": [{"name": "c"}]})));
    node.until("failed", |n| n.api.status("p").phase.as_deref() == Some("Failed")).await;
    assert_eq!(node.api.status("p").reason.as_deref(), Some("DeadlineExceeded"));
    assert!(node.runtime.list().await.unwrap().is_empty());
    node.stop().await;
}

#[tokio::test]
async fn every_runtime_call_may_fail_once_before_or_after_its_work() {
    for fault in [Fault::Before, Fault::After] {
        for number in 0..14u64 {
            let world = World::new();
            let faulty =
                FaultyRuntime::new(world.runtime.clone(), move |n, _| (n == number).then_some(fault));
            let mut node = world.agent_on(faulty);
            node.create(&pod(
                "p",
                json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "c"}]}),
            ));
            let label = format!("{fault:?} {number}");
            // A failed create or start is tried again after 10 s, or when something happens: touch the pod.
            let start = Instant::now();
            while !is_ready(&world.api.status("p")) {
                assert!(start.elapsed() < Duration::from_secs(25), "{label}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                node.manager.wake_all();
            }
            let count = world.runtime.list().await.unwrap()[0].containers.len();
            assert_eq!(count, 1, "{label}: the container runs once");
            node.delete("p", 1);
            node.until(&label, |n| n.api.pod("p").is_none()).await;
            assert!(world.runtime.list().await.unwrap().is_empty(), "{label}");
            assert!(world.network.0.lock().is_empty(), "{label}");
            node.stop().await;
        }
    }
}

#[tokio::test]
async fn an_agent_that_dies_anywhere_is_followed_by_one_that_converges() {
    for number in 0..14u64 {
        let world = World::new();
        let stop = CancellationToken::new();
        let trigger = stop.clone();
        let cut = FaultyRuntime::new(world.runtime.clone(), move |n, _| {
            if n >= number {
                trigger.cancel();
            }
            None
        });
        let mut node = world.agent_on(cut);
        node.create(&pod(
            "p",
            json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}),
        ));
        let start = Instant::now();
        while !stop.is_cancelled() && start.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            world.runtime.exit("uid-p", "i.0", 0);
            node.manager.wake_all();
        }
        node.stop().await;
        let mut node = world.agent();
        node.manager.apply(world.api.pod("p").unwrap());
        node.manager.reset(&HashSet::from(["uid-p".to_owned()])).await;
        let runtime = world.runtime.clone();
        node.until("ready", |n| {
            runtime.exit("uid-p", "i.0", 0);
            is_ready(&n.api.status("p"))
        })
        .await;
        for id in ["i.0", "c.0"] {
            let starts = world
                .runtime
                .calls()
                .into_iter()
                .filter(|c| matches!(c, Call::StartContainer(_, i) if i == id));
            assert!(starts.count() <= 2, "cut at {number}");
        }
        let sandboxes = world.runtime.list().await.unwrap();
        assert_eq!(sandboxes[0].containers.len(), 2, "cut at {number}: nothing ran twice");
        node.runtime.exit("uid-p", "c.0", 3);
        node.until("failed", |n| n.api.status("p").phase.as_deref() == Some("Failed")).await;
        node.delete("p", 0);
        node.until("deleted", |n| n.api.pod("p").is_none()).await;
        assert!(world.network.0.lock().is_empty());
        node.stop().await;
    }
}
