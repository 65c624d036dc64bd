//! Authorization of every request: `system:masters`, then nodes by their pods, then roles and bindings.

use super::follow::{Change, Source};
use super::node::{self, Graph};
use super::rbac::{self, Rbac};
use super::rule::Rule;
use super::{Attributes, Decision, MASTERS, UserInfo};
use crate::cache::{CacheEvent, Entry};
use crate::error::ApiError;
use crate::registry::Resource;
use parking_lot::{RwLock, RwLockReadGuard};
use std::sync::Arc;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// What a followed resource is part of.
#[derive(Debug, Clone, Copy)]
enum Part {
    Rbac(rbac::Part),
    Node(node::Part),
}

/// Resources that authorization follows.
const PARTS: &[(&str, &str, Part)] = &[
    (rbac::GROUP, "roles", Part::Rbac(rbac::Part::Role)),
    (rbac::GROUP, "clusterroles", Part::Rbac(rbac::Part::ClusterRole)),
    (rbac::GROUP, "rolebindings", Part::Rbac(rbac::Part::RoleBinding)),
    (rbac::GROUP, "clusterrolebindings", Part::Rbac(rbac::Part::ClusterRoleBinding)),
    ("", "pods", Part::Node(node::Part::Pod)),
    ("", "persistentvolumes", Part::Node(node::Part::Volume)),
    ("storage.k8s.io", "volumeattachments", Part::Node(node::Part::Attachment)),
    ("resource.k8s.io", "resourceslices", Part::Node(node::Part::Slice)),
];

#[derive(Default)]
struct State {
    rbac: RwLock<Rbac>,
    graph: RwLock<Graph>,
}

/// Decides; see the module.
pub(crate) struct Policy {
    state: Arc<State>,
    node_rules: Vec<Rule>,
    sources: Vec<(Arc<Source>, Part)>,
    started: OnceCell<()>,
    shutdown: CancellationToken,
}

/// All rules of a user in a namespace.
pub(crate) struct RulesFor {
    pub(crate) rules: Vec<Rule>,
    /// Some may be missing.
    pub(crate) incomplete: bool,
    /// Why, empty for no reason.
    pub(crate) error: String,
}

impl Policy {
    /// A policy over these caches; it begins to follow them when it is first asked.
    pub(crate) fn new<'a>(
        caches: impl Iterator<Item = &'a Arc<crate::cache::Cache>>,
        node_rules: Vec<Rule>,
        shutdown: CancellationToken,
    ) -> Self {
        let part_of = |resource: &Resource| {
            let row = |(group, plural, _): &&(&str, &str, Part)| {
                (*group, *plural, "v1") == (resource.group(), resource.plural(), resource.version())
            };
            PARTS.iter().find(row).map(|(_, _, part)| *part)
        };
        let sources = caches
            .filter_map(|cache| {
                part_of(&cache.resource).map(|part| (Arc::new(Source::new(cache.clone())), part))
            })
            .collect();
        Policy { state: Arc::default(), node_rules, sources, started: OnceCell::new(), shutdown }
    }

    /// Waits until everything that was stored when the server started is known.
    ///
    /// # Errors
    /// 503 when the store does not answer.
    pub(crate) async fn ready(&self) -> Result<(), ApiError> {
        self.started
            .get_or_init(|| async {
                for (source, part) in &self.sources {
                    let (source, part, state) = (source.clone(), *part, self.state.clone());
                    let follow = async move {
                        source.follow(|change| state.apply(&source.cache.resource, part, change)).await;
                    };
                    tokio::spawn(self.shutdown.clone().run_until_cancelled_owned(follow));
                }
            })
            .await;
        for (source, _) in &self.sources {
            if !source.wait(1).await {
                return Err(ApiError::service_unavailable("authorization is not ready yet"));
            }
        }
        Ok(())
    }

    /// Waits until a write of roles or bindings counts: its client may go on from there.
    pub(crate) async fn settled(&self, resource: &Resource, revision: i64) {
        if resource.group() != rbac::GROUP || self.started.get().is_none() {
            return;
        }
        let own = |source: &Source| {
            let row = &source.cache.resource;
            (row.group(), row.plural()) == (resource.group(), resource.plural())
        };
        if let Some((source, _)) = self.sources.iter().find(|(source, _)| own(source)) {
            source.wait(revision).await;
        }
    }

    /// Decides on what is known now.
    pub(crate) fn decide(&self, a: &Attributes<'_>) -> Decision {
        if a.user.in_group(MASTERS) {
            return Decision::allow("");
        }
        let by_node = self.state.graph.read().authorize(&self.node_rules, a);
        if by_node.allowed {
            return by_node;
        }
        let by_role = self.state.rbac.read().authorize(a);
        if by_role.allowed {
            return by_role;
        }
        let reasons: Vec<String> =
            [by_node.reason, by_role.reason].into_iter().filter(|reason| !reason.is_empty()).collect();
        Decision::pass(reasons.join("\n"))
    }

    /// Decides; before a node is refused, everything written until now is taken in.
    ///
    /// # Errors
    /// 503 when the store does not answer.
    pub(crate) async fn authorize(&self, a: &Attributes<'_>) -> Result<Decision, ApiError> {
        if a.user.in_group(MASTERS) {
            return Ok(Decision::allow(""));
        }
        self.ready().await?;
        let decision = self.decide(a);
        if decision.allowed || a.user.node().is_none() {
            return Ok(decision);
        }
        for (source, part) in &self.sources {
            if matches!(part, Part::Node(_)) {
                let revision = source.cache.store.revision();
                source.cache.wait_for(revision).await?;
                source.wait(revision).await;
            }
        }
        Ok(self.decide(a))
    }

    /// All rules of a user in a namespace.
    pub(crate) fn rules_for(&self, user: &UserInfo, namespace: &str) -> RulesFor {
        let (rules, error) = self.state.rbac.read().rules_for(user, namespace);
        let mut errors = Vec::new();
        let node = user.node().is_some();
        if node {
            errors.push("node authorizer does not support user rule resolution".to_owned());
        }
        let incomplete = node || error.is_some();
        errors.extend(error);
        let error = if errors.len() > 1 { format!("[{}]", errors.join(", ")) } else { errors.concat() };
        RulesFor { rules, incomplete, error }
    }

    /// Roles and bindings, for looking at; not to be held.
    pub(super) fn rbac(&self) -> RwLockReadGuard<'_, Rbac> {
        self.state.rbac.read()
    }
}

/// Whether a pod's event can change which objects its node reads: most are of its status.
fn matters(resource: &Resource, event: &CacheEvent) -> bool {
    fn node<'a>(resource: &Resource, entry: &'a Entry) -> &'a str {
        entry.field(resource, "spec.nodeName").unwrap_or_default()
    }
    let now = node(resource, &event.object);
    let Some(previous) = event.previous.as_ref().filter(|_| !event.deleted) else { return !now.is_empty() };
    let late = |entry: &Entry| {
        let bytes: &[u8] = entry.encoded.full();
        [&b"\"ephemeralContainers\":"[..], b"\"resourceClaimStatuses\":"]
            .iter()
            .any(|field| bytes.windows(field.len()).any(|window| window == *field))
    };
    now != node(resource, previous) || (!now.is_empty() && (late(&event.object) || late(previous)))
}

impl State {
    fn apply(&self, resource: &Resource, part: Part, change: Change<'_>) {
        match (part, change) {
            (Part::Rbac(part), Change::Reset(entries)) => {
                let objects: Vec<_> = entries.iter().map(|entry| entry.encoded.parse()).collect();
                let mut rbac = self.rbac.write();
                rbac.clear(part);
                objects.iter().for_each(|object| rbac.put(part, object));
            }
            (Part::Rbac(part), Change::Event(event)) => {
                if event.deleted {
                    self.rbac.write().remove(part, event.object.namespace(), event.object.name());
                } else {
                    let object = event.object.encoded.parse();
                    self.rbac.write().put(part, &object);
                }
            }
            (Part::Node(part), Change::Reset(entries)) => {
                let objects: Vec<_> = entries.iter().map(|entry| entry.encoded.parse()).collect();
                let mut graph = self.graph.write();
                graph.clear(part);
                objects.iter().for_each(|object| graph.put(part, object));
            }
            (Part::Node(part), Change::Event(event)) => {
                if part == node::Part::Pod && !matters(resource, event) {
                    return;
                }
                if event.deleted {
                    self.graph.write().remove(part, event.object.namespace(), event.object.name());
                } else {
                    let object = event.object.encoded.parse();
                    self.graph.write().put(part, &object);
                }
            }
        }
    }
}
