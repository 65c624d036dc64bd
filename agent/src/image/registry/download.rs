//! One blob of an image, over the network into a file.

use super::client::{Answer, Client};
use super::manifest::Descriptor;
use super::progress::{Meter, Tell};
use crate::image::store::to_hex;
use http::header::CONTENT_RANGE;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long nothing may come before a download counts as broken.
pub(super) const STALL: Duration = Duration::from_secs(60);

/// Why a download ended early.
pub(super) enum Broken {
    /// What came is kept; asking again may help.
    Retry(String),
    /// What came is wrong.
    Wrong(String),
}

/// Downloads a blob to `partial`, on from what is there, and verifies the whole of it.
pub(super) async fn download(
    client: &mut Client,
    blob: &Descriptor,
    partial: &Path,
    tell: Tell<'_>,
) -> Result<(), Broken> {
    let io = |e: std::io::Error| Broken::Wrong(format!("cannot write {}: {e}", partial.display()));
    let (mut hasher, mut have) = (Sha256::new(), 0u64);
    if let Ok(mut file) = tokio::fs::File::open(partial).await {
        let mut buffer = vec![0u8; 1 << 16];
        loop {
            let n = file.read(&mut buffer).await.map_err(io)?;
            if n == 0 {
                break;
            }
            hasher.update(buffer.get(..n).unwrap_or_default());
            have += n as u64;
        }
    }
    let mut meter = Meter::new(blob, tell);
    if have < blob.size || blob.size == 0 {
        let what = format!("blobs/{}", blob.digest);
        let answer = client.ask(Method::GET, &what, "*/*", have).await.map_err(Broken::Retry)?;
        match answer.status() {
            StatusCode::OK if have > 0 => {
                // The registry starts from the beginning.
                hasher = Sha256::new();
                have = 0;
            }
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT if starts_at(&answer, have) => {}
            code if code.is_server_error() || code == StatusCode::TOO_MANY_REQUESTS => {
                return Err(Broken::Retry(format!(
                    "unexpected status from GET request to {}: {code}",
                    client.url(&what)
                )));
            }
            code => {
                return Err(Broken::Wrong(format!(
                    "unexpected status from GET request to {}: {code}",
                    client.url(&what)
                )));
            }
        }
        let mut options = tokio::fs::OpenOptions::new();
        options.create(true).write(true).append(have > 0).truncate(have == 0);
        let mut file = options.open(partial).await.map_err(io)?;
        meter.begin(have);
        let mut body = answer.into_body();
        loop {
            let frame = tokio::time::timeout(STALL, body.frame()).await;
            let frame = match frame {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    file.flush().await.map_err(io)?;
                    return Err(Broken::Retry(error.to_string()));
                }
                Err(_) => {
                    file.flush().await.map_err(io)?;
                    return Err(Broken::Retry(format!("nothing came for {} s", STALL.as_secs())));
                }
            };
            let Ok(bytes) = frame.into_data() else { continue };
            have += bytes.len() as u64;
            if blob.size > 0 && have > blob.size {
                return Err(Broken::Wrong(format!(
                    "content is longer than the {} bytes it is said to have",
                    blob.size
                )));
            }
            hasher.update(&bytes);
            file.write_all(&bytes).await.map_err(io)?;
            meter.reached(have);
        }
        file.flush().await.map_err(io)?;
    }
    if blob.size > 0 && have < blob.size {
        return Err(Broken::Retry(format!("unexpected end after {have} of {} bytes", blob.size)));
    }
    let found = format!("sha256:{}", to_hex(&hasher.finalize()));
    if found != blob.digest {
        return Err(Broken::Wrong(format!(
            "unexpected commit digest {found}, expected {}: the content is damaged",
            blob.digest
        )));
    }
    Ok(())
}

/// Whether a part of a blob begins where it was asked to.
fn starts_at(answer: &Answer, from: u64) -> bool {
    let range = answer.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
    range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok()) == Some(from)
}
