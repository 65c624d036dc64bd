//! Rows of roles and their bindings.

use super::*;
use crate::object::{list_at, str_at};

/// RoleBindings.
pub static ROLE_BINDING_TABLE: TableSpec =
    TableSpec { columns: ROLE_BINDING, cells: binding, conditions: no_conditions };
/// ClusterRoleBindings.
pub static CLUSTER_ROLE_BINDING_TABLE: TableSpec =
    TableSpec { columns: CLUSTER_ROLE_BINDING, cells: binding, conditions: no_conditions };

fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", str_at(object, &["roleRef", "kind"]), str_at(object, &["roleRef", "name"]));
    let subjects = |kind: &str| {
        let name = |subject: &Value| match str_at(subject, &["namespace"]) {
            namespace if kind == "ServiceAccount" && !namespace.is_empty() => {
                format!("{namespace}/{}", str_at(subject, &["name"]))
            }
            _ => str_at(subject, &["name"]).to_owned(),
        };
        let own = list_at(object, &["subjects"]).iter().filter(|s| str_at(s, &["kind"]) == kind);
        own.map(name).collect::<Vec<_>>().join(", ")
    };
    vec![
        meta(object, "name").into(),
        role.into(),
        age(object, now),
        subjects("User").into(),
        subjects("Group").into(),
        subjects("ServiceAccount").into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_by_kind() {
        let object = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "a", "namespace": "n"},
            {"kind": "User", "name": "v"}, {"kind": "ServiceAccount", "name": "c"}]});
        let cells = binding(&object, Timestamp::now());
        assert_eq!(cells, ["b", "Role/r", "<unknown>", "u, v", "", "n/a, c"]);
    }
}
