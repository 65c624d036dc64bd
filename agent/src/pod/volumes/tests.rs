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
