//! Who calls, and what they may: client certificates of the cluster's authority and bearer tokens (TokenReview), then
//! SubjectAccessReview with the kubelet's attributes. Nobody is anonymous.

use super::upgrade;
use crate::kubelet_config::{Authentication, Authorization, Settings};
use http::{HeaderMap, Method};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Entries of a cache.
const CACHED: usize = 4096;
/// How long the API server may take to answer a review.
const REVIEW: Duration = Duration::from_secs(10);
/// Group that may do everything, also while no review can be had.
const MASTERS: &str = "system:masters";

/// Who calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// Name.
    pub name: String,
    /// UID; empty when there is none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// More about the user.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// From the subject of a certificate: common name, and organizations as groups.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        groups.push("system:authenticated".to_owned());
        Some(Self { name, groups, ..Self::default() })
    }
}

/// Values that are good for some time.
struct Cache<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K) -> Option<V> {
        let entries = self.0.lock();
        entries.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, time: Duration) {
        let now = Instant::now();
        let mut entries = self.0.lock();
        if entries.len() >= CACHED {
            entries.retain(|_, (until, _)| *until > now);
        }
        if entries.len() >= CACHED {
            entries.clear();
        }
        entries.insert(key, (now + time, value));
    }
}

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody knows who calls.
    Unauthorized,
    /// The caller may not.
    Forbidden(String),
    /// It cannot be told whether the caller may.
    Unknown(String),
}

/// A decision: user, verb, subresource.
type Question = (User, &'static str, &'static str);

/// Authentication and authorization.
pub struct Auth {
    client: kube::Client,
    node_name: String,
    tokens: Cache<[u8; 32], Option<User>>,
    decisions: Cache<Question, bool>,
    /// How callers are known.
    authentication: Authentication,
    /// What they may.
    authorization: Authorization,
}

impl Auth {
    /// Asks the API server behind `client`.
    pub fn new(client: kube::Client, node_name: String, settings: &Settings) -> Self {
        Self {
            client,
            node_name,
            tokens: Cache::new(),
            decisions: Cache::new(),
            authentication: settings.authentication.clone(),
            authorization: settings.authorization.clone(),
        }
    }

    /// Decides whether a request is served.
    ///
    /// # Errors
    /// It is not.
    pub async fn check(
        &self,
        certificate: Option<&User>,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        let user = match certificate {
            Some(user) => user.clone(),
            None => self.unnamed(headers).await.ok_or(Refusal::Unauthorized)?,
        };
        if self.authorization.mode == "AlwaysAllow" {
            return Ok(());
        }
        self.authorize(&user, method, path).await
    }

    /// A caller without a certificate: by bearer token, or nobody in particular.
    async fn unnamed(&self, headers: &HeaderMap) -> Option<User> {
        match upgrade::bearer(headers).filter(|_| self.authentication.webhook.enabled) {
            // A token that nobody knows is no reason to be somebody else.
            Some(token) => self.token(&token).await,
            None => self.authentication.anonymous.enabled.then(|| User {
                name: "system:anonymous".into(),
                groups: vec!["system:unauthenticated".into()],
                ..User::default()
            }),
        }
    }

    async fn token(&self, token: &str) -> Option<User> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return known;
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = tokio::time::timeout(REVIEW, api.create(&PostParams::default(), &review)).await;
        let status = match answer {
            Ok(Ok(review)) => review.status.unwrap_or_default(),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a bearer token cannot be reviewed");
                return None;
            }
            Err(_) => {
                tracing::warn!("the API server does not answer a TokenReview");
                return None;
            }
        };
        let user = status.authenticated.unwrap_or(false).then(|| {
            let info = status.user.unwrap_or_default();
            User {
                name: info.username.unwrap_or_default(),
                uid: info.uid.unwrap_or_default(),
                groups: info.groups.unwrap_or_default(),
                extra: info.extra.unwrap_or_default(),
            }
        });
        self.tokens.put(key, user.clone(), self.authentication.webhook.cache_ttl.as_std());
        user
    }

    async fn authorize(&self, user: &User, method: &Method, path: &str) -> Result<(), Refusal> {
        if user.groups.iter().any(|g| g == MASTERS) {
            return Ok(());
        }
        let (verb, subresources) = attributes(method, path);
        for subresource in &subresources {
            if self.is_allowed(user, verb, subresource, path).await? {
                return Ok(());
            }
        }
        let name = &user.name;
        let list = subresources.join(" ");
        Err(Refusal::Forbidden(format!(
            "Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{list}])\n"
        )))
    }

    async fn is_allowed(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
        path: &str,
    ) -> Result<bool, Refusal> {
        let question = (user.clone(), verb, subresource);
        if let Some(known) = self.decisions.get(&question) {
            return Ok(known);
        }
        let non_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: non_empty(&user.name),
                uid: non_empty(&user.uid),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()).filter(|e| !e.is_empty()),
                resource_attributes: Some(ResourceAttributes {
                    verb: non_empty(verb),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node_name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = tokio::time::timeout(REVIEW, api.create(&PostParams::default(), &review)).await;
        let error = match answer {
            Ok(Ok(review)) => {
                let allowed = review.status.is_some_and(|s| s.allowed && !s.denied.unwrap_or(false));
                let times = &self.authorization.webhook;
                let time = if allowed { times.cache_authorized_ttl } else { times.cache_unauthorized_ttl };
                self.decisions.put(question, allowed, time.as_std());
                return Ok(allowed);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server does not answer".to_owned(),
        };
        tracing::warn!(user = user.name, verb, subresource, path, error, "authorization failed");
        Err(Refusal::Unknown(format!(
            "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
            user.name
        )))
    }
}

/// Paths whose own subresource is asked for before `proxy` (upstream's fine-grained authorization).
const FINE: [(&str, &str); 5] = [
    ("/pods", "pods"),
    ("/healthz", "healthz"),
    ("/configz", "configz"),
    ("/statusz", "statusz"),
    ("/runningpods", "pods"),
];
/// Paths whose subresource is the only one; all others are `proxy`.
const COARSE: [(&str, &str); 4] =
    [("/stats", "stats"), ("/metrics", "metrics"), ("/logs", "log"), ("/checkpoint", "checkpoint")];

/// Verb and subresources of a request; one of them must be allowed.
fn attributes(method: &Method, path: &str) -> (&'static str, Vec<&'static str>) {
    let verb = match method.as_str() {
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    };
    let is_below =
        |base: &str| path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let find =
        |table: &[(&str, &'static str)]| table.iter().find(|(base, _)| is_below(base)).map(|(_, s)| *s);
    let mut subresources = Vec::new();
    subresources.extend(find(&FINE));
    subresources.push(find(&COARSE).unwrap_or("proxy"));
    (verb, subresources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet_config::KubeletConfig;
    use http_body_util::BodyExt;
    use kube::client::Body;
    use serde_json::{Value, json};
    use std::sync::Arc;

    #[test]
    fn attributes_of_paths() {
        let of = |method, path| attributes(&method, path);
        assert_eq!(of(Method::GET, "/containerLogs/n/p/c"), ("get", vec!["proxy"]));
        assert_eq!(of(Method::POST, "/exec/n/p/c"), ("create", vec!["proxy"]));
        assert_eq!(of(Method::GET, "/logs/"), ("get", vec!["log"]));
        assert_eq!(of(Method::GET, "/stats/summary"), ("get", vec!["stats"]));
        assert_eq!(of(Method::GET, "/metrics/cadvisor"), ("get", vec!["metrics"]));
        assert_eq!(of(Method::GET, "/metricsx"), ("get", vec!["proxy"]));
        assert_eq!(of(Method::POST, "/checkpoint/n/p/c"), ("create", vec!["checkpoint"]));
        assert_eq!(of(Method::GET, "/pods"), ("get", vec!["pods", "proxy"]));
        assert_eq!(of(Method::GET, "/runningpods/"), ("get", vec!["pods", "proxy"]));
        assert_eq!(of(Method::GET, "/healthz/syncloop"), ("get", vec!["healthz", "proxy"]));
        assert_eq!(of(Method::DELETE, "/configz"), ("delete", vec!["configz", "proxy"]));
        assert_eq!(of(Method::OPTIONS, "/"), ("", vec!["proxy"]));
    }

    #[test]
    fn users_of_certificates() {
        use rcgen::{CertificateParams, DnType, KeyPair};
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        let user = User::of_certificate(&der).unwrap();
        assert_eq!(user.name, "kube-apiserver");
        assert!(user.groups.iter().any(|g| g == "system:masters"));
        assert_eq!(User::of_certificate(b"garbage"), None);
    }

    /// Answers reviews: the token `good` is user `prom`, who may see metrics and pods.
    fn reviewer(calls: Arc<Mutex<Vec<String>>>) -> kube::Client {
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let calls = calls.clone();
            async move {
                let (parts, body) = request.into_parts();
                let mut body: Value =
                    serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
                let code = if parts.uri.path().contains("tokenreviews") {
                    calls.lock().push("token".into());
                    let good = body["spec"]["token"] == "good";
                    body["status"] =
                        json!({"authenticated": good, "user": {"username": "prom", "groups": ["g"]}});
                    201
                } else {
                    let asked = &body["spec"]["resourceAttributes"];
                    assert_eq!(
                        (asked["name"].as_str(), asked["resource"].as_str()),
                        (Some("node1"), Some("nodes"))
                    );
                    let subresource = asked["subresource"].as_str().unwrap().to_owned();
                    calls.lock().push(format!("{} {subresource}", asked["verb"].as_str().unwrap()));
                    body["status"] = json!({"allowed": matches!(subresource.as_str(), "metrics" | "pods")});
                    if subresource == "stats" { 500 } else { 201 }
                };
                let answer = http::Response::builder().status(code);
                Ok::<_, std::convert::Infallible>(
                    answer.body(Body::from(body.to_string().into_bytes())).unwrap(),
                )
            }
        });
        kube::Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_reviewed_and_decisions_kept_for_a_while() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let auth = Auth::new(reviewer(calls.clone()), "node1".into(), &KubeletConfig::default().settings);
        let headers = |token: &str| {
            let mut map = HeaderMap::new();
            map.insert("authorization", format!("Bearer {token}").parse().unwrap());
            map
        };
        let get = async |token: &str, path: &str| auth.check(None, &Method::GET, path, &headers(token)).await;
        assert_eq!(get("good", "/metrics/resource").await, Ok(()));
        assert_eq!(get("good", "/metrics").await, Ok(()));
        assert_eq!(*calls.lock(), ["token", "get metrics"]);
        calls.lock().clear();
        assert_eq!(get("good", "/pods").await, Ok(()), "the finer subresource is enough");
        let forbidden = "Forbidden (user=prom, verb=get, resource=nodes, subresource(s)=[configz proxy])\n";
        assert_eq!(get("good", "/configz").await, Err(Refusal::Forbidden(forbidden.into())));
        assert_eq!(*calls.lock(), ["get pods", "get configz", "get proxy"]);
        assert!(matches!(get("good", "/stats/summary").await, Err(Refusal::Unknown(_))));
        assert_eq!(get("bad", "/metrics").await, Err(Refusal::Unauthorized));
        assert_eq!(auth.check(None, &Method::GET, "/", &HeaderMap::new()).await, Err(Refusal::Unauthorized));
        calls.lock().clear();
        tokio::time::advance(Duration::from_secs(31)).await;
        let _ = get("good", "/configz").await;
        assert_eq!(*calls.lock(), ["get configz", "get proxy"], "a refusal is short-lived");
        calls.lock().clear();
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(get("good", "/metrics").await, Ok(()));
        assert_eq!(*calls.lock(), ["token"], "a decision outlives the token's review");
    }

    #[tokio::test]
    async fn masters_need_no_review() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let auth = Auth::new(reviewer(calls.clone()), "node1".into(), &KubeletConfig::default().settings);
        let master = User { name: "a".into(), groups: vec![MASTERS.into()], ..User::default() };
        assert_eq!(auth.check(Some(&master), &Method::POST, "/exec/n/p/c", &HeaderMap::new()).await, Ok(()));
        let other = User { name: "b".into(), ..User::default() };
        assert!(auth.check(Some(&other), &Method::POST, "/exec/n/p/c", &HeaderMap::new()).await.is_err());
        assert_eq!(*calls.lock(), ["create proxy"]);
    }
}
