//! Attaches the volumes of CSI drivers that ask for it to the nodes of their pods, and detaches them when the node has let go,
//! or will not: it is out of service, or (unless configured otherwise) has not been ready for long.
//!
//! The work itself is the driver's (its attacher watches VolumeAttachments); this controller makes and deletes the objects
//! and lists what is attached in the node's status, which the node waits for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{
    CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kelp_model::controllers::pods;
use kelp_model::volume::attachment::{self, Step, Wanted, claims_of, unique_name};
use kelp_model::volume::volume_name;
use kube::ResourceExt;
use kube::api::{Api, Patch};
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::context::Context;
use crate::error::{Error, Result, ignore_not_found};
use crate::events::Recorder;
use crate::informer::{Change, Informer, key_of};
use crate::node_lifecycle::{NODE, by_node};
use crate::queue::Queue;
use crate::write;

/// Index of pods by the claims they use.
const CLAIM: &str = "attach-claim";
/// Index of claims by their volume.
const VOLUME: &str = "attach-volume";

struct Attacher {
    context: Arc<Context>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    drivers: Arc<Informer<CSIDriver>>,
    attachments: Arc<Informer<VolumeAttachment>>,
    events: Recorder,
    queue: Queue,
    /// Since when attachments are not needed that nodes have in use. Another controller counts anew: it waits longer at most.
    kept: Mutex<HashMap<String, Instant>>,
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|s| s.attached)
}

/// Starts the controller. Reads Nodes, Pods, PersistentVolumeClaims, PersistentVolumes and CSIDrivers; writes
/// VolumeAttachments, `status.volumesAttached` of Nodes and events about Pods.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let attacher = Arc::new(Attacher {
        context: context.clone(),
        nodes: context.informer(),
        pods: context.informer(),
        claims: context.informer(),
        volumes: context.informer(),
        drivers: context.informer(),
        attachments: context.informer(),
        events: context.recorder("attachdetach-controller"),
        queue: Queue::new(),
        kept: Mutex::default(),
    });
    attacher.pods.add_index(NODE, by_node);
    attacher.pods.add_index(CLAIM, claims_of);
    attacher.claims.add_index(VOLUME, |c| vec![volume_name(c).to_owned()]);
    attacher.clone().follow();
    let queue = attacher.queue.clone();
    context.workers("attach-detach", &queue, 2, move |node| {
        let attacher = attacher.clone();
        async move { attacher.sync(&node).await }
    });
    Ok(())
}

impl Attacher {
    fn follow(self: Arc<Self>) {
        let this = self.clone();
        self.nodes.on_change(move |change| this.queue.add(change.object().name_any()));
        let this = self.clone();
        self.pods.on_change(move |change| {
            if !claims_of(change.object()).is_empty() {
                by_node(change.object()).into_iter().for_each(|node| this.queue.add(node));
            }
        });
        let this = self.clone();
        self.claims.on_change(move |change| this.claim_changed(&key_of(&change.object().metadata)));
        let this = self.clone();
        self.volumes.on_change(move |change| {
            for claim in this.claims.by_index(VOLUME, &change.object().name_any()) {
                this.claim_changed(&key_of(&claim.metadata));
            }
        });
        let this = self.clone();
        self.drivers.on_change(move |_| this.nodes.list().iter().for_each(|n| this.queue.add(n.name_any())));
        let this = self.clone();
        self.attachments.on_change(move |change| {
            let attachment = change.object();
            if let Change::Updated { old, new } = change {
                this.tell(old, new);
            }
            this.queue.add(attachment.spec.node_name.clone());
            // Another node may have waited for the volume.
            if let (Change::Deleted(_), Some(volume)) =
                (change, &attachment.spec.source.persistent_volume_name)
            {
                for claim in this.claims.by_index(VOLUME, volume) {
                    this.claim_changed(&key_of(&claim.metadata));
                }
            }
        });
    }

    fn claim_changed(&self, key: &str) {
        let pods = self.pods.by_index(CLAIM, key);
        pods.iter().flat_map(|pod| by_node(pod)).for_each(|node| self.queue.add(node));
    }

    /// Tells the pods of a node what came of an attachment.
    fn tell(&self, old: &VolumeAttachment, new: &VolumeAttachment) {
        let volume = new.spec.source.persistent_volume_name.clone().unwrap_or_default();
        let error = |a: &VolumeAttachment| {
            a.status.as_ref().and_then(|s| s.attach_error.as_ref()).and_then(|e| e.message.clone())
        };
        if is_attached(new) && !is_attached(old) {
            let text = format!("AttachVolume.Attach succeeded for volume {volume:?} ");
            for pod in self.users(&volume, &new.spec.node_name) {
                self.events.normal(&*pod, "SuccessfulAttachVolume", text.clone());
            }
        } else if let Some(why) = error(new).filter(|why| error(old).as_ref() != Some(why)) {
            let text = format!("AttachVolume.Attach failed for volume {volume:?} : {why}");
            for pod in self.users(&volume, &new.spec.node_name) {
                self.events.warning(&*pod, "FailedAttachVolume", text.clone());
            }
        }
    }

    fn users(&self, volume: &str, node: &str) -> Vec<Arc<Pod>> {
        let claims = self.claims.by_index(VOLUME, volume);
        let pods = claims.iter().flat_map(|c| self.pods.by_index(CLAIM, &key_of(&c.metadata)));
        pods.filter(|pod| by_node(pod).iter().any(|n| n == node)).collect()
    }

    fn handle(&self, volume: &str) -> Option<(String, String)> {
        let volume = self.volumes.get(volume)?;
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        Some((csi.driver.clone(), csi.volume_handle.clone()))
    }

    /// What the pods of a node need.
    fn wanted(&self, node: &str) -> BTreeSet<Wanted> {
        let pods = self.pods.by_index(NODE, node);
        let claims = pods.iter().filter(|pod| !pods::is_terminal(pod)).flat_map(|pod| claims_of(pod));
        let wanted = claims.filter_map(|key| {
            let claim = self.claims.get(&key)?;
            let volume = self.volumes.get(volume_name(&claim))?;
            attachment::wanted(&claim, &volume, |name| self.drivers.get(name).map(|d| CSIDriver::clone(&d)))
        });
        wanted.collect()
    }

    async fn sync(&self, node: &str) -> Result<()> {
        let present = self.nodes.get(node);
        let status = present.as_ref().and_then(|n| n.status.clone()).unwrap_or_default();
        let in_use: BTreeSet<String> = status.volumes_in_use.into_iter().flatten().collect();
        let attachments = self.attachments.list();
        let steps = attachment::steps(
            node,
            &self.wanted(node),
            attachments.iter().map(|a| &**a),
            |volume| self.handle(volume),
            &in_use,
            present.is_none(),
        );
        let api: Api<VolumeAttachment> = Api::all(self.context.client.clone());
        self.forget_kept(node, &attachments, &steps);
        for step in steps {
            match step {
                Step::Attach(wanted) => self.attach(&api, node, &wanted).await?,
                Step::Wait(wanted, others) => self.tell_wait(node, &wanted, &others),
                Step::Detach(name) => self.detach(&api, &name).await?,
                Step::InUse(name) => {
                    let since = *self.kept.lock().entry(name.clone()).or_insert_with(Instant::now);
                    let limit = self.context.config.force_detach_after;
                    match present.as_ref().and_then(|n| attachment::patience(n, since.elapsed(), limit)) {
                        // The node tells when it has let go.
                        None => {}
                        Some(Duration::ZERO) => {
                            tracing::warn!(
                                node,
                                attachment = name,
                                "volume detached by force: the node does not let go of it"
                            );
                            self.detach(&api, &name).await?;
                        }
                        Some(left) => self.queue.add_after(node.to_owned(), left),
                    }
                }
            }
        }
        match present {
            Some(present) => self.list_attached(&present, &attachments).await,
            None => Ok(()),
        }
    }

    /// Attachments to a node that it may keep, or has let go of, are not waited for.
    fn forget_kept(&self, node: &str, attachments: &[Arc<VolumeAttachment>], steps: &[Step]) {
        let mut kept = self.kept.lock();
        for attachment in attachments.iter().filter(|a| a.spec.node_name == node) {
            let name = attachment.name_any();
            if !steps.iter().any(|step| *step == Step::InUse(name.clone())) {
                kept.remove(&name);
            }
        }
        kept.retain(|name, _| self.attachments.get(name).is_some());
    }

    async fn detach(&self, api: &Api<VolumeAttachment>, name: &str) -> Result<()> {
        if let Some(attachment) = self.attachments.get(name) {
            write::delete(api, &*attachment, None).await?;
        }
        Ok(())
    }

    async fn attach(&self, api: &Api<VolumeAttachment>, node: &str, wanted: &Wanted) -> Result<()> {
        let hash = |bytes: &[u8]| Sha256::digest(bytes).to_vec();
        let object = VolumeAttachment {
            metadata: ObjectMeta {
                name: Some(attachment::name(&wanted.handle, &wanted.driver, node, hash)),
                ..ObjectMeta::default()
            },
            spec: VolumeAttachmentSpec {
                attacher: wanted.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(wanted.volume.clone()),
                    ..VolumeAttachmentSource::default()
                },
            },
            status: None,
        };
        match api.create(&write::post_params(), &object).await.map_err(Error::from) {
            // Made a moment ago, or still being taken away: its watch tells.
            Err(error) if error.is_already_exists() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    fn tell_wait(&self, node: &str, wanted: &Wanted, others: &[String]) {
        let elsewhere = others.iter().flat_map(|other| self.users(&wanted.volume, other));
        let names: Vec<String> = elsewhere.map(|pod| pod.name_any()).collect();
        let why = match names.is_empty() {
            false => format!("Volume is already used by pod(s) {}", names.join(", ")),
            true => {
                "Volume is already exclusively attached to one node and can't be attached to another".into()
            }
        };
        let text = format!("Multi-Attach error for volume {:?} {why}", wanted.volume);
        for pod in self.users(&wanted.volume, node) {
            self.events.warning(&*pod, "FailedAttachVolume", text.clone());
        }
    }

    /// Writes to the node's status what is attached to it.
    async fn list_attached(&self, node: &Node, attachments: &[Arc<VolumeAttachment>]) -> Result<()> {
        let here = attachments.iter().filter(|a| a.spec.node_name == node.name_any());
        let attached = here.filter(|a| is_attached(a) && a.metadata.deletion_timestamp.is_none());
        let wanted: BTreeSet<String> = attached
            .filter_map(|a| self.handle(a.spec.source.persistent_volume_name.as_deref()?))
            .map(|(driver, handle)| unique_name(&driver, &handle))
            .collect();
        let listed = node.status.iter().flat_map(|s| s.volumes_attached.iter().flatten());
        let has: BTreeSet<String> = listed.map(|v| v.name.clone()).collect();
        if has == wanted {
            return Ok(());
        }
        let list: Vec<_> = wanted.iter().map(|name| json!({"name": name, "devicePath": ""})).collect();
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "status": {"volumesAttached": list}});
        let api: Api<Node> = Api::all(self.context.client.clone());
        ignore_not_found(
            api.patch_status(&node.name_any(), &write::patch_params(), &Patch::Merge(patch)).await,
        )?;
        Ok(())
    }
}
