//! Probes: timer-driven tasks, one a probe of a running container, that dial the pod from the host.
//!
//! A task reads its probe and the runtime (exec), and sends a [`Verdict`] whenever the verdict changes; it holds no
//! thread and ends when its handle is dropped.

mod grpc;
pub mod http;

use k8s_openapi::api::core::v1::Probe;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kelp_model::pod::probe::{Purpose, Streak, Timing};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Outcome of one probe run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded; with a text, somebody should know how.
    Success(Option<String>),
    /// It failed, for this reason.
    Failure(String),
    /// It could not be run (the runtime does not answer): counts as nothing.
    Unknown,
    /// It cannot be run, for this reason: told, and counts as nothing.
    Error(String),
}

/// Why a command has no exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecError {
    /// It did not end in time.
    Timeout,
    /// It was never started, for this reason.
    Start(String),
}

/// What a task reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Container name.
    pub container: String,
    /// Its attempt.
    pub attempt: u32,
    /// Which probe.
    pub purpose: Purpose,
    /// `Some` once a threshold is reached and the verdict changed.
    pub passed: Option<bool>,
    /// Text of an `Unhealthy` (or `ProbeWarning`) event.
    pub event: Option<String>,
    /// The event is a warning about a success.
    pub warning: bool,
}

/// Runs commands in the probed container.
pub trait Exec: Send + Sync + 'static {
    /// Exit code and output (standard output and error), or `None` when the runtime does not answer.
    fn exec(
        &self,
        argv: &[String],
        timeout: Duration,
    ) -> impl Future<Output = Result<Option<(i32, String)>, ExecError>> + Send;
}

/// What is probed.
pub struct Target<E> {
    /// Container name.
    pub container: String,
    /// Its attempt.
    pub attempt: u32,
    /// Namespace, name and UID of the pod.
    pub pod: [String; 3],
    /// Named ports of the container.
    pub ports: Vec<(String, u16)>,
    /// Address of the pod.
    pub ip: Option<IpAddr>,
    /// How to run a command in it.
    pub exec: Arc<E>,
}

impl<E> Target<E> {
    fn count(&self, purpose: Purpose, outcome: &Outcome, took: Duration) {
        let result = match outcome {
            Outcome::Success(_) => "successful",
            Outcome::Failure(_) => "failed",
            Outcome::Error(_) | Outcome::Unknown => "unknown",
        };
        let [namespace, pod, uid] = &self.pod;
        let kind = purpose.as_str();
        crate::metrics::PROBES.count(&[kind, result, &self.container, pod, namespace, uid]);
        let took = took.as_secs_f64();
        crate::metrics::PROBE_DURATION.observe(&[kind, &self.container, pod, namespace], took);
    }
}

/// Probes until the future is dropped. The first run comes after the initial delay, counted from
/// `since_start` (how long the container already runs).
pub async fn run<E: Exec>(
    probe: Probe,
    purpose: Purpose,
    target: Target<E>,
    since_start: Duration,
    initially: Option<bool>,
    verdicts: mpsc::Sender<Verdict>,
) {
    let timing = Timing::of(&probe);
    let mut streak = Streak::default();
    let mut last = initially;
    // Several agents that start at once must not probe in step.
    let jitter = if since_start > timing.period {
        timing.period.mul_f64(rand::random::<f64>())
    } else {
        Duration::ZERO
    };
    // Upstream looks at readiness at once, and at the rest in step with a clock that began before the container: on
    // average half a period after its start.
    let settle = if purpose == Purpose::Liveness && since_start < timing.period {
        timing.period / 2
    } else {
        Duration::ZERO
    };
    tokio::time::sleep(timing.initial_delay.max(settle).saturating_sub(since_start) + jitter).await;
    let mut timer = tokio::time::interval(timing.period);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let begin = std::time::Instant::now();
        let outcome = once(&probe, &target, timing.timeout).await;
        target.count(purpose, &outcome, begin.elapsed());
        let (success, event, warning) = match outcome {
            Outcome::Unknown => continue,
            Outcome::Error(text) => {
                let text =
                    format!("{} probe errored and resulted in unknown state: {text}", purpose.as_str());
                let (container, attempt) = (target.container.clone(), target.attempt);
                let verdict =
                    Verdict { container, attempt, purpose, passed: None, event: Some(text), warning: false };
                if verdicts.send(verdict).await.is_err() {
                    return;
                }
                continue;
            }
            Outcome::Success(None) => (true, None, false),
            Outcome::Success(Some(text)) => {
                (true, Some(format!("{} probe warning: {text}", purpose.as_str())), true)
            }
            Outcome::Failure(text) => {
                (false, Some(format!("{} probe failed: {text}", purpose.as_str())), false)
            }
        };
        let passed = streak.add(success, &timing).filter(|passed| last != Some(*passed));
        if passed.is_some() {
            last = passed;
        }
        // A failing liveness or startup probe ends the container each time it is true, not only when it turns true.
        if passed.is_none() && event.is_none() {
            continue;
        }
        let verdict = Verdict {
            container: target.container.clone(),
            attempt: target.attempt,
            purpose,
            passed,
            event,
            warning,
        };
        if verdicts.send(verdict).await.is_err() {
            return;
        }
        if purpose == Purpose::Startup && last == Some(true) {
            return;
        }
    }
}

/// One run of a probe.
pub async fn once<E: Exec>(probe: &Probe, target: &Target<E>, timeout: Duration) -> Outcome {
    if let Some(exec) = &probe.exec {
        let argv = exec.command.clone().unwrap_or_default();
        return match target.exec.exec(&argv, timeout).await {
            Ok(Some((0, _))) => Outcome::Success(None),
            Ok(Some((_, output))) => Outcome::Failure(output),
            Ok(None) => Outcome::Unknown,
            Err(ExecError::Start(text)) => Outcome::Error(text),
            Err(ExecError::Timeout) => {
                let shown = argv.join(" ");
                Outcome::Failure(format!(
                    "command timed out: {shown:?} timed out after {}s",
                    timeout.as_secs()
                ))
            }
        };
    }
    let Some(ip) = target.ip else { return Outcome::Unknown };
    if let Some(get) = &probe.http_get {
        let Some(port) = port(&get.port, &target.ports) else { return bad_port(&get.port) };
        let host = match get.host.as_deref().filter(|h| !h.is_empty()) {
            Some(host) => host.to_owned(),
            None => ip.to_string(),
        };
        let request = http::Request::of(get, &host, port);
        return match http::get(&request, timeout).await {
            Ok(answer) if answer.redirect_to_elsewhere => {
                Outcome::Success(Some(format!("Probe terminated redirects, Response body: {}", answer.body)))
            }
            Ok(answer) if (200..400).contains(&answer.status) => Outcome::Success(None),
            Ok(answer) => Outcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.status)),
            Err(error) => Outcome::Failure(error),
        };
    }
    if let Some(tcp) = &probe.tcp_socket {
        let Some(port) = port(&tcp.port, &target.ports) else { return bad_port(&tcp.port) };
        let host = tcp.host.as_deref().and_then(|h| h.parse().ok()).unwrap_or(ip);
        let address = SocketAddr::new(host, port);
        return match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
            Ok(Ok(_)) => Outcome::Success(None),
            Ok(Err(error)) => Outcome::Failure(dial_error(address, &error)),
            Err(_) => Outcome::Failure(format!("dial tcp {address}: i/o timeout")),
        };
    }
    if let Some(grpc) = &probe.grpc {
        let Ok(port) = u16::try_from(grpc.port) else { return Outcome::Unknown };
        let address = SocketAddr::new(ip, port);
        return match grpc::check(address, grpc.service.as_deref().unwrap_or_default(), timeout).await {
            Ok(()) => Outcome::Success(None),
            Err(error) => Outcome::Failure(error),
        };
    }
    Outcome::Unknown
}

fn bad_port(port: &IntOrString) -> Outcome {
    match port {
        IntOrString::Int(n) => Outcome::Failure(format!("invalid port number: {n}")),
        IntOrString::String(s) => Outcome::Failure(format!("couldn't find port: {s}")),
    }
}

/// A port by number or by name.
pub fn port(port: &IntOrString, named: &[(String, u16)]) -> Option<u16> {
    match port {
        IntOrString::Int(n) => u16::try_from(*n).ok().filter(|n| *n > 0),
        IntOrString::String(s) => {
            let by_name = named.iter().find(|(name, _)| name == s).map(|(_, port)| *port);
            by_name.or_else(|| s.parse().ok().filter(|n| *n > 0))
        }
    }
}

/// A failed connect as Go words it, which operators and tests know.
fn dial_error(address: SocketAddr, error: &std::io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "connect: connection refused".to_owned(),
        Some(libc::EHOSTUNREACH) => "connect: no route to host".to_owned(),
        Some(libc::ENETUNREACH) => "connect: network is unreachable".to_owned(),
        Some(libc::ETIMEDOUT) => "connect: connection timed out".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {address}: {cause}")
}

#[cfg(test)]
mod tests;
