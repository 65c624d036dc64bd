//! `exec`, `attach` and `run`: commands in containers, and the streams of containers.

use super::answer::{Answer, text, typed};
use super::query::Query;
use super::remote::{self, Outcome, Remote};
use super::remote_streams;
use super::upgrade::Refused;
use super::{Server, Target};
use crate::runtime::session::{Output, Session, Terminal};
use crate::runtime::{ContainerState, Runtime, RuntimeError, Streams};
use bytes::BytesMut;
use futures::future::BoxFuture;
use http::StatusCode;
use hyper::body::Incoming;
use serde::Deserialize;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// Silence after the end of a process, with something else of the container still holding its output, after which
/// nothing more is expected.
const SILENCE: Duration = Duration::from_millis(500);
/// Bytes read at a time.
const CHUNK: usize = 32 << 10;

/// Which streams a request asks for (upstream's `NewOptions`).
fn streams(query: &Query) -> Result<Streams, &'static str> {
    let is_set = |name| query.first(name) == Some("1");
    let tty = is_set("tty");
    let streams =
        Streams { stdin: is_set("input"), stdout: is_set("output"), stderr: is_set("error") && !tty, tty };
    if streams.stdin || streams.stdout || streams.stderr {
        Ok(streams)
    } else {
        Err("you must specify at least 1 of stdin, stdout, stderr")
    }
}

impl<R: Runtime + Clone> Server<R> {
    /// The newest running instance of a container: its pod's UID and its id.
    async fn running(&self, target: &Target<'_>) -> Option<(String, String)> {
        let pod = self.pod(target.namespace, target.name)?;
        let uid = pod.metadata.uid.clone()?;
        if target.uid.is_some_and(|wanted| wanted != uid) {
            return None;
        }
        let sandbox = self.runtime.status(&uid).await.ok()??;
        let is_it = |c: &&crate::runtime::ContainerStatus| {
            c.name == target.container && matches!(c.state, ContainerState::Running { .. })
        };
        let found = sandbox.containers.iter().filter(is_it).max_by_key(|c| c.attempt)?;
        Some((uid, found.id.clone()))
    }

    /// `/exec/<namespace>/<pod>[/<uid>]/<container>`.
    pub(super) async fn exec(&self, request: http::Request<Incoming>, target: &Target<'_>) -> Answer {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let streams = match streams(&query) {
            Ok(streams) => streams,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        if self.pod(target.namespace, target.name).is_none() {
            return text(StatusCode::NOT_FOUND, "pod does not exist");
        }
        let Some((uid, id)) = self.running(target).await else {
            let message = format!("container not found ({:?})", target.container);
            return text(StatusCode::INTERNAL_SERVER_ERROR, message);
        };
        let argv: Vec<String> = query.all("command").map(str::to_owned).collect();
        let runtime = self.runtime.clone();
        accept("exec", request, streams, move |remote| {
            Box::pin(execute(runtime, uid, id, argv, streams, remote))
        })
    }

    /// `/attach/<namespace>/<pod>[/<uid>]/<container>`.
    pub(super) async fn attach(&self, request: http::Request<Incoming>, target: &Target<'_>) -> Answer {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let mut streams = match streams(&query) {
            Ok(streams) => streams,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let Some(pod) = self.pod(target.namespace, target.name) else {
            return text(StatusCode::NOT_FOUND, "pod does not exist");
        };
        let Some((uid, id)) = self.running(target).await else {
            let Target { namespace, name, container, .. } = target;
            let message = format!("container {container} not found in pod {name}_{namespace}");
            return text(StatusCode::INTERNAL_SERVER_ERROR, message);
        };
        // The container decides whether there is a terminal, not the client.
        let spec = pod.spec.as_ref().and_then(|s| kelp_model::pod::spec::find(s, target.container));
        let on_terminal = spec.is_some_and(|(_, c)| c.tty.unwrap_or(false));
        let asked = streams;
        streams.tty = on_terminal;
        streams.stderr &= !on_terminal;
        let runtime = self.runtime.clone();
        accept("attach", request, asked, move |remote| Box::pin(attach(runtime, uid, id, streams, remote)))
    }

    /// `/run/<namespace>/<pod>[/<uid>]/<container>?cmd=…`: a command to its end, its output as the answer.
    pub(super) async fn run_command(&self, query: &Query, target: &Target<'_>) -> Answer {
        if self.pod(target.namespace, target.name).is_none() {
            return text(StatusCode::NOT_FOUND, "pod does not exist");
        }
        let Some((uid, id)) = self.running(target).await else {
            let message = format!("container not found ({:?})", target.container);
            return text(StatusCode::INTERNAL_SERVER_ERROR, message);
        };
        let command = query.first("cmd").unwrap_or_default();
        let argv: Vec<String> = command.split(' ').map(str::to_owned).collect();
        // No end of its own: as long as the caller waits.
        match self.runtime.exec(&uid, &id, &argv, Duration::MAX).await {
            Ok(result) if result.exit_code == 0 => {
                typed(StatusCode::OK, "application/json", [result.stdout, result.stderr].concat())
            }
            Ok(result) => {
                let stderr = String::from_utf8_lossy(&result.stderr).into_owned();
                let message = format!("command '{command}' exited with {}: {stderr}", result.exit_code);
                text(StatusCode::INTERNAL_SERVER_ERROR, message)
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, why(&error)),
        }
    }
}

/// Answers with an upgrade and serves the client's streams once it has taken place.
fn accept(
    subresource: &str,
    mut request: http::Request<Incoming>,
    streams: Streams,
    serve: impl FnOnce(Remote) -> BoxFuture<'static, ()> + Send + 'static,
) -> Answer {
    let upgrade = hyper::upgrade::on(&mut request);
    let agreed = match remote_streams::negotiate(request.headers()) {
        Ok(agreed) => agreed,
        Err(Refused(answer)) => return *answer,
    };
    let (answer, protocol) = agreed;
    if protocol.is_websocket() {
        crate::metrics::WEBSOCKETS.count(&[subresource]);
    }
    tokio::spawn(async move {
        let io = match upgrade.await {
            Ok(upgraded) => hyper_util::rt::TokioIo::new(upgraded),
            Err(error) => {
                tracing::debug!(%error, "a connection was not upgraded");
                return;
            }
        };
        match protocol.open(io, streams).await {
            Ok(remote) => serve(remote).await,
            Err(error) => tracing::debug!(%error, "a client did not open its streams"),
        }
    });
    answer
}

/// Runs a command for a client. It goes on when the client leaves.
async fn execute<R: Runtime + Clone>(
    runtime: R,
    uid: String,
    id: String,
    argv: Vec<String>,
    streams: Streams,
    mut remote: Remote,
) {
    let result = match runtime.open_exec(&uid, &id, &argv, streams).await {
        Ok(session) => relay(session, &mut remote, async {}).await,
        Err(error) => Err(error),
    };
    let outcome = match result {
        Ok(0) => Outcome::Success,
        Ok(code) => Outcome::Exit { code, argv },
        Err(error) => Outcome::Failed(format!(
            "error executing command in container: failed to exec in container: {}",
            why(&error)
        )),
    };
    remote.finish(&outcome).await;
}

/// The words of the runtimes that users know.
fn why(error: &RuntimeError) -> String {
    match error {
        RuntimeError::Start { message, .. } => {
            let id: String = (0..8).map(|_| format!("{:08x}", rand::random::<u32>())).collect();
            format!(
                "failed to start exec {id:?}: OCI runtime exec failed: exec failed: unable to start container \
                 process: {message}"
            )
        }
        other => other.to_string(),
    }
}

/// Joins a client to a container until either ends.
async fn attach<R: Runtime + Clone>(
    runtime: R,
    uid: String,
    id: String,
    streams: Streams,
    mut remote: Remote,
) {
    let gone = remote.gone.clone();
    let input_ended = {
        let (runtime, uid, id) = (runtime.clone(), uid.clone(), id.clone());
        async move {
            if let Err(error) = runtime.close_stdin(&uid, &id).await {
                tracing::debug!(%error, "the input of a container was not closed");
            }
        }
    };
    let work = async {
        match runtime.attach(&uid, &id, streams).await {
            Ok(session) => relay(session, &mut remote, input_ended).await,
            Err(error) => Err(error),
        }
    };
    let result = tokio::select! {
        result = work => result,
        () = gone.cancelled() => return,
    };
    let outcome = match result {
        Ok(_) => Outcome::Success,
        Err(error) => Outcome::Failed(format!("error attaching to container: {error}")),
    };
    remote.finish(&outcome).await;
}

/// Aborts a task when it is dropped.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Copies between a process and a client until the process has ended and its output is through.
async fn relay(
    session: Session,
    remote: &mut Remote,
    input_ended: impl Future<Output = ()> + Send + 'static,
) -> Result<i32, RuntimeError> {
    let Session { stdin, stdout, stderr, terminal, end } = session;
    let mut tasks = Vec::new();
    if let (Some(mut stdin), Some(mut input)) = (stdin, remote.stdin.take()) {
        tasks.push(Task(tokio::spawn(async move {
            while let Some(bytes) = input.read().await {
                if stdin.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = stdin.shutdown().await;
            drop(stdin);
            input_ended.await;
        })));
    }
    if let (Some(terminal), Some(sizes)) = (terminal, remote.resize.take()) {
        tasks.push(Task(tokio::spawn(resize(terminal, sizes))));
    }
    let ended = CancellationToken::new();
    let end = async {
        let result = end.await;
        ended.cancel();
        result
    };
    let (result, (), ()) = tokio::join!(
        end,
        pump(stdout, remote.stdout.as_ref(), &ended),
        pump(stderr, remote.stderr.as_ref(), &ended)
    );
    drop(tasks);
    result
}

/// Copies output to a client. Once the client is gone it is read all the same, so that the process can go on.
async fn pump(source: Option<Output>, sink: Option<&remote::Output>, ended: &CancellationToken) {
    let Some(mut source) = source else { return };
    let mut sink = sink;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let silence = async {
            ended.cancelled().await;
            tokio::time::sleep(SILENCE).await;
        };
        tokio::select! {
            biased;
            read = source.read_buf(&mut buffer) => match read {
                Ok(n) if n > 0 => {}
                _ => return,
            },
            () = silence => return,
        }
        let bytes = buffer.split().freeze();
        if let Some(output) = sink
            && !output.write(bytes).await
        {
            sink = None;
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Longest piece of a size that is kept, bytes.
const MAX_SIZE: usize = 1024;

/// Sizes the terminal as the client's window changes.
async fn resize(terminal: Terminal, mut sizes: remote::Input) {
    let mut text = Vec::new();
    while let Some(bytes) = sizes.read().await {
        text.extend_from_slice(&bytes);
        let mut documents = serde_json::Deserializer::from_slice(&text).into_iter::<Size>();
        let mut used = 0;
        while let Some(Ok(size)) = documents.next() {
            used = documents.byte_offset();
            if let Err(error) = terminal.resize(size.width, size.height) {
                tracing::debug!(%error, "a terminal cannot be resized");
            }
        }
        text.drain(..used);
        if text.len() > MAX_SIZE {
            return;
        }
    }
}
