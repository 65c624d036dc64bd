//! Publishes a set of files in a directory all at once.
//!
//! Layout, as kubelet's (programs rely on it): the files are in `..<time>.<n>/`, `..data` is a symlink to that
//! directory and is replaced by rename(2), each top-level name is a symlink through `..data`. A reader sees either
//! the old set or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// A file to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Contents.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// User that owns it, if not root.
    pub owner: Option<u32>,
}

/// Paths relative to the directory, and what they hold.
pub type Files = BTreeMap<PathBuf, File>;

const DATA: &str = "..data";

/// A path that stays inside the directory and does not clash with our own names.
fn is_safe(path: &Path) -> bool {
    let mut components = path.components().peekable();
    components.peek().is_some()
        && path.components().all(|c| matches!(c, Component::Normal(_)))
        && !path.to_string_lossy().starts_with("..")
}

/// Makes `dir` (which exists) show exactly `files`. Does nothing when it already does. `group` becomes the files'
/// group. Returns whether something changed.
///
/// # Errors
/// A path is not safe, or a system call failed: the old set is still in place then.
pub fn publish(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    if let Some(bad) = files.keys().find(|p| !is_safe(p)) {
        let message = format!("invalid path {:?}: it must be relative and not contain '..'", bad.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let data = dir.join(DATA);
    let old = fs::read_link(&data).ok();
    if let Some(old) = &old
        && is_same(&dir.join(old), files)
    {
        link_names(dir, files)?;
        return Ok(false);
    }
    let now = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
    let target = std::iter::repeat_with(|| format!("..{now}.{}", rand::random::<u32>()))
        .find(|name| !dir.join(name).exists())
        .unwrap_or_default();
    let new = dir.join(&target);
    fs::create_dir(&new)?;
    open_dir(&new, group)?;
    write(&new, files, group)?;
    let swap = dir.join("..data_tmp");
    let _ = fs::remove_file(&swap);
    symlink(&target, &swap)?;
    fs::rename(&swap, &data)?;
    link_names(dir, files)?;
    // Names that are gone, and sets that nothing points to any more.
    let tops = tops(files);
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy().into_owned();
        let path = entry.path();
        if text == DATA || text == target {
            continue;
        }
        if text.starts_with("..") {
            let _ = if path.is_symlink() { fs::remove_file(&path) } else { fs::remove_dir_all(&path) };
        } else if !tops.contains(Path::new(&name)) && path.is_symlink() {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(true)
}

fn tops(files: &Files) -> BTreeSet<PathBuf> {
    files.keys().filter_map(|p| p.components().next().map(|c| PathBuf::from(c.as_os_str()))).collect()
}

fn link_names(dir: &Path, files: &Files) -> io::Result<()> {
    for top in tops(files) {
        let link = dir.join(&top);
        let wanted = Path::new(DATA).join(&top);
        if fs::read_link(&link).ok().as_ref() != Some(&wanted) {
            let _ = fs::remove_file(&link);
            symlink(wanted, link)?;
        }
    }
    Ok(())
}

/// A directory that everyone may read; what is made in it is its group's.
fn open_dir(dir: &Path, group: Option<u32>) -> io::Result<()> {
    std::os::unix::fs::chown(dir, None, group)?;
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    for (path, file) in files {
        let full = dir.join(path);
        if let Some(parent) = full.parent() {
            fs::create_dir_all(parent)?;
            for made in parent.ancestors().take_while(|made| *made != dir) {
                open_dir(made, group)?;
            }
        }
        fs::write(&full, &file.data)?;
        let mut mode = file.mode & 0o7777;
        std::os::unix::fs::chown(&full, file.owner, group)?;
        if group.is_some() {
            mode |= 0o440; // the group must be able to read what it was given
        }
        fs::set_permissions(&full, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn is_same(dir: &Path, files: &Files) -> bool {
    let mut seen = 0usize;
    let mut stack = vec![dir.to_owned()];
    while let Some(at) = stack.pop() {
        let Ok(entries) = fs::read_dir(&at) else { return false };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                stack.push(path);
                continue;
            }
            let Ok(relative) = path.strip_prefix(dir) else { return false };
            let Some(file) = files.get(relative) else { return false };
            if fs::read(&path).ok().as_ref() != Some(&file.data) {
                return false;
            }
            seen += 1;
        }
    }
    seen == files.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter()
            .map(|(p, d)| (PathBuf::from(p), File { data: d.as_bytes().to_vec(), mode: 0o644, owner: None }))
            .collect()
    }

    fn shown(dir: &Path) -> Vec<(String, String)> {
        let mut found: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .flatten()
            .filter(|e| !e.file_name().to_string_lossy().starts_with(".."))
            .filter(|e| e.path().is_file())
            .map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read_to_string(e.path()).unwrap()))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn an_update_replaces_everything_and_leaves_one_set() {
        let dir = tempfile::tempdir().unwrap();
        assert!(publish(dir.path(), &files(&[("a", "1"), ("b", "2"), ("sub/x", "3")]), None).unwrap());
        assert!(!publish(dir.path(), &files(&[("a", "1"), ("b", "2"), ("sub/x", "3")]), None).unwrap());
        let open = fs::File::open(dir.path().join("a")).unwrap();
        assert!(publish(dir.path(), &files(&[("a", "9"), ("c", "4")]), None).unwrap());
        assert_eq!(shown(dir.path()), [("a".into(), "9".into()), ("c".into(), "4".into())]);
        assert_eq!(io::read_to_string(open).unwrap(), "1", "an open file keeps its contents");
        let sets = fs::read_dir(dir.path())
            .unwrap()
            .flatten()
            .filter(|e| e.path().is_dir() && !e.path().is_symlink());
        assert_eq!(sets.count(), 1);
        assert!(fs::symlink_metadata(dir.path().join("b")).is_err());
    }

    #[test]
    fn paths_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/x", "a/../../x", "..data", "", "..2024/x"] {
            assert!(publish(dir.path(), &files(&[(bad, "1")]), None).is_err(), "{bad}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn the_last_set_is_what_is_shown(sets in proptest::collection::vec(proptest::collection::btree_map("[a-d]", "[a-z]{0,5}", 0..4), 1..6)) {
            let dir = tempfile::tempdir().unwrap();
            for set in &sets {
                let list: Vec<(&str, &str)> = set.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
                publish(dir.path(), &files(&list), None).unwrap();
                prop_assert_eq!(shown(dir.path()), set.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }
}
