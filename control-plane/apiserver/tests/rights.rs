//! Who may do what: roles, bindings, nodes, impersonation.

mod asked;

use anyhow::{Context, Result, ensure};
use asked::Server;
use kelp_apiserver::UserInfo;
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn admin() -> UserInfo {
    UserInfo::admin("admin")
}

fn user(name: &str) -> UserInfo {
    UserInfo::authenticated(name, [])
}

fn role(name: &str, rules: Value) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules})
}

fn binding(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"kind": kind, "name": role}, "subjects": [{"kind": "User", "name": user}]})
}

#[tokio::test]
async fn without_bindings_there_is_discovery_and_nothing_else() -> Result<()> {
    let server = Server::start().await?;
    let bob = user("bob");
    for path in ["/api", "/apis", "/apis/apps/v1", "/openapi/v3", "/version", "/healthz", "/livez"] {
        let (status, _) = server.ask(&bob, "GET", path, Value::Null).await?;
        ensure!(status == 200, "{path}: {status}");
    }
    let resources = server.done(&bob, "GET", "/apis/apps/v1", Value::Null).await?;
    ensure!(resources["kind"] == "APIResourceList");
    for path in [MAPS, "/api/v1/nodes", "/api/v1/namespaces/default", "/metrics", "/apis/apps/v1/deployments"]
    {
        let (status, answer) = server.ask(&bob, "GET", path, Value::Null).await?;
        ensure!(status == 403 && answer["reason"] == "Forbidden", "{path}: {status} {answer}");
    }
    let anonymous = UserInfo::anonymous();
    for (path, want) in [("/healthz", 200), ("/version", 200), ("/api", 403), (MAPS, 403)] {
        let (status, _) = server.ask(&anonymous, "GET", path, Value::Null).await?;
        ensure!(status == want, "{path}: {status}");
    }
    Ok(())
}

#[tokio::test]
async fn bindings_and_their_deletion_count_at_once() -> Result<()> {
    let server = Server::start().await?;
    let (admin, bob) = (admin(), user("bob"));
    let get = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]);
    server.done(&admin, "POST", &format!("{RBAC}/roles"), role("r", get.clone())).await?;
    for round in 0..20 {
        ensure!(server.ask(&bob, "GET", MAPS, Value::Null).await?.0 == 403, "round {round}: before");
        server
            .done(&admin, "POST", &format!("{RBAC}/rolebindings"), binding("b", "Role", "r", "bob"))
            .await?;
        ensure!(server.ask(&bob, "GET", MAPS, Value::Null).await?.0 == 200, "round {round}: bound");
        ensure!(server.ask(&bob, "GET", "/api/v1/configmaps", Value::Null).await?.0 == 403);
        server.done(&admin, "PATCH", &format!("{RBAC}/roles/r"), json!({"rules": null})).await?;
        ensure!(server.ask(&bob, "GET", MAPS, Value::Null).await?.0 == 403, "round {round}: no rules");
        server.done(&admin, "PATCH", &format!("{RBAC}/roles/r"), json!({"rules": get.clone()})).await?;
        ensure!(server.ask(&bob, "GET", MAPS, Value::Null).await?.0 == 200, "round {round}: rules");
        server.done(&admin, "DELETE", &format!("{RBAC}/rolebindings/b"), Value::Null).await?;
    }
    // A role that is bound and missing is named.
    server
        .done(&admin, "POST", &format!("{RBAC}/rolebindings"), binding("c", "ClusterRole", "no", "bob"))
        .await?;
    let (_, answer) = server.ask(&bob, "GET", MAPS, Value::Null).await?;
    let text = answer["message"].as_str().unwrap_or_default();
    ensure!(
        text.ends_with("\"default\": RBAC: clusterrole.rbac.authorization.k8s.io \"no\" not found"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn nobody_grants_more_than_he_has() -> Result<()> {
    let server = Server::start().await?;
    let (admin, bob) = (admin(), user("bob"));
    let rules = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"],
        "verbs": ["create", "update", "patch", "get"]}, {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    server.done(&admin, "POST", &format!("{RBAC}/roles"), role("r", rules)).await?;
    server.done(&admin, "POST", &format!("{RBAC}/rolebindings"), binding("b", "Role", "r", "bob")).await?;
    let grant = |verb: &str| json!([{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]);
    let roles = format!("{RBAC}/roles");
    server.done(&bob, "POST", &roles, role("own", grant("get"))).await?;
    let (status, answer) = server.ask(&bob, "POST", &roles, role("more", grant("delete"))).await?;
    ensure!(status == 403);
    assert_eq!(
        answer["message"],
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"bob\" (groups=[\"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
    );
    let patch = json!({"rules": grant("delete")});
    ensure!(server.ask(&bob, "PATCH", &format!("{roles}/own"), patch).await?.0 == 403);
    // What the garbage collector needs is no grant.
    server.done(&bob, "PATCH", &format!("{roles}/r"), json!({"metadata": {"finalizers": ["a.b/c"]}})).await?;
    let bindings = format!("{RBAC}/rolebindings");
    ensure!(server.ask(&bob, "POST", &bindings, binding("x", "ClusterRole", "edit", "bob")).await?.0 == 201);
    let (status, answer) =
        server.ask(&bob, "POST", &bindings, binding("y", "ClusterRole", "cluster-admin", "bob")).await?;
    ensure!(status == 403, "{answer}");
    let (status, answer) = server.ask(&bob, "POST", &bindings, binding("z", "Role", "none", "bob")).await?;
    ensure!(status == 404 && answer["details"]["kind"] == "role", "{answer}");
    // `bind` and `escalate` allow it.
    let special = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"],
        "resourceNames": ["cluster-admin"], "verbs": ["bind"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["escalate"]}]);
    server.done(&admin, "POST", &roles, role("s", special)).await?;
    server.done(&admin, "POST", &bindings, binding("s", "Role", "s", "bob")).await?;
    server.done(&bob, "POST", &roles, role("more", grant("delete"))).await?;
    server.done(&bob, "POST", &bindings, binding("y", "ClusterRole", "cluster-admin", "bob")).await?;
    Ok(())
}

#[tokio::test]
async fn a_node_reads_the_secrets_of_its_pods() -> Result<()> {
    let server = Server::start().await?;
    let (admin, node) = (admin(), UserInfo::authenticated("system:node:n", ["system:nodes".to_owned()]));
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    server.done(&admin, "POST", "/api/v1/namespaces/default/serviceaccounts", account).await?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    server.done(&admin, "POST", "/api/v1/namespaces/default/secrets", secret).await?;
    let path = "/api/v1/namespaces/default/secrets/s";
    let (status, answer) = server.ask(&node, "GET", path, Value::Null).await?;
    ensure!(status == 403);
    let text = answer["message"].as_str().context("a message")?;
    ensure!(text.ends_with(": no relationship found between node 'n' and this object"), "{text}");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n",
        "containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "secret": {"secretName": "s"}}]}});
    server.done(&admin, "POST", "/api/v1/namespaces/default/pods", pod).await?;
    server.done(&node, "GET", path, Value::Null).await?;
    let other = UserInfo::authenticated("system:node:o", ["system:nodes".to_owned()]);
    ensure!(server.ask(&other, "GET", path, Value::Null).await?.0 == 403);
    // The agent is also the node's proxy.
    for path in ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices", "/api/v1/nodes"] {
        ensure!(server.ask(&node, "GET", path, Value::Null).await?.0 == 200, "{path}");
    }
    server
        .done(&admin, "DELETE", "/api/v1/namespaces/default/pods/p?gracePeriodSeconds=0", Value::Null)
        .await?;
    // The graph follows the deletion; only what a node gains is waited for.
    let refused = async {
        while server.ask(&node, "GET", path, Value::Null).await?.0 != 403 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), refused).await?
}

#[tokio::test]
async fn impersonation_needs_rights_by_mode() -> Result<()> {
    let server = Server::start().await?;
    let (admin, bob) = (admin(), user("bob"));
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let headers = [
        ("impersonate-user", "alice"),
        ("impersonate-group", "dev"),
        ("impersonate-uid", "u"),
        ("impersonate-extra-scopes", "view"),
    ];
    let (status, answer) = server.ask_with(&admin, "POST", path, &headers, review.clone()).await?;
    ensure!(status == 201, "{answer}");
    assert_eq!(
        answer["status"]["userInfo"],
        json!({"username": "alice", "uid": "u", "groups": ["dev", "system:authenticated"], "extra": {"scopes": ["view"]}})
    );
    let (status, answer) = server.ask_with(&bob, "POST", path, &headers, review.clone()).await?;
    ensure!(status == 403);
    assert_eq!(
        answer["message"],
        "selfsubjectreviews.authentication.k8s.io is forbidden: User \"bob\" cannot \
         impersonate-on:user-info:create resource \"selfsubjectreviews\" in API group \"authentication.k8s.io\" at the \
         cluster scope"
    );
    let rules = json!([{"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["alice"],
            "verbs": ["impersonate:user-info"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"],
            "verbs": ["impersonate-on:user-info:create"]}]);
    let mut wide = role("i", rules);
    (wide["kind"], wide["metadata"]["name"]) = ("ClusterRole".into(), "i".into());
    server.done(&admin, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", wide).await?;
    let mut bound = binding("i", "ClusterRole", "i", "bob");
    bound["kind"] = "ClusterRoleBinding".into();
    server.done(&admin, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", bound).await?;
    let only = [("impersonate-user", "alice")];
    ensure!(server.ask_with(&bob, "POST", path, &only, review.clone()).await?.0 == 201);
    ensure!(server.ask_with(&bob, "POST", path, &headers, review.clone()).await?.0 == 403);
    ensure!(server.ask_with(&bob, "GET", MAPS, &only, Value::Null).await?.0 == 403);
    let group = [("impersonate-group", "dev")];
    ensure!(server.ask_with(&admin, "POST", path, &group, review).await?.0 == 400);
    Ok(())
}

#[tokio::test]
async fn default_roles_are_completed_at_the_next_start() -> Result<()> {
    let server = Server::start().await?;
    let admin = admin();
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:kube-dns";
    server.done(&admin, "PATCH", path, json!({"rules": null, "metadata": {"labels": {"own": "x"}}})).await?;
    let bound = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/system:discovery";
    server.done(&admin, "DELETE", bound, Value::Null).await?;
    server.server.bootstrap().await?;
    let role = server.done(&admin, "GET", path, Value::Null).await?;
    ensure!(role["rules"].as_array().is_some_and(|rules| !rules.is_empty()), "{role}");
    ensure!(role["metadata"]["labels"]["own"] == "x");
    server.done(&admin, "GET", bound, Value::Null).await?;
    Ok(())
}

#[tokio::test]
async fn certificates_are_approved_and_signed_by_who_may() -> Result<()> {
    use base64::Engine;
    let server = Server::start().await?;
    let (admin, bob) = (admin(), user("bob"));
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "bob");
    let request = params.serialize_request(&rcgen::KeyPair::generate()?)?.pem()?;
    let request = base64::engine::general_purpose::STANDARD.encode(request);
    let object = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "c"}, "spec": {"request": request, "signerName": "example.com/s",
        "usages": ["client auth"], "username": "somebody else"}});
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let mut wide = role(
        "csr",
        json!([{"apiGroups": ["certificates.k8s.io"], "verbs": ["create", "update", "patch"],
        "resources": ["certificatesigningrequests", "certificatesigningrequests/approval"]}]),
    );
    wide["kind"] = "ClusterRole".into();
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    server.done(&admin, "POST", roles, wide).await?;
    let mut bound = binding("csr", "ClusterRole", "csr", "bob");
    bound["kind"] = "ClusterRoleBinding".into();
    server.done(&admin, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", bound).await?;
    let made = server.done(&bob, "POST", requests, object).await?;
    ensure!(made["spec"]["username"] == "bob", "who asks is said by the server: {made}");
    let approve = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "R"}]}});
    let path = format!("{requests}/c/approval");
    let (status, answer) = server.ask(&bob, "PATCH", &path, approve.clone()).await?;
    ensure!(status == 403);
    let text = answer["message"].as_str().context("a message")?;
    ensure!(
        text.ends_with("user not permitted to approve requests with signerName \"example.com/s\""),
        "{text}"
    );
    let signer = json!({"rules": [{"apiGroups": ["certificates.k8s.io"], "verbs": ["create", "update", "patch"],
        "resources": ["certificatesigningrequests", "certificatesigningrequests/approval"]},
        {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["example.com/*"],
        "verbs": ["approve"]}]});
    server.done(&admin, "PATCH", &format!("{roles}/csr"), signer).await?;
    let approved = server.done(&bob, "PATCH", &path, approve).await?;
    ensure!(approved["status"]["conditions"][0]["lastUpdateTime"].is_string(), "{approved}");
    Ok(())
}
