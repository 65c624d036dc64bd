//! Fills ClusterRoles that have an aggregation rule with the rules of the ClusterRoles that it selects.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kelp_model::selector::Selector;
use kube::api::Api;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::informer::key_of;
use crate::queue::Queue;
use crate::write;

/// Starts the controller. Reads and writes ClusterRoles.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let roles = context.informer::<ClusterRole>();
    let queue = Queue::new();
    let (q, all) = (queue.clone(), roles.clone());
    // Any role may be selected by any aggregate; there are few of these.
    roles.on_change(move |change| {
        let changed = change.object();
        for role in all.list().iter().chain([changed]).filter(|role| role.aggregation_rule.is_some()) {
            q.add(key_of(&role.metadata));
        }
    });
    let client = context.client.clone();
    context.workers("clusterrole-aggregation", &queue, 1, move |name| {
        let (roles, client) = (roles.clone(), client.clone());
        async move {
            let Some(role) = roles.get(&name) else { return Ok(()) };
            let rules = aggregate(&role, &roles.list())?;
            if role.aggregation_rule.is_none() || role.rules.as_deref().unwrap_or_default() == rules {
                return Ok(());
            }
            let mut wanted = ClusterRole::clone(&role);
            wanted.rules = Some(rules);
            write::update(&Api::<ClusterRole>::all(client), &*role, &wanted).await?;
            Ok(())
        }
    });
    Ok(())
}

/// The rules of the roles that a role selects, each once, by the roles' names.
fn aggregate(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Result<Vec<PolicyRule>> {
    let mut sorted: Vec<&Arc<ClusterRole>> =
        all.iter().filter(|other| other.metadata.name != role.metadata.name).collect();
    sorted.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<PolicyRule> = Vec::new();
    let selectors = role.aggregation_rule.as_ref().and_then(|rule| rule.cluster_role_selectors.as_ref());
    for selector in selectors.into_iter().flatten() {
        let selector = Selector::from_label_selector(Some(selector))
            .map_err(|error| Error::Failed(format!("the aggregation rule cannot be used: {error}")))?;
        for other in &sorted {
            let labels = other.metadata.labels.clone().unwrap_or_default();
            if !selector.matches(&labels) {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn role(value: Value) -> Arc<ClusterRole> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn part(name: &str, label: &str, verb: &str) -> Arc<ClusterRole> {
        role(json!({"metadata": {"name": name, "labels": {label: "true"}},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]}))
    }

    #[test]
    fn selected_rules_once_in_the_order_of_names() {
        let aggregate_of = |selectors: Value| {
            role(json!({"metadata": {"name": "x"}, "aggregationRule": {"clusterRoleSelectors": selectors}}))
        };
        let x = aggregate_of(json!([{"matchLabels": {"a": "true"}}, {"matchLabels": {"b": "true"}}]));
        let all = [
            part("3", "a", "list"),
            part("2", "a", "get"),
            part("1", "b", "get"),
            part("4", "c", "watch"),
            x.clone(),
        ];
        let verbs: Vec<String> =
            aggregate(&x, &all).unwrap().into_iter().flat_map(|rule| rule.verbs).collect();
        assert_eq!(verbs, ["get", "list"]);
        assert!(aggregate(&part("1", "b", "get"), &all).unwrap().is_empty());
    }
}
