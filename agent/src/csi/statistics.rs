//! How full the volumes of a pod are, as their drivers tell it.

use super::places::{self, Place};
use super::{Csi, Usage};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// A driver that takes longer is not waited for: statistics are asked for again.
const WAIT: Duration = Duration::from_secs(5);

impl Csi {
    /// Use of the volumes of a pod by the volumes' own names (of the PersistentVolume, or of an inline volume). Those
    /// whose driver does not tell are missing.
    pub async fn usage(&self, pod_dir: &Path) -> BTreeMap<String, Usage> {
        let all =
            places::of_pod(pod_dir).into_iter().filter_map(|(dir, block)| Some((places::read(&dir)?, block)));
        let asked = all.map(|(data, block)| async move {
            let driver = self.driver(&data.driver_name).ok()?;
            let place = Place::of(&self.inner.data_dir, pod_dir, block, &data);
            let begin = Instant::now();
            let ask = async {
                if !driver.capabilities().await.ok()?.statistics {
                    return None;
                }
                driver.usage(&data.volume_handle, &place.target, &place.staging).await.ok()
            };
            let usage = tokio::time::timeout(WAIT, ask).await.ok().flatten()?;
            crate::metrics::VOLUME_MEASURED.took(&["kubernetes.io/csi"], begin);
            Some((data.spec_vol_id, usage))
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }
}
