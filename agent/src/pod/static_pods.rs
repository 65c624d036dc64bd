//! Static pods: manifests in a directory of the node, which run whether there is an API server or not.
//!
//! Reads: the directory, woken by inotify. Writes: the complete set of its pods, which the manager follows.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Hash of the manifest; the pod's UID on the node.
pub const HASH: &str = "kubernetes.io/config.hash";
/// On a pod of the API server that shows a static pod: the hash of the manifest it was made from.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// When the node saw the pod first.
pub const SEEN: &str = "kubernetes.io/config.seen";
/// Where the pod comes from: `file` or `api`.
pub const SOURCE: &str = "kubernetes.io/config.source";

/// Largest manifest, bytes: an API object has at most as many.
const MAX_MANIFEST: u64 = 3 << 20;

/// The static pods of a node, by UID.
pub type StaticPods = BTreeMap<String, Arc<Pod>>;

/// Follows a directory until `shutdown`. The set is sent once at the start, and whenever it changes.
pub async fn follow(
    dir: PathBuf,
    node: String,
    pods: watch::Sender<Option<StaticPods>>,
    shutdown: CancellationToken,
) {
    let watched = match watch_dir(&dir) {
        Ok(watched) => Some(watched),
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "static pods are read once only: the directory is not watched");
            None
        }
    };
    loop {
        let (at, name) = (dir.clone(), node.clone());
        let known = pods.borrow().clone().unwrap_or_default();
        let read = tokio::task::spawn_blocking(move || read(&at, &name, &known)).await;
        if let Ok(set) = read {
            pods.send_if_modified(|old| {
                let new = old.as_ref() != Some(&set);
                if new {
                    *old = Some(set);
                }
                new
            });
        }
        let changed = async {
            match &watched {
                Some((inotify, fd)) => wait(inotify, fd).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = changed => {}
        }
    }
}

fn watch_dir(dir: &Path) -> io::Result<(Inotify, AsyncFd<OwnedFd>)> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE;
    inotify.add_watch(dir, flags)?;
    let fd = inotify.as_fd().try_clone_to_owned()?;
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and AsyncFd drops it last.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)?;
    Ok((inotify, fd))
}

async fn wait(inotify: &Inotify, fd: &AsyncFd<OwnedFd>) {
    if let Ok(mut ready) = fd.readable().await {
        while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        ready.clear_ready();
    }
}

/// Reads all manifests. A file that is not a pod is told and left out.
fn read(dir: &Path, node: &str, known: &StaticPods) -> StaticPods {
    let mut set = StaticPods::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if hidden || !meta.is_file() {
            continue;
        }
        if meta.len() > MAX_MANIFEST {
            tracing::error!(file = %path.display(), "manifest of a static pod is too large");
            continue;
        }
        let parsed =
            std::fs::read(&path).map_err(|e| e.to_string()).and_then(|text| parse(&text, &path, node));
        match parsed {
            Ok((uid, pod)) => {
                // What is there already keeps the time at which it was seen first.
                let pod = known.get(&uid).cloned().unwrap_or_else(|| Arc::new(pod));
                set.insert(uid, pod);
            }
            Err(error) => {
                tracing::error!(file = %path.display(), error, "manifest of a static pod cannot be read")
            }
        }
    }
    set
}

/// The pod of a manifest as this node runs it, and its UID.
fn parse(text: &[u8], path: &Path, node: &str) -> Result<(String, Pod), String> {
    let mut pod: Pod = serde_norway::from_slice(text).map_err(|e| e.to_string())?;
    let spec = pod.spec.as_mut().filter(|s| !s.containers.is_empty()).ok_or("it has no containers")?;
    spec.node_name = Some(node.to_owned());
    let tolerates = Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&tolerates) {
        tolerations.push(tolerates);
    }
    let meta = &mut pod.metadata;
    let name = meta.name.clone().filter(|n| !n.is_empty()).ok_or("it has no name")?;
    let mut hash = Sha256::new();
    hash.update(node);
    hash.update(path.to_string_lossy().as_bytes());
    hash.update(text);
    let uid: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    meta.name = Some(format!("{name}-{}", node.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".into());
    meta.uid = Some(uid.clone());
    meta.generation = None;
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(HASH.into(), uid.clone());
    annotations.insert(SEEN.into(), Timestamp::now().to_string());
    annotations.insert(SOURCE.into(), "file".into());
    pod.status = None;
    Ok((uid, pod))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let text =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";
        std::fs::write(dir.path().join("web.yaml"), text).unwrap();
        std::fs::write(dir.path().join("bad.yaml"), "metadata: [").unwrap();
        std::fs::write(dir.path().join(".hidden"), text).unwrap();
        let (sender, mut pods) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(follow(dir.path().into(), "Node1".into(), sender, shutdown.clone()));
        let first =
            pods.wait_for(|set| set.as_ref().is_some_and(|s| s.len() == 1)).await.unwrap().clone().unwrap();
        let (uid, pod) = first.first_key_value().unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node1"));
        assert_eq!(pod.metadata.annotations.as_ref().unwrap()[HASH], *uid);
        std::fs::write(dir.path().join("web.yaml"), text.replace("image: i", "image: j")).unwrap();
        pods.wait_for(|set| set.as_ref().is_some_and(|s| s.len() == 1 && !s.contains_key(uid)))
            .await
            .unwrap();
        std::fs::remove_file(dir.path().join("web.yaml")).unwrap();
        pods.wait_for(|set| set.as_ref().is_some_and(BTreeMap::is_empty)).await.unwrap();
        shutdown.cancel();
        task.await.unwrap();
    }
}
