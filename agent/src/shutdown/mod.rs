//! Graceful node shutdown: when the host is about to shut down, its pods end in the order of their priority, each with
//! the time that the configuration gives it, and the host waits for them.
//!
//! Reads: logind's word, the node's pods. Writes: the node's state, orders to end pods.

mod logind;

use crate::config::AgentConfig;
use crate::node::state::States;
use crate::pod::events::{Kind, Recorder};
use crate::pod::manager::Order;
use crate::pod::worker::Termination;
use crate::runtime::{ContainerState, Runtime};
use crate::server::PodIndex;
use kelp_model::pod::spec::is_terminal;
use kelp_model::shutdown::{Period, groups, total};
use logind::{Lock, Logind};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Upstream's texts.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// Pause before logind is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// What the task needs.
#[derive(Clone)]
pub struct Shutdown<R> {
    /// The node's configuration.
    pub config: AgentConfig,
    /// Containers.
    pub runtime: R,
    /// The node's pods.
    pub pods: PodIndex,
    /// Events.
    pub events: Recorder,
    /// State of the node.
    pub states: States,
    /// Ends pods.
    pub orders: mpsc::Sender<Order>,
}

impl<R: Runtime + Clone> Shutdown<R> {
    /// Listens until `shutdown`; ends at once when no time is configured.
    pub async fn run(self, shutdown: CancellationToken) {
        let periods = self.periods();
        if periods.is_empty() {
            return;
        }
        let mut pause = AGAIN;
        loop {
            let seconds = total(&periods);
            let listen = async {
                match Logind::connect(seconds).await {
                    Ok(logind) => {
                        pause = AGAIN;
                        if let Err(error) = self.listen(&logind, &periods).await {
                            tracing::warn!(%error, "logind does not tell of a shutdown any more");
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "shutdowns of this host are not noticed: logind cannot be asked");
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST);
            };
            if shutdown.run_until_cancelled(listen).await.is_none() {
                return;
            }
        }
    }

    fn periods(&self) -> Vec<Period> {
        let configured = self.config.kubelet.settings.shutdown_periods();
        let period = |p: &crate::kubelet_config::ShutdownPeriod| Period {
            priority: p.priority,
            seconds: p.shutdown_grace_period_seconds,
        };
        configured.iter().map(period).collect()
    }

    /// Holds a lock that delays shutdowns, and gives it back when the pods have ended.
    async fn listen(&self, logind: &Logind, periods: &[Period]) -> zbus::Result<()> {
        let mut signals = logind.signals().await?;
        let mut lock: Option<Lock> = Some(logind.delay().await?);
        while let Some(begins) = signals.next().await {
            let what = if begins { "event" } else { "cancellation" };
            let text = format!("Shutdown manager detected shutdown {what}");
            tracing::warn!("{text}");
            self.events.node(&self.config.node_name, Kind::Normal, "NodeShutdown", text);
            self.states.change(|s| s.shutting_down = begins);
            if begins {
                let now = || jiff::Timestamp::now().as_millisecond() as f64 / 1e3;
                crate::metrics::SHUTDOWN_START.set(&[], now());
                crate::metrics::SHUTDOWN_END.set(&[], 0.0);
                // A shutdown that is cancelled meanwhile is noticed afterwards: pods that end do not come back.
                self.end_pods(periods).await;
                crate::metrics::SHUTDOWN_END.set(&[], now());
                lock = None;
            } else if lock.is_none() {
                lock = Some(logind.delay().await?);
            }
        }
        Ok(())
    }

    /// Ends all pods, one group after the other.
    async fn end_pods(&self, periods: &[Period]) {
        let active: Vec<_> = self.pods.read().values().filter(|p| !is_terminal(p)).cloned().collect();
        for group in groups(periods, active) {
            let mut ends = JoinSet::new();
            for pod in &group.pods {
                let Some(uid) = pod.metadata.uid.clone() else { continue };
                let order =
                    Termination { reason: REASON.into(), message: MESSAGE.into(), grace: group.seconds };
                if self.orders.send((uid.clone(), order)).await.is_err() {
                    return; // the agent ends
                }
                ends.spawn(ended(self.runtime.clone(), uid));
            }
            let limit = Duration::from_secs(u64::try_from(group.seconds).unwrap_or(0));
            let all = async { while ends.join_next().await.is_some() {} };
            if tokio::time::timeout(limit, all).await.is_err() {
                tracing::warn!(seconds = group.seconds, "some pods did not end in time for the shutdown");
            }
        }
    }
}

/// Resolves when nothing of a pod runs.
async fn ended<R: Runtime>(runtime: R, uid: String) {
    let mut events = runtime.events();
    loop {
        let runs = match runtime.status(&uid).await {
            Ok(Some(s)) => s.containers.iter().any(|c| !matches!(c.state, ContainerState::Exited(_))),
            Ok(None) => false,
            Err(_) => true,
        };
        if !runs {
            return;
        }
        // Lagging means that something happened.
        if let Err(tokio::sync::broadcast::error::RecvError::Closed) = events.recv().await {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
