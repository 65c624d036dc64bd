use super::testing::FakeDriver;
use super::volumes::Wanted;
use super::*;
use crate::pod::volumes::{mountinfo, tear_down_volumes};
use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolume, Pod};
use serde_json::{Value, json};
use std::fs;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Writes that an API server took: method and path, and what was sent.
type Writes = Arc<Mutex<Vec<(String, Value)>>>;

/// An API server with the objects of these paths; it takes every write.
fn server(objects: Vec<(&'static str, Value)>) -> (kube::Client, Writes) {
    let writes: Writes = Arc::default();
    let noted = writes.clone();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (objects, noted) = (objects.clone(), noted.clone());
        async move {
            let path = request.uri().path().to_owned();
            let method = request.method().clone();
            let body = request.into_body().collect_bytes().await.unwrap();
            let found = objects.iter().find(|(at, _)| *at == path).map(|(_, object)| object.clone());
            let (status, answer) = match (method == http::Method::GET, found) {
                (true, Some(object)) => (200, object),
                (true, None) => (
                    404,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "code": 404, "reason": "NotFound", "message": "not found"}),
                ),
                (false, _) => {
                    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
                    let mut answer = sent.clone();
                    if path.ends_with("/token") {
                        answer["status"] =
                            json!({"token": "t", "expirationTimestamp": "2030-01-01T00:00:00Z"});
                    }
                    noted.lock().push((format!("{method} {path}"), sent));
                    (if method == http::Method::POST { 201 } else { 200 }, answer)
                }
            };
            let body = kube::client::Body::from(answer.to_string().into_bytes());
            Ok::<_, std::convert::Infallible>(http::Response::builder().status(status).body(body).unwrap())
        }
    });
    (kube::Client::new(service, "default"), writes)
}

const DRIVER: &str = "/apis/storage.k8s.io/v1/csidrivers/test.csi";

fn driver_object(spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": "test.csi"}, "spec": {"attachRequired": false,
        "volumeLifecycleModes": ["Persistent", "Ephemeral"]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

struct World {
    dir: tempfile::TempDir,
    csi: Csi,
    fake: FakeDriver,
    writes: Writes,
}

impl World {
    fn new(objects: Vec<(&'static str, Value)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (client, writes) = server(objects);
        let fake = FakeDriver::serve(&dir.path().join("csi.sock"), &dir.path().join("data"));
        fs::create_dir_all(dir.path().join("data/vol")).unwrap();
        fs::write(dir.path().join("data/vol/precious"), "x").unwrap();
        let csi = Csi::new(client.clone(), "n1".into(), dir.path(), Tokens::new(client));
        let world = Self { dir, csi, fake, writes };
        world.know_driver();
        world
    }

    fn know_driver(&self) {
        let driver = Driver { name: "test.csi".into(), socket: self.dir.path().join("csi.sock") };
        self.csi.inner.drivers.lock().insert(driver.name.clone(), driver);
    }

    /// The agent is killed and starts anew: nothing but the disk and the mounts is left, and the driver answers again.
    fn restart(&mut self) {
        let inner = &self.csi.inner;
        let (client, tokens) = (inner.client.clone(), inner.tokens.clone());
        self.csi = Csi::new(client, "n1".into(), self.dir.path(), tokens);
        self.fake.state.lock().left = None;
        self.know_driver();
        self.csi.find_used();
    }

    fn pod_dir(&self, pod: &str) -> PathBuf {
        self.dir.path().join("pods").join(pod)
    }

    async fn set_up(&self, pod: &str, wanted: &Wanted) -> Result<PathBuf, String> {
        let changed: Arc<Notify> = Arc::default();
        let done = self.csi.set_up(&a_pod(pod), &self.pod_dir(pod), wanted, Some(7), &changed).await;
        done.map(|(path, _)| path).map_err(|(step, why)| format!("{step}: {why}"))
    }

    async fn tear_down(&self, pod: &str) -> Result<(), String> {
        self.csi.tear_down(&self.pod_dir(pod)).await?;
        tear_down_volumes(&self.pod_dir(pod)).map_err(|e| e.to_string())
    }

    /// No mount and no file is left but the volume itself.
    fn assert_clean(&self, when: &str) {
        assert_eq!(mountinfo::below(self.dir.path()).unwrap(), Vec::<PathBuf>::new(), "{when}");
        let staged = self.dir.path().join("plugins/kubernetes.io/csi/test.csi");
        let left: Vec<_> = fs::read_dir(staged).into_iter().flatten().flatten().map(|e| e.path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "{when}");
        for pod in fs::read_dir(self.dir.path().join("pods")).into_iter().flatten().flatten() {
            assert!(!pod.path().join("volumes").exists(), "{when}");
        }
        assert!(self.dir.path().join("data/vol/precious").exists(), "{when}: the data is gone");
        assert!(self.csi.in_use().borrow().is_empty(), "{when}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = mountinfo::unmount_all(self.dir.path());
    }
}

fn a_pod(name: &str) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "uid": name},
        "spec": {"serviceAccountName": "sa", "containers": []}}))
    .unwrap()
}

fn persistent() -> Wanted {
    let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {
        "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": "test.csi", "volumeHandle": "vol", "volumeAttributes": {"a": "b"}}}}))
    .unwrap();
    Wanted::persistent(&volume, false).unwrap()
}

#[tokio::test]
async fn a_volume_is_staged_once_and_published_for_each_pod() {
    let world = World::new(vec![(DRIVER, driver_object(json!({"podInfoOnMount": true})))]);
    let wanted = persistent();
    let path = world.set_up("p", &wanted).await.unwrap();
    assert_eq!(path, world.pod_dir("p").join("volumes/kubernetes.io~csi/pv/mount"));
    assert_eq!(fs::read_to_string(path.join("precious")).unwrap(), "x");
    assert_eq!(world.fake.calls(), ["NodeGetCapabilities", "NodeStageVolume", "NodePublishVolume"]);
    let context = world.fake.state.lock().published.0.clone();
    assert_eq!(context["a"], "b");
    assert_eq!(context["csi.storage.k8s.io/pod.name"], "p");
    assert_eq!(context["csi.storage.k8s.io/ephemeral"], "false");
    world.set_up("p", &wanted).await.unwrap();
    assert_eq!(world.fake.calls(), Vec::<String>::new(), "it is there");
    world.set_up("q", &wanted).await.unwrap();
    world.fake.calls();
    world.tear_down("p").await.unwrap();
    assert_eq!(world.fake.calls(), ["NodeUnpublishVolume"], "another pod still has it");
    world.tear_down("q").await.unwrap();
    assert_eq!(world.fake.calls(), ["NodeUnpublishVolume", "NodeUnstageVolume"]);
    world.tear_down("q").await.unwrap();
    world.assert_clean("both pods gone");
}

#[tokio::test]
async fn inline_volumes_get_tokens_and_are_the_pods_alone() {
    let asked = json!({"tokenRequests": [{"audience": "vault"}], "podInfoOnMount": true});
    let world = World::new(vec![(DRIVER, driver_object(asked))]);
    let source = CSIVolumeSource { driver: "test.csi".into(), ..CSIVolumeSource::default() };
    let wanted = Wanted::inline(&a_pod("p"), "v", &source);
    world.set_up("p", &wanted).await.unwrap();
    assert_eq!(world.fake.calls(), ["NodeGetCapabilities", "NodePublishVolume"]);
    let context = world.fake.state.lock().published.0.clone();
    let tokens: Value = serde_json::from_str(&context["csi.storage.k8s.io/serviceAccount.tokens"]).unwrap();
    assert_eq!(tokens["vault"]["token"], "t");
    assert_eq!(context["csi.storage.k8s.io/ephemeral"], "true");
    world.tear_down("p").await.unwrap();
    assert_eq!(world.fake.calls(), ["NodeUnpublishVolume"]);
    world.assert_clean("the pod gone");
    // A driver that does not say it can is not asked.
    let world = World::new(vec![(DRIVER, driver_object(json!({"volumeLifecycleModes": ["Persistent"]})))]);
    let error = world.set_up("p", &wanted).await.unwrap_err();
    assert!(error.contains("volume mode \"Ephemeral\" not supported by driver test.csi"), "{error}");
    assert_eq!(world.fake.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_device_is_published_outside_the_pods_directory() {
    let world = World::new(vec![(DRIVER, driver_object(json!({})))]);
    fs::write(world.dir.path().join("data/disk"), "bytes").unwrap();
    let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
        "csi": {"driver": "test.csi", "volumeHandle": "disk"}}}))
    .unwrap();
    let wanted = Wanted::persistent(&volume, false).unwrap();
    let devices = world.dir.path().join("plugins/kubernetes.io/csi/volumeDevices");
    for pod in ["p", "q"] {
        let path = world.set_up(pod, &wanted).await.unwrap();
        assert_eq!(path, devices.join("publish/pv").join(pod));
        assert_eq!(fs::read_to_string(path).unwrap(), "bytes");
    }
    assert_eq!(world.csi.usage(&world.pod_dir("p")).await["pv"].bytes, [6, 10, 4]);
    world.fake.calls();
    world.tear_down("p").await.unwrap();
    assert_eq!(world.fake.calls(), ["NodeUnpublishVolume"], "another pod still has it");
    world.tear_down("q").await.unwrap();
    assert_eq!(world.fake.calls(), ["NodeUnpublishVolume", "NodeUnstageVolume"]);
    world.assert_clean("both pods gone");
    let left: Vec<_> =
        fs::read_dir(devices).unwrap().flatten().flat_map(|e| fs::read_dir(e.path()).unwrap()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_volume_that_has_grown_is_expanded_once_its_claim_says_less() {
    let volume = json!({"metadata": {"name": "pv"}, "spec": {"capacity": {"storage": "3Gi"},
        "claimRef": {"namespace": "ns", "name": "c"}, "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": "test.csi", "volumeHandle": "vol"}}});
    let wanted = Wanted::persistent(&serde_json::from_value(volume).unwrap(), false).unwrap();
    for (size, expanded) in [("1Gi", true), ("3Gi", false)] {
        let claim =
            json!({"metadata": {"name": "c", "namespace": "ns"}, "status": {"capacity": {"storage": size}}});
        let world = World::new(vec![
            (DRIVER, driver_object(json!({}))),
            ("/api/v1/namespaces/ns/persistentvolumeclaims/c", claim),
        ]);
        world.set_up("p", &wanted).await.unwrap();
        assert_eq!(world.csi.expand(&world.pod_dir("p"), &wanted).await.unwrap(), expanded);
        assert_eq!(world.fake.state.lock().expanded, expanded.then_some(3 << 30));
        let writes = std::mem::take(&mut *world.writes.lock());
        let path = "PATCH /api/v1/namespaces/ns/persistentvolumeclaims/c/status";
        let sent =
            writes.iter().find(|(at, _)| at == path).map(|(_, sent)| &sent["status"]["capacity"]["storage"]);
        assert_eq!(sent, expanded.then_some(&json!("3Gi")));
    }
}

#[tokio::test]
async fn errors_name_the_step() {
    let world = World::new(Vec::new());
    let mut wanted = persistent();
    let error = world.set_up("p", &wanted).await.unwrap_err();
    assert!(error.starts_with("MountVolume.WaitForAttach failed: volume vol has GET error"), "{error}");
    assert!(world.csi.in_use().borrow().contains("kubernetes.io/csi/test.csi^vol"));
    let world = World::new(vec![(DRIVER, driver_object(json!({})))]);
    world.csi.inner.drivers.lock().clear();
    let error = world.set_up("p", &wanted).await.unwrap_err();
    assert_eq!(
        error,
        "MountVolume.SetUp failed: kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name test.csi not found in the list of registered CSI drivers"
    );
    world.know_driver();
    let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {
        "csi": {"driver": "test.csi", "volumeHandle": "absent"}}}))
    .unwrap();
    wanted = Wanted::persistent(&volume, false).unwrap();
    let error = world.set_up("p", &wanted).await.unwrap_err();
    assert_eq!(error, "MountVolume.MountDevice failed: rpc error: code = NotFound desc = no volume absent");
    // What was tried is taken down all the same: the pod is deleted while it waits.
    world.tear_down("p").await.unwrap();
    world.csi.sweep_staged(&world.csi.driver("test.csi").unwrap()).await;
    world.assert_clean("a volume that never came");
}

/// The agent is killed while the driver works on any of its calls, setting up and taking down. Whatever was done then, the
/// next agent gets the volume for the pod, and afterwards nothing of it is left.
#[tokio::test]
async fn killed_at_any_step_nothing_is_left() {
    for step in 0..3 {
        for resume in [true, false] {
            let mut world = World::new(vec![(DRIVER, driver_object(json!({})))]);
            world.fake.state.lock().left = Some(step);
            let wanted = persistent();
            killed(world.set_up("p", &wanted), &world.fake).await;
            world.restart();
            let when = format!("killed at step {step} of setting up, resumed: {resume}");
            if resume {
                world.set_up("p", &wanted).await.expect(&when);
            }
            world.tear_down("p").await.expect(&when);
            world.csi.sweep_staged(&world.csi.driver("test.csi").unwrap()).await;
            world.assert_clean(&when);
        }
    }
    for step in 0..2 {
        let mut world = World::new(vec![(DRIVER, driver_object(json!({})))]);
        world.set_up("p", &persistent()).await.unwrap();
        world.fake.state.lock().left = Some(step);
        killed(world.tear_down("p"), &world.fake).await;
        world.restart();
        let when = format!("killed at step {step} of taking down");
        world.tear_down("p").await.expect(&when);
        world.csi.sweep_staged(&world.csi.driver("test.csi").unwrap()).await;
        world.assert_clean(&when);
    }
}

/// Lets work go on until the driver has stopped answering, and drops it there.
async fn killed<T: std::fmt::Debug>(work: impl Future<Output = T>, fake: &FakeDriver) {
    let stopped = async {
        while fake.state.lock().left != Some(usize::MAX) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        // What the driver does in its last call is done before it stops.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    tokio::select! {
        result = work => panic!("it ended: {result:?}"),
        () = stopped => {}
    }
}

#[tokio::test]
async fn a_driver_registers_and_goes() {
    let node = json!({"metadata": {"name": "n1", "uid": "u"}});
    let world = World::new(vec![("/api/v1/nodes/n1", node)]);
    world.csi.inner.drivers.lock().clear();
    let shutdown = CancellationToken::new();
    let follow = tokio::spawn(registry::follow(world.csi.clone(), shutdown.clone()));
    let socket = world.csi.registry_dir().join("test.sock");
    let driver = FakeDriver::serve(&socket, world.dir.path());
    let until = async |what: &str, look: &dyn Fn() -> bool| {
        for _ in 0..1000 {
            if look() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{what}");
    };
    until("it is told", &|| driver.state.lock().registered == Some(Ok(()))).await;
    assert_eq!(world.csi.driver("test.csi").unwrap().socket, socket);
    let writes = std::mem::take(&mut *world.writes.lock());
    let sent =
        |path: &str| writes.iter().find(|(at, _)| at == path).map(|(_, sent)| sent.clone()).expect(path);
    let node = sent("PATCH /api/v1/nodes/n1");
    assert_eq!(
        node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"],
        "{\"test.csi\":\"id-of-node\"}"
    );
    assert_eq!(node["metadata"]["labels"]["topology.test.csi/zone"], "z");
    let csi_node = sent("POST /apis/storage.k8s.io/v1/csinodes");
    assert_eq!(csi_node["metadata"]["ownerReferences"][0]["uid"], "u");
    let entry = json!({"name": "test.csi", "nodeID": "id-of-node", "topologyKeys": ["topology.test.csi/zone"],
        "allocatable": {"count": 7}});
    assert_eq!(csi_node["spec"]["drivers"], json!([entry]));
    let usage =
        world.csi.driver("test.csi").unwrap().usage("vol", Path::new("/x"), Path::new("/s")).await.unwrap();
    assert_eq!((usage.bytes, usage.inodes), ([6, 10, 4], [6, 10, 4]));
    // Another kind of plugin is told that nobody here wants it.
    let other = world.csi.registry_dir().join("other.sock");
    let stranger = FakeDriver::serve_as("DRAPlugin", &other, world.dir.path());
    let why = format!("no handler registered for plugin type: DRAPlugin at socket {}", other.display());
    let told = || stranger.state.lock().registered.clone();
    until("it is told why", &|| told().is_some_and(|t| t.is_err_and(|text| text.contains(&why)))).await;
    drop(stranger);
    fs::remove_file(&other).unwrap();
    fs::remove_file(&socket).unwrap();
    until("it is gone", &|| world.csi.driver("test.csi").is_err()).await;
    shutdown.cancel();
    follow.await.unwrap();
}
