//! The kubelet API, over TLS: what the API server, monitoring and operators reach on a node.
//!
//! | Path | Answer |
//! |---|---|
//! | `/healthz` | `ok` |
//! | `/stats/summary` | what the node, pods and containers use |
//! | `/metrics`, `/metrics/resource`, `/metrics/cadvisor`, `/metrics/probes` | the same and the agent's own numbers for Prometheus |
//! | `/configz` | settings in force |
//! | `/logs/` | files below /var/log |
//! | `/flagz`, `/statusz`, `/debug/pprof/cmdline` | the command line, and what this process is |
//! | `/checkpoint/…` | an error: not supported |
//! | `/pods`, `/runningpods/` | the pods of this node, and those that run |
//! | `/containerLogs/<namespace>/<pod>/<container>` | the log; query as of the `pods/log` subresource |
//! | `/exec`, `/attach` `/<namespace>/<pod>[/<uid>]/<container>` | an upgraded connection: SPDY/3.1 or WebSocket |
//! | `/run/<namespace>/<pod>[/<uid>]/<container>` | output of a command |
//! | `/portForward/<namespace>/<pod>[/<uid>]` | an upgraded connection: SPDY/3.1, also within WebSocket |
//!
//! Reads: the pods the manager follows, log files, the runtime. Writes: nothing. Who may do what: [`auth`].

mod answer;
pub mod auth;
mod cadvisor;
mod configz;
mod debug;
mod exec;
pub(crate) mod exposition;
pub(crate) mod host;
mod log_query;
mod logs;
mod metrics;
mod options;
mod pod_counts;
mod pods;
mod portforward;
mod query;
mod remote;
mod remote_streams;
mod requests;
mod stats;
mod system_logs;
#[cfg(test)]
mod tests;
pub mod tls;
mod upgrade;
mod volumes;

pub use options::LogOptions;
pub use stats::Rates;
pub use tls::TlsError;

use crate::config::AgentConfig;
use crate::csi::Csi;
use crate::runtime::{ContainerState, Runtime};
use answer::{Answer, text};
use auth::{Auth, Refusal, User};
use http::{Method, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kelp_streams::{channels, spdy};
use log_query::{Asked, LogQuery};
use parking_lot::RwLock;
use query::Query;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections at a time; more wait in the listen queue.
const CONNECTIONS: usize = 256;
/// What is served only with `enableDebuggingHandlers`.
const DEBUGGING: [&str; 8] =
    ["run", "exec", "attach", "portForward", "containerLogs", "runningpods", "debug", "logs"];
/// For the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Pods of this node by namespace and name.
pub type PodIndex = Arc<RwLock<BTreeMap<(String, String), Arc<Pod>>>>;

/// What the server is made of.
pub struct Server<R> {
    /// Pods that are served.
    pub pods: PodIndex,
    /// The node's configuration.
    pub config: AgentConfig,
    /// Containers.
    pub runtime: R,
    /// Server certificate, and the authority that client certificates must be of.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who may call.
    pub auth: Auth,
    /// Drivers of volumes, which tell how full these are.
    pub csi: Option<Csi>,
    /// CPU rates, from one look to the next.
    pub rates: Arc<Rates>,
}

/// What a path of a container names.
struct Target<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: Option<&'a str>,
    container: &'a str,
}

impl<'a> Target<'a> {
    /// From `<namespace>/<pod>[/<uid>]/<container>`.
    fn of(path: &[&'a str]) -> Option<Self> {
        match *path {
            [namespace, name, container] => Some(Self { namespace, name, uid: None, container }),
            [namespace, name, uid, container] => Some(Self { namespace, name, uid: Some(uid), container }),
            _ => None,
        }
    }
}

impl<R: Runtime + Clone> Server<R> {
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
        let leaf = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
        let user = leaf.and_then(|der| User::of_certificate(der));
        self.serve(stream, user).await;
    }

    /// Serves HTTP on a connection of `user`, if the client's certificate names one.
    async fn serve<T>(self: Arc<Self>, stream: T, user: Option<User>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (server, user) = (self.clone(), user.clone());
            async move {
                let _counted = requests::Counted::begin(request.method(), request.uri().path());
                let path = request.uri().path();
                let check = server.auth.check(user.as_ref(), request.method(), path, request.headers());
                let answer = match check.await {
                    Ok(()) => server.answer(request).await,
                    Err(Refusal::Unauthorized) => text(StatusCode::UNAUTHORIZED, "Unauthorized"),
                    Err(Refusal::Forbidden(message)) => text(StatusCode::FORBIDDEN, message),
                    Err(Refusal::Unknown(message)) => text(StatusCode::INTERNAL_SERVER_ERROR, message),
                };
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(HANDSHAKE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the kubelet API ended early");
        }
    }

    /// A pod of this node.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    async fn answer(&self, request: http::Request<Incoming>) -> Answer {
        let uri = request.uri().clone();
        let path: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
        let query = Query::parse(uri.query().unwrap_or_default());
        let (get, post) = (request.method() == Method::GET, request.method() == Method::POST);
        let Some((first, rest)) = path.split_first() else { return not_found() };
        let settings = &self.config.kubelet.settings;
        if !settings.enable_debugging_handlers && DEBUGGING.contains(first) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n");
        }
        if !settings.enable_system_log_handler && *first == "logs" {
            return text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n");
        }
        match (*first, rest, Target::of(rest)) {
            ("healthz", [] | [""] | ["ping" | "log" | "syncloop"], _) if get => text(StatusCode::OK, "ok"),
            ("pods", [] | [""], _) if get => self.pods(),
            ("runningpods", [""], _) if get => self.running_pods().await,
            ("stats", ["summary"], _) if get => self.summary(&query).await,
            ("metrics", [], _) if get => self.own_metrics().await,
            ("metrics", ["resource"], _) if get => self.resource_metrics().await,
            ("metrics", ["probes"], _) if get => self.probe_metrics(),
            ("metrics", ["cadvisor"], _) if get => self.cadvisor_metrics().await,
            ("configz", [], _) if get => self.configz(),
            ("debug", ["pprof", "cmdline"], _) if get => debug::command_line(),
            ("flagz", [], _) if get => self.flags(),
            ("statusz", [], _) if get => self.status_page(),
            ("logs", _, _) if get => {
                let rest = uri.path().strip_prefix("/logs").unwrap_or_default().to_owned();
                let logs = PathBuf::from("/var/log");
                let asked = match settings.enable_system_log_query {
                    true => LogQuery::parse(&query, &logs),
                    false => Ok(Asked::Path),
                };
                match asked {
                    Ok(Asked::Path) => system_logs::serve(logs, rest).await,
                    Ok(Asked::File(file)) => system_logs::serve(logs, file).await,
                    Ok(Asked::Services(asked)) => asked.answer(logs).await,
                    Err(error) => log_query::refused(error),
                }
            }
            ("containerLogs", [namespace, pod, container], _) if get => match LogOptions::parse(&query) {
                Ok(options) => self.logs(namespace, pod, container, options).await,
                Err(message) => text(StatusCode::BAD_REQUEST, message),
            },
            ("exec", _, Some(target)) if get || post => self.exec(request, &target).await,
            ("attach", _, Some(target)) if get || post => self.attach(request, &target).await,
            ("run", _, Some(target)) if post => self.run_command(&query, &target).await,
            ("portForward", [namespace, name], _) if get || post => {
                self.port_forward(request, namespace, name, None).await
            }
            ("portForward", [namespace, name, uid], _) if get || post => {
                self.port_forward(request, namespace, name, Some(uid)).await
            }
            ("checkpoint", _, Some(target)) if post => self.checkpoint(&target),
            ("containerLogs" | "exec" | "attach" | "run" | "checkpoint", _, Some(_)) => wrong_method(),
            ("pods" | "configz", [], _) | ("stats" | "metrics", _, _) if !get => wrong_method(),
            (
                "containerLogs" | "exec" | "attach" | "run" | "portForward" | "checkpoint" | "stats" | "pods",
                _,
                _,
            ) => text(StatusCode::NOT_FOUND, "404: Page Not Found"),
            _ => not_found(),
        }
    }

    /// Checkpoints take a runtime that can make them: ours cannot, and the answer is that of a kubelet with such a one.
    fn checkpoint(&self, target: &Target<'_>) -> Answer {
        let Target { namespace, name, container, .. } = target;
        let Some(pod) = self.pod(namespace, name) else {
            return text(StatusCode::NOT_FOUND, "pod does not exist");
        };
        let known = pod.spec.as_ref().is_some_and(|s| kelp_model::pod::spec::find(s, container).is_some());
        if !known {
            return text(StatusCode::NOT_FOUND, format!("container {container} does not exist"));
        }
        let message = format!(
            "checkpointing of {namespace}/{name}/{container} failed (the container runtime does not support \
             checkpoint/restore)"
        );
        text(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    async fn logs(&self, namespace: &str, name: &str, container: &str, options: LogOptions) -> Answer {
        let Some(pod) = self.pod(namespace, name) else {
            return text(StatusCode::NOT_FOUND, format!("pod {name:?} does not exist"));
        };
        let known =
            pod.spec.as_ref().is_some_and(|s| kelp_model::pod::spec::find_any(s, container).is_some());
        if !known {
            return text(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {name:?}"));
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let dir = self.config.pod_logs(namespace, name, &uid).join(container);
        let Some((attempt, file)) = logs::pick(&dir, options.previous) else {
            return text(StatusCode::BAD_REQUEST, why_no_log(&pod, name, container, options.previous));
        };
        let id = format!("{container}.{attempt}");
        let follow = options.follow;
        let ended = ended(self.runtime.clone(), uid, id);
        let lines = match logs::stream(&file, options, Box::pin(ended)) {
            Ok(lines) => lines,
            Err(error) => {
                let message = format!("cannot read {}: {error}", file.display());
                return text(StatusCode::INTERNAL_SERVER_ERROR, message);
            }
        };
        if follow { answer::stream(lines) } else { answer::stream_of(lines).await }
    }
}

/// Resolves when a container does not run any more.
async fn ended<R: Runtime>(runtime: R, uid: String, id: String) {
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

fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn wrong_method() -> Answer {
    text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed")
}

fn why_no_log(pod: &Pod, name: &str, container: &str, previous: bool) -> String {
    if previous {
        return format!("previous terminated container {container:?} in pod {name:?} not found");
    }
    let status = pod.status.as_ref();
    let lists = [
        status.and_then(|s| s.container_statuses.as_ref()),
        status.and_then(|s| s.init_container_statuses.as_ref()),
        status.and_then(|s| s.ephemeral_container_statuses.as_ref()),
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
