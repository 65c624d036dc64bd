//! Lifecycle hooks: postStart and preStop.

use crate::pod::events::{Kind, Recorder};
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
    events: &Recorder,
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
        return http_get(&http::Request::of(get, &host, port), pod, events).await.map_err(failed);
    }
    if let Some(sleep) = &hook.sleep {
        let slept = Slept { whole: false };
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        slept.through();
    }
    Ok(())
}

/// Asks for an answer, whatever it is. A server that speaks no TLS although the hook says so is asked once more, as
/// upstream does for hooks that were written when it did not look at the scheme.
async fn http_get(request: &http::Request, pod: &PodRef, events: &Recorder) -> Result<(), String> {
    let Err(error) = http::get(request, HTTP).await else { return Ok(()) };
    if !error.ends_with(http::PLAIN) || http::get(&request.plain(), HTTP).await.is_err() {
        return Err(error);
    }
    crate::metrics::HTTP_FALLBACKS.count(&[]);
    let host = request.authority();
    let text = format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded");
    events.pod(pod, Kind::Warning, "LifecycleHTTPFallback", text);
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

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::HTTPGetAction;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Answers every connection with `answer`; what it was sent, as far as it is text of HTTP.
    async fn server(answer: &'static [u8]) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = vec![0; 4096];
                let length = stream.read(&mut bytes).await.unwrap();
                requests.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
                stream.write_all(answer).await.unwrap();
                if requests.len() == 2 {
                    break;
                }
            }
            requests
        });
        (port, task)
    }

    fn request(port: u16) -> http::Request {
        let action: HTTPGetAction = serde_json::from_value(serde_json::json!({"path": "/x", "port": port,
            "scheme": "HTTPS", "httpHeaders": [{"name": "Authorization", "value": "secret"}, {"name": "A", "value": "b"}]}))
        .unwrap();
        http::Request::of(&action, "127.0.0.1", port)
    }

    #[tokio::test]
    async fn a_hook_whose_server_speaks_no_tls_is_asked_without() {
        let pod = PodRef::default();
        let (port, requests) = server(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        let asked = http_get(&request(port), &pod, &Recorder::discarding()).await;
        assert_eq!(asked, Ok(()));
        let second = requests.await.unwrap().remove(1);
        assert!(second.starts_with("GET /x HTTP/1.1"), "{second}");
        assert!(second.to_lowercase().contains("a: b") && !second.contains("secret"), "{second}");
        let (port, _) = server(b"SSH-2.0-OpenSSH\r\n").await;
        let error = http_get(&request(port), &pod, &Recorder::discarding()).await.unwrap_err();
        assert!(!error.ends_with(http::PLAIN), "{error}");
    }
}
