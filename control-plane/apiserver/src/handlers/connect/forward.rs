//! Passing a request on: as HTTP, or as bytes once both sides have upgraded their connections.

use super::html;
use super::rewrite::Rewriter;
use super::transport::{Connection, Target};
use super::{BodyError, Raw, RawBody};
use crate::error::ApiError;
use crate::handlers::{Context, Reply, ReplyBody};
use bytes::Bytes;
use futures::StreamExt;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, BodyStream, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::net::IpAddr;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Headers about one connection (RFC 9110, 7.6.1), and those that Go's proxy treats like them.
const HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What other origins may do is this server's to say.
const CORS: [HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
];

/// The client's identity is for this server alone.
fn strip_identity(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    let impersonation: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in impersonation {
        headers.remove(name);
    }
}

fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.into_iter().chain(HOP) {
        headers.remove(name);
    }
}

fn add_forwarded_for(headers: &mut HeaderMap, peer: Option<IpAddr>) {
    let Some(peer) = peer else { return };
    let before = headers.get(FORWARDED_FOR).and_then(|v| v.to_str().ok());
    let value = before.map_or_else(|| peer.to_string(), |before| format!("{before}, {peer}"));
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// A request on a connection of its own.
async fn send(
    connection: Box<dyn Connection>,
    request: Request<RawBody>,
) -> Result<Response<Incoming>, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(connection)).await?;
    // Ends with the answer's body, or hands the connection over when it is upgraded.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    sender.send_request(request).await
}

fn request(
    method: http::Method,
    headers: HeaderMap,
    uri: &str,
    body: RawBody,
) -> Result<Request<RawBody>, ApiError> {
    let mut request = Request::builder()
        .method(method)
        .uri(uri)
        .body(body)
        .map_err(|e| ApiError::bad_request(e.to_string()))?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn empty() -> RawBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Asks for an upgrade: the answer that agrees, or another one.
async fn ask_upgrade(
    peer: Option<IpAddr>,
    method: http::Method,
    mut headers: HeaderMap,
    target: &Target,
    address: &str,
) -> Result<Result<Response<Incoming>, Response<Incoming>>, ApiError> {
    strip_identity(&mut headers);
    add_forwarded_for(&mut headers, peer);
    host(&mut headers, target);
    headers.remove(header::CONTENT_LENGTH);
    let request = request(method, headers, address, empty())?;
    let failed =
        |error: &dyn std::fmt::Display| ApiError::plain_internal(format!("error dialing backend: {error}"));
    let connection = target.dial().await.map_err(|e| failed(&e))?;
    let response = send(connection, request).await.map_err(|e| failed(&e))?;
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Ok(response));
    }
    if status.as_u16() < 400 {
        let why = format!("invalid upgrade response: status code {}", status.as_u16());
        return Err(ApiError::plain_internal(why));
    }
    Ok(Err(response))
}

/// Asks a node for an upgrade with other headers than the client's.
pub(super) async fn dial_upgraded(
    peer: Option<IpAddr>,
    headers: HeaderMap,
    to: &super::location::Stream,
) -> Result<Result<Response<Incoming>, Response<Incoming>>, ApiError> {
    ask_upgrade(peer, http::Method::POST, headers, &to.target, &to.address).await
}

/// Passes an upgrade on and pipes what follows.
pub(super) async fn upgrade(
    context: &Context,
    mut raw: Raw,
    target: &Target,
    address: &str,
) -> Result<Reply, ApiError> {
    let asked = ask_upgrade(raw.peer, raw.method.clone(), raw.headers.clone(), target, address).await?;
    let response = match asked {
        Ok(response) => response,
        Err(other) => return Ok(reply(other)),
    };
    let client = raw.take_upgrade()?;
    let mut reply = Reply::bytes(101, "", "");
    for (name, value) in response.headers() {
        reply.headers.push((name.clone(), value.clone()));
    }
    let (shutdown, long) = (context.core.shutdown.clone(), context.core.metrics.long(&context.info));
    tokio::spawn(async move {
        let _long = long;
        let both = futures::future::try_join(client, hyper::upgrade::on(response)).await;
        let Ok((client, backend)) = both else { return };
        shutdown.run_until_cancelled(pipe(TokioIo::new(client), TokioIo::new(backend))).await;
    });
    Ok(reply)
}

/// Copies both ways until one side ends; then the other is closed, so that no half-open connection stays.
pub(super) async fn pipe(client: impl AsyncRead + AsyncWrite, backend: impl AsyncRead + AsyncWrite) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_backend, mut to_backend) = tokio::io::split(backend);
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_backend) => {}
        _ = tokio::io::copy(&mut from_backend, &mut to_client) => {}
    }
    let _ = tokio::join!(to_client.shutdown(), to_backend.shutdown());
}

fn host(headers: &mut HeaderMap, target: &Target) {
    if !headers.contains_key(header::HOST)
        && let Ok(value) = HeaderValue::from_str(&target.authority())
    {
        headers.insert(header::HOST, value);
    }
}

/// Passes a request of `proxy` on, with `path` as its path there.
pub(super) async fn forward(
    context: &Context,
    mut raw: Raw,
    target: Target,
    path: &str,
) -> Result<Reply, ApiError> {
    let query = raw.query.as_deref().map(|q| format!("?{q}")).unwrap_or_default();
    if raw.is_upgrade() {
        let address = format!("{}{query}", if path.is_empty() { "/" } else { path });
        return upgrade(context, raw, &target, &address).await;
    }
    if path.is_empty() && matches!(raw.method.as_str(), "GET" | "HEAD") {
        // Relative references in the answer need a directory to start from.
        let mut reply = Reply::bytes(301, "", "");
        let place = HeaderValue::from_str(&format!("{}/{query}", raw.path)).map_err(ApiError::internal)?;
        reply.set(header::LOCATION, place);
        return Ok(reply);
    }
    let mut headers = raw.headers.clone();
    strip_identity(&mut headers);
    strip_hop(&mut headers);
    add_forwarded_for(&mut headers, raw.peer);
    host(&mut headers, &target);
    if let Ok(value) = HeaderValue::from_str(&raw.path) {
        headers.insert(FORWARDED_URI, value);
    }
    let rewriter = Rewriter::new(&raw.path, path, target.authority(), &headers);
    let body = std::mem::replace(&mut raw.body, empty());
    let request = request(
        raw.method.clone(),
        headers,
        &format!("{}{query}", if path.is_empty() { "/" } else { path }),
        body,
    )?;
    let failed = |error: &dyn std::fmt::Display| {
        ApiError::service_unavailable(format!("error trying to reach service: {error}"))
    };
    let connection = target.dial().await.map_err(|e| failed(&e))?;
    let mut response = send(connection, request).await.map_err(|e| failed(&e))?;
    strip_hop(response.headers_mut());
    for name in CORS {
        response.headers_mut().remove(name);
    }
    if let Some(place) = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok())
        && let Ok(value) = HeaderValue::from_str(&rewriter.rewrite(place))
    {
        response.headers_mut().insert(header::LOCATION, value);
        return Ok(reply(response));
    }
    let is_page = raw.method != "HEAD" && html::is_page(response.headers());
    let headers = if is_page { response.headers().clone() } else { HeaderMap::new() };
    let mut reply = reply(response);
    if is_page && let ReplyBody::Stream(page) = reply.body {
        reply.body = ReplyBody::Stream(html::rewritten(&headers, page, rewriter));
        // Its length is another one.
        reply.headers.retain(|(name, _)| *name != header::CONTENT_LENGTH);
    }
    Ok(reply)
}

/// An answer that is passed on as it comes.
pub(super) fn reply(response: Response<Incoming>) -> Reply {
    let (parts, body) = response.into_parts();
    let mut reply = Reply::bytes(parts.status.as_u16(), "", Bytes::new());
    for (name, value) in &parts.headers {
        if !HOP.contains(name) {
            reply.headers.push((name.clone(), value.clone()));
        }
    }
    // A body that breaks off ends: the client sees that it is shorter than was said.
    let frames = BodyStream::new(body.map_err(BodyError::from))
        .take_while(|frame| std::future::ready(frame.is_ok()))
        .filter_map(|frame| std::future::ready(frame.ok().and_then(|f| f.into_data().ok())));
    reply.body = ReplyBody::Stream(Box::pin(frames));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, duplex};

    #[test]
    fn headers_of_one_connection_and_of_identity_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-own"),
            ("x-own", "1"),
            ("authorization", "Bearer secret"),
            ("impersonate-user", "bob"),
            ("transfer-encoding", "chunked"),
            ("x-other", "2"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_identity(&mut headers);
        strip_hop(&mut headers);
        add_forwarded_for(&mut headers, Some(IpAddr::from([192, 0, 2, 1])));
        add_forwarded_for(&mut headers, Some(IpAddr::from([192, 0, 2, 2])));
        let left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-other", "x-forwarded-for"]);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.1, 192.0.2.2");
    }

    #[tokio::test]
    async fn the_end_of_one_side_ends_the_other() {
        for client_ends in [true, false] {
            let (client, near) = duplex(64);
            let (backend, far) = duplex(64);
            let piping = tokio::spawn(pipe(near, far));
            let (mut ends, mut stays) = if client_ends { (client, backend) } else { (backend, client) };
            ends.write_all(b"last words").await.expect("written");
            drop(ends);
            let mut heard = Vec::new();
            let read = stays.read_to_end(&mut heard);
            tokio::time::timeout(Duration::from_secs(5), read).await.expect("in time").expect("read");
            assert_eq!(heard, b"last words");
            tokio::time::timeout(Duration::from_secs(5), piping).await.expect("in time").expect("no panic");
        }
    }
}
