//! Deleting a namespace: its pods, then everything else in it, then the namespace itself.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Client, ResourceExt};

use crate::context::Context;
use crate::error::{Error, Result, ignore_not_found};
use crate::informer::{Change, Informer, key_of};
use crate::queue::{Key, Queue};
use crate::write;

/// The finalizer of namespaces.
const FINALIZER: &str = "kubernetes";

struct Namespaces {
    client: Client,
    namespaces: Arc<Informer<Namespace>>,
    queue: Queue,
}

/// Starts the controller. Reads Namespaces and Pods; deletes everything in namespaces being deleted.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let controller = Arc::new(Namespaces {
        client: context.client.clone(),
        namespaces: context.informer(),
        queue: Queue::new(),
    });
    let c = controller.clone();
    controller.namespaces.on_change(move |change| {
        let namespace = change.object();
        if namespace.metadata.deletion_timestamp.is_some() && !matches!(change, Change::Deleted(_)) {
            c.queue.add(key_of(&namespace.metadata));
        }
    });
    let c = controller.clone();
    context.informer::<Pod>().on_change(move |change| {
        // Pods take their time to end; all else waits for them.
        if let Change::Deleted(pod) = change {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            if c.namespaces.get(namespace).is_some_and(|n| n.metadata.deletion_timestamp.is_some()) {
                c.queue.add(namespace);
            }
        }
    });
    let (queue, c) = (controller.queue.clone(), controller);
    context.workers("namespace", &queue, 2, move |name| {
        let c = c.clone();
        async move { c.sync(&name).await }
    });
    Ok(())
}

/// What is left in a namespace: kind by kind, and whose finalizers hold it.
#[derive(Default)]
struct Remaining {
    resources: Vec<(String, usize)>,
    finalizers: std::collections::BTreeMap<String, usize>,
    /// The longest time a pod may still take, in seconds.
    grace: Option<i64>,
}

impl Namespaces {
    async fn sync(&self, name: &Key) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let Some(namespace) = ignore_not_found(api.get(name).await)? else { return Ok(()) };
        let finalizers = namespace.spec.clone().unwrap_or_default().finalizers.unwrap_or_default();
        if namespace.metadata.deletion_timestamp.is_none() || finalizers.is_empty() {
            return Ok(());
        }
        let mut remaining = Remaining::default();
        let mut failure = None;
        match self.delete_content(name, &mut remaining).await {
            Ok(()) => {}
            Err(error) => failure = Some(error),
        }
        let empty = failure.is_none() && remaining.resources.is_empty();
        if !empty {
            let mut wanted = namespace.clone();
            let status = wanted.status.get_or_insert_default();
            status.phase = Some("Terminating".into());
            let conditions = status.conditions.get_or_insert_default();
            for condition in conditions_of(&remaining, failure.as_ref()) {
                put(conditions, condition);
            }
            write::update_status(&api, &namespace, &wanted).await?;
            if let Some(error) = failure {
                return Err(error);
            }
            if let Some(grace) = remaining.grace {
                // The pods' own events come first, unless finalizers hold them.
                self.queue
                    .add_after(name.clone(), Duration::from_secs(grace.clamp(0, 600).unsigned_abs() + 1));
                return Ok(());
            }
            return Err(Error::Waiting("the finalizers of objects in the namespace"));
        }
        let mut finalized = namespace;
        if let Some(spec) = &mut finalized.spec {
            spec.finalizers = Some(finalizers.into_iter().filter(|f| f != FINALIZER).collect());
        }
        let written = api.replace_subresource("finalize", name, &PostParams::default(), &finalized).await;
        ignore_not_found::<Namespace>(written)?;
        Ok(())
    }

    /// Asks for the deletion of all content: of pods first, and of the rest once they are gone.
    async fn delete_content(&self, name: &str, remaining: &mut Remaining) -> Result<()> {
        let discovery = Discovery::new(self.client.clone()).run().await?;
        let mut resources = Vec::new();
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                let namespaced = capabilities.scope == Scope::Namespaced;
                if namespaced
                    && capabilities.supports_operation(verbs::LIST)
                    && capabilities.supports_operation(verbs::DELETE)
                {
                    resources.push((resource, capabilities.supports_operation(verbs::DELETE_COLLECTION)));
                }
            }
        }
        let is_pod = |r: &ApiResource| r.group.is_empty() && r.plural == "pods";
        for (resource, collection) in resources.iter().filter(|(r, _)| is_pod(r)) {
            self.delete_all(name, resource, *collection, remaining).await?;
        }
        if !remaining.resources.is_empty() {
            return Ok(());
        }
        let mut failure = None;
        for (resource, collection) in resources.iter().filter(|(r, _)| !is_pod(r)) {
            if let Err(error) = self.delete_all(name, resource, *collection, remaining).await {
                failure = Some(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn delete_all(
        &self,
        namespace: &str,
        resource: &ApiResource,
        collection: bool,
        remaining: &mut Remaining,
    ) -> Result<()> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, resource);
        let list = ListParams::default();
        let found = match ignore_not_found(api.list_metadata(&list).await)? {
            Some(found) if !found.items.is_empty() => found,
            _ => return Ok(()),
        };
        let background = DeleteParams::background();
        if collection {
            ignore_not_found(api.delete_collection(&background, &list).await)?;
        } else {
            for item in found.items.iter().filter(|i| i.metadata.deletion_timestamp.is_none()) {
                ignore_not_found(api.delete(&item.name_any(), &background).await)?;
            }
        }
        let Some(left) = ignore_not_found(api.list_metadata(&list).await)? else { return Ok(()) };
        if left.items.is_empty() {
            return Ok(());
        }
        let kind = if resource.group.is_empty() {
            resource.plural.clone()
        } else {
            format!("{}.{}", resource.plural, resource.group)
        };
        remaining.resources.push((kind, left.items.len()));
        for item in &left.items {
            for finalizer in item.metadata.finalizers.iter().flatten() {
                *remaining.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
            if resource.plural == "pods" {
                let grace = item.metadata.deletion_grace_period_seconds.unwrap_or(30);
                remaining.grace = remaining.grace.max(Some(grace));
            }
        }
        Ok(())
    }
}

fn conditions_of(remaining: &Remaining, failure: Option<&Error>) -> Vec<NamespaceCondition> {
    let condition = |kind: &str, on: bool, reason: &str, message: String| NamespaceCondition {
        type_: kind.into(),
        status: if on { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(write::now()),
    };
    let content: Vec<String> = remaining
        .resources
        .iter()
        .map(|(kind, count)| format!("{kind} has {count} resource instances"))
        .collect();
    let finalizers: Vec<String> =
        remaining.finalizers.iter().map(|(f, count)| format!("{f} in {count} resource instances")).collect();
    vec![
        condition(
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".into(),
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".into(),
        ),
        match failure {
            Some(error) => condition(
                "NamespaceDeletionContentFailure",
                true,
                "ContentDeletionFailed",
                format!("Failed to delete all resource types, 1 remaining: {error}"),
            ),
            None => condition(
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".into(),
            ),
        },
        if content.is_empty() {
            condition(
                "NamespaceContentRemaining",
                false,
                "ContentRemoved",
                "All content successfully removed".into(),
            )
        } else {
            condition(
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", content.join(", ")),
            )
        },
        if finalizers.is_empty() {
            condition(
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".into(),
            )
        } else {
            condition(
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {}", finalizers.join(", ")),
            )
        },
    ]
}

/// Replaces the condition of its type, unless only the time would differ.
fn put(conditions: &mut Vec<NamespaceCondition>, mut new: NamespaceCondition) {
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}
