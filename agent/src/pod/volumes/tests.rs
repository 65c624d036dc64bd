use super::*;
use serde_json::json;

fn pod(volumes: serde_json::Value, fs_group: Option<i64>) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "64Mi"}}}], "volumes": volumes,
                 "securityContext": {"fsGroup": fs_group}}}))
    .unwrap()
}

fn downward(pod: &Pod) -> Downward<'_> {
    Downward {
        pod,
        node_name: "node1",
        host_ips: &[],
        pod_ips: &[],
        node_milli_cpu: 2000,
        node_memory: 1 << 30,
    }
}

fn objects() -> Objects {
    let key = |kind, name: &str| Key { kind, namespace: "n".into(), name: name.into() };
    let data =
        |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
    Objects::fixed([
        (key(Kind::ConfigMap, "cm"), data(&[("a", "1"), ("b", "2")])),
        (key(Kind::Secret, "sec"), data(&[("password", "x")])),
    ])
}

#[tokio::test]
async fn every_kind_is_set_up_twice_and_removed_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("pod");
    let host = dir.path().join("host");
    let p = pod(
        json!([
            {"name": "e", "emptyDir": {}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "h", "hostPath": {"path": host, "type": "DirectoryOrCreate"}},
            {"name": "cm", "configMap": {"name": "cm", "items": [{"key": "a", "path": "x/y", "mode": 256}]}},
            {"name": "s", "secret": {"secretName": "sec", "defaultMode": 256}},
            {"name": "p", "projected": {"sources": [{"configMap": {"name": "cm"}}, {"secret": {"name": "sec"}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "mem", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory", "divisor": "1Mi"}}]}}]}},
            {"name": "o", "configMap": {"name": "absent", "optional": true}}
        ]),
        None,
    );
    for _ in 0..2 {
        let paths = set_up(&p, &root, &objects(), &NodeVolumes::alone(), &downward(&p), &Arc::default())
            .await
            .unwrap();
        assert_eq!(paths["h"], host);
        assert_eq!(fs::read_to_string(paths["cm"].join("x/y")).unwrap(), "1");
        assert_eq!(fs::metadata(paths["s"].join("password")).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::read_to_string(paths["p"].join("labels")).unwrap(), "a=\"b\"");
        assert_eq!(fs::read_to_string(paths["p"].join("mem")).unwrap(), "64");
        assert!(
            mountinfo::is_mounted(&paths["m"])
                && mountinfo::is_mounted(&paths["s"])
                && !mountinfo::is_mounted(&paths["e"])
        );
        assert!(!mountinfo::is_mounted(&paths["cm"]) && mountinfo::is_mounted(&paths["p"]));
        assert!(paths["o"].is_dir());
        fs::write(paths["e"].join("kept"), "").unwrap();
    }
    tear_down_volumes(&root).unwrap();
    assert!(!root.join("volumes").exists() && host.exists());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&root.display().to_string()));
    tear_down_volumes(&root).unwrap();
}

/// The volume that every pod gets by admission.
#[tokio::test]
async fn the_volume_of_the_service_account() {
    let dir = tempfile::tempdir().unwrap();
    let mut p = pod(
        json!([{"name": "kube-api-access-x", "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}}]),
        None,
    );
    let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        let path = request.uri().path().to_owned();
        let status = if path.ends_with("/serviceaccounts/sa/token") { 201 } else { 404 };
        let answer = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
            "spec": {"audiences": [], "expirationSeconds": 3607},
            "status": {"token": "t", "expirationTimestamp": "2030-01-01T00:00:00Z"}});
        let body = kube::client::Body::from(answer.to_string().into_bytes());
        Ok::<_, std::convert::Infallible>(http::Response::builder().status(status).body(body).unwrap())
    });
    let key = Key { kind: Kind::ConfigMap, namespace: "n".into(), name: "kube-root-ca.crt".into() };
    let mut objects = Objects::fixed([(key, Data::from([("ca.crt".to_owned(), b"ca".to_vec())]))]);
    objects.tokens = crate::pod::tokens::Tokens::new(kube::Client::new(service, "default"));
    let changed = Arc::default();
    // Without an account there is no token, and no half of a volume.
    let error = set_up(&p, dir.path(), &objects, &NodeVolumes::alone(), &downward(&p), &changed)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("failed to fetch token: the pod has no service account"), "{error}");
    p.spec.as_mut().unwrap().service_account_name = Some("sa".into());
    let paths =
        set_up(&p, dir.path(), &objects, &NodeVolumes::alone(), &downward(&p), &changed).await.unwrap();
    let read = |file: &str| fs::read_to_string(paths["kube-api-access-x"].join(file)).unwrap();
    assert_eq!((read("token"), read("ca.crt"), read("namespace")), ("t".into(), "ca".into(), "n".into()));
    tear_down_volumes(dir.path()).unwrap();
}

#[tokio::test]
async fn errors_are_those_of_upstream() {
    let dir = tempfile::tempdir().unwrap();
    let fails = async |volume: serde_json::Value| {
        let p = pod(json!([volume]), None);
        let result =
            set_up(&p, dir.path(), &objects(), &NodeVolumes::alone(), &downward(&p), &Arc::default()).await;
        let _ = tear_down_volumes(dir.path());
        result.unwrap_err().to_string()
    };
    assert_eq!(
        fails(json!({"name": "v", "configMap": {"name": "absent"}})).await,
        "MountVolume.SetUp failed for volume \"v\" : configmap \"absent\" not found"
    );
    assert_eq!(
        fails(json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "zzz", "path": "p"}]}}))
            .await,
        "MountVolume.SetUp failed for volume \"v\" : configmap references non-existent config key: zzz"
    );
    assert_eq!(
        fails(json!({"name": "h", "hostPath": {"path": "/no/such", "type": "File"}})).await,
        "MountVolume.SetUp failed for volume \"h\" : hostPath type check failed: /no/such is not a file"
    );
    assert_eq!(
        fails(json!({"name": "f", "hostPath": {"path": "/no/such/file", "type": "FileOrCreate"}})).await,
        "MountVolume.SetUp failed for volume \"f\" : open /no/such/file: no such file or directory"
    );
}

#[tokio::test]
async fn fs_group_owns_what_the_pod_writes_to() {
    let dir = tempfile::tempdir().unwrap();
    let p = pod(
        json!([{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "sec"}}]),
        Some(1234),
    );
    let paths = set_up(&p, dir.path(), &objects(), &NodeVolumes::alone(), &downward(&p), &Arc::default())
        .await
        .unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(&paths["e"]).unwrap().gid(), 1234);
    assert_eq!(fs::metadata(&paths["e"]).unwrap().mode() & 0o7777, 0o2777);
    assert_eq!(fs::metadata(paths["s"].join("password")).unwrap().gid(), 1234);
    tear_down_volumes(dir.path()).unwrap();
}

#[test]
fn a_sub_path_stays_in_its_volume() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("v");
    fs::create_dir(&volume).unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("escape")).unwrap();
    std::os::unix::fs::symlink("real", volume.join("link")).unwrap();
    fs::create_dir(volume.join("real")).unwrap();
    let mount = VolumeMount { name: "v".into(), ..VolumeMount::default() };
    let of = |sub: &str| sub_path(&volume, sub, "c", &mount);
    assert_eq!(of("a/b").unwrap(), fs::canonicalize(&volume).unwrap().join("a/b"));
    assert!(of("link").unwrap().ends_with("real"));
    for bad in ["escape", "escape/passwd", "..", "a/../..", "/etc"] {
        assert_eq!(
            of(bad).unwrap_err(),
            "failed to prepare subPath for volumeMount \"v\" of container \"c\"",
            "{bad}"
        );
    }
}

/// A pod whose claim is known to be bound to a volume.
fn with_volume(dir: &Path, spec: serde_json::Value, security: serde_json::Value) -> Pod {
    let mut volume = json!({"metadata": {"name": "pv"}, "spec": spec});
    volume["spec"]["capacity"] = json!({"storage": "1Gi"});
    let claimed = Claimed { volume: serde_json::from_value(volume).unwrap(), read_only: false };
    claims::save(dir, &Known::from([("d".to_owned(), claimed)])).unwrap();
    let mut p = pod(json!([{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]), None);
    p.spec.as_mut().unwrap().security_context = serde_json::from_value(security).unwrap();
    p
}

#[tokio::test]
async fn a_local_volume_is_used_where_it_is_and_outlives_the_pod() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let (data, root) = (dir.path().join("data"), dir.path().join("pod"));
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(data.join("sub/precious"), "x").unwrap();
    let p = with_volume(&root, json!({"local": {"path": data}}), json!({"fsGroup": 4321}));
    let paths =
        set_up(&p, &root, &objects(), &NodeVolumes::alone(), &downward(&p), &Arc::default()).await.unwrap();
    assert_eq!(paths["d"], data);
    assert_eq!(fs::metadata(data.join("sub/precious")).unwrap().gid(), 4321);
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o2070, 0o2070);
    tear_down_volumes(&root).unwrap();
    assert!(data.join("sub/precious").exists() && !root.join("claims.json").exists());
}

#[tokio::test]
async fn volumes_behind_claims_fail_as_upstream() {
    let dir = tempfile::tempdir().unwrap();
    let fails = async |spec: serde_json::Value, node: &NodeVolumes| {
        let p = with_volume(dir.path(), spec, json!({}));
        let result = set_up(&p, dir.path(), &objects(), node, &downward(&p), &Arc::default()).await;
        result.unwrap_err().to_string()
    };
    let alone = NodeVolumes::alone();
    assert_eq!(
        fails(json!({"local": {"path": "/no/such"}}), &alone).await,
        "MountVolume.NewMounter initialization failed for volume \"pv\" : path \"/no/such\" does not exist"
    );
    assert_eq!(
        fails(json!({"hostPath": {"path": "/run", "type": "File"}}), &alone).await,
        "MountVolume.SetUp failed for volume \"pv\" : hostPath type check failed: /run is not a file"
    );
    assert_eq!(
        fails(json!({"hostPath": {"path": "/run"}, "mountOptions": ["ro"]}), &alone).await,
        "MountVolume.MountOptionSupport check failed for volume \"pv\" : Mount options are not supported for this volume type"
    );
    let error = fails(json!({"local": {"path": "/run"}, "volumeMode": "Block"}), &alone).await;
    assert!(error.ends_with("/run is not a block device"), "{error}");
    // Of two pods one at a time; the node's labels decide what it can reach.
    let node =
        serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "slow"}}})).unwrap();
    let mut on_node = NodeVolumes::alone();
    on_node.node = tokio::sync::watch::channel(Some(Arc::new(node))).1;
    let terms = json!([{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["fast"]}]}]);
    let far = json!({"local": {"path": "/run"}, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
    assert_eq!(
        fails(far, &on_node).await,
        "MountVolume.NodeAffinity check failed for volume \"pv\" : no matching NodeSelectorTerms"
    );
    let exclusive = json!({"hostPath": {"path": "/run"}, "accessModes": ["ReadWriteOncePod"]});
    alone.forget("u");
    let mut other = with_volume(dir.path(), exclusive.clone(), json!({}));
    other.metadata.uid = Some("other".into());
    set_up(&other, dir.path(), &objects(), &alone, &downward(&other), &Arc::default()).await.unwrap();
    assert_eq!(
        fails(exclusive.clone(), &alone).await,
        "MountVolume.SetUp failed for volume \"pv\" : volume uses the ReadWriteOncePod access mode and is already in use by another pod"
    );
    alone.forget("other");
    let p = with_volume(dir.path(), exclusive, json!({}));
    set_up(&p, dir.path(), &objects(), &alone, &downward(&p), &Arc::default()).await.unwrap();
    // A claim that is not known yet, and no API server to ask.
    claims::save(dir.path(), &Known::new()).unwrap();
    let error = set_up(&p, dir.path(), &objects(), &alone, &downward(&p), &Arc::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "Unable to attach or mount volumes: unmounted volumes=[d], unattached volumes=[], failed to process volumes=[d]: \
         error processing PVC n/c: there is no API server to ask"
    );
}

#[tokio::test]
async fn a_token_is_the_only_users_and_the_groups() {
    use std::os::unix::fs::MetadataExt;
    let made = |containers: serde_json::Value, group: Option<i64>, mode: Option<i32>| {
        let mut p = pod(json!([]), group);
        p.spec.as_mut().unwrap().containers = serde_json::from_value(containers).unwrap();
        let mut files = Files::new();
        let projection = k8s_openapi::api::core::v1::ServiceAccountTokenProjection {
            path: "t".into(),
            ..Default::default()
        };
        project::token(&mut files, &projection, "x".into(), mode, &p);
        let dir = tempfile::tempdir().unwrap();
        atomic::publish(dir.path(), &files, group.map(|g| g as u32)).unwrap();
        let metadata = fs::metadata(dir.path().join("t")).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o777)
    };
    let user = |id: i64| json!({"name": "c", "securityContext": {"runAsUser": id}});
    assert_eq!(made(json!([user(1001)]), Some(2002), Some(0o640)), (1001, 2002, 0o640));
    assert_eq!(made(json!([user(1001), user(1001)]), None, None), (1001, 0, 0o600));
    assert_eq!(made(json!([user(1001), user(1002)]), None, Some(0o644)), (0, 0, 0o644));
    assert_eq!(made(json!([user(1001), {"name": "d"}]), Some(7), None), (0, 7, 0o640));
}
