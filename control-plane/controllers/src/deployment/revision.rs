//! The set of the current template: finding, numbering and creating it.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kelp_model::controllers::deployment::{REVISION, max_revision, next_annotations, size};
use kelp_model::controllers::owner::{controller_reference, is_controlled_by};
use kelp_model::controllers::template_hash::{POD_TEMPLATE_HASH, same_template, template_hash};
use kube::ResourceExt;
use kube::api::Patch;
use serde_json::json;

use super::progress::{condition, has_deadline, set_condition};
use super::{Round, set_size_annotations};
use crate::error::{Error, Result};
use crate::write;

impl Round<'_> {
    /// Makes sure that the set of the current template exists and carries the newest revision.
    pub(super) async fn ensure_new_set(&mut self) -> Result<()> {
        if self.new.is_some() { self.sync_revision().await } else { self.create_new_set().await }
    }

    /// Carries the deployment's annotations and the newest revision over to the set of the current template, if there is
    /// one, and the revision to the deployment.
    pub(super) async fn sync_revision(&mut self) -> Result<()> {
        let Some(new) = self.new.clone() else { return Ok(()) };
        let next = max_revision(self.old.iter().map(|s| &**s)) + 1;
        let mut wanted = ReplicaSet::clone(&new);
        let deployment = self.deployment.metadata.annotations.clone().unwrap_or_default();
        let annotations = next_annotations(
            &deployment,
            new.metadata.annotations.as_ref().unwrap_or(&Default::default()),
            next,
        );
        wanted.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
        if let (Some(spec), Some(of)) = (&mut wanted.spec, &self.deployment.spec) {
            let seconds = of.min_ready_seconds.filter(|s| *s != 0);
            if spec.min_ready_seconds.filter(|s| *s != 0) != seconds {
                spec.min_ready_seconds = seconds;
            }
        }
        if let Some(written) = write::update(&self.api, &*new, &wanted).await? {
            self.new = Some(Arc::new(written));
        }
        let revision =
            self.new.as_ref().and_then(|s| s.metadata.annotations.as_ref()?.get(REVISION).cloned());
        let mut deployment = self.deployment.clone();
        if let Some(revision) = revision {
            deployment.metadata.annotations.get_or_insert_default().insert(REVISION.into(), revision);
        }
        if has_deadline(&deployment) && condition(&deployment, "Progressing").is_none() {
            let message = format!("Found new replica set {:?}", new.name_any());
            set_condition(&mut deployment, "Progressing", "True", "FoundNewReplicaSet", message);
        }
        self.write_deployment(deployment).await
    }

    async fn create_new_set(&mut self) -> Result<()> {
        let Some(spec) = self.deployment.spec.clone() else { return Ok(()) };
        let collisions = self.deployment.status.as_ref().and_then(|s| s.collision_count);
        let hash = template_hash(&spec.template, collisions);
        let mut template = spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(POD_TEMPLATE_HASH.into(), hash.clone());
        let labels = labels.clone();
        let mut selector = spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.into(), hash.clone());
        let total: i32 = self.old.iter().map(|s| size(s)).sum();
        let replicas = if self.bounds.rolling {
            (self.bounds.max_total() - total).clamp(0, self.bounds.replicas)
        } else {
            self.bounds.replicas
        };
        let next = max_revision(self.old.iter().map(|s| &**s)) + 1;
        let annotations = self.deployment.metadata.annotations.clone().unwrap_or_default();
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", self.deployment.name_any())),
                namespace: self.deployment.namespace(),
                owner_references: Some(vec![controller_reference(
                    "apps/v1",
                    "Deployment",
                    &self.deployment.metadata,
                )]),
                labels: Some(labels),
                annotations: Some(next_annotations(&annotations, &Default::default(), next)),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        set_size_annotations(&mut set, self.bounds);
        let name = set.name_any();
        match self.api.create(&write::post_params(), &set).await.map_err(Error::from) {
            Ok(created) => {
                if replicas > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                    self.c.events.normal(&self.deployment, "ScalingReplicaSet", message);
                }
                let revision = created.metadata.annotations.as_ref().and_then(|a| a.get(REVISION).cloned());
                self.new = Some(Arc::new(created));
                let mut deployment = self.deployment.clone();
                if let Some(revision) = revision {
                    deployment.metadata.annotations.get_or_insert_default().insert(REVISION.into(), revision);
                }
                if has_deadline(&deployment) {
                    let message = format!("Created new replica set {name:?}");
                    set_condition(&mut deployment, "Progressing", "True", "NewReplicaSetCreated", message);
                }
                self.write_deployment(deployment).await
            }
            Err(error) if error.is_already_exists() => self.use_existing_set(&name).await,
            Err(error) if error.is_namespace_terminating() => Err(error),
            Err(error) => {
                let message = format!("Failed to create new replica set {name:?}: {error}");
                self.c.events.warning(&self.deployment, "ReplicaSetCreateError", message.clone());
                if has_deadline(&self.deployment) {
                    let mut deployment = self.deployment.clone();
                    set_condition(&mut deployment, "Progressing", "False", "ReplicaSetCreateError", message);
                    self.write_deployment(deployment).await?;
                }
                Err(error)
            }
        }
    }

    /// A set of the name exists: ours, created a moment ago and not in the cache yet, or another one whose template has
    /// the same hash.
    async fn use_existing_set(&mut self, name: &str) -> Result<()> {
        let existing = self.api.get(name).await?;
        let template = self.deployment.spec.as_ref().map(|s| &s.template);
        let same = existing.spec.as_ref().and_then(|s| s.template.as_ref()).zip(template);
        let uid = self.deployment.metadata.uid.as_deref().unwrap_or_default();
        if is_controlled_by(&existing.metadata, uid) && same.is_some_and(|(a, b)| same_template(a, b)) {
            self.new = Some(Arc::new(existing));
            return self.sync_revision().await;
        }
        let mut deployment = self.deployment.clone();
        let status = deployment.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write_deployment(deployment).await?;
        Err(Error::Failed(format!("a replica set {name} of another template exists; the next hash is tried")))
    }

    /// Writes status and annotations of the deployment.
    pub(super) async fn write_deployment(&mut self, wanted: Deployment) -> Result<()> {
        if let Some(written) = write::update_status(&self.deployments, &self.deployment, &wanted).await? {
            self.deployment = written;
        }
        // A server may ignore metadata in a write to the status.
        let get = |d: &Deployment| d.metadata.annotations.as_ref().and_then(|a| a.get(REVISION).cloned());
        if get(&wanted).is_some() && get(&self.deployment) != get(&wanted) {
            let patch = json!({"metadata": {"annotations": {REVISION: get(&wanted)}}});
            let name = self.deployment.name_any();
            self.deployment =
                self.deployments.patch(&name, &write::patch_params(), &Patch::Merge(patch)).await?;
        }
        Ok(())
    }
}
