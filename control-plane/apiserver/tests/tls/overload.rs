//! Clients that send too much, read too little or are too many: right answers, and others notice nothing.

use super::*;
use serde_json::{Value, json};
use tokio_rustls::client::TlsStream;

/// A connection of an administrator that speaks HTTP/1.1.
async fn admin(port: &Port) -> Result<TlsStream<TcpStream>> {
    let (certificate, key) = port.authority.sign("admin", "system:masters")?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(port.authority.der.clone().into())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = rustls_pem(certificate.as_bytes())?;
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(key.as_bytes())?;
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    let stream = TcpStream::connect(port.address).await?;
    Ok(TlsConnector::from(Arc::new(config)).connect("localhost".try_into()?, stream).await?)
}

fn rustls_pem(pem: &[u8]) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>> {
    use rustls::pki_types::pem::PemObject;
    Ok(rustls::pki_types::CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?)
}

/// Reads until the answer holds a text.
async fn read_until(stream: &mut TlsStream<TcpStream>, wanted: &str) -> Result<String> {
    let mut answer = Vec::new();
    let read = async {
        let mut buffer = [0; 16384];
        loop {
            let count = stream.read(&mut buffer).await?;
            let new = answer.len().saturating_sub(wanted.len());
            answer.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if String::from_utf8_lossy(answer.get(new..).unwrap_or_default()).contains(wanted) {
                return Ok(String::from_utf8_lossy(&answer).into_owned());
            }
            ensure!(count > 0, "closed after {} bytes", answer.len());
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .with_context(|| format!("{wanted} did not come"))?
}

async fn works(port: &Port, name: &str) -> Result<()> {
    let client = port.client(Some(("admin", "system:masters")))?;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let object = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    tokio::time::timeout(Duration::from_secs(20), api.create(&PostParams::default(), &object)).await??;
    Ok(())
}

const POST: &str =
    "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";

#[tokio::test]
async fn a_body_of_100_megabytes_is_refused_unread() -> Result<()> {
    let port = Port::open().await?;
    let mut declared = admin(&port).await?;
    declared.write_all(format!("{POST}content-length: 100000000\r\n\r\n{{").as_bytes()).await?;
    let answer = read_until(&mut declared, "limit is 3145728").await?;
    ensure!(answer.starts_with("HTTP/1.1 413"), "{answer}");

    // Without a length: the answer comes while the client still sends.
    let mut chunked = admin(&port).await?;
    chunked.write_all(format!("{POST}transfer-encoding: chunked\r\n\r\n").as_bytes()).await?;
    let (mut reader, mut writer) = tokio::io::split(chunked);
    let sending = tokio::spawn(async move {
        let chunk = [format!("{:x}\r\n", 1 << 16).as_bytes(), &[b'x'; 1 << 16], b"\r\n"].concat();
        let mut sent = 0usize;
        while sent < 100_000_000 && writer.write_all(&chunk).await.is_ok() {
            sent += 1 << 16;
        }
        sent
    });
    let mut answer = vec![0; 12];
    tokio::time::timeout(Duration::from_secs(20), reader.read_exact(&mut answer)).await??;
    ensure!(answer == b"HTTP/1.1 413", "{}", String::from_utf8_lossy(&answer));
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), reader.read_to_end(&mut rest)).await?;
    let sent = tokio::time::timeout(Duration::from_secs(20), sending).await??;
    ensure!(sent < 64 << 20, "{sent} bytes were taken");
    works(&port, "after").await?;
    port.close().await
}

#[tokio::test]
async fn clients_that_read_nothing_delay_nobody() -> Result<()> {
    let port = Port::open().await?;
    let client = port.client(Some(("admin", "system:masters")))?;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for number in 0..20 {
        let object = json!({"metadata": {"name": format!("c{number}")}, "data": {"k": "x".repeat(400_000)}});
        api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    }
    let mut silent = Vec::new();
    for query in [
        "",
        "?watch=1",
        "?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
    ] {
        for accept in ["application/json", "application/vnd.kubernetes.protobuf"] {
            let mut stream = admin(&port).await?;
            let request =
                format!("GET /api/v1/configmaps{query} HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            silent.push(stream);
        }
    }
    // Someone who goes away after asking, and one who says that nothing more will come.
    let mut half = admin(&port).await?;
    half.write_all(b"GET /api/v1/configmaps HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    half.shutdown().await?;
    for number in 0..20 {
        works(&port, &format!("meanwhile{number}")).await?;
    }
    // Read at last, a list is whole, and all of it is from one moment.
    let mut first = silent.swap_remove(0);
    let text = read_until(&mut first, "\r\n0\r\n\r\n").await?;
    let body = text.split_once("\r\n\r\n").context("body")?.1;
    let list: Value = serde_json::from_str(&unchunked(body)).context("a whole list")?;
    let names: Vec<&str> = list["items"]
        .as_array()
        .context("items")?
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect();
    ensure!(names.iter().filter(|name| name.starts_with('c')).count() == 20, "{names:?}");
    ensure!(!names.iter().any(|name| name.starts_with("meanwhile")), "{names:?}");
    drop(silent);
    port.close().await
}

/// The content of a chunked body.
fn unchunked(body: &str) -> String {
    let mut out = String::new();
    let mut rest = body;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or_default();
        if size == 0 {
            break;
        }
        out.push_str(after.get(..size).unwrap_or_default());
        rest = after.get(size + 2..).unwrap_or_default();
    }
    out
}

#[tokio::test]
async fn every_watcher_sees_the_event() -> Result<()> {
    let port = Port::open().await?;
    let mut watchers = Vec::new();
    for number in 0..60 {
        let mut stream = admin(&port).await?;
        let accept = [
            "application/json",
            "application/vnd.kubernetes.protobuf",
            "application/json;as=Table;v=v1;g=meta.k8s.io",
        ];
        let accept = accept.get(number % 3).context("accept")?;
        let request = format!(
            "GET /api/v1/configmaps?watch=1&resourceVersion=1 HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        watchers.push(stream);
    }
    works(&port, "the-one").await?;
    for watcher in &mut watchers {
        let answer = read_until(watcher, "the-one").await?;
        ensure!(answer.contains("ADDED"), "{answer}");
    }
    port.close().await
}

/// A frame of a WebSocket without a mask: its kind and content.
async fn frame(stream: &mut TlsStream<TcpStream>) -> Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await?;
    let length = match head[1] & 0x7f {
        126 => usize::from(stream.read_u16().await?),
        127 => usize::try_from(stream.read_u64().await?)?,
        short => usize::from(short),
    };
    let mut content = vec![0; length];
    stream.read_exact(&mut content).await?;
    Ok((head[0] & 0x0f, content))
}

#[tokio::test]
async fn watches_over_websocket() -> Result<()> {
    let port = Port::open().await?;
    let ask = |path: &str, accept: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\norigin: http://x\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\naccept: {accept}\r\n\r\n"
        )
    };
    for (accept, kind) in [("application/json", 1), ("application/vnd.kubernetes.protobuf", 2)] {
        let mut socket = admin(&port).await?;
        let path = "/api/v1/namespaces?watch=1&timeoutSeconds=2";
        socket.write_all(ask(path, accept).as_bytes()).await?;
        let answer = read_head(&mut socket).await?;
        ensure!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        ensure!(
            answer.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
            "{answer}"
        );
        for _ in 0..4 {
            let (got, content) = tokio::time::timeout(Duration::from_secs(20), frame(&mut socket)).await??;
            ensure!(got == kind && String::from_utf8_lossy(&content).contains("ADDED"), "{got}: {content:?}");
        }
        let (got, _) = tokio::time::timeout(Duration::from_secs(20), frame(&mut socket)).await??;
        ensure!(got == 8, "the end is a closing frame, not {got}");
    }
    // An error is an ordinary answer.
    let mut socket = admin(&port).await?;
    socket
        .write_all(ask("/api/v1/namespaces?watch=1&resourceVersion=x", "application/json").as_bytes())
        .await?;
    ensure!(read_head(&mut socket).await?.starts_with("HTTP/1.1 500"));
    port.close().await
}

/// The head of an answer; what follows stays unread.
async fn read_head(stream: &mut TlsStream<TcpStream>) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(Duration::from_secs(20), stream.read_u8()).await??);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
