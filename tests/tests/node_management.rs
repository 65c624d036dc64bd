//! A node by its KubeletConfiguration: what it offers and shows, its serving certificate, devices of a plugin.

use anyhow::{Context, Result, ensure};
use hyper::body::Incoming;
use kelp_agent::device::api::{
    AllocatableResources, AllocateRequest, AllocateResponse, Allocated, Device, DeviceSpec, Empty, Listed,
    Options, PodResourcesList, Register,
};
use kelp_agent::grpc::{self, Status};
use kelp_tests::{Cluster, eventually};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const CLIENT: &str = env!("CARGO_BIN_EXE_client");
/// The sandbox's only node.
const NODE: &str = "t-management-1";
const RESOURCE: &str = "example.test/thing";
const LIMIT: Duration = Duration::from_secs(20);

const CONFIG: &str = "
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
maxPods: 7
kubeReserved: {cpu: 100m, memory: 64Mi}
cpuManagerPolicy: static
evictionHard: {memory.available: 32Mi}
serverTLSBootstrap: true
registerWithTaints: [{key: example.test/new, value: v, effect: PreferNoSchedule}]
notAField: 1
";

const DROP_IN: &str = "
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
maxPods: 9
podPidsLimit: 64
";

fn json(cluster: &Cluster, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(args)?)?)
}

#[test]
fn a_node_by_its_configuration() -> Result<()> {
    let layout = xtask::sandbox::Layout::new("t-management")?;
    let (config, drop_ins) = (layout.dir().join("config.yaml"), layout.dir().join("config.d"));
    let arguments = [("--config", &config), ("--config-dir", &drop_ins)];
    let arguments =
        arguments.iter().flat_map(|(k, v)| [(*k).to_owned(), v.to_string_lossy().into_owned()]).collect();
    let cluster = Cluster::up_with("t-management", 1, CLIENT, arguments, |layout| {
        std::fs::create_dir_all(layout.dir().join("config.d")).context("make the directories")?;
        std::fs::write(layout.dir().join("config.yaml"), CONFIG)?;
        std::fs::write(layout.dir().join("config.d/10-more.conf"), DROP_IN)?;
        Ok(())
    })?;
    cluster.wait(&format!("node/{NODE}"), "condition=Ready", 60)?;
    what_it_offers(&cluster)?;
    what_it_shows(&cluster)?;
    its_certificate(&cluster)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    devices(&cluster, &runtime)?;
    cpus(&cluster, &runtime)
}

fn what_it_offers(cluster: &Cluster) -> Result<()> {
    let node = json(cluster, &["get", "node", NODE, "-o", "json"])?;
    let (all, left) = (&node["status"]["capacity"], &node["status"]["allocatable"]);
    ensure!(all["pods"] == "9" && left["pods"] == "9", "the drop-in comes later: {all}");
    let cpus: u64 = all["cpu"].as_str().context("cpu")?.parse()?;
    ensure!(left["cpu"] == format!("{}m", cpus * 1000 - 100), "{left}");
    let kib = |list: &Value| -> Result<u64> {
        Ok(list["memory"].as_str().and_then(|m| m.strip_suffix("Ki")).context("memory")?.parse()?)
    };
    ensure!(kib(all)? - kib(left)? == 96 << 10, "{all} {left}");
    let taints = node["spec"]["taints"].to_string();
    ensure!(taints.contains("example.test/new"), "{taints}");
    Ok(())
}

fn what_it_shows(cluster: &Cluster) -> Result<()> {
    let shown = json(cluster, &["get", "--raw", &format!("/api/v1/nodes/{NODE}/proxy/configz")])?;
    let shown = &shown["kubeletconfig"];
    ensure!(shown["maxPods"] == 9 && shown["podPidsLimit"] == 64, "{shown}");
    ensure!(shown["evictionHard"] == serde_json::json!({"memory.available": "32Mi"}), "{shown}");
    let log = std::fs::read_to_string(cluster.node(1).log_file())?;
    ensure!(log.contains("strict decoding error: unknown field"), "the unknown field is not named");
    let probes = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{NODE}/proxy/metrics/probes")])?;
    ensure!(probes.contains("process_start_time_seconds"), "{probes}");
    Ok(())
}

/// The serving certificate is asked for, and used once somebody approves it.
fn its_certificate(cluster: &Cluster) -> Result<()> {
    let name = eventually("the node's request", || {
        let list = json(cluster, &["get", "csr", "-o", "json"])?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let own = items.iter().find(|i| i["spec"]["signerName"] == "kubernetes.io/kubelet-serving");
        Ok(own.and_then(|i| i["metadata"]["name"].as_str()).map(str::to_owned))
    })?;
    cluster.kubectl(&["certificate", "approve", &name])?;
    let file = cluster.node(1).data_dir().join("kubelet-pki/kubelet-server-current.pem");
    eventually("the certificate", || Ok(file.exists().then_some(())))
}

/// A plugin with two devices.
async fn plugin(request: http::Request<Incoming>) -> grpc::Answer {
    match request.uri().path() {
        "/v1beta1.DevicePlugin/ListAndWatch" => {
            grpc::server_streaming(request, |_: Empty| async move {
                let device = |id: &str| Device { id: id.into(), health: "Healthy".into(), topology: None };
                let list = Listed { devices: vec![device("a"), device("b")] };
                let lists = futures::stream::once(async move { Ok(list) });
                Ok(futures::StreamExt::chain(lists, futures::stream::pending::<Result<Listed, Status>>()))
            })
            .await
        }
        "/v1beta1.DevicePlugin/Allocate" => {
            grpc::unary(request, |asked: AllocateRequest| async move {
                let ids = asked.container_requests.into_iter().next().unwrap_or_default().devices_ids;
                let node = DeviceSpec {
                    host_path: "/dev/null".into(),
                    container_path: "/dev/thing".into(),
                    permissions: "rw".into(),
                };
                let answer = Allocated {
                    envs: [("THINGS".to_owned(), ids.join(","))].into(),
                    devices: vec![node],
                    ..Allocated::default()
                };
                Ok(AllocateResponse { container_responses: vec![answer] })
            })
            .await
        }
        _ => grpc::unknown(&request),
    }
}

async fn register(dir: &Path) -> Result<(), Status> {
    let client = grpc::Client::connect(&dir.join("kubelet.sock")).await?;
    let request = Register {
        version: "v1beta1".into(),
        endpoint: "thing.sock".into(),
        resource_name: RESOURCE.into(),
        options: Some(Options::default()),
    };
    client.unary::<_, Empty>("/v1beta1.Registration/Register", request, LIMIT).await.map(|_| ())
}

fn pod(name: &str, things: u32) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, \
         containers: [{{name: c, image: 'kelp/hello:dev', imagePullPolicy: Never, \
         resources: {{limits: {{{RESOURCE}: {things}}}}}}}]}}}}"
    )
}

fn devices(cluster: &Cluster, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let dir = cluster.node(1).kubelet_dir();
    let plugins = dir.join("device-plugins");
    let end = CancellationToken::new();
    let enter = runtime.enter();
    let listener = grpc::listen(&plugins.join("thing.sock"))?;
    runtime.spawn(grpc::serve(listener, plugin, end.clone()));
    drop(enter);
    runtime.block_on(register(&plugins)).map_err(|e| anyhow::anyhow!(grpc::text(&e)))?;
    let offered = |count: &'static str| {
        eventually("the node's devices", || {
            let node = json(cluster, &["get", "node", NODE, "-o", "json"])?;
            Ok((node["status"]["allocatable"][RESOURCE] == count).then_some(()))
        })
    };
    offered("2")?;
    cluster.apply(&pod("first", 1))?;
    cluster.wait("pod/first", "condition=Ready", 30)?;
    let list: PodResourcesList = runtime
        .block_on(async {
            let client = grpc::Client::connect(&dir.join("pod-resources/kubelet.sock")).await?;
            client.unary("/v1.PodResourcesLister/List", Empty {}, LIMIT).await
        })
        .map_err(|e| anyhow::anyhow!(grpc::text(&e)))?;
    let own = list.pod_resources.iter().find(|p| p.name == "first").context("the pod's resources")?;
    ensure!(own.containers[0].devices[0].resource_name == RESOURCE, "{own:?}");
    let id = own.containers[0].devices[0].device_ids.clone();
    // Its environment and its device, as the host sees them.
    let pid = eventually("the container's process", || {
        let is_own = |entry: &std::fs::DirEntry| {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let wanted = format!("THINGS={}", id.join(","));
            environment.split(|b| *b == 0).any(|v| v == wanted.as_bytes())
        };
        Ok(std::fs::read_dir("/proc")?.flatten().find(is_own).map(|e| e.path()))
    })?;
    ensure!(pid.join("root/dev/thing").exists(), "the container has no /dev/thing");
    // A plugin that is gone takes its devices with it, but not the pod.
    end.cancel();
    offered("0")?;
    ensure!(cluster.field("pod/first", "{.status.phase}")? == "Running", "the pod went with the plugin");
    cluster.kubectl(&["delete", "pod", "first", "--wait=true"])?;
    Ok(())
}

/// CPUs in the kernel's list format.
fn cpu_set(text: &str) -> Result<BTreeSet<i64>> {
    let mut found = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        found.extend(first.parse::<i64>()?..=last.parse()?);
    }
    Ok(found)
}

/// The CPUs that the container of a pod may run on, as the kernel tells of its process.
fn cpus_of(pod: &str) -> Result<BTreeSet<i64>> {
    let is_own = |entry: &std::fs::DirEntry| {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|v| v == format!("CPUS_OF={pod}").as_bytes())
    };
    let process = std::fs::read_dir("/proc")?.flatten().find(is_own).context("the pod has no process")?;
    let status = std::fs::read_to_string(process.path().join("status"))?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    cpu_set(list.context("no list of CPUs")?)
}

/// A container of a guaranteed pod has a CPU to itself, which others that run leave to it.
fn cpus(cluster: &Cluster, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let all = cpu_set(&std::fs::read_to_string("/sys/devices/system/cpu/online")?)?;
    let pod = |name: &str, resources: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, \
             containers: [{{name: c, image: 'kelp/hello:dev', imagePullPolicy: Never, \
             env: [{{name: CPUS_OF, value: {name}}}], resources: {resources}}}]}}}}"
        )
    };
    cluster.apply(&pod("shares", "{}"))?;
    cluster.wait("pod/shares", "condition=Ready", 30)?;
    ensure!(cpus_of("shares")? == all, "nobody has CPUs alone");
    cluster.apply(&pod("alone", "{limits: {cpu: '1', memory: 64Mi}}"))?;
    cluster.wait("pod/alone", "condition=Ready", 30)?;
    let own = cpus_of("alone")?;
    ensure!(own.len() == 1, "{own:?}");
    let rest = &all - &own;
    eventually("the others on the other CPUs", || Ok((cpus_of("shares")? == rest).then_some(())))?;
    let socket = cluster.node(1).kubelet_dir().join("pod-resources/kubelet.sock");
    let asked = runtime.block_on(async {
        let client = grpc::Client::connect(&socket).await?;
        let list: PodResourcesList = client.unary("/v1.PodResourcesLister/List", Empty {}, LIMIT).await?;
        let path = "/v1.PodResourcesLister/GetAllocatableResources";
        let all: AllocatableResources = client.unary(path, Empty {}, LIMIT).await?;
        Ok::<_, Status>((list, all))
    });
    let (list, allocatable) = asked.map_err(|e| anyhow::anyhow!(grpc::text(&e)))?;
    let shown = list.pod_resources.iter().find(|p| p.name == "alone").context("the pod's resources")?;
    ensure!(shown.containers[0].cpu_ids.iter().copied().collect::<BTreeSet<_>>() == own, "{shown:?}");
    // One is kept for the node's daemons.
    ensure!(allocatable.cpu_ids.len() == all.len() - 1, "{allocatable:?}");
    let file = std::fs::read_to_string(cluster.node(1).kubelet_dir().join("cpu_manager_state"))?;
    ensure!(file.contains("\"policyName\":\"static\"") && file.contains("\"entries\""), "{file}");
    cluster.kubectl(&["delete", "pod", "alone", "--wait=true"])?;
    eventually("the CPU back", || Ok((cpus_of("shares")? == all).then_some(())))?;
    cluster.kubectl(&["delete", "pod", "shares", "--wait=true"]).map(drop)
}
