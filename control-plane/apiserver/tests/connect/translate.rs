//! Clients that speak WebSocket, and a node that speaks SPDY only.

use super::*;
use futures::{SinkExt, StreamExt};
use kelp_streams::spdy::{Connection, Headers};
use kelp_streams::upgrade;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const IDLE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn names_protocol(request: &Request<Incoming>) -> bool {
    is_spdy(request) && request.headers().contains_key(upgrade::STREAM_PROTOCOL)
}

fn is_spdy(request: &Request<Incoming>) -> bool {
    upgrade::wanted(request.headers()) == Some(upgrade::Kind::Spdy)
}

/// The node's side: `exec` shouts back what it is told and exits with 7; a forwarded port echoes.
pub(super) fn old_node(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let protocols = ["v4.channel.k8s.io", "v3.channel.k8s.io", "portforward.k8s.io"];
    let agreed = if is_spdy(&request) { upgrade::spdy(request.headers(), &protocols).ok() } else { None };
    let Some(agreed) = agreed else {
        return Response::builder().status(400).body(Full::from("SPDY only")).expect("valid");
    };
    let forwards = request.uri().path().starts_with("/portForward");
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(stream) = upgraded.await else { return };
        let connection = Connection::server(TokioIo::new(stream), IDLE);
        if forwards { echo(connection).await } else { shout(connection).await }
    });
    let mut response = Response::builder().status(101).body(Full::default()).expect("valid");
    response.headers_mut().extend(agreed.headers);
    response
}

async fn shout(mut connection: Connection) {
    let (mut error, mut stdin, mut stdout) = (None, None, None);
    for _ in 0..3 {
        let Some(stream) = connection.accept().await else { return };
        stream.accept().await;
        match stream.headers().get("streamType") {
            "error" => error = Some(stream),
            "stdin" => stdin = Some(stream),
            _ => stdout = Some(stream),
        }
    }
    let (Some(error), Some(mut stdin), Some(stdout)) = (error, stdin, stdout) else { return };
    while let Some(bytes) = stdin.read().await {
        stdout.writer().write(bytes.to_ascii_uppercase().into()).await;
    }
    stdout.writer().close().await;
    let status = json!({"status": "Failure", "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}});
    error.writer().write(status.to_string().into()).await;
    error.writer().close().await;
    connection.closed().cancelled().await;
}

async fn echo(mut connection: Connection) {
    let mut kept = Vec::new();
    while let Some(mut stream) = connection.accept().await {
        stream.accept().await;
        if stream.headers().get("streamType") == "error" {
            kept.push(stream);
            continue;
        }
        tokio::spawn(async move {
            while let Some(bytes) = stream.read().await {
                stream.writer().write(bytes).await;
            }
            stream.writer().close().await;
        });
    }
}

type Socket = WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

/// Asks for a WebSocket with this protocol; the head of the answer, and the socket.
async fn socket(world: &World, path: &str, protocol: &str) -> Result<(String, Socket)> {
    let mut stream = world.dial("system:masters").await?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await??);
    }
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    Ok((String::from_utf8(answer)?.to_ascii_lowercase(), socket))
}

/// The next message: its channel and content.
async fn next(socket: &mut Socket) -> Result<(u8, Bytes)> {
    let message = tokio::time::timeout(PATIENCE, socket.next()).await?.context("closed")??;
    let Message::Binary(bytes) = message else { anyhow::bail!("{message:?}") };
    let (channel, rest) = bytes.split_first().context("empty")?;
    Ok((*channel, Bytes::copy_from_slice(rest)))
}

#[tokio::test]
async fn a_command_on_an_older_node() -> Result<()> {
    let world = World::begin().await?;
    let path = format!("{PODS}/p/exec?container=old&command=sh&stdin=1&stdout=1");
    let (head, mut socket) = socket(&world, &path, "v5.channel.k8s.io, v4.channel.k8s.io").await?;
    ensure!(
        head.starts_with("http/1.1 101") && head.contains("sec-websocket-protocol: v5.channel.k8s.io"),
        "{head}"
    );
    ensure!(next(&mut socket).await? == (1, Bytes::new()), "the connection works");
    socket.send(Message::Binary(Bytes::from_static(b"\0hello"))).await?;
    ensure!(next(&mut socket).await? == (1, Bytes::from_static(b"HELLO")));
    // The client has nothing more to say.
    socket.send(Message::Binary(Bytes::from_static(&[255, 0]))).await?;
    let (channel, status) = next(&mut socket).await?;
    let status: Value = serde_json::from_slice(&status)?;
    ensure!(channel == 3 && status["details"]["causes"][0]["message"] == "7", "{channel} {status}");
    ensure!(
        status["message"]
            == "command terminated with non-zero exit code: command terminated with exit code 7",
        "{status}"
    );
    let end = tokio::time::timeout(PATIENCE, socket.next()).await?;
    ensure!(matches!(end, Some(Ok(Message::Close(_)))), "{end:?}");
    // Others than v5 are not translated: what the node says is passed on.
    let (head, _) = self::socket(&world, &path, "v4.channel.k8s.io").await?;
    ensure!(head.starts_with("http/1.1 400"), "{head}");
    world.shutdown.cancel();
    Ok(())
}

#[tokio::test]
async fn what_an_older_node_refuses_is_told_on_the_error_channel() -> Result<()> {
    let world = World::begin().await?;
    let path = format!("{PODS}/p/exec?container=refused&command=sh&stdout=1");
    let (head, mut socket) = socket(&world, &path, "v5.channel.k8s.io").await?;
    ensure!(head.starts_with("http/1.1 101"), "{head}");
    ensure!(next(&mut socket).await? == (1, Bytes::new()));
    let (channel, status) = next(&mut socket).await?;
    let status: Value = serde_json::from_slice(&status)?;
    ensure!(channel == 3 && status["code"] == 500, "{channel} {status}");
    ensure!(
        status["message"] == "Internal error occurred: unable to upgrade connection: not today",
        "{status}"
    );
    world.shutdown.cancel();
    Ok(())
}

#[tokio::test]
async fn a_forwarded_port_on_an_older_node() -> Result<()> {
    let world = World::begin().await?;
    let path = format!("{PODS}/p/portforward");
    let (head, socket) = socket(&world, &path, "SPDY/3.1+portforward.k8s.io").await?;
    ensure!(head.contains("sec-websocket-protocol: spdy/3.1+portforward.k8s.io"), "{head}");
    // SPDY within the socket.
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut reader, mut writer) = tokio::io::split(far);
    let (mut sink, mut source) = socket.split();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
            if sink.send(Message::Binary(bytes)).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            if writer.write_all(&message.into_data()).await.is_err() {
                break;
            }
        }
    });
    let mut connection = Connection::client(near, IDLE);
    let pair = |kind| Headers::of(&[("streamType", kind), ("port", "80"), ("requestID", "0")]);
    let error = connection.open(pair("error")).await;
    let mut data = connection.open(pair("data")).await;
    ensure!(error.is_accepted().await && data.is_accepted().await);
    data.writer().write(Bytes::from_static(b"ping")).await;
    ensure!(tokio::time::timeout(PATIENCE, data.read()).await? == Some(Bytes::from_static(b"ping")));
    data.writer().close().await;
    ensure!(tokio::time::timeout(PATIENCE, data.read()).await?.is_none());
    world.shutdown.cancel();
    Ok(())
}

#[tokio::test]
async fn a_node_that_speaks_websocket_gets_it() -> Result<()> {
    let world = World::begin().await?;
    let headers = [("content-type", "application/merge-patch+json")];
    let declared = json!({"status": {"declaredFeatures": ["ExtendWebSocketsToKubelet"]}});
    let (code, text) = world.send("PATCH", "/api/v1/nodes/n/status", &headers, &declared.to_string()).await?;
    ensure!(code == 200, "{code} {text}");
    let path = format!("{PODS}/p/exec?container=c&command=sh&stdout=1");
    let mut stream = world.dial("system:masters").await?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    while !line(&mut stream).await?.trim().is_empty() {}
    let told = tokio::time::timeout(PATIENCE, line(&mut stream)).await??;
    ensure!(told.starts_with("GET /exec/default/p/c?"), "{told}");
    world.shutdown.cancel();
    Ok(())
}
