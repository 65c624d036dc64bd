//! Rows of identity and rights: roles and bindings, and the reviews, which are answered and not stored.

use super::core::BASE;
use super::*;
use crate::table;

static PLAIN: Strategy = Strategy { create_on_update: true, ..Strategy::PLAIN };

const RBAC: Row = Row { group: "rbac.authorization.k8s.io", strategy: &PLAIN, ..BASE };
const REVIEW: Row = Row { namespaced: false, verbs: &["create"], ..BASE };

pub(super) fn reviews() -> Vec<Row> {
    let authentication = |plural, singular, kind| Row {
        group: "authentication.k8s.io",
        plural,
        singular,
        kind,
        storage_prefix: "/registry/reviews/",
        ..REVIEW
    };
    let authorization = |plural, singular, kind| Row {
        group: "authorization.k8s.io",
        ..authentication(plural, singular, kind)
    };
    vec![
        authentication("selfsubjectreviews", "selfsubjectreview", "SelfSubjectReview"),
        authentication("tokenreviews", "tokenreview", "TokenReview"),
        Row {
            namespaced: true,
            ..authorization(
                "localsubjectaccessreviews",
                "localsubjectaccessreview",
                "LocalSubjectAccessReview",
            )
        },
        authorization("selfsubjectaccessreviews", "selfsubjectaccessreview", "SelfSubjectAccessReview"),
        authorization("selfsubjectrulesreviews", "selfsubjectrulesreview", "SelfSubjectRulesReview"),
        authorization("subjectaccessreviews", "subjectaccessreview", "SubjectAccessReview"),
    ]
}

pub(super) fn rbac() -> Vec<Row> {
    vec![
        Row {
            plural: "clusterrolebindings",
            singular: "clusterrolebinding",
            kind: "ClusterRoleBinding",
            namespaced: false,
            storage_prefix: "/registry/clusterrolebindings/",
            table: &table::CLUSTER_ROLE_BINDING_TABLE,
            ..RBAC
        },
        Row {
            plural: "clusterroles",
            singular: "clusterrole",
            kind: "ClusterRole",
            namespaced: false,
            storage_prefix: "/registry/clusterroles/",
            table: &table::DEFAULT_TABLE,
            ..RBAC
        },
        Row {
            plural: "rolebindings",
            singular: "rolebinding",
            kind: "RoleBinding",
            storage_prefix: "/registry/rolebindings/",
            table: &table::ROLE_BINDING_TABLE,
            ..RBAC
        },
        Row {
            plural: "roles",
            singular: "role",
            kind: "Role",
            storage_prefix: "/registry/roles/",
            table: &table::DEFAULT_TABLE,
            ..RBAC
        },
    ]
}
