//! Watches of pods, nodes, namespaces and storage, turned into events for the core.
//!
//! Each task reads one kind from the API server, converts the objects (off the scheduling loop) and sends
//! [`Event`]s; a broken watch starts again by itself, and the objects then listed replace those known.

use crate::cluster::{StorageKind, StorageObject};
use crate::core::Event;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use kelp_model::scheduling::{LabelMap, NodeInfo, PodInfo};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How the objects of a kind become events.
trait Kind: Send + 'static {
    type Object: Resource + Clone + DeserializeOwned + Debug + Send + 'static;
    type Item: Send;

    fn convert(object: &Self::Object) -> Self::Item;
    fn replaced(items: Vec<Self::Item>) -> Event;
    fn applied(item: Self::Item) -> Event;
    fn removed(object: &Self::Object) -> Event;
}

struct Pods;

impl Kind for Pods {
    type Object = Pod;
    type Item = Arc<PodInfo>;

    fn convert(pod: &Pod) -> Arc<PodInfo> {
        Arc::new(PodInfo::from_api(pod))
    }

    fn replaced(pods: Vec<Arc<PodInfo>>) -> Event {
        Event::PodsReplaced(pods)
    }

    fn applied(pod: Arc<PodInfo>) -> Event {
        Event::PodApplied(pod)
    }

    fn removed(pod: &Pod) -> Event {
        Event::PodRemoved(pod.metadata.uid.as_deref().unwrap_or_default().into())
    }
}

struct Nodes;

impl Kind for Nodes {
    type Object = Node;
    type Item = NodeInfo;

    fn convert(node: &Node) -> NodeInfo {
        NodeInfo::from_api(node)
    }

    fn replaced(nodes: Vec<NodeInfo>) -> Event {
        Event::NodesReplaced(nodes)
    }

    fn applied(node: NodeInfo) -> Event {
        Event::NodeApplied(Box::new(node))
    }

    fn removed(node: &Node) -> Event {
        Event::NodeRemoved(node.metadata.name.as_deref().unwrap_or_default().into())
    }
}

struct Namespaces;

impl Kind for Namespaces {
    type Object = Namespace;
    type Item = (Arc<str>, LabelMap);

    fn convert(namespace: &Namespace) -> (Arc<str>, LabelMap) {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        (name.into(), LabelMap::from_api(namespace.metadata.labels.as_ref()))
    }

    fn replaced(namespaces: Vec<(Arc<str>, LabelMap)>) -> Event {
        Event::NamespacesReplaced(namespaces.into_iter().collect())
    }

    fn applied((name, labels): (Arc<str>, LabelMap)) -> Event {
        Event::Namespace(name, Some(labels))
    }

    fn removed(namespace: &Namespace) -> Event {
        Event::Namespace(namespace.metadata.name.as_deref().unwrap_or_default().into(), None)
    }
}

/// A kind of objects about storage.
trait StorageSource: Send + 'static {
    const KIND: StorageKind;
    type Object: Resource + Clone + DeserializeOwned + Debug + Send + 'static;

    fn wrap(object: Self::Object) -> StorageObject;
}

macro_rules! storage {
    ($name:ident, $object:ty, $kind:ident) => {
        struct $name;

        impl StorageSource for $name {
            const KIND: StorageKind = StorageKind::$kind;
            type Object = $object;

            fn wrap(object: $object) -> StorageObject {
                StorageObject::$kind(Arc::new(object))
            }
        }
    };
}

storage!(Claims, PersistentVolumeClaim, Claim);
storage!(Volumes, PersistentVolume, Volume);
storage!(Classes, StorageClass, Class);
storage!(CsiNodes, CSINode, CsiNode);
storage!(CsiDrivers, CSIDriver, CsiDriver);
storage!(CsiCapacities, CSIStorageCapacity, CsiCapacity);

impl<S: StorageSource> Kind for S {
    type Object = S::Object;
    type Item = StorageObject;

    fn convert(object: &S::Object) -> StorageObject {
        let mut object = object.clone();
        object.meta_mut().managed_fields = None;
        S::wrap(object)
    }

    fn replaced(objects: Vec<StorageObject>) -> Event {
        Event::StorageReplaced(S::KIND, objects)
    }

    fn applied(object: StorageObject) -> Event {
        Event::StorageApplied(object)
    }

    fn removed(object: &S::Object) -> Event {
        Event::StorageRemoved(S::KIND, S::wrap(object.clone()).key())
    }
}

/// Starts the watches; they run until `shutdown`.
pub fn start(client: &Client, events: &Sender<Event>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    // Pods that are done take nothing of their nodes.
    let pods = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    spawn::<Pods>(Api::all(client.clone()), pods, events, tasks, shutdown);
    spawn::<Nodes>(Api::all(client.clone()), watcher::Config::default(), events, tasks, shutdown);
    spawn::<Namespaces>(Api::all(client.clone()), watcher::Config::default(), events, tasks, shutdown);
    spawn::<Claims>(Api::all(client.clone()), watcher::Config::default(), events, tasks, shutdown);
    spawn::<Volumes>(Api::all(client.clone()), watcher::Config::default(), events, tasks, shutdown);
    spawn::<Classes>(Api::all(client.clone()), watcher::Config::default(), events, tasks, shutdown);
    spawn::<CsiNodes>(Api::all(client.clone()), watcher::Config::default(), events, tasks, shutdown);
    spawn::<CsiDrivers>(Api::all(client.clone()), watcher::Config::default(), events, tasks, shutdown);
    spawn::<CsiCapacities>(Api::all(client.clone()), watcher::Config::default(), events, tasks, shutdown);
}

fn spawn<K: Kind>(
    api: Api<K::Object>,
    config: watcher::Config,
    events: &Sender<Event>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) where
    <K::Object as Resource>::DynamicType: Default,
{
    let events = events.clone();
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(watch::<K>(api, config, events)));
}

async fn watch<K: Kind>(api: Api<K::Object>, config: watcher::Config, events: Sender<Event>)
where
    <K::Object as Resource>::DynamicType: Default,
{
    let kind = K::Object::plural(&Default::default()).into_owned();
    let mut stream = watcher(api, config.streaming_lists()).default_backoff().boxed();
    let mut listed = Vec::new();
    loop {
        let event = match stream.try_next().await {
            Ok(Some(watcher::Event::Init)) => {
                listed.clear();
                continue;
            }
            Ok(Some(watcher::Event::InitApply(object))) => {
                listed.push(K::convert(&object));
                continue;
            }
            Ok(Some(watcher::Event::InitDone)) => K::replaced(std::mem::take(&mut listed)),
            Ok(Some(watcher::Event::Apply(object))) => K::applied(K::convert(&object)),
            Ok(Some(watcher::Event::Delete(object))) => K::removed(&object),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(kind, error = &error as &dyn std::error::Error, "watch broke, starting again");
                continue;
            }
        };
        if events.send(event).await.is_err() {
            return; // the scheduling loop has ended
        }
    }
}
