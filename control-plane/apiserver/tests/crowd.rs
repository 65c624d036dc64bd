//! Ten thousand watchers, and among them clients that send too much, too deep, too broken, too little, or never read:
//! each gets the right answer, the others notice nothing, and memory stays bounded. Alone in its process, whose memory it
//! looks at.

mod authority;
#[path = "../examples/bench/client.rs"]
#[allow(dead_code, clippy::allow_attributes, reason = "the benchmark uses all of it")]
mod client;

use anyhow::{Context, Result, ensure};
use authority::Authority;
use bytes::Bytes;
use client::{Target, request};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use kelp_apiserver::{ApiServer, Config, TlsFiles};
use kelp_store::{EmbeddedStore, StoreOptions};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const WATCHERS: usize = 10_000;
/// Watches on one connection.
const STREAMS: usize = 200;
/// Longest wait for anything; the test measures no time.
const PATIENCE: Duration = Duration::from_secs(120);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Resident memory of this process, server and clients, in bytes.
fn memory() -> Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split(' ').nth(1).context("statm")?.parse()?;
    Ok(pages * 4096)
}

async fn server() -> Result<(Target, CancellationToken, tempfile::TempDir)> {
    let directory = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let (certificate, key) = authority.sign("kube-apiserver", "")?;
    let tls = TlsFiles {
        certificate: certificate.into_bytes(),
        key: key.into_bytes(),
        client_ca: authority.pem.clone().into_bytes(),
    };
    let mut config = Config::new(IpAddr::V4(Ipv4Addr::LOCALHOST), tls);
    config.service_cidrs.truncate(1);
    let store = EmbeddedStore::open(directory.path(), StoreOptions::default())?;
    let shutdown = CancellationToken::new();
    let server = ApiServer::new(config, Arc::new(store), shutdown.clone())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { server.run_on(listener).await });
    let (certificate, key) = authority.sign("admin", "system:masters")?;
    let target = Target::new(address, authority.pem.as_bytes(), certificate.as_bytes(), key.as_bytes())?;
    Ok((target, shutdown, directory))
}

async fn create(target: &Target, name: &str, value: &str) -> Result<()> {
    let object = json!({"metadata": {"name": name}, "data": {"k": value}});
    let mut connection = target.open().await?;
    tokio::time::timeout(
        PATIENCE,
        connection.call("POST", MAPS, "application/json", object.to_string().into()),
    )
    .await
    .with_context(|| format!("{name} was not created"))??;
    Ok(())
}

/// The watches that wait for something to happen.
async fn watchers(target: &Target) -> Result<Vec<Incoming>> {
    let mut held = Vec::new();
    let mut shared = None;
    for number in 0..WATCHERS {
        if number % STREAMS == 0 {
            shared = Some(target.open_shared().await?);
        }
        let sender = shared.as_mut().context("a connection")?;
        sender.ready().await?;
        let accept = if number % 2 == 0 { "application/json" } else { "application/vnd.kubernetes.protobuf" };
        let path = format!(
            "{MAPS}?watch=1&resourceVersion=1&timeoutSeconds=3000&fieldSelector=metadata.name%3Dthe-one"
        );
        let response = sender.send_request(request("GET", &path, accept, Bytes::new())?).await?;
        ensure!(response.status() == 200, "{}", response.status());
        held.push(response.into_body());
    }
    Ok(held)
}

/// Status and body of a request that is expected to fail.
async fn refused(target: &Target, kind: &str, body: Vec<u8>) -> Result<(u16, String)> {
    let mut sender = target.open_shared().await?;
    sender.ready().await?;
    let mut request = request("POST", MAPS, "application/json", body.into())?;
    request.headers_mut().insert("content-type", kind.parse()?);
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await??;
    let status = response.status().as_u16();
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await?;
    let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    Ok((status, text.unwrap_or_default()))
}

/// Bodies that are too large, nested too deep, or not what they say they are.
async fn bad_bodies(target: &Target) -> Result<()> {
    for _ in 0..3 {
        let huge = vec![b' '; 100_000_000];
        // The answer comes before all is sent; a client may see the end of the connection instead.
        if let Ok((status, text)) = refused(target, "application/json", huge).await {
            ensure!(status == 413, "{status} {text}");
        }
    }
    let deep = |open: &str, close: &str| {
        let n = 200_000;
        format!("{{\"metadata\":{{\"name\":\"deep\"}},\"data\":{}{}}}", open.repeat(n), close.repeat(n))
            .into_bytes()
    };
    for body in [deep("[", "]"), deep("{\"a\":", "}"), deep("[", "")] {
        let (status, text) = refused(target, "application/json", body.clone()).await?;
        ensure!(status == 400, "{status} {text}");
        let (status, text) = refused(target, "application/yaml", body).await?;
        ensure!(status == 400, "{status} {text}");
    }
    let mut broken: Vec<Vec<u8>> =
        vec![b"k8s\0".to_vec(), b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()];
    // Lengths that reach beyond the end, by a little and by all that a number can say.
    broken.push([b"k8s\0\x0a\x7f".as_slice(), b"v1"].concat());
    broken.push([b"k8s\0\x0a\xff\xff\xff\xff\x0f".as_slice(), b"v1"].concat());
    // Messages within messages: groups, and an object that is nothing but openings.
    broken.push([b"k8s\0".as_slice(), &[0x0b; 100_000]].concat());
    let kind = b"\x0a\x0f\x0a\x02v1\x12\x09ConfigMap";
    broken.push([b"k8s\0".as_slice(), kind, b"\x12\x04\x0a\xff\xff\x03"].concat());
    for body in broken {
        let (status, text) = refused(target, "application/vnd.kubernetes.protobuf", body).await?;
        // No content is an object without a name.
        ensure!(matches!(status, 400 | 422), "{status} {text}");
    }
    Ok(())
}

/// Connections that stop in the middle: of the handshake, of a request, and with nothing more to send.
async fn half_closed(target: &Target) -> Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(target.address).await?;
        match number % 3 {
            0 => {}
            1 => stream.write_all(b"\x16\x03\x01\x02\x00").await?,
            _ => {
                stream.write_all(b"GET / HTTP/1.1\r\nhost:").await?;
                stream.shutdown().await?;
            }
        }
        held.push(stream);
    }
    Ok(held)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_served_in_bounded_memory() -> Result<()> {
    let (target, shutdown, _directory) = server().await?;
    create(&target, "first", "1").await?;
    let before = memory()?;
    let mut held = watchers(&target).await?;
    let each = memory()?.saturating_sub(before) / WATCHERS;
    eprintln!("{each} bytes for a watcher and its client");
    ensure!(each < 48 << 10, "{each} bytes for a watcher and its client");

    // These ask for all there is and read nothing of it; what happens meanwhile is more than they may be owed.
    let mut silent = Vec::new();
    for number in 0..20 {
        let mut sender = target.open_shared().await?;
        sender.ready().await?;
        let path = if number % 2 == 0 { format!("{MAPS}?watch=1") } else { MAPS.to_owned() };
        let body =
            sender.send_request(request("GET", &path, "application/json", Bytes::new())?).await?.into_body();
        silent.push((sender, body));
    }
    let before = memory()?;
    let large = "x".repeat(900_000);
    for number in 0..60 {
        create(&target, &format!("large{number}"), &large).await?;
    }
    let half = half_closed(&target).await?;
    bad_bodies(&target).await?;
    let grown = memory()?.saturating_sub(before) >> 20;
    eprintln!("{grown} MiB more after 54 MB of objects and 300 MB of bad bodies");
    // The objects, the events that watchers may still read, and what the clients here have built to send.
    ensure!(grown < 400, "{grown} MiB more");

    // Nobody was hurt: every watcher gets its event.
    create(&target, "the-one", "1").await?;
    for body in &mut held {
        let mut seen = Vec::new();
        while !seen.windows(7).any(|part| part == b"the-one") {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await?.context("a watch ended")??;
            seen.extend_from_slice(frame.data_ref().context("data")?);
        }
    }
    for mut stream in half {
        // Answered or closed, as each deserves, or still waited for.
        let mut buffer = [0; 512];
        let _ = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut buffer)).await;
    }
    drop(silent);
    shutdown.cancel();
    Ok(())
}
