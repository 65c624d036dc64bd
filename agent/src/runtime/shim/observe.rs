//! What is on this node: read from the shims, and from the files of those that are gone.

use super::{ANSWER, Inner, ShimRuntime, blocking, shim_error, within};
use crate::runtime::client::{self, Connection};
use crate::runtime::layout::{self, Record};
use crate::runtime::usage::{self, PodUsage};
use crate::runtime::{ContainerState, ContainerStatus, ExitRecord, RuntimeError, SandboxStatus};
use kelp_runtime_protocol::{self as protocol, Request, Response, Sandbox, files};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

impl ShimRuntime {
    pub(super) async fn shim_status(
        &self,
        sandbox: &str,
    ) -> Result<Option<protocol::ShimStatus>, RuntimeError> {
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

    pub(super) async fn observe(&self, id: &str) -> Result<Option<SandboxStatus>, RuntimeError> {
        let sandbox = match self.sandbox(id) {
            Ok(sandbox) => sandbox,
            Err(RuntimeError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let shim = self.shim_status(id).await?;
        let is_busy = self.inner.busy.lock().contains(id);
        if shim.is_none() && !is_busy {
            self.adopt(&sandbox).await?;
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
                    None => match self.orphan_pid(id, &record.id).filter(|_| shim.is_none()) {
                        Some(pid) => {
                            ContainerState::Running { pid, started_at: timestamp(record.created_at) }
                        }
                        None => ContainerState::Created,
                    },
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

    pub(super) fn exit_record(
        &self,
        sandbox: &str,
        container: &str,
    ) -> Result<Option<protocol::ExitRecord>, RuntimeError> {
        layout::read(&self.inner.layout.bundle(sandbox, container).join(files::EXIT))
    }

    /// Kills what a shim left, and notes the containers whose end nobody saw.
    pub(super) async fn bury(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        self.forget_orphans(&sandbox.id, None);
        let mut unseen = Vec::new();
        for record in self.inner.layout.records(&sandbox.id)? {
            if self.exit_record(&sandbox.id, &record.id)?.is_none() {
                unseen.push(record);
            }
        }
        if unseen.is_empty() {
            return Ok(());
        }
        let cgroups = self.inner.cgroups.clone();
        let pod = sandbox.pod_cgroup.clone();
        let shim = sandbox.shim_cgroup.clone();
        blocking("kill the processes of a lost pod", move || cgroups.kill(&pod, shim)).await?;
        unseen.iter().try_for_each(|record| self.write_lost(&sandbox.id, record))
    }

    pub(super) fn read_usage(
        &self,
        sandbox: &Sandbox,
        shim: Option<i32>,
        records: &[Record],
    ) -> Option<PodUsage> {
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
    pub(super) fn resolved_user(&self, sandbox: &str, container: &str) -> Option<(u32, u32, Vec<u32>)> {
        let config = self.inner.layout.bundle(sandbox, container).join(files::CONFIG);
        let config: serde_json::Value = layout::read(&config).ok().flatten()?;
        let user = &config["process"]["user"];
        let number = |value: &serde_json::Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let groups = user["additionalGids"].as_array().into_iter().flatten().filter_map(number).collect();
        Some((number(&user["uid"])?, number(&user["gid"])?, groups))
    }
}

fn container_status(record: Record, state: ContainerState) -> ContainerStatus {
    ContainerStatus {
        id: record.id,
        name: record.name,
        attempt: record.attempt,
        image_id: record.image_id,
        image_ref: record.image_ref,
        state,
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

fn timestamp(milliseconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(milliseconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}
