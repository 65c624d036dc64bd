//! The flow schemas and priority levels that upstream makes: the mandatory ones, which nobody may change, and the suggested
//! ones, which are kept up to date as long as their annotation says so.

use serde_json::{Value, json};

/// The annotation of an object that the server may change: `true` or `false`.
pub(crate) const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Name, shares, lendable percent, and queues, hand size, queue length of a level that queues.
type Level = (&'static str, i64, i64, (i64, i64, i64));

const LEVELS: [Level; 6] = [
    ("system", 30, 33, (64, 6, 50)),
    ("node-high", 40, 25, (64, 6, 50)),
    ("leader-election", 10, 0, (16, 4, 50)),
    ("workload-high", 40, 50, (128, 6, 50)),
    ("workload-low", 100, 90, (128, 6, 50)),
    ("global-default", 20, 50, (128, 6, 50)),
];

/// Who a schema is about.
#[derive(Clone, Copy)]
enum Who {
    Group(&'static str),
    User(&'static str),
    /// All service accounts of `kube-system`.
    SystemAccounts,
}

const EVERYBODY: &[Who] = &[Who::Group("system:unauthenticated"), Who::Group("system:authenticated")];
const NODES: &[Who] = &[Who::Group("system:nodes")];
const MANAGER: Who = Who::User("system:kube-controller-manager");
const SCHEDULER: Who = Who::User("system:kube-scheduler");

/// Name, level, precedence, what tells flows apart, whom it is about. Their rules are in [`rules`].
type Schema = (&'static str, &'static str, i64, &'static str, &'static [Who]);

const SCHEMAS: [Schema; 11] = [
    ("exempt", "exempt", 1, "", &[Who::Group("system:masters")]),
    ("probes", "exempt", 2, "", EVERYBODY),
    ("system-leader-election", "leader-election", 100, "ByUser", &[MANAGER, SCHEDULER, Who::SystemAccounts]),
    ("system-node-high", "node-high", 400, "ByUser", NODES),
    ("system-nodes", "system", 500, "ByUser", NODES),
    ("kube-controller-manager", "workload-high", 800, "ByNamespace", &[MANAGER]),
    ("kube-scheduler", "workload-high", 800, "ByNamespace", &[SCHEDULER]),
    ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", &[Who::SystemAccounts]),
    ("service-accounts", "workload-low", 9000, "ByUser", &[Who::Group("system:serviceaccounts")]),
    ("global-default", "global-default", 9900, "ByUser", EVERYBODY),
    ("catch-all", "catch-all", 10_000, "ByUser", EVERYBODY),
];

/// Names that are mandatory, for both kinds.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

fn subject(who: Who) -> Value {
    match who {
        Who::Group(name) => json!({"kind": "Group", "group": {"name": name}}),
        Who::User(name) => json!({"kind": "User", "user": {"name": name}}),
        Who::SystemAccounts => {
            json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}})
        }
    }
}

fn resource_rule(verbs: &[&str], group: &str, resources: &[&str], cluster: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster {
        rule["clusterScope"] = true.into();
    }
    rule
}

/// The rules of a schema without its subjects.
fn rules(name: &str) -> Value {
    let leases = |verbs: &[&str]| resource_rule(verbs, "coordination.k8s.io", &["leases"], false);
    match name {
        "probes" => json!({"nonResourceRules":
            [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]}),
        "system-leader-election" => json!({"resourceRules": [leases(&["get", "create", "update"])]}),
        "system-node-high" => json!({"resourceRules":
            [resource_rule(&["*"], "", &["nodes", "nodes/status"], true), leases(&["*"])]}),
        _ => json!({"resourceRules": [resource_rule(&["*"], "*", &["*"], true)],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}),
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec})
}

/// The priority levels, the mandatory ones first.
pub(crate) fn levels() -> Vec<Value> {
    const KIND: &str = "PriorityLevelConfiguration";
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let rest = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0,
        "limitResponse": {"type": "Reject"}}});
    let mut out = vec![object(KIND, "exempt", &exempt), object(KIND, "catch-all", &rest)];
    for (name, shares, lendable, (queues, hand, length)) in LEVELS {
        let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": length});
        let spec = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": shares,
            "lendablePercent": lendable, "limitResponse": {"type": "Queue", "queuing": queuing}}});
        out.push(object(KIND, name, &spec));
    }
    out
}

/// The flow schemas, in the order of their precedence.
pub(crate) fn schemas() -> Vec<Value> {
    SCHEMAS
        .iter()
        .map(|(name, level, precedence, method, who)| {
            let mut rule = rules(name);
            rule["subjects"] = who.iter().copied().map(subject).collect();
            let mut spec = json!({"priorityLevelConfiguration": {"name": level},
                "matchingPrecedence": precedence, "rules": [rule]});
            if !method.is_empty() {
                spec["distinguisherMethod"] = json!({"type": method});
            }
            object("FlowSchema", name, &spec)
        })
        .collect()
}

/// Whether upstream fixes the objects of this name.
pub(crate) fn is_mandatory(name: &str) -> bool {
    MANDATORY.contains(&name)
}

/// The mandatory object of a kind and name.
pub(crate) fn mandatory(kind: &str, name: &str) -> Option<Value> {
    if !is_mandatory(name) {
        return None;
    }
    let all = if kind == "FlowSchema" { schemas() } else { levels() };
    all.into_iter().find(|o| crate::object::meta(o, "name") == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gvk::GroupVersionKind;

    #[test]
    fn the_objects_are_valid_and_agree() {
        let levels = levels();
        let names: Vec<&str> = levels.iter().map(|l| crate::object::meta(l, "name")).collect();
        for (kind, all) in [("PriorityLevelConfiguration", &levels), ("FlowSchema", &schemas())] {
            let gvk = GroupVersionKind::new("flowcontrol.apiserver.k8s.io", "v1", kind);
            for object in all {
                let mut defaulted = object.clone();
                crate::defaults::apply(&gvk, &mut defaulted);
                assert_eq!(&defaulted, object, "defaults change nothing");
                assert_eq!(crate::validation::create(&gvk, object), []);
                if kind == "FlowSchema" {
                    let level = object["spec"]["priorityLevelConfiguration"]["name"].as_str().expect("level");
                    assert!(names.contains(&level), "{level}");
                }
            }
        }
        assert!(mandatory("FlowSchema", "probes").is_none());
    }
}
