//! How much of a disk a directory takes.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes allocated below `dir`, each file counted once and other filesystems left out. What vanishes meanwhile counts
/// as nothing.
pub fn usage(dir: &Path) -> u64 {
    let Ok(root) = fs::symlink_metadata(dir) else { return 0 };
    let mut seen: HashSet<u64> = HashSet::new();
    let mut pending: Vec<PathBuf> = vec![dir.to_owned()];
    let mut blocks = root.blocks();
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            if found.dev() != root.dev() || found.nlink() > 1 && !found.is_dir() && !seen.insert(found.ino())
            {
                continue;
            }
            blocks += found.blocks();
            if found.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    blocks * 512
}

#[cfg(test)]
mod tests {
    use super::usage;

    #[test]
    fn links_count_once() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(usage(&dir.path().join("none")), 0);
        let empty = usage(dir.path());
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), vec![1; 100_000]).unwrap();
        let one = usage(dir.path());
        assert!(one >= empty + 100_000, "{empty} {one}");
        std::fs::hard_link(dir.path().join("d/f"), dir.path().join("g")).unwrap();
        assert!(usage(dir.path()) < one + 100_000);
    }
}
