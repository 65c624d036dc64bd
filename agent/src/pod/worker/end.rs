//! A pod that shall end: kill in order, report the final status, leave nothing behind.

use super::{Phase, Wake, Worker};
use crate::network::PodNetwork;
use crate::pod::container::stop_signal;
use crate::pod::context::Context;
use crate::pod::events::Kind as EventKind;
use crate::pod::hooks;
use crate::pod::reference::PodRef;
use crate::pod::volumes;
use crate::runtime::Runtime;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, PodStatus};
use kelp_model::pod::admission::is_static;
use kelp_model::pod::spec::{self, Kind, containers, ephemeral};
use kelp_model::pod::view::{Observed, Sandbox, State};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Least time between the request to stop and SIGKILL.
const LEAST: Duration = Duration::from_secs(2);
/// Time after which SIGKILL is sent again.
const AGAIN: Duration = Duration::from_secs(5);

/// Kills under way, by container id.
#[derive(Debug, Default)]
pub struct Kills {
    tasks: HashMap<String, AbortHandle>,
    /// `Killing` was told.
    told: Vec<String>,
    /// End of the pod's grace period, once it is ending.
    deadline: Option<watch::Sender<Instant>>,
    /// The grace period the deadline was made of.
    grace: Option<i64>,
}

impl Kills {
    /// A container has ended.
    pub fn ended(&mut self, id: &str) {
        if let Some(task) = self.tasks.remove(id) {
            task.abort();
        }
    }

    /// Stops waiting; processes that were told to end go on ending.
    pub fn clear(&mut self) {
        self.tasks.drain().for_each(|(_, task)| task.abort());
        self.told.clear();
    }

    /// Everything was ended, and is to begin anew.
    pub fn reset(&mut self) {
        self.clear();
        self.deadline = None;
        self.grace = None;
    }
}

impl Drop for Kills {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Asks a container to stop and kills it when its time is over. Ends when it is dropped: on the container's exit.
struct Kill<R, N> {
    context: Arc<Context<R, N>>,
    pod: PodRef,
    container: Container,
    id: String,
    field_path: String,
    pre_stop: Option<LifecycleHandler>,
    ip: Option<IpAddr>,
    signal: i32,
    deadline: watch::Receiver<Instant>,
}

impl<R: Runtime, N: PodNetwork> Kill<R, N> {
    async fn run(mut self) {
        if let Some(hook) = self.pre_stop.take() {
            let mut deadline = self.deadline.clone();
            let hook = hooks::run(
                &self.context.runtime,
                &self.pod,
                &self.container,
                &self.id,
                self.ip,
                &hook,
                &self.context.events,
            );
            let result = tokio::select! {
                result = hook => result,
                () = passed(&mut deadline) => Err("it did not end within the grace period".to_owned()),
            };
            if let Err(error) = result {
                tracing::info!(pod = %self.pod, container = self.container.name, error, "preStop hook failed");
                let events = &self.context.events;
                let (kind, reason) = (EventKind::Warning, "FailedPreStopHook");
                events.container(&self.pod, &self.field_path, kind, reason, "PreStopHook failed");
            }
        }
        self.send(self.signal).await;
        let least = Instant::now() + LEAST;
        let mut deadline = self.deadline.clone();
        passed(&mut deadline).await;
        tokio::time::sleep_until(least).await;
        loop {
            self.send(libc::SIGKILL).await;
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn send(&self, signal: i32) {
        if let Err(error) = self.context.runtime.signal_container(&self.pod.uid, &self.id, signal).await {
            tracing::debug!(pod = %self.pod, container = self.id, signal, %error, "signal not sent");
        }
    }
}

/// Resolves when the deadline, which may move, has passed.
async fn passed(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = deadline.changed() => if changed.is_err() {
                tokio::time::sleep_until(at).await;
                return;
            },
        }
    }
}

impl<R: Runtime, N: PodNetwork> Worker<R, N> {
    /// Kills one container that will be started again.
    pub(super) fn kill_one(&mut self, name: &str, attempt: u32, message: &str) {
        let pod = self.pod.clone();
        let Some((_, container)) = pod.spec.as_ref().and_then(|s| spec::find(s, name)) else { return };
        let own = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
            probe.as_ref().and_then(|p| p.termination_grace_period_seconds)
        };
        // A probe may have its own idea of how long its container gets.
        let grace = match message {
            m if m.contains("failed startup probe") => own(&container.startup_probe),
            m if m.contains("failed liveness probe") => own(&container.liveness_probe),
            _ => None,
        };
        let grace = grace.unwrap_or_else(|| spec::grace_seconds(&pod));
        let deadline = Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let (sender, receiver) = watch::channel(deadline);
        drop(sender); // it does not move
        let path = self.field_path(name);
        self.context.events.container(&self.reference, &path, EventKind::Normal, "Killing", message);
        if let Some(memory) = self.memories.get_mut(name) {
            memory.killing = true;
        }
        self.spawn_kill(container, &format!("{name}.{attempt}"), receiver);
    }

    fn spawn_kill(&mut self, container: &Container, id: &str, deadline: watch::Receiver<Instant>) {
        let image =
            self.context.images.resolve(container.image.as_deref().unwrap_or_default()).ok().flatten();
        let kill = Kill {
            context: self.context.clone(),
            pod: self.reference.clone(),
            container: container.clone(),
            id: id.to_owned(),
            field_path: self.field_path(&container.name),
            pre_stop: container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()),
            ip: self.downward().pod_ips.first().copied(),
            signal: stop_signal(image.as_ref().map(|i| &i.config)),
            deadline,
        };
        let task = tokio::spawn(kill.run());
        if let Some(old) = self.kills.tasks.insert(id.to_owned(), task.abort_handle()) {
            old.abort();
        }
    }

    /// Final status of the pod, kept on disk from the moment its last container ended: an agent that starts anew must
    /// not run a finished pod again.
    pub(super) fn checkpoint(&self) -> PathBuf {
        self.context.config.pod_dir(&self.reference.uid).join("final-status.json")
    }

    pub(super) async fn terminate(&mut self) -> Result<Wake, String> {
        let observed = self.observe().await?;
        if let Some(status) = self.read_checkpoint() {
            self.last = status;
        } else {
            // Once for each grace period: what happens until everything has ended is not told, as upstream does it.
            let begins = self.kills.deadline.is_none() || self.kills.grace != Some(self.ending_grace());
            if begins && observed.sandbox != Sandbox::Absent {
                self.publish(&observed, true, false);
            }
            let alive = self.kill_all(&observed);
            if alive {
                return Ok(None); // an exit, a shorter grace period or a kill task goes on
            }
            self.probes.clear();
            self.kills.clear();
            self.write_final_status(&observed)?;
        }
        if observed.sandbox != Sandbox::Absent {
            self.remove_sandbox().await?;
        } else {
            // A crash between the two steps leaves the network.
            let removed = self.context.network.disconnect(&self.reference.uid).await;
            removed.map_err(|e| crate::network::chain(&e))?;
            self.pod_ips.clear();
        }
        self.report(self.last.clone());
        self.phase = Phase::Terminated;
        Ok(None)
    }

    /// Seconds that the pod's containers get to end.
    fn ending_grace(&self) -> i64 {
        let of_pod = spec::grace_seconds(&self.pod);
        self.grace.map_or(of_pod, |own| own.min(of_pod))
    }

    /// Tells every container to end that may end now. `true` while one is alive.
    pub(super) fn kill_all(&mut self, observed: &Observed) -> bool {
        let pod = self.pod.clone();
        let Some(spec) = &pod.spec else { return false };
        let grace = self.ending_grace();
        let until = Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        match &self.kills.deadline {
            None => self.kills.deadline = Some(watch::channel(until).0),
            // A second deletion may only shorten the wait.
            Some(deadline) if self.kills.grace != Some(grace) => {
                deadline.send_if_modified(|at| {
                    let shorter = until < *at;
                    *at = until.min(*at);
                    shorter
                });
            }
            Some(_) => {}
        }
        self.kills.grace = Some(grace);
        let Some(deadline) = self.kills.deadline.as_ref().map(watch::Sender::subscribe) else { return false };
        let added = ephemeral(spec);
        let running: Vec<(Kind, Container, String)> = containers(spec)
            .chain(added.iter().map(|c| (Kind::Ephemeral, c)))
            .filter_map(|(kind, c)| {
                let record = observed.latest(&c.name)?;
                let alive = !matches!(record.state, State::Exited(_));
                alive.then(|| (kind, c.clone(), format!("{}.{}", c.name, record.attempt)))
            })
            .collect();
        let ids: Vec<&String> = running.iter().map(|(_, _, id)| id).collect();
        self.kills.tasks.retain(|id, task| {
            let stays = ids.contains(&id);
            if !stays {
                task.abort();
            }
            stays
        });
        for (_, container, id) in &running {
            if !self.kills.told.contains(id) {
                self.kills.told.push(id.clone());
                let path = self.field_path(&container.name);
                let text = format!("Stopping container {}", container.name);
                self.context.events.container(&self.reference, &path, EventKind::Normal, "Killing", text);
            }
        }
        // Main containers first; then the sidecars, the last one that started first.
        let mut later_alive = false;
        let mut due = Vec::new();
        for (kind, container, id) in running.iter().rev() {
            let may_end = *kind != Kind::Sidecar || !later_alive;
            later_alive = true;
            if may_end {
                due.push((container.clone(), id.clone()));
            }
        }
        for (container, id) in due {
            // A kill for a restart has another deadline: the pod's end replaces it.
            let known = self.kills.tasks.contains_key(&id);
            let restarting = self.memories.get_mut(&container.name).map(|m| std::mem::take(&mut m.killing));
            if !known || restarting == Some(true) {
                self.spawn_kill(&container, &id, deadline.clone());
            }
        }
        // Those that wait for their turn must not wait beyond the deadline.
        let waiting: Vec<_> =
            running.iter().filter(|(_, _, id)| !self.kills.tasks.contains_key(id)).cloned().collect();
        for (_, _, id) in waiting {
            let (context, uid, mut deadline) =
                (self.context.clone(), self.reference.uid.clone(), deadline.clone());
            let key = format!("{id} at the deadline");
            if self.kills.tasks.contains_key(&key) {
                continue;
            }
            let task = tokio::spawn(async move {
                passed(&mut deadline).await;
                loop {
                    let _ = context.runtime.signal_container(&uid, &id, libc::SIGKILL).await;
                    tokio::time::sleep(AGAIN).await;
                }
            });
            self.kills.tasks.insert(key, task.abort_handle());
        }
        !running.is_empty()
    }

    /// The status manager ends with the agent: nobody answers then.
    async fn or_shutdown<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.shutdown.run_until_cancelled(future).await
    }

    fn read_checkpoint(&self) -> Option<PodStatus> {
        serde_json::from_slice(&std::fs::read(self.checkpoint()).ok()?).ok()
    }

    fn write_final_status(&mut self, observed: &Observed) -> Result<(), String> {
        let ended = self.last.phase.as_deref().is_some_and(spec::is_terminal_phase);
        if !(ended && observed.containers.is_empty()) {
            // A static pod whose manifest is gone has not come to an end of its own: its mirror says what ran last.
            let removed = self.gone && is_static(&self.wanted);
            let context = self.status_context(!removed, !removed);
            let gone = Observed { sandbox: Sandbox::Absent, ..observed.clone() };
            let observed = if removed { &gone } else { observed };
            let now = jiff::Timestamp::now();
            self.last = kelp_model::pod::status::pod_status(
                &self.pod,
                &self.last,
                observed,
                &self.memories,
                &context,
                now,
            );
        }
        let path = self.checkpoint();
        let write = || -> std::io::Result<()> {
            use std::io::Write;
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let temporary = path.with_extension("tmp");
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(&self.last)?)?;
            file.sync_data()?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(|e| format!("cannot write {}: {e}", path.display()))
    }

    /// Unmounts and removes the volumes. Every step may have been done by an agent that was killed then.
    async fn tear_down_volumes(&mut self) -> Result<(), String> {
        let dir = self.context.config.pod_dir(&self.reference.uid);
        if let Some(csi) = self.context.volumes.csi() {
            csi.tear_down(&dir).await?;
        }
        let (at, uid, images) =
            (dir.clone(), self.reference.uid.clone(), self.context.volumes.images().cloned());
        let removed = tokio::task::spawn_blocking(move || {
            volumes::tear_down_volumes(&at).map_err(|e| e.to_string())?;
            images.map_or(Ok(()), |images| images.release(&uid, &at))
        });
        let removed = removed.await.map_err(|e| e.to_string()).and_then(|removed| removed);
        removed.map_err(|why| format!("cannot remove the volumes in {}: {why}", dir.display()))?;
        self.context.volumes.forget(&self.reference.uid);
        self.volumes = None;
        self.image_volumes.clear();
        Ok(())
    }

    /// The pod is over. Its volumes go at once; its logs, its directory and its API object when it is deleted.
    pub(super) async fn finish(&mut self) -> Result<Wake, String> {
        let dir = self.context.config.pod_dir(&self.reference.uid);
        let deleted = self.gone || self.pod.metadata.deletion_timestamp.is_some();
        self.context.devices.release(&self.reference.uid);
        self.context.cpus.release(&self.reference.uid);
        let begin = std::time::Instant::now();
        let had = dir.join("volumes").exists();
        let removed = self.tear_down_volumes().await;
        if had {
            for volume in self.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
                volumes::operated(volumes::plugin(volume, None), "volume_unmount", begin, removed.is_ok());
            }
        }
        removed?;
        if !deleted {
            return Ok(None);
        }
        let shown = self.shown().cloned();
        if let Some(shown) = &shown {
            let mut status = self.last.clone();
            status.observed_generation = self.pod.metadata.generation.or(status.observed_generation);
            for condition in status.conditions.iter_mut().flatten() {
                condition.observed_generation =
                    self.pod.metadata.generation.or(condition.observed_generation);
            }
            self.report(status);
            let flushed = self.context.status.flush(shown);
            if self.or_shutdown(flushed).await.is_none() {
                return Ok(None);
            }
        }
        let PodRef { namespace, name, uid, .. } = &self.reference;
        let logs = self.context.config.pod_logs(namespace, name, uid);
        for path in [&logs, &dir] {
            match std::fs::remove_dir_all(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("cannot remove {}: {e}", path.display()));
                }
                _ => {}
            }
        }
        self.context.users.release(uid);
        if let Some(shown) = &shown {
            let deleted = self.context.status.delete(shown);
            if self.or_shutdown(deleted).await.is_none() {
                return Ok(None);
            }
        }
        self.phase = Phase::Done;
        Ok(None)
    }
}
