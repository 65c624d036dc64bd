//! Serialized objects in the forms clients ask for, made from the bytes where that is possible.

use crate::cache::{FrameKey, json_frame};
use crate::codec::transcode;
use crate::object::Encoded;
use crate::registry::Resource;
use crate::request::{Format, View};
use crate::schema::{self, TypeSchema};
use crate::table;
use bytes::Bytes;

/// The type of metadata-only answers.
pub(super) fn partial_type() -> Option<&'static TypeSchema> {
    schema::by_name("meta.v1.PartialObjectMetadata")
}

/// The object in a form, JSON or protobuf; `None` for YAML and for kinds without a protobuf form. `columns`: a Table
/// carries its column definitions.
pub(super) fn append_object(
    resource: &Resource,
    encoded: &Encoded,
    how: FrameKey,
    columns: bool,
) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(encoded.full().len() + 64);
    match (how.format, how.view) {
        (Format::Json, View::Object) => out.extend_from_slice(encoded.full()),
        (Format::Json, View::Partial(version)) => table::append_partial(&mut out, encoded, version),
        (Format::Json, View::Table(version)) => {
            append_table(&mut out, resource, encoded, how, version, columns);
        }
        (Format::Protobuf, View::Object) => {
            let gvk = resource.gvk();
            let ty = schema::by_gvk(&gvk)?;
            transcode::append_envelope(&mut out, &gvk.api_version(), &gvk.kind, |out| {
                transcode::append_message(out, encoded.full(), ty);
            });
        }
        (Format::Protobuf, View::Partial(version)) => {
            let ty = partial_type()?;
            let api_version = format!("meta.k8s.io/{version}");
            transcode::append_envelope(&mut out, &api_version, "PartialObjectMetadata", |out| {
                transcode::append_message(out, encoded.full(), ty);
            });
        }
        (Format::Protobuf, View::Table(_)) | (Format::Yaml, _) => return None,
    }
    Some(out)
}

fn append_table(
    out: &mut Vec<u8>,
    resource: &Resource,
    encoded: &Encoded,
    how: FrameKey,
    version: &str,
    columns: bool,
) {
    let revision = transcode::raw_member(encoded.metadata(), "resourceVersion").unwrap_or(b"\"\"");
    out.extend_from_slice(b"{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/");
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(b"\",\"metadata\":{\"resourceVersion\":");
    out.extend_from_slice(revision);
    out.extend_from_slice(b"},\"columnDefinitions\":");
    if columns {
        // Writing JSON into a Vec cannot fail.
        let _ = serde_json::to_writer(&mut *out, &resource.table.definitions());
    } else {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(b",\"rows\":[");
    table::append_row(out, &resource.table, encoded, how.include, version, jiff::Timestamp::now());
    out.extend_from_slice(b"]}");
}

/// A watch event around an object in its form.
pub(super) fn frame(format: Format, kind: &str, object: &[u8]) -> Bytes {
    match format {
        Format::Protobuf => transcode::watch_frame(kind, object).into(),
        Format::Json | Format::Yaml => json_frame(kind, object),
    }
}
