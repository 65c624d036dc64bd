//! Lifecycle hooks: postStart and preStop.

use crate::pod::reference::PodRef;
use crate::probe::http;
use crate::runtime::{Runtime, RuntimeError};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::time::Duration;

/// Longest time for a hook that has no deadline of its own.
const LIMIT: Duration = Duration::from_secs(24 * 3600);
/// For one HTTP hook.
const HTTP: Duration = Duration::from_secs(60);

/// Named ports of a container.
pub fn named_ports(container: &Container) -> Vec<(String, u16)> {
    let ports = container.ports.iter().flatten();
    ports.filter_map(|p| Some((p.name.clone()?, u16::try_from(p.container_port).ok()?))).collect()
}

/// What upstream says about a command that could not be started in a container. The number of the attempt, which is
/// random there, is the container's here: repeated events are one.
pub fn exec_error(container: &str, message: &str) -> String {
    let id: String = Sha256::digest(container).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "rpc error: code = Unknown desc = failed to exec in container: failed to start exec {id:?}: \
         OCI runtime exec failed: exec failed: unable to start container process: {message}"
    )
}

/// Runs a hook to its end.
///
/// # Errors
/// It failed; the text is that of upstream's `PostStartHookError`.
pub async fn run<R: Runtime>(
    runtime: &R,
    pod: &PodRef,
    container: &Container,
    id: &str,
    ip: Option<IpAddr>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let argv = exec.command.clone().unwrap_or_default();
        let failed = |cause: String| {
            format!(
                "Exec lifecycle hook ([{}]) for Container {:?} in Pod \"{pod}\" failed - error: {cause}",
                argv.join(" "),
                container.name
            )
        };
        return match runtime.exec(&pod.uid, id, &argv, LIMIT).await {
            Ok(result) if result.exit_code == 0 && !result.timed_out => Ok(()),
            Ok(result) => {
                let output = String::from_utf8_lossy(&[result.stdout, result.stderr].concat()).into_owned();
                let command = argv.join(" ");
                Err(failed(format!(
                    "command '{command}' exited with {}: {output}, message: {output:?}",
                    result.exit_code
                )))
            }
            Err(RuntimeError::Start { message, .. }) => {
                Err(failed(format!("{}, message: \"\"", exec_error(id, &message))))
            }
            Err(error) => Err(failed(error.to_string())),
        };
    }
    if let Some(get) = &hook.http_get {
        let failed = |cause: String| {
            let path = get.path.as_deref().unwrap_or_default();
            format!(
                "HTTP lifecycle hook ({path}) for Container {:?} in Pod \"{pod}\" failed - error: {cause}",
                container.name
            )
        };
        let port = crate::probe::port(&get.port, &named_ports(container));
        let port = port.ok_or_else(|| failed("couldn't find port".into()))?;
        let host = match (get.host.as_deref().filter(|h| !h.is_empty()), ip) {
            (Some(host), _) => host.to_owned(),
            (None, Some(ip)) => ip.to_string(),
            (None, None) => return Err(failed("failed to find networking container".into())),
        };
        return match http::get(&http::Request::of(get, &host, port), HTTP).await {
            // Upstream asks only for an answer.
            Ok(_) => Ok(()),
            Err(error) => Err(failed(error)),
        };
    }
    if let Some(sleep) = &hook.sleep {
        let slept = Slept { whole: false };
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        slept.through();
    }
    Ok(())
}

/// Counts a sleep that is cut short.
struct Slept {
    whole: bool,
}

impl Slept {
    fn through(mut self) {
        self.whole = true;
    }
}

impl Drop for Slept {
    fn drop(&mut self) {
        if !self.whole {
            crate::metrics::SLEEPS_CUT.count(&[]);
        }
    }
}
