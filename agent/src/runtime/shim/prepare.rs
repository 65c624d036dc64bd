//! Making sandboxes, and the bundles that containers are made of.

use super::{Inner, ShimRuntime, blocking, image_error, lease, shim_error};
use crate::runtime::layout::{self, Record, io_error};
use crate::runtime::spec::{self, Surroundings};
use crate::runtime::{ContainerSpec, RuntimeError, SandboxSpec, host};
use kelp_runtime_protocol::{self as protocol, Sandbox, files};
use std::io;
use std::time::Duration;

impl ShimRuntime {
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
            users: sandbox.users.is_some(),
        }
    }

    /// Writes the bundle of a container and returns the request that starts it.
    pub(super) fn prepare_container(
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
                shm: (!sandbox.host_ipc).then(|| around.shm.clone()),
                user: protocol::User {
                    uid: spec.uid,
                    gid: spec.gid,
                    name: spec.user.clone(),
                    additional_gids: spec.additional_gids.clone(),
                    strict: spec.strict_groups,
                },
                oom_score_adj: spec.resources.oom_score_adj,
                late: spec::late_mounts(spec, &around),
                users: sandbox.users,
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

    pub(super) async fn make_sandbox(&self, spec: &SandboxSpec) -> Result<(), RuntimeError> {
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
            users: spec.users,
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
