//! `port-forward`: connections into a pod's network namespace, each over a pair of SPDY streams: `data`, and `error`
//! for what goes wrong (upstream's `portforward.k8s.io`). SPDY comes by itself or within a WebSocket.

use super::answer::{Answer, text};
use super::remote_streams::IDLE;
use super::spdy::{Connection, Stream};
use super::upgrade::{self, Kind, Refused};
use super::{Server, channels};
use crate::runtime::Runtime;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use nix::sched::{CloneFlags, setns};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
/// How long the second stream of a pair may take.
const STREAM_CREATION: Duration = Duration::from_secs(30);
/// How long connecting to a process on this host may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes read at a time.
const CHUNK: usize = 32 << 10;

/// Where connections go.
#[derive(Debug, Clone)]
struct Destination {
    /// Names the pod in messages.
    pod: String,
    /// `None` on the host's network.
    netns: Option<PathBuf>,
}

impl<R: Runtime + Clone> Server<R> {
    /// `/portForward/<namespace>/<pod>[/<uid>]`.
    pub(super) async fn port_forward(
        &self,
        mut request: http::Request<Incoming>,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Answer {
        let Some(pod) = self.pod(namespace, name) else {
            return text(StatusCode::NOT_FOUND, "pod does not exist");
        };
        let own = pod.metadata.uid.clone().unwrap_or_default();
        if uid.is_some_and(|uid| uid != own) {
            return text(StatusCode::NOT_FOUND, "pod not found");
        }
        let sandbox = self.runtime.status(&own).await.ok().flatten();
        let Some(sandbox) = sandbox.filter(|s| s.ready) else {
            let message = format!("failed to find sandbox for pod {name}_{namespace}({own})");
            return text(StatusCode::INTERNAL_SERVER_ERROR, message);
        };
        let destination = Destination { pod: own, netns: sandbox.netns };
        let upgrade = hyper::upgrade::on(&mut request);
        let agreed = match upgrade::wanted(request.headers()) {
            Some(Kind::Spdy) => upgrade::spdy(request.headers(), &[PROTOCOL]).map(|a| (a, false)),
            Some(Kind::WebSocket) => upgrade::websocket(request.headers(), &[TUNNELLED]).map(|a| (a, true)),
            None => {
                Err(Refused(Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, "Upgrade request required"))))
            }
        };
        let (agreed, tunnelled) = match agreed {
            Ok(agreed) => agreed,
            Err(Refused(answer)) => return *answer,
        };
        if tunnelled {
            crate::metrics::WEBSOCKETS.count(&["portforward"]);
        }
        tokio::spawn(async move {
            let io = match upgrade.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => {
                    tracing::debug!(%error, "a connection was not upgraded");
                    return;
                }
            };
            let connection = if tunnelled {
                Connection::server(channels::tunnel(io).await, IDLE)
            } else {
                Connection::server(io, IDLE)
            };
            serve(connection, destination).await;
        });
        agreed.answer
    }
}

/// One half of a pair that waits for the other.
struct Half {
    error: Option<Stream>,
    data: Option<Stream>,
}

/// Port and kind of a stream.
///
/// # Errors
/// Its headers are not those of a forwarded port.
fn described(stream: &Stream) -> Result<(u16, bool), String> {
    let headers = stream.headers();
    let port = headers.get("port");
    if port.is_empty() {
        return Err("\"port\" header is required".into());
    }
    let number: u16 = port.parse().map_err(|e| format!("unable to parse {port:?} as a port: {e}"))?;
    if number == 0 {
        return Err(format!("port {port:?} must be > 0"));
    }
    match headers.get("streamType") {
        "data" => Ok((number, true)),
        "error" => Ok((number, false)),
        "" => Err("\"streamType\" header is required".into()),
        other => Err(format!("invalid stream type {other:?}")),
    }
}

/// Clients that give no id open the error stream first and the data stream next (upstream's rule).
fn pair_of(stream: &Stream, is_data: bool) -> String {
    let given = stream.headers().get("requestID");
    if !given.is_empty() {
        return given.to_owned();
    }
    let id = if is_data { stream.id().saturating_sub(2) } else { stream.id() };
    id.to_string()
}

/// Reads: the client's streams. Writes: connections into the pod.
async fn serve(mut connection: Connection, destination: Destination) {
    let destination = Arc::new(destination);
    let mut waiting: HashMap<String, Half> = HashMap::new();
    let (expire, mut expired) = mpsc::unbounded_channel::<String>();
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => match stream {
                Some(stream) => stream,
                None => return,
            },
            Some(id) = expired.recv() => {
                if let Some(half) = waiting.remove(&id)
                    && let Some(error) = half.error
                {
                    let message = format!("(request={id}) timed out waiting for streams");
                    error.writer().write(Bytes::from(message)).await;
                    error.writer().close().await;
                }
                continue;
            }
        };
        let is_data = match described(&stream) {
            Ok((_, is_data)) => is_data,
            Err(error) => {
                tracing::debug!(%error, "a stream is refused");
                stream.refuse().await;
                continue;
            }
        };
        stream.accept().await;
        let id = pair_of(&stream, is_data);
        let fresh = !waiting.contains_key(&id);
        let half = waiting.entry(id.clone()).or_insert(Half { error: None, data: None });
        let (place, kind) = if is_data { (&mut half.data, "data") } else { (&mut half.error, "error") };
        if place.is_some() {
            let message = format!("error processing stream for request {id}: {kind} stream already assigned");
            if let Some(error) = &half.error {
                error.writer().write(Bytes::from(message)).await;
            }
            continue;
        }
        *place = Some(stream);
        if half.error.is_some() && half.data.is_some() {
            if let Some(Half { error: Some(error), data: Some(data) }) = waiting.remove(&id) {
                tokio::spawn(forward(destination.clone(), data, error));
            }
        } else if fresh {
            let expire = expire.clone();
            tokio::spawn(async move {
                tokio::time::sleep(STREAM_CREATION).await;
                let _ = expire.send(id);
            });
        }
    }
}

/// One connection.
async fn forward(destination: Arc<Destination>, mut data: Stream, error: Stream) {
    let port = described(&data).map_or(0, |(port, _)| port);
    let result = match connect(&destination, port).await {
        Ok(socket) => copy(socket, &mut data).await.map_err(|e| (is_broken(&e), e.to_string())),
        Err(message) => Err((false, message)),
    };
    let (to_client, to_error) = (data.writer(), error.writer());
    match result {
        Ok(()) => {}
        Err((true, message)) => {
            tracing::debug!(port, %message, "a forwarded connection broke");
            to_client.reset().await;
            to_error.reset().await;
            return;
        }
        Err((false, message)) => {
            let whole = format!("error forwarding port {port} to pod {}, uid : {message}", destination.pod);
            to_error.write(Bytes::from(whole)).await;
        }
    }
    to_client.close().await;
    to_error.close().await;
}

fn is_broken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Copies both ways until both directions have ended, or the client has reset the stream.
async fn copy(socket: TcpStream, data: &mut Stream) -> io::Result<()> {
    let (mut reader, mut writer) = socket.into_split();
    let to_client = data.writer();
    let reset = data.reset().clone();
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            if reader.read_buf(&mut buffer).await? == 0 {
                to_client.close().await;
                return Ok(());
            }
            if !to_client.write(buffer.split().freeze()).await {
                return Ok(());
            }
        }
    };
    let inward = async {
        while let Some(bytes) = data.read().await {
            writer.write_all(&bytes).await?;
        }
        writer.shutdown().await
    };
    tokio::select! {
        () = reset.cancelled() => Ok(()),
        both = async { tokio::try_join!(outward, inward) } => both.map(drop),
    }
}

/// Connects to a port on the pod's loopback device.
async fn connect(destination: &Destination, port: u16) -> Result<TcpStream, String> {
    let place = destination.netns.as_ref().map_or("host".to_owned(), |p| p.display().to_string());
    let failed =
        |message: String| format!("failed to execute portforward in network namespace {place:?}: {message}");
    let netns = destination.netns.clone();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own enters the namespace and ends with it.
    let spawned = std::thread::Builder::new().name("port-forward".into()).spawn(move || {
        let _ = sender.send(connect_in(netns, port));
    });
    spawned.map_err(|e| failed(e.to_string()))?;
    let connected = receiver.await.map_err(|e| failed(e.to_string()))?;
    match connected {
        Ok(socket) => TcpStream::from_std(socket).map_err(|e| failed(e.to_string())),
        Err(ConnectError::Namespace(error)) => Err(failed(error.to_string())),
        Err(ConnectError::Refused { v4, v6 }) => Err(failed(format!(
            "failed to connect to localhost:{port} inside namespace {:?}, IPv4: {v4} IPv6 {v6} ",
            destination.pod
        ))),
    }
}

enum ConnectError {
    Namespace(io::Error),
    Refused { v4: String, v6: String },
}

fn connect_in(netns: Option<PathBuf>, port: u16) -> Result<std::net::TcpStream, ConnectError> {
    if let Some(path) = netns {
        let file = File::open(path).map_err(ConnectError::Namespace)?;
        setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| ConnectError::Namespace(e.into()))?;
    }
    let attempt = |address: SocketAddr| {
        let family = if address.is_ipv4() { "tcp4" } else { "tcp6" };
        std::net::TcpStream::connect_timeout(&address, CONNECT)
            .map_err(|e| format!("dial {family} {address}: {}", reason(&e)))
    };
    let v4 = match attempt((Ipv4Addr::LOCALHOST, port).into()) {
        Ok(socket) => return ready(socket),
        Err(message) => message,
    };
    match attempt((Ipv6Addr::LOCALHOST, port).into()) {
        Ok(socket) => ready(socket),
        Err(v6) => Err(ConnectError::Refused { v4, v6 }),
    }
}

fn ready(socket: std::net::TcpStream) -> Result<std::net::TcpStream, ConnectError> {
    socket.set_nonblocking(true).map_err(ConnectError::Namespace)?;
    Ok(socket)
}

/// Go's words.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        io::ErrorKind::TimedOut => "i/o timeout".into(),
        io::ErrorKind::AddrNotAvailable => "connect: cannot assign requested address".into(),
        _ => format!("connect: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::spdy::Headers;

    fn host() -> Destination {
        Destination { pod: "uid-1".into(), netns: None }
    }

    fn pair() -> (Connection, Connection) {
        let (a, b) = tokio::io::duplex(16 << 10);
        (Connection::client(a, IDLE), Connection::server(b, IDLE))
    }

    /// An echo server that closes after the client has.
    async fn echo() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = socket.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        port
    }

    async fn text(stream: &mut Stream) -> String {
        let mut all = Vec::new();
        while let Some(bytes) = stream.read().await {
            all.extend_from_slice(&bytes);
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn several_connections_at_once() {
        let port = echo().await.to_string();
        let (mut client, server) = pair();
        tokio::spawn(serve(server, host()));
        let mut streams = Vec::new();
        for id in ["0", "1", "2"] {
            let error = client
                .open(Headers::of(&[("streamType", "error"), ("port", &port), ("requestID", id)]))
                .await;
            let data =
                client.open(Headers::of(&[("streamType", "data"), ("port", &port), ("requestID", id)])).await;
            data.writer().write(Bytes::from(format!("hello {id}"))).await;
            streams.push((id, error, data));
        }
        for (id, mut error, mut data) in streams {
            data.writer().close().await;
            assert_eq!(text(&mut data).await, format!("hello {id}"));
            assert_eq!(text(&mut error).await, "");
        }
    }

    #[tokio::test]
    async fn old_clients_give_no_request_id() {
        let port = echo().await.to_string();
        let (mut client, server) = pair();
        tokio::spawn(serve(server, host()));
        let _error = client.open(Headers::of(&[("streamType", "error"), ("port", &port)])).await;
        let mut data = client.open(Headers::of(&[("streamType", "data"), ("port", &port)])).await;
        data.writer().write(Bytes::from_static(b"x")).await;
        data.writer().close().await;
        assert_eq!(text(&mut data).await, "x");
    }

    #[tokio::test]
    async fn a_closed_port_is_told_on_the_error_stream() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        drop(listener);
        let (mut client, server) = pair();
        tokio::spawn(serve(server, host()));
        let mut error =
            client.open(Headers::of(&[("streamType", "error"), ("port", &port), ("requestID", "0")])).await;
        let mut data =
            client.open(Headers::of(&[("streamType", "data"), ("port", &port), ("requestID", "0")])).await;
        let message = text(&mut error).await;
        assert!(
            message
                .starts_with(&format!("error forwarding port {port} to pod uid-1, uid : failed to execute"))
                && message
                    .contains(&format!("IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused")),
            "{message}"
        );
        assert_eq!(text(&mut data).await, "");
    }

    #[tokio::test]
    async fn bad_streams_are_reset_and_doubles_reported() {
        let (mut client, server) = pair();
        tokio::spawn(serve(server, host()));
        let bad: [&[(&str, &str)]; 5] = [
            &[("streamType", "data")],
            &[("streamType", "data"), ("port", "70000")],
            &[("streamType", "data"), ("port", "0")],
            &[("port", "80")],
            &[("streamType", "other"), ("port", "80")],
        ];
        for headers in bad {
            client.open(Headers::of(headers)).await.reset().cancelled().await;
        }
        let mut first =
            client.open(Headers::of(&[("streamType", "error"), ("port", "80"), ("requestID", "7")])).await;
        let _second =
            client.open(Headers::of(&[("streamType", "error"), ("port", "80"), ("requestID", "7")])).await;
        assert_eq!(
            first.read().await.unwrap(),
            "error processing stream for request 7: error stream already assigned"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_pair_expires() {
        let (mut client, server) = pair();
        tokio::spawn(serve(server, host()));
        let mut error =
            client.open(Headers::of(&[("streamType", "error"), ("port", "80"), ("requestID", "7")])).await;
        assert!(text(&mut error).await.contains("timed out waiting for streams"));
    }
}
