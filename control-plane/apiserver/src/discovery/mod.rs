//! Discovery: what is served, in the plain and the aggregated form.

mod aggregated;
mod openapi;
mod plain;

use crate::error::ApiError;
use crate::handlers::Reply;
use crate::registry::Registry;
use crate::request::{Accepted, accept as negotiate};
use base64::Engine;
use sha2::{Digest, Sha256};

/// Answers a discovery path; `None` for others.
pub(crate) fn serve(
    registry: &Registry,
    path: &str,
    accept: Option<&str>,
    pretty: bool,
) -> Option<Result<Reply, ApiError>> {
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    let aggregated = |list| aggregated::wanted(accept).map(|()| Ok(aggregated::reply(list)));
    let value = match path {
        "/" => plain::root(registry),
        "/api" => {
            if let Some(reply) = aggregated(aggregated::list(registry, true)) {
                return Some(reply);
            }
            plain::core_versions()
        }
        "/apis" => {
            if let Some(reply) = aggregated(aggregated::list(registry, false)) {
                return Some(reply);
            }
            plain::groups(registry)
        }
        _ => {
            let parts: Vec<&str> = path.split('/').skip(1).collect();
            match parts.as_slice() {
                ["api", version] => plain::resources(registry, "", version)?,
                ["apis", group] => plain::group(registry, group)?,
                ["apis", group, version] => plain::resources(registry, group, version)?,
                ["openapi", "v3"] => openapi::index(registry),
                ["openapi", "v3", "api", version] => openapi::document(registry, "", version)?,
                ["openapi", "v3", "apis", group, version] => openapi::document(registry, group, version)?,
                _ => return None,
            }
        }
    };
    let accepted = match negotiate(accept, pretty, false, false, "") {
        Ok(accepted) => Accepted { view: crate::request::View::Object, ..accepted },
        Err(error) => return Some(Err(error)),
    };
    Some(Ok(Reply::value(200, &value, accepted)))
}

/// The hash of the stored form that discovery shows: eight bytes of a digest of group, version and kind.
fn storage_hash(group: &str, version: &str, kind: &str) -> String {
    let digest = Sha256::digest(format!("{group}/{version}/{kind}"));
    base64::engine::general_purpose::STANDARD.encode(digest.get(..8).unwrap_or_default())
}
