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
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
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
    annotations: Annotations,
}

/// What an event says to machines.
pub type Annotations = Vec<(&'static str, String)>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Object {
    Pod { pod: PodRef, field_path: Option<String> },
    Node(String),
    Claim { namespace: String, name: String, uid: Option<String> },
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
        pace: Pace,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue }, write(client, host, pace, receiver, shutdown))
    }

    /// A recorder whose events are read by nobody.
    pub fn discarding() -> Self {
        Self { queue: mpsc::channel(1).0 }
    }

    /// Something happened to a pod.
    pub fn pod(&self, pod: &PodRef, kind: Kind, reason: &str, message: impl Into<String>) {
        self.annotated(pod, kind, reason, message, Annotations::new());
    }

    /// Something happened to a pod, with annotations of the event.
    pub fn annotated(
        &self,
        pod: &PodRef,
        kind: Kind,
        reason: &str,
        message: impl Into<String>,
        annotations: Annotations,
    ) {
        let object = Object::Pod { pod: pod.clone(), field_path: None };
        self.send(kind, reason, message.into(), object, annotations);
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
        self.send(kind, reason, message.into(), object, Annotations::new());
    }

    /// Something happened to a PersistentVolumeClaim; `claim` is what a volume says of it.
    pub fn claim(&self, claim: &ObjectReference, kind: Kind, reason: &str, message: impl Into<String>) {
        let (Some(namespace), Some(name)) = (claim.namespace.clone(), claim.name.clone()) else { return };
        let object = Object::Claim { namespace, name, uid: claim.uid.clone() };
        self.send(kind, reason, message.into(), object, Annotations::new());
    }

    /// Something happened to the node.
    pub fn node(&self, name: &str, kind: Kind, reason: &str, message: impl Into<String>) {
        self.send(kind, reason, message.into(), Object::Node(name.to_owned()), Annotations::new());
    }

    fn send(&self, kind: Kind, reason: &str, message: String, object: Object, annotations: Annotations) {
        let about = match &object {
            Object::Pod { pod, .. } => pod.to_string(),
            Object::Node(name) | Object::Claim { name, .. } => name.clone(),
        };
        tracing::debug!(about, reason, event = message, "event");
        let reason = reason.to_owned();
        let _ = self.queue.try_send(Occurrence { kind, reason, message, object, annotations });
    }
}

/// How many events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// A second; 0: any number.
    pub per_second: i32,
    /// At once, above that.
    pub burst: i32,
}

impl Default for Pace {
    /// The kubelet's.
    fn default() -> Self {
        Self { per_second: 50, burst: 100 }
    }
}

/// A bucket of tokens that fills at a pace.
#[derive(Debug)]
struct Bucket {
    pace: Pace,
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, tokens: f64::from(pace.burst), filled_at: now }
    }

    /// Takes a token; else how long to wait for one.
    fn take(&mut self, now: Instant) -> Option<Duration> {
        if self.pace.per_second <= 0 {
            return None;
        }
        let rate = f64::from(self.pace.per_second);
        let grown = self.tokens + now.duration_since(self.filled_at).as_secs_f64() * rate;
        self.tokens = grown.min(f64::from(self.pace.burst.max(1)));
        self.filled_at = now;
        if self.tokens < 1.0 {
            return Some(Duration::from_secs_f64((1.0 - self.tokens) / rate));
        }
        self.tokens -= 1.0;
        None
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
    pace: Pace,
    mut queue: mpsc::Receiver<Occurrence>,
    shutdown: CancellationToken,
) {
    let mut bucket = Bucket::new(pace, Instant::now());
    let mut written: HashMap<Occurrence, Written> = HashMap::new();
    loop {
        let occurrence = tokio::select! {
            () = shutdown.cancelled() => return,
            next = queue.recv() => match next {
                Some(occurrence) => occurrence,
                None => return,
            },
        };
        while let Some(wait) = bucket.take(Instant::now()) {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
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
        Object::Claim { namespace, name, uid } => (
            namespace.clone(),
            ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                uid: uid.clone(),
                ..ObjectReference::default()
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
    let annotations: BTreeMap<String, String> =
        occurrence.annotations.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            annotations: (!annotations.is_empty()).then_some(annotations),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_followed_by_the_pace() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Pace { per_second: 2, burst: 3 }, start);
        let takes = (0..4).map(|_| bucket.take(start).is_none()).collect::<Vec<_>>();
        assert_eq!(takes, [true, true, true, false]);
        assert_eq!(bucket.take(start), Some(Duration::from_millis(500)));
        assert_eq!(bucket.take(start + Duration::from_millis(500)), None);
        let mut any = Bucket::new(Pace { per_second: 0, burst: 0 }, start);
        assert!((0..1000).all(|_| any.take(start).is_none()));
    }
}
