//! Aggregated discovery: everything in one document.

use crate::handlers::Reply;
use crate::registry::{Registry, Resource};
use serde_json::{Value, json};

/// `Some` when a client asks for the aggregated form.
pub(super) fn wanted(accept: Option<&str>) -> Option<()> {
    for clause in accept?.split(',') {
        let mut parts = clause.split(';').map(str::trim);
        if parts.next() != Some("application/json") {
            continue;
        }
        let parts: Vec<&str> = parts.collect();
        if parts.contains(&"g=apidiscovery.k8s.io") && parts.contains(&"as=APIGroupDiscoveryList") {
            if parts.contains(&"v=v2") {
                return Some(());
            }
            continue;
        }
        if !parts.iter().any(|p| p.starts_with("as=")) {
            // The plain form comes first in the client's list.
            return None;
        }
    }
    None
}

fn resource(row: &Resource) -> Value {
    let mut value = json!({"resource": row.plural,
        "responseKind": {"group": "", "version": "", "kind": row.kind},
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular, "verbs": row.verbs});
    if !row.short_names.is_empty() {
        value["shortNames"] = row.short_names.into();
    }
    if !row.categories.is_empty() {
        value["categories"] = row.categories.into();
    }
    if !row.subresources.is_empty() {
        value["subresources"] = row
            .subresources
            .iter()
            .map(|sub| {
                let (group, version, kind) = sub.kind;
                let own = (group, version) == (row.group, row.version);
                let (group, version) = if own { ("", "") } else { (group, version) };
                json!({"subresource": sub.name,
                    "responseKind": {"group": group, "version": version, "kind": kind}, "verbs": sub.verbs})
            })
            .collect();
    }
    value
}

/// The document of `/api` (`core`) or `/apis`.
pub(super) fn list(registry: &Registry, core: bool) -> Value {
    let mut items = Vec::new();
    for (group, versions) in registry.groups().into_iter().filter(|(g, _)| g.is_empty() == core) {
        let versions: Vec<Value> = versions
            .iter()
            .map(|version| {
                let mut rows: Vec<_> =
                    registry.rows().iter().filter(|r| r.group == group && r.version == *version).collect();
                rows.sort_by_key(|r| r.plural);
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

/// The document with its media type.
pub(super) fn reply(list: Value) -> Reply {
    let media = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    Reply::bytes(200, media, list.to_string())
}
