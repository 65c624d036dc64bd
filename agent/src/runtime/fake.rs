//! In-memory [`Runtime`] for tests of everything above the seam, and a wrapper that makes calls fail.
//!
//! [`FakeRuntime`] keeps the promises of the trait: calls are idempotent, statuses are listed in start order, and an
//! exit is announced on the event channel. Tests end containers and shims by hand.

use super::{
    ContainerSpec, ContainerState, ContainerStatus, ExecResult, ExitRecord, Resources, Runtime, RuntimeError,
    RuntimeEvent, SandboxSpec, SandboxStatus, Session, Streams, session,
    usage::{ContainerUsage, PodUsage, Usage},
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::broadcast;

/// One call that reached the fake, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`Runtime::create_sandbox`] with the sandbox id.
    CreateSandbox(String),
    /// [`Runtime::start_container`] with sandbox and container id.
    StartContainer(String, String),
    /// [`Runtime::signal_container`] with sandbox, container and signal.
    Signal(String, String, i32),
    /// [`Runtime::remove_container`] with sandbox and container id.
    RemoveContainer(String, String),
    /// [`Runtime::remove_sandbox`] with the sandbox id.
    RemoveSandbox(String),
    /// [`Runtime::exec`] with sandbox, container and command.
    Exec(String, String, Vec<String>),
}

type ExecHandler = Box<dyn Fn(&str, &str, &[String]) -> ExecResult + Send + Sync>;

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    start_errors: BTreeMap<String, (String, i32)>,
    ignores_term: BTreeSet<String>,
    calls: Vec<Call>,
    next_pid: u32,
    exec: Option<ExecHandler>,
}

struct Sandbox {
    spec: SandboxSpec,
    status: SandboxStatus,
    specs: BTreeMap<String, ContainerSpec>,
}

/// A runtime whose containers exist in memory only. Clones share their state.
#[derive(Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<RuntimeEvent>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// A node without sandboxes.
    pub fn new() -> Self {
        let state = State { next_pid: 1000, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), events: broadcast::channel(1024).0 }
    }

    /// Every changing call so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.state.lock().calls.clear();
    }

    /// The spec a sandbox was created with.
    pub fn sandbox_spec(&self, sandbox: &str) -> Option<SandboxSpec> {
        self.state.lock().sandboxes.get(sandbox).map(|s| s.spec.clone())
    }

    /// The spec a container was started with.
    pub fn container_spec(&self, sandbox: &str, container: &str) -> Option<ContainerSpec> {
        self.state.lock().sandboxes.get(sandbox)?.specs.get(container).cloned()
    }

    /// From now on starting a container named `name` (its name in the Pod spec) fails with this message and code.
    pub fn fail_start(&self, name: &str, message: &str, exit_code: i32) {
        self.state.lock().start_errors.insert(name.to_owned(), (message.to_owned(), exit_code));
    }

    /// Starting a container named `name` works again.
    pub fn heal_start(&self, name: &str) {
        self.state.lock().start_errors.remove(name);
    }

    /// A container named `name` survives every signal but SIGKILL.
    pub fn ignore_term(&self, name: &str) {
        self.state.lock().ignores_term.insert(name.to_owned());
    }

    /// What [`Runtime::exec`] returns; without a handler every command succeeds without output.
    pub fn on_exec(&self, handler: impl Fn(&str, &str, &[String]) -> ExecResult + Send + Sync + 'static) {
        self.state.lock().exec = Some(Box::new(handler));
    }

    /// Ends a running container's first process by itself. `false` if it does not run.
    pub fn exit(&self, sandbox: &str, container: &str, exit_code: i32) -> bool {
        let reason = if exit_code == 0 { "Completed" } else { "Error" };
        self.end(sandbox, container, exit_code, None, reason)
    }

    /// Ends a running container as the kernel's OOM killer does. `false` if it does not run.
    pub fn oom_kill(&self, sandbox: &str, container: &str) -> bool {
        self.end(sandbox, container, 137, Some(libc::SIGKILL), "OOMKilled")
    }

    /// Kills a sandbox's shim: the sandbox is no longer ready, its containers run on.
    pub fn lose_shim(&self, sandbox: &str) -> bool {
        let mut state = self.state.lock();
        let Some(found) = state.sandboxes.get_mut(sandbox) else { return false };
        found.status.ready = false;
        found.status.netns = None;
        drop(state);
        let _ = self.events.send(RuntimeEvent::SandboxLost { sandbox: sandbox.to_owned() });
        true
    }

    fn end(&self, sandbox: &str, container: &str, exit_code: i32, signal: Option<i32>, reason: &str) -> bool {
        let mut state = self.state.lock();
        let Some(status) = state.container(sandbox, container) else { return false };
        let ContainerState::Running { started_at, .. } = status.state else { return false };
        status.state = ContainerState::Exited(ExitRecord {
            exit_code,
            signal,
            reason: reason.to_owned(),
            message: String::new(),
            started_at,
            finished_at: jiff::Timestamp::now(),
        });
        drop(state);
        let _ = self.events.send(RuntimeEvent::ContainerExited {
            sandbox: sandbox.to_owned(),
            container: container.to_owned(),
        });
        true
    }
}

impl State {
    fn sandbox(&mut self, id: &str) -> Result<&mut Sandbox, RuntimeError> {
        self.sandboxes
            .get_mut(id)
            .ok_or_else(|| RuntimeError::NotFound { kind: "sandbox", id: id.to_owned() })
    }

    fn container(&mut self, sandbox: &str, id: &str) -> Option<&mut ContainerStatus> {
        self.sandboxes.get_mut(sandbox)?.status.containers.iter_mut().find(|c| c.id == id)
    }

    fn pid(&mut self) -> u32 {
        self.next_pid += 1;
        self.next_pid
    }
}

impl Runtime for FakeRuntime {
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        let mut state = self.state.lock();
        state.calls.push(Call::CreateSandbox(spec.id.clone()));
        let pid = state.pid();
        let netns = (!spec.host_network).then(|| PathBuf::from(format!("/proc/{pid}/ns/net")));
        if let Some(found) = state.sandboxes.get_mut(&spec.id) {
            if !found.status.ready {
                found.status.ready = true;
                found.status.shim_pid = pid;
                found.status.netns = netns;
            }
            return Ok(found.status.clone());
        }
        let status = SandboxStatus {
            id: spec.id.clone(),
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            ready: true,
            shim_pid: pid,
            netns,
            created_at: jiff::Timestamp::now(),
            containers: Vec::new(),
        };
        let sandbox = Sandbox { spec: spec.clone(), status: status.clone(), specs: BTreeMap::new() };
        state.sandboxes.insert(spec.id.clone(), sandbox);
        Ok(status)
    }

    async fn start_container(
        &self,
        sandbox: &str,
        spec: &ContainerSpec,
    ) -> Result<ContainerStatus, RuntimeError> {
        let mut state = self.state.lock();
        state.calls.push(Call::StartContainer(sandbox.to_owned(), spec.id.clone()));
        if let Some(found) = state.container(sandbox, &spec.id) {
            return Ok(found.clone());
        }
        let pid = state.pid();
        let error = state.start_errors.get(&spec.name).cloned();
        let found = state.sandbox(sandbox)?;
        if !found.status.ready {
            return Err(RuntimeError::Shim {
                sandbox: sandbox.to_owned(),
                message: "the shim is gone".to_owned(),
            });
        }
        let now = jiff::Timestamp::now();
        let container_state = match &error {
            None => ContainerState::Running { pid, started_at: now },
            Some((message, exit_code)) => ContainerState::Exited(ExitRecord {
                exit_code: *exit_code,
                signal: None,
                reason: "StartError".to_owned(),
                message: message.clone(),
                started_at: now,
                finished_at: now,
            }),
        };
        let status = ContainerStatus {
            id: spec.id.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            image_id: spec.image_id.clone(),
            image_ref: spec.image_ref.clone(),
            state: container_state,
        };
        found.status.containers.push(status.clone());
        found.specs.insert(spec.id.clone(), spec.clone());
        match error {
            None => Ok(status),
            Some((message, exit_code)) => Err(RuntimeError::Start { message, exit_code }),
        }
    }

    async fn signal_container(
        &self,
        sandbox: &str,
        container: &str,
        signal: i32,
    ) -> Result<(), RuntimeError> {
        let survives = {
            let mut state = self.state.lock();
            state.calls.push(Call::Signal(sandbox.to_owned(), container.to_owned(), signal));
            let Some(found) = state.container(sandbox, container) else {
                return Err(RuntimeError::NotFound { kind: "container", id: container.to_owned() });
            };
            let name = found.name.clone();
            signal != libc::SIGKILL && state.ignores_term.contains(&name)
        };
        if !survives {
            self.end(sandbox, container, 128 + signal, Some(signal), "Error");
        }
        Ok(())
    }

    async fn remove_container(&self, sandbox: &str, container: &str) -> Result<(), RuntimeError> {
        let mut state = self.state.lock();
        state.calls.push(Call::RemoveContainer(sandbox.to_owned(), container.to_owned()));
        if let Some(found) = state.sandboxes.get_mut(sandbox) {
            found.status.containers.retain(|c| c.id != container);
            found.specs.remove(container);
        }
        Ok(())
    }

    async fn remove_sandbox(&self, sandbox: &str) -> Result<(), RuntimeError> {
        let mut state = self.state.lock();
        state.calls.push(Call::RemoveSandbox(sandbox.to_owned()));
        state.sandboxes.remove(sandbox);
        Ok(())
    }

    async fn update_resources(
        &self,
        sandbox: &str,
        container: Option<&str>,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
        let mut state = self.state.lock();
        let found = state.sandbox(sandbox)?;
        match container {
            None => found.spec.resources = resources.clone(),
            Some(id) => {
                let spec = found.specs.get_mut(id);
                let missing = || RuntimeError::NotFound { kind: "container", id: id.to_owned() };
                spec.ok_or_else(missing)?.resources = resources.clone();
            }
        }
        Ok(())
    }

    async fn writable_bytes(&self, sandbox: &str, _container: &str) -> Result<u64, RuntimeError> {
        self.state.lock().sandbox(sandbox).map(|_| 0)
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.state.lock().sandboxes.values().map(|s| s.status.clone()).collect())
    }

    async fn status(&self, sandbox: &str) -> Result<Option<SandboxStatus>, RuntimeError> {
        Ok(self.state.lock().sandboxes.get(sandbox).map(|s| s.status.clone()))
    }

    fn container_user(&self, sandbox: &str, container: &str) -> Option<(u32, u32, Vec<u32>)> {
        let state = self.state.lock();
        let found = state.sandboxes.get(sandbox)?;
        let spec = found.specs.get(container)?;
        // As an image whose user is number 7 has it.
        Some((spec.uid.unwrap_or(7), spec.gid.unwrap_or(7), spec.additional_gids.clone()))
    }

    async fn exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        _timeout: Duration,
    ) -> Result<ExecResult, RuntimeError> {
        let mut state = self.state.lock();
        state.calls.push(Call::Exec(sandbox.to_owned(), container.to_owned(), argv.to_vec()));
        match state.container(sandbox, container) {
            Some(ContainerStatus { state: ContainerState::Running { .. }, .. }) => {}
            _ => {
                return Err(RuntimeError::NotFound { kind: "container", id: container.to_owned() });
            }
        }
        Ok(match &state.exec {
            Some(handler) => handler(sandbox, container, argv),
            None => ExecResult { exit_code: 0, stdout: Vec::new(), stderr: Vec::new(), timed_out: false },
        })
    }

    /// The command gets its input back as output; its exit code and standard error are the exec handler's.
    async fn open_exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        let result = self.exec(sandbox, container, argv, Duration::MAX).await?;
        Ok(echo(streams, result))
    }

    /// As [`Runtime::open_exec`], ending with code 0.
    async fn attach(
        &self,
        sandbox: &str,
        container: &str,
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        let result = self.exec(sandbox, container, &[], Duration::MAX).await?;
        Ok(echo(streams, result))
    }

    async fn close_stdin(&self, _sandbox: &str, _container: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Each container uses 1 ms of CPU and 1 MiB of memory.
    async fn usage(&self, sandbox: &str) -> Result<Option<PodUsage>, RuntimeError> {
        let state = self.state.lock();
        let Some(found) = state.sandboxes.get(sandbox) else { return Ok(None) };
        let one = Usage {
            time: jiff::Timestamp::now(),
            cpu_ns: 1_000_000,
            memory: 1 << 20,
            working_set: 1 << 20,
            ..Usage::default()
        };
        let running = |c: &&ContainerStatus| matches!(c.state, ContainerState::Running { .. });
        let containers: Vec<ContainerUsage> = found
            .status
            .containers
            .iter()
            .filter(running)
            .map(|c| ContainerUsage {
                id: c.id.clone(),
                cgroup: found.spec.cgroup.join(&c.id),
                usage: one.clone(),
                writable: PathBuf::from("/nowhere"),
            })
            .collect();
        let count = containers.len() as u64;
        let usage = Usage {
            cpu_ns: count * one.cpu_ns,
            memory: count * one.memory,
            working_set: count * one.working_set,
            ..one
        };
        let cgroup = found.spec.cgroup.clone();
        Ok(Some(PodUsage { cgroup, usage, containers, devices: Vec::new() }))
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }
}

/// A process that writes what the result says and, after it, what it reads.
fn echo(streams: Streams, result: ExecResult) -> Session {
    let (client_in, mut process_in) = tokio::io::duplex(4096);
    let (mut process_out, client_out) = tokio::io::duplex(4096);
    let (mut process_err, client_err) = tokio::io::duplex(4096);
    let stdin = streams.stdin.then(|| Box::new(client_in) as session::Input);
    let end = tokio::spawn(async move {
        let _ = process_out.write_all(&result.stdout).await;
        let _ = process_err.write_all(&result.stderr).await;
        let _ = tokio::io::copy(&mut process_in, &mut process_out).await;
        result.exit_code
    });
    Session {
        stdin,
        stdout: streams.stdout.then(|| Box::new(client_out) as session::Output),
        stderr: streams.stderr.then(|| Box::new(client_err) as session::Output),
        terminal: None,
        end: Box::pin(async move { Ok(end.await.unwrap_or(-1)) }),
    }
}

/// Whether a faulted call does its work before it reports an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails before anything is done.
    Before,
    /// The work is done, but the answer is lost: what a crash between the two looks like.
    After,
    /// The caller's process ends before anything is done: the call never returns.
    DiesBefore,
    /// The caller's process ends once the work is done: the call never returns.
    DiesAfter,
}

type FaultPlan = dyn Fn(u64, &'static str) -> Option<Fault> + Send + Sync;

/// Makes calls of another runtime fail as a plan says.
#[derive(Clone)]
pub struct FaultyRuntime<R> {
    inner: R,
    plan: Arc<FaultPlan>,
    calls: Arc<AtomicU64>,
}

impl<R: Runtime> FaultyRuntime<R> {
    /// `plan` is asked for every call with its number (from 0) and the method's name.
    pub fn new(inner: R, plan: impl Fn(u64, &'static str) -> Option<Fault> + Send + Sync + 'static) -> Self {
        Self { inner, plan: Arc::new(plan), calls: Arc::new(AtomicU64::new(0)) }
    }

    /// The wrapped runtime.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    async fn faulted<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, RuntimeError>>,
    ) -> Result<T, RuntimeError> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let error = || RuntimeError::Io {
            action: format!("{method} (injected fault in call {number})"),
            source: std::io::Error::other("injected"),
        };
        match (self.plan)(number, method) {
            None => call.await,
            Some(Fault::Before) => Err(error()),
            Some(Fault::After) => {
                call.await?;
                Err(error())
            }
            Some(Fault::DiesBefore) => std::future::pending().await,
            Some(Fault::DiesAfter) => {
                let _ = call.await;
                std::future::pending().await
            }
        }
    }
}

impl<R: Runtime> Runtime for FaultyRuntime<R> {
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        self.faulted("create_sandbox", self.inner.create_sandbox(spec)).await
    }

    async fn start_container(
        &self,
        sandbox: &str,
        spec: &ContainerSpec,
    ) -> Result<ContainerStatus, RuntimeError> {
        self.faulted("start_container", self.inner.start_container(sandbox, spec)).await
    }

    async fn signal_container(
        &self,
        sandbox: &str,
        container: &str,
        signal: i32,
    ) -> Result<(), RuntimeError> {
        self.faulted("signal_container", self.inner.signal_container(sandbox, container, signal)).await
    }

    async fn remove_container(&self, sandbox: &str, container: &str) -> Result<(), RuntimeError> {
        self.faulted("remove_container", self.inner.remove_container(sandbox, container)).await
    }

    async fn remove_sandbox(&self, sandbox: &str) -> Result<(), RuntimeError> {
        self.faulted("remove_sandbox", self.inner.remove_sandbox(sandbox)).await
    }

    async fn update_resources(
        &self,
        sandbox: &str,
        container: Option<&str>,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
        let call = self.inner.update_resources(sandbox, container, resources);
        self.faulted("update_resources", call).await
    }

    async fn writable_bytes(&self, sandbox: &str, container: &str) -> Result<u64, RuntimeError> {
        self.faulted("writable_bytes", self.inner.writable_bytes(sandbox, container)).await
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        self.faulted("list", self.inner.list()).await
    }

    async fn status(&self, sandbox: &str) -> Result<Option<SandboxStatus>, RuntimeError> {
        self.faulted("status", self.inner.status(sandbox)).await
    }

    fn container_user(&self, sandbox: &str, container: &str) -> Option<(u32, u32, Vec<u32>)> {
        self.inner.container_user(sandbox, container)
    }

    async fn exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        timeout: Duration,
    ) -> Result<ExecResult, RuntimeError> {
        self.faulted("exec", self.inner.exec(sandbox, container, argv, timeout)).await
    }

    async fn open_exec(
        &self,
        sandbox: &str,
        container: &str,
        argv: &[String],
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        self.faulted("open_exec", self.inner.open_exec(sandbox, container, argv, streams)).await
    }

    async fn attach(
        &self,
        sandbox: &str,
        container: &str,
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        self.faulted("attach", self.inner.attach(sandbox, container, streams)).await
    }

    async fn close_stdin(&self, sandbox: &str, container: &str) -> Result<(), RuntimeError> {
        self.faulted("close_stdin", self.inner.close_stdin(sandbox, container)).await
    }

    async fn usage(&self, sandbox: &str) -> Result<Option<PodUsage>, RuntimeError> {
        self.faulted("usage", self.inner.usage(sandbox)).await
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events()
    }
}

#[cfg(test)]
mod tests;
