//! Tokens: made, believed, and void when what they are bound to goes.

mod asked;

use anyhow::{Context, Result, ensure};
use asked::Server;
use base64::Engine;
use kelp_apiserver::UserInfo;
use serde_json::{Value, json};
use std::time::Duration;

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const PODS: &str = "/api/v1/namespaces/default/pods";
const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

fn admin() -> UserInfo {
    UserInfo::admin("admin")
}

fn request(spec: Value) -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
}

impl Server {
    async fn account(&self, name: &str) -> Result<Value> {
        let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        self.done(&admin(), "POST", ACCOUNTS, object).await
    }

    async fn pod(&self, name: &str, account: &str, node: &str) -> Result<Value> {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "serviceAccountName": account, "nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
        self.done(&admin(), "POST", PODS, object).await
    }

    async fn token(&self, account: &str, spec: Value) -> Result<String> {
        let path = format!("{ACCOUNTS}/{account}/token");
        let answer = self.done(&admin(), "POST", &path, request(spec)).await?;
        Ok(answer["status"]["token"].as_str().context("a token")?.to_owned())
    }

    /// Who a bearer of a token is; the status when it is nobody.
    async fn who(&self, token: &str) -> Result<std::result::Result<Value, u16>> {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        let (status, answer) = self.ask_with(&UserInfo::anonymous(), "POST", WHO, &headers, review).await?;
        Ok(if status == 201 { Ok(answer["status"]["userInfo"].clone()) } else { Err(status) })
    }

    /// Waits until a token is void: its objects are looked up in caches that follow the store.
    async fn dies(&self, token: &str) -> Result<()> {
        let wait = async {
            while self.who(token).await? != Err(401) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await?
    }

    /// Status of a TokenReview.
    async fn review(&self, token: &str, audiences: Value) -> Result<Value> {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences}});
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        Ok(self.done(&admin(), "POST", path, review).await?["status"].clone())
    }
}

fn claims(token: &str) -> Result<Value> {
    let part = token.split('.').nth(1).context("claims")?;
    Ok(serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part)?)?)
}

#[tokio::test]
async fn a_token_is_its_account_until_that_goes() -> Result<()> {
    let server = Server::start().await?;
    let account = server.account("a").await?;
    let token = server.token("a", json!({})).await?;
    let who = server.who(&token).await?.map_err(|status| anyhow::anyhow!("{status}"))?;
    ensure!(who["username"] == "system:serviceaccount:default:a" && who["uid"] == account["metadata"]["uid"]);
    assert_eq!(
        who["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"])
    );
    let claims = claims(&token)?;
    assert_eq!(
        who["extra"]["authentication.kubernetes.io/credential-id"],
        json!([format!("JTI={}", claims["jti"].as_str().context("jti")?)])
    );
    ensure!(
        claims["exp"].as_i64().zip(claims["iat"].as_i64()).is_some_and(|(end, begin)| end - begin == 3600)
    );
    // Service accounts may read how tokens are checked.
    let bearer = format!("Bearer {token}");
    for path in ["/.well-known/openid-configuration", "/openid/v1/jwks"] {
        let headers = [("authorization", bearer.as_str())];
        let (status, answer) =
            server.ask_with(&UserInfo::anonymous(), "GET", path, &headers, Value::Null).await?;
        ensure!(status == 200 && answer.is_object(), "{path}: {status}");
    }
    let mut damaged = token.clone();
    damaged.truncate(token.len() - 4);
    assert_eq!(server.who(&damaged).await?, Err(401));
    server.done(&admin(), "DELETE", &format!("{ACCOUNTS}/a"), Value::Null).await?;
    server.account("a").await?;
    server.dies(&token).await?;
    let status = server.review(&token, json!([])).await?;
    ensure!(status["error"].as_str().is_some_and(|e| e.contains("does not match claim")), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_bound_token_dies_with_its_pod() -> Result<()> {
    let server = Server::start().await?;
    server.account("a").await?;
    let pod = server.pod("p", "a", "n").await?;
    let bound = json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}, "expirationSeconds": 3607});
    let token = server.token("a", bound.clone()).await?;
    let own = claims(&token)?["kubernetes.io"].clone();
    ensure!(
        own["pod"] == json!({"name": "p", "uid": pod["metadata"]["uid"]})
            && own["node"] == json!({"name": "n"})
    );
    // What clients of the default life get: longer, with a warning after it.
    let (end, begin, warn) = (&claims(&token)?["exp"], &claims(&token)?["iat"], &own["warnafter"]);
    ensure!(end.as_i64().zip(begin.as_i64()).is_some_and(|(end, begin)| end - begin == 365 * 24 * 3600));
    ensure!(warn.as_i64().zip(begin.as_i64()).is_some_and(|(warn, begin)| warn - begin == 3607));
    let who = server.who(&token).await?.map_err(|status| anyhow::anyhow!("{status}"))?;
    ensure!(who["extra"]["authentication.kubernetes.io/pod-name"] == json!(["p"]));
    ensure!(who["extra"]["authentication.kubernetes.io/node-name"] == json!(["n"]));
    let path = format!("{ACCOUNTS}/a/token");
    server.account("b").await?;
    let (status, answer) =
        server.ask(&admin(), "POST", &format!("{ACCOUNTS}/b/token"), request(bound.clone())).await?;
    ensure!(
        status == 400 && answer["message"].as_str().is_some_and(|m| m.contains("different serviceaccount"))
    );
    let mut other = bound;
    other["boundObjectRef"]["uid"] = "x".into();
    let (status, answer) = server.ask(&admin(), "POST", &path, request(other)).await?;
    ensure!(status == 409, "{answer}");
    let delete = json!({"gracePeriodSeconds": 0});
    server.done(&admin(), "DELETE", &format!("{PODS}/p"), delete).await?;
    server.dies(&token).await?;
    assert_eq!(
        server.review(&token, json!([])).await?,
        json!({"user": {}, "error": "[invalid bearer token, service account token has been invalidated]"})
    );
    Ok(())
}

#[tokio::test]
async fn nodes_get_tokens_of_their_pods_only() -> Result<()> {
    let server = Server::start().await?;
    server.account("a").await?;
    let pod = server.pod("p", "a", "n").await?;
    let node =
        |name: &str| UserInfo::authenticated(format!("system:node:{name}"), ["system:nodes".to_owned()]);
    let path = format!("{ACCOUNTS}/a/token");
    let uid = &pod["metadata"]["uid"];
    let bound = json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}});
    server.done(&node("n"), "POST", &path, request(bound.clone())).await?;
    let (status, _) = server.ask(&node("o"), "POST", &path, request(bound.clone())).await?;
    ensure!(status == 403);
    let (status, answer) = server.ask(&node("n"), "POST", &path, request(json!({}))).await?;
    ensure!(
        status == 403 && answer["message"].as_str().is_some_and(|m| m.ends_with("not bound to a pod")),
        "{answer}"
    );
    let mut audience = bound;
    audience["audiences"] = json!(["vault"]);
    let (status, answer) = server.ask(&node("n"), "POST", &path, request(audience)).await?;
    ensure!(
        status == 403
            && answer["message"].as_str().is_some_and(|m| m.contains("audience \"vault\" not found")),
        "{answer}"
    );
    Ok(())
}

#[tokio::test]
async fn audiences_and_bootstrap_tokens() -> Result<()> {
    let server = Server::start().await?;
    server.account("a").await?;
    let token = server.token("a", json!({"audiences": ["x", "y"]})).await?;
    assert_eq!(server.who(&token).await?, Err(401));
    let status = server.review(&token, json!(["y", "z"])).await?;
    ensure!(status["authenticated"] == true && status["audiences"] == json!(["y"]), "{status}");
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-abcdef"}, "data": {"token-id": encode("abcdef"),
        "token-secret": encode("0123456789abcdef"), "usage-bootstrap-authentication": encode("true")}});
    let bootstrap = "abcdef.0123456789abcdef";
    assert_eq!(server.who(bootstrap).await?, Err(401));
    server.done(&admin(), "POST", "/api/v1/namespaces/kube-system/secrets", secret).await?;
    let who = server.who(bootstrap).await?.map_err(|status| anyhow::anyhow!("{status}"))?;
    assert_eq!(
        who,
        json!({"username": "system:bootstrap:abcdef", "groups": ["system:bootstrappers", "system:authenticated"]})
    );
    Ok(())
}
