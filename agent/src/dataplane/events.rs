//! Events about what an operator can do something about. Upstream's kube-proxy writes `events.k8s.io`, and so does this,
//! through kube's recorder.

use k8s_openapi::api::core::v1::ObjectReference;
use kelp_model::policy::Problem;
use kelp_model::service::{Conflict, ObjectName};
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use std::net::IpAddr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that may wait to be written; more are dropped, as an event is a hint and never state.
const QUEUE: usize = 256;

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occurrence {
    /// What it is about.
    pub about: About,
    /// Why, in one word.
    pub reason: &'static str,
    /// What was being done, in one word.
    pub action: &'static str,
    /// For people.
    pub note: String,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// This node.
    Node,
    /// A Service.
    Service(ObjectName),
    /// A Pod.
    Pod(ObjectName),
    /// A NetworkPolicy.
    Policy(ObjectName),
}

/// Sends events to the writer. Clones share the queue.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Occurrence>);

impl Events {
    /// Events and where they come out.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Occurrence>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Events that nobody reads.
    #[must_use]
    pub fn discarding() -> Self {
        Self(mpsc::channel(1).0)
    }

    fn send(&self, about: About, reason: &'static str, action: &'static str, note: String) {
        tracing::warn!(?about, reason, "{note}");
        let _ = self.0.try_send(Occurrence { about, reason, action, note });
    }

    /// A map has no room.
    pub fn map_full(&self, map: &str, left_out: usize) {
        let note = format!(
            "the eBPF map {map} is full: {left_out} changes of services are not in effect on this node; remove \
             Services, or give the map more entries"
        );
        self.send(About::Node, "DataplaneMapFull", "Program", note);
    }

    /// A map of policies has no room.
    pub fn policies_full(&self, map: &str, left_out: usize) {
        let note = format!(
            "the eBPF map {map} is full: {left_out} permissions of network policies are not in effect on this node, and \
             what they would allow is dropped; remove NetworkPolicies, or give the map more entries"
        );
        self.send(About::Node, "DataplaneMapFull", "Program", note);
    }

    /// A part of a NetworkPolicy cannot be used.
    pub fn broken_policy(&self, problem: &Problem) {
        let about = About::Policy(problem.policy.clone());
        self.send(about, "InvalidNetworkPolicy", "Compile", problem.message.clone());
    }

    /// Two want the same address and port.
    pub fn conflict(&self, conflict: &Conflict) {
        let key = &conflict.frontend;
        let note = format!(
            "port {} of address {} (protocol {}) is already served for {}",
            u16::from_be(key.port),
            IpAddr::from(key.address),
            key.protocol,
            conflict.holder
        );
        let loser = conflict.loser.clone();
        let about = if conflict.loser_is_pod { About::Pod(loser) } else { About::Service(loser) };
        self.send(about, "PortConflict", "Program", note);
    }

    /// The server that a load balancer asks could not listen.
    pub fn health_check(&self, service: &ObjectName, node: &str, port: u16, error: &std::io::Error) {
        let note = format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {error}");
        self.send(About::Service(service.clone()), "FailedToStartServiceHealthcheck", "Listen", note);
    }
}

/// Writes events until `shutdown`.
pub(super) async fn write(
    client: Client,
    node: String,
    mut queue: mpsc::Receiver<Occurrence>,
    shutdown: CancellationToken,
) {
    let reporter = Reporter { controller: "kube-proxy".to_owned(), instance: Some(node.clone()) };
    let recorder = Recorder::new(client, reporter);
    let work = async {
        while let Some(occurrence) = queue.recv().await {
            let object = reference(&occurrence.about, &node);
            let event = Event {
                type_: EventType::Warning,
                reason: occurrence.reason.to_owned(),
                note: Some(occurrence.note),
                action: occurrence.action.to_owned(),
                secondary: None,
            };
            if let Err(error) = recorder.publish(&event, &object).await {
                tracing::debug!(%error, reason = occurrence.reason, "event not written");
            }
        }
    };
    shutdown.run_until_cancelled(work).await;
}

fn reference(about: &About, node: &str) -> ObjectReference {
    let of = |kind: &str, name: &ObjectName| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        // Upstream's way for objects it knows by name only.
        uid: Some(name.to_string()),
        ..ObjectReference::default()
    };
    match about {
        About::Node => ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        },
        About::Service(name) => of("Service", name),
        About::Pod(name) => of("Pod", name),
        About::Policy(name) => ObjectReference {
            api_version: Some("networking.k8s.io/v1".to_owned()),
            ..of("NetworkPolicy", name)
        },
    }
}
