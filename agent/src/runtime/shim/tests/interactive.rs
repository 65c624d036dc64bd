//! Processes that somebody talks to.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
const TTY: Streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };

fn argv(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

async fn text(source: Option<crate::runtime::session::Output>) -> String {
    let mut all = Vec::new();
    source.unwrap().read_to_end(&mut all).await.unwrap();
    String::from_utf8(all).unwrap()
}

impl Node {
    async fn sleeper(&self, sandbox: &str) {
        self.runtime.create_sandbox(&self.sandbox_spec(sandbox)).await.unwrap();
        self.runtime.start_container(sandbox, &self.container("main", &["sleep", "1000"])).await.unwrap();
    }
}

#[tokio::test]
async fn exec_has_three_streams_and_an_exit_code() {
    let node = Node::new().await;
    node.sleeper("a").await;
    let mut session =
        node.runtime.open_exec("a", "main.0", &argv("wc -c; echo err >&2; exit 3"), ALL).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(&vec![b'x'; 300_000]).await.unwrap();
    drop(stdin);
    assert_eq!(text(session.stdout).await, "300000\n");
    assert_eq!(text(session.stderr).await, "err\n");
    assert_eq!(session.end.await.unwrap(), 3);

    let quiet = Streams { stdin: false, stdout: true, ..Streams::default() };
    let session = node.runtime.open_exec("a", "main.0", &argv("cat; echo end"), quiet).await.unwrap();
    assert!(session.stdin.is_none() && session.stderr.is_none());
    assert_eq!(text(session.stdout).await, "end\n", "without an input there is its end");

    let missing = node.runtime.open_exec("a", "main.0", &["no-such".to_owned()], ALL).await.unwrap();
    match missing.end.await {
        Err(RuntimeError::Start { message, exit_code: 127 }) => {
            assert_eq!(message, "exec: \"no-such\": executable file not found in $PATH");
        }
        other => panic!("{other:?}"),
    }
    assert!(node.runtime.open_exec("a", "other.0", &argv("true"), ALL).await.is_err());
    node.finish().await;
}

#[tokio::test]
async fn exec_on_a_terminal() {
    let node = Node::new().await;
    node.sleeper("a").await;
    let script = "stty size; read line; echo \"$TERM [$line]\"; stty size; exit 4";
    let session = node.runtime.open_exec("a", "main.0", &argv(script), TTY).await.unwrap();
    let terminal = session.terminal.clone().unwrap();
    terminal.resize(100, 30).unwrap();
    session.stdin.unwrap().write_all(b"hello\n").await.unwrap();
    let output = text(session.stdout).await;
    assert!(output.contains("xterm [hello]\r\n") && output.ends_with("30 100\r\n"), "{output:?}");
    assert_eq!(session.end.await.unwrap(), 4);

    // ^C reaches the process through the terminal.
    let mut session = node.runtime.open_exec("a", "main.0", &argv("echo go; sleep 1000"), TTY).await.unwrap();
    let mut stdout = session.stdout.take().unwrap();
    let mut bytes = [0u8; 4];
    stdout.read_exact(&mut bytes).await.unwrap();
    session.stdin.unwrap().write_all(&[3]).await.unwrap();
    assert_eq!(session.end.await.unwrap(), 130);
    let missing = node.runtime.open_exec("a", "main.0", &["no-such".to_owned()], TTY).await;
    assert!(matches!(missing, Err(RuntimeError::Start { exit_code: 127, .. })));
    node.finish().await;
}

#[tokio::test]
async fn a_command_goes_on_when_its_caller_leaves() {
    let node = Node::new().await;
    node.sleeper("a").await;
    let quiet = Streams { stdout: true, ..Streams::default() };
    let script = "sleep 0.3; echo done > /left";
    let session = node.runtime.open_exec("a", "main.0", &argv(script), quiet).await.unwrap();
    drop(session);
    let deadline = Instant::now() + Duration::from_secs(20);
    while node.exec("a", "main.0", &["cat", "/left"]).await.stdout != b"done\n" {
        assert!(Instant::now() < deadline, "the command was killed");
    }
    node.finish().await;
}

#[tokio::test]
async fn attached_clients_see_and_feed_the_first_process() {
    let node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let spec = ContainerSpec {
        stdin: true,
        stdin_once: true,
        ..node.shell("main", "while read l; do echo got $l; done; echo eof; echo err >&2")
    };
    node.runtime.start_container("a", &spec).await.unwrap();
    let watcher =
        node.runtime.attach("a", "main.0", Streams { stdout: true, ..Streams::default() }).await.unwrap();
    let mut session = node.runtime.attach("a", "main.0", ALL).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").await.unwrap();
    drop(stdin);
    node.runtime.close_stdin("a", "main.0").await.unwrap();
    assert_eq!(text(session.stdout).await, "got one\ngot two\neof\n");
    assert_eq!(text(session.stderr).await, "err\n");
    assert_eq!(session.end.await.unwrap(), 0);
    assert_eq!(text(watcher.stdout).await, "got one\ngot two\neof\n");
    assert_eq!(node.output("a", "main").lines().count(), 4, "the log has it too");
    assert!(node.runtime.attach("a", "main.0", ALL).await.is_err(), "it does not run any more");
    node.finish().await;
}

#[tokio::test]
async fn an_input_that_is_not_once_stays_open_and_one_that_is_ends_with_its_client() {
    let node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    for (name, once) in [("open", false), ("once", true)] {
        let spec = ContainerSpec { stdin: true, stdin_once: once, ..node.shell(name, "cat; echo eof") };
        node.runtime.start_container("a", &spec).await.unwrap();
    }
    let id = "open.0";
    for word in ["first\n", "second\n"] {
        let mut session = node.runtime.attach("a", id, ALL).await.unwrap();
        session.stdin.take().unwrap().write_all(word.as_bytes()).await.unwrap();
        node.runtime.close_stdin("a", id).await.unwrap();
        let mut bytes = vec![0; word.len()];
        session.stdout.take().unwrap().read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, word.as_bytes());
    }
    drop(node.runtime.attach("a", "once.0", ALL).await.unwrap());
    assert_eq!(node.ended("a", "once.0").await.exit_code, 0);
    assert_eq!(node.output("a", "once"), "eof");
    node.finish().await;
}

#[tokio::test]
async fn attaching_to_a_terminal() {
    let node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let spec = ContainerSpec {
        stdin: true,
        tty: true,
        ..node.shell("main", "read l; echo \"<$l>\"; stty size; exit 0")
    };
    node.runtime.start_container("a", &spec).await.unwrap();
    let session = node.runtime.attach("a", "main.0", TTY).await.unwrap();
    session.terminal.as_ref().unwrap().resize(90, 40).unwrap();
    session.stdin.unwrap().write_all(b"typed\n").await.unwrap();
    let output = text(session.stdout).await;
    assert!(output.contains("<typed>\r\n40 90\r\n"), "{output:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_slow_client_holds_the_container_back_and_loses_nothing() {
    let node = Node::new().await;
    node.runtime.create_sandbox(&node.sandbox_spec("a")).await.unwrap();
    let spec = ContainerSpec { stdin: true, ..node.shell("main", "read l; seq 1 60000; exit 0") };
    node.runtime.start_container("a", &spec).await.unwrap();
    let mut session = node.runtime.attach("a", "main.0", ALL).await.unwrap();
    session.stdin.take().unwrap().write_all(b"go\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let expected: String = (1..=60_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(text(session.stdout).await, expected);
    assert_eq!(node.ended("a", "main.0").await.exit_code, 0);
    assert_eq!(node.output("a", "main").len() + 1, expected.len());
    node.finish().await;
}

#[tokio::test]
async fn logs_are_rotated() {
    let mut node = Node::new().await;
    node.config.log_max_size = 10_000;
    node.config.log_max_files = 3;
    node.restart().await;
    let ended = node.run("a", &node.shell("main", "seq 1 5000")).await;
    assert_eq!(ended.exit_code, 0);
    let dir = node.dir.path().join("logs/a/main");
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!((2..=3).contains(&files.len()), "{files:?}");
    // In order of names the rotated ones come after the present one; the newest lines are in the present one.
    assert!(fs::read_to_string(&files[0]).unwrap().ends_with(" 5000\n"));
    for file in &files {
        assert!(fs::metadata(file).unwrap().len() < 10_000 + 200_000, "{file:?}");
    }
    node.finish().await;
}
