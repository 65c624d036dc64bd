//! Starts a container: image, configuration, process, postStart hook.

use super::pull::NoImage;
use super::{Message, RETRY, Worker, after};
use crate::network::{PodNetwork, chain};
use crate::pod::container::{self, Managed, Parts};
use crate::pod::context::ResolvedImage;
use crate::pod::environment;
use crate::pod::events::Kind;
use crate::pod::hooks;
use crate::runtime::{ContainerSpec, Runtime, RuntimeError};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;
use kelp_model::pod::backoff;
use kelp_model::pod::spec;

/// How often an image was not there.
#[derive(Debug, Clone)]
pub struct ImageBackoff {
    pub(super) delay: SignedDuration,
    pub(super) until: Timestamp,
    pub(super) cause: String,
}

/// What comes before the reason why a command does not start. Clients know it from the runtime that upstream is used
/// with, and look for what follows.
pub(super) const START_ERROR: &str = "failed to create containerd task: failed to create shim task: OCI runtime create failed: \
    runc create failed: unable to start container process: error during container init: ";

/// Reason and message of a container that cannot be started.
pub(super) type Waiting = (String, String);

impl<R: Runtime, N: PodNetwork> Worker<R, N> {
    /// Starts a container. `true`: something changed, look again at once.
    pub(super) async fn start_container(
        &mut self,
        name: &str,
        attempt: u32,
        ended: Option<Timestamp>,
    ) -> bool {
        let pod = self.pod.clone();
        let Some((kind, container)) = pod.spec.as_ref().and_then(|s| spec::find_any(s, name)) else {
            return false;
        };
        let container = container.as_ref();
        match self.set_up_image_volumes(container).await {
            Ok(()) => {}
            Err(NoImage::Pulling) => return false,
            Err(NoImage::Waiting(waiting, retry)) => {
                self.hold(name, waiting, retry);
                return false;
            }
        }
        let (image, text) = match self.image(container).await {
            Ok(found) => found,
            Err(NoImage::Pulling) => return false,
            Err(NoImage::Waiting(waiting, retry)) => {
                self.hold(name, waiting, retry);
                return false;
            }
        };
        let path = self.field_path(name);
        self.context.events.container(&self.reference, &path, Kind::Normal, "Pulled", text);
        let (spec, user) = match self.container_spec(container, attempt, &image).await {
            Ok(both) => both,
            Err(waiting) => {
                let text = format!("Error: {}", waiting.1);
                self.context.events.container(&self.reference, &path, Kind::Warning, "Failed", text);
                self.hold(name, waiting, after(RETRY));
                return false;
            }
        };
        if let Some(ended) = ended {
            let memory = self.memories.entry(name.to_owned()).or_default();
            let mut raised = backoff::raise(memory.backoff.as_ref(), ended, Timestamp::now());
            let longest =
                self.context.config.kubelet.settings.crash_loop_back_off.max_container_restart_period;
            if let Some(longest) = longest {
                raised.delay = raised.delay.min(jiff::SignedDuration::from_nanos(longest.0));
            }
            memory.backoff = Some(raised);
        }
        let started = self.context.runtime.start_container(&self.reference.uid, &spec).await;
        let container_type = self.container_type(name);
        crate::metrics::STARTED_CONTAINERS.count(&[container_type]);
        if started.is_err() {
            crate::metrics::STARTED_CONTAINERS_ERRORS.count(&[container_type, "RunContainerError"]);
        }
        match started {
            Ok(_) => {
                let shown = self.user_of(&spec.id);
                let events = &self.context.events;
                events.container(&self.reference, &path, Kind::Normal, "Created", "Container created");
                events.container(&self.reference, &path, Kind::Normal, "Started", "Container started");
                self.failures = 0;
                let memory = self.memories.entry(name.to_owned()).or_default();
                memory.waiting = None;
                memory.retry_at = None;
                memory.unhealthy = None;
                memory.killing = false;
                memory.started = container.startup_probe.is_none();
                memory.ready = container.readiness_probe.is_none();
                memory.user = shown.or_else(|| user.known());
                self.attempts.insert(name.to_owned(), attempt);
                if kind != spec::Kind::Init {
                    self.post_start(container, attempt, &spec.id);
                }
                true
            }
            Err(RuntimeError::Start { message, .. }) => {
                let events = &self.context.events;
                events.container(&self.reference, &path, Kind::Normal, "Created", "Container created");
                events.container(
                    &self.reference,
                    &path,
                    Kind::Warning,
                    "Failed",
                    format!("Error: {START_ERROR}{message}"),
                );
                let memory = self.memories.entry(name.to_owned()).or_default();
                memory.waiting = Some(("RunContainerError".into(), message));
                memory.user = user.known();
                true
            }
            Err(error) => {
                let text = chain(&error);
                let events = &self.context.events;
                events.container(&self.reference, &path, Kind::Warning, "Failed", format!("Error: {text}"));
                let retry = self.retry();
                self.hold(name, ("CreateContainerError".into(), text), retry);
                false
            }
        }
    }

    /// Who a container runs as, as its status shows it.
    pub(super) fn user_of(&self, id: &str) -> Option<(i64, i64, Vec<i64>)> {
        let (uid, gid, groups) = self.context.runtime.container_user(&self.reference.uid, id)?;
        Some(container::shown_user(uid, gid, &groups))
    }

    fn hold(&mut self, name: &str, waiting: Waiting, retry: Option<Timestamp>) {
        let memory = self.memories.entry(name.to_owned()).or_default();
        memory.waiting = Some(waiting);
        memory.retry_at = retry;
    }

    async fn container_spec(
        &self,
        container: &Container,
        attempt: u32,
        image: &ResolvedImage,
    ) -> Result<(ContainerSpec, container::User), Waiting> {
        let config_error = |text: String| ("CreateContainerConfigError".to_owned(), text);
        let create_error = |text: String| ("CreateContainerError".to_owned(), text);
        let links = self.pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        let services =
            self.context.services.variables(&self.reference.namespace, links).await.map_err(config_error)?;
        let env = environment::resolve(container, &self.context.objects, &self.downward(), &services)
            .await
            .map_err(config_error)?;
        let user = container::user(&self.pod, container, &image.config).map_err(config_error)?;
        let dir = self.context.config.pod_dir(&self.reference.uid);
        let termination = self.termination_file(&container.name, attempt);
        make_termination_file(&termination)
            .map_err(|e| create_error(format!("cannot create {}: {e}", termination.display())))?;
        let managed = Managed {
            hosts: dir.join("etc-hosts"),
            hostname: dir.join("hostname"),
            resolv: dir.join("resolv.conf"),
            termination: termination.clone(),
        };
        let paths = self.volumes.clone().unwrap_or_default();
        let mounts = container::mounts(&self.pod, container, &paths, &managed, &env).map_err(config_error)?;
        let devices = container::devices(&self.pod, container, &paths).map_err(config_error)?;
        let hostname = self.kernel_hostname();
        let mut spec = container::spec(Parts {
            pod: &self.pod,
            profiles: self.context.config.data_dir.join("seccomp"),
            seccomp_default: self.context.config.kubelet.settings.seccomp_default,
            container,
            attempt,
            image_id: &image.id,
            image: &image.config,
            env: &env,
            hostname: &hostname,
            mounts,
            devices,
            user: &user,
            limits: self.context.container_limits(&self.pod, container),
            termination,
        })
        .map_err(create_error)?;
        spec.joins = self.target_of(&container.name);
        if !self.context.limits_time(&self.reference.uid, Some(&container.name)) {
            spec.resources.cpu_quota_us = None;
        }
        spec.resources.cpus = self.context.cpus.of(&self.reference.uid, &container.name);
        let grants = self.context.devices.start(&self.reference.uid, &container.name).await;
        for grant in grants.map_err(config_error)? {
            container::add_devices(&mut spec, grant);
        }
        Ok((spec, user))
    }

    /// The container whose processes an ephemeral container sees.
    fn target_of(&self, name: &str) -> Option<String> {
        let spec = self.pod.spec.as_ref()?;
        let own = spec.ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
        let target = own.target_container_name.as_ref().filter(|t| !t.is_empty())?;
        self.attempts.get(target).map(|attempt| format!("{target}.{attempt}"))
    }

    fn post_start(&mut self, container: &Container, attempt: u32, id: &str) {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.clone()) else { return };
        if let Some(memory) = self.memories.get_mut(&container.name) {
            memory.in_post_start = true;
        }
        let (context, sender, pod) = (self.context.clone(), self.sender.clone(), self.reference.clone());
        let (container, id, ip) =
            (container.clone(), id.to_owned(), self.downward().pod_ips.first().copied());
        let task = tokio::spawn(async move {
            let result =
                hooks::run(&context.runtime, &pod, &container, &id, ip, &hook, &context.events).await;
            let _ = sender.send(Message::PostStart { name: container.name, attempt, result }).await;
        });
        self.probes.hook(task.abort_handle());
    }

    pub(super) fn take_post_start(&mut self, name: &str, attempt: u32, result: Result<(), String>) {
        if self.attempts.get(name) != Some(&attempt) {
            return;
        }
        let path = self.field_path(name);
        let memory = self.memories.entry(name.to_owned()).or_default();
        memory.in_post_start = false;
        if let Err(text) = result {
            memory.waiting = Some(("PostStartHookError".into(), text));
            memory.unhealthy = Some("FailedPostStartHook".into());
            let events = &self.context.events;
            events.container(
                &self.reference,
                &path,
                Kind::Warning,
                "FailedPostStartHook",
                "PostStartHook failed",
            );
        }
    }
}

/// The file a container writes its message to; whatever user it runs as.
fn make_termination_file(path: &std::path::Path) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::File::options().create(true).append(true).open(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
}
