//! The image of a container: by the pull policy from the store or from a registry, with upstream's events and reasons.

use super::start::{ImageBackoff, Waiting};
use super::{Message, RETRY, Worker, after};
use crate::image::ImageError;
use crate::image::registry::Keyring;
use crate::metrics;
use crate::network::{PodNetwork, chain};
use crate::pod::context::ResolvedImage;
use crate::pod::events::Kind;
use crate::pod::objects::{Key, Kind as ObjectKind};
use crate::pod::pulls::{Ended, Standing};
use crate::runtime::Runtime;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kelp_model::pod::backoff;
use std::time::Duration;

/// Why there is no image (yet).
pub(super) enum NoImage {
    /// It is being pulled; the worker is woken when that has ended.
    Pulling,
    /// The container waits for this reason, until then.
    Waiting(Waiting, Option<Timestamp>),
}

/// An image that is needed.
struct Ask {
    /// Container, or volume, that needs it.
    who: String,
    reference: String,
    policy: Option<String>,
    /// The container's place in the Pod spec, for events; `None`: they are about the pod.
    path: Option<String>,
}

/// The pull secrets of a pod.
pub(super) fn secrets(pod: &Pod) -> Vec<Key> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let names = pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()).map(|s| s.name.clone());
    names
        .filter(|name| !name.is_empty())
        .map(|name| Key { kind: ObjectKind::Secret, namespace: namespace.clone(), name })
        .collect()
}

/// A time as Go writes durations: `1.234s`, `15ms`, `1m2.5s`.
fn go_duration(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        0 => "0s".to_owned(),
        1..1000 => format!("{ms}ms"),
        _ => {
            let seconds = (ms % 60_000) as f64 / 1000.0;
            if ms < 60_000 { format!("{seconds}s") } else { format!("{}m{seconds}s", ms / 60_000) }
        }
    }
}

impl<R: Runtime, N: PodNetwork> Worker<R, N> {
    /// The container's image, and what the event about it says.
    pub(super) async fn image(&mut self, container: &Container) -> Result<(ResolvedImage, String), NoImage> {
        let ask = Ask {
            who: container.name.clone(),
            reference: container.image.clone().unwrap_or_default(),
            policy: container.image_pull_policy.clone(),
            path: Some(self.field_path(&container.name)),
        };
        self.ask_image(&ask).await
    }

    /// Mounts the images that are volumes of a container.
    pub(super) async fn set_up_image_volumes(&mut self, container: &Container) -> Result<(), NoImage> {
        let pod = self.pod.clone();
        let mounted = |name: &str| container.volume_mounts.iter().flatten().any(|m| m.name == name);
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| mounted(&v.name)) {
            let Some(source) =
                volume.image.as_ref().filter(|_| !self.image_volumes.contains_key(&volume.name))
            else {
                continue;
            };
            metrics::IMAGE_VOLUMES.count(&[]);
            let ask = Ask {
                who: format!("volume {}", volume.name),
                reference: source.reference.clone().unwrap_or_default(),
                policy: source.pull_policy.clone(),
                path: None,
            };
            let (image, text) = self.ask_image(&ask).await?;
            self.context.events.pod(&self.reference, Kind::Normal, "Pulled", text);
            let dir = self.context.config.pod_dir(&self.reference.uid);
            let (images, uid) = (self.context.volumes.images().cloned(), self.reference.uid.clone());
            let (name, id) = (volume.name.clone(), image.id.clone());
            let made = tokio::task::spawn_blocking(move || {
                let images = images.ok_or("this node mounts no images")?;
                images.set_up(&uid, &dir, &name, &id)
            });
            match made.await.map_err(|e| e.to_string()).and_then(|made| made) {
                Ok(path) => {
                    metrics::IMAGE_VOLUMES_MOUNTED.count(&[]);
                    if let Some(paths) = &mut self.volumes {
                        paths.insert(volume.name.clone(), path.clone());
                    }
                    self.image_volumes.insert(volume.name.clone(), path);
                }
                Err(why) => {
                    metrics::IMAGE_VOLUMES_FAILED.count(&[]);
                    let text = format!("failed to mount image volume {:?}: {why}", volume.name);
                    return Err(NoImage::Waiting(("CreateContainerError".into(), text), after(RETRY)));
                }
            }
        }
        Ok(())
    }

    /// An image, and what the event about it says.
    async fn ask_image(&mut self, ask: &Ask) -> Result<(ResolvedImage, String), NoImage> {
        let Ask { who, reference, policy, path } = ask;
        let pod = self.reference.clone();
        let events = self.context.events.clone();
        let event = |kind, reason: &str, text: String| match path {
            Some(path) => events.container(&pod, path, kind, reason, text),
            None => events.pod(&pod, kind, reason, text),
        };
        let keyring = self.keyring().await;
        let policy = policy.as_deref().unwrap_or("IfNotPresent");
        let present = match self.context.images.resolve(reference) {
            Ok(present) => present,
            Err(ImageError::Reference { message, .. }) => {
                let text = format!(
                    "Failed to apply default image tag {reference:?}: couldn't parse image name {reference:?}: {message}"
                );
                event(Kind::Warning, "InspectFailed", text.clone());
                event(Kind::Warning, "Failed", "Error: InvalidImageName".into());
                return Err(NoImage::Waiting(("InvalidImageName".into(), text), after(RETRY)));
            }
            Err(error) => {
                let text = format!("Failed to inspect image {reference:?}: {}", chain(&error));
                event(Kind::Warning, "InspectFailed", text.clone());
                event(Kind::Warning, "Failed", "Error: ImageInspectError".into());
                return Err(NoImage::Waiting(("ImageInspectError".into(), text), after(RETRY)));
            }
        };
        let is_present = present.is_some();
        if let Some(image) = present.filter(|_| policy != "Always") {
            self.image_backoff.remove(who);
            // Whoever may run here may use what is here: no credentials are asked for again.
            metrics::MUST_PULL.count(&["credentialPolicyAllowed"]);
            metrics::ENSURE_IMAGE.count(&["true", &policy.to_lowercase(), "false"]);
            let text = format!(
                "Container image {reference:?} already present on machine and can be accessed by the pod"
            );
            return Ok((image, text));
        }
        if policy == "Never" {
            metrics::ENSURE_IMAGE.count(&["false", "never", "false"]);
            let text = format!("Container image {reference:?} is not present with pull policy of Never");
            event(Kind::Warning, "ErrImageNeverPull", text.clone());
            event(Kind::Warning, "Failed", "Error: ErrImageNeverPull".into());
            return Err(NoImage::Waiting(("ErrImageNeverPull".into(), text), after(RETRY)));
        }
        let pulls = self.context.images.pulls().cloned();
        let key = (pod.uid.clone(), who.clone(), reference.clone());
        let now = Timestamp::now();
        let cause = match pulls.as_ref().map_or(Standing::None, |pulls| pulls.standing(&key)) {
            Standing::Running => return Err(NoImage::Pulling),
            Standing::Ended(Ended::Pulled { image, took, size }) => {
                self.pulling += took;
                self.image_backoff.remove(who);
                let took = go_duration(took);
                let text = format!(
                    "Successfully pulled image {reference:?} in {took} ({took} including waiting). Image size: {size} bytes."
                );
                return Ok((*image, text));
            }
            Standing::Ended(Ended::Failed(cause)) => cause,
            Standing::None => {
                let known = self.image_backoff.get(who).filter(|b| b.until > now);
                if let Some(known) = known {
                    let text = format!("Back-off pulling image {reference:?}");
                    event(Kind::Normal, "BackOff", text.clone());
                    event(Kind::Warning, "Failed", "Error: ImagePullBackOff".into());
                    let waiting =
                        ("ImagePullBackOff".into(), format!("{text}: ErrImagePull: {}", known.cause));
                    // Somebody may import the image meanwhile.
                    let retry = after(RETRY).map(|at| at.min(known.until)).filter(|at| *at > now);
                    return Err(NoImage::Waiting(waiting, retry));
                }
                let here = if is_present { "true" } else { "false" };
                metrics::ENSURE_IMAGE.count(&[here, &policy.to_lowercase(), "true"]);
                event(Kind::Normal, "Pulling", format!("Pulling image {reference:?}"));
                if let Some(pulls) = pulls {
                    let sender = self.sender.clone();
                    pulls.start(key, keyring, async move {
                        let _ = sender.send(Message::Runtime).await;
                    });
                    return Err(NoImage::Pulling);
                }
                format!(
                    "failed to pull image {reference:?}: this node pulls no images; `kelp image import ARCHIVE` makes it available"
                )
            }
        };
        event(Kind::Warning, "Failed", format!("Failed to pull image {reference:?}: {cause}"));
        event(Kind::Warning, "Failed", "Error: ErrImagePull".into());
        let known = self.image_backoff.get(who);
        let delay = known.map_or(backoff::INITIAL, |b| (b.delay * 2).min(backoff::MAX));
        let until = now.checked_add(delay).unwrap_or(now);
        let entry = ImageBackoff { delay, until, cause: cause.clone() };
        self.image_backoff.insert(who.clone(), entry);
        // Seen soon again, to say that it is backing off.
        Err(NoImage::Waiting(("ErrImagePull".into(), cause), after(Duration::from_secs(3))))
    }

    /// What the pod's pull secrets hold. Those that are missing are told of.
    async fn keyring(&self) -> Keyring {
        let mut keyring = Keyring::default();
        let mut missing = Vec::new();
        for key in secrets(&self.pod) {
            match self.context.objects.get(&key).await {
                Ok(Some(data)) => keyring.add_secret(&data),
                _ => missing.push(key.name),
            }
        }
        if !missing.is_empty() {
            let text = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.context.events.pod(&self.reference, Kind::Warning, "FailedToRetrieveImagePullSecret", text);
        }
        keyring
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (ms, text) in [(0, "0s"), (15, "15ms"), (1234, "1.234s"), (2000, "2s"), (62_500, "1m2.5s")] {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
    }
}
