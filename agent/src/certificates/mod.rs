//! The node's certificates: asked of the API server by certificate signing requests, kept in files and renewed before they
//! end, as upstream's certificate manager does.
//!
//! | Part | Certificate | Configured by |
//! |---|---|---|
//! | [`serving`] | that of the kubelet API | `serverTLSBootstrap` |
//! | [`client`] | that by which the node calls the API server | `rotateCertificates` |
//! | [`bootstrap`] | the first one of the latter | `--bootstrap-kubeconfig` |

pub mod bootstrap;
pub mod client;
mod request;
pub mod serving;
#[cfg(test)]
mod testing;

use jiff::{SignedDuration, Timestamp};
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pause after a failure, doubled up to [`LONGEST`].
const AGAIN: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

/// Calls `renew`, which says when it is due again, at `renew_at` (`None`: now) and from then on, until `shutdown`.
async fn keep<F: Future<Output = Result<Timestamp, String>>>(
    what: &str,
    mut renew_at: Option<Timestamp>,
    renew: impl Fn() -> F,
    shutdown: CancellationToken,
) {
    let mut pause = AGAIN;
    loop {
        let wait = renew_at.map_or(SignedDuration::ZERO, |at| at.duration_since(Timestamp::now()));
        let round = async {
            tokio::time::sleep(wait.try_into().unwrap_or(Duration::ZERO)).await;
            match renew().await {
                Ok(next) => {
                    tracing::info!(what, %next, "certificate renewed");
                    renew_at = Some(next);
                    pause = AGAIN;
                }
                Err(error) => {
                    tracing::warn!(what, error, ?pause, "certificate not renewed, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST);
                }
            }
        };
        if shutdown.run_until_cancelled(round).await.is_none() {
            return;
        }
    }
}

/// Beginning and end of the first certificate of a PEM file.
fn validity(pem: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let found = x509_parser::pem::Pem::iter_from_buffer(pem).flatten().find(|p| p.label == "CERTIFICATE")?;
    let certificate = found.parse_x509().ok()?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    Some((at(certificate.validity().not_before)?, at(certificate.validity().not_after)?))
}

/// When a certificate is renewed: with between 70 and 90 % of its life over, so that the nodes of a cluster do not all come
/// at once. `chance` is between 0 and 1.
fn renewal(begin: Timestamp, end: Timestamp, chance: f64) -> Timestamp {
    let life = end.duration_since(begin).as_secs_f64();
    let over = SignedDuration::from_secs((life * (0.7 + 0.2 * chance.clamp(0.0, 1.0))).round() as i64);
    begin.checked_add(over).unwrap_or(end)
}

/// Writes a file of `dir` as a whole, readable by its owner alone.
fn write(dir: &Path, name: &str, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::create_dir_all(dir)?;
    let temporary = dir.join(format!("{name}.new"));
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_data()?;
    std::fs::rename(temporary, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_are_spread() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(renewal(at(0), at(1000), 0.0), at(700));
        assert_eq!(renewal(at(0), at(1000), 1.0), at(900));
    }
}
