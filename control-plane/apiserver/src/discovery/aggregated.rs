//! Aggregated discovery: everything in one document.

use super::{is_known, set_etag};
use crate::handlers::Reply;
use crate::registry::{Registry, Resource};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use std::sync::OnceLock;

/// Whether a client asks for the aggregated form.
pub(super) fn wanted(accept: Option<&str>) -> bool {
    for clause in accept.unwrap_or_default().split(',') {
        let mut parts = clause.split(';').map(str::trim);
        if parts.next() != Some("application/json") {
            continue;
        }
        let parts: Vec<&str> = parts.collect();
        if parts.contains(&"g=apidiscovery.k8s.io") && parts.contains(&"as=APIGroupDiscoveryList") {
            if parts.contains(&"v=v2") {
                return true;
            }
            continue;
        }
        if !parts.iter().any(|p| p.starts_with("as=")) {
            // The plain form comes first in the client's list.
            return false;
        }
    }
    false
}

fn resource(row: &Resource) -> Value {
    let mut value = json!({"resource": row.plural(),
        "responseKind": {"group": "", "version": "", "kind": row.kind()},
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular(), "verbs": row.verbs()});
    if !row.short_names.is_empty() {
        value["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        value["categories"] = json!(row.categories);
    }
    if !row.subresources.is_empty() {
        value["subresources"] = row
            .subresources
            .iter()
            .map(|sub| {
                let (group, version, kind) = sub.kind_of(row);
                let own = (group, version) == (row.group(), row.version());
                let (group, version) = if own { ("", "") } else { (group, version) };
                json!({"subresource": sub.name,
                    "responseKind": {"group": group, "version": version, "kind": kind}, "verbs": sub.verbs})
            })
            .collect();
    }
    value
}

/// The document of `/api` (`core`) or `/apis`.
fn list(registry: &Registry, core: bool) -> Value {
    let mut items = Vec::new();
    for (group, versions) in super::groups(registry).into_iter().filter(|(g, _)| g.is_empty() == core) {
        let versions: Vec<Value> = versions
            .iter()
            .map(|version| {
                let mut rows: Vec<_> = registry
                    .rows()
                    .iter()
                    .filter(|r| r.group() == group && r.version() == *version)
                    .collect();
                rows.sort_by(|a, b| a.plural().cmp(b.plural()));
                let resources: Vec<Value> = rows.into_iter().map(|r| resource(r)).collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            })
            .collect();
        let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
        items.push(json!({"metadata": metadata, "versions": versions}));
    }
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": items})
}

struct List {
    body: Bytes,
    hash: String,
}

/// The lists of both roots, each made when it is first asked for.
#[derive(Default)]
pub(crate) struct Lists {
    core: OnceLock<List>,
    groups: OnceLock<List>,
}

impl Lists {
    /// The list of `/api` (`core`) or `/apis`, unless the client has it.
    pub(super) fn reply(&self, registry: &Registry, core: bool, headers: &HeaderMap) -> Reply {
        let cell = if core { &self.core } else { &self.groups };
        let list = cell.get_or_init(|| {
            let body = list(registry, core).to_string();
            let hash = Sha512::digest(&body).iter().map(|byte| format!("{byte:02X}")).collect();
            List { body: body.into(), hash }
        });
        let mut reply = if is_known(headers, &list.hash) {
            Reply::bytes(304, "", "")
        } else {
            let media = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
            Reply::bytes(200, media, list.body.clone())
        };
        set_etag(&mut reply, &list.hash);
        reply.set(header::VARY, HeaderValue::from_static("Accept"));
        reply.set(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        reply
    }
}
