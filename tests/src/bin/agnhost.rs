//! What the recordings use of upstream's test image of this name: `netexec`, `liveness`, `grpc-health-checking`, and
//! `absent-registry`, a registry that has nothing. And `names ADDRESS:PORT IP [SUFFIX]`, a DNS server over UDP that gives
//! all names below a suffix one IPv4 address, and knows no others.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn parameter(query: &str, key: &str) -> String {
    let value =
        query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default();
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped =
            tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn netexec(request: Request<Incoming>) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    match request.uri().path() {
        "/" => text(StatusCode::OK, format!("NOW: {:?}", std::time::SystemTime::now())),
        "/healthz" => text(StatusCode::OK, ""),
        "/hostname" | "/hostName" => {
            let name = nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned());
            text(StatusCode::OK, name.unwrap_or_default())
        }
        "/redirect" => {
            let location = parameter(query, "location");
            let code = parameter(query, "code").parse().ok().and_then(|c| StatusCode::from_u16(c).ok());
            // As Go's http.Redirect answers.
            let code = code.unwrap_or(StatusCode::FOUND);
            let body =
                format!("<a href=\"{location}\">{}</a>.\n\n", code.canonical_reason().unwrap_or_default());
            let mut response = text(code, body);
            if let Ok(value) = location.parse() {
                response.headers_mut().insert(header::LOCATION, value);
            }
            response
        }
        "/shell" => {
            let run =
                tokio::process::Command::new("/bin/sh").arg("-c").arg(parameter(query, "cmd")).output().await;
            let output = run.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
            text(StatusCode::OK, serde_json::json!({"output": output}).to_string())
        }
        // As upstream's: everything else is the front page.
        _ => text(StatusCode::OK, format!("NOW: {:?}", std::time::SystemTime::now())),
    }
}

/// A gRPC message: not compressed, four bytes of length.
fn grpc(message: &[u8]) -> Response<Body> {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
    frame.extend(message);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", header::HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(Bytes::from(frame))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
    response
}

async fn serve(port: u16, what: &'static str) -> Result<()> {
    // A little later than a probe comes at first, as upstream's larger program.
    tokio::time::sleep(Duration::from_millis(250)).await;
    let started = Instant::now();
    let listener = match TcpListener::bind(("::", port)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("listen on {port}"))?,
    };
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| async move {
                let response = match what {
                    "netexec" => netexec(request).await,
                    "liveness" => match started.elapsed() {
                        age if age > Duration::from_secs(10) => {
                            text(StatusCode::INTERNAL_SERVER_ERROR, format!("error: {}", age.as_secs_f64()))
                        }
                        _ => text(StatusCode::OK, "ok"),
                    },
                    // HealthCheckResponse { status: SERVING }
                    "grpc-health-checking" => grpc(&[8, 1]),
                    _ => text(
                        StatusCode::NOT_FOUND,
                        r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
                    ),
                };
                Ok::<_, Infallible>(response)
            });
            let _ =
                auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn names(arguments: &[String]) -> Result<()> {
    let [listen, address, suffix @ ..] = arguments else { bail!("names ADDRESS:PORT IP [SUFFIX]") };
    let address: std::net::Ipv4Addr = address.parse()?;
    let suffix = suffix.first().map(String::as_str).unwrap_or_default();
    let socket = tokio::net::UdpSocket::bind(listen).await?;
    let mut bytes = vec![0; 4096];
    loop {
        let (length, client) = socket.recv_from(&mut bytes).await?;
        let answer = bytes.get(..length).and_then(|question| answered(question, address, suffix));
        if let Some(answer) = answer {
            socket.send_to(&answer, client).await?;
        }
    }
}

/// The answer to the first question of a DNS message (RFC 1035, section 4.1).
fn answered(message: &[u8], address: std::net::Ipv4Addr, suffix: &str) -> Option<Vec<u8>> {
    let (header, rest) = message.split_at_checked(12)?;
    let mut name = String::new();
    let mut at = 0;
    loop {
        let length = usize::from(*rest.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = rest.get(at..at + length)?;
        name = format!("{name}{}.", String::from_utf8_lossy(label).to_lowercase());
        at += length;
    }
    let (question, kind) = (rest.get(..at + 4)?, rest.get(at..at + 2)?);
    let known = name.ends_with(suffix);
    let has_record = known && kind == [0, 1];
    let code = if known { 0 } else { 3 };
    let mut answer = header.get(..2)?.to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(has_record), 0, 0, 0, 0]);
    answer.extend(question);
    if has_record {
        // The name is the question's; A, IN, 60 s, 4 bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let option = |key: &str, default: u16| {
        arguments.iter().find_map(|a| a.strip_prefix(key)?.parse().ok()).unwrap_or(default)
    };
    let serving = async {
        match arguments.first().map(String::as_str) {
            Some("netexec") => serve(option("--http-port=", 8080), "netexec").await,
            Some("liveness") => serve(8080, "liveness").await,
            Some("grpc-health-checking") => serve(option("--port=", 5000), "grpc-health-checking").await,
            Some("absent-registry") => {
                serve(arguments.get(1).and_then(|p| p.parse().ok()).unwrap_or(5001), "registry").await
            }
            Some("names") => names(arguments.get(1..).unwrap_or_default()).await,
            Some("pause") | None => std::future::pending().await,
            Some(other) => bail!("unknown command {other:?}"),
        }
    };
    tokio::select! {
        result = serving => result,
        _ = terminate.recv() => match arguments.first().map(String::as_str) {
            // It handles no signal; this is how upstream's ends.
            Some("liveness") => std::process::exit(2),
            _ => Ok(()),
        },
    }
}
