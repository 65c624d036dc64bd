//! All informers of the manager: each kind is watched once, and only if somebody asks for it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, ObjectMeta, PartialObjectMeta};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Change, Informer, NAMESPACE};

/// A change, seen through metadata alone.
pub enum MetaChange<'a> {
    /// Added.
    Added(&'a ObjectMeta),
    /// Changed to this.
    Updated(&'a ObjectMeta),
    /// Gone.
    Gone(&'a ObjectMeta),
}

/// An informer of any kind, seen through metadata.
pub trait MetaSource: Send + Sync {
    /// Calls `handler` for every change and for each object known already.
    fn on_meta(&self, handler: Box<dyn Fn(&MetaChange<'_>) + Send + Sync>);
    /// Becomes true once the cache is complete.
    fn synced(&self) -> watch::Receiver<bool>;
    /// Number of objects in a namespace.
    fn count_in(&self, namespace: &str) -> usize;
}

impl<K: Resource + Send + Sync + 'static> MetaSource for Informer<K> {
    fn on_meta(&self, handler: Box<dyn Fn(&MetaChange<'_>) + Send + Sync>) {
        self.on_change(move |change| match change {
            Change::Deleted(object) => handler(&MetaChange::Gone(object.meta())),
            Change::Added(object) => handler(&MetaChange::Added(object.meta())),
            Change::Updated { new, .. } => handler(&MetaChange::Updated(new.meta())),
        });
    }

    fn synced(&self) -> watch::Receiver<bool> {
        self.synced()
    }

    fn count_in(&self, namespace: &str) -> usize {
        self.cache.read().count_by_index(NAMESPACE, namespace)
    }
}

/// A typed kind that can be watched.
pub trait Kind:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}
impl<K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static> Kind for K {}

/// The informers.
pub struct Informers {
    client: Client,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    started: bool,
    /// By type and field selector.
    typed: HashMap<(TypeId, String), Entry>,
    /// Metadata only, by group and plural; with what ends the watch.
    metadata: HashMap<(String, String), (Arc<dyn MetaSource>, CancellationToken)>,
}

struct Entry {
    informer: Arc<dyn Any + Send + Sync>,
    source: Arc<dyn MetaSource>,
    group: String,
    plural: String,
    start: Option<Box<dyn FnOnce() + Send>>,
}

impl Informers {
    /// No informers yet; watches run on `tasks` until `shutdown`.
    #[must_use]
    pub fn new(client: Client, tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { client, shutdown, tasks, state: Mutex::default() }
    }

    /// The informer of a kind.
    pub fn of<K: Kind>(&self) -> Arc<Informer<K>> {
        self.selected("")
    }

    /// The informer of the objects of a kind that a field selector matches.
    pub fn selected<K: Kind>(&self, fields: &str) -> Arc<Informer<K>> {
        let mut state = self.state.lock();
        let started = state.started;
        let entry = state
            .typed
            .entry((TypeId::of::<K>(), fields.to_owned()))
            .or_insert_with(|| self.entry::<K>(fields));
        if started && let Some(start) = entry.start.take() {
            start();
        }
        let informer = entry.informer.clone();
        drop(state);
        // The map's key holds the type.
        informer.downcast::<Informer<K>>().unwrap_or_default()
    }

    fn entry<K: Kind>(&self, fields: &str) -> Entry {
        let informer = Arc::new(Informer::<K>::default());
        let (run, api) = (informer.clone(), Api::<K>::all(self.client.clone()));
        let (tasks, shutdown) = (self.tasks.clone(), self.shutdown.clone());
        let mut config = watcher::Config::default().streaming_lists();
        if !fields.is_empty() {
            config = config.fields(fields);
        }
        Entry {
            informer: informer.clone(),
            source: informer,
            group: K::group(&()).into_owned(),
            plural: K::plural(&()).into_owned(),
            start: Some(Box::new(move || {
                tasks.spawn(async move { run.run(watcher(api, config), shutdown).await });
            })),
        }
    }

    /// The metadata of all objects of a kind: from its informer if there is one, else by a watch of metadata alone.
    pub fn metadata(&self, resource: &ApiResource) -> Arc<dyn MetaSource> {
        let mut state = self.state.lock();
        let typed = state.typed.iter().find(|((_, fields), e)| {
            fields.is_empty() && e.group == resource.group && e.plural == resource.plural
        });
        if let Some((_, entry)) = typed {
            return entry.source.clone();
        }
        let key = (resource.group.clone(), resource.plural.clone());
        let (source, _) = state.metadata.entry(key).or_insert_with(|| {
            let informer = Arc::new(Informer::<PartialObjectMeta<DynamicObject>>::default());
            let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(self.client.clone(), resource);
            let (run, shutdown, end) = (informer.clone(), self.shutdown.clone(), self.shutdown.child_token());
            let ended = end.clone();
            self.tasks.spawn(async move {
                let config = watcher::Config::default().streaming_lists();
                run.run(watcher(api, config), ended).await;
                if !shutdown.is_cancelled() {
                    run.clear();
                }
            });
            (informer, end)
        });
        source.clone()
    }

    /// Ends the watch of a kind that is served no more; its objects are gone for those who followed them.
    pub fn forget(&self, resource: &ApiResource) {
        let key = (resource.group.clone(), resource.plural.clone());
        if let Some((_, end)) = self.state.lock().metadata.remove(&key) {
            end.cancel();
        }
    }

    /// Starts the watches of all informers asked for so far; later ones start when they are asked for.
    pub fn start(&self) {
        let mut state = self.state.lock();
        state.started = true;
        for entry in state.typed.values_mut() {
            if let Some(start) = entry.start.take() {
                start();
            }
        }
    }

    /// Waits until all typed informers asked for so far are complete.
    pub async fn synced(&self) {
        let receivers: Vec<_> = self.state.lock().typed.values().map(|e| e.source.synced()).collect();
        for mut receiver in receivers {
            // The sender lives as long as the informer.
            let _ = receiver.wait_for(|synced| *synced).await;
        }
    }
}
