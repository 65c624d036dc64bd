//! The request path: identity, limits, authorization, routing, and the HTTP answer.

use super::answer::{AnswerBody, render};
use super::seats::{self, Entered, Wanted};
use super::{Core, body, health, metrics, websocket};
use crate::auth::{self, Attributes, Credentials, UserInfo};
use crate::cache::Cache;
use crate::discovery;
use crate::error::ApiError;
use crate::handlers::{self, Context, Reply, ReplyBody};
use crate::registry::{Resource, Subresource, SubresourceKind};
use crate::request::{Accepted, Endpoint, Query, RequestInfo, go_duration, negotiate};
use bytes::{Buf, Bytes};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::header::{self, HeaderMap, HeaderName};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

/// In-process transport for one user; see [`ApiServer::client_service`](crate::ApiServer::client_service).
#[derive(Clone)]
pub struct ClientService {
    core: Arc<Core>,
    user: UserInfo,
}

impl ClientService {
    pub(super) fn new(core: Arc<Core>, user: UserInfo) -> Self {
        ClientService { core, user }
    }
}

impl<B> tower::Service<Request<B>> for ClientService
where
    B: Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (core, credentials) = (self.core.clone(), Credentials::Known(self.user.clone()));
        Box::pin(async move { Ok(handle(core, credentials, request).await) })
    }
}

/// Serves one request.
pub(super) async fn handle<B>(
    core: Arc<Core>,
    credentials: Credentials,
    request: Request<B>,
) -> Response<AnswerBody>
where
    B: Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut parts, body) = request.into_parts();
    let mut upgrade = parts.extensions.remove::<OnUpgrade>();
    let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
    let query = parts.uri.query().map(str::to_owned);
    let mut incoming = Incoming::new(parts);
    let started = Instant::now();
    // Before the body is read: who may not ask, or has no seat, does not make the server read. A seat is taken before
    // rights are looked at, as upstream does it: that is work, too.
    let identified = incoming.identify(&core, &credentials).await;
    let incoming = Arc::new(incoming);
    let mut flow = Vec::new();
    let outcome = match identified {
        Err(error) => Err(error),
        Ok(()) => {
            let limit =
                incoming.time_limit(core.config.request_timeout).unwrap_or(core.config.request_timeout);
            let wanted = Wanted { user: &incoming.user, info: &incoming.info, query: &incoming.query, limit };
            let (headers, entered) = seats::enter(&core, &wanted).await;
            flow = headers;
            match entered {
                Err(rejected) => Ok(rejected),
                Ok(entered) => {
                    *incoming.seat.lock() = entered;
                    match incoming.authorize(&core).await {
                        Err(error) => Err(error),
                        Ok(()) if incoming.connection(&core).is_some() => {
                            let raw = handlers::Raw {
                                method: incoming.method.clone(),
                                path: incoming.info.path.clone(),
                                query,
                                headers: incoming.headers.clone(),
                                upgrade: upgrade.take(),
                                body: raw_body(body),
                                peer,
                            };
                            connect(core.clone(), incoming.clone(), raw).await
                        }
                        Ok(()) => answered(&core, &incoming, body).await,
                    }
                }
            }
        }
    };
    // Given back, unless a watch has taken it along.
    drop(incoming.seat.lock().take());
    let mut reply = outcome.unwrap_or_else(|error| Reply::error(&error, incoming.error_format()));
    reply.headers.extend(flow);
    let size = if let ReplyBody::Full(bytes) = &reply.body { Some(bytes.len()) } else { None };
    let (info, query) = (&incoming.info, &incoming.query);
    core.metrics.observe(info, query, incoming.is_apply(), reply.code, started.elapsed(), size);
    reply = counted(&core, &incoming, reply);
    if let Some(upgrade) = upgrade
        && incoming.is_long()
        && reply.code == 200
        && websocket::is_wanted(&incoming.headers)
    {
        let is_log = incoming.info.subresource == "log";
        reply = websocket::upgraded(&incoming.headers, upgrade, reply, is_log);
    }
    render(&incoming.headers, reply)
}

/// An answer that goes on is counted until its end.
fn counted(core: &Core, incoming: &Incoming, mut reply: Reply) -> Reply {
    reply.body = match reply.body {
        ReplyBody::Stream(stream) => {
            let long = core.metrics.long(&incoming.info);
            ReplyBody::Stream(Box::pin(stream.inspect(move |_| {
                let _ = &long;
            })))
        }
        other => other,
    };
    reply
}

/// Where the client of a connection is.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) std::net::IpAddr);

/// A body that is passed on as it comes.
fn raw_body<B>(body: B) -> handlers::RawBody
where
    B: Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    body.map_frame(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
        .map_err(Into::into)
        .boxed_unsync()
}

/// A connection: neither its length nor its body is limited.
fn connect(
    core: Arc<Core>,
    incoming: Arc<Incoming>,
    raw: handlers::Raw,
) -> BoxFuture<'static, Result<Reply, ApiError>> {
    Box::pin(async move {
        let Some((resource, sub)) = incoming.connection(&core) else {
            return Err(ApiError::unknown_resource());
        };
        let cache = core.cache(&resource).clone();
        let context = context(&core, resource, cache, &incoming, Bytes::new());
        handlers::connect(context, &sub, raw).await
    })
}

/// Reads the body and runs the handler, whose panic is an answer, too.
async fn answered<B>(core: &Arc<Core>, incoming: &Arc<Incoming>, body: B) -> Result<Reply, ApiError>
where
    B: Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let bytes = read_body(core, incoming, body).await?;
    let run = AssertUnwindSafe(boxed(core.clone(), incoming.clone(), bytes)).catch_unwind();
    run.await.unwrap_or_else(|_| {
        tracing::error!(path = %incoming.info.path, "a request handler panicked");
        Err(ApiError::internal("this request caused apiserver to panic. Look in the logs for details."))
    })
}

struct Incoming {
    user: UserInfo,
    info: RequestInfo,
    query: Query,
    headers: HeaderMap,
    method: http::Method,
    pretty: bool,
    /// What the client calls itself; a client in this process that says nothing is called by its user's name.
    user_agent: String,
    /// The seat of the request while it is served.
    seat: Mutex<Option<Entered>>,
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
}

impl Incoming {
    fn new(parts: http::request::Parts) -> Self {
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
        let agent = text(&parts.headers, header::USER_AGENT).unwrap_or_default();
        // People who look with curl or a browser get indented answers, as upstream does.
        let pretty = match query.get("pretty") {
            Some(value) if !value.is_empty() => matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"),
            _ => ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name)),
        };
        Incoming {
            user: UserInfo::anonymous(),
            info,
            query,
            headers: parts.headers,
            method: parts.method,
            pretty,
            user_agent: agent,
            seat: Mutex::new(None),
        }
    }

    /// Finds out who asks, or whom the client acts as.
    async fn identify(&mut self, core: &Core, credentials: &Credentials) -> Result<(), ApiError> {
        self.user = auth::authenticate(core, credentials, &mut self.headers).await?;
        if self.user_agent.is_empty() {
            self.user_agent = match credentials {
                _ if self.user.in_group(auth::NODES) => "kubelet".to_owned(),
                Credentials::Known(user) => {
                    user.name.strip_prefix("system:").unwrap_or(&user.name).to_owned()
                }
                Credentials::Connection(_) => String::new(),
            };
        }
        let asked = Attributes::of(&self.user, &self.info, &self.query);
        if let Some(other) = auth::impersonated(&core.policy, &self.headers, &asked).await? {
            self.user = other;
        }
        Ok(())
    }

    async fn authorize(&self, core: &Core) -> Result<(), ApiError> {
        let asked = Attributes::of(&self.user, &self.info, &self.query);
        let decision = core.policy.authorize(&asked).await?;
        if decision.allowed { Ok(()) } else { Err(asked.forbidden(&decision.reason)) }
    }

    /// How errors are answered: transformations are not asked for, and when nothing is left, indented JSON.
    fn error_format(&self) -> Accepted {
        negotiate(text(&self.headers, header::ACCEPT).as_deref(), self.pretty, &Endpoint::PLAIN)
            .unwrap_or(Accepted { pretty: true, ..Accepted::JSON })
    }

    /// Time for the request: the server's, or less if the client says so.
    fn time_limit(&self, longest: Duration) -> Result<Duration, ApiError> {
        match self.query.text("timeout") {
            text if text.is_empty() || self.is_long() => Ok(longest),
            text => match go_duration(text) {
                Ok(asked) if asked.is_zero() => Ok(longest),
                Ok(asked) => Ok(asked.min(longest)),
                Err(why) => Err(ApiError::bad_request(format!(
                    "invalid timeout specified in the request URL - {why}"
                ))),
            },
        }
    }

    fn is_apply(&self) -> bool {
        let value = self.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        value.is_some_and(|value| value.starts_with("application/apply-patch"))
    }

    fn is_long(&self) -> bool {
        self.info.is_resource && (self.info.verb == "watch" || self.info.subresource == "log")
    }

    /// The subresource that the request connects to, if it does. Logs are read like objects.
    fn connection(&self, core: &Core) -> Option<(Arc<Resource>, Subresource)> {
        let info = &self.info;
        if !info.is_resource || info.name.is_empty() || info.subresource.is_empty() {
            return None;
        }
        // Only built-in resources have something to connect to.
        let row = core.builtin.find(&info.group, &info.version, &info.resource)?;
        let sub = row.subresource(&info.subresource)?;
        let connects = sub.does == SubresourceKind::Connect && sub.name != "log" && !info.surplus;
        (connects && row.namespaced != info.namespace.is_empty()).then(|| (row.clone(), sub))
    }
}

async fn read_body<B>(core: &Core, incoming: &Incoming, body: B) -> Result<Bytes, ApiError>
where
    B: Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if !matches!(incoming.method.as_str(), "POST" | "PUT" | "PATCH" | "DELETE") {
        return Ok(Bytes::new());
    }
    body::read(core.config.max_body, core.config.request_timeout, body).await
}

/// The handler as one type, so that connections and in-process clients share its code.
fn boxed(
    core: Arc<Core>,
    incoming: Arc<Incoming>,
    body: Bytes,
) -> BoxFuture<'static, Result<Reply, ApiError>> {
    Box::pin(async move { serve(core, &incoming, body).await })
}

async fn serve(core: Arc<Core>, incoming: &Incoming, body: Bytes) -> Result<Reply, ApiError> {
    let limit = incoming.time_limit(core.config.request_timeout)?;
    let work = route(core.clone(), incoming, body);
    match tokio::time::timeout(limit, work).await {
        Ok(reply) => reply,
        Err(_) => Err(ApiError::timeout("request did not complete within the allotted timeout", 0)),
    }
}

async fn route(core: Arc<Core>, incoming: &Incoming, body: Bytes) -> Result<Reply, ApiError> {
    let info = &incoming.info;
    let accept = text(&incoming.headers, header::ACCEPT);
    if !info.is_resource {
        let store = if health::is_health(&info.path) || info.path == "/metrics/slis" {
            health::store(core.clone()).await
        } else {
            None
        };
        if info.path == "/metrics" && incoming.method == http::Method::GET {
            return Ok(metrics::serve(core).await);
        }
        if info.path == "/metrics/slis" && incoming.method == http::Method::GET {
            return Ok(metrics::slis(&health::states(&core, store.as_deref())));
        }
        if discovery::is_document(&info.path) && matches!(incoming.method.as_str(), "GET" | "HEAD") {
            return document(core, incoming).await;
        }
        return non_resource(&core, incoming, accept.as_deref(), store);
    }
    let served = core.served();
    let Some((resource, cache)) = served.find(&info.group, &info.version, &info.resource) else {
        if core.builtin.has_version(&info.group, &info.version) {
            return Err(ApiError::unknown_resource());
        }
        return Ok(Reply::text(404, "404 page not found\n"));
    };
    let namespace_fits = if resource.namespaced {
        // Single objects have a namespace; collections may be of all.
        !info.namespace.is_empty() || matches!(info.verb, "list" | "watch")
    } else {
        info.namespace.is_empty() || info.resource == "namespaces"
    };
    if !namespace_fits {
        return match resource.custom {
            Some(_) => Ok(Reply::text(404, "404 page not found\n")),
            None => Err(ApiError::unknown_resource()),
        };
    }
    let context = context(&core, resource.clone(), cache.clone(), incoming, body);
    handlers::serve(context).await
}

fn context(
    core: &Arc<Core>,
    resource: Arc<Resource>,
    cache: Arc<Cache>,
    incoming: &Incoming,
    body: Bytes,
) -> Context {
    // A watch keeps its seat until it has begun, which is after its answer.
    let seat = if incoming.info.verb == "watch" { incoming.seat.lock().take() } else { None };
    Context {
        resource,
        cache,
        seat: Mutex::new(seat),
        core: core.clone(),
        info: incoming.info.clone(),
        query: incoming.query.clone(),
        accept: text(&incoming.headers, header::ACCEPT),
        content_type: text(&incoming.headers, header::CONTENT_TYPE),
        pretty: incoming.pretty,
        body,
        user: incoming.user.clone(),
        user_agent: incoming.user_agent.clone(),
    }
}

fn non_resource(
    core: &Core,
    incoming: &Incoming,
    accept: Option<&str>,
    store: Option<String>,
) -> Result<Reply, ApiError> {
    let path = incoming.info.path.as_str();
    if incoming.method != http::Method::GET && incoming.method != http::Method::HEAD {
        return Err(ApiError::method_not_allowed());
    }
    if let Some(reply) = health::serve(core, path, &incoming.query, store.as_deref()) {
        return Ok(reply);
    }
    if let Some(reply) = super::issuer::serve(core, path) {
        return Ok(reply);
    }
    let ask = discovery::Ask {
        path,
        accept,
        headers: &incoming.headers,
        pretty: incoming.pretty,
        address: std::net::SocketAddr::new(core.config.advertise_address, core.config.advertise_port)
            .to_string(),
    };
    let served = core.served();
    let reply = served.discovery.serve(&served.registry, &ask);
    reply.unwrap_or_else(|| Ok(Reply::text(404, "404 page not found\n")))
}

/// OpenAPI documents are built and unpacked aside: that takes longer than other requests should wait for.
async fn document(core: Arc<Core>, incoming: &Incoming) -> Result<Reply, ApiError> {
    let (path, query) = (incoming.info.path.clone(), incoming.query.clone());
    let headers = incoming.headers.clone();
    let work = move || {
        let request = discovery::Request { path: &path, query: &query, headers: &headers };
        core.documents
            .serve(&core.served().registry, &request)
            .unwrap_or_else(|| Ok(Reply::text(404, "404 page not found\n")))
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(ApiError::internal(error)))
}
