//! The default roles and bindings: made at the first start, and completed at every later one.
//!
//! As upstream's reconciliation: rules and subjects that are missing are added, nothing is taken away, and an object with
//! the annotation `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.

use crate::auth::rbac::GROUP;
use crate::auth::rule::{self, Rule};
use crate::object::{get, list_at, map_mut, meta, meta_mut, str_at};
use serde_json::{Map, Value, json};

const TABLE: &str = include_str!("policy.tbl");
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const CONTROLLER: &str = "system:controller:";
/// The role that is the union of all controllers' roles.
const ALL_CONTROLLERS: &str = "kelp:controllers";

/// An object of the default policy, with the resource it is of.
pub(super) struct Default {
    /// Plural name.
    pub(super) plural: &'static str,
    /// The object.
    pub(super) object: Value,
}

fn words(text: &str) -> Vec<String> {
    text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn verbs(text: &str) -> Vec<String> {
    words(match text {
        "READ" => "get,list,watch",
        "WRITE" => "create,delete,deletecollection,patch,update",
        "ALL" => "create,delete,deletecollection,get,list,patch,update,watch",
        "EVENT" => "create,patch,update",
        other => other,
    })
}

fn rule_of(line: &str) -> Rule {
    let mut parts = line.split_whitespace();
    let mut next = || parts.next().unwrap_or_default();
    let first = next();
    if first == "url" {
        return Rule { urls: words(next()), verbs: verbs(next()), ..Rule::default() };
    }
    let groups = words(first).into_iter().map(|g| if g == "core" { String::new() } else { g }).collect();
    Rule { groups, resources: words(next()), verbs: verbs(next()), names: words(next()), urls: Vec::new() }
}

fn object(kind: &str, namespace: &str, name: &str) -> Value {
    let mut metadata = json!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"}});
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata})
}

fn cluster_role(name: &str, options: &[&str]) -> Default {
    let mut object = object("ClusterRole", "", name);
    for option in options {
        if let Some(key) = option.strip_prefix("label=") {
            object["metadata"]["labels"][format!("{GROUP}/{key}")] = "true".into();
        } else if let Some(key) = option.strip_prefix("aggregate=") {
            let labels = json!({format!("{GROUP}/{key}"): "true"});
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
            object["rules"] = Value::Null;
        }
    }
    Default { plural: "clusterroles", object }
}

fn subjects(text: &str) -> Vec<Value> {
    let subject = |word: &str| {
        let (kind, name) = word.split_once(':')?;
        let named = |kind: &str| json!({"kind": kind, "apiGroup": GROUP, "name": name});
        Some(match kind {
            "user" => named("User"),
            "group" => named("Group"),
            _ => {
                let (namespace, name) = name.split_once('/')?;
                json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
            }
        })
    };
    text.split(',').filter_map(subject).collect()
}

fn binding(namespace: &str, name: &str, role: &str, subjects_text: &str) -> Default {
    let (kind, plural, role_kind) = if namespace.is_empty() {
        ("ClusterRoleBinding", "clusterrolebindings", "ClusterRole")
    } else {
        ("RoleBinding", "rolebindings", "Role")
    };
    let mut object = object(kind, namespace, name);
    object["roleRef"] = json!({"apiGroup": GROUP, "kind": role_kind, "name": role});
    let subjects = subjects(subjects_text);
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    Default { plural, object }
}

/// All default objects.
pub(super) fn defaults() -> Vec<Default> {
    let mut out: Vec<Default> = Vec::new();
    let mut controllers: Vec<Value> = Vec::new();
    let mut role: Option<(Default, Vec<Value>)> = None;
    let finish = |role: &mut Option<(Default, Vec<Value>)>, out: &mut Vec<Default>, all: &mut Vec<Value>| {
        let Some((mut done, rules)) = role.take() else { return };
        if meta(&done.object, "name").starts_with(CONTROLLER) && done.plural == "clusterroles" {
            all.extend(rules.iter().cloned());
        }
        if done.object.get("rules").is_none() {
            done.object["rules"] = rules.into();
        }
        out.push(done);
    };
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with(' ') {
            if let Some((_, rules)) = &mut role {
                rules.push(rule_of(line).to_value());
            }
            continue;
        }
        finish(&mut role, &mut out, &mut controllers);
        let parts: Vec<&str> = line.split_whitespace().collect();
        match parts.as_slice() {
            ["role", name, options @ ..] => role = Some((cluster_role(name, options), Vec::new())),
            ["controller", name] => {
                let full = format!("{CONTROLLER}{name}");
                out.push(binding("", &full, &full, &format!("sa:kube-system/{name}")));
                role = Some((cluster_role(&full, &[]), Vec::new()));
            }
            ["nsrole", namespace, name] => {
                let object = object("Role", namespace, name);
                role = Some((Default { plural: "roles", object }, Vec::new()));
            }
            ["bind", name, target, who] => out.push(binding("", name, target, who)),
            ["nsbind", namespace, name, target, who] => out.push(binding(namespace, name, target, who)),
            _ => {}
        }
    }
    finish(&mut role, &mut out, &mut controllers);
    let mut union: Vec<Value> = Vec::new();
    for rule in controllers {
        if !union.contains(&rule) {
            union.push(rule);
        }
    }
    let mut all = cluster_role(ALL_CONTROLLERS, &[]);
    all.object["rules"] = union.into();
    out.push(all);
    out
}

/// The rules that hold for every node.
pub(crate) fn node_rules() -> Vec<Rule> {
    let name = |default: &&Default| {
        meta(&default.object, "name") == "system:node" && default.plural == "clusterroles"
    };
    defaults().iter().find(name).map(|default| Rule::of_role(&default.object)).unwrap_or_default()
}

/// Adds members of one metadata map that are missing.
fn complete(object: &mut Value, wanted: &Value, field: &str) {
    let missing: Map<String, Value> = get(wanted, &["metadata", field])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(key, _)| {
            object.pointer("/metadata").and_then(|m| m.get(field)?.get(key.as_str())).is_none()
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if missing.is_empty() {
        return;
    }
    let own = meta_mut(object).entry(field).or_insert_with(|| json!({}));
    if let Some(own) = own.as_object_mut() {
        own.extend(missing);
    }
}

/// What to do with an object that exists.
#[derive(Debug, PartialEq)]
pub(super) enum Reconciled {
    /// Nothing.
    Same,
    /// Write this.
    Update(Value),
    /// Its role cannot be changed: delete it and make the default anew.
    Recreate,
}

/// Completes an existing object by a default one.
pub(super) fn reconcile(existing: &Value, wanted: &Value) -> Reconciled {
    if str_at(existing, &["metadata", "annotations", AUTOUPDATE]) == "false" {
        return Reconciled::Same;
    }
    let mut object = existing.clone();
    complete(&mut object, wanted, "labels");
    complete(&mut object, wanted, "annotations");
    if let Some(role) = wanted.get("roleRef") {
        if existing.get("roleRef") != Some(role) {
            return Reconciled::Recreate;
        }
        append(&mut object, "subjects", wanted);
    } else if let Some(aggregation) = wanted.get("aggregationRule") {
        append(map_value(&mut object, "aggregationRule"), "clusterRoleSelectors", aggregation);
    } else {
        let missing = rule::missing(&Rule::of_role(existing), &Rule::of_role(wanted));
        if !missing.is_empty() {
            let mut rules = list_at(existing, &["rules"]).to_vec();
            rules.extend(missing.iter().map(Rule::to_value));
            object["rules"] = rules.into();
        }
    }
    if object == *existing { Reconciled::Same } else { Reconciled::Update(object) }
}

fn map_value<'a>(object: &'a mut Value, field: &str) -> &'a mut Value {
    map_mut(object, field);
    &mut object[field]
}

/// Adds items of a list that are missing.
fn append(object: &mut Value, field: &str, wanted: &Value) {
    let mut list = list_at(object, &[field]).to_vec();
    let before = list.len();
    for item in list_at(wanted, &[field]) {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
    if list.len() > before {
        object[field] = list.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(plural: &str, name: &str) -> Value {
        let all = defaults();
        let found = all.into_iter().find(|d| d.plural == plural && meta(&d.object, "name") == name);
        found.expect("a default").object
    }

    #[test]
    fn every_line_of_the_table_is_understood() {
        let all = defaults();
        let words = ["role ", "controller ", "nsrole ", "bind ", "nsbind "];
        for line in TABLE.lines().filter(|l| !l.is_empty() && !l.starts_with('#') && !l.starts_with(' ')) {
            assert!(words.iter().any(|word| line.starts_with(word)), "{line}");
        }
        for default in &all {
            let kind = str_at(&default.object, &["kind"]);
            let gvk = crate::gvk::GroupVersionKind::new(GROUP, "v1", kind);
            let errors = crate::validation::create(&gvk, &default.object);
            assert_eq!(errors, vec![], "{}", default.object);
        }
        // Every role that is bound exists.
        for default in all.iter().filter(|d| d.object.get("roleRef").is_some()) {
            let role = str_at(&default.object, &["roleRef", "name"]);
            let plural = if default.plural == "rolebindings" { "roles" } else { "clusterroles" };
            assert!(all.iter().any(|d| d.plural == plural && meta(&d.object, "name") == role), "{role}");
        }
    }

    #[test]
    fn known_defaults() {
        assert_eq!(
            find("clusterroles", "cluster-admin")["rules"],
            json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, {"nonResourceURLs": ["*"], "verbs": ["*"]}])
        );
        assert_eq!(
            find("clusterroles", "edit")["aggregationRule"],
            json!({"clusterRoleSelectors": [{"matchLabels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}}]})
        );
        assert_eq!(
            find("clusterroles", "view")["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"],
            "true"
        );
        assert_eq!(
            find("clusterrolebindings", "system:controller:job-controller")["subjects"],
            json!([{"kind": "ServiceAccount", "name": "job-controller", "namespace": "kube-system"}])
        );
        assert!(find("clusterrolebindings", "system:node").get("subjects").is_none());
        let controllers = Rule::of_role(&find("clusterroles", ALL_CONTROLLERS));
        assert!(controllers.iter().any(|rule| rule.verbs.contains(&"escalate".to_owned())));
        assert!(!node_rules().is_empty());
    }

    #[test]
    fn reconciliation_adds_and_never_removes() {
        let wanted = find("clusterroles", "system:kube-dns");
        assert_eq!(reconcile(&wanted, &wanted), Reconciled::Same);
        let mut existing = wanted.clone();
        existing["rules"] = json!([{"apiGroups": [""], "resources": ["services"], "verbs": ["*"]}]);
        existing["metadata"]["labels"] = json!({"own": "x"});
        let Reconciled::Update(new) = reconcile(&existing, &wanted) else { panic!("an update") };
        assert_eq!(new["rules"].as_array().map(Vec::len), Some(3));
        assert_eq!(new["metadata"]["labels"]["own"], "x");
        assert_eq!(new["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
        assert_eq!(reconcile(&new, &wanted), Reconciled::Same);
        existing["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        assert_eq!(reconcile(&existing, &wanted), Reconciled::Same);
        let wanted = find("clusterrolebindings", "system:discovery");
        let mut existing = wanted.clone();
        existing["subjects"] = json!([]);
        let Reconciled::Update(new) = reconcile(&existing, &wanted) else { panic!("an update") };
        assert_eq!(new["subjects"], wanted["subjects"]);
        existing["roleRef"]["name"] = "other".into();
        assert_eq!(reconcile(&existing, &wanted), Reconciled::Recreate);
    }
}
