//! Frames of watch streams: an event is serialized once for all watchers that see it the same way.

use super::EventType;
use crate::request::{Format, View};
use crate::table::IncludeObject;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::OnceLock;

/// How a watcher sees objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameKey {
    /// Encoding.
    pub format: Format,
    /// Form.
    pub view: View,
    /// What rows of Tables carry.
    pub include: IncludeObject,
}

/// The frames of one event.
#[derive(Debug, Default)]
pub struct Frames {
    /// Whole objects, what nearly all watchers want: JSON and protobuf by event type.
    plain: [[OnceLock<Bytes>; 3]; 2],
    /// Tables and metadata. There are few ways to ask for these, so the list stays short.
    others: Mutex<Vec<(EventType, FrameKey, Bytes)>>,
}

impl Frames {
    /// The frame, made if it is the first of its kind.
    pub fn get(&self, kind: EventType, how: FrameKey, make: impl FnOnce() -> Bytes) -> Bytes {
        let encoding = usize::from(how.format == Format::Protobuf);
        if how.view == View::Object
            && let Some(slot) = self.plain.get(encoding).and_then(|slots| slots.get(kind as usize))
        {
            return slot.get_or_init(make).clone();
        }
        let mut others = self.others.lock();
        if let Some((_, _, frame)) = others.iter().find(|(k, h, _)| *k == kind && *h == how) {
            return frame.clone();
        }
        let frame = make();
        others.push((kind, how, frame.clone()));
        frame
    }
}

/// `{"type":…,"object":…}` and a line end.
pub fn json_frame(kind: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_made_once_for_each_way_to_see_it() {
        let frames = Frames::default();
        let key = |format, view| FrameKey { format, view, include: IncludeObject::Metadata };
        let ways = [
            key(Format::Json, View::Object),
            key(Format::Protobuf, View::Object),
            key(Format::Json, View::Table("v1")),
            key(Format::Json, View::Partial("v1")),
            FrameKey { include: IncludeObject::None, ..key(Format::Json, View::Table("v1")) },
        ];
        let mut made = 0;
        for _ in 0..3 {
            for (index, way) in ways.into_iter().enumerate() {
                for kind in [EventType::Added, EventType::Deleted] {
                    let text = format!("{index} {}", kind.text());
                    let frame = frames.get(kind, way, || {
                        made += 1;
                        Bytes::from(text.clone())
                    });
                    assert_eq!(frame, text);
                }
            }
        }
        assert_eq!(made, 2 * ways.len());
        assert_eq!(json_frame("ADDED", b"{}"), "{\"type\":\"ADDED\",\"object\":{}}\n");
    }
}
