//! WebSocket to SPDY, for nodes whose kubelet does not speak WebSocket: `exec` and `attach` are translated stream by stream,
//! `port-forward` is SPDY within WebSocket already and only unwrapped. As upstream's stream translator and tunnel.

use super::Raw;
use super::forward::{self, pipe};
use super::location::Stream as Location;
use super::options::flag;
use crate::error::ApiError;
use crate::handlers::{Context, Reply};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{self, HeaderValue};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use kelp_streams::channels::{self, Encoding, Outgoing};
use kelp_streams::spdy::{Connection, Headers, Stream};
use kelp_streams::upgrade::{self, Refused};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Time without traffic after which a connection is closed: the kubelet's default.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// How long a node may take to accept a stream.
const STREAM_CREATION: Duration = Duration::from_secs(30);
/// Longest error that is read from a node, bytes.
const MAX_ERROR: usize = 1 << 20;
/// What clients speak within WebSocket.
const V5: &str = "v5.channel.k8s.io";
/// What nodes may speak within SPDY, the newest first.
const PROTOCOLS: [&str; 5] =
    [V5, "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// SPDY within WebSocket: this before the protocol within SPDY.
const TUNNEL: &str = "SPDY/3.1+";

/// Channels of a WebSocket, by number.
mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
}

/// Whether the request is a WebSocket that is to be translated.
pub(super) fn is_remote_command(headers: &HeaderMap) -> bool {
    upgrade::wanted(headers) == Some(upgrade::Kind::WebSocket)
        && upgrade::websocket_protocols(headers).any(|protocol| protocol == V5)
}

/// Protocols within SPDY within WebSocket that a client speaks.
fn tunnelled(headers: &HeaderMap) -> Vec<&str> {
    upgrade::websocket_protocols(headers)
        .filter(|protocol| protocol.ends_with(".k8s.io"))
        .filter_map(|protocol| protocol.strip_prefix(TUNNEL))
        .collect()
}

/// Whether the request is a WebSocket with SPDY in it.
pub(super) fn is_tunnel(headers: &HeaderMap) -> bool {
    upgrade::wanted(headers) == Some(upgrade::Kind::WebSocket) && !tunnelled(headers).is_empty()
}

fn refusal(refused: Refused) -> Reply {
    let mut reply = Reply::text(refused.status.as_u16(), refused.text);
    reply.headers.extend(refused.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    reply
}

fn switching(headers: &HeaderMap) -> Reply {
    let mut reply = Reply::bytes(101, "", "");
    reply.headers.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    reply
}

/// The headers of a client's WebSocket request as those of a request for SPDY.
fn as_spdy(headers: &HeaderMap, protocols: &[&str]) -> HeaderMap {
    let mut out = headers.clone();
    for name in [
        header::SEC_WEBSOCKET_PROTOCOL,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_EXTENSIONS,
        upgrade::STREAM_PROTOCOL,
    ] {
        out.remove(name);
    }
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static(upgrade::SPDY));
    for protocol in protocols {
        if let Ok(value) = HeaderValue::from_str(protocol) {
            out.append(upgrade::STREAM_PROTOCOL, value);
        }
    }
    out
}

/// `port-forward`: what is inside the client's WebSocket is passed on as it is.
pub(super) async fn tunnel(context: &Context, mut raw: Raw, to: Location) -> Result<Reply, ApiError> {
    let mut agreed = match upgrade::websocket_handshake(&raw.headers) {
        Ok(headers) => headers,
        Err(refused) => return Ok(refusal(*refused)),
    };
    let headers = as_spdy(&raw.headers, &tunnelled(&raw.headers));
    let response = match forward::dial_upgraded(raw.peer, headers, &to).await? {
        Ok(response) => response,
        Err(other) => return Ok(forward::reply(other)),
    };
    if let Some(chosen) = response.headers().get(&upgrade::STREAM_PROTOCOL).and_then(|v| v.to_str().ok())
        && let Ok(value) = HeaderValue::try_from(format!("{TUNNEL}{}", chosen.trim()))
    {
        agreed.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    let client = raw.take_upgrade()?;
    let (shutdown, long) = (context.core.shutdown.clone(), context.core.metrics.long(&context.info));
    tokio::spawn(async move {
        let _long = long;
        let both = futures::future::try_join(client, hyper::upgrade::on(response)).await;
        let Ok((client, node)) = both else { return };
        let client = channels::tunnel(TokioIo::new(client)).await;
        shutdown.run_until_cancelled(pipe(client, TokioIo::new(node))).await;
    });
    Ok(switching(&agreed))
}

/// Where a client is, and what is asked of the node for it.
type Origin = (Option<IpAddr>, HeaderMap);

/// The streams that a request asks for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// `exec` and `attach`. The client's connection is upgraded first; what goes wrong with the node's is told on it.
pub(super) async fn remote_command(context: &Context, mut raw: Raw, to: Location) -> Result<Reply, ApiError> {
    let agreed = match upgrade::websocket(&raw.headers, &[V5]) {
        Ok(agreed) => agreed,
        Err(refused) => return Ok(refusal(*refused)),
    };
    let on = |name| flag(&context.query, name);
    let wanted = Wanted { stdin: on("stdin"), stdout: on("stdout"), stderr: on("stderr"), tty: on("tty") };
    let client = raw.take_upgrade()?;
    let from = (raw.peer, as_spdy(&raw.headers, &PROTOCOLS));
    let (shutdown, long) = (context.core.shutdown.clone(), context.core.metrics.long(&context.info));
    tokio::spawn(async move {
        let _long = long;
        let Ok(client) = client.await else { return };
        shutdown.run_until_cancelled(translate(TokioIo::new(client), from, to, wanted)).await;
    });
    Ok(switching(&agreed.headers))
}

async fn translate<T>(client: T, from: Origin, to: Location, wanted: Wanted)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let listen = [channel::STDIN, channel::RESIZE];
    let opened = channels::serve(client, Encoding::Binary, &listen, IDLE).await;
    let (outgoing, closed) = (opened.outgoing, opened.closed);
    let mut incoming = opened.incoming.into_iter();
    let (stdin, resize) = (incoming.next(), incoming.next());
    // An empty message tells the client that the connection works.
    let first = match wanted {
        Wanted { stdout: true, .. } => channel::STDOUT,
        Wanted { stderr: true, .. } => channel::STDERR,
        _ => channel::ERROR,
    };
    let _ = outgoing.send((first, Bytes::new())).await;
    let work = async {
        let (connection, protocol) = match dial(from, &to).await {
            Ok(connected) => connected,
            Err(status) => return status,
        };
        let outcome = run(connection, &protocol, wanted, (stdin, resize), &outgoing).await;
        outcome.unwrap_or_else(internal)
    };
    tokio::select! {
        () = closed.cancelled() => {}
        status = work => {
            let _ = outgoing.send((channel::ERROR, Bytes::from(status.to_string()))).await;
        }
    }
}

/// A Status without its kind, as the translator writes it.
fn internal(why: String) -> Value {
    json!({"metadata": {}, "status": "Failure", "message": format!("Internal error occurred: {why}"),
        "reason": "InternalError", "details": {"causes": [{"message": why}]}, "code": 500})
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

fn exited(code: u8) -> Value {
    let message =
        format!("command terminated with non-zero exit code: command terminated with exit code {code}");
    json!({"metadata": {}, "status": "Failure", "message": message, "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
}

/// Connects to the node over SPDY; the connection, and the protocol within it.
async fn dial((peer, headers): Origin, to: &Location) -> Result<(Connection, String), Value> {
    let response = match forward::dial_upgraded(peer, headers, to).await {
        Err(error) => {
            let url = format!("https://{}{}", to.target.authority(), to.address);
            let why = error.message().trim_start_matches("error dialing backend: ").to_owned();
            return Err(internal(format!("error sending request: Post {url:?}: {why}")));
        }
        Ok(Ok(response)) => response,
        Ok(Err(other)) => {
            let body = Limited::new(other.into_body(), MAX_ERROR).collect().await;
            let text = body.map(|body| body.to_bytes()).unwrap_or_default();
            return Err(match serde_json::from_slice::<Value>(&text) {
                Ok(status) if status["kind"] == "Status" => status,
                _ => {
                    let text = String::from_utf8_lossy(&text);
                    internal(format!("unable to upgrade connection: {}", text.trim()))
                }
            });
        }
    };
    let protocol = response.headers().get(&upgrade::STREAM_PROTOCOL).and_then(|v| v.to_str().ok());
    let protocol = protocol.unwrap_or_default().trim().to_owned();
    let node = hyper::upgrade::on(response).await.map_err(|error| internal(error.to_string()))?;
    Ok((Connection::client(TokioIo::new(node), IDLE), protocol))
}

async fn open(connection: &mut Connection, kind: &str) -> Result<Stream, String> {
    let stream = connection.open(Headers::of(&[("streamType", kind)])).await;
    match tokio::time::timeout(STREAM_CREATION, stream.is_accepted()).await {
        Ok(true) => Ok(stream),
        Ok(false) => Err(format!("the node refused the {kind} stream")),
        Err(_) => Err("timed out waiting for a stream to be accepted".to_owned()),
    }
}

/// Copies between the client's channels and the node's streams until the command has ended; its outcome.
async fn run(
    mut connection: Connection,
    protocol: &str,
    wanted: Wanted,
    (stdin, resize): (Option<mpsc::Receiver<Bytes>>, Option<mpsc::Receiver<Bytes>>),
    outgoing: &Outgoing,
) -> Result<Value, String> {
    let mut error = open(&mut connection, "error").await?;
    let mut inputs = Vec::new();
    let mut outputs = Vec::new();
    if wanted.stdin {
        inputs.push((open(&mut connection, "stdin").await?, stdin));
    }
    if wanted.stdout {
        outputs.push((open(&mut connection, "stdout").await?, channel::STDOUT));
    }
    if wanted.stderr && !wanted.tty {
        outputs.push((open(&mut connection, "stderr").await?, channel::STDERR));
    }
    // Resizing came with v3.
    if wanted.tty && !matches!(protocol, "" | "channel.k8s.io" | "v2.channel.k8s.io") {
        inputs.push((open(&mut connection, "resize").await?, resize));
    }
    let feed = futures::future::join_all(inputs.into_iter().map(|(stream, source)| async move {
        let writer = stream.writer();
        if let Some(mut source) = source {
            while let Some(bytes) = source.recv().await {
                if !writer.write(bytes).await {
                    break;
                }
            }
        }
        writer.close().await;
        // The stream is kept, so that what the node still says about it is understood.
        stream
    }));
    let drain = async {
        futures::future::join_all(outputs.into_iter().map(|(mut stream, number)| async move {
            while let Some(bytes) = stream.read().await {
                if outgoing.send((number, bytes)).await.is_err() {
                    break;
                }
            }
        }))
        .await;
        let mut said = BytesMut::new();
        while let Some(bytes) = error.read().await {
            if said.len() + bytes.len() > MAX_ERROR {
                return Err("the error stream is too long".to_owned());
            }
            said.extend_from_slice(&bytes);
        }
        outcome(protocol, &said, error.reset().is_cancelled())
    };
    tokio::pin!(feed, drain);
    // The command may end while the client could still send.
    tokio::select! {
        outcome = &mut drain => outcome,
        _kept = &mut feed => drain.await,
    }
}

/// What the node said on the error stream, as a Status; `broken` when the connection ended.
fn outcome(protocol: &str, said: &[u8], broken: bool) -> Result<Value, String> {
    let with_status = matches!(protocol, V5 | "v4.channel.k8s.io");
    if said.is_empty() {
        return if broken && with_status {
            Err("error reading from error stream: the connection was closed".to_owned())
        } else {
            Ok(success())
        };
    }
    let text = String::from_utf8_lossy(said);
    if !with_status {
        return Err(format!("error executing remote command: {text}"));
    }
    let wrong = |why: String| Err(format!("error stream protocol error: {why}"));
    let status: Value = match serde_json::from_slice(said) {
        Ok(status) => status,
        Err(error) => return wrong(format!("{error} in {text:?}")),
    };
    match (status["status"].as_str(), status["reason"].as_str()) {
        (Some("Success"), _) => Ok(success()),
        (Some("Failure"), Some("NonZeroExitCode")) => {
            let Some(causes) = status["details"]["causes"].as_array() else {
                return wrong("details must be set".to_owned());
            };
            let Some(cause) = causes.iter().find(|cause| cause["reason"] == "ExitCode") else {
                return wrong("no ExitCode cause given".to_owned());
            };
            let code = cause["message"].as_str().unwrap_or_default();
            match code.parse() {
                Ok(code) => Ok(exited(code)),
                Err(_) => wrong(format!("invalid exit code value {code:?}")),
            }
        }
        (Some("Failure"), _) => Err(status["message"].as_str().unwrap_or_default().to_owned()),
        _ => wrong("unknown error".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_translated() {
        let headers = |protocols: &'static str| {
            let mut out = HeaderMap::new();
            out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            out.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
            out
        };
        assert!(is_remote_command(&headers("v5.channel.k8s.io, v4.channel.k8s.io")));
        assert!(!is_remote_command(&headers("v4.channel.k8s.io")));
        assert!(is_tunnel(&headers("SPDY/3.1+portforward.k8s.io")));
        assert!(!is_tunnel(&headers("v4.channel.k8s.io, SPDY/3.1+other")));
        let spdy = as_spdy(&headers("SPDY/3.1+portforward.k8s.io"), &["portforward.k8s.io"]);
        assert_eq!(spdy[header::UPGRADE], "SPDY/3.1");
        assert_eq!(spdy[upgrade::STREAM_PROTOCOL], "portforward.k8s.io");
        assert!(!spdy.contains_key(header::SEC_WEBSOCKET_PROTOCOL));
    }

    #[test]
    fn outcomes_of_every_protocol() {
        let v4 = "v4.channel.k8s.io";
        assert_eq!(outcome(v4, br#"{"status":"Success"}"#, true), Ok(success()));
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        assert_eq!(outcome(v4, failed, false), Ok(exited(3)));
        assert_eq!(outcome(v4, br#"{"status":"Failure","message":"why"}"#, false), Err("why".into()));
        assert!(outcome(v4, b"no json", false).is_err_and(|e| e.starts_with("error stream protocol error")));
        assert!(outcome(v4, b"", true).is_err());
        assert_eq!(outcome("v2.channel.k8s.io", b"", true), Ok(success()));
        assert_eq!(outcome("", b"bad", false), Err("error executing remote command: bad".into()));
    }
}
