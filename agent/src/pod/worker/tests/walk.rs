//! An agent that dies at every step of a pod's start and end, on the real runtime and network.

use super::is_ready;
use super::real::{Host, assert_no_trace, on_host_of_its_own};
use crate::runtime::fake::Fault;
use serde_json::json;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// What only looks.
const READS: [&str; 6] = ["status", "list", "usage", "events", "writable_bytes", "exec"];

/// Takes the pod through its whole life, from wherever it is.
async fn live(host: &Host, agent: &mut super::real::Agent) {
    let api = &host.api;
    let uids = match api.pod("p") {
        Some(pod) => {
            agent.manager.apply(pod);
            HashSet::from(["uid-p".to_owned()])
        }
        None if api.0.lock().history.is_empty() => HashSet::new(),
        None => {
            // The API server has forgotten it; what is left on the node goes.
            agent.manager.reset(&HashSet::new()).await;
            let pods = host.config.data_dir.join("pods");
            agent.until("cleaning up", || std::fs::read_dir(&pods).unwrap().count() == 0).await;
            return;
        }
    };
    agent.manager.reset(&uids).await;
    if uids.is_empty() {
        let starts = host.dir.path().join("starts");
        std::fs::create_dir_all(&starts).unwrap();
        let script = |name: &str, rest: &str| json!(["sh", "-c", format!("echo >> /starts/{name}; {rest}")]);
        let mount =
            json!([{"name": "starts", "mountPath": "/starts"}, {"name": "cache", "mountPath": "/cache"}]);
        agent.create(
            host,
            "p",
            json!({
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 5,
            "volumes": [{"name": "starts", "hostPath": {"path": starts}},
                {"name": "cache", "emptyDir": {"medium": "Memory"}}],
            "initContainers": [{"name": "i", "command": script("i", "true"), "volumeMounts": mount}],
            "containers": [{"name": "c", "volumeMounts": mount,
                "command": script("c", "trap 'exit 5' TERM; while :; do sleep 0.05; done")}]}),
        );
    }
    let deleted = api.pod("p").is_some_and(|p| p.metadata.deletion_timestamp.is_some());
    if !deleted {
        agent.until("ready", || is_ready(&api.status("p"))).await;
        agent.delete(host, "p", 5);
    }
    agent.until("deletion", || api.pod("p").is_none()).await;
}

/// A life in which the agent dies at step `number`; the name of the step, `None` when there are fewer.
fn die_at(host: &Host, number: usize, fault: Fault) -> Option<&'static str> {
    let died = Arc::new((Notify::new(), parking_lot::Mutex::new(None)));
    let count = AtomicUsize::new(0);
    let tell = died.clone();
    let plan = move |name: &'static str| {
        if READS.contains(&name) || count.fetch_add(1, Ordering::Relaxed) != number {
            return None;
        }
        *tell.1.lock() = Some(name);
        tell.0.notify_one();
        Some(fault)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut agent = host.mortal_agent(Arc::new(plan)).await;
        tokio::select! {
            () = live(host, &mut agent) => agent.stop().await,
            () = async {
                died.0.notified().await;
                // The work of a call that dies after it.
                tokio::time::sleep(std::time::Duration::from_millis(600)).await;
            } => {}
        }
    });
    // Everything of this agent is dropped where it stands.
    drop(runtime);
    *died.1.lock()
}

#[test]
fn an_agent_that_dies_at_any_step_leaves_nothing_and_loses_no_exit_code() {
    on_host_of_its_own(|| {
        for fault in [Fault::DiesBefore, Fault::DiesAfter] {
            for number in 0.. {
                let host = Host::new();
                let step = die_at(&host, number, fault);
                let label = format!("{fault:?} {number} {step:?}");
                if step.is_some() {
                    assert_eq!(die_at(&host, usize::MAX, fault), None);
                }
                let starts = |name: &str| {
                    std::fs::read_to_string(host.dir.path().join("starts").join(name))
                        .unwrap_or_default()
                        .len()
                };
                assert_eq!((starts("i"), starts("c")), (1, 1), "{label}: every container runs once");
                let last = host.api.0.lock().history.last().unwrap().1.clone();
                let end = last.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
                assert_eq!((end.exit_code, end.reason.as_deref()), (5, Some("Error")), "{label}");
                assert_no_trace(&host);
                if step.is_none() {
                    assert!(number > 6, "only {number} steps");
                    break;
                }
            }
        }
    });
}
