//! Aggregated roles.

mod harness;

use anyhow::Result;
use harness::{Cluster, eventually, settings};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, PostParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn aggregated_roles_hold_what_they_select() -> Result<()> {
    let cluster = Cluster::start(settings()).await?;
    let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    let has = |role: &ClusterRole, resource: &str| {
        role.rules.iter().flatten().any(|r| r.resources.iter().flatten().any(|r| r == resource))
    };
    // The default roles form a chain: view is part of edit, and edit of admin.
    eventually("the default roles", || async {
        let (admin, edit) = (roles.get("admin").await?, roles.get("edit").await?);
        let filled = has(&admin, "rolebindings") && has(&admin, "pods/log") && has(&edit, "pods/exec");
        assert!(!has(&edit, "rolebindings"));
        Ok(filled.then_some(()))
    })
    .await?;
    let own: ClusterRole = serde_json::from_value(json!({"metadata": {"name": "own",
        "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["things"], "verbs": ["get"]}]}))?;
    roles.create(&PostParams::default(), &own).await?;
    eventually("the new rule", || async { Ok(has(&roles.get("admin").await?, "things").then_some(())) }).await
}
