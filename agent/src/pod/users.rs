//! User namespaces of pods with `hostUsers: false`: which ids of the host each has.
//!
//! Every pod gets as many ids as the kubelet gives it, in a range that no other pod of the node has. A pod's range is
//! noted in its directory before anything runs with it, and is free again when the directory is gone.

use crate::runtime::IdRange;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Ids of a pod, as many as the kubelet's default `idsPerPod`.
pub const IDS_PER_POD: u32 = 65_536;
/// Whose lines in /etc/subuid and /etc/subgid say which ids of the host pods may have, as for the kubelet.
const OWNER: &str = "kubelet";
/// File in a pod's directory.
const FILE: &str = "userns.json";

/// The ranges of this node's pods. Clones share them.
#[derive(Debug, Clone)]
pub struct UserNamespaces {
    pods: PathBuf,
    available: Result<IdRange, String>,
    used: Arc<Mutex<BTreeMap<String, IdRange>>>,
}

impl UserNamespaces {
    /// Reads what the pods below `pods` have. `max_pods` is how many the node has at most.
    pub fn open(pods: &Path, max_pods: u32) -> Self {
        let read = |name: &str| std::fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default();
        let available = available(&read("subuid"), &read("subgid"), max_pods);
        if let Err(error) = &available {
            tracing::warn!(error, "pods cannot have user namespaces");
        }
        Self::with(pods, available)
    }

    fn with(pods: &Path, available: Result<IdRange, String>) -> Self {
        let mut used = BTreeMap::new();
        for entry in std::fs::read_dir(pods).into_iter().flatten().flatten() {
            let noted = std::fs::read(entry.path().join(FILE)).ok();
            if let (Some(range), Ok(uid)) =
                (noted.and_then(|text| serde_json::from_slice(&text).ok()), entry.file_name().into_string())
            {
                used.insert(uid, range);
            }
        }
        Self { pods: pods.to_owned(), available, used: Arc::new(Mutex::new(used)) }
    }

    /// The range of a pod: the one it has, or a free one. The pod's directory exists.
    ///
    /// # Errors
    /// No range is free, or it cannot be noted; the text is for the event.
    pub fn allocate(&self, uid: &str) -> Result<IdRange, String> {
        let mut used = self.used.lock();
        if let Some(range) = used.get(uid) {
            return Ok(*range);
        }
        let available = self.available.clone()?;
        let taken = |host: u32| {
            used.values()
                .any(|r| host < r.host.saturating_add(r.length) && r.host < host.saturating_add(IDS_PER_POD))
        };
        let free = (0..available.length / IDS_PER_POD)
            .map(|slot| available.host + slot * IDS_PER_POD)
            .find(|host| !taken(*host));
        let Some(host) = free else {
            return Err("could not find an empty slot to allocate a user namespace".into());
        };
        let range = IdRange { host, length: IDS_PER_POD };
        let file = self.pods.join(uid).join(FILE);
        write(&file, &range).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        used.insert(uid.to_owned(), range);
        Ok(range)
    }

    /// A pod's directory is gone.
    pub fn release(&self, uid: &str) {
        self.used.lock().remove(uid);
    }
}

fn write(file: &Path, range: &IdRange) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(range)?)?;
    std::fs::rename(temporary, file)
}

/// The ids that pods may have: those of the owner in /etc/subuid and /etc/subgid, else those after the host's own.
fn available(subuid: &str, subgid: &str, max_pods: u32) -> Result<IdRange, String> {
    let (uids, gids) = (ranges(subuid), ranges(subgid));
    let (uids, gids) = match (uids.as_slice(), gids.as_slice()) {
        ([], []) => {
            let length = IDS_PER_POD.saturating_mul(max_pods).min(u32::MAX - IDS_PER_POD);
            return Ok(IdRange { host: IDS_PER_POD, length: length / IDS_PER_POD * IDS_PER_POD });
        }
        ([uids], [gids]) => (uids, gids),
        _ => return Err(format!("/etc/subuid and /etc/subgid must have one line each of user {OWNER:?}")),
    };
    if uids != gids {
        return Err(format!("/etc/subuid and /etc/subgid must give user {OWNER:?} the same ids"));
    }
    let IdRange { host, length } = *uids;
    if host < IDS_PER_POD || host % IDS_PER_POD != 0 || length == 0 || length % IDS_PER_POD != 0 {
        return Err(format!(
            "the ids of user {OWNER:?} in /etc/subuid must begin at, and be, a multiple of {IDS_PER_POD}"
        ));
    }
    if length / IDS_PER_POD < max_pods {
        return Err(format!(
            "/etc/subuid gives user {OWNER:?} ids for {} pods, and the node takes {max_pods}",
            length / IDS_PER_POD
        ));
    }
    Ok(*uids)
}

/// Ranges of the owner in a file of subuid(5).
fn ranges(text: &str) -> Vec<IdRange> {
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let host = fields.next()?.parse().ok()?;
        let length: u32 = fields.next()?.parse().ok()?;
        (owner == OWNER).then_some(IdRange { host, length })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(slots: u32) -> (tempfile::TempDir, UserNamespaces) {
        let dir = tempfile::tempdir().unwrap();
        let range = IdRange { host: IDS_PER_POD, length: slots * IDS_PER_POD };
        let users = UserNamespaces::with(dir.path(), Ok(range));
        (dir, users)
    }

    #[test]
    fn a_pod_keeps_its_range_over_restarts() {
        let (dir, users) = node(2);
        for uid in ["a", "b", "c"] {
            std::fs::create_dir(dir.path().join(uid)).unwrap();
        }
        let a = users.allocate("a").unwrap();
        let b = users.allocate("b").unwrap();
        assert_eq!((a.host, b.host, a.length), (65_536, 131_072, 65_536));
        assert!(users.allocate("c").is_err());
        let again = UserNamespaces::with(dir.path(), users.available.clone());
        assert_eq!(again.allocate("b").unwrap(), b);
        assert!(again.allocate("c").is_err(), "no range is given twice");
        std::fs::remove_dir_all(dir.path().join("a")).unwrap();
        again.release("a");
        assert_eq!(again.allocate("c").unwrap(), a);
    }

    #[test]
    fn ids_of_the_host() {
        assert_eq!(available("", "", 110).unwrap(), IdRange { host: 65_536, length: 110 * 65_536 });
        assert!(available("", "", u32::MAX).unwrap().length.is_multiple_of(IDS_PER_POD));
        let line = "root:1:2\nkubelet:131072:655360\n";
        assert_eq!(available(line, line, 10).unwrap(), IdRange { host: 131_072, length: 655_360 });
        assert!(available(line, line, 11).is_err());
        assert!(available(line, "", 1).is_err());
        assert!(available(line, "kubelet:65536:655360\n", 1).is_err());
        for bad in ["kubelet:0:655360\n", "kubelet:65537:655360\n", "kubelet:65536:1000\n"] {
            assert!(available(bad, bad, 1).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(steps in proptest::collection::vec((0..6u8, any::<bool>()), 1..40)) {
            let (dir, users) = node(4);
            let mut have: BTreeMap<u8, IdRange> = BTreeMap::new();
            for (pod, add) in steps {
                let uid = pod.to_string();
                let own = dir.path().join(&uid);
                if add {
                    std::fs::create_dir_all(&own).unwrap();
                    match users.allocate(&uid) {
                        Ok(range) => drop(have.insert(pod, range)),
                        Err(_) => prop_assert_eq!(have.len(), 4),
                    }
                } else {
                    let _ = std::fs::remove_dir_all(&own);
                    users.release(&uid);
                    have.remove(&pod);
                }
                let mut starts: Vec<u32> = have.values().map(|r| r.host).collect();
                starts.sort_unstable();
                starts.dedup();
                prop_assert_eq!(starts.len(), have.len());
            }
        }
    }
}
