//! Cached objects and events.

use super::frame::{FrameKey, Frames};
use crate::object::Encoded;
use crate::registry::Resource;
use crate::schema::TypeSchema;
use crate::selector::{FieldSelector, LabelSelector};
use bytes::Bytes;
use serde_json::Value;
use std::sync::atomic::{AtomicU32, Ordering};
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
    /// Length of the protobuf message plus one, once it is known: lists must say how long they are before they begin.
    message_length: AtomicU32,
}

impl Entry {
    /// Parses what selectors need out of the served bytes.
    pub fn new(resource: &Resource, key: &str, encoded: Encoded) -> Self {
        let object = encoded.parse_lean();
        let labels = object
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into()))
            .collect();
        let fields = resource.fields.iter().map(|f| f.of(&object).into()).collect();
        Entry { key: key.into(), encoded, labels, fields, message_length: AtomicU32::new(0) }
    }

    /// The same object as it was when it was deleted or left a selector.
    pub fn at_revision(&self, revision: i64) -> Entry {
        Entry {
            key: self.key.clone(),
            encoded: self.encoded.at_revision(revision),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            message_length: AtomicU32::new(0),
        }
    }

    /// Length of the object as a protobuf message of its type.
    pub fn message_length(&self, ty: &TypeSchema) -> usize {
        match self.message_length.load(Ordering::Relaxed) {
            0 => {
                let length = crate::codec::transcode::message(self.encoded.full(), ty).len();
                let known = u32::try_from(length).unwrap_or(u32::MAX - 1).saturating_add(1);
                self.message_length.store(known, Ordering::Relaxed);
                length
            }
            known => known as usize - 1,
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

    /// Value of the selectable field at a place in the row's order.
    pub(crate) fn field_at(&self, at: usize) -> Option<&str> {
        self.fields.get(at).map(|value| &**value)
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
    frames: Frames,
    /// The object as it left a selector.
    left: OnceLock<Arc<Entry>>,
}

impl CacheEvent {
    /// An event.
    pub fn new(revision: i64, object: Arc<Entry>, previous: Option<Arc<Entry>>, deleted: bool) -> Self {
        CacheEvent { revision, object, previous, deleted, frames: Frames::default(), left: OnceLock::new() }
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

    /// The event as it is sent to all watchers that see it this way; `make` is called for the first of them.
    pub fn frame(&self, kind: EventType, how: FrameKey, make: impl FnOnce() -> Bytes) -> Bytes {
        self.frames.get(kind, how, make)
    }

    /// Bytes the event keeps in memory, roughly.
    pub(crate) fn weight(&self) -> usize {
        512 + 3 * self.object.encoded.full().len()
    }
}
