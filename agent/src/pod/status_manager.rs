//! The only writer of pod status.
//!
//! Workers hand over the newest status of their pod ([`StatusManager::set`]); one task sends it as a strategic merge
//! patch that carries the UID as a precondition. Statuses that were overtaken are never sent, unchanged ones neither;
//! failures are tried again with a growing delay. The same task does the final delete, after the last status.

use crate::pod::reference::PodRef;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Handle of the status manager; clones share it.
#[derive(Clone)]
pub struct StatusManager {
    shared: Arc<Shared>,
}

struct Shared {
    client: kube::Client,
    entries: Mutex<HashMap<String, Entry>>,
    work: Notify,
}

struct Entry {
    pod: PodRef,
    desired: Option<PodStatus>,
    /// What the API server has, as far as known.
    known: PodStatus,
    dirty: bool,
    /// Since when the API server has an older status.
    changed: Option<Instant>,
    delete: bool,
    in_flight: bool,
    failures: u32,
    not_before: Option<Instant>,
    waiters: Vec<oneshot::Sender<()>>,
}

/// Requests that run at a time.
const CONCURRENCY: usize = 16;
/// Longest wait for one request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest delay between attempts.
const MAX_DELAY: Duration = Duration::from_secs(30);

impl StatusManager {
    /// A manager and its task, which ends with `shutdown`.
    pub fn new(client: kube::Client, shutdown: CancellationToken) -> (Self, impl Future<Output = ()>) {
        let shared = Arc::new(Shared { client, entries: Mutex::default(), work: Notify::new() });
        (Self { shared: shared.clone() }, run(shared, shutdown))
    }

    /// Reports a status; a newer one replaces it if it was not sent yet.
    pub fn set(&self, pod: &Pod, status: PodStatus) {
        self.change(pod, |entry| {
            if entry.desired.as_ref() != Some(&status) {
                entry.desired = Some(status);
                entry.dirty = true;
                entry.changed.get_or_insert_with(Instant::now);
            }
        });
    }

    /// Resolves when everything handed over for this pod so far is with the API server, or the pod is gone there.
    pub fn flush(&self, pod: &Pod) -> impl Future<Output = ()> + use<> {
        let (sender, receiver) = oneshot::channel();
        self.change(pod, |entry| entry.waiters.push(sender));
        async move {
            let _ = receiver.await;
        }
    }

    /// Removes the pod from the API server, after its last status: grace period 0, UID as precondition.
    pub fn delete(&self, pod: &Pod) -> impl Future<Output = ()> + use<> {
        let (sender, receiver) = oneshot::channel();
        self.change(pod, |entry| {
            entry.delete = true;
            entry.waiters.push(sender);
        });
        async move {
            let _ = receiver.await;
        }
    }

    /// Forgets a pod that no longer exists.
    pub fn forget(&self, uid: &str) {
        self.shared.entries.lock().remove(uid);
    }

    fn change(&self, pod: &Pod, change: impl FnOnce(&mut Entry)) {
        let reference = PodRef::from(pod);
        let mut entries = self.shared.entries.lock();
        let entry = entries.entry(reference.uid.clone()).or_insert_with(|| Entry {
            pod: reference,
            desired: None,
            known: pod.status.clone().unwrap_or_default(),
            dirty: false,
            changed: None,
            delete: false,
            in_flight: false,
            failures: 0,
            not_before: None,
            waiters: Vec::new(),
        });
        change(entry);
        drop(entries);
        self.shared.work.notify_one();
    }
}

enum Job {
    Patch { pod: PodRef, body: Value, status: Box<PodStatus> },
    Delete { pod: PodRef },
}

enum Outcome {
    /// The API server has this status now.
    Patched(Box<PodStatus>),
    /// The pod with this UID does not exist any more.
    Gone,
    Failed(String),
}

impl Shared {
    /// Takes the jobs that may start now, and says when to look again.
    fn take(&self, running: usize) -> (Vec<Job>, Option<Instant>) {
        let now = Instant::now();
        let mut jobs = Vec::new();
        let mut wake: Option<Instant> = None;
        for entry in self.entries.lock().values_mut() {
            if entry.in_flight {
                continue;
            }
            if !entry.dirty && !entry.delete {
                for waiter in entry.waiters.drain(..) {
                    let _ = waiter.send(());
                }
                continue;
            }
            if let Some(at) = entry.not_before.filter(|at| *at > now) {
                wake = Some(wake.map_or(at, |w| w.min(at)));
                continue;
            }
            if running + jobs.len() >= CONCURRENCY {
                break;
            }
            let pod = entry.pod.clone();
            let body = match (&entry.desired, entry.dirty) {
                (Some(desired), true) => {
                    patch(&pod.uid, &entry.known, desired).map(|body| (body, desired.clone()))
                }
                _ => None,
            };
            entry.dirty = false;
            match body {
                Some((body, status)) => {
                    entry.in_flight = true;
                    jobs.push(Job::Patch { pod, body, status: Box::new(status) });
                }
                None if entry.delete => {
                    entry.in_flight = true;
                    jobs.push(Job::Delete { pod });
                }
                None => {
                    for waiter in entry.waiters.drain(..) {
                        let _ = waiter.send(());
                    }
                }
            }
        }
        (jobs, wake)
    }

    fn finish(&self, uid: &str, outcome: Outcome) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(uid) else { return };
        entry.in_flight = false;
        match outcome {
            Outcome::Patched(status) => {
                entry.known = *status;
                if let Some(changed) = entry.changed.take() {
                    crate::metrics::STATUS_SYNC.observe(&[], changed.elapsed().as_secs_f64());
                }
                if entry.dirty {
                    entry.changed = Some(Instant::now());
                }
                entry.failures = 0;
                entry.not_before = None;
            }
            Outcome::Gone => {
                entries.remove(uid); // dropping the waiters wakes them
            }
            Outcome::Failed(error) => {
                entry.failures += 1;
                entry.dirty = entry.desired.is_some();
                let delay = Duration::from_millis(200) * 2u32.saturating_pow(entry.failures.min(10));
                let delay = delay.min(MAX_DELAY);
                entry.not_before = Some(Instant::now() + delay);
                tracing::warn!(pod = %entry.pod, error, ?delay, "pod status not written, trying again");
            }
        }
    }
}

async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut running = FuturesUnordered::new();
    loop {
        let (jobs, wake) = shared.take(running.len());
        for job in jobs {
            let shared = shared.clone();
            running.push(async move {
                let uid = match &job {
                    Job::Patch { pod, .. } | Job::Delete { pod } => pod.uid.clone(),
                };
                let outcome = match tokio::time::timeout(TIMEOUT, execute(&shared.client, job)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Outcome::Failed("the API server did not answer in time".into()),
                };
                shared.finish(&uid, outcome);
            });
        }
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = shared.work.notified() => {}
            Some(()) = running.next() => {}
            () = sleep => {}
        }
    }
}

async fn execute(client: &kube::Client, job: Job) -> Outcome {
    match job {
        Job::Patch { pod, body, status } => {
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
            match api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(&body)).await {
                Ok(answer) if answer.metadata.uid.as_deref() != Some(pod.uid.as_str()) => Outcome::Gone,
                Ok(_) => Outcome::Patched(status),
                Err(kube::Error::Api(error)) if error.code == 404 => Outcome::Gone,
                // The UID precondition: another pod has the name now.
                Err(kube::Error::Api(error))
                    if matches!(error.code, 409 | 422) && error.message.to_lowercase().contains("uid") =>
                {
                    Outcome::Gone
                }
                Err(error) => Outcome::Failed(error.to_string()),
            }
        }
        Job::Delete { pod } => {
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
            let parameters = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), resource_version: None }),
                ..DeleteParams::default()
            };
            match api.delete(&pod.name, &parameters).await {
                Ok(_) => Outcome::Gone,
                Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => Outcome::Gone,
                Err(error) => Outcome::Failed(error.to_string()),
            }
        }
    }
}

/// Lists that the API server merges by a key; the key.
const MERGED: [(&str, &str); 3] = [("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip")];

/// The strategic merge patch that turns `known` into `desired`; `None` when they are the same.
fn patch(uid: &str, known: &PodStatus, desired: &PodStatus) -> Option<Value> {
    let (Ok(Value::Object(known)), Ok(Value::Object(desired))) =
        (serde_json::to_value(known), serde_json::to_value(desired))
    else {
        return None;
    };
    let mut status = Map::new();
    for (key, value) in &desired {
        if known.get(key) == Some(value) {
            continue;
        }
        match MERGED.iter().find(|(list, _)| list == key) {
            Some((_, by)) => merge_list(&mut status, key, by, known.get(key), value),
            None => {
                status.insert(key.clone(), value.clone());
            }
        }
    }
    for (key, value) in known.iter().filter(|(key, _)| !desired.contains_key(*key)) {
        match MERGED.iter().find(|(list, _)| list == key) {
            Some((_, by)) => merge_list(&mut status, key, by, Some(value), &json!([])),
            None => {
                status.insert(key.clone(), Value::Null);
            }
        }
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

fn merge_list(status: &mut Map<String, Value>, key: &str, by: &str, known: Option<&Value>, desired: &Value) {
    let empty = Vec::new();
    let known = known.and_then(Value::as_array).unwrap_or(&empty);
    let desired = desired.as_array().unwrap_or(&empty);
    let mut list = Vec::new();
    for item in desired {
        let before = known.iter().find(|k| k[by] == item[by]);
        if before == Some(item) {
            continue;
        }
        let mut item = item.clone();
        if let (Some(Value::Object(before)), Value::Object(item)) = (before, &mut item) {
            for field in before.keys().filter(|f| !item.contains_key(*f)).cloned().collect::<Vec<_>>() {
                item.insert(field, Value::Null);
            }
        }
        list.push(item);
    }
    let removed = known.iter().filter(|k| !desired.iter().any(|d| d[by] == k[by]));
    list.extend(removed.map(|k| json!({"$patch": "delete", by: k[by]})));
    if list.is_empty() {
        return; // only the order differs
    }
    let order: Vec<Value> = desired.iter().map(|d| json!({by: d[by]})).collect();
    status.insert(format!("$setElementOrder/{key}"), Value::Array(order));
    status.insert(key.to_owned(), Value::Array(list));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn nothing_changed_sends_nothing() {
        let s = status(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}));
        assert_eq!(patch("u", &s, &s), None);
    }

    #[test]
    fn only_changes_are_sent_and_removed_fields_are_null() {
        let known = status(json!({"phase": "Running", "reason": "x",
            "conditions": [{"type": "A", "status": "True"}, {"type": "Ready", "status": "False", "reason": "r"}],
            "podIPs": [{"ip": "10.0.0.1"}]}));
        let desired = status(json!({"phase": "Running",
            "conditions": [{"type": "A", "status": "True"}, {"type": "Ready", "status": "True"}],
            "podIPs": [{"ip": "10.0.0.2"}]}));
        assert_eq!(
            patch("u", &known, &desired).unwrap(),
            json!({"metadata": {"uid": "u"}, "status": {
                "reason": null,
                "$setElementOrder/conditions": [{"type": "A"}, {"type": "Ready"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null}],
                "$setElementOrder/podIPs": [{"ip": "10.0.0.2"}],
                "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}]}})
        );
    }
}
