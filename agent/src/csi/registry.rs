//! Who registers, and goes again.
//!
//! Reads: `plugins_registry`, woken by inotify. Writes: the drivers, the CSINode, and the labels and the annotation of the
//! Node that say what drivers call it.

use super::client::{self, Driver};
use super::proto::PluginInfo;
use super::{Csi, node};
use crate::dirwatch::DirWatch;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time until a registration that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A socket, told from a later one of its name.
type Identity = (u64, i64, i64);

/// A registration that is known.
struct Known {
    identity: Identity,
    /// The driver, once it is registered.
    driver: Option<String>,
}

/// Sockets in the directory.
fn sockets(dir: &Path) -> BTreeMap<PathBuf, Identity> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sockets = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        (metadata.file_type().is_socket() && !hidden)
            .then(|| (entry.path(), (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())))
    });
    sockets.collect()
}

/// Follows the registrations until `shutdown`.
pub async fn follow(csi: Csi, shutdown: CancellationToken) {
    let dir = csi.registry_dir();
    let watch = std::fs::create_dir_all(&dir).and_then(|()| DirWatch::new(&dir));
    let watch = match watch {
        Ok(watch) => watch,
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "no CSI driver can register: the directory is not watched");
            return;
        }
    };
    let mut known: BTreeMap<PathBuf, Known> = BTreeMap::new();
    loop {
        let failed = tokio::select! {
            () = shutdown.cancelled() => return,
            failed = look(&csi, &dir, &mut known) => failed,
        };
        let retry = async {
            match failed {
                true => tokio::time::sleep(RETRY).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = watch.changed() => {}
            () = retry => {}
        }
    }
}

/// Brings the drivers in line with the sockets; whether one is to be asked again.
async fn look(csi: &Csi, dir: &Path, known: &mut BTreeMap<PathBuf, Known>) -> bool {
    let present = sockets(dir);
    let gone: Vec<PathBuf> = known
        .iter()
        .filter(|(path, k)| present.get(*path) != Some(&k.identity))
        .map(|(p, _)| p.clone())
        .collect();
    for path in gone {
        let Some(Known { driver: Some(driver), .. }) = known.remove(&path) else { continue };
        // The socket of the same driver under another name goes on.
        if known.values().any(|k| k.driver.as_ref() == Some(&driver)) {
            continue;
        }
        // One that is there again at once is not gone.
        if !present.contains_key(&path) {
            csi.inner.drivers.lock().remove(&driver);
            tracing::info!(driver, "CSI driver gone");
            if let Err(error) = node::forget(csi, &driver).await {
                tracing::warn!(driver, error, "CSINode not written");
            }
        }
    }
    let mut failed = false;
    for (path, identity) in present {
        if known.get(&path).is_some_and(|k| k.driver.is_some()) {
            continue;
        }
        match register(csi, &path).await {
            Ok(driver) => {
                known.insert(path, Known { identity, driver });
            }
            Err(error) => {
                tracing::info!(socket = %path.display(), error, "plugin not registered, trying again");
                known.insert(path, Known { identity, driver: None });
                failed = true;
            }
        }
    }
    failed
}

/// Registers the plugin behind a socket and tells it what came of that, in upstream's words.
async fn register(csi: &Csi, socket: &Path) -> Result<Option<String>, String> {
    let info = client::plugin_info(socket).await.map_err(|e| e.to_string())?;
    let result = match info.kind.as_str() {
        "CSIPlugin" => {
            let registered = register_driver(csi, socket, &info).await;
            registered
                .map_err(|why| format!("RegisterPlugin error -- plugin registration failed with err: {why}"))
        }
        // Device plugins have a socket of their own to register at.
        kind => Err(format!(
            "RegisterPlugin error -- no handler registered for plugin type: {kind} at socket {}",
            socket.display()
        )),
    };
    let told = client::tell_registered(socket, result.as_ref().map(|_| ()).map_err(String::as_str)).await;
    if let Err(error) = told {
        tracing::debug!(driver = info.name, %error, "plugin not told of its registration");
    }
    result.map(Some)
}

async fn register_driver(csi: &Csi, socket: &Path, info: &PluginInfo) -> Result<String, String> {
    let speaks = |v: &String| v.trim_start_matches('v').split('.').next() == Some("1");
    if info.name.is_empty() || !info.versions.iter().any(speaks) {
        let (name, versions) = (&info.name, &info.versions);
        return Err(format!("plugin {name:?} offers the versions {versions:?}; version 1 is needed"));
    }
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(&info.endpoint) };
    let driver = Driver { name: info.name.clone(), socket: endpoint };
    let about = driver.info().await.map_err(|e| format!("NodeGetInfo: {e}"))?;
    csi.inner.drivers.lock().insert(driver.name.clone(), driver.clone());
    tracing::info!(driver = driver.name, node = about.id, "CSI driver registered");
    node::write(csi, &driver.name, &about).await?;
    csi.sweep_staged(&driver).await;
    Ok(driver.name)
}
