use super::*;
use crate::kubelet_config::KubeletConfig;
use crate::runtime::fake::FakeRuntime;
use kelp_model::eviction::Condition;
use std::sync::Arc;

#[test]
fn images_are_given_back_where_they_help() {
    assert!(reclaims_images(Signal::NodeFsAvailable, Layout::Single));
    assert!(!reclaims_images(Signal::NodeFsAvailable, Layout::SplitImageFs));
    assert!(reclaims_images(Signal::ImageFsInodesFree, Layout::SplitImageFs));
    assert!(!reclaims_images(Signal::MemoryAvailable, Layout::Single));
}

#[test]
fn dead_containers_are_those_that_another_followed() {
    let container = |name: &str, attempt: u32, runs: bool| ContainerStatus {
        id: format!("{name}.{attempt}"),
        name: name.into(),
        attempt,
        image_id: String::new(),
        image_ref: String::new(),
        state: match runs {
            true => ContainerState::Created,
            false => ContainerState::Exited(crate::runtime::ExitRecord {
                exit_code: 0,
                signal: None,
                reason: "Completed".into(),
                message: String::new(),
                started_at: Timestamp::UNIX_EPOCH,
                finished_at: Timestamp::UNIX_EPOCH,
            }),
        },
    };
    let all = [
        container("a", 0, false),
        container("a", 1, false),
        container("b", 0, false),
        container("b", 1, true),
    ];
    assert_eq!(dead(&all), ["a.0", "b.0"]);
    assert_eq!(dead(&all[1..2]), Vec::<String>::new(), "the last one is looked at by its pod");
    assert!(reclaims_containers(Signal::NodeFsAvailable, Layout::Single));
    assert!(!reclaims_containers(Signal::MemoryAvailable, Layout::Single));
}

/// A node whose hard threshold no host can keep is under pressure at the first look, and ends the pod that goes first.
#[tokio::test]
async fn a_node_under_pressure_says_so_and_ends_a_pod() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config");
    let text = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\nevictionHard: {memory.available: 1Ei}\n";
    std::fs::write(&file, text).unwrap();
    let mut config = AgentConfig::new("node1", vec![]);
    config.data_dir = dir.path().to_owned();
    config.adopt(KubeletConfig::load(Some(&file), None).unwrap()).unwrap();
    let (sender, mut orders) = mpsc::channel(1);
    let pods = PodIndex::default();
    let pod = |name: &str, priority: i32| {
        let pod = serde_json::json!({"metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"priority": priority, "containers": [{"name": "c"}]}});
        let key = ("n".to_owned(), name.to_owned());
        pods.write().insert(key, Arc::new(serde_json::from_value(pod).unwrap()));
    };
    pod("critical", 2_000_000_000);
    pod("high", 10);
    pod("low", 5);
    let states = States::default();
    let task = Eviction {
        images: ImageStore::open(&dir.path().join("images")).unwrap(),
        config,
        runtime: FakeRuntime::default(),
        pods,
        events: Recorder::discarding(),
        states: states.clone(),
        orders: sender,
    };
    let shutdown = CancellationToken::new();
    let run = tokio::spawn(task.run(shutdown.clone()));
    let (uid, order) = orders.recv().await.unwrap();
    assert_eq!((uid.as_str(), order.reason.as_str(), order.grace), ("low", "Evicted", 1));
    assert!(
        order
            .message
            .starts_with("The node was low on resource: memory. Threshold quantity: 1Ei, available: ")
    );
    assert_eq!(states.now().pressure, [Condition::Memory].into());
    shutdown.cancel();
    run.await.unwrap();
}
