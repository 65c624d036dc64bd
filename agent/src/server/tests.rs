//! The server's HTTP side on a fake runtime: clients speak to it over connections in memory.

use super::*;
use crate::runtime::fake::FakeRuntime;
use crate::runtime::{ContainerSpec, ExecResult, SandboxSpec};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use serde_json::{Value, json};
use spdy::Connection;
use std::path::PathBuf;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// A node with the running pod `n/p` whose containers are `c` and `t`, the latter on a terminal.
pub(super) async fn node() -> (Arc<Server<FakeRuntime>>, FakeRuntime) {
    let runtime = FakeRuntime::new();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "uid-p"},
        "spec": {"containers": [{"name": "c"}, {"name": "t", "tty": true}], "ephemeralContainers": [{"name": "e"}]},
    }))
    .unwrap();
    let sandbox = SandboxSpec {
        id: "uid-p".into(),
        namespace: "n".into(),
        name: "p".into(),
        hostname: "p".into(),
        host_network: true,
        host_pid: false,
        host_ipc: false,
        share_pid: false,
        users: None,
        cgroup: PathBuf::from("kubepods/poduid-p"),
        resources: Default::default(),
        log_dir: "/nowhere".into(),
        sysctls: BTreeMap::new(),
    };
    runtime.create_sandbox(&sandbox).await.unwrap();
    for name in ["c", "t"] {
        let spec =
            ContainerSpec { id: format!("{name}.0"), name: name.to_owned(), ..ContainerSpec::default() };
        runtime.start_container("uid-p", &spec).await.unwrap();
    }
    runtime.on_exec(|_, _, argv| {
        let code = argv.last().and_then(|a| a.strip_prefix("exit ")).map_or(0, |c| c.parse().unwrap());
        ExecResult { exit_code: code, stdout: b"out\n".into(), stderr: b"err\n".into(), timed_out: false }
    });
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no API server"))
    });
    let server = Server {
        pods: Arc::new(RwLock::new([(("n".into(), "p".into()), Arc::new(pod))].into())),
        config: AgentConfig::new("node1", vec![]),
        runtime: runtime.clone(),
        tls: Arc::new(tls::tests::without_clients()),
        auth: Auth::new(
            kube::Client::new(service, "default"),
            "node1".into(),
            &crate::kubelet_config::KubeletConfig::default().settings,
        ),
        csi: None,
        rates: Arc::default(),
    };
    (Arc::new(server), runtime)
}

fn master() -> User {
    User { name: "kube-apiserver".into(), groups: vec!["system:masters".into()], ..User::default() }
}

/// Sends one request on a connection of its own.
pub(super) async fn ask(
    server: &Arc<Server<FakeRuntime>>,
    user: Option<User>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> http::Response<Incoming> {
    let (near, far) = tokio::io::duplex(64 << 10);
    tokio::spawn(server.clone().serve(far, user));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = http::Request::builder().method(method).uri(path).header("host", "node1");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
}

async fn get(server: &Arc<Server<FakeRuntime>>, path: &str) -> (u16, String) {
    simple(ask(server, Some(master()), "GET", path, &[]).await).await
}

async fn simple(answer: http::Response<Incoming>) -> (u16, String) {
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8(body.to_vec()).unwrap())
}

const WEBSOCKET: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

async fn websocket(
    server: &Arc<Server<FakeRuntime>>,
    path: &str,
    protocol: &str,
) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
    let headers: Vec<_> = WEBSOCKET.into_iter().chain([("sec-websocket-protocol", protocol)]).collect();
    let answer = ask(server, Some(master()), "GET", path, &headers).await;
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.headers()["sec-websocket-protocol"], protocol);
    let io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

async fn spdy(server: &Arc<Server<FakeRuntime>>, path: &str, protocol: &str) -> Connection {
    let headers =
        [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", protocol)];
    let answer = ask(server, Some(master()), "POST", path, &headers).await;
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.headers()["x-stream-protocol-version"], protocol);
    Connection::client(TokioIo::new(hyper::upgrade::on(answer).await.unwrap()), Duration::from_secs(60))
}

async fn all(stream: &mut spdy::Stream) -> String {
    let mut bytes = Vec::new();
    while let Some(more) = stream.read().await {
        bytes.extend_from_slice(&more);
    }
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn exec_over_websocket() {
    let (server, _) = node().await;
    let path = "/exec/n/p/c?command=sh&command=-c&command=exit+3&input=1&output=1&error=1";
    let mut client = websocket(&server, path, "v5.channel.k8s.io").await;
    let first = client.next().await.unwrap().unwrap();
    assert_eq!(first.into_data(), [1u8].as_slice(), "an empty message shows that it works");
    client.send(Message::Binary(Bytes::from_static(b"\0typed"))).await.unwrap();
    client.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
    let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    while let Some(Ok(message)) = client.next().await {
        match message {
            Message::Binary(bytes) => channels.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]),
            Message::Close(frame) => {
                assert_eq!(u16::from(frame.unwrap().code), 1000);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(channels[&1], b"out\ntyped");
    assert_eq!(channels[&2], b"err\n");
    let status: Value = serde_json::from_slice(&channels[&3]).unwrap();
    assert_eq!(
        (status["reason"].as_str(), status["status"].as_str()),
        (Some("NonZeroExitCode"), Some("Failure"))
    );
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}

#[tokio::test]
async fn exec_over_websocket_in_base64() {
    let (server, _) = node().await;
    let mut client = websocket(&server, "/exec/n/p/c?command=x&output=1", "v4.base64.channel.k8s.io").await;
    let mut texts = Vec::new();
    while let Some(Ok(Message::Text(text))) = client.next().await {
        texts.push(text.to_string());
    }
    assert_eq!(texts[..2], ["1".to_owned(), "1b3V0Cg==".to_owned()]);
    assert!(texts[2].starts_with('3'), "{texts:?}");
}

#[tokio::test]
async fn exec_over_spdy() {
    let (server, _) = node().await;
    let path = "/exec/n/p/uid-p/c?command=sh&command=exit+3&input=1&output=1&error=1";
    let mut client = spdy(&server, path, "v4.channel.k8s.io").await;
    let mut error = client.open(spdy::Headers::of(&[("streamType", "error")])).await;
    let stdin = client.open(spdy::Headers::of(&[("streamType", "stdin")])).await;
    let mut stdout = client.open(spdy::Headers::of(&[("streamType", "stdout")])).await;
    let mut stderr = client.open(spdy::Headers::of(&[("streamType", "stderr")])).await;
    stdin.writer().write(Bytes::from_static(b"typed")).await;
    stdin.writer().close().await;
    assert_eq!(all(&mut stdout).await, "out\ntyped");
    assert_eq!(all(&mut stderr).await, "err\n");
    let status: Value = serde_json::from_str(&all(&mut error).await).unwrap();
    assert_eq!(
        status["message"],
        "command terminated with non-zero exit code: error executing command [sh exit 3], exit code 3"
    );
    client.closed().cancelled().await;
}

#[tokio::test]
async fn old_protocols_tell_errors_as_text() {
    let (server, _) = node().await;
    for (command, protocol, expected) in [
        ("true", "v2.channel.k8s.io", ""),
        (
            "exit+1",
            "channel.k8s.io",
            "command terminated with non-zero exit code: error executing command [exit 1], exit code 1",
        ),
    ] {
        let path = format!("/exec/n/p/c?command={command}&output=1");
        let mut client = spdy(&server, &path, protocol).await;
        let mut error = client.open(spdy::Headers::of(&[("streamType", "error")])).await;
        let mut stdout = client.open(spdy::Headers::of(&[("streamType", "stdout")])).await;
        assert_eq!(all(&mut stdout).await, "out\n");
        assert_eq!(all(&mut error).await, expected);
    }
}

#[tokio::test]
async fn attach_ends_with_success() {
    let (server, _) = node().await;
    let mut client = spdy(&server, "/attach/n/p/c?input=1&output=1", "v4.channel.k8s.io").await;
    let mut error = client.open(spdy::Headers::of(&[("streamType", "error")])).await;
    let stdin = client.open(spdy::Headers::of(&[("streamType", "stdin")])).await;
    let mut stdout = client.open(spdy::Headers::of(&[("streamType", "stdout")])).await;
    stdin.writer().write(Bytes::from_static(b"typed")).await;
    stdin.writer().close().await;
    assert_eq!(all(&mut stdout).await, "out\ntyped");
    assert_eq!(all(&mut error).await, r#"{"metadata":{},"status":"Success"}"#);
}

#[tokio::test]
async fn what_cannot_be_upgraded() {
    let (server, runtime) = node().await;
    let streams = "?command=x&output=1";
    for (path, code, text) in [
        (format!("/exec/n/p/c{streams}"), 500, "Upgrade request required"),
        ("/exec/n/p/c?command=x".to_owned(), 400, "you must specify at least 1 of stdin, stdout, stderr"),
        (format!("/exec/n/other/c{streams}"), 404, "pod does not exist"),
        (format!("/exec/n/p/nope{streams}"), 500, "container not found (\"nope\")"),
        (format!("/exec/n/p/other-uid/c{streams}"), 500, "container not found (\"c\")"),
        (format!("/attach/n/p/nope{streams}"), 500, "container nope not found in pod p_n"),
        ("/portForward/n/p/other-uid".to_owned(), 404, "pod not found"),
        ("/portForward/n/other".to_owned(), 404, "pod does not exist"),
        ("/portForward/n/p".to_owned(), 500, "Upgrade request required"),
        ("/nothing".to_owned(), 404, "404 page not found\n"),
        ("/checkpoint/".to_owned(), 404, "404: Page Not Found"),
        ("/containerLogs/n/p/nope".to_owned(), 404, "container \"nope\" not found in pod \"p\""),
        ("/containerLogs/n/p/e".to_owned(), 400, "container \"e\" in pod \"p\" is not available"),
        ("/containerLogs/n/nope/c".to_owned(), 404, "pod \"nope\" does not exist"),
        ("/checkpoint/n/p/c".to_owned(), 405, "405: Method Not Allowed"),
        ("/healthz/syncloop".to_owned(), 200, "ok"),
    ] {
        assert_eq!(get(&server, &path).await, (code, text.to_owned()), "{path}");
    }
    let unknown = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v9.x")];
    let answer = ask(&server, Some(master()), "POST", &format!("/exec/n/p/c{streams}"), &unknown).await;
    assert_eq!(answer.status(), 403);
    runtime.exit("uid-p", "c.0", 0);
    assert_eq!(get(&server, &format!("/exec/n/p/c{streams}")).await.0, 500, "it does not run any more");
}

#[tokio::test]
async fn run_answers_with_the_output() {
    let (server, _) = node().await;
    let post = async |path: &str| simple(ask(&server, Some(master()), "POST", path, &[]).await).await;
    assert_eq!(post("/run/n/p/c?cmd=ls+-l").await, (200, "out\nerr\n".to_owned()));
    assert_eq!(post("/run/n/p/x?cmd=ls").await.0, 500);
    assert_eq!(get(&server, "/run/n/p/c?cmd=ls").await.0, 405);
}

#[tokio::test]
async fn pods_of_the_node() {
    let (server, runtime) = node().await;
    let (code, body) = get(&server, "/pods").await;
    let list: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, list["kind"].as_str()), (200, Some("PodList")));
    assert_eq!(list["items"][0]["metadata"]["name"], "p");
    assert!(list["items"][0].get("kind").is_none());
    runtime.exit("uid-p", "t.0", 0);
    let (_, body) = get(&server, "/runningpods/").await;
    let list: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(list["items"][0]["spec"]["containers"], json!([{"name": "c", "image": "", "resources": {}}]));
    assert_eq!(list["items"][0]["status"], json!({}));
    runtime.remove_sandbox("uid-p").await.unwrap();
    assert!(get(&server, "/runningpods/").await.1.contains(r#""items":null"#));
}

#[tokio::test]
async fn use_of_pods_and_containers() {
    let (server, _) = node().await;
    let (code, body) = get(&server, "/stats/summary").await;
    let summary: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, summary["node"]["nodeName"].as_str()), (200, Some("node1")));
    for field in ["cpu", "memory", "network", "fs", "runtime", "rlimit", "swap", "io"] {
        assert!(summary["node"][field].is_object(), "{field}");
    }
    let pod = &summary["pods"][0];
    assert_eq!(pod["podRef"], json!({"name": "p", "namespace": "n", "uid": "uid-p"}));
    assert_eq!(pod["containers"][0]["memory"]["workingSetBytes"], 1 << 20);
    assert_eq!(pod["containers"][0]["cpu"]["usageNanoCores"], 0, "a rate after the first look");
    assert_eq!(pod["cpu"]["usageCoreNanoSeconds"], 2_000_000);
    let (_, body) = get(&server, "/stats/summary?only_cpu_and_memory=true").await;
    let brief: Value = serde_json::from_str(&body).unwrap();
    assert!(brief["node"]["fs"].is_null() && brief["pods"][0]["containers"][0]["rootfs"].is_null());

    let (code, text) = get(&server, "/metrics/resource").await;
    assert_eq!(code, 200);
    assert!(
        text.contains("container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 0.001 ")
    );
    assert!(text.contains("pod_memory_working_set_bytes{namespace=\"n\",pod=\"p\"} 2.097152e+06 "), "{text}");
    assert!(text.ends_with("resource_scrape_error 0\n"));
    let (_, text) = get(&server, "/metrics/cadvisor").await;
    assert!(text.contains(
        "container_cpu_usage_seconds_total{container=\"c\",cpu=\"total\",id=\"/kubepods/poduid-p/c.0\","
    ));
    let (_, text) = get(&server, "/metrics").await;
    assert!(text.contains("kubelet_running_containers{container_state=\"running\"} 2\n"));
    assert!(get(&server, "/configz").await.1.contains("\"kind\":\"KubeletConfiguration\""));
}

#[tokio::test]
async fn nobody_gets_in_without_a_name() {
    let (server, _) = node().await;
    let answer = ask(&server, None, "GET", "/healthz", &[]).await;
    assert_eq!(simple(answer).await, (401, "Unauthorized".to_owned()));
    let someone = User { name: "someone".into(), ..User::default() };
    // Without an API server nothing can be decided.
    let answer = ask(&server, Some(someone), "GET", "/pods", &[]).await;
    let expected = "Authorization error (user=someone, verb=get, resource=nodes, subresource=pods)";
    assert_eq!(simple(answer).await, (500, expected.to_owned()));
}

#[tokio::test]
async fn port_forward_within_a_websocket() {
    let (server, _) = node().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut socket, b"from the pod").await.unwrap();
    });
    let headers: Vec<_> =
        WEBSOCKET.into_iter().chain([("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io")]).collect();
    let answer = ask(&server, Some(master()), "GET", "/portForward/n/p", &headers).await;
    assert_eq!(answer.status(), 101);
    let io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    // The client's end of the tunnel.
    let (near, far) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let (mut sink, mut source) = socket.split();
        let (mut reader, mut writer) = tokio::io::split(far);
        let outward = async {
            let mut buffer = vec![0; 1024];
            while let Ok(n @ 1..) = tokio::io::AsyncReadExt::read(&mut reader, &mut buffer).await {
                sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await.unwrap();
            }
        };
        let inward = async {
            while let Some(Ok(message)) = source.next().await {
                let bytes = message.into_data();
                tokio::io::AsyncWriteExt::write_all(&mut writer, &bytes).await.unwrap();
            }
        };
        tokio::join!(outward, inward);
    });
    let mut client = Connection::client(near, Duration::from_secs(60));
    let pair = |kind| [("streamType", kind), ("port", port.as_str()), ("requestID", "0")];
    let mut error = client.open(spdy::Headers::of(&pair("error"))).await;
    let mut data = client.open(spdy::Headers::of(&pair("data"))).await;
    data.writer().close().await;
    assert_eq!(all(&mut data).await, "from the pod");
    assert_eq!(all(&mut error).await, "");
}
