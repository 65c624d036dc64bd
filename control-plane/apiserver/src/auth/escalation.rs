//! Nobody grants more than he has: checks of roles and bindings before they are written.
//!
//! As upstream's `policybased` storages: who may `escalate` roles, or `bind` a role, may grant it; others must hold every
//! right that they grant.

use super::rbac::{GROUP, RoleRef};
use super::rule::{self, Rule, quoted};
use super::{Attributes, MASTERS};
use crate::error::{ApiError, quote};
use crate::handlers::Context;
use crate::object::{get, meta, str_at};
use serde_json::Value;

/// Checks a new role or binding; other kinds pass.
///
/// # Errors
/// 403 for rights that the user lacks; 404 for a role that does not exist.
pub(crate) fn on_create(context: &Context, object: &Value) -> Result<(), ApiError> {
    check(context, object, None)
}

/// Checks a changed role or binding; other kinds pass.
///
/// # Errors
/// As [`on_create`].
pub(crate) fn on_update(context: &Context, new: &Value, old: &Value) -> Result<(), ApiError> {
    if context.resource.group() != GROUP || only_garbage_collection(new, old) {
        return Ok(());
    }
    check(context, new, Some(old))
}

/// Whether only what the garbage collector writes differs.
fn only_garbage_collection(new: &Value, old: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        let metadata = crate::object::meta_mut(&mut object);
        for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
            metadata.remove(field);
        }
        object
    };
    bare(new) == bare(old)
}

fn check(context: &Context, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let resource = &context.resource;
    if resource.group() != GROUP || context.user.in_group(MASTERS) {
        return Ok(());
    }
    let name = meta(object, "name");
    let refuse = |why: &str| ApiError::forbidden(GROUP, resource.plural(), name, why);
    match resource.kind() {
        "Role" | "ClusterRole" => {
            if may_escalate(context) {
                return Ok(());
            }
            confirm(context, &Rule::of_role(object)).map_err(|why| refuse(&why))?;
            let aggregates = |role: &Value| get(role, &["aggregationRule"]).is_some();
            if resource.kind() == "ClusterRole"
                && (aggregates(object) || old.is_some_and(aggregates))
                && confirm(context, &everything()).is_err()
            {
                return Err(refuse("must have cluster-admin privileges to use the aggregationRule"));
            }
            Ok(())
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            let role = RoleRef {
                kind: str_at(object, &["roleRef", "kind"]).to_owned(),
                name: str_at(object, &["roleRef", "name"]).to_owned(),
            };
            if may_bind(context, str_at(object, &["roleRef", "apiGroup"]), &role) {
                return Ok(());
            }
            let found = context.core.policy.rbac().rules_of(&role, context.namespace()).cloned();
            let rules = found.map_err(|text| match role.kind.as_str() {
                "Role" => ApiError::not_found(GROUP, "role", &role.name),
                "ClusterRole" => ApiError::not_found(GROUP, "clusterrole", &role.name),
                _ => ApiError::plain_internal(text),
            })?;
            confirm(context, &rules).map_err(|why| refuse(&why))
        }
        _ => Ok(()),
    }
}

/// The rights of an administrator of the cluster.
fn everything() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    [
        Rule { groups: all(), resources: all(), verbs: all(), ..Rule::default() },
        Rule { urls: all(), verbs: all(), ..Rule::default() },
    ]
}

fn may_escalate(context: &Context) -> bool {
    let mut a = Attributes::empty(&context.user);
    a.verb = "escalate".into();
    (a.group, a.version, a.resource) = (GROUP.into(), "*".into(), context.resource.plural().into());
    (a.name, a.namespace) = (context.info.name.as_str().into(), context.namespace().into());
    context.core.policy.decide(&a).allowed
}

fn may_bind(context: &Context, group: &str, role: &RoleRef) -> bool {
    let mut a = Attributes::empty(&context.user);
    a.verb = "bind".into();
    (a.group, a.version, a.name) = (group.into(), "*".into(), role.name.as_str().into());
    a.namespace = context.namespace().into();
    a.resource = match role.kind.as_str() {
        "Role" => "roles".into(),
        "ClusterRole" => "clusterroles".into(),
        _ => return false,
    };
    context.core.policy.decide(&a).allowed
}

/// Whether the user holds all of these rights; the text for the refusal otherwise.
fn confirm(context: &Context, rules: &[Rule]) -> Result<(), String> {
    let user = &context.user;
    let (own, unresolved) = context.core.policy.rbac().rules_for(user, context.namespace());
    let missing = rule::missing(&own, rules);
    if missing.is_empty() {
        return Ok(());
    }
    let mut text = format!(
        "user {} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        quote(&user.name),
        quoted(&user.groups),
        rule::describe(missing)
    );
    if let Some(errors) = unresolved {
        text.push_str(&format!("; resolution errors: [{errors}]"));
    }
    Err(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_garbage_collector_writes_is_no_grant() {
        let old = json!({"metadata": {"name": "r", "finalizers": ["x"]}, "rules": []});
        let mut new = json!({"metadata": {"name": "r", "resourceVersion": "2"}, "rules": []});
        assert!(only_garbage_collection(&new, &old));
        new["rules"] = json!([{"verbs": ["get"]}]);
        assert!(!only_garbage_collection(&new, &old));
    }
}
