//! The bytes of lists, made by concatenating those of the items. Long lists are made part by part while the client
//! takes them, so a list costs its items' references, however slowly it is read.

use super::super::view::partial_type;
use super::super::{Reply, ReplyBody};
use crate::cache::Entry;
use crate::codec::transcode;
use crate::registry::Resource;
use crate::request::{Accepted, Format, View};
use crate::schema::{self, TypeSchema};
use crate::table::{self, IncludeObject};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Size of the parts of a long list; the last is smaller. Not below the size from which answers are compressed.
const PART: usize = 128 << 10;

/// `metadata` of a list.
#[derive(Debug, Clone, Default)]
pub(super) struct ListMeta {
    pub(super) revision: i64,
    pub(super) next: Option<String>,
    pub(super) remaining: Option<usize>,
}

impl ListMeta {
    fn value(&self) -> Value {
        let mut out = Map::new();
        out.insert("resourceVersion".into(), self.revision.to_string().into());
        if let Some(next) = &self.next {
            out.insert("continue".into(), next.as_str().into());
            if let Some(remaining) = self.remaining {
                out.insert("remainingItemCount".into(), remaining.into());
            }
        }
        Value::Object(out)
    }
}

/// Appends an item; the flag says whether it is the first.
type Append = Box<dyn FnMut(&mut Vec<u8>, &Entry, bool) + Send>;

/// A list in the making.
struct Parts {
    head: Vec<u8>,
    items: std::vec::IntoIter<Arc<Entry>>,
    append: Append,
    tail: &'static [u8],
    first: bool,
    over: bool,
}

impl Iterator for Parts {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let mut out = std::mem::take(&mut self.head);
        while out.len() <= PART {
            match self.items.next() {
                Some(item) => {
                    if out.capacity() == 0 {
                        out.reserve(PART + item.encoded.full().len() + 16);
                    }
                    (self.append)(&mut out, &item, self.first);
                    self.first = false;
                }
                None => {
                    out.extend_from_slice(self.tail);
                    self.over = true;
                    break;
                }
            }
        }
        Some(out.into())
    }
}

fn reply(
    format: Format,
    head: Vec<u8>,
    items: Vec<Arc<Entry>>,
    tail: &'static [u8],
    append: Append,
) -> Reply {
    let mut parts = Parts { head, items: items.into_iter(), append, tail, first: true, over: false };
    let first = parts.next().unwrap_or_default();
    if parts.over {
        return Reply::bytes(200, format.media_type(), first);
    }
    let body = ReplyBody::Chunks(Box::new(std::iter::once(first).chain(parts)));
    Reply { body, ..Reply::bytes(200, format.media_type(), Bytes::new()) }
}

/// A list in the accepted form.
pub(super) fn list(
    resource: &Arc<Resource>,
    meta: &ListMeta,
    items: Vec<Arc<Entry>>,
    accepted: Accepted,
    include: IncludeObject,
) -> Reply {
    let mut metadata = meta.value();
    if resource.custom.is_some() && accepted.view == View::Object {
        super::end_of(&mut metadata);
    }
    let Accepted { format, view, pretty } = accepted;
    if (format, view) == (Format::Protobuf, View::Object)
        && let Some(ty) = schema::by_gvk(&resource.gvk())
    {
        return protobuf(resource, ty, &metadata, items);
    }
    match (format, view) {
        (Format::Json, View::Object) if !pretty => {
            let head = super::head(resource, &metadata);
            let resource = resource.clone();
            let append: Append =
                Box::new(move |out, item, first| super::append(out, &resource, &item.encoded, first));
            reply(format, head, items, b"]}\n", append)
        }
        (Format::Json, View::Table(version)) if !pretty => {
            tables(resource, &metadata, items, include, version)
        }
        (Format::Json, View::Partial(version)) if !pretty => {
            let head = format!(
                "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{metadata},\
                 \"items\":"
            );
            if items.is_empty() {
                return Reply::bytes(200, format.media_type(), head + "null}\n");
            }
            let append: Append = Box::new(move |out, item, first| {
                out.push(if first { b'[' } else { b',' });
                table::append_partial(out, &item.encoded, version);
            });
            reply(format, head.into_bytes(), items, b"]}\n", append)
        }
        (Format::Protobuf, View::Partial(version)) => partial_protobuf(&metadata, &items, version),
        _ => Reply::value(200, &value(resource, metadata, &items, accepted, include), accepted),
    }
}

fn tables(
    resource: &Arc<Resource>,
    metadata: &Value,
    items: Vec<Arc<Entry>>,
    include: IncludeObject,
    version: &'static str,
) -> Reply {
    let columns = resource.table.definitions();
    let head = format!(
        "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{metadata},\"columnDefinitions\":{columns},\
         \"rows\":["
    );
    let (resource, now) = (resource.clone(), jiff::Timestamp::now());
    let append: Append = Box::new(move |out, item, first| {
        if !first {
            out.push(b',');
        }
        table::append_row(out, &resource.table, &item.encoded, include, version, now);
    });
    reply(Format::Json, head.into_bytes(), items, b"]}\n", append)
}

/// A list as protobuf. The envelope begins with the length of all, which entries know after they were encoded once.
fn protobuf(resource: &Resource, ty: &'static TypeSchema, metadata: &Value, items: Vec<Arc<Entry>>) -> Reply {
    let metadata = metadata.to_string();
    let list = transcode::ListEnvelope {
        api_version: &resource.api_version(),
        kind: resource.list_kind(),
        metadata: metadata.as_bytes(),
        items: items.iter().map(|item| item.message_length(ty)),
    };
    let head = list.head();
    let append: Append = Box::new(move |out, item, _| transcode::append_item(out, item.encoded.full(), ty));
    reply(Format::Protobuf, head, items, transcode::ENVELOPE_TAIL, append)
}

fn partial_protobuf(metadata: &Value, items: &[Arc<Entry>], version: &str) -> Reply {
    let mut out = Vec::new();
    let api_version = format!("meta.k8s.io/{version}");
    transcode::append_envelope(&mut out, &api_version, "PartialObjectMetadataList", |out| {
        transcode::append_list_metadata(out, metadata.to_string().as_bytes());
        for (item, ty) in items.iter().zip(std::iter::repeat(partial_type()).flatten()) {
            transcode::append_item(out, item.encoded.full(), ty);
        }
    });
    Reply::bytes(200, Format::Protobuf.media_type(), out)
}

/// A list as a value, for YAML and for people.
fn value(
    resource: &Resource,
    metadata: Value,
    items: &[Arc<Entry>],
    accepted: Accepted,
    include: IncludeObject,
) -> Value {
    match accepted.view {
        View::Table(version) => {
            let all: Vec<_> = items.iter().map(|item| item.encoded.clone()).collect();
            table::table(&resource.table, metadata, &all, include, version, true)
        }
        View::Partial(version) => {
            let items: Vec<Value> =
                items.iter().map(|item| table::partial(&item.encoded.parse(), version)).collect();
            let items = if items.is_empty() { Value::Null } else { items.into() };
            json!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": metadata, "items": items})
        }
        View::Object => {
            let bytes = super::concatenated(resource, &metadata, items.iter().map(|item| &item.encoded));
            serde_json::from_slice(&bytes).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests;
