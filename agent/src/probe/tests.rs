use super::*;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct NoExec;
impl Exec for NoExec {
    async fn exec(&self, argv: &[String], _timeout: Duration) -> Result<Option<(i32, String)>, ExecError> {
        match argv.first().map(String::as_str) {
            Some("true") => Ok(Some((0, String::new()))),
            Some("slow") => Err(ExecError::Timeout),
            Some("none") => Err(ExecError::Start("no such command".into())),
            Some("gone") => Ok(None),
            _ => Ok(Some((1, "not yet\n".into()))),
        }
    }
}

fn target() -> Target<NoExec> {
    Target {
        container: "c".into(),
        attempt: 0,
        pod: Default::default(),
        ports: vec![("web".into(), 1)],
        ip: Some(IpAddr::from([127, 0, 0, 1])),
        exec: Arc::new(NoExec),
    }
}

fn probe(value: serde_json::Value) -> Probe {
    serde_json::from_value(value).unwrap()
}

/// Answers each connection with the next of these texts.
async fn server(answers: Vec<&'static str>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0u8; 1024];
            let _ = stream.read(&mut buffer).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    port
}

async fn http(answers: Vec<&'static str>) -> Outcome {
    let port = server(answers).await;
    let outcome =
        once(&probe(json!({"httpGet": {"path": "/x", "port": port}})), &target(), Duration::from_secs(5))
            .await;
    match outcome {
        Outcome::Failure(text) => Outcome::Failure(text.replace(&port.to_string(), "PORT")),
        other => other,
    }
}

#[tokio::test]
async fn http_by_status() {
    assert_eq!(http(vec!["HTTP/1.1 204 No Content\r\n\r\n"]).await, Outcome::Success(None));
    assert_eq!(
        http(vec!["HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"]).await,
        Outcome::Failure("HTTP probe failed with statuscode: 500".into())
    );
    assert_eq!(
        http(vec![
            "HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n"
        ])
        .await,
        Outcome::Success(None)
    );
    let elsewhere =
        "HTTP/1.1 302 Found\r\nLocation: http://other.example.test/\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(
        http(vec![elsewhere]).await,
        Outcome::Success(Some("Probe terminated redirects, Response body: hi".into()))
    );
}

#[tokio::test]
async fn refused_and_slow_servers() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let get = probe(json!({"httpGet": {"path": "/x", "port": port}}));
    let refused =
        format!("Get \"http://127.0.0.1:{port}/x\": dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(once(&get, &target(), Duration::from_secs(5)).await, Outcome::Failure(refused));
    let tcp = probe(json!({"tcpSocket": {"port": port}}));
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(once(&tcp, &target(), Duration::from_secs(5)).await, Outcome::Failure(refused));
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let get = probe(json!({"httpGet": {"port": port}}));
    let Outcome::Failure(text) = once(&get, &target(), Duration::from_millis(100)).await else { panic!() };
    assert!(
        text.ends_with("context deadline exceeded (Client.Timeout exceeded while awaiting headers)"),
        "{text}"
    );
    assert_eq!(
        once(&probe(json!({"tcpSocket": {"port": port}})), &target(), Duration::from_secs(5)).await,
        Outcome::Success(None)
    );
    let unknown =
        once(&probe(json!({"tcpSocket": {"port": "nope"}})), &target(), Duration::from_secs(5)).await;
    assert_eq!(unknown, Outcome::Failure("couldn't find port: nope".into()));
}

#[tokio::test]
async fn exec_by_exit_code() {
    let run = async |command: &str| {
        once(&probe(json!({"exec": {"command": [command]}})), &target(), Duration::from_secs(1)).await
    };
    assert_eq!(run("true").await, Outcome::Success(None));
    assert_eq!(run("false").await, Outcome::Failure("not yet\n".into()));
    assert_eq!(run("slow").await, Outcome::Failure("command timed out: \"slow\" timed out after 1s".into()));
    assert_eq!(run("gone").await, Outcome::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_comes_after_the_threshold_and_every_failure_is_told() {
    let (sender, mut verdicts) = mpsc::channel(16);
    let failing = probe(json!({"exec": {"command": ["false"]}, "failureThreshold": 3, "periodSeconds": 1}));
    let task = tokio::spawn(run(failing, Purpose::Liveness, target(), Duration::ZERO, None, sender));
    for passed in [None, None, Some(false), None] {
        let verdict = verdicts.recv().await.unwrap();
        assert_eq!(verdict.passed, passed);
        assert_eq!(verdict.event.as_deref(), Some("Liveness probe failed: not yet\n"));
    }
    task.abort();
}
