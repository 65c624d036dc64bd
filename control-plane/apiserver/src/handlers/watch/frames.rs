//! Frames of a watch in the form that its client asked for.

use super::super::view::{append_object, frame};
use crate::cache::{CacheEvent, Entry, EventType, FrameKey};
use crate::error::ApiError;
use crate::object::Encoded;
use crate::registry::Resource;
use crate::request::{Accepted, Format, View};
use crate::schema;
use crate::table::IncludeObject;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;

/// How objects are shown to one watcher.
pub(super) struct Shape {
    pub(super) resource: Arc<Resource>,
    how: FrameKey,
    /// The first Table carries the column definitions.
    columns_sent: bool,
}

impl Shape {
    pub(super) fn new(resource: Arc<Resource>, accepted: Accepted, include: IncludeObject) -> Self {
        let how = FrameKey { format: accepted.format, view: accepted.view, include };
        Shape { resource, how, columns_sent: false }
    }

    fn made(&self, kind: &str, encoded: &Encoded, columns: bool) -> Bytes {
        // Watches are negotiated to formats and views that exist for the resource.
        let object = append_object(&self.resource, encoded, self.how, columns).unwrap_or_default();
        frame(self.how.format, kind, &object)
    }

    /// Whether the next frame is a Table with columns.
    fn with_columns(&mut self) -> bool {
        matches!(self.how.view, View::Table(_)) && !std::mem::replace(&mut self.columns_sent, true)
    }

    /// An event, made once for all watchers that see it this way.
    pub(super) fn event(&mut self, kind: EventType, shown: &Entry, event: &CacheEvent) -> Bytes {
        if self.with_columns() {
            return self.made(kind.text(), &shown.encoded, true);
        }
        event.frame(kind, self.how, || self.made(kind.text(), &shown.encoded, false))
    }

    /// An object that the watch begins with.
    pub(super) fn object(&mut self, kind: EventType, entry: &Entry) -> Bytes {
        let columns = self.with_columns();
        self.made(kind.text(), &entry.encoded, columns)
    }

    /// A bookmark: an object of the kind in which nothing is set but the version.
    pub(super) fn bookmark(&mut self, revision: i64, initial_end: bool) -> Bytes {
        let gvk = self.resource.gvk();
        let mut object = schema::by_gvk(&gvk).map_or_else(|| json!({}), crate::codec::zero);
        let mut metadata = json!({});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        object["metadata"] = metadata;
        let head = self.resource.head();
        let stored = crate::object::encode(&head, &object);
        let columns = self.with_columns();
        match Encoded::from_stored(&head, &stored, revision) {
            Some(encoded) => self.made("BOOKMARK", &encoded, columns),
            None => Bytes::new(),
        }
    }

    /// The event that ends a watch with an error: a Status, whatever form was asked for.
    pub(super) fn error(&self, error: &ApiError) -> Bytes {
        let status: Value = error.to_status();
        match self.how.format {
            Format::Protobuf => {
                let body = crate::codec::encode_protobuf(&status).unwrap_or_default();
                frame(Format::Protobuf, "ERROR", &body)
            }
            format => frame(format, "ERROR", status.to_string().as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn shape(group: &str, plural: &str, format: Format, view: View) -> Shape {
        let row = Registry::builtin().find(group, "v1", plural).expect("row").clone();
        Shape::new(row, Accepted { format, view, pretty: false }, IncludeObject::Metadata)
    }

    fn json_of(frame: &Bytes) -> Value {
        serde_json::from_slice(frame).expect("JSON")
    }

    #[test]
    fn bookmarks_are_what_go_writes_for_an_empty_struct() {
        let pod = shape("", "pods", Format::Json, View::Object).bookmark(7, true);
        assert_eq!(
            json_of(&pod),
            json!({"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1",
                "metadata": {"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}},
                "spec": {"containers": null}, "status": {}}})
        );
        let map = shape("", "configmaps", Format::Json, View::Object).bookmark(7, false);
        assert_eq!(json_of(&map)["object"]["metadata"], json!({"resourceVersion": "7"}));
    }

    #[test]
    fn the_first_table_has_columns_the_others_have_none() {
        let mut shape = shape("", "configmaps", Format::Json, View::Table("v1"));
        let first = json_of(&shape.bookmark(7, false));
        assert!(first["object"]["columnDefinitions"].is_array());
        assert_eq!(first["object"]["metadata"]["resourceVersion"], "7");
        assert_eq!(json_of(&shape.bookmark(8, false))["object"]["columnDefinitions"], Value::Null);
    }

    #[test]
    fn protobuf_events() {
        let mut shape = shape("", "pods", Format::Protobuf, View::Object);
        let frame = shape.bookmark(7, true);
        let length = frame.get(..4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        assert_eq!(length, Some(frame.len() as u32 - 4));
        let text = String::from_utf8_lossy(&frame).into_owned();
        assert!(text.contains("BOOKMARK") && text.contains("k8s\0") && text.contains("initial-events-end"));
        let error = shape.error(&ApiError::expired("too old"));
        assert!(String::from_utf8_lossy(&error).contains("too old"));
    }
}
