//! Discovery: what is served, in the plain and the aggregated form.

mod aggregated;
mod openapi;
mod plain;

pub(crate) use openapi::{Documents, Request, is_document};

use crate::error::ApiError;
use crate::handlers::Reply;
use crate::registry::Registry;
use crate::request::{Accepted, accept as negotiate};
use base64::Engine;
use http::header::{self, HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

/// Documents that are made from a registry once.
#[derive(Default)]
pub(crate) struct Discovery {
    aggregated: aggregated::Lists,
}

/// A request for a discovery path.
pub(crate) struct Ask<'a> {
    /// Path.
    pub(crate) path: &'a str,
    /// `Accept`.
    pub(crate) accept: Option<&'a str>,
    /// All headers.
    pub(crate) headers: &'a HeaderMap,
    /// Indented answers.
    pub(crate) pretty: bool,
    /// Address and port that clients reach the server at.
    pub(crate) address: String,
}

impl Discovery {
    /// Answers a discovery path; `None` for others.
    pub(crate) fn serve(&self, registry: &Registry, ask: &Ask<'_>) -> Option<Result<Reply, ApiError>> {
        let path = if ask.path.len() > 1 { ask.path.trim_end_matches('/') } else { ask.path };
        let root = match path {
            "/api" => Some(true),
            "/apis" => Some(false),
            _ => None,
        };
        if let Some(core) = root
            && aggregated::wanted(ask.accept)
        {
            return Some(Ok(self.aggregated.reply(registry, core, ask.headers)));
        }
        let value = match path {
            "/" => plain::root(registry),
            "/api" => plain::core_versions(&ask.address),
            "/apis" => plain::groups(registry),
            _ => {
                let parts: Vec<&str> = path.split('/').skip(1).collect();
                match parts.as_slice() {
                    ["api", version] => plain::resources(registry, "", version)?,
                    ["apis", group] => plain::group(registry, group)?,
                    ["apis", group, version] => plain::resources(registry, group, version)?,
                    _ => return None,
                }
            }
        };
        let accepted = match negotiate(ask.accept, ask.pretty, false, false, "") {
            Ok(accepted) => Accepted { view: crate::request::View::Object, ..accepted },
            Err(error) => return Some(Err(error)),
        };
        let mut reply = Reply::value(200, &value, accepted);
        if root.is_some() {
            reply.set(header::VARY, HeaderValue::from_static("Accept"));
        }
        Some(Ok(reply))
    }
}

/// Groups with their versions, both in the order of discovery.
fn groups(registry: &Registry) -> Vec<(&str, Vec<&str>)> {
    let mut out = registry.groups();
    for (_, versions) in &mut out {
        versions.sort_by_key(|version| std::cmp::Reverse(version_key(version)));
    }
    out
}

/// Newer and more stable versions are greater: `v1beta1` < `v1` < `v2`.
pub(crate) fn version_key(version: &str) -> (u8, u32, u32) {
    let rest = version.strip_prefix('v').unwrap_or_default();
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (major, stage) = rest.split_at(digits);
    let (rank, minor) = if major.is_empty() {
        (0, "")
    } else if stage.is_empty() {
        (3, "")
    } else if let Some(minor) = stage.strip_prefix("beta") {
        (2, minor)
    } else if let Some(minor) = stage.strip_prefix("alpha") {
        (1, minor)
    } else {
        (0, "")
    };
    (rank, major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
}

/// The hash of the stored form that discovery shows: eight bytes of a digest of group, version and kind.
fn storage_hash(group: &str, version: &str, kind: &str) -> String {
    let digest = Sha256::digest(format!("{group}/{version}/{kind}"));
    base64::engine::general_purpose::STANDARD.encode(digest.get(..8).unwrap_or_default())
}

/// Whether the client has the answer with this fingerprint.
fn is_known(headers: &HeaderMap, hash: &str) -> bool {
    let Some(known) = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()) else { return false };
    known
        .split(',')
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"') == hash)
}

fn set_etag(reply: &mut Reply, hash: &str) {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{hash}\"")) {
        reply.set(header::ETAG, value);
    }
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.split(',').any(|part| part.trim().starts_with("gzip")))
}

#[cfg(test)]
mod tests;
