//! Real containers behind real shims, connected to a network namespace made for the test.

use super::{Api, is_ready, pod};
use crate::config::AgentConfig;
use crate::dataplane::{DatapathError, Endpoint, Peer, PodDatapath, PodMtu};
use crate::image::ImageStore;
use crate::image::testing::{busybox_layer, docker_archive};
use crate::network::{Bandwidth, Network, NetworkError, PodNetwork};
use crate::pod::classes::Classes;
use crate::pod::context::{Context, Images};
use crate::pod::events::Recorder;
use crate::pod::manager::Manager;
use crate::pod::objects::{Data, Key, Kind, Objects};
use crate::pod::services::Services;
use crate::pod::status_manager::StatusManager;
use crate::pod::users::UserNamespaces;
use crate::runtime::fake::{Fault, FaultyRuntime};
use crate::runtime::{Runtime, RuntimeConfig, ShimRuntime};
use kelp_model::policy::PodFacts;
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

static NUMBER: AtomicU32 = AtomicU32::new(0);

struct NoDatapath;

impl PodDatapath for NoDatapath {
    fn set_peers(&self, _: &[Peer], _: bool) -> Result<Option<u32>, DatapathError> {
        Ok(None)
    }

    fn pod_mtu(&self) -> watch::Receiver<PodMtu> {
        watch::channel(PodMtu::new(1_500, 0)).1
    }

    async fn attach_endpoint(&self, _endpoint: &Endpoint) -> Result<(), DatapathError> {
        Ok(())
    }

    async fn detach_endpoint(&self, _addresses: &[std::net::IpAddr]) -> Result<(), DatapathError> {
        Ok(())
    }
}

pub(super) struct Host {
    pub(super) api: Api,
    pub(super) dir: tempfile::TempDir,
    pub(super) config: AgentConfig,
}

/// When an agent dies: asked for every call that changes something, by its name.
type Plan = Arc<dyn Fn(&'static str) -> Option<Fault> + Send + Sync>;

/// The network of an agent that may die in a call.
pub(super) struct MortalNetwork {
    inner: Network<NoDatapath>,
    plan: Plan,
}

impl MortalNetwork {
    async fn call<T>(&self, name: &'static str, call: impl Future<Output = T>) -> T {
        match (self.plan)(name) {
            Some(Fault::DiesBefore) => std::future::pending().await,
            Some(_) => {
                call.await;
                std::future::pending().await
            }
            None => call.await,
        }
    }
}

impl PodNetwork for MortalNetwork {
    async fn connect(
        &self,
        pod: &PodFacts,
        bandwidth: Bandwidth,
        netns: &std::path::Path,
    ) -> Result<Vec<std::net::IpAddr>, NetworkError> {
        self.call("connect", self.inner.connect(pod, bandwidth, netns)).await
    }

    async fn disconnect(&self, uid: &str) -> Result<(), NetworkError> {
        self.call("disconnect", self.inner.disconnect(uid)).await
    }
}

pub(super) struct Agent {
    pub(super) manager: Manager<FaultyRuntime<ShimRuntime>, MortalNetwork>,
    pub(super) runtime: ShimRuntime,
    shutdown: CancellationToken,
}

impl Host {
    pub(super) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("kelp-pods-").tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut config = AgentConfig::new("node1", vec!["192.0.2.1".parse().unwrap()]);
        config.data_dir = dir.path().join("data");
        config.run_dir = dir.path().join("run");
        config.pod_log_dir = dir.path().join("logs");
        config.cgroup_root = format!("kelp-test-pods-{}-{number}", std::process::id()).into();
        config.resolv_conf = dir.path().join("resolv.conf");
        std::fs::create_dir_all(config.data_dir.join("pods")).unwrap();
        std::fs::write(&config.resolv_conf, "nameserver 192.0.2.53\nsearch example.test\n").unwrap();
        let archive = dir.path().join("busybox.tar");
        docker_archive(&archive, "busybox:test", &[busybox_layer()], &json!({"Env": ["FROM_IMAGE=1"]}));
        ImageStore::open(&config.data_dir.join("images")).unwrap().import(&archive, None).unwrap();
        Self { api: Api::default(), dir, config }
    }

    async fn agent(&self) -> Agent {
        self.mortal_agent(Arc::new(|_| None)).await
    }

    pub(super) async fn mortal_agent(&self, plan: Plan) -> Agent {
        let shutdown = CancellationToken::new();
        let client = self.api.client();
        let images = ImageStore::open(&self.config.data_dir.join("images")).unwrap();
        let runtime_config = RuntimeConfig {
            run_dir: self.config.run_dir.clone(),
            data_dir: self.config.data_dir.clone(),
            cgroup_root: self.config.cgroup_root.clone(),
            cgroup2_dir: None,
            log_max_size: crate::runtime::LOG_MAX_SIZE,
            log_max_files: crate::runtime::LOG_MAX_FILES,
        };
        let runtime = ShimRuntime::open(&runtime_config, images.clone()).await.unwrap();
        let (_keep, cidrs) =
            watch::channel(vec!["10.244.9.0/24".parse().unwrap(), "fd00:10:244:9::/64".parse().unwrap()]);
        let (status, write_status) = StatusManager::new(client.clone(), shutdown.clone());
        let (events, write_events) =
            Recorder::new(client.clone(), "node1".into(), Default::default(), shutdown.clone());
        tokio::spawn(write_status);
        tokio::spawn(write_events);
        let key = |kind, name: &str| Key { kind, namespace: "n".into(), name: name.into() };
        let objects = Objects::fixed([
            (key(Kind::ConfigMap, "cm"), Data::from([("greeting".to_owned(), b"hello".to_vec())])),
            (key(Kind::Secret, "sec"), Data::from([("password".to_owned(), b"x".to_vec())])),
        ]);
        let context = Arc::new(Context {
            volumes: crate::pod::volumes::NodeVolumes::alone(),
            node: tokio::sync::watch::channel(None).1,
            states: Default::default(),
            devices: Default::default(),
            cpus: Default::default(),
            pods: Default::default(),
            network: MortalNetwork {
                inner: Network::new(NoDatapath, &self.config.data_dir, cidrs).unwrap(),
                plan: plan.clone(),
            },
            runtime: FaultyRuntime::new(runtime.clone(), move |_, name| plan(name)),
            images: Images::from(images),
            objects,
            services: Services::none(),
            status,
            events,
            classes: Classes::new(client, vec!["runc".into()]),
            users: UserNamespaces::open(&self.config.data_dir.join("pods"), 110),
            node_milli_cpu: 2000,
            node_memory: 1 << 34,
            swap: None,
            config: self.config.clone(),
        });
        Agent { manager: Manager::new(context, Default::default(), shutdown.clone()), runtime, shutdown }
    }

    fn log(&self, name: &str, container: &str, attempt: u32) -> String {
        let dir = self.config.pod_logs("n", name, &format!("uid-{name}"));
        let text =
            std::fs::read_to_string(dir.join(container).join(format!("{attempt}.log"))).unwrap_or_default();
        let line = |l: &str| l.splitn(4, ' ').nth(3).unwrap_or_default().to_owned();
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Whatever a failed test leaves goes with it.
impl Drop for Host {
    fn drop(&mut self) {
        let config = self.config.clone();
        let clean = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let images = ImageStore::open(&config.data_dir.join("images")).unwrap();
                let settings = RuntimeConfig {
                    run_dir: config.run_dir.clone(),
                    data_dir: config.data_dir.clone(),
                    cgroup_root: config.cgroup_root.clone(),
                    cgroup2_dir: None,
                    log_max_size: crate::runtime::LOG_MAX_SIZE,
                    log_max_files: crate::runtime::LOG_MAX_FILES,
                };
                let shims = ShimRuntime::open(&settings, images).await.unwrap();
                for sandbox in shims.list().await.unwrap() {
                    shims.remove_sandbox(&sandbox.id).await.unwrap();
                }
            });
            for pod in std::fs::read_dir(config.data_dir.join("pods")).unwrap().flatten() {
                crate::pod::volumes::tear_down_volumes(&pod.path()).unwrap();
            }
            for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
                remove_cgroups(&controller.path().join(&config.cgroup_root));
            }
        });
        let _ = clean.join();
    }
}

fn remove_cgroups(path: &std::path::Path) {
    for child in std::fs::read_dir(path).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        remove_cgroups(&child.path());
    }
    let _ = std::fs::remove_dir(path);
}

impl Agent {
    pub(super) fn create(&mut self, host: &Host, name: &str, spec: serde_json::Value) {
        let mut made = pod(name, spec);
        for c in made
            .spec
            .iter_mut()
            .flat_map(|s| s.containers.iter_mut().chain(s.init_containers.iter_mut().flatten()))
        {
            c.image = Some("busybox:test".into());
        }
        host.api.add(&made);
        self.manager.apply(made);
    }

    pub(super) fn delete(&mut self, host: &Host, name: &str, grace: i64) {
        let mut pod = host.api.pod(name).unwrap();
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        host.api.add(&pod);
        self.manager.apply(pod);
    }

    pub(super) async fn until(&mut self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        let mut events = self.runtime.events();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(40), "{what} does not come");
            let _ = tokio::time::timeout(Duration::from_millis(50), events.recv()).await;
            self.manager.wake_all();
        }
    }

    pub(super) async fn stop(mut self) {
        self.shutdown.cancel();
        self.manager.drain().await;
    }
}

/// Runs async work in a network namespace of its own.
fn in_namespace(work: impl AsyncFnOnce() + Send + 'static) {
    on_host_of_its_own(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work());
    });
}

/// Runs work in a network namespace of its own.
pub(super) fn on_host_of_its_own(work: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for arguments in [vec!["link", "set", "lo", "up"], vec!["addr", "add", "192.0.2.1/32", "dev", "lo"]] {
            assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
        }
        work();
    })
    .join()
    .unwrap();
}

pub(super) fn assert_no_trace(host: &Host) {
    assert_eq!(std::fs::read_dir(host.config.data_dir.join("pods")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(&host.config.pod_log_dir).unwrap().count(), 0);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(host.dir.path().to_str().unwrap()), "{mounts}");
    let net = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    assert!(!net.contains("kpod"), "{net}");
    let cgroup = PathBuf::from("/sys/fs/cgroup/memory").join(&host.config.cgroup_root);
    let left = std::fs::read_dir(cgroup.join("kubepods/besteffort")).into_iter().flatten().flatten();
    assert_eq!(left.filter(|e| e.path().is_dir()).count(), 0);
}

#[test]
fn a_pod_sees_what_it_was_promised_and_leaves_nothing() {
    in_namespace(async || {
        let host = Host::new();
        let mut agent = host.agent().await;
        let script = "hostname; cat /etc/hosts; cat /etc/resolv.conf; busybox env; cat /cm/greeting /s/password; echo; \
                      stat -c '%a %u:%g' /cache /dev/termination-log; ip addr show eth0; ip route; \
                      echo said > /dev/termination-log; cat /shared/from-init; exit 3";
        agent.create(&host, "p", json!({
            "restartPolicy": "Never",
            "volumes": [{"name": "cm", "configMap": {"name": "cm"}}, {"name": "s", "secret": {"secretName": "sec"}},
                        {"name": "cache", "emptyDir": {"medium": "Memory"}}, {"name": "shared", "emptyDir": {}}],
            "securityContext": {"fsGroup": 2000},
            "initContainers": [{"name": "i", "command": ["sh", "-c", "echo first > /shared/from-init"],
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}],
            "containers": [{"name": "c", "command": ["sh", "-c", script],
                "env": [{"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "password"}}}],
                "volumeMounts": [{"name": "cm", "mountPath": "/cm"}, {"name": "s", "mountPath": "/s"},
                    {"name": "cache", "mountPath": "/cache"}, {"name": "shared", "mountPath": "/shared", "readOnly": true}]}]
        }));
        let api = host.api.clone();
        agent.until("the end", || api.status("p").phase.as_deref() == Some("Failed")).await;
        let status = host.api.status("p");
        let t = status.container_statuses.as_ref().unwrap()[0]
            .state
            .as_ref()
            .unwrap()
            .terminated
            .clone()
            .unwrap();
        assert_eq!(
            (t.exit_code, t.reason.as_deref(), t.message.as_deref()),
            (3, Some("Error"), Some("said\n"))
        );
        assert_eq!(status.pod_ip.as_deref(), Some("10.244.9.2"));
        let log = host.log("p", "c", 0);
        for expected in [
            "p\n# Kubernetes-managed hosts file.",
            "10.244.9.2\tp\nfd00:10:244:9::2\tp",
            "search n.svc.cluster.local svc.cluster.local cluster.local example.test\nnameserver 10.96.0.10\noptions ndots:5",
            "FROM_IMAGE=1",
            "HOSTNAME=p",
            "WHERE=10.244.9.2",
            "SECRET=x",
            "hellox",
            "3777 0:2000",
            "666 0:0",
            "inet 10.244.9.2/32",
            "default via 169.254.1.1 dev eth0",
            "first",
        ] {
            assert!(log.contains(expected), "{expected:?} is missing in\n{log}");
        }
        agent.delete(&host, "p", 1);
        agent.until("deletion", || api.pod("p").is_none()).await;
        agent.stop().await;
        assert_no_trace(&host);
    });
}

#[test]
fn a_running_pod_survives_the_agent_and_ends_in_time() {
    in_namespace(async || {
        let host = Host::new();
        let mut agent = host.agent().await;
        let api = host.api.clone();
        let spec = json!({"containers": [{"name": "c", "command": ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"],
            "readinessProbe": {"tcpSocket": {"port": 1}, "failureThreshold": 1, "periodSeconds": 1}},
            {"name": "web", "command": ["sh", "-c", "trap 'exit 0' TERM; touch /tmp/up; while :; do sleep 0.1; done"],
             "livenessProbe": {"exec": {"command": ["ls", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 1},
             "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo hook > /tmp/hook"]}}}}]});
        agent.create(&host, "p", spec);
        agent.until("running", || api.status("p").phase.as_deref() == Some("Running")).await;
        agent
            .until("refused", || {
                api.has_event("Readiness probe failed: dial tcp 10.244.9.2:1: connect: connection refused")
            })
            .await;
        assert!(!is_ready(&api.status("p")));
        let before = agent.runtime.list().await.unwrap();
        agent.stop().await;
        let mut agent = host.agent().await;
        let old = api.pod("p").unwrap();
        agent.manager.apply(old.clone());
        agent.manager.reset(&HashSet::from(["uid-p".to_owned()])).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let after = agent.runtime.list().await.unwrap();
        assert_eq!(before[0].shim_pid, after[0].shim_pid);
        assert_eq!(before[0].containers, after[0].containers, "nothing was restarted");
        assert_eq!(api.status("p").container_statuses, old.status.unwrap().container_statuses);
        let start = Instant::now();
        agent.delete(&host, "p", 2);
        agent.until("deletion", || api.pod("p").is_none()).await;
        assert!(
            start.elapsed() >= Duration::from_secs(2) && start.elapsed() < Duration::from_secs(8),
            "{:?}",
            start.elapsed()
        );
        let last = api.0.lock().history.last().unwrap().1.clone();
        let codes: Vec<i32> = last
            .container_statuses
            .unwrap()
            .iter()
            .map(|s| s.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code)
            .collect();
        assert_eq!(codes, [137, 0]);
        agent.stop().await;
        assert_no_trace(&host);
    });
}

#[test]
fn a_command_that_does_not_exist() {
    in_namespace(async || {
        let host = Host::new();
        let mut agent = host.agent().await;
        let api = host.api.clone();
        agent.create(&host, "p", json!({"restartPolicy": "Never", "containers": [{"name": "c", "command": ["/no/such/binary", "x"]}]}));
        agent.until("failed", || api.status("p").phase.as_deref() == Some("Failed")).await;
        let t = api.status("p").container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
        assert_eq!(t.reason.as_deref(), Some("StartError"));
        assert!([127, 128].contains(&t.exit_code) && t.message.unwrap().contains("/no/such/binary"));
        agent.delete(&host, "p", 0);
        agent.until("deletion", || api.pod("p").is_none()).await;
        agent.stop().await;
        assert_no_trace(&host);
    });
}
