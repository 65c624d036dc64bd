//! Volumes of drivers that became larger while a pod uses them, or before it did.
//!
//! A node may ask for the volumes of its pods and follow none, so that they are asked for now and then, as upstream does.

use super::{Wake, Worker, after};
use crate::csi::volumes::Wanted;
use crate::network::PodNetwork;
use crate::pod::events::Kind;
use crate::pod::volumes::claims;
use crate::runtime::Runtime;
use jiff::Timestamp;
use std::time::Duration;

/// How often a volume is looked at: about upstream's period of looking at a pod.
const PERIOD: Duration = Duration::from_secs(60);

impl<R: Runtime, N: PodNetwork> Worker<R, N> {
    /// Expands what is to be expanded, when it is time to look; when that is again.
    pub(super) async fn expand_volumes(&mut self) -> Wake {
        if self.expand_at.is_some_and(|at| at > Timestamp::now()) || self.volumes.is_none() {
            return self.expand_at;
        }
        let csi = self.context.volumes.csi().cloned()?;
        let dir = self.context.config.pod_dir(&self.reference.uid);
        let mut any = false;
        for claimed in claims::load(&dir).into_values() {
            if Wanted::persistent(&claimed.volume, claimed.read_only).is_none() {
                continue;
            }
            any = true;
            let newest = match self.context.volumes.newest(&claimed).await {
                Ok(newest) => newest,
                Err(error) => {
                    tracing::debug!(pod = %self.reference, volume = claimed.name(), %error, "volume not asked for");
                    continue;
                }
            };
            let Some(wanted) = Wanted::persistent(&newest, claimed.read_only) else { continue };
            let events = &self.context.events;
            match csi.expand(&dir, &wanted).await {
                Ok(false) => {}
                Ok(true) => {
                    let node = &self.context.config.node_name;
                    let text = format!(
                        "MountVolume.NodeExpandVolume succeeded for volume {:?} {node}",
                        wanted.name()
                    );
                    let reason = "FileSystemResizeSuccessful";
                    if let Some(claim) = newest.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
                        events.claim(claim, Kind::Normal, reason, text.clone());
                    }
                    events.pod(&self.reference, Kind::Normal, reason, text);
                }
                Err((step, why)) => {
                    let text = format!("{step} for volume {:?} : {why}", wanted.name());
                    events.pod(&self.reference, Kind::Warning, "VolumeResizeFailed", text);
                }
            }
        }
        self.expand_at = if any { after(PERIOD) } else { None };
        self.expand_at
    }
}
