//! The status of ResourceQuotas: the limits, and what is used of them.
//!
//! The API server counts what writes add, before they happen. Here everything is counted again when something goes or comes
//! to use less, when a quota is new or changes, and now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kelp_model::quota::amounts::Amounts;
use kelp_model::quota::{Evaluator, Objects, Status, recount};
use kube::Resource;
use kube::api::Api;
use kube::discovery::verbs;
use parking_lot::RwLock;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::context::Context;
use crate::error::Result;
use crate::informer::{Change, Informer, Kind, MetaChange, MetaSource, key_of};
use crate::kinds::{self, KindChange, ServedKind};
use crate::queue::Queue;
use crate::write;

/// Marks keys of quotas whose use is to be raised only: a new object was counted by the API server, and others that were
/// counted may not be in the caches yet.
const RAISE: char = '+';
/// New objects come in bursts; their use is looked at once for all of them.
const RAISE_DELAY: Duration = Duration::from_secs(1);

/// Objects of a kind whose content counts.
trait Content: Send + Sync {
    fn in_namespace(&self, namespace: &str) -> Vec<Value>;
}

impl<K: Resource + Serialize + Send + Sync + 'static> Content for Informer<K> {
    fn in_namespace(&self, namespace: &str) -> Vec<Value> {
        self.in_namespace(namespace).iter().map(|object| json(&**object)).collect()
    }
}

#[derive(Clone)]
enum Source {
    Content(Arc<dyn Content>),
    Number(Arc<dyn MetaSource>),
}

impl Source {
    fn objects(&self, namespace: &str) -> Objects {
        match self {
            Self::Content(objects) => Objects::All(objects.in_namespace(namespace)),
            Self::Number(objects) => Objects::Number(objects.count_in(namespace)),
        }
    }
}

struct Quotas {
    context: Arc<Context>,
    quotas: Arc<Informer<ResourceQuota>>,
    /// By group and plural.
    kinds: RwLock<BTreeMap<(String, String), (Evaluator, Source)>>,
    /// Keys of quotas, some of them with [`RAISE`].
    queue: Queue,
}

fn json<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// Starts the controller. Reads ResourceQuotas and the objects of every kind that can be counted; writes the status of
/// ResourceQuotas.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let quotas = Arc::new(Quotas {
        context: context.clone(),
        quotas: context.informer(),
        kinds: RwLock::default(),
        queue: Queue::new(),
    });
    let q = quotas.queue.clone();
    quotas.quotas.on_change(move |change| {
        let (Change::Added(quota) | Change::Updated { new: quota, .. }) = change else { return };
        let is_stale = match change {
            Change::Updated { old, .. } => old.spec != quota.spec || !is_told(quota),
            _ => true,
        };
        if is_stale {
            q.add(key_of(&quota.metadata));
        }
    });
    quotas.follow::<Pod>();
    quotas.follow::<Service>();
    quotas.follow::<PersistentVolumeClaim>();
    quotas.follow::<ResourceClaim>();

    let q = quotas.clone();
    kinds::follow(context, move |change| match change {
        KindChange::Added(kind) => q.count(kind),
        KindChange::Removed(kind) => {
            q.forget(kind);
            None
        }
    });

    let q = quotas.clone();
    context.spawn(async move {
        loop {
            tokio::time::sleep(q.context.config.resource_quota_sync).await;
            q.quotas.list().iter().for_each(|quota| q.queue.add(key_of(&quota.metadata)));
        }
    });
    let queue = quotas.queue.clone();
    context.workers("resourcequota", &queue, 5, move |key| {
        let q = quotas.clone();
        async move {
            // The sender lives as long as the controller.
            let _ = q.context.kinds.complete().wait_for(|complete| *complete).await;
            match key.strip_prefix(RAISE) {
                Some(key) => q.sync(key, true).await,
                None => q.sync(&key, false).await,
            }
        }
    });
    Ok(())
}

/// Whether the status has the limits of the spec. Others may change what is used, which is the API server's way to count.
fn is_told(quota: &ResourceQuota) -> bool {
    let hard =
        |field: &str| kelp_model::quota::amounts::amounts(json(quota).get(field).and_then(|f| f.get("hard")));
    hard("spec") == hard("status")
}

impl Quotas {
    /// Follows a kind whose objects' content counts.
    fn follow<K: Kind + Serialize>(self: &Arc<Self>) {
        let (group, plural) = (K::group(&()).into_owned(), K::plural(&()).into_owned());
        let Some(evaluator) = Evaluator::of(&group, &plural) else { return };
        let informer = self.context.informer::<K>();
        let source = Source::Content(informer.clone());
        self.kinds.write().insert((group, plural), (evaluator.clone(), source));
        let quotas = self.clone();
        informer.on_change(move |change| quotas.changed(&evaluator, change));
    }

    /// The quotas of a namespace that are about a kind, as JSON.
    fn about(&self, evaluator: &Evaluator, namespace: &str) -> Vec<(String, Value)> {
        let quotas = self.quotas.in_namespace(namespace);
        let all = quotas.iter().map(|quota| (key_of(&quota.metadata), json(&**quota)));
        all.filter(|(_, quota)| evaluator.concerns(quota)).collect()
    }

    fn changed<K: Kind + Serialize>(&self, evaluator: &Evaluator, change: &Change<'_, K>) {
        let namespace = change.object().meta().namespace.as_deref().unwrap_or_default();
        let quotas = self.about(evaluator, namespace);
        if quotas.is_empty() {
            return;
        }
        let (now, new) = (now(), json(&**change.object()));
        let old = if let Change::Updated { old, .. } = change { Some(json(&***old)) } else { None };
        for (key, quota) in quotas {
            match change {
                Change::Added(_) => self.raise(&key),
                Change::Deleted(_) => self.queue.add(key.as_str()),
                Change::Updated { .. } => {
                    if old.as_ref().is_none_or(|old| evaluator.differs(&quota, old, &new, now)) {
                        self.queue.add(key.as_str());
                    }
                }
            }
            if !matches!(change, Change::Deleted(_))
                && let Some(left) = evaluator.expires(&new).and_then(|at| u64::try_from(at - now).ok())
            {
                self.queue.add_after(key, Duration::from_secs(left.saturating_add(1)));
            }
        }
    }

    fn raise(&self, key: &str) {
        self.queue.add_after(format!("{RAISE}{key}"), RAISE_DELAY);
    }

    /// Follows a kind that can be counted and is not followed yet.
    fn count(self: &Arc<Self>, kind: &ServedKind) -> Option<watch::Receiver<bool>> {
        let key = (kind.resource.group.clone(), kind.resource.plural.clone());
        let can = kind.can(&[verbs::CREATE, verbs::LIST, verbs::WATCH, verbs::DELETE]);
        if !kind.namespaced || !can || self.kinds.read().contains_key(&key) {
            return None;
        }
        let evaluator = Evaluator::of(&key.0, &key.1)?;
        let source = self.context.informers.metadata(&kind.resource);
        self.kinds.write().insert(key, (evaluator.clone(), Source::Number(source.clone())));
        let (quotas, counted) = (self.clone(), evaluator.clone());
        source.on_meta(Box::new(move |change| {
            let (MetaChange::Added(meta) | MetaChange::Updated(meta) | MetaChange::Gone(meta)) = change;
            for (key, _) in quotas.about(&counted, meta.namespace.as_deref().unwrap_or_default()) {
                match change {
                    MetaChange::Added(_) => quotas.raise(&key),
                    MetaChange::Updated(_) => {}
                    MetaChange::Gone(_) => quotas.queue.add(key),
                }
            }
        }));
        // Quotas may have been about this kind before it was known.
        let (quotas, mut synced) = (self.clone(), source.synced());
        self.context.spawn(async move {
            if synced.wait_for(|synced| *synced).await.is_ok() {
                quotas.recount(&evaluator);
            }
        });
        Some(source.synced())
    }

    /// Counts a kind no more that is served no more.
    fn forget(&self, kind: &ServedKind) {
        let key = (kind.resource.group.clone(), kind.resource.plural.clone());
        let counted = self.kinds.read().get(&key).is_some_and(|(_, s)| matches!(s, Source::Number(_)));
        if counted && let Some((evaluator, _)) = self.kinds.write().remove(&key) {
            self.recount(&evaluator);
        }
    }

    /// Counts again for all quotas that are about a kind.
    fn recount(&self, evaluator: &Evaluator) {
        for quota in self.quotas.list() {
            if evaluator.concerns(&json(&*quota)) {
                self.queue.add(key_of(&quota.metadata));
            }
        }
    }

    async fn sync(&self, key: &str, raise: bool) -> Result<()> {
        let Some(quota) = self.quotas.get(key) else { return Ok(()) };
        let namespace = quota.metadata.namespace.clone().unwrap_or_default();
        let value = json(&*quota);
        let kinds: Vec<(Evaluator, Source)> = self.kinds.read().values().cloned().collect();
        let counted = recount(&value, now(), kinds.iter().map(|(e, s)| (e, s)), |source: &Source| {
            source.objects(&namespace)
        });
        let wanted = if raise { counted.and_then(|status| status.raised(&value)) } else { counted };
        let Some(status) = wanted else { return Ok(()) };
        let mut new = ResourceQuota::clone(&quota);
        new.status = Some(status_of(status));
        let api = Api::<ResourceQuota>::namespaced(self.context.client.clone(), &namespace);
        match write::update_status(&api, &*quota, &new).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

fn status_of(status: Status) -> ResourceQuotaStatus {
    let quantities = |amounts: Amounts| Some(amounts.into_iter().map(|(name, q)| (name, q.into())).collect());
    ResourceQuotaStatus { hard: quantities(status.hard), used: quantities(status.used) }
}
