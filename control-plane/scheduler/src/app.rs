//! The running scheduler.

use crate::core::{Core, Outcome};
use crate::executor::Executor;
use crate::framework::{BindError, Profile};
use crate::recorder::Recorder;
use crate::{informers, plugins};
use kube::Client;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Events taken in between two pods at most, so that neither starves the other.
const EVENTS_A_TURN: usize = 256;
/// Events on their way to the core.
const EVENT_QUEUE: usize = 4096;
/// How long bindings may take to finish once the scheduler is to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Settings of the scheduler.
pub struct Config {
    /// Scheduler names and their plugins.
    pub profiles: HashMap<Arc<str>, Arc<Profile>>,
    /// Share of the nodes to look at for each pod, percent; 0 adapts to the number of nodes.
    pub percentage_of_nodes: u32,
    /// Bindings and other writes on their way at once; scheduling waits when there are more.
    pub writes_in_flight: usize,
    /// Name of this instance in events.
    pub instance: String,
    /// Pods that wait for permission; keep a clone to allow or reject them.
    pub waiting: WaitingPods,
}

impl Default for Config {
    fn default() -> Self {
        let profile = (Arc::from("default-scheduler"), Arc::new(plugins::default_profile()));
        Self {
            profiles: HashMap::from([profile]),
            percentage_of_nodes: 0,
            writes_in_flight: 256,
            instance: "kelp".to_owned(),
            waiting: WaitingPods::default(),
        }
    }
}

/// What a waiting pod is told: go on, or the reason it must not.
type Verdict = oneshot::Sender<Result<(), String>>;

/// Pods whose binding waits because a permit plugin said so.
#[derive(Clone, Default)]
pub struct WaitingPods(Arc<Mutex<HashMap<Arc<str>, Verdict>>>);

impl WaitingPods {
    /// Lets a pod, by UID, be bound; `false` if it does not wait.
    pub fn allow(&self, uid: &str) -> bool {
        self.answer(uid, Ok(()))
    }

    /// Sends a pod back to the queue; `false` if it does not wait.
    pub fn reject(&self, uid: &str, reason: &str) -> bool {
        self.answer(uid, Err(reason.to_owned()))
    }

    fn answer(&self, uid: &str, answer: Result<(), String>) -> bool {
        self.0.lock().remove(uid).is_some_and(|waiting| waiting.send(answer).is_ok())
    }

    pub(crate) async fn wait(&self, uid: &Arc<str>, limit: Duration) -> Result<(), BindError> {
        let (sender, answer) = oneshot::channel();
        self.0.lock().insert(uid.clone(), sender);
        let answer = tokio::time::timeout(limit, answer).await;
        self.0.lock().remove(uid);
        match answer {
            Ok(Ok(answer)) => answer.map_err(Into::into),
            Ok(Err(_)) => Err("permission was not given".into()),
            Err(_) => Err(format!("no permission within {limit:?}").into()),
        }
    }
}

/// Schedules pods until `shutdown`. Reads pods, nodes, namespaces, claims, volumes, storage classes, CSINodes, CSIDrivers and CSIStorageCapacities; writes pod
/// bindings, pod conditions (`PodScheduled`, and `DisruptionTarget` of evicted pods), `status.nominatedNodeName`,
/// reservations of volumes, the chosen nodes of claims, and events; deletes pods it preempts.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) {
    let (sender, mut events) = mpsc::channel(EVENT_QUEUE);
    let tasks = TaskTracker::new();
    informers::start(&client, &sender, &tasks, &shutdown);
    let (recorder, writer) = Recorder::new(client.clone(), config.instance);
    let writer = tokio::spawn(writer);
    let executor = Executor {
        client,
        events: sender,
        recorder,
        waiting: config.waiting,
        tasks: TaskTracker::new(),
        done: Arc::new(Notify::new()),
    };
    let mut core = Core::new(config.profiles, config.percentage_of_nodes, rand::random());
    tracing::info!("scheduler started");
    loop {
        for _ in 0..EVENTS_A_TURN {
            let Ok(event) = events.try_recv() else { break };
            core.handle(event, Instant::now());
        }
        let may_write = executor.tasks.len() < config.writes_in_flight;
        if may_write && let Some(outcome) = core.next(Instant::now()) {
            log(&outcome);
            executor.start(outcome);
            // Lets the bindings begin when this is the only worker.
            tokio::task::yield_now().await;
            if shutdown.is_cancelled() {
                break;
            }
            continue;
        }
        let wake = core.next_wake().filter(|_| may_write).map(tokio::time::Instant::from_std);
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => core.handle(event, Instant::now()),
                None => break,
            },
            () = sleep_until(wake) => {}
            () = executor.done.notified(), if !may_write => {}
            () = shutdown.cancelled() => break,
        }
    }
    events.close();
    executor.tasks.close();
    // Bindings under way are finished; the others are decided again by the next scheduler.
    let _ = tokio::time::timeout(STOP_TIMEOUT, executor.tasks.wait()).await;
    drop(executor);
    let _ = tokio::time::timeout(STOP_TIMEOUT, writer).await;
    tasks.close();
    tasks.wait().await;
    tracing::info!("scheduler stopped");
}

async fn sleep_until(wake: Option<tokio::time::Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn log(outcome: &Outcome) {
    match outcome {
        Outcome::Bind(placement) => {
            tracing::debug!(pod = %placement.queued.pod, node = %placement.node, "binding")
        }
        Outcome::Failed { pod, message, .. } => tracing::debug!(%pod, message, "unschedulable"),
        Outcome::Preempt { pod, node, victims } => {
            tracing::info!(%pod, %node, victims = victims.len(), "making room by eviction");
        }
        Outcome::ClearNomination(pod) => tracing::debug!(%pod, "room is made for a more important pod"),
    }
}
