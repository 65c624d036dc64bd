//! ConfigMaps and Secrets that pods of this node refer to, and the tokens of their service accounts.
//!
//! Each referenced object is watched by itself (a node may not read others), from the first pod that names it until
//! the last one is gone. Pods are told of changes.

use crate::pod::tokens::Tokens;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// Kind of a referenced object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

/// Names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Contents of a ConfigMap (`data` and `binaryData`) or a Secret.
pub type Data = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Clone)]
enum Lookup {
    Pending,
    Missing,
    Present(Arc<Data>),
}

struct Entry {
    lookup: watch::Receiver<Lookup>,
    users: BTreeMap<String, Arc<Notify>>,
    task: AbortHandle,
}

/// The objects; clones share them.
#[derive(Clone)]
pub struct Objects {
    client: Option<kube::Client>,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
    /// Tokens.
    pub tokens: Tokens,
}

/// Longest wait for the first answer about an object.
const WAIT: Duration = Duration::from_secs(10);

impl Objects {
    /// Reads from this API server.
    pub fn new(client: kube::Client) -> Self {
        Self { tokens: Tokens::new(client.clone()), client: Some(client), entries: Arc::default() }
    }

    /// Declares what a pod (by UID) refers to, replacing what it declared before. `changed` is notified when one of
    /// the objects appears, changes or vanishes.
    pub fn declare(&self, user: &str, keys: &BTreeSet<Key>, changed: &Arc<Notify>) {
        let mut entries = self.entries.lock();
        for key in keys {
            let known = entries.get_mut(key).map(|e| e.users.insert(user.to_owned(), changed.clone()));
            if known.is_none()
                && let Some(client) = &self.client
            {
                let (sender, lookup) = watch::channel(Lookup::Pending);
                let task = tokio::spawn(follow(client.clone(), key.clone(), sender, self.entries.clone()));
                let users = BTreeMap::from([(user.to_owned(), changed.clone())]);
                entries.insert(key.clone(), Entry { lookup, users, task: task.abort_handle() });
            }
        }
        entries.retain(|key, entry| {
            if !keys.contains(key) {
                entry.users.remove(user);
            }
            if entry.users.is_empty() {
                entry.task.abort();
            }
            !entry.users.is_empty()
        });
    }

    /// The object's contents; `None` when it does not exist. The pod must have declared it.
    ///
    /// # Errors
    /// The API server gave no answer in time.
    pub async fn get(&self, key: &Key) -> Result<Option<Arc<Data>>, String> {
        let lookup = self.entries.lock().get(key).map(|e| e.lookup.clone());
        let Some(mut lookup) = lookup else { return Ok(None) };
        let answer = tokio::time::timeout(WAIT, lookup.wait_for(|l| !matches!(l, Lookup::Pending))).await;
        match answer {
            Ok(Ok(found)) => Ok(match &*found {
                Lookup::Present(data) => Some(data.clone()),
                _ => None,
            }),
            _ => {
                let kind = match key.kind {
                    Kind::ConfigMap => "configmap",
                    Kind::Secret => "secret",
                };
                Err(format!("failed to sync {kind} cache: timed out waiting for the condition"))
            }
        }
    }
}

async fn follow(
    client: kube::Client,
    key: Key,
    sender: watch::Sender<Lookup>,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
) {
    match key.kind {
        Kind::ConfigMap => {
            let api = Api::<ConfigMap>::namespaced(client, &key.namespace);
            follow_one(api, &key, &sender, &entries, |map| {
                let mut data = Data::new();
                data.extend(map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())));
                data.extend(map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)));
                data
            })
            .await;
        }
        Kind::Secret => {
            let api = Api::<Secret>::namespaced(client, &key.namespace);
            follow_one(api, &key, &sender, &entries, |secret| {
                secret.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect()
            })
            .await;
        }
    }
}

async fn follow_one<K>(
    api: Api<K>,
    key: &Key,
    sender: &watch::Sender<Lookup>,
    entries: &Mutex<HashMap<Key, Entry>>,
    data: impl Fn(K) -> Data,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let mut stream = watcher(api, config).default_backoff().boxed();
    let mut listed = None;
    while let Some(event) = stream.next().await {
        let lookup = match event {
            Ok(watcher::Event::Init) => {
                listed = None;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed = Some(object);
                continue;
            }
            Ok(watcher::Event::InitDone) => match listed.take() {
                Some(object) => Lookup::Present(Arc::new(data(object))),
                None => Lookup::Missing,
            },
            Ok(watcher::Event::Apply(object)) => Lookup::Present(Arc::new(data(object))),
            Ok(watcher::Event::Delete(_)) => Lookup::Missing,
            Err(error) => {
                tracing::debug!(?key, %error, "watch of a referenced object failed, trying again");
                continue;
            }
        };
        let changed = sender.send_if_modified(|old| {
            let same = match (&*old, &lookup) {
                (Lookup::Missing, Lookup::Missing) => true,
                (Lookup::Present(a), Lookup::Present(b)) => a == b,
                _ => false,
            };
            *old = lookup;
            !same
        });
        if changed && let Some(entry) = entries.lock().get(key) {
            entry.users.values().for_each(|user| user.notify_one());
        }
    }
}

#[cfg(test)]
impl Objects {
    /// Objects that never change and need no API server.
    pub fn fixed(objects: impl IntoIterator<Item = (Key, Data)>) -> Self {
        let entries = objects
            .into_iter()
            .map(|(key, data)| {
                let (_, lookup) = watch::channel(Lookup::Present(Arc::new(data)));
                let users = BTreeMap::from([("test".to_owned(), Arc::default())]);
                (key, Entry { lookup, users, task: tokio::spawn(async {}).abort_handle() })
            })
            .collect();
        Self { client: None, entries: Arc::new(Mutex::new(entries)), tokens: Tokens::default() }
    }
}
