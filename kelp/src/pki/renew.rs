//! Replacing certificates while the process runs.

use super::{Leaf, LeafSpec, Pki};
use anyhow::Result;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// Upper bound of one sleep: a suspended host's clock jumps, tokio's does not.
const LONGEST_SLEEP: Duration = Duration::from_secs(12 * 3600);
/// Wait after a failed renewal.
const RETRY: Duration = Duration::from_secs(60);

/// What is done with a new certificate.
pub type Apply = Box<dyn Fn(&Leaf) -> Result<()> + Send + Sync>;

/// A certificate kept fresh.
pub struct Renewal {
    /// Which certificate.
    pub spec: LeafSpec,
    /// When to replace the present one.
    pub renew_at: OffsetDateTime,
    /// Puts a new one to use.
    pub apply: Apply,
}

/// Keeps certificates fresh until `shutdown`: reads the PKI directory, writes it, and calls each renewal's `apply`.
pub async fn run(pki: Arc<Pki>, mut renewals: Vec<Renewal>, shutdown: CancellationToken) {
    loop {
        let now = OffsetDateTime::now_utc();
        let mut wait = LONGEST_SLEEP;
        for renewal in &mut renewals {
            if renewal.renew_at <= now {
                match pki.ensure(&renewal.spec, now).and_then(|leaf| (renewal.apply)(&leaf).map(|()| leaf)) {
                    Ok(leaf) => {
                        tracing::info!(name = renewal.spec.common_name, until = %leaf.not_after, "certificate renewed");
                        renewal.renew_at = leaf.renew_at;
                    }
                    Err(error) => {
                        tracing::error!(
                            name = renewal.spec.common_name,
                            error = format!("{error:#}"),
                            "cannot renew the certificate"
                        );
                        wait = wait.min(RETRY);
                        continue;
                    }
                }
            }
            let left = (renewal.renew_at - now).max(time::Duration::SECOND);
            wait = wait.min(left.unsigned_abs());
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}
