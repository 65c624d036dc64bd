//! Events about objects, as `kubectl describe` shows them.
//!
//! Controllers hand events over without waiting; one task writes them. Repeated events are counted on one Event object,
//! many similar ones are combined, and an object that causes too many is limited.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::ignore_not_found;
use crate::write::{patch_params, post_params};

/// Events waiting to be written; more are dropped.
const BUFFER: usize = 1024;
/// Distinct messages of one object, component and reason before they are combined.
const SIMILAR: usize = 10;
/// Similar events further apart than this are not combined.
const WINDOW: Duration = Duration::from_secs(600);
/// Events of one component and object at once.
const BURST: f64 = 25.0;
/// Events a second after the burst.
const REFILL: f64 = 1.0 / 300.0;
/// Messages remembered.
const REMEMBERED: usize = 4096;

/// Where controllers leave events; cheap to clone.
#[derive(Clone)]
pub struct Events {
    sender: mpsc::Sender<Note>,
}

/// Events of one component.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Note>,
    component: &'static str,
}

struct Note {
    component: &'static str,
    about: ObjectReference,
    kind: &'static str,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

impl Events {
    /// Events and the task that writes them until `shutdown`.
    pub fn new(
        client: Client,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, mut receiver) = mpsc::channel(BUFFER);
        let task = async move {
            let mut writer = Writer { client, correlator: Correlator::default() };
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    note = receiver.recv() => match note {
                        Some(note) => writer.write(note).await,
                        None => break,
                    },
                }
            }
        };
        (Self { sender }, task)
    }

    /// A recorder for a component (`deployment-controller`).
    #[must_use]
    pub fn recorder(&self, component: &'static str) -> Recorder {
        Recorder { sender: self.sender.clone(), component }
    }
}

impl Recorder {
    /// Something went as it should.
    pub fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &'static str, message: String) {
        self.note(reference(about), "Normal", reason, message);
    }

    /// Something went wrong.
    pub fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &'static str, message: String) {
        self.note(reference(about), "Warning", reason, message);
    }

    fn note(&self, about: ObjectReference, kind: &'static str, reason: &'static str, message: String) {
        let note = Note { component: self.component, about, kind, reason, message, at: Timestamp::now() };
        if self.sender.try_send(note).is_err() {
            tracing::debug!(reason, "event dropped: too many wait to be written");
        }
    }
}

fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(object.name_any()),
        namespace: object.namespace(),
        uid: object.uid(),
        resource_version: object.resource_version(),
        field_path: None,
    }
}

/// What to write for an event.
#[derive(Debug, PartialEq)]
enum Action {
    /// A new Event with this message.
    Create(String),
    /// One more of an Event: its name, the count now, its message.
    Count(String, i32, String),
    /// Nothing: its object causes too many.
    Drop,
}

#[derive(Default)]
struct Correlator {
    groups: HashMap<GroupKey, Group>,
    written: HashMap<(GroupKey, String), (String, i32)>,
    limits: HashMap<(&'static str, String), (f64, Instant)>,
}

/// Component, UID (or name) of the object, type, reason.
type GroupKey = (&'static str, String, &'static str, &'static str);

struct Group {
    messages: Vec<String>,
    last: Instant,
}

impl Correlator {
    fn decide(&mut self, note: &Note, now: Instant) -> (Action, (GroupKey, String)) {
        let object = note
            .about
            .uid
            .clone()
            .unwrap_or_else(|| format!("{:?}/{:?}", note.about.namespace, note.about.name));
        let group_key: GroupKey = (note.component, object.clone(), note.kind, note.reason);
        if self.groups.len() > REMEMBERED || self.written.len() > REMEMBERED || self.limits.len() > REMEMBERED
        {
            self.groups.retain(|_, g| now - g.last < WINDOW);
            let groups = &self.groups;
            self.written.retain(|(key, _), _| groups.contains_key(key));
            self.limits.retain(|_, (_, last)| now - *last < WINDOW);
            if self.written.len() > REMEMBERED {
                self.written.clear();
            }
        }
        let group =
            self.groups.entry(group_key.clone()).or_insert_with(|| Group { messages: Vec::new(), last: now });
        if now - group.last > WINDOW {
            group.messages.clear();
        }
        group.last = now;
        if !group.messages.contains(&note.message) && group.messages.len() < SIMILAR {
            group.messages.push(note.message.clone());
        }
        let combine = group.messages.len() >= SIMILAR;
        let message = if combine {
            format!("(combined from similar events): {}", note.message)
        } else {
            note.message.clone()
        };
        let key = (group_key, if combine { String::new() } else { note.message.clone() });

        let (tokens, last) = self.limits.entry((note.component, object)).or_insert((BURST, now));
        *tokens = (*tokens + (now - *last).as_secs_f64() * REFILL).min(BURST);
        *last = now;
        if *tokens < 1.0 {
            return (Action::Drop, key);
        }
        *tokens -= 1.0;
        let action = match self.written.get_mut(&key) {
            Some((name, count)) => {
                *count += 1;
                Action::Count(name.clone(), *count, message)
            }
            None => Action::Create(message),
        };
        (action, key)
    }
}

struct Writer {
    client: Client,
    correlator: Correlator,
}

impl Writer {
    async fn write(&mut self, note: Note) {
        let (action, key) = self.correlator.decide(&note, Instant::now());
        // Events about cluster-scoped objects live in "default".
        let namespace = note.about.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let result = match action {
            Action::Drop => return,
            Action::Count(name, count, message) => {
                let patch = json!({"count": count, "message": message, "lastTimestamp": Time(note.at)});
                let patched = api.patch(&name, &patch_params(), &Patch::Merge(patch)).await;
                match ignore_not_found(patched) {
                    Ok(Some(_)) => Ok(()),
                    Ok(None) => self.create(&api, &namespace, &note, message, key, count).await,
                    Err(error) => Err(error),
                }
            }
            Action::Create(message) => self.create(&api, &namespace, &note, message, key, 1).await,
        };
        if let Err(error) = result {
            // An event in a namespace that is going away, or a server that is: nobody misses it.
            tracing::debug!(reason = note.reason, %error, "event not written");
        }
    }

    async fn create(
        &mut self,
        api: &Api<Event>,
        namespace: &str,
        note: &Note,
        message: String,
        key: (GroupKey, String),
        count: i32,
    ) -> crate::error::Result<()> {
        let object = note.about.name.as_deref().unwrap_or_default();
        let name = format!("{object}.{:x}", note.at.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.into()),
                ..ObjectMeta::default()
            },
            involved_object: note.about.clone(),
            type_: Some(note.kind.into()),
            reason: Some(note.reason.into()),
            message: Some(message),
            count: Some(count),
            first_timestamp: Some(Time(note.at)),
            last_timestamp: Some(Time(note.at)),
            source: Some(EventSource { component: Some(note.component.into()), host: None }),
            reporting_component: Some(note.component.into()),
            reporting_instance: Some(String::new()),
            ..Event::default()
        };
        api.create(&post_params(), &event).await?;
        self.correlator.written.insert(key, (name, count));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(uid: &str, message: &str) -> Note {
        Note {
            component: "c",
            about: ObjectReference { uid: Some(uid.into()), ..ObjectReference::default() },
            kind: "Normal",
            reason: "R",
            message: message.into(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    /// Decides and, for a creation, remembers it as the writer does.
    fn decide(c: &mut Correlator, note: &Note) -> Action {
        let (action, key) = c.decide(note, Instant::now());
        if let Action::Create(_) = action {
            c.written.insert(key, ("name".into(), 1));
        }
        action
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_are_counted_and_similar_ones_combined() {
        let mut c = Correlator::default();
        assert_eq!(decide(&mut c, &note("a", "m1")), Action::Create("m1".into()));
        assert_eq!(decide(&mut c, &note("a", "m1")), Action::Count("name".into(), 2, "m1".into()));
        for i in 2..10 {
            assert_eq!(decide(&mut c, &note("a", &format!("m{i}"))), Action::Create(format!("m{i}")));
        }
        let combined = |m: &str| format!("(combined from similar events): {m}");
        assert_eq!(decide(&mut c, &note("a", "m10")), Action::Create(combined("m10")));
        assert_eq!(decide(&mut c, &note("a", "m11")), Action::Count("name".into(), 2, combined("m11")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_with_too_many_events_is_limited() {
        let mut c = Correlator::default();
        for _ in 0..25 {
            assert_ne!(decide(&mut c, &note("a", "m")), Action::Drop);
        }
        assert_eq!(decide(&mut c, &note("a", "m")), Action::Drop);
        assert_ne!(decide(&mut c, &note("b", "m")), Action::Drop);
        tokio::time::advance(Duration::from_secs(301)).await;
        assert_ne!(decide(&mut c, &note("a", "m")), Action::Drop);
    }
}
