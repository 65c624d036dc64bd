//! A CSI driver for tests: volumes are directories of the host, bind-mounted. It can be told to stop answering.

use super::grpc::{framed, unframed};
use super::wire::{Reader, Writer};
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;

/// What the driver remembers.
#[derive(Default)]
pub struct State {
    /// Names of the calls, in order.
    pub calls: Vec<String>,
    /// The last publication: its context and its secrets.
    pub published: (BTreeMap<String, String>, BTreeMap<String, String>),
    /// The driver answers so many calls more, does the next one without an answer, and then nothing.
    pub left: Option<usize>,
    /// What became of its registration.
    pub registered: Option<bool>,
}

/// The driver; it serves until it is dropped.
pub struct FakeDriver {
    /// What it remembers.
    pub state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeDriver {
    /// Serves at `socket`; `data` holds the volumes.
    pub fn serve(socket: &Path, data: &Path) -> Self {
        let _ = fs::remove_file(socket);
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let (own, data) = (state.clone(), data.to_owned());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, data) = (own.clone(), data.clone());
                let service =
                    hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let (state, data) = (state.clone(), data.clone());
                        async move {
                            let method =
                                request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let (answers, does) = {
                                let mut state = state.lock();
                                state.calls.push(method.clone());
                                match &mut state.left {
                                    None => (true, true),
                                    Some(usize::MAX) => (false, false),
                                    Some(0) => {
                                        state.left = Some(usize::MAX);
                                        (false, true)
                                    }
                                    Some(left) => {
                                        *left -= 1;
                                        (true, true)
                                    }
                                }
                            };
                            let answer = match does {
                                true => carry_out(&method, unframed(&body).unwrap(), &data, &state),
                                false => Ok(Vec::new()),
                            };
                            if !answers {
                                std::future::pending::<()>().await;
                            }
                            Ok::<_, Infallible>(respond(answer))
                        }
                    });
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { state, task }
    }

    /// The calls since the last time.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().calls)
    }
}

type Body = StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

fn respond(answer: Result<Vec<u8>, (u32, String)>) -> http::Response<Body> {
    let mut trailers = http::HeaderMap::new();
    let mut frames = Vec::new();
    match answer {
        Ok(message) => {
            frames.push(Ok(Frame::data(framed(&message))));
            trailers.insert("grpc-status", "0".parse().unwrap());
        }
        Err((code, message)) => {
            trailers.insert("grpc-status", code.to_string().parse().unwrap());
            trailers.insert("grpc-message", message.parse().unwrap());
        }
    }
    frames.push(Ok(Frame::trailers(trailers)));
    http::Response::builder()
        .header("content-type", "application/grpc")
        .body(StreamBody::new(futures::stream::iter(frames)))
        .unwrap()
}

fn mounted(path: &Path) -> bool {
    crate::pod::volumes::mountinfo::is_mounted(path)
}

fn bind(from: &Path, to: &Path) -> Result<(), (u32, String)> {
    fs::create_dir_all(to).unwrap();
    if mounted(to) {
        return Ok(());
    }
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|e| (13, e.to_string()))
}

fn unbind(at: &Path) -> Result<Vec<u8>, (u32, String)> {
    if mounted(at) {
        umount2(at, MntFlags::empty()).map_err(|e| (13, e.to_string()))?;
    }
    let _ = fs::remove_dir(at);
    Ok(Vec::new())
}

fn carry_out(
    method: &str,
    message: &[u8],
    data: &Path,
    state: &Mutex<State>,
) -> Result<Vec<u8>, (u32, String)> {
    let asked = Reader::new(message).ok_or((3, "no message".to_owned()))?;
    let capability = |kind: u64| Writer::default().message(1, Writer::default().number(1, kind));
    match method {
        "GetInfo" => {
            Ok(Writer::default().string(1, "CSIPlugin").string(2, "test.csi").strings(4, ["1.0.0"]).finish())
        }
        "NotifyRegistrationStatus" => {
            state.lock().registered = Some(asked.number(1) == 1);
            Ok(Vec::new())
        }
        "NodeGetInfo" => {
            let zone = BTreeMap::from([("topology.test.csi/zone".to_owned(), "z".to_owned())]);
            let topology = Writer::default().map(1, &zone);
            Ok(Writer::default().string(1, "id-of-node").number(2, 7).message(3, topology).finish())
        }
        "NodeGetCapabilities" => {
            Ok(Writer::default().message(1, capability(1)).message(1, capability(2)).finish())
        }
        "NodeStageVolume" => {
            let volume = data.join(asked.string(1));
            if !volume.is_dir() {
                return Err((5, format!("no volume {}", asked.string(1))));
            }
            bind(&volume, &PathBuf::from(asked.string(3))).map(|()| Vec::new())
        }
        "NodePublishVolume" => {
            state.lock().published = (asked.map(8), asked.map(7));
            let own = data.join(asked.string(1));
            let staged = asked.string(3);
            let from = if staged.is_empty() { own } else { staged.into() };
            fs::create_dir_all(&from).unwrap();
            bind(&from, &PathBuf::from(asked.string(4))).map(|()| Vec::new())
        }
        "NodeUnpublishVolume" | "NodeUnstageVolume" => unbind(&PathBuf::from(asked.string(2))),
        "NodeGetVolumeStats" => {
            let entry = |unit: u64| Writer::default().number(1, 6).number(2, 10).number(3, 4).number(4, unit);
            Ok(Writer::default().message(1, entry(1)).message(1, entry(2)).finish())
        }
        _ => Err((12, format!("unknown method {method}"))),
    }
}
