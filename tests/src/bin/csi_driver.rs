//! A CSI driver for tests of whole clusters: a volume is an ext4 file system, or a device, on a loop device over a sparse
//! file; an inline volume is a tmpfs that holds what the driver was told.
//!
//! `csi_driver SOCKET DATA` serves at SOCKET, which is a registration socket as well. Files in DATA: `<handle>.img`, the
//! volumes; `calls`, a line a call; `hold`, a method whose next call is carried out and never answered (`held` is there then).

use anyhow::{Context, Result};
use hyper::body::Incoming;
use kelp_agent::csi::proto::{
    Capabilities, Empty, Expand, Expanded, Map, NodeInfo, PluginInfo, Publish, Registered, Stage, Statistics,
    Topology, Usage, VolumeAt, rpc,
};
use kelp_agent::grpc::{self, Answer, Status};
use kelp_agent::pod::volumes::mountinfo;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Name of the driver.
const NAME: &str = "loop.csi.test";
/// Bytes of a volume that is new.
const SIZE: u64 = 32 << 20;

type Done = Result<Empty, Status>;

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

/// Runs a program; what it printed.
fn run(program: &str, arguments: &[&str]) -> Result<String, Status> {
    let out = Command::new(program).args(arguments).output().map_err(failed)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match out.status.success() {
        true => Ok(text(&out.stdout)),
        false => Err(failed(format!("{program} {arguments:?}: {}", text(&out.stderr)))),
    }
}

fn utf8(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

struct Driver {
    data: PathBuf,
}

impl Driver {
    fn image(&self, volume: &str) -> PathBuf {
        self.data.join(format!("{volume}.img"))
    }

    /// The loop device of a volume, if it has one.
    fn attached(&self, volume: &str) -> Result<Option<String>, Status> {
        let image = self.image(volume);
        let text = run("losetup", &["--noheadings", "--output", "NAME", "--associated", &utf8(&image)])?;
        Ok(text.lines().next().map(|l| l.trim().to_owned()))
    }

    fn attach(&self, volume: &str) -> Result<String, Status> {
        if let Some(device) = self.attached(volume)? {
            return Ok(device);
        }
        let image = self.image(volume);
        if !image.exists() {
            let file = fs::File::create(&image).map_err(failed)?;
            file.set_len(SIZE).map_err(failed)?;
        }
        run("losetup", &["--find", "--show", &utf8(&image)])
    }

    fn stage(&self, asked: &Stage) -> Done {
        let device = self.attach(&asked.volume)?;
        let at = Path::new(&asked.staging);
        let is_block = asked.capability.as_ref().is_some_and(|c| c.block.is_some());
        if is_block || mountinfo::is_mounted(at) {
            return Ok(Empty {});
        }
        if run("blkid", &["-p", &device]).is_err() {
            run("mkfs.ext4", &["-q", "-F", &device])?;
        }
        fs::create_dir_all(at).map_err(failed)?;
        mount(Some(Path::new(&device)), at, Some("ext4"), MsFlags::empty(), None::<&str>).map_err(failed)?;
        Ok(Empty {})
    }

    fn unstage(&self, asked: &VolumeAt) -> Done {
        unmount(Path::new(&asked.path))?;
        if let Some(device) = self.attached(&asked.volume)? {
            run("losetup", &["--detach", &device])?;
        }
        Ok(Empty {})
    }

    fn publish(&self, asked: &Publish) -> Done {
        let target = Path::new(&asked.target);
        if mountinfo::is_mounted(target) {
            return Ok(Empty {});
        }
        let bind = |from: &Path| mount(Some(from), target, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        if asked.capability.as_ref().is_some_and(|c| c.block.is_some()) {
            let device = self.attached(&asked.volume)?.ok_or_else(|| failed("it is not staged"))?;
            fs::File::create(target).map_err(failed)?;
            bind(Path::new(&device)).map_err(failed)?;
            return Ok(Empty {});
        }
        fs::create_dir_all(target).map_err(failed)?;
        if asked.staging.is_empty() {
            mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).map_err(failed)?;
            for (key, value) in &asked.context {
                fs::write(target.join(key.replace('/', "_")), value).map_err(failed)?;
            }
            return Ok(Empty {});
        }
        bind(Path::new(&asked.staging)).map_err(failed)?;
        if asked.read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(failed)?;
        }
        Ok(Empty {})
    }

    fn expand(&self, asked: &Expand) -> Result<Expanded, Status> {
        let bytes = asked.range.as_ref().map_or(0, |r| r.required);
        let image = fs::File::options().write(true).open(self.image(&asked.volume)).map_err(failed)?;
        image.set_len(u64::try_from(bytes).unwrap_or(0)).map_err(failed)?;
        let device = self.attached(&asked.volume)?.ok_or_else(|| failed("it is not staged"))?;
        run("losetup", &["--set-capacity", &device])?;
        if asked.capability.as_ref().is_none_or(|c| c.block.is_none()) {
            // While it is mounted that takes CAP_SYS_RESOURCE, which not every root has.
            run("resize2fs", &[&device]).or_else(|_| grow_unmounted(&device, asked))?;
        }
        Ok(Expanded { capacity: bytes })
    }

    /// Notes a call; whether it is one that gets no answer.
    fn note(&self, method: &str) -> bool {
        let calls = fs::File::options().create(true).append(true).open(self.data.join("calls"));
        let noted = calls.and_then(|mut calls| writeln!(calls, "{method}"));
        if let Err(error) = noted {
            eprintln!("a call is not noted: {error}");
        }
        let hold = self.data.join("hold");
        let holds = fs::read_to_string(&hold).is_ok_and(|text| text.trim() == method);
        holds && fs::remove_file(hold).is_ok()
    }

    async fn answer(&self, request: http::Request<Incoming>) -> Answer {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let holds = self.note(&method);
        let answer = self.carry_out(&method, request).await;
        if holds {
            let _ = fs::write(self.data.join("held"), method);
            std::future::pending::<()>().await;
        }
        answer
    }

    async fn carry_out(&self, method: &str, request: http::Request<Incoming>) -> Answer {
        match method {
            "GetInfo" => {
                let info = PluginInfo {
                    kind: "CSIPlugin".into(),
                    name: NAME.into(),
                    endpoint: String::new(),
                    versions: vec!["1.0.0".into()],
                };
                grpc::unary(request, async |_: Empty| Ok(info)).await
            }
            "NotifyRegistrationStatus" => {
                let told = async |told: Registered| {
                    fs::write(self.data.join("registered"), told.error).map_err(failed)?;
                    Ok(Empty {})
                };
                grpc::unary(request, told).await
            }
            "NodeGetInfo" => {
                let segments = Map::from([(format!("topology.{NAME}/zone"), "here".to_owned())]);
                let info =
                    NodeInfo { id: "node-of-loops".into(), most: 5, topology: Some(Topology { segments }) };
                grpc::unary(request, async |_: Empty| Ok(info)).await
            }
            "NodeGetCapabilities" => {
                let all = Capabilities::of(&[rpc::STAGE, rpc::STATISTICS, rpc::EXPAND]);
                grpc::unary(request, async |_: Empty| Ok(all)).await
            }
            "NodeStageVolume" => grpc::unary(request, async |asked: Stage| self.stage(&asked)).await,
            "NodeUnstageVolume" => grpc::unary(request, async |asked: VolumeAt| self.unstage(&asked)).await,
            "NodePublishVolume" => grpc::unary(request, async |asked: Publish| self.publish(&asked)).await,
            "NodeUnpublishVolume" => {
                grpc::unary(request, async |asked: VolumeAt| unmount(Path::new(&asked.path))).await
            }
            "NodeGetVolumeStats" => {
                grpc::unary(request, async |asked: VolumeAt| statistics(Path::new(&asked.path))).await
            }
            "NodeExpandVolume" => grpc::unary(request, async |asked: Expand| self.expand(&asked)).await,
            _ => grpc::unknown(&request),
        }
    }
}

/// Makes a file system larger that nobody uses yet, while it is not mounted.
fn grow_unmounted(device: &str, asked: &Expand) -> Result<String, Status> {
    let places = [Path::new(&asked.path), Path::new(&asked.staging)];
    for place in places {
        umount2(place, MntFlags::empty()).map_err(failed)?;
    }
    run("e2fsck", &["-f", "-y", device])?;
    let said = run("resize2fs", &[device])?;
    let [target, staging] = places;
    mount(Some(Path::new(device)), staging, Some("ext4"), MsFlags::empty(), None::<&str>).map_err(failed)?;
    mount(Some(staging), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
    Ok(said)
}

/// Unmounts and removes what is at a place; fine when nothing is.
fn unmount(at: &Path) -> Done {
    if mountinfo::is_mounted(at) {
        umount2(at, MntFlags::empty()).map_err(failed)?;
    }
    match fs::symlink_metadata(at) {
        Ok(found) if found.is_dir() => fs::remove_dir(at).map_err(failed)?,
        Ok(_) => fs::remove_file(at).map_err(failed)?,
        Err(_) => {}
    }
    Ok(Empty {})
}

fn statistics(path: &Path) -> Result<Statistics, Status> {
    let stat = statvfs(path).map_err(failed)?;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let bytes = |blocks: u64| number(blocks * stat.fragment_size());
    let bytes = Usage {
        available: bytes(stat.blocks_available()),
        total: bytes(stat.blocks()),
        used: bytes(stat.blocks() - stat.blocks_free()),
        unit: 1,
    };
    let inodes = Usage {
        available: number(stat.files_free()),
        total: number(stat.files()),
        used: number(stat.files() - stat.files_free()),
        unit: 2,
    };
    Ok(Statistics { usage: vec![bytes, inodes] })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let socket = arguments.next().context("which socket?")?;
    let data = arguments.next().context("which data directory?")?;
    fs::create_dir_all(&data)?;
    let driver = Arc::new(Driver { data });
    let listener = grpc::listen(&socket).with_context(|| format!("listen at {}", socket.display()))?;
    let answer = move |request| {
        let driver = driver.clone();
        async move { driver.answer(request).await }
    };
    grpc::serve(listener, answer, CancellationToken::new()).await;
    Ok(())
}
