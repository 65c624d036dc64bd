//! Cached objects and events.

use crate::object::Encoded;
use crate::registry::Resource;
use crate::selector::{FieldSelector, LabelSelector};
use bytes::Bytes;
use serde_json::Value;
use std::sync::{Arc, OnceLock};

/// `namespace/name`, or `name` of a resource without namespaces.
pub fn entry_key(namespaced: bool, namespace: &str, name: &str) -> String {
    if namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
}

/// An object: its bytes, and what selectors look at.
#[derive(Debug)]
pub struct Entry {
    /// `namespace/name` or `name`.
    pub key: Arc<str>,
    /// As served.
    pub encoded: Encoded,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the resource's selectable fields, in the row's order.
    fields: Box<[Box<str>]>,
}

impl Entry {
    /// Parses what selectors need out of the served bytes.
    pub fn new(resource: &Resource, key: &str, encoded: Encoded) -> Self {
        let object = encoded.parse();
        let labels = object
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into()))
            .collect();
        let fields = resource.fields.iter().map(|f| (f.value)(&object).into()).collect();
        Entry { key: key.into(), encoded, labels, fields }
    }

    /// The same object as it was when it was deleted or left a selector.
    pub fn at_revision(&self, revision: i64) -> Entry {
        Entry {
            key: self.key.clone(),
            encoded: self.encoded.at_revision(revision),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
        }
    }

    /// Name.
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// Namespace, empty for none.
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| **k == *key).map(|(_, v)| &**v)
    }

    /// Value of a selectable field.
    pub fn field(&self, resource: &Resource, label: &str) -> Option<&str> {
        match label {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => resource
                .fields
                .iter()
                .position(|f| f.label == label)
                .and_then(|at| self.fields.get(at))
                .map(|v| &**v),
        }
    }
}

/// What a list or watch selects.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Namespace, empty for all.
    pub namespace: String,
    /// Labels.
    pub labels: LabelSelector,
    /// Fields.
    pub fields: FieldSelector,
}

impl Filter {
    /// Whether an object is selected.
    pub fn matches(&self, resource: &Resource, entry: &Entry) -> bool {
        (self.namespace.is_empty() || !resource.namespaced || entry.namespace() == self.namespace)
            && self.labels.matches(|key| entry.label(key))
            && self
                .fields
                .terms
                .iter()
                .all(|t| (entry.field(resource, &t.field).unwrap_or_default() == t.value) == t.equal)
    }

    /// Whether anything but the namespace is asked for.
    pub fn selects(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }
}

/// Kind of a watch event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// The object is new, or new to the selector.
    Added,
    /// The object changed.
    Modified,
    /// The object is gone, or gone from the selector.
    Deleted,
}

impl EventType {
    /// As in the watch stream.
    pub fn text(self) -> &'static str {
        match self {
            EventType::Added => "ADDED",
            EventType::Modified => "MODIFIED",
            EventType::Deleted => "DELETED",
        }
    }
}

/// A change of one object.
#[derive(Debug)]
pub struct CacheEvent {
    /// Revision.
    pub revision: i64,
    /// The object after the change; the last state with the deletion's revision when it was deleted.
    pub object: Arc<Entry>,
    /// The object before, `None` when it is new.
    pub previous: Option<Arc<Entry>>,
    /// Deleted.
    pub deleted: bool,
    /// Frames as sent, made when the first watcher needs one.
    frames: [OnceLock<Bytes>; 3],
    /// The object as it left a selector.
    left: OnceLock<Arc<Entry>>,
}

impl CacheEvent {
    /// An event.
    pub fn new(revision: i64, object: Arc<Entry>, previous: Option<Arc<Entry>>, deleted: bool) -> Self {
        CacheEvent { revision, object, previous, deleted, frames: Default::default(), left: OnceLock::new() }
    }

    /// What the event is to a filter, if anything; and the object to show.
    pub fn seen(&self, resource: &Resource, filter: &Filter) -> Option<(EventType, &Arc<Entry>)> {
        let before = self.previous.as_ref().is_some_and(|p| filter.matches(resource, p));
        let after = !self.deleted && filter.matches(resource, &self.object);
        match (before, after) {
            (false, true) => Some((EventType::Added, &self.object)),
            (true, true) => Some((EventType::Modified, &self.object)),
            (true, false) if self.deleted => Some((EventType::Deleted, &self.object)),
            (true, false) => {
                let previous = self.previous.as_ref()?;
                let left = self.left.get_or_init(|| Arc::new(previous.at_revision(self.revision)));
                Some((EventType::Deleted, left))
            }
            (false, false) => None,
        }
    }

    /// The event's line in a watch stream, shared by all watchers that see it this way.
    pub fn frame(&self, kind: EventType, shown: &Entry) -> Bytes {
        let slot = match kind {
            EventType::Added => 0,
            EventType::Modified => 1,
            EventType::Deleted => 2,
        };
        match self.frames.get(slot) {
            Some(frame) => frame.get_or_init(|| frame_of(kind.text(), shown.encoded.full())).clone(),
            None => frame_of(kind.text(), shown.encoded.full()),
        }
    }

    /// Bytes the event keeps in memory, roughly.
    pub(crate) fn weight(&self) -> usize {
        512 + 2 * self.object.encoded.full().len()
    }
}

/// `{"type":…,"object":…}` and a line end.
pub fn frame_of(kind: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.into()
}
