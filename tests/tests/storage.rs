//! Volumes in a whole cluster: claims of hostPath, local and CSI volumes, file systems and devices, generic ephemeral and
//! inline volumes, images, projections, sub-paths. Afterwards, and after the agent was killed at any step of a driver's work,
//! nothing of them is left.

use anyhow::{Context, Result, ensure};
use kelp_tests::kubelet::{BUSYBOX, import_images};
use kelp_tests::{Cluster, eventually, sandbox_enter};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const DRIVER: &str = env!("CARGO_BIN_EXE_csi_driver");
const NAME: &str = "t-storage";
const NODE: &str = "t-storage-1";

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let out = Command::new(program).args(arguments).output().with_context(|| format!("start {program}"))?;
    ensure!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Loop devices over files of a directory; they go with it.
struct Loops(PathBuf);

impl Loops {
    fn attach(&self, name: &str) -> Result<String> {
        let file = self.0.join(name);
        fs::File::create(&file)?.set_len(32 << 20)?;
        if !Path::new("/dev/loop-control").exists() {
            // Nothing asks for the module but the node that it makes.
            run("modprobe", &["loop"])?;
        }
        run("losetup", &["--find", "--show", file.to_str().context("path")?])
    }

    /// Devices with a file of the directory.
    fn attached(&self) -> Result<Vec<String>> {
        let all = run("losetup", &["--noheadings", "--output", "NAME,BACK-FILE"])?;
        let dir = self.0.to_string_lossy().into_owned();
        let own = all.lines().filter(|l| l.contains(&dir));
        Ok(own.filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect())
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in self.attached().unwrap_or_default() {
            if let Err(error) = run("losetup", &["--detach", &device]) {
                eprintln!("{error:#}");
            }
        }
    }
}

/// The driver's process; it is killed with it.
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct World {
    cluster: Cluster,
    loops: Loops,
    data: PathBuf,
    _driver: Driver,
}

impl World {
    fn up() -> Result<Self> {
        let cluster = Cluster::up(NAME, 1, CLIENT)?;
        let dir = cluster.layout().dir().join("storage");
        let data = dir.join("csi");
        fs::create_dir_all(&data)?;
        let loops = Loops(dir.clone());
        let node = cluster.node(1);
        let kelp = std::env::var_os("KELP_BIN")
            .map_or_else(|| xtask::build::target_dir().join("release/kelp"), PathBuf::from);
        import_images(&kelp, Path::new(env!("CARGO_BIN_EXE_agnhost")), &node.data_dir(), &dir)?;
        let socket = node.data_dir().join("plugins_registry/loop.sock");
        let words = [Path::new(DRIVER), socket.as_path(), data.as_path()];
        let driver = Driver(sandbox_enter(&node, &words).spawn().context("start the driver")?);
        Ok(Self { cluster, loops, data, _driver: driver })
    }

    fn json(&self, object: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.cluster.kubectl(&["get", object, "-o", "json"])?)?)
    }

    /// A pod whose container runs a script, with these fields of its spec as JSON.
    fn run_pod(&self, name: &str, script: &str, mounts: &Value, volumes: &Value) -> Result<()> {
        let script = format!("{script}; trap 'exit 0' TERM; while true; do sleep 0.1; done");
        let mut container = serde_json::json!({"name": "c", "image": BUSYBOX, "imagePullPolicy": "Never",
            "command": ["sh", "-c", script]});
        for (key, value) in mounts.as_object().context("mounts")? {
            container[key] = value.clone();
        }
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], "volumes": volumes,
                "securityContext": {"fsGroup": 4321}}});
        self.cluster.apply(&pod.to_string()).map(drop)
    }

    fn start_pod(&self, name: &str, script: &str, mounts: &Value, volumes: &Value) -> Result<()> {
        self.run_pod(name, script, mounts, volumes)?;
        self.cluster.wait(&format!("pod/{name}"), "condition=Ready", 60)
    }

    fn exec(&self, pod: &str, script: &str) -> Result<String> {
        Ok(self.cluster.kubectl(&["exec", pod, "--", "sh", "-c", script])?.trim().to_owned())
    }

    fn delete(&self, pod: &str) -> Result<()> {
        self.cluster.kubectl(&["delete", "pod", pod, "--wait=true", "--timeout=60s"]).map(drop)
    }

    /// A claim bound to a volume of these fields.
    fn claim(&self, name: &str, size: &str, block: bool, fields: &Value) -> Result<()> {
        let mode = if block { "Block" } else { "Filesystem" };
        let mut volume = serde_json::json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "volumeMode": mode,
                "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"name": name, "namespace": "default"}}});
        for (key, value) in fields.as_object().context("fields")? {
            volume["spec"][key] = value.clone();
        }
        let claim = serde_json::json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": mode, "storageClassName": "", "volumeName": name,
                "resources": {"requests": {"storage": size}}}});
        self.cluster.apply(&volume.to_string())?;
        self.cluster.apply(&claim.to_string())?;
        self.cluster.wait(&format!("pvc/{name}"), "jsonpath={.status.phase}=Bound", 30)
    }

    /// Nothing of any volume is mounted or attached, and no pod has a directory.
    fn assert_clean(&self, when: &str) -> Result<()> {
        let data_dir = self.cluster.node(1).data_dir();
        let look = || -> Result<Vec<String>> {
            let mounts = run(
                "nsenter",
                &[
                    &format!("--mount=/proc/{}/ns/mnt", self.cluster.kelp_pid(1)?),
                    "cat",
                    "/proc/self/mountinfo",
                ],
            )?;
            let below = data_dir.to_string_lossy().into_owned();
            let mut left: Vec<String> = mounts
                .lines()
                .filter(|l| l.contains(&below) && (l.contains("/pods/") || l.contains("/plugins/")))
                .map(str::to_owned)
                .collect();
            left.extend(self.loops.attached()?.into_iter().filter(|d| !self.local_device(d)));
            let pods = fs::read_dir(data_dir.join("pods")).into_iter().flatten().flatten();
            left.extend(pods.filter(|e| e.path().is_dir()).map(|e| e.path().display().to_string()));
            Ok(left)
        };
        let mut last = Vec::new();
        let gone = eventually("the end of the volumes", || {
            last = look()?;
            Ok(last.is_empty().then_some(()))
        });
        gone.with_context(|| format!("{when}: {last:#?}"))
    }

    /// Devices that the test attached itself.
    fn local_device(&self, device: &str) -> bool {
        let shown = run("losetup", &["--noheadings", "--output", "BACK-FILE", device]).unwrap_or_default();
        !shown.contains(&*self.data.to_string_lossy())
    }

    /// Kills the agent; the sandbox starts another.
    fn kill_agent(&self) -> Result<()> {
        let pid = self.cluster.kelp_pid(1)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill kelp")?;
        eventually("another agent", || Ok((self.cluster.kelp_pid(1)? != pid).then_some(())))?;
        eventually("the API server", || Ok(self.cluster.kubectl(&["get", "--raw", "/readyz"]).ok()))?;
        Ok(())
    }
}

fn claimed(name: &str) -> Value {
    serde_json::json!({"name": name, "persistentVolumeClaim": {"claimName": name}})
}

fn mounted(names: &[&str]) -> Value {
    let mounts = names.iter().map(|n| serde_json::json!({"name": n, "mountPath": format!("/v/{n}")}));
    serde_json::json!({"volumeMounts": mounts.collect::<Vec<_>>()})
}

#[test]
fn volumes_of_every_kind_come_and_go() -> Result<()> {
    let world = World::up()?;
    let told = || Ok(world.data.join("registered").exists().then_some(()));
    eventually("the driver's registration", told)?;
    node_objects(&world)?;
    host_and_local(&world)?;
    made_for_the_pod(&world)?;
    by_driver(&world)?;
    inline(&world)?;
    devices(&world)?;
    killed(&world)
}

fn node_objects(world: &World) -> Result<()> {
    ensure!(fs::read_to_string(world.data.join("registered"))?.is_empty(), "the driver is refused");
    let csi_node = world.json(&format!("csinode/{NODE}"))?;
    let entry = &csi_node["spec"]["drivers"][0];
    ensure!(entry["nodeID"] == "node-of-loops" && entry["allocatable"]["count"] == 5, "{entry}");
    ensure!(entry["topologyKeys"][0] == "topology.loop.csi.test/zone", "{entry}");
    let zone =
        world.cluster.field(&format!("node/{NODE}"), r"{.metadata.labels.topology\.loop\.csi\.test/zone}")?;
    ensure!(zone == "here", "{zone:?}");
    let object = serde_json::json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver",
        "metadata": {"name": "loop.csi.test"}, "spec": {"attachRequired": false, "podInfoOnMount": true,
        "fsGroupPolicy": "File", "volumeLifecycleModes": ["Persistent", "Ephemeral"],
        "tokenRequests": [{"audience": "vault.test"}]}});
    world.cluster.apply(&object.to_string()).map(drop)
}

/// Claims of a directory, and of devices of the host: one that is formatted and mounted, one as it is.
fn host_and_local(world: &World) -> Result<()> {
    let dir = world.loops.0.join("host");
    fs::create_dir_all(&dir)?;
    world.claim("host", "1Gi", false, &serde_json::json!({"hostPath": {"path": dir}}))?;
    let here = serde_json::json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}]}});
    for (name, block) in [("disk", false), ("raw", true)] {
        let device = world.loops.attach(name)?;
        let fields = serde_json::json!({"local": {"path": device}, "nodeAffinity": here});
        world.claim(name, "32Mi", block, &fields)?;
    }
    let volumes = serde_json::json!([claimed("host"), claimed("disk"), claimed("raw")]);
    let mut uses = mounted(&["host", "disk"]);
    uses["volumeDevices"] = serde_json::json!([{"name": "raw", "devicePath": "/dev/raw"}]);
    let script = "echo one > /v/host/f; echo two > /v/disk/f; printf three > /dev/raw";
    for pod in ["first", "second"] {
        world.start_pod(pod, script, &uses, &volumes)?;
        let kind = world.exec(pod, "grep ' /v/disk ' /proc/mounts")?;
        ensure!(kind.contains(" ext4 "), "the device is mounted as {kind}");
        ensure!(world.exec(pod, "cat /v/host/f /v/disk/f; head -c 5 /dev/raw")? == "one\ntwo\nthree");
    }
    world.delete("first")?;
    ensure!(world.exec("second", "cat /v/disk/f")? == "two", "it went with the other pod");
    world.delete("second")?;
    world.assert_clean("after claims of the host's")?;
    ensure!(fs::read_to_string(dir.join("f"))? == "one\n", "the data is gone");
    Ok(())
}

/// Generic ephemeral volume, image, projection, sub-paths.
fn made_for_the_pod(world: &World) -> Result<()> {
    let dir = world.loops.0.join("ephemeral");
    fs::create_dir_all(&dir)?;
    let class = serde_json::json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "by-hand"}, "provisioner": "kubernetes.io/no-provisioner"});
    world.cluster.apply(&class.to_string())?;
    let volume = serde_json::json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "eph"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "by-hand",
        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": dir}}});
    world.cluster.apply(&volume.to_string())?;
    let map = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"},
        "data": {"a": "A", "b": "B"}});
    world.cluster.apply(&map.to_string())?;
    let volumes = serde_json::json!([
        {"name": "eph", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": "by-hand", "resources": {"requests": {"storage": "1Mi"}}}}}},
        {"name": "img", "image": {"reference": "kelp/hello:dev", "pullPolicy": "Never"}},
        {"name": "all", "projected": {"sources": [
            {"configMap": {"name": "words", "items": [{"key": "a", "path": "x/a"}]}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"serviceAccountToken": {"path": "token", "audience": "there"}}]}},
        {"name": "words", "configMap": {"name": "words"}},
        {"name": "scratch", "emptyDir": {}}]);
    let mut mounts = mounted(&["eph", "img", "all", "scratch"]);
    let more = serde_json::json!([
        {"name": "words", "mountPath": "/v/only-b", "subPath": "b"},
        {"name": "scratch", "mountPath": "/v/deep", "subPath": "d/e"}]);
    let list = mounts["volumeMounts"].as_array_mut().context("mounts")?;
    list.extend(more.as_array().cloned().unwrap_or_default());
    world.start_pod("made", "echo kept > /v/eph/f; echo deep > /v/deep/f", &mounts, &volumes)?;
    let seen = world.exec(
        "made",
        "cat /v/all/x/a /v/only-b; echo; cat /v/all/name; echo; cat /v/scratch/d/e/f; ls /v/img",
    )?;
    ensure!(seen.starts_with("AB\nmade\ndeep\n"), "{seen}");
    ensure!(seen.contains("hello"), "the image has no program: {seen}");
    ensure!(
        world.exec("made", "touch /v/img/x 2>&1 || true")?.contains("Read-only"),
        "an image can be written"
    );
    ensure!(world.exec("made", "cut -d. -f1 /v/all/token | base64 -d 2>/dev/null; true")?.contains("alg"));
    let summary = summary_of(world, "made")?;
    let names: Vec<&str> = summary.iter().filter_map(|v| v["name"].as_str()).collect();
    ensure!(names.contains(&"scratch") && names.contains(&"all"), "{names:?}");
    world.delete("made")?;
    world.assert_clean("after what was made for the pod")?;
    ensure!(fs::read_to_string(dir.join("f"))? == "kept\n", "the data is gone");
    Ok(())
}

/// The volumes of a pod in `/stats/summary`.
fn summary_of(world: &World, pod: &str) -> Result<Vec<Value>> {
    let path = format!("/api/v1/nodes/{NODE}/proxy/stats/summary");
    let all: Value = serde_json::from_str(&world.cluster.kubectl(&["get", "--raw", &path])?)?;
    let pods = all["pods"].as_array().context("no pods")?;
    let own = pods.iter().find(|p| p["podRef"]["name"] == pod).context("the pod has no statistics")?;
    Ok(own["volume"].as_array().cloned().unwrap_or_default())
}

fn csi(handle: &str) -> Value {
    serde_json::json!({"csi": {"driver": "loop.csi.test", "volumeHandle": handle}})
}

/// A driver's volume: used, measured, made larger.
fn by_driver(world: &World) -> Result<()> {
    world.claim("served", "32Mi", false, &csi("served"))?;
    let volumes = serde_json::json!([claimed("served")]);
    world.start_pod("served", "echo served > /v/served/f", &mounted(&["served"]), &volumes)?;
    let group = world.exec("served", "stat -c %g /v/served")?;
    ensure!(group == "4321", "the volume's group is {group}");
    let summary = summary_of(world, "served")?;
    let own = summary.iter().find(|v| v["name"] == "served").context("no statistics of the volume")?;
    ensure!(own["pvcRef"]["name"] == "served", "{own}");
    let before = own["capacityBytes"].as_u64().context("capacity")?;
    ensure!((20 << 20..=32 << 20).contains(&before), "{before}");
    // Its controller has made it larger: the node's part follows, here with the next pod.
    let grow = r#"{"spec":{"capacity":{"storage":"64Mi"}}}"#;
    world.cluster.kubectl(&["patch", "pv", "served", "--type=merge", "-p", grow])?;
    world.delete("served")?;
    world.start_pod("again", "true", &mounted(&["served"]), &volumes)?;
    ensure!(world.exec("again", "cat /v/served/f")? == "served", "the data is gone");
    eventually("the claim's new size", || {
        let size = world.cluster.field("pvc/served", "{.status.capacity.storage}")?;
        Ok((size == "64Mi").then_some(()))
    })
    .with_context(|| world.cluster.kubectl(&["events", "--for", "pod/again"]).unwrap_or_default())?;
    let summary = summary_of(world, "again")?;
    let after = summary.first().and_then(|v| v["capacityBytes"].as_u64()).context("capacity")?;
    ensure!(after > before + (16 << 20), "{before} {after}");
    eventually("the event", || {
        let events = world.cluster.kubectl(&["events", "--for", "pod/again"])?;
        let text = "MountVolume.NodeExpandVolume succeeded for volume \"served\"";
        Ok(events.contains(text).then_some(()))
    })?;
    world.delete("again")?;
    world.assert_clean("after a driver's volume")
}

/// What a driver is told of the pod, and a token for it.
fn inline(world: &World) -> Result<()> {
    let volumes = serde_json::json!([{"name": "told", "csi": {"driver": "loop.csi.test",
        "volumeAttributes": {"colour": "red"}}}]);
    world.start_pod("told", "true", &mounted(&["told"]), &volumes)?;
    let read = |file: &str| world.exec("told", &format!("cat /v/told/{file}"));
    ensure!(read("colour")? == "red");
    ensure!(read("csi.storage.k8s.io_pod.name")? == "told");
    ensure!(read("csi.storage.k8s.io_ephemeral")? == "true");
    let tokens: Value = serde_json::from_str(&read("csi.storage.k8s.io_serviceAccount.tokens")?)?;
    ensure!(tokens["vault.test"]["token"].as_str().is_some_and(|t| t.split('.').count() == 3), "{tokens}");
    world.delete("told")?;
    world.assert_clean("after an inline volume")
}

/// A driver's device.
fn devices(world: &World) -> Result<()> {
    world.claim("device", "32Mi", true, &csi("device"))?;
    let volumes = serde_json::json!([claimed("device")]);
    let uses = serde_json::json!({"volumeDevices": [{"name": "device", "devicePath": "/dev/it"}]});
    world.start_pod("device", "printf block > /dev/it", &uses, &volumes)?;
    ensure!(world.exec("device", "head -c 5 /dev/it; test -b /dev/it && echo ' yes'")? == "block yes");
    world.delete("device")?;
    world.assert_clean("after a driver's device")
}

/// The agent is killed while the driver works, at each of its steps.
fn killed(world: &World) -> Result<()> {
    world.claim("hard", "32Mi", false, &csi("hard"))?;
    let volumes = serde_json::json!([claimed("hard")]);
    let held = world.data.join("held");
    for method in ["NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"] {
        let starts = !method.starts_with("NodeUn");
        let mounts = mounted(&["hard"]);
        if starts {
            fs::write(world.data.join("hold"), method)?;
            world.run_pod("hard", "echo hard > /v/hard/f", &mounts, &volumes)?;
        } else {
            world.start_pod("hard", "echo hard > /v/hard/f", &mounts, &volumes)?;
            fs::write(world.data.join("hold"), method)?;
            world.cluster.kubectl(&["delete", "pod", "hard", "--wait=false"])?;
        }
        eventually(&format!("the call of {method}"), || Ok(held.exists().then_some(())))?;
        fs::remove_file(&held)?;
        world.kill_agent()?;
        if starts {
            world.cluster.wait("pod/hard", "condition=Ready", 60)?;
            ensure!(world.exec("hard", "cat /v/hard/f")? == "hard");
            world.delete("hard")?;
        } else {
            world.cluster.kubectl(&["wait", "pod/hard", "--for=delete", "--timeout=60s"])?;
        }
        world.assert_clean(&format!("killed in {method}"))?;
    }
    Ok(())
}
