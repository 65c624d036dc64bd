//! Whole documents, written part by part into their compressed form.

use super::descriptions::Descriptions;
use super::gnostic::{Version, Writer};
use super::paths::{self, Paths, Sink};
use super::schema::Schemas;
use super::v2;
use crate::custom::Version as CustomVersion;
use crate::registry::{Registry, Resource};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// What a v3 document is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum About {
    /// A path outside of group versions.
    Plain(String),
    /// A group version.
    Version(Box<str>, Box<str>),
}

/// Every v3 document by its name in the index.
pub(super) fn all(registry: &Registry) -> BTreeMap<String, About> {
    let mut out = BTreeMap::new();
    for path in ["api", "apis", "version", "openid/v1/jwks", ".well-known/openid-configuration"] {
        out.insert(path.to_owned(), About::Plain(path.to_owned()));
    }
    for (group, versions) in registry.groups() {
        // Groups that only definitions make have no document of their own, as upstream's have none.
        let builtin = registry.rows().iter().any(|row| row.group() == group && row.custom.is_none());
        if !group.is_empty() && builtin {
            let path = format!("apis/{group}");
            out.insert(path.clone(), About::Plain(path));
        }
        for version in versions {
            out.insert(super::root_of(group, version), About::Version(group.into(), version.into()));
        }
    }
    out
}

/// The rows of a document.
fn rows<'a>(registry: &'a Registry, about: &'a About) -> impl Iterator<Item = &'a Resource> {
    let is_of = move |row: &&Resource| match about {
        About::Plain(_) => false,
        About::Version(group, version) => *row.group() == **group && *row.version() == **version,
    };
    registry.rows().iter().map(AsRef::as_ref).filter(is_of)
}

/// The versions of definitions that a document describes.
pub(super) fn definitions<'a>(
    registry: &'a Registry,
    about: &'a About,
) -> impl Iterator<Item = &'a CustomVersion> {
    rows(registry, about).filter_map(|row| row.custom.as_deref())
}

/// The versions of all definitions.
pub(super) fn all_definitions(registry: &Registry) -> impl Iterator<Item = &CustomVersion> {
    registry.rows().iter().filter_map(|row| row.custom.as_deref())
}

/// A document of definitions alone: upstream's server of them makes it, which says so.
fn is_custom(registry: &Registry, about: &About) -> bool {
    let mut rows = rows(registry, about).peekable();
    rows.peek().is_some() && rows.all(|row| row.custom.is_some())
}

/// Hands over the paths of a document.
fn paths(registry: &Registry, about: &About, schemas: &mut Schemas, sink: Sink<'_>) {
    match about {
        About::Plain(path) => paths::plain(path, schemas, sink),
        About::Version(group, version) => {
            let mut paths = Paths::new(group, version, schemas, sink);
            if !is_custom(registry, about) {
                paths.add_root();
            }
            rows(registry, about).for_each(|row| paths.add(row));
        }
    }
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "1.36"})
}

fn info_of(registry: &Registry, about: &About) -> Value {
    if is_custom(registry, about) {
        json!({"title": "Kubernetes CRD Swagger", "version": "v0.1.0"})
    } else {
        info()
    }
}

fn bearer() -> Value {
    json!({"BearerToken": {"type": "apiKey", "description": "Bearer Token authentication",
        "name": "authorization", "in": "header"}})
}

/// A document in its compressed form.
#[derive(Clone)]
pub(super) struct Packed {
    /// gzip of the document.
    pub(super) gzip: Bytes,
}

/// Compresses what is written.
struct Packer(GzEncoder<Vec<u8>>);

impl Packer {
    fn new() -> Self {
        Packer(GzEncoder::new(Vec::new(), Compression::default()))
    }

    fn finish(self) -> io::Result<Packed> {
        let mut gzip = self.0.finish()?;
        gzip.shrink_to_fit();
        Ok(Packed { gzip: Bytes::from(gzip) })
    }
}

impl Write for Packer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Fingerprint of a body: upper-case hexadecimal SHA-512, as upstream's.
pub(super) fn fingerprint(body: &[u8]) -> String {
    Sha512::digest(body).iter().map(|byte| format!("{byte:02X}")).collect()
}

/// Fingerprint of the document with this name. It is known before the document is built: it changes with the code and
/// the tables that all documents are made from, and with the definitions that it describes.
pub(super) fn tag<'a>(name: &str, definitions: impl Iterator<Item = &'a CustomVersion>) -> String {
    let mut text = format!("{}/{name}", env!("KELP_SOURCE_TAG"));
    for version in definitions {
        text.push_str(&format!("/{}:{}", version.name, version.definition().digest));
    }
    fingerprint(text.as_bytes())
}

fn schemas(version: Version, scope: Vec<(Box<str>, Box<str>)>) -> io::Result<Schemas> {
    Ok(Schemas::of(version, scope, Descriptions::unpack()?))
}

/// The document again.
pub(super) fn unpack(gzip: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    GzDecoder::new(gzip).read_to_end(&mut out)?;
    Ok(out)
}

/// Members of a JSON object, one at a time.
struct Members<'a, W> {
    out: &'a mut W,
    first: bool,
    failure: io::Result<()>,
}

impl<'a, W: Write> Members<'a, W> {
    fn open(out: &'a mut W) -> Self {
        let failure = out.write_all(b"{");
        Members { out, first: true, failure }
    }

    fn add(&mut self, name: &str, value: &Value) {
        if self.failure.is_ok() {
            self.failure = self.try_add(name, value);
        }
    }

    fn try_add(&mut self, name: &str, value: &Value) -> io::Result<()> {
        if !std::mem::take(&mut self.first) {
            self.out.write_all(b",")?;
        }
        serde_json::to_writer(&mut self.out, name)?;
        self.out.write_all(b":")?;
        serde_json::to_writer(&mut self.out, value)?;
        Ok(())
    }

    fn close(self) -> io::Result<()> {
        self.failure?;
        self.out.write_all(b"}")
    }
}

/// The built-in group version that a document is of, if it is of one.
fn scope(registry: &Registry, about: &About) -> Vec<(Box<str>, Box<str>)> {
    match about {
        About::Version(group, version) if !is_custom(registry, about) => {
            vec![(group.clone(), version.clone())]
        }
        _ => Vec::new(),
    }
}

/// A v3 document as JSON.
pub(super) fn v3_json(registry: &Registry, about: &About) -> io::Result<Packed> {
    let mut out = Packer::new();
    let mut schemas = schemas(Version::V3, scope(registry, about))?;
    write!(out, "{{\"openapi\":\"3.0.0\",\"info\":{},\"paths\":", info_of(registry, about))?;
    let mut members = Members::open(&mut out);
    paths(registry, about, &mut schemas, &mut |path, item| members.add(path, item));
    members.close()?;
    write!(out, ",\"components\":{{")?;
    let custom = is_custom(registry, about);
    if !schemas.is_empty() {
        write!(out, "\"schemas\":")?;
        let mut members = Members::open(&mut out);
        schemas.finish(&mut |name, schema| members.add(name, schema));
        members.close()?;
        write!(out, "{}", if custom { "" } else { "," })?;
    }
    if !custom {
        write!(out, "\"securitySchemes\":{}", bearer())?;
    }
    write!(out, "}}}}")?;
    out.finish()
}

/// A v3 document as protobuf.
pub(super) fn v3_protobuf(registry: &Registry, about: &About) -> io::Result<Packed> {
    let mut writer = Writer::new(Version::V3);
    let mut schemas = schemas(Version::V3, scope(registry, about))?;
    paths(registry, about, &mut schemas, &mut |path, item| writer.path(path, item));
    schemas.finish(&mut |name, schema| writer.schema(name, schema));
    let mut rest = json!({"openapi": "3.0.0", "info": info_of(registry, about)});
    if !is_custom(registry, about) {
        rest["components"] = json!({"securitySchemes": bearer()});
    }
    let mut out = Packer::new();
    out.write_all(&writer.finish(&rest))?;
    out.finish()
}

/// The paths of the v2 document; the schemas that they need, and all else.
fn v2_parts(registry: &Registry, sink: Sink<'_>) -> io::Result<(Schemas, Value)> {
    let all = all(registry);
    let scopes = all.values().flat_map(|about| scope(registry, about)).collect();
    let mut schemas = schemas(Version::V2, scopes)?;
    let mut parameters = v2::Parameters::default();
    for about in all.values() {
        paths(registry, about, &mut schemas, &mut |path, item| sink(path, &parameters.item(item)));
    }
    let rest = json!({"swagger": "2.0", "info": info(), "parameters": parameters.all,
        "security": [{"BearerToken": []}], "securityDefinitions": bearer()});
    Ok((schemas, rest))
}

/// The v2 document as JSON.
pub(super) fn v2_json(registry: &Registry) -> io::Result<Packed> {
    let mut out = Packer::new();
    write!(out, "{{\"paths\":")?;
    let mut members = Members::open(&mut out);
    let (schemas, rest) = v2_parts(registry, &mut |path, item| members.add(path, item))?;
    members.close()?;
    write!(out, ",\"definitions\":")?;
    let mut members = Members::open(&mut out);
    schemas.finish(&mut |name, schema| members.add(name, &v2::schema(schema)));
    members.close()?;
    for (name, value) in rest.as_object().into_iter().flatten() {
        write!(out, ",\"{name}\":{value}")?;
    }
    write!(out, "}}")?;
    out.finish()
}

/// The v2 document as protobuf.
pub(super) fn v2_protobuf(registry: &Registry) -> io::Result<Packed> {
    let mut writer = Writer::new(Version::V2);
    let (schemas, rest) = v2_parts(registry, &mut |path, item| writer.path(path, item))?;
    schemas.finish(&mut |name, schema| writer.schema(name, &v2::schema(schema)));
    let mut out = Packer::new();
    out.write_all(&writer.finish(&rest))?;
    out.finish()
}
