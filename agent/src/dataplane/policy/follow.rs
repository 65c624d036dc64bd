//! Follows the API.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kelp_model::policy::{Compiler, pod_state};
use kelp_model::service::ObjectName;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher::watcher};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::Policies;
use crate::dataplane::reconciler::told;

/// Events taken together at most.
const BATCH: usize = 1_024;
/// First and longest pause after a failed write.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Something the API told.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "moved once, from the watch to the compiler; a box would cost more"
)]
pub enum Change {
    /// About NetworkPolicies.
    Policy(Event<NetworkPolicy>),
    /// About Namespaces.
    Namespace(Event<Namespace>),
    /// About the Pods of all nodes.
    Pod(Event<Pod>),
}

/// Where changes come from.
pub struct Source {
    /// NetworkPolicies.
    pub policies: BoxStream<'static, Change>,
    /// Namespaces and Pods of all nodes; asked for when there is a policy, so that clusters without policies do not pay
    /// for them.
    pub peers: Box<dyn FnOnce() -> BoxStream<'static, Change> + Send>,
}

/// The watches of an API; they are re-established with a growing pause.
#[must_use]
pub fn follow_api(client: &Client) -> Source {
    let policies = watcher(Api::<NetworkPolicy>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .filter_map(|event| async move { told(event, "networkpolicies").map(Change::Policy) });
    let client = client.clone();
    let peers = move || {
        let namespaces = watcher(Api::<Namespace>::all(client.clone()), watcher::Config::default())
            .default_backoff()
            .filter_map(|event| async move { told(event, "namespaces").map(Change::Namespace) });
        let pods = watcher(Api::<Pod>::all(client), watcher::Config::default())
            .default_backoff()
            .filter_map(|event| async move { told(event, "pods").map(Change::Pod) });
        stream::select(namespaces, pods).boxed()
    };
    Source { policies: policies.boxed(), peers: Box::new(peers) }
}

/// The names in a list that is being received, and whether one was received whole.
#[derive(Debug)]
struct Listing<N> {
    names: BTreeSet<N>,
    complete: bool,
}

impl<N> Default for Listing<N> {
    fn default() -> Self {
        Self { names: BTreeSet::new(), complete: false }
    }
}

impl<N: Ord> Listing<N> {
    /// Begins a list.
    fn begin(&mut self) {
        self.names.clear();
    }

    /// Ends a list; returns the names in it.
    fn end(&mut self) -> BTreeSet<N> {
        self.complete = true;
        std::mem::take(&mut self.names)
    }
}

#[derive(Debug, Default)]
struct Lists {
    policies: Listing<ObjectName>,
    namespaces: Listing<String>,
    pods: Listing<ObjectName>,
}

impl Lists {
    /// Takes over a change. Objects of a list count as they come: more is known of what may be reached, never less.
    fn take(&mut self, change: Change, compiler: &mut Compiler) {
        match change {
            Change::Policy(event) => match event {
                Event::Init => self.policies.begin(),
                Event::InitApply(policy) => {
                    self.policies.names.insert(name(&policy));
                    compiler.apply_policy(&policy);
                }
                Event::InitDone => compiler.retain_policies(&self.policies.end()),
                Event::Apply(policy) => compiler.apply_policy(&policy),
                Event::Delete(policy) => compiler.delete_policy(&name(&policy)),
            },
            Change::Namespace(event) => match event {
                Event::Init => self.namespaces.begin(),
                Event::InitApply(namespace) => {
                    self.namespaces.names.insert(namespace.name_any());
                    compiler.apply_namespace(&namespace.name_any(), namespace.labels());
                }
                Event::InitDone => compiler.retain_namespaces(&self.namespaces.end()),
                Event::Apply(namespace) => {
                    compiler.apply_namespace(&namespace.name_any(), namespace.labels())
                }
                Event::Delete(namespace) => compiler.delete_namespace(&namespace.name_any()),
            },
            Change::Pod(event) => match event {
                Event::Init => self.pods.begin(),
                Event::InitApply(pod) => {
                    self.pods.names.insert(name(&pod));
                    apply_pod(compiler, &pod);
                }
                Event::InitDone => compiler.retain_pods(&self.pods.end()),
                Event::Apply(pod) => apply_pod(compiler, &pod),
                Event::Delete(pod) => compiler.delete_pod(&name(&pod)),
            },
        }
    }

    /// Whether enough is known to decide.
    fn complete(&self, compiler: &Compiler) -> bool {
        self.policies.complete
            && (!compiler.has_policies() || (self.namespaces.complete && self.pods.complete))
    }
}

fn name<T: ResourceExt>(object: &T) -> ObjectName {
    ObjectName::new(&object.namespace().unwrap_or_default(), &object.name_any())
}

fn apply_pod(compiler: &mut Compiler, pod: &Pod) {
    match pod_state(pod) {
        Some(state) => compiler.apply_pod(state),
        None => compiler.delete_pod(&name(pod)),
    }
}

impl Policies {
    /// Works until `shutdown` or the end of the policies.
    pub(in crate::dataplane) async fn run(self: Arc<Self>, source: Source, shutdown: CancellationToken) {
        let mut lists = Lists::default();
        let mut policies = source.policies.ready_chunks(BATCH);
        let mut ask = Some(source.peers);
        let mut peers = stream::pending().boxed().ready_chunks(BATCH);
        let mut pause = RETRY.0;
        let mut retry_at: Option<tokio::time::Instant> = None;
        loop {
            let retry = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let batch = tokio::select! {
                () = shutdown.cancelled() => return,
                batch = policies.next() => {
                    let Some(batch) = batch else { return };
                    batch
                }
                Some(batch) = peers.next() => batch,
                () = self.failed.notified() => {
                    retry_at.get_or_insert(tokio::time::Instant::now() + pause);
                    continue;
                }
                () = retry => Vec::new(),
            };
            let again = batch.is_empty();
            // While a write has to be repeated, news wait for that.
            let hold = retry_at.is_some() && !again;
            let mut wanted = false;
            let intact = self.observe(hold, |compiler| {
                for change in batch {
                    lists.take(change, compiler);
                }
                wanted = compiler.has_policies();
                lists.complete(compiler)
            });
            if wanted && let Some(ask) = ask.take() {
                peers = ask().ready_chunks(BATCH);
            }
            if intact {
                (pause, retry_at) = (RETRY.0, None);
            } else if again || retry_at.is_none() {
                retry_at = Some(tokio::time::Instant::now() + pause);
                pause = (pause * 2).min(RETRY.1);
            }
        }
    }
}
