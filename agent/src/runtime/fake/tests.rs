use super::*;
use crate::runtime::Resources;

fn sandbox(id: &str) -> SandboxSpec {
    SandboxSpec {
        id: id.to_owned(),
        namespace: "default".to_owned(),
        name: id.to_owned(),
        hostname: id.to_owned(),
        host_network: false,
        host_pid: false,
        host_ipc: false,
        share_pid: false,
        users: None,
        cgroup: PathBuf::from("kubepods/besteffort/pod1"),
        resources: Resources::default(),
        log_dir: PathBuf::from("/nonexistent"),
        sysctls: BTreeMap::new(),
    }
}

fn container(name: &str) -> ContainerSpec {
    ContainerSpec {
        id: format!("{name}.0"),
        name: name.to_owned(),
        argv: vec!["/bin/true".to_owned()],
        ..ContainerSpec::default()
    }
}

#[tokio::test]
async fn a_container_ends_by_signal_and_is_announced() {
    let runtime = FakeRuntime::new();
    let mut events = runtime.events();
    runtime.create_sandbox(&sandbox("a")).await.unwrap();
    runtime.start_container("a", &container("c")).await.unwrap();
    runtime.ignore_term("c");
    runtime.signal_container("a", "c.0", libc::SIGTERM).await.unwrap();
    let running = runtime.status("a").await.unwrap().unwrap();
    assert!(matches!(running.containers[0].state, ContainerState::Running { .. }));
    runtime.signal_container("a", "c.0", libc::SIGKILL).await.unwrap();
    let ended = runtime.status("a").await.unwrap().unwrap();
    assert!(matches!(&ended.containers[0].state, ContainerState::Exited(e) if e.exit_code == 137));
    let event = RuntimeEvent::ContainerExited { sandbox: "a".into(), container: "c.0".into() };
    assert_eq!(events.try_recv().unwrap(), event);
}

#[tokio::test]
async fn a_fault_after_the_work_leaves_the_work_done() {
    let faulty = FaultyRuntime::new(FakeRuntime::new(), |n, _| (n == 0).then_some(Fault::After));
    assert!(faulty.create_sandbox(&sandbox("a")).await.is_err());
    assert_eq!(faulty.list().await.unwrap().len(), 1);
    faulty.create_sandbox(&sandbox("a")).await.unwrap();
    assert_eq!(faulty.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_lost_sandbox_starts_nothing_until_created_again() {
    let runtime = FakeRuntime::new();
    runtime.create_sandbox(&sandbox("a")).await.unwrap();
    runtime.lose_shim("a");
    assert!(runtime.start_container("a", &container("c")).await.is_err());
    assert!(runtime.create_sandbox(&sandbox("a")).await.unwrap().ready);
    runtime.start_container("a", &container("c")).await.unwrap();
}
