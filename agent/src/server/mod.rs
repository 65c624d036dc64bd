//! The kubelet API that the API server calls, over mutual TLS: container logs and health.
//!
//! | Path | Answer |
//! |---|---|
//! | `GET /healthz` | `ok` |
//! | `GET /containerLogs/<namespace>/<pod>/<container>` | the log; query as of the `pods/log` subresource |
//!
//! Reads: the pods the manager follows, log files, runtime events. Writes: nothing. Clients need a certificate of the
//! cluster's client authority with organization `system:masters` or the API server's kubelet-client identity; the
//! caller verifies the former through the TLS configuration and [`Authorize`].

mod logs;
mod options;
pub mod tls;

pub use options::LogOptions;
pub use tls::TlsError;

use crate::network::PodNetwork;
use crate::pod::context::Context;
use crate::runtime::{ContainerState, Runtime};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections at a time; more wait in the listen queue.
const CONNECTIONS: usize = 256;
/// For the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Pods of this node by namespace and name.
pub type PodIndex = Arc<RwLock<BTreeMap<(String, String), Arc<Pod>>>>;

/// Decides by the client's leaf certificate (DER) whether it may call.
pub type Authorize = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// What the server is made of.
pub struct Server<R, N> {
    /// Pods that are served.
    pub pods: PodIndex,
    /// The node's configuration and runtime.
    pub context: Arc<Context<R, N>>,
    /// Server certificate, and the authority that client certificates must be of.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who may call.
    pub authorize: Authorize,
}

type Answer = http::Response<UnsyncBoxBody<Bytes, std::io::Error>>;

fn text(code: u16, body: impl Into<String>) -> Answer {
    let body = Full::new(Bytes::from(body.into())).map_err(|never| match never {}).boxed_unsync();
    let mut answer = http::Response::new(body);
    *answer.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    answer
}

impl<R: Runtime, N: PodNetwork> Server<R, N> {
    /// Serves until `shutdown`.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let server = Arc::new(self);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let stream = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of file descriptors: the next connection may fare better.
                        tracing::warn!(%error, "connection to the kubelet API not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let (server, shutdown) = (server.clone(), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = server.connection(stream) => {}
                }
                drop(permit);
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let acceptor = tokio_rustls::TlsAcceptor::from(self.tls.clone());
        let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake of the kubelet API failed");
                return;
            }
            Err(_) => return,
        };
        let leaf = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).map(|c| c.to_vec());
        let allowed = leaf.is_some_and(|der| (self.authorize)(&der));
        let service = service_fn(move |request| {
            let server = self.clone();
            async move {
                let answer = if allowed { server.answer(&request).await } else { text(403, "Forbidden") };
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(HANDSHAKE)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the kubelet API ended early");
        }
    }

    async fn answer(&self, request: &http::Request<Incoming>) -> Answer {
        let path: Vec<&str> = request.uri().path().trim_start_matches('/').split('/').collect();
        if request.method() != http::Method::GET {
            return text(405, "Method Not Allowed");
        }
        match path.as_slice() {
            ["healthz"] => text(200, "ok"),
            ["containerLogs", namespace, pod, container] => {
                let query = request.uri().query().unwrap_or_default();
                match LogOptions::parse(query) {
                    Ok(options) => self.logs(namespace, pod, container, options),
                    Err(message) => text(400, message),
                }
            }
            _ => text(404, "404 page not found"),
        }
    }

    fn logs(&self, namespace: &str, name: &str, container: &str, options: LogOptions) -> Answer {
        let found = self.pods.read().get(&(namespace.to_owned(), name.to_owned())).cloned();
        let Some(pod) = found else {
            return text(404, format!("pod {name:?} does not exist"));
        };
        let known = pod.spec.as_ref().is_some_and(|s| kelp_model::pod::spec::find(s, container).is_some());
        if !known {
            return text(404, format!("container {container:?} in pod {name:?} is not available"));
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let dir = self.context.config.pod_logs(namespace, name, &uid).join(container);
        let Some((attempt, file)) = logs::pick(&dir, options.previous) else {
            return text(400, why_no_log(&pod, name, container, options.previous));
        };
        let id = format!("{container}.{attempt}");
        let ended = ended(self.context.clone(), uid, id);
        let lines = match logs::stream(&file, options, Box::pin(ended)) {
            Ok(lines) => lines,
            Err(error) => return text(500, format!("cannot read {}: {error}", file.display())),
        };
        let body = StreamBody::new(lines.map(|chunk| chunk.map(Frame::data)));
        let mut answer = text(200, "");
        *answer.body_mut() = BodyExt::boxed_unsync(body);
        answer
    }
}

/// Resolves when a container does not run any more.
async fn ended<R: Runtime, N: PodNetwork>(context: Arc<Context<R, N>>, uid: String, id: String) {
    let runtime = &context.runtime;
    let mut events = runtime.events();
    loop {
        let status = runtime.status(&uid).await;
        let running = match status {
            Ok(Some(sandbox)) => {
                sandbox.ready
                    && sandbox
                        .containers
                        .iter()
                        .any(|c| c.id == id && !matches!(c.state, ContainerState::Exited(_)))
            }
            Ok(None) => false,
            Err(_) => true,
        };
        if !running {
            return;
        }
        // Lagging means that something happened.
        if let Err(tokio::sync::broadcast::error::RecvError::Closed) = events.recv().await {
            return;
        }
    }
}

fn why_no_log(pod: &Pod, name: &str, container: &str, previous: bool) -> String {
    if previous {
        return format!("previous terminated container {container:?} in pod {name:?} not found");
    }
    let status = pod.status.as_ref();
    let lists = [
        status.and_then(|s| s.container_statuses.as_ref()),
        status.and_then(|s| s.init_container_statuses.as_ref()),
    ];
    let waiting = lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|s| s.name == container)
        .and_then(|s| s.state.as_ref()?.waiting.clone());
    match waiting {
        Some(waiting) => {
            let reason = waiting.reason.unwrap_or_default();
            let cause = match reason.as_str() {
                "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" => {
                    "trying and failing to pull image"
                }
                _ => &reason,
            };
            format!("container {container:?} in pod {name:?} is waiting to start: {cause}")
        }
        None => format!("container {container:?} in pod {name:?} is not available"),
    }
}
