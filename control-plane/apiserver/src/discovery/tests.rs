use super::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The directory of recorded documents, when this machine has it.
pub(super) fn recorded() -> Option<PathBuf> {
    let root = std::env::var_os("KELP_SHARED").map(PathBuf::from).or_else(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().ok()?;
        Some(workspace.parent()?.join("shared"))
    })?;
    let dir = root.join("data/kubernetes-1.36");
    dir.is_dir().then_some(dir)
}

pub(super) fn body(reply: &Reply) -> Value {
    let crate::handlers::ReplyBody::Full(bytes) = &reply.body else { panic!("a stream") };
    serde_json::from_slice(bytes).expect("JSON")
}

pub(super) fn header_of(reply: &Reply, name: header::HeaderName) -> String {
    let found = reply.headers.iter().find(|(n, _)| *n == name);
    found.map(|(_, v)| v.to_str().expect("text").to_owned()).unwrap_or_default()
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;\
                          g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

fn ask<'a>(path: &'a str, accept: &'a str, headers: &'a HeaderMap) -> Ask<'a> {
    Ask { path, accept: Some(accept), headers, pretty: false, address: "10.0.0.1:6443".into() }
}

#[test]
fn aggregated_lists_equal_the_recorded_ones() {
    let Some(dir) = recorded() else {
        eprintln!("no recorded documents: set KELP_SHARED to check against them");
        return;
    };
    let registry = Registry::builtin();
    let discovery = Discovery::default();
    let mut wrong = Vec::new();
    for (file, path) in [("discovery-api.json", "/api"), ("discovery-apis.json", "/apis")] {
        let text = std::fs::read_to_string(dir.join(file)).expect("the file");
        let expected: Value = serde_json::from_str(&text).expect("JSON");
        let headers = HeaderMap::new();
        let reply =
            discovery.serve(&registry, &ask(path, AGGREGATED, &headers)).expect("served").expect("200");
        let ours = body(&reply);
        let known = |group: &Value, version: &Value, plural: &Value| {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            registry.find(&text(group), &text(version), &text(plural)).is_some()
        };
        let empty = Vec::new();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        // Rows that are not there yet are left out of the expectation; those that are must agree, in order.
        let mut rest = expected.clone();
        let groups = rest["items"].as_array_mut().expect("items");
        for group in groups.iter_mut() {
            let name = group["metadata"]["name"].clone();
            for version in group["versions"].as_array_mut().expect("versions") {
                let number = version["version"].clone();
                let resources = version["resources"].as_array_mut().expect("resources");
                for resource in resources.iter().filter(|r| !known(&name, &number, &r["resource"])) {
                    wrong.push(format!("{name}/{number} lacks {}", resource["resource"]));
                }
                resources.retain(|r| known(&name, &number, &r["resource"]));
                for resource in resources {
                    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                    let row = registry.find(&text(&name), &text(&number), &text(&resource["resource"]));
                    let Some(subs) = resource.get_mut("subresources").and_then(Value::as_array_mut) else {
                        continue;
                    };
                    subs.retain(|s| row.is_some_and(|r| r.subresource(&text(&s["subresource"])).is_some()));
                    if subs.is_empty()
                        && let Some(map) = resource.as_object_mut()
                    {
                        map.remove("subresources");
                    }
                }
            }
            group["versions"].as_array_mut().expect("versions").retain(|v| !list(&v["resources"]).is_empty());
        }
        groups.retain(|g| !g["versions"].as_array().unwrap_or(&empty).is_empty());
        let theirs = rest["items"].as_array().expect("items");
        let names = |all: &[Value]| all.iter().map(|g| g["metadata"]["name"].clone()).collect::<Vec<_>>();
        let mine = ours["items"].as_array().expect("items");
        assert_eq!(names(mine), names(theirs), "{path}");
        for (mine, theirs) in mine.iter().zip(theirs) {
            for (mine, theirs) in list(&mine["versions"]).iter().zip(list(&theirs["versions"])) {
                assert_eq!(mine["version"], theirs["version"]);
                let pairs = list(&mine["resources"]);
                for (mine, theirs) in pairs.iter().zip(list(&theirs["resources"])) {
                    assert_eq!(*mine, theirs);
                }
                assert_eq!(pairs.len(), list(&theirs["resources"]).len());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_known_list_is_not_sent_again() {
    let registry = Registry::builtin();
    let discovery = Discovery::default();
    let mut headers = HeaderMap::new();
    let first =
        discovery.serve(&registry, &ask("/apis", AGGREGATED, &headers)).expect("served").expect("200");
    let tag = header_of(&first, header::ETAG);
    assert_eq!((first.code, tag.len()), (200, 130));
    assert_eq!(header_of(&first, header::CACHE_CONTROL), "public");
    headers.insert(header::IF_NONE_MATCH, tag.parse().expect("a header"));
    let again =
        discovery.serve(&registry, &ask("/apis", AGGREGATED, &headers)).expect("served").expect("304");
    assert_eq!((again.code, header_of(&again, header::ETAG)), (304, tag));
    let plain = discovery
        .serve(&registry, &ask("/apis", "application/json", &headers))
        .expect("served")
        .expect("200");
    assert_eq!((plain.code, body(&plain)["kind"].as_str()), (200, Some("APIGroupList")));
}

#[test]
fn plain_lists() {
    let registry = Registry::builtin();
    let discovery = Discovery::default();
    let headers = HeaderMap::new();
    let get = |path: &str| {
        let reply = discovery.serve(&registry, &ask(path, "application/json", &headers));
        reply.map(|r| body(&r.expect("served")))
    };
    let versions = get("/api").expect("served");
    assert_eq!(versions["serverAddressByClientCIDRs"][0]["serverAddress"], "10.0.0.1:6443");
    let core = get("/api/v1/").expect("served");
    let resources = core["resources"].as_array().expect("a list");
    let names: Vec<&str> = resources.iter().filter_map(|r| r["name"].as_str()).collect();
    assert!(names.is_sorted(), "{names:?}");
    let of = |name: &str| resources.iter().find(|r| r["name"] == name).expect("present");
    // Upstream's well-known hash of core/v1 pods.
    assert_eq!(of("pods")["storageVersionHash"], "xPOwRZ+Yhw8=");
    assert_eq!(of("pods/eviction")["group"], "policy");
    assert!(of("bindings").get("storageVersionHash").is_none());
    assert_eq!(get("/apis/apps").expect("served")["preferredVersion"]["groupVersion"], "apps/v1");
    assert!(get("/apis/none").is_none() && get("/apis/apps/v2").is_none() && get("/nothing").is_none());
    let root = get("/").expect("served");
    let paths: Vec<&str> =
        root["paths"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(paths.is_sorted() && paths.contains(&"/apis/apps/v1") && paths.contains(&"/readyz/ping"));
}

#[test]
fn newer_and_more_stable_versions_come_first() {
    let mut all = vec!["v1beta1", "v2", "v1", "v2alpha1", "v10", "other", "v1beta2"];
    all.sort_by_key(|version| std::cmp::Reverse(version_key(version)));
    assert_eq!(all, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v2alpha1", "other"]);
}
