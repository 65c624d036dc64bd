//! APIGroupList, APIGroup, APIResourceList.

use super::storage_hash;
use crate::registry::{Registry, Resource};
use serde_json::{Value, json};

/// Paths served at the root.
pub(super) fn root(registry: &Registry) -> Value {
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned(), "/apis/".to_owned()];
    for (group, versions) in super::groups(registry) {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
        }
        let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        paths.extend(versions.iter().map(|v| format!("{root}/{v}")));
    }
    paths.extend(crate::server::paths());
    paths.sort();
    json!({"paths": paths})
}

pub(super) fn core_versions(address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]})
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({"name": group, "versions": all, "preferredVersion": all.first().cloned().unwrap_or_default()})
}

pub(super) fn groups(registry: &Registry) -> Value {
    let groups: Vec<Value> = super::groups(registry)
        .iter()
        .filter(|(g, _)| !g.is_empty())
        .map(|(group, versions)| group_value(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

pub(super) fn group(registry: &Registry, name: &str) -> Option<Value> {
    let (group, versions) = super::groups(registry).into_iter().find(|(g, _)| *g == name && !g.is_empty())?;
    let mut value = group_value(group, &versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

/// The hash of the version and kind that objects of the row are stored as.
fn stored_hash(row: &Resource) -> String {
    let (group, version, kind) = row.stored_kind();
    storage_hash(group, version, kind)
}

pub(super) fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    let mut rows: Vec<_> =
        registry.rows().iter().filter(|r| r.group() == group && r.version() == version).collect();
    rows.sort_by(|a, b| a.plural().cmp(b.plural()));
    for row in rows {
        let mut value = json!({"name": row.plural(), "singularName": row.singular(),
        "namespaced": row.namespaced, "kind": row.kind(), "verbs": row.verbs(),
        });
        // Only what is stored can be watched.
        if row.verbs.contains(&"watch") {
            value["storageVersionHash"] = stored_hash(row).into();
        }
        if !row.short_names.is_empty() {
            value["shortNames"] = json!(row.short_names);
        }
        if !row.categories.is_empty() {
            value["categories"] = json!(row.categories);
        }
        list.push(value);
        for sub in &row.subresources {
            let (sub_group, sub_version, kind) = sub.kind_of(row);
            let mut value = json!({"name": format!("{}/{}", row.plural(), sub.name), "singularName": "",
                "namespaced": row.namespaced, "kind": kind, "verbs": sub.verbs});
            if (sub_group, sub_version) != (group, version) {
                value["group"] = sub_group.into();
                value["version"] = sub_version.into();
            }
            list.push(value);
        }
    }
    if list.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": list}))
}
