//! What load balancers and monitors ask over HTTP: one server a Service with `healthCheckNodePort`, `/healthz` and
//! `/livez`, `/metrics`. Answers are upstream's, to the byte where a byte is promised.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kelp_model::service::{HealthCheck, ObjectName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::events::Events;
use super::namespace::Namespace;
use super::status::Status;

/// How long until a port that was taken is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// How long a client may take for the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

type Answer = Response<Full<Bytes>>;

/// An answer of JSON, as upstream's servers send it.
fn json(good: bool, body: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    response
}

fn not_found() -> Answer {
    let mut response = Response::new(Full::new(Bytes::from_static(b"404 page not found\n")));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// Listens in a namespace; the socket can be used by the runtime.
fn listen(namespace: &Namespace, address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let listener = namespace.run(move || TcpListener::bind(address))?;
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// Listens on all addresses, of both families where the host has them.
fn listen_everywhere(namespace: &Namespace, port: u16) -> io::Result<tokio::net::TcpListener> {
    match listen(namespace, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            listen(namespace, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        result => result,
    }
}

/// Answers on a listener until `stop`.
async fn serve(
    listener: tokio::net::TcpListener,
    answer: impl Fn(&Request<Incoming>) -> Answer + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: waiting is all that helps.
                tracing::debug!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (answer, stop) = (answer.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // A client that goes away early is no matter.
            let _ = stop.run_until_cancelled(connection).await;
        });
    }
}

/// What a load balancer is told about a Service on this node.
fn service_answer(name: &ObjectName, endpoints: usize, healthy: bool) -> Answer {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {endpoints},\n\t\
         \"serviceProxyHealthy\": {healthy}\n}}",
        quoted(&name.namespace),
        quoted(&name.name)
    );
    let mut response = json(endpoints != 0 && healthy, body);
    response.headers_mut().insert("x-load-balancing-endpoint-weight", http::HeaderValue::from(endpoints));
    response
}

/// Serves the health checks of Services until `shutdown`.
///
/// Reads: the Services with a health check. Opens and closes their ports.
pub(super) async fn serve_checks(
    namespace: Namespace,
    node: String,
    mut checks: watch::Receiver<BTreeMap<ObjectName, HealthCheck>>,
    status: Arc<Status>,
    events: Events,
    shutdown: CancellationToken,
) {
    let mut open: BTreeMap<ObjectName, (u16, CancellationToken)> = BTreeMap::new();
    loop {
        let wanted = checks.borrow_and_update().clone();
        open.retain(|name, (port, stop)| {
            let keep = wanted.get(name).is_some_and(|check| check.port == *port);
            if !keep {
                stop.cancel();
            }
            keep
        });
        let mut failed = false;
        for (name, check) in &wanted {
            if open.contains_key(name) {
                continue;
            }
            let listener = match listen_everywhere(&namespace, check.port) {
                Ok(listener) => listener,
                Err(error) => {
                    events.health_check(name, &node, check.port, &error);
                    failed = true;
                    continue;
                }
            };
            let stop = shutdown.child_token();
            let (checks, status, service) = (checks.clone(), status.clone(), name.clone());
            let answer = move |_: &Request<Incoming>| {
                let endpoints = checks.borrow().get(&service).map_or(0, |check| check.endpoints);
                service_answer(&service, endpoints, status.is_healthy())
            };
            tokio::spawn(serve(listener, answer, stop.clone()));
            open.insert(name.clone(), (check.port, stop));
        }
        let retry =
            async { if failed { tokio::time::sleep(RETRY).await } else { std::future::pending().await } };
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = checks.changed() => if changed.is_err() { return },
            () = retry => {}
        }
    }
}

/// Serves `/healthz` and `/livez` until `shutdown`. A port that is taken is reported, and the rest of the dataplane works
/// on: upstream's kube-proxy does not stop for it either.
pub(super) fn serve_health(
    namespace: &Namespace,
    address: SocketAddr,
    status: Arc<Status>,
    families: Vec<&'static str>,
    shutdown: CancellationToken,
) {
    let answer = move |request: &Request<Incoming>| {
        let (good, body) = match request.uri().path() {
            "/healthz" => status.healthz(&families),
            "/livez" => status.livez(&families),
            _ => return not_found(),
        };
        json(good, body.to_string())
    };
    start(namespace, address, "proxy healthz", answer, shutdown);
}

/// Serves `/metrics` until `shutdown`.
pub(super) fn serve_metrics(
    namespace: &Namespace,
    address: SocketAddr,
    text: impl Fn() -> String + Clone + Send + Sync + 'static,
    shutdown: CancellationToken,
) {
    let answer = move |request: &Request<Incoming>| {
        if request.uri().path() != "/metrics" {
            return not_found();
        }
        let mut response = Response::new(Full::new(Bytes::from(text())));
        let kind = http::HeaderValue::from_static(crate::server::exposition::CONTENT_TYPE);
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        response
    };
    start(namespace, address, "proxy metrics", answer, shutdown);
}

fn start(
    namespace: &Namespace,
    address: SocketAddr,
    what: &str,
    answer: impl Fn(&Request<Incoming>) -> Answer + Clone + Send + Sync + 'static,
    shutdown: CancellationToken,
) {
    match listen(namespace, address) {
        Ok(listener) => {
            tokio::spawn(serve(listener, answer, shutdown));
        }
        Err(error) => tracing::warn!(%error, %address, "{what} is not served"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn the_answer_about_a_service_is_upstreams() {
        let name = ObjectName::new("shop", "web");
        let response = service_answer(&name, 2, true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-load-balancing-endpoint-weight"], "2");
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                        \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(body, expected);
        assert_eq!(service_answer(&name, 0, true).status(), 503);
        assert_eq!(service_answer(&name, 2, false).status(), 503);
    }
}
