use super::*;
use serde_json::json;

/// Recorded discovery, when it is present.
fn recorded(name: &str) -> Option<Value> {
    let root = std::env::var_os("KELP_SHARED").map(std::path::PathBuf::from).or_else(|| {
        let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().ok()?;
        Some(workspace.parent()?.join("shared"))
    })?;
    let text = std::fs::read_to_string(root.join("data/kubernetes-1.36").join(name)).ok()?;
    serde_json::from_str(&text).ok()
}

/// Each row says what upstream's discovery says of it, and the groups come in upstream's order.
#[test]
fn rows_agree_with_recorded_discovery() {
    let (Some(core), Some(groups)) = (recorded("discovery-api.json"), recorded("discovery-apis.json")) else {
        eprintln!("no recorded discovery: set KELP_SHARED to check against it");
        return;
    };
    let mut known: HashMap<(String, String, String), Value> = HashMap::new();
    let mut order = Vec::new();
    for item in core["items"].as_array().into_iter().chain(groups["items"].as_array()).flatten() {
        let group = item["metadata"]["name"].as_str().unwrap_or_default();
        order.push(group.to_owned());
        for version in item["versions"].as_array().expect("versions") {
            let name = version["version"].as_str().expect("version");
            for resource in version["resources"].as_array().expect("resources") {
                let plural = resource["resource"].as_str().expect("plural");
                known.insert((group.to_owned(), name.to_owned(), plural.to_owned()), resource.clone());
            }
        }
    }
    let registry = Registry::builtin();
    let ours: Vec<&str> = registry.groups().into_iter().map(|(group, _)| group).collect();
    order.retain(|group| ours.contains(&group.as_str()));
    assert_eq!(ours, order);
    for row in registry.rows() {
        let key = (row.group().to_owned(), row.version().to_owned(), row.plural().to_owned());
        let theirs = known.get(&key).unwrap_or_else(|| panic!("{row:?} is not upstream's"));
        let list = |names: &[Box<str>]| if names.is_empty() { Value::Null } else { json!(names) };
        let seen = json!({"kind": row.kind(), "singular": row.singular(), "verbs": row.verbs,
            "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
            "short": list(&row.short_names), "categories": list(&row.categories)});
        let want = json!({"kind": theirs["responseKind"]["kind"], "singular": theirs["singularResource"],
            "verbs": theirs["verbs"], "scope": theirs["scope"], "short": theirs["shortNames"],
            "categories": theirs["categories"]});
        assert_eq!(seen, want, "{row:?}");
        for sub in &row.subresources {
            let subs = theirs["subresources"].as_array().expect("subresources");
            let theirs = subs.iter().find(|s| s["subresource"] == sub.name);
            assert_eq!(theirs.map(|s| &s["verbs"]), Some(&json!(sub.verbs)), "{row:?} {}", sub.name);
        }
    }
}

/// Leases say nothing of elections unless they did before.
#[test]
fn leases_elect_nobody() {
    let registry = Registry::builtin();
    let row = registry.find("coordination.k8s.io", "v1", "leases").expect("row");
    let full = json!({"spec": {"strategy": "OldestEmulationVersion", "preferredHolder": "p", "holderIdentity": "h"}});
    let (mut new, kept) = (full.clone(), json!({"spec": {"holderIdentity": "h"}}));
    (row.strategy.prepare_create)(&mut new);
    assert_eq!(new, kept);
    let mut new = full.clone();
    (row.strategy.prepare_update)(&mut new, &full);
    assert_eq!(new, full);
    (row.strategy.prepare_update)(&mut new, &kept);
    assert_eq!(new, kept);
}
