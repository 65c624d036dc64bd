//! Events about pods (`events.k8s.io/v1`).
//!
//! One task writes them, so that scheduling never waits for it; when it cannot keep up, events are dropped, which the
//! API permits (they are best effort). A repeated warning about one pod becomes a series instead of a new object.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kelp_model::scheduling::PodInfo;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Events waiting to be written.
const QUEUE: usize = 4096;
/// Warnings remembered to be continued as a series.
const REMEMBERED: usize = 1024;
/// Longest note the API takes, bytes.
const LONGEST_NOTE: usize = 1024;

/// Something to tell about a pod.
#[derive(Debug)]
pub struct Note {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// Another pod that has to do with it.
    pub related: Option<Arc<PodInfo>>,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// Why, in one word.
    pub reason: &'static str,
    /// What was being done, in one word.
    pub action: &'static str,
    /// The text.
    pub text: String,
}

/// Takes events to be written.
#[derive(Clone)]
pub struct Recorder(mpsc::Sender<Note>);

impl Recorder {
    /// The recorder, and the task that writes; it ends when the last recorder is dropped.
    pub fn new(client: Client, instance: String) -> (Self, impl Future<Output = ()>) {
        let (sender, notes) = mpsc::channel(QUEUE);
        (Self(sender), Writer { client, instance, series: HashMap::new(), order: VecDeque::new() }.run(notes))
    }

    /// Writes an event some time.
    pub fn record(&self, note: Note) {
        if let Err(error) = self.0.try_send(note) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

type Key = (Arc<str>, &'static str, &'static str);

struct Writer {
    client: Client,
    instance: String,
    /// Name and count of the events that may be continued.
    series: HashMap<Key, (String, i32)>,
    order: VecDeque<Key>,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            if let Err(error) = self.write(&note).await {
                tracing::debug!(pod = %note.pod, reason = note.reason, %error, "cannot write an event");
            }
        }
    }

    async fn write(&mut self, note: &Note) -> kube::Result<()> {
        let api = Api::<Event>::namespaced(self.client.clone(), &note.pod.namespace);
        let key = (note.pod.uid.clone(), note.reason, note.action);
        if let Some((name, count)) = self.series.get_mut(&key) {
            *count = count.saturating_add(1);
            let series = EventSeries { count: *count, last_observed_time: MicroTime(Timestamp::now()) };
            let patch = serde_json::json!({"series": series, "note": shortened(&note.text)});
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                // It has expired: begin anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                done => return done.map(drop),
            }
        }
        let event = self.event(note);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        if note.warning {
            if self.series.insert(key.clone(), (name, 1)).is_none() {
                self.order.push_back(key);
            }
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.series.remove(&oldest);
            }
        }
        Ok(())
    }

    fn event(&self, note: &Note) -> Event {
        let now = Timestamp::now();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", note.pod.name, now.as_nanosecond())),
                namespace: Some(note.pod.namespace.to_string()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(note.pod.scheduler_name.to_string()),
            reporting_instance: Some(format!("{}-{}", note.pod.scheduler_name, self.instance)),
            action: Some(note.action.to_owned()),
            reason: Some(note.reason.to_owned()),
            regarding: Some(reference(&note.pod)),
            related: note.related.as_deref().map(reference),
            note: Some(shortened(&note.text).to_owned()),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}

fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        resource_version: Some(pod.resource_version.to_string()).filter(|v| !v.is_empty()),
        ..ObjectReference::default()
    }
}

fn shortened(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST_NOTE)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_cut_between_characters() {
        let long = "ü".repeat(600);
        assert_eq!(shortened(&long).len(), 1024);
        let odd = format!("a{long}");
        assert_eq!(shortened(&odd).len(), 1023);
        assert_eq!(shortened("short"), "short");
    }
}
