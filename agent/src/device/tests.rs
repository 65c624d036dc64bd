use super::api::{Device, DeviceSpec, Listed, Mount, Options, PodName, PodResourcesList, Register};
use super::*;
use crate::server::PodIndex;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

const LIMIT: Duration = Duration::from_secs(20);

/// A plugin with devices that come and go, and what was asked of it.
struct TestPlugin {
    lists: mpsc::Sender<Result<Listed, Status>>,
    asked: Arc<Mutex<Vec<String>>>,
    end: CancellationToken,
}

impl TestPlugin {
    /// Serves at a socket below `dir`.
    fn start(dir: &Path, name: &'static str) -> Self {
        let (lists, receiver) = mpsc::channel(4);
        let receiver = Arc::new(Mutex::new(Some(receiver)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let end = CancellationToken::new();
        let listener = grpc::listen(&dir.join(name)).unwrap();
        let log = asked.clone();
        let answer = move |request: http::Request<hyper::body::Incoming>| {
            let (receiver, log) = (receiver.clone(), log.clone());
            async move {
                let note = move |text: String| log.lock().push(text);
                match request.uri().path().rsplit('/').next().unwrap_or_default() {
                    "ListAndWatch" => {
                        let lists = receiver.lock().take();
                        grpc::server_streaming(request, |_: Empty| async move {
                            let lists = lists.ok_or_else(|| Status::internal("watched twice"))?;
                            Ok(ReceiverStream::new(lists))
                        })
                        .await
                    }
                    "GetPreferredAllocation" => {
                        grpc::unary(request, |asked: PreferredRequests| async move {
                            let request = asked.container_requests.into_iter().next().unwrap_or_default();
                            let last = request.available.into_iter().rev();
                            let chosen = last.take(usize::try_from(request.allocation_size).unwrap_or(0));
                            Ok(Preferred {
                                container_responses: vec![DeviceIds { devices_ids: chosen.collect() }],
                            })
                        })
                        .await
                    }
                    "Allocate" => {
                        grpc::unary(request, |asked: AllocateRequest| async move {
                            let ids =
                                asked.container_requests.into_iter().next().unwrap_or_default().devices_ids;
                            note(format!("allocate {}", ids.join(",")));
                            if ids.iter().any(|id| id == "broken") {
                                return Err(Status::internal("it is broken"));
                            }
                            let answer = Allocated {
                                envs: [("DEVICES".to_owned(), ids.join(","))].into(),
                                mounts: vec![Mount {
                                    host_path: "/opt/lib".into(),
                                    container_path: "/lib/x".into(),
                                    read_only: true,
                                }],
                                devices: vec![DeviceSpec {
                                    host_path: "/dev/null".into(),
                                    container_path: "/dev/x".into(),
                                    permissions: "rw".into(),
                                }],
                                ..Allocated::default()
                            };
                            Ok(AllocateResponse { container_responses: vec![answer] })
                        })
                        .await
                    }
                    "PreStartContainer" => {
                        grpc::unary(request, |ids: DeviceIds| async move {
                            note(format!("start {}", ids.devices_ids.join(",")));
                            Ok(Empty {})
                        })
                        .await
                    }
                    _ => grpc::unknown(&request),
                }
            }
        };
        tokio::spawn(grpc::serve(listener, answer, end.clone()));
        Self { lists, asked, end }
    }

    async fn list(&self, devices: &[(&str, &str)]) {
        self.lists.send(Ok(listed(devices))).await.unwrap();
    }
}

fn listed(list: &[(&str, &str)]) -> Listed {
    let device =
        |(id, health): &(&str, &str)| Device { id: (*id).into(), health: (*health).into(), topology: None };
    Listed { devices: list.iter().map(device).collect() }
}

async fn register(dir: &Path, endpoint: &str, resource: &str, version: &str) -> Result<Empty, Status> {
    let client = grpc::Client::connect(&dir.join("kubelet.sock")).await?;
    let request = Register {
        version: version.into(),
        endpoint: endpoint.into(),
        resource_name: resource.into(),
        options: Some(Options { pre_start_required: true, get_preferred_allocation_available: true }),
    };
    client.unary("/v1beta1.Registration/Register", request, LIMIT).await
}

fn pod(uid: &str, init: Option<u32>, main: u32) -> Pod {
    let container = |name: &str, count: u32| json!({"name": name, "resources": {"limits": {"example.test/gpu": count.to_string(), "cpu": "1"}}});
    let init: Vec<_> = init.into_iter().map(|count| container("init", count)).collect();
    serde_json::from_value(json!({
        "metadata": {"name": uid, "namespace": "n", "uid": uid},
        "spec": {"initContainers": init, "containers": [container("c", main)]},
    }))
    .unwrap()
}

async fn offered(devices: &Devices, capacity: u64, allocatable: u64) {
    let mut offered = devices.offered();
    let wanted = |list: &Vec<Offered>| {
        list.iter().any(|o| {
            o.resource == "example.test/gpu" && (o.capacity, o.allocatable) == (capacity, allocatable)
        })
    };
    tokio::time::timeout(LIMIT, offered.wait_for(wanted)).await.unwrap().unwrap();
}

#[tokio::test]
async fn devices_are_offered_given_kept_and_freed() {
    let dir = tempfile::tempdir().unwrap();
    let plugins = dir.path().join("device-plugins");
    let shutdown = CancellationToken::new();
    let devices = Devices::new(dir.path());
    let served = tokio::spawn(serve(devices.clone(), plugins.clone(), shutdown.clone()));
    // The socket is there a moment later.
    while !plugins.join("kubelet.sock").exists() {
        tokio::task::yield_now().await;
    }
    let refused = register(&plugins, "x.sock", "example.test/gpu", "v1alpha1").await.unwrap_err();
    assert!(refused.message().starts_with("requested API version \"v1alpha1\" is not supported"));
    for bad in ["cpu", "kubernetes.io/x", "example.test/ x"] {
        let refused = register(&plugins, "x.sock", bad, "v1beta1").await.unwrap_err();
        assert_eq!(refused.message(), format!("the ResourceName {bad:?} is invalid"));
    }
    assert!(register(&plugins, "../x.sock", "example.test/gpu", "v1beta1").await.is_err());

    let plugin = TestPlugin::start(&plugins, "gpu.sock");
    register(&plugins, "gpu.sock", "example.test/gpu", "v1beta1").await.unwrap();
    plugin.list(&[("a", "Healthy"), ("b", "Healthy"), ("c", "Healthy"), ("bad", "Unhealthy")]).await;
    offered(&devices, 4, 3).await;

    // The init container's devices are the main one's afterwards; the plugin prefers the last ones.
    let first = pod("u1", Some(1), 2);
    assert!(devices.is_needed(&first));
    devices.allocate(&first).await.unwrap();
    assert!(!devices.is_needed(&first));
    assert_eq!(*plugin.asked.lock(), ["allocate c", "allocate b,c"]);
    devices.allocate(&first).await.unwrap();
    assert_eq!(plugin.asked.lock().len(), 2, "what it has it keeps");
    let grants = devices.start("u1", "c").await.unwrap();
    assert_eq!(plugin.asked.lock().last().unwrap(), "start b,c");
    assert_eq!(grants[0].env["DEVICES"], "b,c");
    assert_eq!(grants[0].mounts, [("/opt/lib".into(), "/lib/x".into(), true)]);
    assert_eq!(grants[0].nodes, [("/dev/null".into(), "/dev/x".into(), "rw".to_owned())]);
    let text = devices.allocate(&pod("u2", None, 2)).await.unwrap_err();
    assert_eq!(
        text,
        "requested number of devices unavailable for example.test/gpu. Requested: 2, Available: 1"
    );
    assert!(devices.start("u1", "none").await.unwrap().is_empty());

    // Who has what is known to those who ask, and after a restart.
    let index = PodIndex::default();
    index.write().insert(("n".into(), "u1".into()), Arc::new(first.clone()));
    let socket = dir.path().join("pod-resources/kubelet.sock");
    tokio::spawn(serve_pod_resources(
        devices.clone(),
        Default::default(),
        index,
        socket.clone(),
        shutdown.clone(),
    ));
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    let client = grpc::Client::connect(&socket).await.unwrap();
    let list: PodResourcesList = client.unary("/v1.PodResourcesLister/List", Empty {}, LIMIT).await.unwrap();
    let shown: Vec<_> =
        list.pod_resources[0].containers[0].devices.iter().map(|d| d.device_ids[0].clone()).collect();
    assert_eq!((shown, list.pod_resources[0].containers.len()), (vec!["b".to_owned(), "c".into()], 1));
    let all: api::AllocatableResources =
        client.unary("/v1.PodResourcesLister/GetAllocatableResources", Empty {}, LIMIT).await.unwrap();
    assert_eq!(all.devices.len(), 3);
    let name = PodName { pod_name: "no".into(), pod_namespace: "n".into() };
    let none = client.unary::<_, api::OnePodResources>("/v1.PodResourcesLister/Get", name, LIMIT).await;
    assert_eq!(none.unwrap_err().message(), "pod no in namespace n not found");
    let again = Devices::new(dir.path());
    assert_eq!(again.0.state.lock().in_use("example.test/gpu"), Ids::from(["b".to_owned(), "c".into()]));
    again.retain(&HashSet::new());
    assert!(Devices::new(dir.path()).0.state.lock().allocated.is_empty());

    // A plugin that refuses; one that is gone, whose devices stay for a while but cannot be had.
    devices.release("u1");
    plugin.list(&[("broken", "Healthy")]).await;
    offered(&devices, 1, 1).await;
    let text = devices.allocate(&pod("u3", None, 1)).await.unwrap_err();
    assert_eq!(text, "rpc error: code = Internal desc = it is broken");
    plugin.end.cancel();
    offered(&devices, 1, 0).await;
    assert!(devices.allocate(&pod("u3", None, 1)).await.is_err());
    shutdown.cancel();
    served.await.unwrap().unwrap();
}
