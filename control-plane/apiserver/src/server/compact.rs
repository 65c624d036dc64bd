//! The task that forgets old revisions of the store, so that it does not grow without bound.

use super::Core;
use std::sync::Arc;

/// Every period compacts to the revision of one period ago. Reads and compacts the store.
pub(super) async fn run(core: Arc<Core>) {
    let mut before = core.store.revision();
    loop {
        tokio::time::sleep(core.config.compaction_period).await;
        let now = core.store.revision();
        if before > 1
            && let Err(error) = core.store.compact(before).await
            && !matches!(error, kelp_store::StoreError::Compacted { .. })
        {
            tracing::warn!(%error, revision = before, "the store's history was not compacted");
        }
        before = now;
    }
}
