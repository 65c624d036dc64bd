//! The real [`Runtime`]: one shim process a pod.

mod command;
mod interactive;
mod observe;
mod orphans;
mod prepare;

use super::cgroup::Cgroups;
use super::client::{self, Connection};
use super::launch::Programs;
use super::layout::{self, Layout, Record, check_id};
use super::{
    ContainerSpec, ContainerState, ContainerStatus, ExecResult, Resources, Runtime, RuntimeError,
    RuntimeEvent, SandboxSpec, SandboxStatus, Session, Streams,
    usage::{self, PodUsage},
};
use crate::image::{ImageError, ImageStore, pod_of_volume_lease};
use kelp_runtime_protocol::{self as protocol, Request, Response, Sandbox, files};
use orphans::Orphan;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// How long a shim may take for what needs no work of a container.
const ANSWER: Duration = Duration::from_secs(10);
/// How long making a container may take: images on slow disks, loaded hosts.
const START: Duration = Duration::from_secs(120);

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
    /// Containers that run without a shim, by sandbox and id.
    orphans: Mutex<BTreeMap<(String, String), Orphan>>,
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
                orphans: Mutex::default(),
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
                send_signal(&process, libc::SIGKILL);
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
            Response::Started { .. } => find(self.observe(sandbox).await?)
                .ok_or_else(|| RuntimeError::NotFound { kind: "container", id: spec.id.clone() }),
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
        if self.signal_orphan(sandbox, container, signal) {
            return Ok(());
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
        self.forget_orphans(sandbox, Some(container));
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
        self.forget_orphans(sandbox, None);
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

    fn container_user(&self, sandbox: &str, container: &str) -> Option<(u32, u32, Vec<u32>)> {
        check_id("sandbox", sandbox).and_then(|()| check_id("container", container)).ok()?;
        self.resolved_user(sandbox, container)
    }

    async fn exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        timeout: Duration,
    ) -> Result<ExecResult, RuntimeError> {
        self.run_command(sandbox, container, argv, timeout).await
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

    async fn own_usage(&self) -> Option<usage::Usage> {
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
            let path = usage::own_cgroup(&text)?;
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

fn send_signal(process: &OwnedFd, signal: i32) {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal accepts a null siginfo; a process that is gone already is what we want.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, none, 0);
    }
}

#[cfg(test)]
mod tests;
