//! Tokens of the pods' service accounts, for projected volumes.
//!
//! A token is bound to its pod and kept in memory alone. It is asked for anew when a fifth of its life is left, and after
//! a day at the latest, as upstream's kubelet does; the pod is then told to write its volumes again.

use http::Request;
use http::header::CONTENT_TYPE;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Life of a token when the pod does not say.
const LIFETIME: i64 = 3600;
/// A token is replaced at this age, however long it lives.
const OLDEST: Duration = Duration::from_secs(24 * 3600);
/// Tokens of many pods are not all replaced at the same moment: up to this much earlier.
const JITTER: Duration = Duration::from_secs(10);
/// Time until a token that could not be replaced is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Which token: pod, audience, seconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    pod: String,
    audience: String,
    seconds: i64,
}

struct Held {
    token: String,
    renew: Instant,
    ends: Instant,
    wake: AbortHandle,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.wake.abort();
    }
}

/// The tokens; clones share them.
#[derive(Clone, Default)]
pub struct Tokens {
    client: Option<kube::Client>,
    held: Arc<Mutex<HashMap<Key, Held>>>,
}

/// When a token of so many seconds is replaced.
fn renew_after(seconds: u64) -> Duration {
    let jitter = JITTER.mul_f64(rand::random::<f64>());
    Duration::from_secs(seconds).mul_f64(0.8).min(OLDEST).saturating_sub(jitter)
}

/// Tells a pod at a time.
fn wake(at: Instant, changed: &Arc<Notify>) -> AbortHandle {
    let changed = changed.clone();
    let task = async move {
        tokio::time::sleep_until(at).await;
        changed.notify_one();
    };
    tokio::spawn(task).abort_handle()
}

/// The time of day of a moment to come.
fn time_of(at: Instant) -> Timestamp {
    let left = SignedDuration::try_from(at.saturating_duration_since(Instant::now())).unwrap_or_default();
    let time = Timestamp::now().saturating_add(left).unwrap_or(Timestamp::MAX);
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

impl Tokens {
    /// Asks this API server.
    pub fn new(client: kube::Client) -> Self {
        Self { client: Some(client), held: Arc::default() }
    }

    /// The token of a pod for a projection. `changed` is notified when it is time for another one.
    ///
    /// # Errors
    /// The API server refused or gave no answer, and there is no token that is still good.
    pub async fn get(
        &self,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
        changed: &Arc<Notify>,
    ) -> Result<String, String> {
        self.get_with_end(pod, projection, changed).await.map(|(token, _)| token)
    }

    /// The token of a pod, and when it ends.
    ///
    /// # Errors
    /// As [`Tokens::get`].
    pub async fn get_with_end(
        &self,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
        changed: &Arc<Notify>,
    ) -> Result<(String, Timestamp), String> {
        let key = Key {
            pod: pod.metadata.uid.clone().unwrap_or_default(),
            audience: projection.audience.clone().unwrap_or_default(),
            seconds: projection.expiration_seconds.unwrap_or(LIFETIME),
        };
        let now = Instant::now();
        if let Some(held) = self.held.lock().get(&key)
            && now < held.renew
        {
            return Ok((held.token.clone(), time_of(held.ends)));
        }
        match self.request(pod, &key).await {
            Ok((token, seconds)) => {
                let renew = now + renew_after(seconds);
                let ends = now + Duration::from_secs(seconds);
                let wake = wake(renew, changed);
                self.held.lock().insert(key, Held { token: token.clone(), renew, ends, wake });
                Ok((token, time_of(ends)))
            }
            Err(error) => {
                let mut held = self.held.lock();
                match held.get_mut(&key).filter(|held| now < held.ends) {
                    Some(held) => {
                        tracing::warn!(
                            pod = key.pod,
                            error,
                            "the token stays, another one is asked for later"
                        );
                        held.wake.abort();
                        held.wake = wake(now + RETRY, changed);
                        Ok((held.token.clone(), time_of(held.ends)))
                    }
                    None => Err(format!("failed to fetch token: {error}")),
                }
            }
        }
    }

    /// Forgets the tokens of a pod.
    pub fn forget(&self, pod: &str) {
        self.held.lock().retain(|key, _| key.pod != pod);
    }

    /// A new token and its life in seconds.
    async fn request(&self, pod: &Pod, key: &Key) -> Result<(String, u64), String> {
        let client = self.client.as_ref().ok_or("there is no API server to ask")?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or_default();
        if account.is_empty() {
            return Err("the pod has no service account".to_owned());
        }
        let audiences: Vec<&str> =
            Some(key.audience.as_str()).into_iter().filter(|a| !a.is_empty()).collect();
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
            "audiences": audiences, "expirationSeconds": key.seconds, "boundObjectRef": {"apiVersion": "v1",
            "kind": "Pod", "name": pod.metadata.name, "uid": key.pod}}});
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = Request::post(path)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|e| e.to_string())?;
        let answer: TokenRequest = client.request(request).await.map_err(|e| e.to_string())?;
        let token = answer.status.and_then(|status| status.token).ok_or("the answer has no token")?;
        let seconds = answer.spec.and_then(|spec| spec.expiration_seconds).unwrap_or(key.seconds);
        Ok((token, u64::try_from(seconds).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"serviceAccountName": "sa", "containers": []}}))
        .unwrap()
    }

    fn projection(audience: Option<&str>) -> ServiceAccountTokenProjection {
        ServiceAccountTokenProjection {
            audience: audience.map(str::to_owned),
            expiration_seconds: Some(1000),
            path: "token".into(),
        }
    }

    /// An API server that numbers its tokens and can be told to fail.
    fn server(failing: Arc<std::sync::atomic::AtomicBool>) -> Tokens {
        let count = AtomicUsize::new(0);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/ns/serviceaccounts/sa/token");
            let number = count.fetch_add(1, Ordering::SeqCst);
            let failing = failing.load(Ordering::SeqCst);
            async move {
                let asked: serde_json::Value =
                    serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
                assert_eq!(asked["spec"]["boundObjectRef"]["uid"], "u");
                let mut answer = asked.clone();
                let audience = asked["spec"]["audiences"][0].as_str().unwrap_or("own").to_owned();
                answer["status"] = json!({"token": format!("{audience}-{number}"), "expirationTimestamp": "2030-01-01T00:00:00Z"});
                let status = if failing { 503 } else { 201 };
                Ok::<_, std::convert::Infallible>(
                    http::Response::builder()
                        .status(status)
                        .body(kube::client::Body::from(answer.to_string().into_bytes()))
                        .unwrap(),
                )
            }
        });
        Tokens::new(kube::Client::new(service, "default"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_kept_replaced_in_time_and_survives_a_failure() {
        let failing = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let tokens = server(failing.clone());
        let changed: Arc<Notify> = Arc::default();
        assert_eq!(tokens.get(&pod(), &projection(None), &changed).await.unwrap(), "own-0");
        assert_eq!(tokens.get(&pod(), &projection(None), &changed).await.unwrap(), "own-0");
        assert_eq!(tokens.get(&pod(), &projection(Some("vault")), &changed).await.unwrap(), "vault-1");
        // Told at four fifths of its life.
        let begin = Instant::now();
        changed.notified().await;
        let waited = begin.elapsed();
        assert!(waited >= Duration::from_secs(790) && waited <= Duration::from_secs(801), "{waited:?}");
        tokio::time::sleep(JITTER).await;
        failing.store(true, Ordering::SeqCst);
        assert_eq!(tokens.get(&pod(), &projection(None), &changed).await.unwrap(), "own-0");
        failing.store(false, Ordering::SeqCst);
        assert_eq!(tokens.get(&pod(), &projection(None), &changed).await.unwrap(), "own-3");
        failing.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1000)).await;
        let error = tokens.get(&pod(), &projection(None), &changed).await.unwrap_err();
        assert!(error.starts_with("failed to fetch token: "), "{error}");
        tokens.forget("u");
        assert!(tokens.held.lock().is_empty());
    }

    #[test]
    fn times_of_renewal() {
        for _ in 0..100 {
            let day = renew_after(10 * 24 * 3600);
            assert!(day <= OLDEST && day >= OLDEST - JITTER);
            assert!(
                renew_after(600) >= Duration::from_secs(470) && renew_after(600) <= Duration::from_secs(480)
            );
        }
    }
}
