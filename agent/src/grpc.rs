//! gRPC over unix sockets: what device plugins, CSI drivers and readers of pod resources speak.
//!
//! tonic does the protocol, hyper the connection. Messages are `prost::Message` types that are written by hand from the
//! protocols' definitions: field numbers and types are all that counts, and nothing has to be generated.

use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
pub use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

/// What a server answers.
pub type Answer = http::Response<Body>;

/// A client of the server behind one socket; clones share the connection. It ends with its last clone.
#[derive(Debug, Clone)]
pub struct Client {
    grpc: tonic::client::Grpc<Transport>,
    _connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The sending end of an HTTP/2 connection as tonic wants it.
#[derive(Debug, Clone)]
struct Transport(SendRequest<Body>);

impl tower::Service<http::Request<Body>> for Transport {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Client {
    /// Connects to a socket.
    ///
    /// # Errors
    /// `Unavailable`, with the text of Go's clients: nobody listens there, or it is no HTTP/2 server.
    pub async fn connect(socket: &Path) -> Result<Self, Status> {
        let failed = |action: &str, error: &dyn std::fmt::Display| {
            let path = socket.display();
            let text = format!("transport: Error while dialing: dial unix {path}: {action}: {error}");
            Status::unavailable(format!("connection error: desc = {text:?}"))
        };
        let stream = UnixStream::connect(socket).await.map_err(|e| failed("connect", &reason(&e)))?;
        let handshake =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|e| failed("handshake", &e))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "gRPC connection ended");
            }
        });
        let origin = http::Uri::from_static("http://localhost");
        let grpc = tonic::client::Grpc::with_origin(Transport(sender), origin);
        Ok(Self { grpc, _connection: Arc::new(Connection(task.abort_handle())) })
    }

    /// One call with one answer within `limit`. `method` is `/package.Service/Method`.
    ///
    /// # Errors
    /// The server's status; `DeadlineExceeded` when it does not answer in time, `Unavailable` without a connection.
    pub async fn unary<Q, A>(&self, method: &'static str, message: Q, limit: Duration) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc.clone();
        let mut request = tonic::Request::new(message);
        request.set_timeout(limit);
        let call = async {
            grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            let path = http::uri::PathAndQuery::from_static(method);
            grpc.unary(request, path, ProstCodec::<Q, A>::default()).await
        };
        match tokio::time::timeout(limit, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
        }
    }

    /// One call with a stream of answers, for as long as the stream is kept.
    ///
    /// # Errors
    /// The server's status, or `Unavailable` without a connection.
    pub async fn server_streaming<Q, A>(
        &self,
        method: &'static str,
        message: Q,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let path = http::uri::PathAndQuery::from_static(method);
        let request = tonic::Request::new(message);
        let answer = grpc.server_streaming(request, path, ProstCodec::<Q, A>::default()).await?;
        Ok(answer.into_inner())
    }
}

/// Listens on a socket; one that is left from before is replaced, and its directory is made.
///
/// # Errors
/// The directory or the socket cannot be made.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket)
}

/// Answers the calls that come in by `listener`, until `shutdown`. `answer` gets each request; it picks the method by
/// the URI's path and hands over to [`unary`], [`server_streaming`] or [`unknown`].
pub async fn serve<F, Fut>(listener: UnixListener, answer: F, shutdown: CancellationToken)
where
    F: Fn(http::Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors: it passes, and a connection waits for it.
                    tracing::warn!(%error, "a gRPC connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        let answer = answer.clone();
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "gRPC connection ended");
            }
        });
    }
}

/// A handler of one call as the service that tonic wants.
fn once<Q, T, F, Fut>(
    handler: F,
) -> impl tower::Service<
    tonic::Request<Q>,
    Response = tonic::Response<T>,
    Error = Status,
    Future = impl Future<Output = Result<tonic::Response<T>, Status>> + Send,
>
where
    F: FnOnce(Q) -> Fut + Send,
    Fut: Future<Output = Result<T, Status>> + Send,
{
    let mut handler = Some(handler);
    tower::service_fn(move |request: tonic::Request<Q>| {
        let called = handler.take().map(|handler| handler(request.into_inner()));
        async move {
            match called {
                Some(answer) => answer.await.map(tonic::Response::new),
                None => Err(Status::internal("called twice")),
            }
        }
    })
}

/// Answers a call that has one answer.
pub async fn unary<Q, A, F, Fut>(request: http::Request<Incoming>, handler: F) -> Answer
where
    Q: Message + Default + Send + Sync + 'static,
    A: Message + Send + Sync + 'static,
    F: FnOnce(Q) -> Fut + Send,
    Fut: Future<Output = Result<A, Status>> + Send,
{
    let service = once(handler);
    tonic::server::Grpc::new(ProstCodec::<A, Q>::default()).unary(service, request).await
}

/// Answers a call that has a stream of answers.
pub async fn server_streaming<Q, A, F, Fut, S>(request: http::Request<Incoming>, handler: F) -> Answer
where
    Q: Message + Default + Send + Sync + 'static,
    A: Message + Send + Sync + 'static,
    F: FnOnce(Q) -> Fut + Send,
    Fut: Future<Output = Result<S, Status>> + Send,
    S: futures::Stream<Item = Result<A, Status>> + Send + 'static,
{
    let service = once(handler);
    tonic::server::Grpc::new(ProstCodec::<A, Q>::default()).server_streaming(service, request).await
}

/// Answers a call of a method that the server does not have.
pub fn unknown(request: &http::Request<Incoming>) -> Answer {
    Status::unimplemented(format!("unknown method {}", request.uri().path())).into_http()
}

/// A status as Go's clients print it, which is what events and conditions show.
pub fn text(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", code(status.code()), status.message())
}

/// Go's name of a code.
fn code(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// An error of the system in Go's words: without "(os error 2)", in lower case.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[derive(Clone, PartialEq, Message)]
    struct Word {
        #[prost(string, tag = "1")]
        text: String,
    }

    const LIMIT: Duration = Duration::from_secs(10);

    async fn answer(request: http::Request<Incoming>) -> Answer {
        match request.uri().path() {
            "/t.T/Echo" => {
                let echo = |word: Word| async move {
                    match word.text.as_str() {
                        "bad" => Err(Status::invalid_argument("no: ä%")),
                        "slow" => std::future::pending().await,
                        _ => Ok(Word { text: format!("{}!", word.text) }),
                    }
                };
                unary(request, echo).await
            }
            "/t.T/Letters" => {
                let letters = |word: Word| async move {
                    let letters: Vec<_> =
                        word.text.chars().map(|c| Ok(Word { text: c.to_string() })).collect();
                    Ok(futures::stream::iter(letters))
                };
                server_streaming(request, letters).await
            }
            _ => unknown(&request),
        }
    }

    #[tokio::test]
    async fn calls_streams_and_errors() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("d/s.sock");
        let nobody = Client::connect(&socket).await.unwrap_err();
        let expected = format!(
            "rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix {}: connect: no such file or directory\"",
            socket.display()
        );
        assert_eq!(text(&nobody), expected);
        // A socket that is left over is replaced.
        drop(listen(&socket).unwrap());
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listen(&socket).unwrap(), answer, shutdown.clone()));
        let client = Client::connect(&socket).await.unwrap();
        let word = |text: &str| Word { text: text.into() };
        assert_eq!(client.unary::<_, Word>("/t.T/Echo", word("a"), LIMIT).await.unwrap(), word("a!"));
        let big = "x".repeat(1 << 20);
        let answered = client.unary::<_, Word>("/t.T/Echo", word(&big), LIMIT).await.unwrap();
        assert_eq!(answered.text.len(), big.len() + 1);
        let bad = client.unary::<_, Word>("/t.T/Echo", word("bad"), LIMIT).await.unwrap_err();
        assert_eq!(text(&bad), "rpc error: code = InvalidArgument desc = no: ä%");
        let slow = client.unary::<_, Word>("/t.T/Echo", word("slow"), Duration::from_millis(50)).await;
        assert_eq!(slow.unwrap_err().code(), Code::DeadlineExceeded);
        let none = client.unary::<_, Word>("/t.T/None", word("a"), LIMIT).await.unwrap_err();
        assert_eq!(none.code(), Code::Unimplemented);
        let stream = client.server_streaming::<_, Word>("/t.T/Letters", word("abc")).await.unwrap();
        let letters: Vec<String> = stream.map(|w| w.unwrap().text).collect().await;
        assert_eq!(letters, ["a", "b", "c"]);
        shutdown.cancel();
        server.await.unwrap();
        assert!(client.unary::<_, Word>("/t.T/Echo", word("a"), LIMIT).await.is_err());
    }
}
