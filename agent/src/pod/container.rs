//! What a container runs: the Pod spec and the image config resolved into a [`ContainerSpec`].

use crate::device::Grant;
use crate::image::ImageConfig;
use crate::pod::environment::Environment;
use crate::pod::reference::PodRef;
use crate::pod::volumes::{self, Paths};
use crate::runtime::{self, ContainerSpec, DeviceNode, Mount, Propagation, Resources, seccomp};
use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext, VolumeDevice};
use kelp_model::pod::env::expand;
use kelp_model::pod::resources::Limits;
use kelp_model::pod::spec;
use std::path::{Path, PathBuf};

/// Default PATH of a container whose image names none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Ids that a container runs with, as far as they are known before it starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// Numeric user.
    pub uid: Option<u32>,
    /// Numeric group.
    pub gid: Option<u32>,
    /// `USER` of the image when the Pod sets no user.
    pub image_user: Option<String>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Without those of the image's /etc/group.
    pub strict: bool,
}

/// Who runs, as a container's status shows it: the primary group is first among the groups.
pub fn shown_user(uid: u32, gid: u32, groups: &[u32]) -> (i64, i64, Vec<i64>) {
    let mut all = vec![i64::from(gid)];
    all.extend(groups.iter().filter(|g| **g != gid).map(|g| i64::from(*g)));
    (i64::from(uid), i64::from(gid), all)
}

impl User {
    /// uid, gid and supplementary groups for the status, when all are known.
    pub fn known(&self) -> Option<(i64, i64, Vec<i64>)> {
        let (uid, gid) = match (&self.image_user, self.uid) {
            (_, Some(uid)) => (uid, self.gid.unwrap_or(0)),
            (None, None) => (0, self.gid.unwrap_or(0)),
            (Some(name), None) => {
                let (user, group) = name.split_once(':').unwrap_or((name, "0"));
                (user.parse().ok()?, self.gid.or(group.parse().ok())?)
            }
        };
        let mut groups = vec![i64::from(gid)];
        groups.extend(self.groups.iter().map(|g| i64::from(*g)).filter(|g| *g != i64::from(gid)));
        Some((i64::from(uid), i64::from(gid), groups))
    }
}

fn id(value: Option<i64>) -> Option<u32> {
    value.and_then(|v| u32::try_from(v).ok())
}

/// Resolves who the container runs as.
///
/// # Errors
/// runAsNonRoot is violated; the text is that of `CreateContainerConfigError`.
pub fn user(pod: &Pod, container: &Container, image: &ImageConfig) -> Result<User, String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let of_pod = spec.security_context.unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let uid = id(own.run_as_user.or(of_pod.run_as_user));
    let gid = id(own.run_as_group.or(of_pod.run_as_group));
    let image_user = Some(image.user.clone()).filter(|u| !u.is_empty() && uid.is_none());
    let mut groups: Vec<u32> =
        of_pod.supplemental_groups.iter().flatten().filter_map(|g| id(Some(*g))).collect();
    groups.extend(id(of_pod.fs_group));
    groups.dedup();
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        let place = format!("(pod: \"{}\", container: {})", PodRef::from(pod), container.name);
        if uid == Some(0) {
            return Err(format!("container's runAsUser breaks non-root policy {place}"));
        }
        if uid.is_none() {
            let name =
                image_user.as_deref().map(|u| u.split(':').next().unwrap_or_default()).unwrap_or_default();
            match name.parse::<u32>() {
                Ok(0) => {
                    return Err(format!("container has runAsNonRoot and image will run as root {place}"));
                }
                Ok(_) => {}
                Err(_) if name.is_empty() => {
                    return Err(format!("container has runAsNonRoot and image will run as root {place}"));
                }
                Err(_) => {
                    return Err(format!(
                        "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
                    ));
                }
            }
        }
    }
    let strict = of_pod.supplemental_groups_policy.as_deref() == Some("Strict");
    Ok(User { uid, gid, image_user, groups, strict })
}

/// Resolves command and arguments.
///
/// # Errors
/// Neither the Pod nor the image names a command.
pub fn argv(container: &Container, image: &ImageConfig, env: &Environment) -> Result<Vec<String>, String> {
    let expanded = |list: &[String]| -> Vec<String> {
        list.iter().map(|text| expand(text, |name| env.get(name))).collect()
    };
    let command = expanded(container.command.as_deref().unwrap_or_default());
    let args = expanded(container.args.as_deref().unwrap_or_default());
    let mut argv = match (command.is_empty(), args.is_empty()) {
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
        (true, false) => [image.entrypoint.clone(), args].concat(),
        (false, _) => [command, args].concat(),
    };
    argv.retain({
        let mut first = true;
        move |a| !std::mem::take(&mut first) || !a.is_empty()
    });
    if argv.is_empty() {
        return Err("failed to generate container spec: failed to generate spec: no command specified".into());
    }
    Ok(argv)
}

/// The signal that asks a container to stop: of the image, else SIGTERM. Upstream 1.36 leaves a Pod's own
/// (`lifecycle.stopSignal`) alone unless its feature ContainerStopSignals is turned on.
pub fn stop_signal(image: Option<&ImageConfig>) -> i32 {
    let of_image = image.map(|i| i.stop_signal.as_str()).filter(|s| !s.is_empty());
    of_image.and_then(signal).unwrap_or(libc::SIGTERM)
}

/// A signal by name (with or without `SIG`) or number, real-time ones included.
fn signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") { upper.clone() } else { format!("SIG{upper}") };
    if let Ok(known) = name.parse::<nix::sys::signal::Signal>() {
        return Some(known as i32);
    }
    let offset = |rest: &str| rest.is_empty().then_some(0).or_else(|| rest.get(1..)?.parse::<i32>().ok());
    if let Some(rest) = name.strip_prefix("SIGRTMIN") {
        return offset(rest).map(|n| 34 + n).filter(|n| (34..=64).contains(n));
    }
    name.strip_prefix("SIGRTMAX").and_then(offset).map(|n| 64 - n).filter(|n| (34..=64).contains(n))
}

/// Limits of the model as the runtime takes them.
pub fn resources(limits: &Limits) -> Resources {
    Resources {
        cpu_shares: limits.cpu_shares,
        cpu_quota_us: limits.cpu_quota_us,
        cpu_period_us: limits.cpu_period_us,
        cpus: None,
        memory_limit: limits.memory,
        swap_limit: limits.swap,
        pids_limit: None,
        oom_score_adj: limits.oom_score_adj,
    }
}

/// Files the agent manages for a pod.
#[derive(Debug, Clone)]
pub struct Managed {
    /// /etc/hosts.
    pub hosts: PathBuf,
    /// /etc/hostname.
    pub hostname: PathBuf,
    /// /etc/resolv.conf.
    pub resolv: PathBuf,
    /// Where this attempt's termination message goes.
    pub termination: PathBuf,
}

/// The bind mounts of a container: managed files that no volume replaces, then volumes.
///
/// # Errors
/// A volume is missing or a subPath is refused; the text is that of `CreateContainerConfigError`.
pub fn mounts(
    pod: &Pod,
    container: &Container,
    paths: &Paths,
    managed: &Managed,
    env: &Environment,
) -> Result<Vec<Mount>, String> {
    let own: Vec<&str> = container.volume_mounts.iter().flatten().map(|m| m.mount_path.as_str()).collect();
    let read_only_root =
        container.security_context.as_ref().and_then(|s| s.read_only_root_filesystem).unwrap_or(false);
    let mut mounts = Vec::new();
    let mut add = |source: &Path, destination: &str, read_only: bool| {
        if !own.contains(&destination) {
            let (source, destination) = (source.to_owned(), destination.into());
            mounts.push(Mount { source, destination, read_only, ..Mount::default() });
        }
    };
    add(&managed.hosts, "/etc/hosts", false);
    add(&managed.termination, termination_path(container), false);
    add(&managed.hostname, "/etc/hostname", read_only_root);
    add(&managed.resolv, "/etc/resolv.conf", read_only_root);
    let mut asked: Vec<_> = container.volume_mounts.iter().flatten().collect();
    // An outer mount would hide an inner one that came before it.
    asked.sort_by_key(|m| Path::new(&m.mount_path).components().count());
    for mount in asked {
        let volume =
            paths.get(&mount.name).ok_or_else(|| format!("volume {:?} is not set up", mount.name))?;
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (_, Some(text)) if !text.is_empty() => Some(expand_all(text, env)?),
            (Some(sub), _) if !sub.is_empty() => Some(sub.clone()),
            _ => None,
        };
        let (source, within) = match sub {
            Some(sub) => {
                let found = volumes::sub_path(volume, &sub, &container.name, mount)?;
                (found, std::fs::canonicalize(volume).ok())
            }
            None => (volume.clone(), None),
        };
        // What the agent writes is not the container's to change.
        let of_pod = pod.spec.as_ref().and_then(|s| s.volumes.as_ref()).into_iter().flatten();
        let kept = of_pod.filter(|v| v.name == mount.name).any(volumes::is_read_only);
        let read_only = mount.read_only.unwrap_or(false) || kept;
        mounts.push(Mount {
            source,
            destination: Path::new("/").join(&mount.mount_path),
            read_only,
            recursive_read_only: mount.read_only == Some(true) && spec::is_recursive_read_only(mount),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::None,
            },
            within,
        });
    }
    Ok(mounts)
}

/// The block devices of a container.
///
/// # Errors
/// A volume is missing; the text is that of `CreateContainerConfigError`.
pub fn devices(pod: &Pod, container: &Container, paths: &Paths) -> Result<Vec<DeviceNode>, String> {
    let of_pod = || pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let device = |device: &VolumeDevice| {
        let source =
            paths.get(&device.name).ok_or_else(|| format!("volume {:?} is not set up", device.name))?;
        Ok(DeviceNode {
            source: source.clone(),
            destination: Path::new("/").join(&device.device_path),
            read_only: of_pod().filter(|v| v.name == device.name).any(volumes::is_read_only),
        })
    };
    container.volume_devices.iter().flatten().map(device).collect()
}

/// Expands a subPathExpr, in which every variable must exist.
fn expand_all(text: &str, env: &Environment) -> Result<String, String> {
    let missing = std::cell::RefCell::new(None);
    let expanded = expand(text, |name| {
        let value = env.get(name);
        if value.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        value
    });
    match missing.into_inner() {
        Some(name) => Err(format!("missing value for {name}")),
        None => Ok(expanded),
    }
}

/// Where a container writes its termination message.
pub fn termination_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log")
}

/// Everything that [`spec()`] puts together.
pub struct Parts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Directory of the node's seccomp profiles.
    pub profiles: PathBuf,
    /// Containers that ask for no seccomp profile get that of the runtime.
    pub seccomp_default: bool,
    /// The container.
    pub container: &'a Container,
    /// Restart count.
    pub attempt: u32,
    /// Image id.
    pub image_id: &'a str,
    /// Image config.
    pub image: &'a ImageConfig,
    /// Environment from the Pod.
    pub env: &'a Environment,
    /// Host name inside the pod.
    pub hostname: &'a str,
    /// Bind mounts.
    pub mounts: Vec<Mount>,
    /// Block devices.
    pub devices: Vec<DeviceNode>,
    /// Who it runs as.
    pub user: &'a User,
    /// cgroup values.
    pub limits: Limits,
    /// Host file of the termination message.
    pub termination: PathBuf,
}

/// Which seccomp filter a container asks for, or gets by `default`. `profiles` is the directory of the node's own.
///
/// # Errors
/// The profile cannot be read; the text is that of `CreateContainerError`.
fn seccomp_of(
    pod: &Pod,
    spec: &ContainerSpec,
    own: &SecurityContext,
    profiles: &Path,
    default: bool,
) -> Result<Option<serde_json::Value>, String> {
    if spec.privileged {
        return Ok(None);
    }
    let of_pod =
        pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.seccomp_profile.as_ref());
    let Some(profile) = own.seccomp_profile.as_ref().or(of_pod) else {
        return Ok(default.then(|| seccomp::runtime_default(&runtime::granted(spec))));
    };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(Some(seccomp::runtime_default(&runtime::granted(spec)))),
        "Localhost" => {
            let path = profiles.join(profile.localhost_profile.as_deref().unwrap_or_default());
            let failed = |why: String| {
                format!("failed to create containerd container: cannot load seccomp profile {path:?}: {why}")
            };
            let text = std::fs::read(&path).map_err(|error| {
                let why = match error.kind() {
                    std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
                    _ => error.to_string(),
                };
                failed(format!("open {}: {why}", path.display()))
            })?;
            seccomp::parse(&text).map(Some).map_err(failed)
        }
        _ => Ok(None),
    }
}

/// Gives a container what it needs for the devices of a plugin. Variables of the Pod come before the plugin's.
pub fn add_devices(spec: &mut ContainerSpec, grant: Grant) {
    for (name, value) in grant.env {
        let set = spec.env.iter().any(|line| line.split_once('=').is_some_and(|(known, _)| known == name));
        if !set {
            spec.env.push(format!("{name}={value}"));
        }
    }
    spec.mounts.extend(grant.mounts.into_iter().map(|(source, destination, read_only)| Mount {
        source,
        destination,
        read_only,
        ..Mount::default()
    }));
    spec.devices.extend(grant.nodes.into_iter().map(|(source, destination, permissions)| DeviceNode {
        source,
        destination,
        read_only: !permissions.contains('w'),
    }));
}

/// The runtime's view of a container.
///
/// # Errors
/// There is no command to run, or its seccomp profile cannot be had.
pub fn spec(parts: Parts<'_>) -> Result<ContainerSpec, String> {
    let container = parts.container;
    let security: SecurityContext = container.security_context.clone().unwrap_or_default();
    let capabilities = security.capabilities.clone().unwrap_or_default();
    let privileged = security.privileged.unwrap_or(false);
    let mut env = Environment::default();
    env.set("PATH", PATH);
    env.set("HOSTNAME", parts.hostname);
    for line in &parts.image.env {
        if let Some((name, value)) = line.split_once('=') {
            env.set(name, value);
        }
    }
    for (name, value) in parts.env.iter() {
        env.set(name, value.clone());
    }
    let argv = argv(container, parts.image, parts.env)?;
    let cwd = container
        .working_dir
        .clone()
        .filter(|d| !d.is_empty())
        .unwrap_or_else(|| parts.image.working_dir.clone());
    let mut spec = ContainerSpec {
        id: format!("{}.{}", container.name, parts.attempt),
        name: container.name.clone(),
        attempt: parts.attempt,
        image_id: parts.image_id.to_owned(),
        image_ref: container.image.clone().unwrap_or_default(),
        argv,
        env: env.lines(),
        cwd: Path::new("/").join(cwd),
        uid: parts.user.uid,
        gid: parts.user.gid,
        user: parts.user.image_user.clone(),
        additional_gids: parts.user.groups.clone(),
        strict_groups: parts.user.strict,
        unmasked: security.proc_mount.as_deref() == Some("Unmasked"),
        seccomp: None,
        mounts: parts.mounts,
        devices: parts.devices,
        privileged,
        read_only_root: security.read_only_root_filesystem.unwrap_or(false),
        joins: None,
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        cap_add: capabilities.add.clone().unwrap_or_default(),
        cap_drop: capabilities.drop.clone().unwrap_or_default(),
        resources: resources(&parts.limits),
        log_path: PathBuf::from(&container.name).join(format!("{}.log", parts.attempt)),
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        termination_message: Some(parts.termination),
    };
    spec.seccomp = seccomp_of(parts.pod, &spec, &security, &parts.profiles, parts.seccomp_default)?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(value: serde_json::Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": value}),
        )
        .unwrap()
    }

    #[test]
    fn command_and_arguments() {
        let image =
            ImageConfig { entrypoint: vec!["/e".into()], cmd: vec!["c".into()], ..ImageConfig::default() };
        let mut env = Environment::default();
        env.set("A", "1");
        let of = |value| argv(&container(value), &image, &env).unwrap();
        assert_eq!(of(json!({"name": "c"})), ["/e", "c"]);
        assert_eq!(of(json!({"name": "c", "args": ["$(A)", "$(B)", "$$(A)"]})), ["/e", "1", "$(B)", "$(A)"]);
        assert_eq!(of(json!({"name": "c", "command": ["x"]})), ["x"]);
        assert_eq!(of(json!({"name": "c", "command": ["x"], "args": ["y"]})), ["x", "y"]);
        assert!(argv(&container(json!({"name": "c"})), &ImageConfig::default(), &env).is_err());
    }

    #[test]
    fn users() {
        let c = container(json!({"name": "c"}));
        let image = |user: &str| ImageConfig { user: user.into(), ..ImageConfig::default() };
        let p = pod(json!({"containers": [], "securityContext": {"runAsNonRoot": true}}));
        assert_eq!(
            user(&p, &c, &image("")).unwrap_err(),
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"
        );
        assert!(user(&p, &c, &image("web")).unwrap_err().contains("non-numeric user (web)"));
        assert!(user(&p, &c, &image("1000:2")).is_ok());
        let p = pod(json!({"containers": [], "securityContext": {"runAsNonRoot": true, "runAsUser": 0}}));
        assert!(
            user(&p, &c, &image("1000"))
                .unwrap_err()
                .starts_with("container's runAsUser breaks non-root policy")
        );
        let p = pod(
            json!({"containers": [], "securityContext": {"runAsUser": 7, "fsGroup": 9, "supplementalGroups": [8]}}),
        );
        let u = user(&p, &c, &image("1000")).unwrap();
        assert_eq!((u.uid, u.image_user.clone(), u.groups.clone()), (Some(7), None, vec![8, 9]));
        assert_eq!(u.known(), Some((7, 0, vec![0, 8, 9])));
        let p = pod(json!({"containers": []}));
        assert_eq!(user(&p, &c, &image("")).unwrap().known(), Some((0, 0, vec![0])));
        assert_eq!(user(&p, &c, &image("web")).unwrap().known(), None);
    }

    #[test]
    fn signals() {
        for (text, number) in
            [("SIGQUIT", 3), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGRTMIN", 34)]
        {
            assert_eq!(signal(text), Some(number), "{text}");
        }
        for bad in ["", "0", "65", "SIGNOPE", "SIGRTMIN+99", "SIGRTMIN+x"] {
            assert_eq!(signal(bad), None, "{bad}");
        }
        let image = ImageConfig { stop_signal: "SIGUSR1".into(), ..ImageConfig::default() };
        assert_eq!((stop_signal(Some(&image)), stop_signal(None)), (libc::SIGUSR1, libc::SIGTERM));
    }

    #[test]
    fn a_volume_may_replace_a_managed_file() {
        let c = container(json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/etc/hosts"},
            {"name": "v", "mountPath": "/a/b"}, {"name": "v", "mountPath": "/a", "readOnly": true}]}));
        let file = |name: &str| PathBuf::from(name);
        let managed =
            Managed { hosts: file("/h"), hostname: file("/n"), resolv: file("/r"), termination: file("/t") };
        let paths = Paths::from([("v".to_owned(), file("/vol"))]);
        let list =
            mounts(&pod(json!({"containers": []})), &c, &paths, &managed, &Environment::default()).unwrap();
        let text: Vec<String> =
            list.iter().map(|m| format!("{}>{}", m.source.display(), m.destination.display())).collect();
        assert_eq!(
            text,
            [
                "/t>/dev/termination-log",
                "/n>/etc/hostname",
                "/r>/etc/resolv.conf",
                "/vol>/a",
                "/vol>/etc/hosts",
                "/vol>/a/b"
            ]
        );
    }
}
