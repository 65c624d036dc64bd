//! A CSI driver for tests: volumes are directories of the host, bind-mounted. It can be told to stop answering.

use super::proto::{self, Empty, Map, rpc};
use crate::grpc::{self, Answer, Status};
use hyper::body::Incoming;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What the driver remembers.
pub struct State {
    /// Names of the calls, in order.
    pub calls: Vec<String>,
    /// The last publication: its context and its secrets.
    pub published: (Map, Map),
    /// The driver answers so many calls more, does the next one without an answer, and then nothing.
    pub left: Option<usize>,
    /// What became of its registration.
    pub registered: Option<Result<(), String>>,
    /// What it says it is.
    pub kind: &'static str,
    /// Bytes that it was last asked to expand to.
    pub expanded: Option<i64>,
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
        Self::serve_as("CSIPlugin", socket, data)
    }

    /// Serves as another kind of plugin.
    pub fn serve_as(kind: &'static str, socket: &Path, data: &Path) -> Self {
        let state = State {
            calls: Vec::new(),
            published: Default::default(),
            left: None,
            registered: None,
            kind,
            expanded: None,
        };
        let state = Arc::new(Mutex::new(state));
        let (own, data) = (state.clone(), data.to_owned());
        let listener = grpc::listen(socket).unwrap();
        let answer = move |request| serve_one(request, own.clone(), data.clone());
        let task = tokio::spawn(grpc::serve(listener, answer, CancellationToken::new()));
        Self { state, task }
    }

    /// The calls since the last time.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().calls)
    }
}

async fn serve_one(request: http::Request<Incoming>, state: Arc<Mutex<State>>, data: PathBuf) -> Answer {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
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
        true => carry_out(&method, request, &data, &state).await,
        false => grpc::unknown(&request),
    };
    if !answers {
        std::future::pending::<()>().await;
    }
    answer
}

fn mounted(path: &Path) -> bool {
    crate::pod::volumes::mountinfo::is_mounted(path)
}

fn failed(error: impl ToString) -> Status {
    Status::internal(error.to_string())
}

fn bind(from: &Path, to: &Path) -> Result<Empty, Status> {
    if mounted(to) {
        return Ok(Empty {});
    }
    if from.is_dir() {
        fs::create_dir_all(to).map_err(failed)?;
    } else {
        fs::File::create(to).map_err(failed)?;
    }
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
    Ok(Empty {})
}

fn unbind(at: &Path) -> Result<Empty, Status> {
    if mounted(at) {
        umount2(at, MntFlags::empty()).map_err(failed)?;
    }
    let _ = fs::remove_dir(at).or_else(|_| fs::remove_file(at));
    Ok(Empty {})
}

async fn carry_out(
    method: &str,
    request: http::Request<Incoming>,
    data: &Path,
    state: &Mutex<State>,
) -> Answer {
    match method {
        "GetInfo" => {
            let info = proto::PluginInfo {
                kind: state.lock().kind.into(),
                name: "test.csi".into(),
                endpoint: String::new(),
                versions: vec!["1.0.0".into()],
            };
            grpc::unary(request, async |_: Empty| Ok(info)).await
        }
        "NotifyRegistrationStatus" => {
            let noted = async |told: proto::Registered| {
                let result = if told.registered { Ok(()) } else { Err(told.error) };
                state.lock().registered = Some(result);
                Ok(Empty {})
            };
            grpc::unary(request, noted).await
        }
        "NodeGetInfo" => {
            let segments = Map::from([("topology.test.csi/zone".to_owned(), "z".to_owned())]);
            let topology = Some(proto::Topology { segments });
            let info = proto::NodeInfo { id: "id-of-node".into(), most: 7, topology };
            grpc::unary(request, async |_: Empty| Ok(info)).await
        }
        "NodeGetCapabilities" => {
            let all = proto::Capabilities::of(&[rpc::STAGE, rpc::STATISTICS, rpc::EXPAND]);
            grpc::unary(request, async |_: Empty| Ok(all)).await
        }
        "NodeStageVolume" => {
            let stage = async |asked: proto::Stage| {
                let volume = data.join(&asked.volume);
                if !volume.exists() {
                    return Err(Status::not_found(format!("no volume {}", asked.volume)));
                }
                // A device is had where it is.
                if asked.capability.is_some_and(|c| c.block.is_some()) {
                    return Ok(Empty {});
                }
                bind(&volume, Path::new(&asked.staging))
            };
            grpc::unary(request, stage).await
        }
        "NodePublishVolume" => {
            let publish = async |asked: proto::Publish| {
                state.lock().published = (asked.context, asked.secrets);
                let own = data.join(&asked.volume);
                let is_block = asked.capability.is_some_and(|c| c.block.is_some());
                let from = if asked.staging.is_empty() || is_block { own } else { asked.staging.into() };
                if !is_block {
                    fs::create_dir_all(&from).map_err(failed)?;
                }
                bind(&from, Path::new(&asked.target))
            };
            grpc::unary(request, publish).await
        }
        "NodeUnpublishVolume" | "NodeUnstageVolume" => {
            grpc::unary(request, async |asked: proto::VolumeAt| unbind(Path::new(&asked.path))).await
        }
        "NodeGetVolumeStats" => {
            let usage = [1, 2].map(|unit| proto::Usage { available: 6, total: 10, used: 4, unit }).to_vec();
            grpc::unary(request, async |_: proto::VolumeAt| Ok(proto::Statistics { usage })).await
        }
        "NodeExpandVolume" => {
            let expand = async |asked: proto::Expand| {
                let capacity = asked.range.map_or(0, |r| r.required);
                state.lock().expanded = Some(capacity);
                Ok(proto::Expanded { capacity })
            };
            grpc::unary(request, expand).await
        }
        _ => grpc::unknown(&request),
    }
}
