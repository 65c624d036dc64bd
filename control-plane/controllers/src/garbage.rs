//! The garbage collector: objects go when all their owners are gone.
//!
//! It follows the metadata of every kind the server can list and delete. An owner it has not seen is asked for at the
//! server before anything is deleted because of it.

mod graph;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, Preconditions, PropagationPolicy};
use kube::discovery::verbs;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use crate::context::Context;
use crate::error::{Error, Result, ignore_not_found};
use crate::informer::MetaChange;
use crate::kinds::{self, KindChange, ServedKind};
use crate::queue::{Key, Queue};
use crate::write::patch_params;
use graph::{FOREGROUND, Graph, Identity, ORPHAN, Task, same_place};

struct Garbage {
    context: Arc<Context>,
    graph: Arc<Mutex<Graph>>,
    /// UIDs, prefixed with what to do: `check/…`, `orphan/…`.
    queue: Queue,
}

/// Starts the controller. Reads the metadata of all kinds; deletes objects and edits owner references and finalizers.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let garbage = Arc::new(Garbage { context: context.clone(), graph: Arc::default(), queue: Queue::new() });
    let g = garbage.clone();
    kinds::follow(context, move |change| match change {
        KindChange::Added(kind) => g.follow(kind),
        // The objects go with the watch of them.
        KindChange::Removed(_) => None,
    });
    let (queue, g) = (garbage.queue.clone(), garbage);
    context.workers("garbage-collector", &queue, 10, move |key| {
        let g = g.clone();
        async move {
            // The sender lives as long as the controller.
            let _ = g.context.kinds.complete().wait_for(|complete| *complete).await;
            g.work(&key).await
        }
    });
    Ok(())
}

impl Garbage {
    /// Follows the objects of a kind, if they can be listed, watched and deleted.
    fn follow(&self, kind: &ServedKind) -> Option<watch::Receiver<bool>> {
        if !kind.can(&[verbs::LIST, verbs::WATCH, verbs::DELETE]) || kind.resource.kind == "Event" {
            return None;
        }
        let source = self.context.informers.metadata(&kind.resource);
        let (graph, queue, resource) = (self.graph.clone(), self.queue.clone(), kind.resource.clone());
        source.on_meta(Box::new(move |change| {
            let tasks = {
                let mut graph = graph.lock();
                match change {
                    MetaChange::Added(meta) | MetaChange::Updated(meta) => {
                        graph.present(&resource.api_version, &resource.kind, meta)
                    }
                    MetaChange::Gone(meta) => graph.gone(meta.uid.as_deref().unwrap_or_default()),
                }
            };
            tasks.into_iter().for_each(|task| add(&queue, task));
        }));
        Some(source.synced())
    }

    async fn work(&self, key: &Key) -> Result<()> {
        match key.split_once('/') {
            Some(("check", uid)) => self.check(uid).await,
            Some(("orphan", uid)) => self.orphan_dependents(uid).await,
            _ => Ok(()),
        }
    }

    /// The API of a kind.
    fn api(&self, api_version: &str, kind: &str, namespace: Option<&str>) -> Result<Api<DynamicObject>> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let Some(known) = self.context.kinds.find(group, kind) else {
            return Err(Error::Failed(format!("the server has no kind {kind} in {api_version}")));
        };
        let client = self.context.client.clone();
        Ok(match namespace.filter(|_| known.namespaced) {
            Some(namespace) => Api::namespaced_with(client, namespace, &known.resource),
            None => Api::all_with(client, &known.resource),
        })
    }

    /// The object as it is now; `None` when it is gone or another one has its name.
    async fn live(&self, id: &Identity) -> Result<Option<(Api<DynamicObject>, ObjectMeta)>> {
        let api = self.api(&id.api_version, &id.kind, id.namespace.as_deref())?;
        let found = ignore_not_found(api.get_metadata(&id.name).await)?;
        let found = found.map(|object| object.metadata).filter(|meta| meta.uid.as_deref() == Some(&id.uid));
        Ok(found.map(|meta| (api, meta)))
    }

    /// Whether an object should go, and then its deletion.
    async fn check(&self, uid: &str) -> Result<()> {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(()) };
        if node.deleting && !node.foreground {
            return Ok(());
        }
        let Some((api, live)) = self.live(&node.identity).await? else {
            let tasks = self.graph.lock().gone(uid);
            tasks.into_iter().for_each(|task| add(&self.queue, task));
            return Ok(());
        };
        if node.is_virtual {
            // It exists; its own watch event will follow.
            return Ok(());
        }
        if node.foreground {
            return self.finish_foreground(&api, &node.identity, &live).await;
        }
        let references = live.owner_references.clone().unwrap_or_default();
        if references.is_empty() || live.deletion_timestamp.is_some() {
            return Ok(());
        }
        let (mut solid, mut dangling, mut waiting) = (0, Vec::new(), Vec::new());
        for reference in &references {
            match self.owner_state(reference, &node.identity).await? {
                Owner::Solid => solid += 1,
                Owner::Absent => dangling.push(reference.uid.clone()),
                Owner::WaitsForDependents => waiting.push(reference.uid.clone()),
            }
        }
        if solid > 0 {
            dangling.append(&mut waiting);
            if dangling.is_empty() {
                return Ok(());
            }
            let left: Vec<&OwnerReference> =
                references.iter().filter(|r| !dangling.contains(&r.uid)).collect();
            return self.patch(&api, &node.identity, &live, json!({"ownerReferences": left})).await;
        }
        let has = |f: &str| live.finalizers.iter().flatten().any(|x| x == f);
        let policy = if !waiting.is_empty() && !node.dependents.is_empty() {
            // The owner waits for this object, which has dependents of its own: they go first.
            PropagationPolicy::Foreground
        } else if has(ORPHAN) {
            PropagationPolicy::Orphan
        } else if has(FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: live.resource_version,
            }),
            ..DeleteParams::default()
        };
        ignore_not_found(api.delete(&node.identity.name, &params).await)?;
        Ok(())
    }

    async fn owner_state(&self, reference: &OwnerReference, dependent: &Identity) -> Result<Owner> {
        {
            let graph = self.graph.lock();
            if let Some(owner) = graph.get(&reference.uid).filter(|o| !o.is_virtual)
                && same_place(&owner.identity, reference, dependent)
            {
                return Ok(if owner.foreground { Owner::WaitsForDependents } else { Owner::Solid });
            }
        }
        let id = Identity {
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            namespace: dependent.namespace.clone(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
        };
        Ok(match self.live(&id).await? {
            None => Owner::Absent,
            Some((_, live)) => {
                let waits = live.deletion_timestamp.is_some()
                    && live.finalizers.iter().flatten().any(|f| f == FOREGROUND);
                if waits { Owner::WaitsForDependents } else { Owner::Solid }
            }
        })
    }

    /// Lets an object go once no dependent blocks it, and makes those that do go.
    async fn finish_foreground(
        &self,
        api: &Api<DynamicObject>,
        id: &Identity,
        live: &ObjectMeta,
    ) -> Result<()> {
        let blocking: Vec<(String, bool)> = {
            let graph = self.graph.lock();
            graph
                .blocking_dependents(&id.uid)
                .iter()
                .map(|n| (n.identity.uid.clone(), n.foreground))
                .collect()
        };
        if blocking.is_empty() {
            return self.remove_finalizer(api, id, live, FOREGROUND).await;
        }
        for (uid, foreground) in blocking {
            if !foreground {
                add(&self.queue, Task::Check(uid));
            }
        }
        Ok(())
    }

    /// Takes the owner out of its dependents' references, then lets it go.
    async fn orphan_dependents(&self, uid: &str) -> Result<()> {
        let Some(owner) = self.graph.lock().get(uid).cloned() else { return Ok(()) };
        let Some((api, live)) = self.live(&owner.identity).await? else { return Ok(()) };
        for dependent in &owner.dependents {
            let Some(node) = self.graph.lock().get(dependent).cloned() else { continue };
            let Some((api, live)) = self.live(&node.identity).await? else { continue };
            let references = live.owner_references.clone().unwrap_or_default();
            let left: Vec<&OwnerReference> = references.iter().filter(|r| r.uid != uid).collect();
            if left.len() != references.len() {
                self.patch(&api, &node.identity, &live, json!({"ownerReferences": left})).await?;
            }
        }
        self.remove_finalizer(&api, &owner.identity, &live, ORPHAN).await
    }

    async fn remove_finalizer(
        &self,
        api: &Api<DynamicObject>,
        id: &Identity,
        live: &ObjectMeta,
        finalizer: &str,
    ) -> Result<()> {
        let finalizers = live.finalizers.clone().unwrap_or_default();
        let left: Vec<&String> = finalizers.iter().filter(|f| *f != finalizer).collect();
        if left.len() == finalizers.len() {
            return Ok(());
        }
        self.patch(api, id, live, json!({"finalizers": left})).await
    }

    /// Changes metadata of exactly the version read.
    async fn patch(
        &self,
        api: &Api<DynamicObject>,
        id: &Identity,
        live: &ObjectMeta,
        mut metadata: serde_json::Value,
    ) -> Result<()> {
        metadata["uid"] = json!(id.uid);
        metadata["resourceVersion"] = json!(live.resource_version);
        let patch = Patch::Merge(json!({"metadata": metadata}));
        ignore_not_found(api.patch_metadata(&id.name, &patch_params(), &patch).await)?;
        Ok(())
    }
}

enum Owner {
    Solid,
    Absent,
    WaitsForDependents,
}

fn add(queue: &Queue, task: Task) {
    match task {
        Task::Check(uid) => queue.add(format!("check/{uid}")),
        Task::Orphan(uid) => queue.add(format!("orphan/{uid}")),
    }
}
