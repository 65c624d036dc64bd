//! The real [`Runtime`]: one shim process a pod.

mod interactive;

use super::cgroup::Cgroups;
use super::client::{self, Connection};
use super::launch::Programs;
use super::layout::{self, Layout, Record, check_id, io_error};
use super::spec::{self, Surroundings};
use super::{
    ContainerSpec, ContainerState, ContainerStatus, ExecResult, ExitRecord, Resources, Runtime, RuntimeError,
    RuntimeEvent, SandboxSpec, SandboxStatus, Session, Streams, host,
    usage::{self, PodUsage},
};
use crate::image::{ImageError, ImageStore, pod_of_volume_lease};
use kelp_runtime_protocol::{self as protocol, Request, Response, Sandbox, files};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// How long a shim may take for what needs no work of a container.
const ANSWER: Duration = Duration::from_secs(10);
/// How long making a container may take: images on slow disks, loaded hosts.
const START: Duration = Duration::from_secs(120);
/// How long output of a finished command is waited for when something in the container still holds the pipe.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);
/// Bytes kept of each output stream of [`Runtime::exec`].
const MAX_OUTPUT: usize = 16 * 1024;

/// Settings of [`ShimRuntime`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Directory for sockets and state that a reboot may lose, such as `/run/kelp`.
    pub run_dir: PathBuf,
    /// Directory for the writable layers of containers, such as `/var/lib/kelp`.
    pub data_dir: PathBuf,
    /// Root of the node's cgroups, relative to each hierarchy, such as `kelp`.
    pub cgroup_root: PathBuf,
    /// cgroup v2 directory under which shims live; by default the mount of the hierarchy.
    pub cgroup2_dir: Option<PathBuf>,
    /// Size in bytes at which a container's log file is set aside; 0 means never.
    pub log_max_size: u64,
    /// Log files kept of a container.
    pub log_max_files: u32,
}

/// The kubelet's default of `containerLogMaxSize`, bytes.
pub const LOG_MAX_SIZE: u64 = 10 << 20;
/// The kubelet's default of `containerLogMaxFiles`.
pub const LOG_MAX_FILES: u32 = 5;

/// Runs pods behind shims. Clones share everything. Dropping it leaves pods as they are; another one with the same
/// settings finds them again.
#[derive(Clone)]
pub struct ShimRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    layout: Layout,
    cgroups: Cgroups,
    images: ImageStore,
    programs: Programs,
    log_max_size: u64,
    log_max_files: u32,
    events: broadcast::Sender<RuntimeEvent>,
    /// Tasks that listen to shims.
    watchers: Mutex<BTreeMap<String, JoinHandle<()>>>,
    /// Sandboxes that are being made or removed: their shim may be absent for good reason.
    busy: Mutex<BTreeSet<String>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for watcher in self.watchers.get_mut().values() {
            watcher.abort();
        }
    }
}

/// Marks a sandbox as being made or removed.
struct Busy<'a> {
    set: &'a Mutex<BTreeSet<String>>,
    id: String,
}

impl<'a> Busy<'a> {
    fn mark(set: &'a Mutex<BTreeSet<String>>, id: &str) -> Self {
        set.lock().insert(id.to_owned());
        Self { set, id: id.to_owned() }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.set.lock().remove(&self.id);
    }
}

impl ShimRuntime {
    /// Finds the pods of this node and listens to their shims. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] when a directory cannot be made or no cgroup hierarchy is mounted.
    pub async fn open(config: &RuntimeConfig, images: ImageStore) -> Result<Self, RuntimeError> {
        let layout = Layout::new(&config.run_dir, &config.data_dir)?;
        let cgroups = Cgroups::detect(&config.cgroup_root, config.cgroup2_dir.as_deref())
            .map_err(|source| RuntimeError::Io { action: "cannot use cgroups".into(), source })?;
        let programs = Programs::load().map_err(|source| RuntimeError::Io {
            action: "cannot load the shim into memory".into(),
            source,
        })?;
        let runtime = Self {
            inner: Arc::new(Inner {
                layout,
                cgroups,
                images,
                programs,
                log_max_size: config.log_max_size,
                log_max_files: config.log_max_files,
                events: broadcast::channel(4096).0,
                watchers: Mutex::default(),
                busy: Mutex::default(),
            }),
        };
        runtime.sweep()?;
        for sandbox in runtime.inner.layout.sandboxes()? {
            if let Err(error) = runtime.watch(&sandbox).await {
                tracing::warn!(%sandbox, %error, "cannot listen to a shim");
            }
        }
        Ok(runtime)
    }

    /// Removes what belongs to no sandbox: remains of a removal, or of pods from before a reboot.
    fn sweep(&self) -> Result<(), RuntimeError> {
        let Inner { layout, images, .. } = &*self.inner;
        let mut users = BTreeSet::new();
        for sandbox in layout.sandboxes()? {
            if !layout.sandbox_file(&sandbox, files::SANDBOX).exists() {
                layout::remove(&layout.sandbox(&sandbox))?;
                continue;
            }
            users.extend(layout.records(&sandbox)?.iter().map(|r| lease(&sandbox, &r.id)));
        }
        for sandbox in layout.sandboxes_with_data()? {
            if !layout.sandbox_file(&sandbox, files::SANDBOX).exists() {
                layout::remove(&layout.sandbox_data(&sandbox))?;
            }
        }
        // The volumes of a pod are as old as its directory.
        let volume = |user: &str| pod_of_volume_lease(user).is_some_and(|pod| layout.pod_files(pod).exists());
        images.retain_leases(|user| users.contains(user) || volume(user)).map_err(image_error)
    }

    /// Passes a shim's events on until it ends.
    async fn watch(&self, sandbox: &str) -> Result<(), RuntimeError> {
        let dir = self.inner.layout.sandbox(sandbox);
        let failed = |source| RuntimeError::Io {
            action: format!("cannot listen to the shim of sandbox {sandbox}"),
            source,
        };
        let Some(connection) = Connection::open(&dir).map_err(failed)? else { return Ok(()) };
        within(ANSWER, connection.call(&Request::Subscribe, &[])).await.map_err(failed)?;
        let id = sandbox.to_owned();
        let events = self.inner.events.clone();
        let task = tokio::spawn(async move {
            loop {
                match connection.receive::<protocol::Event>().await {
                    Ok(Some((protocol::Event::Exited { container }, _))) => {
                        let sandbox = id.clone();
                        let _ = events.send(RuntimeEvent::ContainerExited { sandbox, container });
                    }
                    Ok(None) => break,
                    Err(error) if client::is_end(&error) => break,
                    Err(error) => {
                        tracing::warn!(sandbox = %id, %error, "a shim sent something unreadable");
                        break;
                    }
                }
            }
            let _ = events.send(RuntimeEvent::SandboxLost { sandbox: id });
        });
        let old = self.inner.watchers.lock().insert(sandbox.to_owned(), task);
        if let Some(old) = old {
            old.abort();
        }
        Ok(())
    }

    fn unwatch(&self, sandbox: &str) {
        if let Some(watcher) = self.inner.watchers.lock().remove(sandbox) {
            watcher.abort();
        }
    }

    fn sandbox(&self, id: &str) -> Result<Sandbox, RuntimeError> {
        check_id("sandbox", id)?;
        layout::read(&self.inner.layout.sandbox_file(id, files::SANDBOX))?
            .ok_or_else(|| RuntimeError::NotFound { kind: "sandbox", id: id.to_owned() })
    }

    /// A connection to a sandbox's shim; an error when it is gone.
    fn connect(&self, sandbox: &str) -> Result<Connection, RuntimeError> {
        let dir = self.inner.layout.sandbox(sandbox);
        match Connection::open(&dir) {
            Ok(Some(connection)) => Ok(connection),
            Ok(None) => Err(shim_error(sandbox, "it is gone; remove and create the sandbox again")),
            Err(error) => Err(shim_error(sandbox, format!("cannot connect: {error}"))),
        }
    }

    async fn shim_status(&self, sandbox: &str) -> Result<Option<protocol::ShimStatus>, RuntimeError> {
        let dir = self.inner.layout.sandbox(sandbox);
        let failed = |error: io::Error| shim_error(sandbox, error.to_string());
        let Some(connection) = Connection::open(&dir).map_err(failed)? else { return Ok(None) };
        match within(ANSWER, connection.call(&Request::Status, &[])).await {
            Ok(Response::Status(status)) => Ok(Some(status)),
            Ok(other) => Err(shim_error(sandbox, format!("unexpected answer {other:?}"))),
            // It ended while we spoke.
            Err(error) if client::is_end(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    async fn observe(&self, id: &str) -> Result<Option<SandboxStatus>, RuntimeError> {
        let sandbox = match self.sandbox(id) {
            Ok(sandbox) => sandbox,
            Err(RuntimeError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let shim = self.shim_status(id).await?;
        let is_busy = self.inner.busy.lock().contains(id);
        if shim.is_none() && !is_busy {
            self.bury(&sandbox).await?;
        }
        let known: BTreeMap<&str, &protocol::ContainerState> = shim
            .iter()
            .flat_map(|status| &status.containers)
            .map(|container| (container.id.as_str(), &container.state))
            .collect();
        let mut containers = Vec::new();
        for record in self.inner.layout.records(id)? {
            let state = match known.get(record.id.as_str()) {
                Some(state) => container_state(state),
                None => match self.exit_record(id, &record.id)? {
                    Some(record) => ContainerState::Exited(exit_record(&record)),
                    None => ContainerState::Created,
                },
            };
            containers.push(container_status(record, state));
        }
        let shim_pid = shim.as_ref().and_then(|s| u32::try_from(s.pid).ok());
        Ok(Some(SandboxStatus {
            id: sandbox.id,
            namespace: sandbox.namespace,
            name: sandbox.name,
            ready: shim_pid.is_some(),
            shim_pid: shim_pid.unwrap_or(0),
            netns: shim_pid
                .filter(|_| !sandbox.host_network)
                .map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net"))),
            created_at: timestamp(sandbox.created_at),
            containers,
        }))
    }

    fn exit_record(
        &self,
        sandbox: &str,
        container: &str,
    ) -> Result<Option<protocol::ExitRecord>, RuntimeError> {
        layout::read(&self.inner.layout.bundle(sandbox, container).join(files::EXIT))
    }

    /// The shim is gone: kills what it left, and records the containers whose end nobody saw.
    async fn bury(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let mut lost = Vec::new();
        for record in self.inner.layout.records(&sandbox.id)? {
            if self.exit_record(&sandbox.id, &record.id)?.is_none() {
                lost.push(record);
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        let cgroups = self.inner.cgroups.clone();
        let pod = sandbox.pod_cgroup.clone();
        let shim = sandbox.shim_cgroup.clone();
        blocking("kill the processes of a lost pod", move || cgroups.kill(&pod, shim)).await?;
        let now = jiff::Timestamp::now().as_millisecond();
        for record in lost {
            let bundle = self.inner.layout.bundle(&sandbox.id, &record.id);
            let exit = protocol::ExitRecord {
                exit_code: 137,
                signal: None,
                oom: false,
                start_error: None,
                lost: true,
                started_at: record.created_at,
                finished_at: now,
            };
            layout::write(&bundle.join(files::EXIT), &exit)?;
        }
        Ok(())
    }

    fn read_usage(&self, sandbox: &Sandbox, shim: Option<i32>, records: &[Record]) -> Option<PodUsage> {
        let Inner { layout, cgroups, .. } = &*self.inner;
        let usage = usage::read(cgroups, &sandbox.pod_cgroup)?;
        let containers = records
            .iter()
            .filter_map(|record| {
                let cgroup = sandbox.pod_cgroup.join(&record.id);
                let usage = usage::read(cgroups, &cgroup)?;
                let writable = layout.container_data(&sandbox.id, &record.id).join("u");
                Some(usage::ContainerUsage { id: record.id.clone(), cgroup, usage, writable })
            })
            .collect();
        let devices = match shim.filter(|_| !sandbox.host_network) {
            Some(pid) => usage::devices(Path::new(&format!("/proc/{pid}/net/dev"))),
            None => Vec::new(),
        };
        Some(PodUsage { cgroup: sandbox.pod_cgroup.clone(), usage, containers, devices })
    }

    /// Who a container runs as, which its image has a say in: the helper wrote it into the bundle.
    fn resolved_user(&self, sandbox: &str, container: &str) -> Option<(u32, u32, Vec<u32>)> {
        let config = self.inner.layout.bundle(sandbox, container).join(files::CONFIG);
        let config: serde_json::Value = layout::read(&config).ok().flatten()?;
        let user = &config["process"]["user"];
        let number = |value: &serde_json::Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let groups = user["additionalGids"].as_array().into_iter().flatten().filter_map(number).collect();
        Some((number(&user["uid"])?, number(&user["gid"])?, groups))
    }

    async fn stop_shim(&self, sandbox: &str) -> Result<(), RuntimeError> {
        let dir = self.inner.layout.sandbox(sandbox);
        let Ok(Some(connection)) = Connection::open(&dir) else { return Ok(()) };
        let process = connection.process();
        let answer = within(ANSWER, connection.call(&Request::Shutdown, &[])).await;
        if let Err(error) = &answer
            && !client::is_end(error)
        {
            tracing::warn!(sandbox, %error, "a shim does not shut down; it is killed");
        }
        if let Ok(process) = process {
            if answer.is_err() {
                send_kill(&process);
            }
            let interest = tokio::io::Interest::READABLE;
            // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and AsyncFd drops it last.
            let ended = unsafe { AsyncFd::register_with_interest(process, interest) };
            if let Ok(ended) = ended {
                let _ = tokio::time::timeout(ANSWER, ended.readable()).await;
            }
        }
        Ok(())
    }

    fn surroundings(&self, sandbox: &Sandbox, container: &str, shim_pid: i32) -> Surroundings {
        let layout = &self.inner.layout;
        let hostname_file = layout.sandbox_file(&sandbox.id, "hostname");
        Surroundings {
            shim_pid,
            host_network: sandbox.host_network,
            host_pid: sandbox.host_pid,
            host_ipc: sandbox.host_ipc,
            pause_pid: sandbox
                .share_pid
                .then(|| std::fs::read_to_string(layout.sandbox_file(&sandbox.id, files::PAUSE)).ok())
                .flatten()
                .and_then(|text| text.trim().parse().ok()),
            shm: layout.sandbox_file(&sandbox.id, "shm"),
            hostname_file: hostname_file.exists().then_some(hostname_file),
            hostname: sandbox.hostname.clone(),
            cgroup: sandbox.pod_cgroup.join(container),
            v1: Vec::new(),
            unified: self.inner.cgroups.is_unified(),
            bounding: host::bounding_set(),
            host_devices: Vec::new(),
        }
    }

    /// Writes the bundle of a container and returns the request that starts it.
    fn prepare_container(
        &self,
        sandbox: &Sandbox,
        spec: &ContainerSpec,
        shim_pid: i32,
        joined: Option<i32>,
    ) -> Result<protocol::Start, RuntimeError> {
        let Inner { layout, images, cgroups, .. } = &*self.inner;
        let bundle = layout.bundle(&sandbox.id, &spec.id);
        let layers = images.acquire(&spec.image_id, &lease(&sandbox.id, &spec.id)).map_err(image_error)?;
        layout::make_dir(&bundle.join(files::ROOTFS))?;
        let data = layout.container_data(&sandbox.id, &spec.id);
        layout::make_dir(&data)?;
        let log = sandbox.log_dir.join(&spec.log_path);
        if let Some(dir) = log.parent() {
            layout::make_dir(dir)?;
        }
        let mut around = self.surroundings(sandbox, &spec.id, shim_pid);
        around.pause_pid = joined.or(around.pause_pid);
        let made = cgroups.create_container(&around.cgroup);
        around.v1 = made.map_err(|e| io_error("create the cgroups of", &around.cgroup, e))?;
        if spec.privileged {
            around.host_devices = host::devices();
        }
        // One that is asked for by name wins over the host's own at that place.
        for asked in &spec.devices {
            around.host_devices.retain(|d| d.path != asked.destination);
            around.host_devices.push(host::device(asked)?);
        }
        layout::write(&bundle.join(files::CONFIG), &spec::generate(spec, &around))?;
        let record = Record {
            id: spec.id.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            image_id: spec.image_id.clone(),
            image_ref: spec.image_ref.clone(),
            oom_score_adj: spec.resources.oom_score_adj,
            log_path: spec.log_path.clone(),
            created_at: jiff::Timestamp::now().as_millisecond(),
        };
        layout::write(&layout.record(&sandbox.id, &spec.id), &record)?;
        let watched = cgroups.container_files(&around.cgroup);
        Ok(protocol::Start {
            container: spec.id.clone(),
            log,
            oom_file: watched.oom,
            procs_file: watched.procs,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            log_max_size: self.inner.log_max_size,
            log_max_files: self.inner.log_max_files,
            job: protocol::CreateJob {
                container: spec.id.clone(),
                bundle,
                state_dir: layout.sandbox_file(&sandbox.id, files::STATE),
                root: protocol::Overlay {
                    layers_dir: layers.dir,
                    lower: layers.names,
                    upper: data.join("u"),
                    work: data.join("w"),
                },
                shm: (!sandbox.host_ipc).then_some(around.shm),
                user: protocol::User {
                    uid: spec.uid,
                    gid: spec.gid,
                    name: spec.user.clone(),
                    additional_gids: spec.additional_gids.clone(),
                    strict: spec.strict_groups,
                },
                oom_score_adj: spec.resources.oom_score_adj,
                late: spec::late_mounts(spec),
            },
        })
    }

    async fn start_shim(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let this = self.clone();
        let dir = self.inner.layout.sandbox(&sandbox.id);
        let failed = |error: io::Error| shim_error(&sandbox.id, error.to_string());
        let started = tokio::task::spawn_blocking(move || this.inner.programs.start_shim(&dir));
        match started.await.map_err(io::Error::other).and_then(|r| r) {
            // An agent that was killed has started it a moment ago. Nothing tells when it listens.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                for _ in 0..100 {
                    if self.shim_status(&sandbox.id).await?.is_some() {
                        return Ok(());
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(failed(error))
            }
            other => other.map_err(failed),
        }
    }

    async fn make_sandbox(&self, spec: &SandboxSpec) -> Result<(), RuntimeError> {
        let Inner { layout, cgroups, .. } = &*self.inner;
        let dir = layout.sandbox(&spec.id);
        let cgroup_error = |source| RuntimeError::Io {
            action: format!("cannot make the cgroups of sandbox {}: {source}", spec.id),
            source,
        };
        let sandbox = Sandbox {
            id: spec.id.clone(),
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            hostname: spec.hostname.clone(),
            host_network: spec.host_network,
            host_pid: spec.host_pid,
            host_ipc: spec.host_ipc,
            share_pid: spec.share_pid && !spec.host_pid,
            sysctls: spec.sysctls.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            shim_cgroup: cgroups.shim(&spec.id),
            pod_cgroup: cgroups.pod(&spec.cgroup).map_err(cgroup_error)?,
            log_dir: spec.log_dir.clone(),
            created_at: jiff::Timestamp::now().as_millisecond(),
        };
        // The description comes first: whatever is made after it can be found and removed.
        layout::make_dir(&dir)?;
        layout::write(&dir.join(files::SANDBOX), &sandbox)?;
        self.bury(&sandbox).await?;
        layout::make_dir(&dir.join("shm"))?;
        let hostname = dir.join("hostname");
        std::fs::write(&hostname, format!("{}\n", spec.hostname))
            .map_err(|e| io_error("write", &hostname, e))?;
        layout::make_dir(&spec.log_dir)?;
        let (this, resources) = (self.clone(), spec.resources.clone());
        let (id, pod) = (spec.id.clone(), sandbox.pod_cgroup.clone());
        blocking("make the pod's cgroups", move || {
            this.inner.cgroups.create_pod(&pod, &resources)?;
            this.inner.cgroups.create_shim(&id).map(drop)
        })
        .await?;
        self.start_shim(&sandbox).await
    }
}

impl Runtime for ShimRuntime {
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        check_id("sandbox", &spec.id)?;
        if self.shim_status(&spec.id).await?.is_none() {
            let _busy = Busy::mark(&self.inner.busy, &spec.id);
            self.unwatch(&spec.id);
            self.make_sandbox(spec).await?;
            self.watch(&spec.id).await?;
        }
        let gone = || RuntimeError::NotFound { kind: "sandbox", id: spec.id.clone() };
        self.observe(&spec.id).await?.ok_or_else(gone)
    }

    async fn start_container(
        &self,
        sandbox: &str,
        spec: &ContainerSpec,
    ) -> Result<ContainerStatus, RuntimeError> {
        check_id("container", &spec.id)?;
        let description = self.sandbox(sandbox)?;
        let find = |status: Option<SandboxStatus>| {
            status.and_then(|s| s.containers.into_iter().find(|c| c.id == spec.id))
        };
        if let Some(found) = find(self.observe(sandbox).await?)
            && found.state != ContainerState::Created
        {
            return Ok(found);
        }
        let Some(shim) = self.shim_status(sandbox).await? else {
            return Err(shim_error(sandbox, "it is gone; remove and create the sandbox again"));
        };
        let (this, spec_copy) = (self.clone(), spec.clone());
        // It lives: its PID stays its own until the shim has seen its end, and the helper opens it before that counts.
        let joined = shim.containers.iter().find(|c| Some(&c.id) == spec.joins.as_ref());
        let joined = joined.and_then(|c| match c.state {
            protocol::ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        });
        let start = tokio::task::spawn_blocking(move || {
            this.prepare_container(&description, &spec_copy, shim.pid, joined)
        });
        let start = start.await.map_err(|e| shim_error(sandbox, e.to_string()))??;
        let connection = self.connect(sandbox)?;
        let answer = within(START, connection.call(&Request::Start(Box::new(start)), &[])).await;
        match answer.map_err(|e| shim_error(sandbox, e.to_string()))? {
            Response::Started { .. } => {
                let found = find(self.observe(sandbox).await?);
                let user = self.resolved_user(sandbox, &spec.id);
                found
                    .map(|status| ContainerStatus { user, ..status })
                    .ok_or_else(|| RuntimeError::NotFound { kind: "container", id: spec.id.clone() })
            }
            Response::Failed(failure) if failure.exit_code != 0 => {
                Err(RuntimeError::Start { message: failure.message, exit_code: failure.exit_code })
            }
            Response::Failed(failure) => Err(shim_error(sandbox, failure.message)),
            other => Err(shim_error(sandbox, format!("unexpected answer {other:?}"))),
        }
    }

    async fn signal_container(
        &self,
        sandbox: &str,
        container: &str,
        signal: i32,
    ) -> Result<(), RuntimeError> {
        self.sandbox(sandbox)?;
        check_id("container", container)?;
        if !self.inner.layout.record(sandbox, container).exists() {
            return Err(RuntimeError::NotFound { kind: "container", id: container.to_owned() });
        }
        let request = Request::Signal { container: container.to_owned(), signal };
        let answer = within(ANSWER, self.connect(sandbox)?.call(&request, &[])).await;
        done(sandbox, answer)
    }

    async fn remove_container(&self, sandbox: &str, container: &str) -> Result<(), RuntimeError> {
        check_id("container", container)?;
        let description = match self.sandbox(sandbox) {
            Ok(description) => description,
            Err(RuntimeError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Ok(Some(connection)) = Connection::open(&self.inner.layout.sandbox(sandbox)) {
            let request = Request::Remove { container: container.to_owned() };
            // Whatever a shim has left behind is killed with the cgroup below.
            if let Err(error) = within(ANSWER, connection.call(&request, &[])).await {
                tracing::warn!(sandbox, container, %error, "a shim did not remove a container");
            }
        }
        let cgroups = self.inner.cgroups.clone();
        let path = description.pod_cgroup.join(container);
        blocking("remove a container's cgroup", move || cgroups.destroy(&path, None)).await?;
        let (this, sandbox, container) = (self.clone(), sandbox.to_owned(), container.to_owned());
        let remove = tokio::task::spawn_blocking(move || {
            let Inner { layout, images, .. } = &*this.inner;
            let bundle = layout.bundle(&sandbox, &container);
            layout::remove(&layout.sandbox_file(&sandbox, files::STATE).join(&container))?;
            layout::remove(&layout.container_data(&sandbox, &container))?;
            if let Some(record) = layout::read::<Record>(&layout.record(&sandbox, &container))? {
                layout::remove(&description.log_dir.join(&record.log_path))?;
                images.release(&record.image_id, &lease(&sandbox, &container)).map_err(image_error)?;
            }
            layout::remove_keeping(&bundle, "record.json")
        });
        remove.await.map_err(|e| RuntimeError::Io {
            action: "cannot remove a container".into(),
            source: io::Error::other(e),
        })?
    }

    async fn remove_sandbox(&self, sandbox: &str) -> Result<(), RuntimeError> {
        let description = match self.sandbox(sandbox) {
            Ok(description) => description,
            Err(RuntimeError::NotFound { .. }) => {
                self.unwatch(sandbox);
                return layout::remove(&self.inner.layout.sandbox(sandbox));
            }
            Err(error) => return Err(error),
        };
        let _busy = Busy::mark(&self.inner.busy, sandbox);
        self.unwatch(sandbox);
        self.stop_shim(sandbox).await?;
        let cgroups = self.inner.cgroups.clone();
        let (pod, shim) = (description.pod_cgroup.clone(), description.shim_cgroup.clone());
        blocking("remove a pod's cgroups", move || cgroups.destroy(&pod, shim)).await?;
        let this = self.clone();
        let remove = tokio::task::spawn_blocking(move || {
            let Inner { layout, images, .. } = &*this.inner;
            let id = &description.id;
            layout::remove(&layout.sandbox_data(id))?;
            // Logs outlive the sandbox: a finished pod's are read until its Pod is deleted.
            for record in layout.records(id)? {
                images.release(&record.image_id, &lease(id, &record.id)).map_err(image_error)?;
            }
            layout::remove_keeping(&layout.sandbox(id), files::SANDBOX)
        });
        remove.await.map_err(|e| RuntimeError::Io {
            action: "cannot remove a sandbox".into(),
            source: io::Error::other(e),
        })?
    }

    async fn update_resources(
        &self,
        sandbox: &str,
        container: Option<&str>,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
        let pod = self.sandbox(sandbox)?.pod_cgroup;
        let path = match container {
            Some(container) => {
                check_id("container", container)?;
                pod.join(container)
            }
            None => pod,
        };
        let (cgroups, resources) = (self.inner.cgroups.clone(), resources.clone());
        blocking("change the limits of a cgroup", move || cgroups.update(&path, &resources)).await
    }

    async fn writable_bytes(&self, sandbox: &str, container: &str) -> Result<u64, RuntimeError> {
        check_id("sandbox", sandbox)?;
        check_id("container", container)?;
        let upper = self.inner.layout.container_data(sandbox, container).join("u");
        blocking("measure a root filesystem", move || Ok(crate::disk::usage(&upper))).await
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        let mut found = Vec::new();
        for sandbox in self.inner.layout.sandboxes()? {
            match self.observe(&sandbox).await {
                Ok(status) => found.extend(status),
                // One sandbox in trouble must not hide the others.
                Err(error) => tracing::warn!(%sandbox, %error, "cannot observe a sandbox"),
            }
        }
        Ok(found)
    }

    async fn status(&self, sandbox: &str) -> Result<Option<SandboxStatus>, RuntimeError> {
        check_id("sandbox", sandbox)?;
        self.observe(sandbox).await
    }

    async fn exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        timeout: Duration,
    ) -> Result<ExecResult, RuntimeError> {
        self.sandbox(sandbox)?;
        check_id("container", container)?;
        let layout = &self.inner.layout;
        let record: Record = layout::read(&layout.record(sandbox, container))?
            .ok_or_else(|| RuntimeError::NotFound { kind: "container", id: container.to_owned() })?;
        let request = Request::Exec(Box::new(protocol::Exec {
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            keep: false,
            job: protocol::ExecJob {
                container: container.to_owned(),
                bundle: layout.bundle(sandbox, container),
                state_dir: layout.sandbox_file(sandbox, files::STATE),
                argv: argv.to_vec(),
                tty: false,
                oom_score_adj: record.oom_score_adj,
            },
        }));
        let failed = |error: io::Error| shim_error(sandbox, format!("cannot exec: {error}"));
        let connection = self.connect(sandbox)?;
        let null = std::fs::File::open("/dev/null").map_err(failed)?;
        let (out_writer, mut stdout) = output_pipe().map_err(failed)?;
        let (err_writer, mut stderr) = output_pipe().map_err(failed)?;
        let fds = [null.as_raw_fd(), out_writer.as_raw_fd(), err_writer.as_raw_fd()];
        connection.send(&request, &fds).await.map_err(failed)?;
        drop((out_writer, err_writer));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let response = {
            let output =
                async { tokio::join!(capture(&mut stdout, &mut out), capture(&mut stderr, &mut err)) };
            let answer = async { connection.receive::<Response>().await };
            tokio::pin!(output, answer);
            tokio::select! {
                answer = &mut answer => {
                    // What the command wrote is in the pipes already; a child of it may keep them open.
                    let _ = tokio::time::timeout(OUTPUT_GRACE, output).await;
                    answer
                }
                _ = &mut output => answer.await,
            }
        };
        match response.map_err(failed)? {
            Some((Response::Exited { exit_code, timed_out }, _)) => {
                Ok(ExecResult { exit_code, stdout: out, stderr: err, timed_out })
            }
            Some((Response::Failed(failure), _)) if failure.exit_code != 0 => {
                Err(RuntimeError::Start { message: failure.message, exit_code: failure.exit_code })
            }
            Some((Response::Failed(failure), _)) => Err(shim_error(sandbox, failure.message)),
            Some((other, _)) => Err(shim_error(sandbox, format!("unexpected answer {other:?}"))),
            None => Err(shim_error(sandbox, "it ended during exec")),
        }
    }

    async fn open_exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        self.exec_session(sandbox, container, argv, streams).await
    }

    async fn attach(
        &self,
        sandbox: &str,
        container: &str,
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        self.attach_session(sandbox, container, streams).await
    }

    async fn close_stdin(&self, sandbox: &str, container: &str) -> Result<(), RuntimeError> {
        self.close_container_stdin(sandbox, container).await
    }

    async fn usage(&self, sandbox: &str) -> Result<Option<PodUsage>, RuntimeError> {
        let description = match self.sandbox(sandbox) {
            Ok(description) => description,
            Err(RuntimeError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let shim = self.shim_status(sandbox).await?.map(|s| s.pid);
        let records = self.inner.layout.records(sandbox)?;
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || this.read_usage(&description, shim, &records));
        read.await.map_err(|e| shim_error(sandbox, e.to_string()))
    }

    async fn pods_usage(&self) -> Option<usage::Usage> {
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let path = this.inner.cgroups.pod(Path::new(PODS)).ok()?;
            usage::read(&this.inner.cgroups, &path)
        });
        read.await.ok().flatten()
    }

    async fn limit_pods(&self, resources: &Resources) -> Result<(), RuntimeError> {
        let (this, resources) = (self.clone(), resources.clone());
        let set = tokio::task::spawn_blocking(move || {
            let path = this.inner.cgroups.pod(Path::new(PODS))?;
            this.inner.cgroups.create_pod(&path, &resources)
        });
        let failed = |source| RuntimeError::Io { action: "cannot limit the pods' cgroup".into(), source };
        set.await.map_err(|e| failed(std::io::Error::other(e)))?.map_err(failed)
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }
}

/// Cgroup of all pods, below the node's root.
const PODS: &str = "kubepods";

/// Name of a container's claim on its image.
fn lease(sandbox: &str, container: &str) -> String {
    format!("{sandbox}_{container}")
}

fn shim_error(sandbox: &str, message: impl Into<String>) -> RuntimeError {
    RuntimeError::Shim { sandbox: sandbox.to_owned(), message: message.into() }
}

fn image_error(error: ImageError) -> RuntimeError {
    match error {
        ImageError::NotFound(image) => {
            RuntimeError::Image { image, message: "it is not on this node".to_owned() }
        }
        ImageError::Io { action, source } => RuntimeError::Io { action, source },
        other => RuntimeError::Image { image: String::new(), message: other.to_string() },
    }
}

fn done(sandbox: &str, answer: io::Result<Response>) -> Result<(), RuntimeError> {
    match answer {
        Ok(Response::Done) => Ok(()),
        Ok(Response::Failed(failure)) => Err(shim_error(sandbox, failure.message)),
        Ok(other) => Err(shim_error(sandbox, format!("unexpected answer {other:?}"))),
        Err(error) => Err(shim_error(sandbox, error.to_string())),
    }
}

async fn within<T>(time: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(time, future).await {
        Ok(result) => result,
        Err(_) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", time.as_secs())))
        }
    }
}

async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, RuntimeError> {
    let result = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    result
        .and_then(|r| r)
        .map_err(|source| RuntimeError::Io { action: format!("cannot {what}: {source}"), source })
}

fn send_kill(process: &OwnedFd) {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal accepts a null siginfo; a process that is gone already is what we want.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, none, 0);
    }
}

fn output_pipe() -> io::Result<(OwnedFd, pipe::Receiver)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((writer, pipe::Receiver::from_owned_fd(reader)?))
}

/// Reads to the end, keeping the beginning.
async fn capture(source: &mut pipe::Receiver, kept: &mut Vec<u8>) {
    let mut buffer = vec![0; MAX_OUTPUT];
    while let Ok(n) = source.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
}

fn timestamp(milliseconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(milliseconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

fn container_status(record: Record, state: ContainerState) -> ContainerStatus {
    ContainerStatus {
        id: record.id,
        name: record.name,
        attempt: record.attempt,
        image_id: record.image_id,
        image_ref: record.image_ref,
        state,
        user: None,
    }
}

fn container_state(state: &protocol::ContainerState) -> ContainerState {
    match state {
        protocol::ContainerState::Starting => ContainerState::Created,
        protocol::ContainerState::Running { pid, started_at } => ContainerState::Running {
            pid: u32::try_from(*pid).unwrap_or(0),
            started_at: timestamp(*started_at),
        },
        protocol::ContainerState::Exited(record) => ContainerState::Exited(exit_record(record)),
    }
}

fn exit_record(record: &protocol::ExitRecord) -> ExitRecord {
    let reason = if record.start_error.is_some() {
        "StartError"
    } else if record.lost {
        "ContainerStatusUnknown"
    } else if record.oom {
        "OOMKilled"
    } else if record.exit_code == 0 {
        "Completed"
    } else {
        "Error"
    };
    ExitRecord {
        exit_code: record.exit_code,
        signal: record.signal,
        reason: reason.to_owned(),
        message: record.start_error.clone().unwrap_or_default(),
        started_at: timestamp(record.started_at),
        finished_at: timestamp(record.finished_at),
    }
}

#[cfg(test)]
mod tests;
