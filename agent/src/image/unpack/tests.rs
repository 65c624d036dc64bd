//! Privileged: unpacking sets owners, makes devices and writes `trusted.*` attributes.

use super::*;
use crate::image::store::hex_digest;
use crate::image::testing::Layer;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("kelp-unpack-").tempdir().unwrap())
    }

    fn unpack(&self, name: &str, layer: Layer, lower: &[&str]) -> Result<u64, String> {
        let bytes = layer.bytes();
        let lower: Vec<PathBuf> = lower.iter().map(|l| self.0.path().join(l)).collect();
        let id = format!("sha256:{}", hex_digest(&bytes));
        unpack(bytes.as_slice(), &id, &self.0.path().join(name), &lower)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn mode(&self, path: &str) -> u32 {
        fs::symlink_metadata(self.path(path)).unwrap().permissions().mode() & 0o7777
    }

    fn is_whiteout(&self, path: &str) -> bool {
        let metadata = fs::symlink_metadata(self.path(path)).unwrap();
        metadata.file_type().is_char_device() && metadata.rdev() == 0
    }

    fn is_opaque(&self, path: &str) -> bool {
        let path = CString::new(self.path(path).as_os_str().as_bytes()).unwrap();
        let mut value = [0u8; 8];
        // SAFETY: both strings are terminated, and the buffer's pointer and length belong together.
        let n = unsafe {
            libc::lgetxattr(
                path.as_ptr(),
                c"trusted.overlay.opaque".as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        n == 1 && value[0] == b'y'
    }
}

#[test]
fn every_kind_of_entry() {
    let dir = Dir::new();
    let layer = Layer::new()
        .dir("./d/", 0o2750)
        .file("d/f", 0o4755, b"content")
        .hard_link("d/hard", "d/f")
        .symlink("d/soft", "/etc/passwd")
        .null_device("d/null")
        .fifo("d/fifo")
        .file("/absolute", 0o600, b"");
    assert_eq!(dir.unpack("l", layer, &[]).unwrap(), 7);
    assert_eq!(dir.mode("l/d"), 0o2750);
    assert_eq!(dir.mode("l/d/f"), 0o4755);
    assert_eq!(fs::metadata(dir.path("l/d/f")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(dir.path("l/d/f")).unwrap().mtime(), 1_700_000_000);
    assert_eq!(fs::metadata(dir.path("l/d")).unwrap().mtime(), 1_700_000_000);
    assert_eq!(fs::read_link(dir.path("l/d/soft")).unwrap(), Path::new("/etc/passwd"));
    let null = fs::symlink_metadata(dir.path("l/d/null")).unwrap();
    assert!(null.file_type().is_char_device() && null.rdev() == libc::makedev(1, 3));
    assert!(fs::symlink_metadata(dir.path("l/d/fifo")).unwrap().file_type().is_fifo());
    assert!(dir.path("l/absolute").exists());
}

#[test]
fn whiteouts_become_overlays() {
    let dir = Dir::new();
    let layer = Layer::new()
        .dir("a/", 0o755)
        .file("a/.wh.gone", 0o644, b"")
        .file("b/.wh..wh..opq", 0o644, b"")
        .file(".wh..wh.plnk", 0o644, b"")
        .dir("both/", 0o755)
        .file(".wh.both", 0o644, b"")
        .file(".wh.again", 0o644, b"")
        .dir("again/", 0o755);
    dir.unpack("l", layer, &[]).unwrap();
    assert!(dir.is_whiteout("l/a/gone"));
    assert!(dir.is_opaque("l/b"));
    assert!(dir.is_opaque("l/both") && dir.path("l/both").is_dir());
    assert!(dir.is_opaque("l/again") && dir.path("l/again").is_dir());
    let mut names: Vec<String> =
        fs::read_dir(dir.path("l")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["a", "again", "b", "both"]);
}

#[test]
fn missing_parents_are_as_in_the_layers_below() {
    let dir = Dir::new();
    dir.unpack("low", Layer::new().dir("t/", 0o1777).dir("t/s/", 0o700), &[]).unwrap();
    dir.unpack("mid", Layer::new().file("other", 0o644, b""), &["low"]).unwrap();
    dir.unpack("top", Layer::new().file("t/s/new/f", 0o644, b"x"), &["mid", "low"]).unwrap();
    assert_eq!(dir.mode("top/t"), 0o1777);
    assert_eq!(dir.mode("top/t/s"), 0o700);
    assert_eq!(dir.mode("top/t/s/new"), 0o755);
}

#[test]
fn nothing_escapes() {
    let outside = Dir::new();
    let target = outside.path("victim");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("f"), b"before").unwrap();
    let victim = target.display().to_string();
    let dir = Dir::new();
    // `..` is refused.
    for path in ["../escaped", "a/../../escaped"] {
        let error = dir.unpack("l", Layer::new().file(path, 0o644, b"x"), &[]).unwrap_err();
        assert!(error.contains("leaves the layer"), "{error}");
    }
    assert!(!dir.path("escaped").exists());
    // A link is followed within the layer only, where its target does not exist.
    let through_link = Layer::new().symlink("link", &victim).file("link/f", 0o644, b"after");
    let _ = dir.unpack("l", through_link, &[]);
    let relative = Layer::new().symlink("link", "../victim").file("link/f", 0o644, b"after");
    let _ = dir.unpack("l", relative, &[]);
    // Replacing a link replaces the link, not its target.
    let file = format!("{victim}/f");
    let replaced = Layer::new().symlink("link", &file).file("link", 0o644, b"after");
    dir.unpack("l", replaced, &[]).unwrap();
    assert!(fs::symlink_metadata(dir.path("l/link")).unwrap().is_file());
    let _ = dir.unpack("l", Layer::new().hard_link("hard", &file), &[]);
    let _ = dir.unpack("l", Layer::new().hard_link("hard", "../victim/f"), &[]);
    assert_eq!(fs::read(target.join("f")).unwrap(), b"before");
    assert_eq!(fs::metadata(target.join("f")).unwrap().nlink(), 1);
}

#[test]
fn a_link_inside_the_layer_is_followed() {
    let dir = Dir::new();
    let layer = Layer::new()
        .dir("usr/lib/", 0o755)
        .symlink("lib", "usr/lib")
        .file("lib/x", 0o644, b"x")
        .symlink("abs", "/usr/lib")
        .file("abs/y", 0o644, b"y");
    dir.unpack("l", layer, &[]).unwrap();
    assert!(dir.path("l/usr/lib/x").is_file() && dir.path("l/usr/lib/y").is_file());
}

#[test]
fn damage_is_noticed() {
    let dir = Dir::new();
    let bytes = Layer::new().file("f", 0o644, b"content").bytes();
    let target = dir.path("l");
    let wrong = format!("sha256:{}", "0".repeat(64));
    let error = unpack(bytes.as_slice(), &wrong, &target, &[]).unwrap_err();
    assert!(error.contains("the archive is damaged"), "{error}");
    let right = format!("sha256:{}", hex_digest(&bytes));
    assert!(unpack(&bytes[..600], &right, &target, &[]).is_err());
    assert!(unpack(&b"no tar at all"[..], &right, &target, &[]).is_err());
    assert_eq!(unpack(bytes.as_slice(), &right, &target, &[]).unwrap(), 7);
}
