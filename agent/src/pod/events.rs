//! Writes Events about pods and the node.
//!
//! Senders never wait: a full queue drops the event, as an event is a hint to a human and never state. One task
//! reads the queue and is the only writer; an event that repeats counts up instead of making a new object.

use crate::pod::reference::PodRef;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Severity of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Things go their way.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// One occurrence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Occurrence {
    kind: Kind,
    reason: String,
    message: String,
    object: Object,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Object {
    Pod { pod: PodRef, field_path: Option<String> },
    Node(String),
}

/// Sends events to the writer. Clones share the queue.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Occurrence>,
}

/// Events that may wait to be written.
const QUEUE: usize = 1024;
/// Different events remembered for counting.
const REMEMBERED: usize = 4096;

impl Recorder {
    /// A recorder and the task that writes its events; the task ends with `shutdown`.
    pub fn new(
        client: kube::Client,
        host: String,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue }, write(client, host, receiver, shutdown))
    }

    /// A recorder whose events are read by nobody.
    pub fn discarding() -> Self {
        Self { queue: mpsc::channel(1).0 }
    }

    /// Something happened to a pod.
    pub fn pod(&self, pod: &PodRef, kind: Kind, reason: &str, message: impl Into<String>) {
        self.send(kind, reason, message.into(), Object::Pod { pod: pod.clone(), field_path: None });
    }

    /// Something happened to a container; `field_path` is such as `spec.containers{name}`.
    pub fn container(
        &self,
        pod: &PodRef,
        field_path: &str,
        kind: Kind,
        reason: &str,
        message: impl Into<String>,
    ) {
        let object = Object::Pod { pod: pod.clone(), field_path: Some(field_path.to_owned()) };
        self.send(kind, reason, message.into(), object);
    }

    /// Something happened to the node.
    pub fn node(&self, name: &str, kind: Kind, reason: &str, message: impl Into<String>) {
        self.send(kind, reason, message.into(), Object::Node(name.to_owned()));
    }

    fn send(&self, kind: Kind, reason: &str, message: String, object: Object) {
        let about = match &object {
            Object::Pod { pod, .. } => pod.to_string(),
            Object::Node(name) => name.clone(),
        };
        tracing::debug!(about, reason, event = message, "event");
        let _ = self.queue.try_send(Occurrence { kind, reason: reason.to_owned(), message, object });
    }
}

struct Written {
    namespace: String,
    name: String,
    count: i32,
    last: Timestamp,
}

async fn write(
    client: kube::Client,
    host: String,
    mut queue: mpsc::Receiver<Occurrence>,
    shutdown: CancellationToken,
) {
    let mut written: HashMap<Occurrence, Written> = HashMap::new();
    loop {
        let occurrence = tokio::select! {
            () = shutdown.cancelled() => return,
            next = queue.recv() => match next {
                Some(occurrence) => occurrence,
                None => return,
            },
        };
        let now = Timestamp::now();
        if written.len() >= REMEMBERED {
            let mut ages: Vec<Timestamp> = written.values().map(|w| w.last).collect();
            ages.sort_unstable();
            let middle = ages[ages.len() / 2];
            written.retain(|_, w| w.last > middle);
        }
        let sent = tokio::time::timeout(
            Duration::from_secs(10),
            put(&client, &host, &occurrence, now, &mut written),
        );
        tokio::select! {
            () = shutdown.cancelled() => return,
            result = sent => if let Ok(Err(error)) = result {
                tracing::debug!(%error, reason = occurrence.reason, "event not written");
            },
        }
    }
}

async fn put(
    client: &kube::Client,
    host: &str,
    occurrence: &Occurrence,
    now: Timestamp,
    written: &mut HashMap<Occurrence, Written>,
) -> Result<(), kube::Error> {
    let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
    if let Some(known) = written.get_mut(occurrence) {
        known.count = known.count.saturating_add(1);
        known.last = now;
        let patch =
            json!({"count": known.count, "lastTimestamp": Time(seconds), "message": occurrence.message});
        let api: Api<Event> = Api::namespaced(client.clone(), &known.namespace);
        match api.patch(&known.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                written.remove(occurrence); // expired: write a new one
            }
            other => return other.map(|_| ()),
        }
    }
    let (namespace, involved) = match &occurrence.object {
        Object::Pod { pod, field_path } => (
            pod.namespace.clone(),
            ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod.name.clone()),
                namespace: Some(pod.namespace.clone()),
                uid: Some(pod.uid.clone()),
                resource_version: pod.resource_version.clone(),
                field_path: field_path.clone(),
            },
        ),
        Object::Node(name) => (
            "default".to_owned(),
            ObjectReference {
                kind: Some(<Node as k8s_openapi::Resource>::KIND.into()),
                name: Some(name.clone()),
                uid: Some(name.clone()),
                ..ObjectReference::default()
            },
        ),
    };
    let name = format!("{}.{:x}", involved.name.as_deref().unwrap_or_default(), now.as_nanosecond());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: involved,
        reason: Some(occurrence.reason.clone()),
        message: Some(occurrence.message.clone()),
        type_: Some(format!("{:?}", occurrence.kind)),
        count: Some(1),
        first_timestamp: Some(Time(seconds)),
        last_timestamp: Some(Time(seconds)),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(host.to_owned()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(host.to_owned()),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    api.create(&PostParams::default(), &event).await?;
    written.insert(occurrence.clone(), Written { namespace, name, count: 1, last: now });
    Ok(())
}
