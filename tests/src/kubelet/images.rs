//! Local images that stand for those of the recordings.
//!
//! busybox comes from Debian's `busybox-static`, with this machine's bash as `sh` and its `getent`, for glibc's resolver; the test image's program is this
//! crate's `agnhost`. Programs that are not static bring their libraries along.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::command::{command, output};

/// Image of the recordings with a shell.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
/// Image of the recordings with test programs.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

type Layer = tar::Builder<Vec<u8>>;

fn header(mode: u32, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn file(layer: &mut Layer, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    layer.append_data(&mut header(mode, tar::EntryType::Regular, content.len() as u64), path, content)?;
    Ok(())
}

fn dir(layer: &mut Layer, path: &str, mode: u32) -> Result<()> {
    layer.append_data(&mut header(mode, tar::EntryType::Directory, 0), path, std::io::empty())?;
    Ok(())
}

fn link(layer: &mut Layer, path: &str, target: &str) -> Result<()> {
    layer.append_link(&mut header(0o777, tar::EntryType::Symlink, 0), path, target)?;
    Ok(())
}

/// Shared libraries and the loader of a program, as ldd(1) prints them.
fn libraries(program: &Path) -> BTreeSet<String> {
    let Ok(text) = output(command("ldd", &[]).arg(program)) else { return BTreeSet::new() };
    text.split_whitespace().filter(|w| w.starts_with('/') && !w.ends_with(':')).map(str::to_owned).collect()
}

fn base(passwd: &str, group: &str, more: &[(&str, &Path)]) -> Result<Layer> {
    let busybox = Path::new("/bin/busybox");
    let mut layer = Layer::new(Vec::new());
    for (path, mode) in [("bin", 0o755), ("etc", 0o755), ("home", 0o755), ("root", 0o700), ("tmp", 0o1777)] {
        dir(&mut layer, path, mode)?;
    }
    file(&mut layer, "bin/busybox", 0o755, &std::fs::read(busybox).context("read busybox")?)?;
    file(&mut layer, "bin/bash", 0o755, &std::fs::read("/bin/bash").context("read bash")?)?;
    for applet in output(&mut command(busybox, &["--list"]))?.lines() {
        if !["busybox", "bash", "sh"].contains(&applet) {
            link(&mut layer, &format!("bin/{applet}"), "/bin/busybox")?;
        }
    }
    link(&mut layer, "bin/sh", "/bin/bash")?;
    file(&mut layer, "etc/passwd", 0o644, passwd.as_bytes())?;
    file(&mut layer, "etc/group", 0o644, group.as_bytes())?;
    let mut needed = libraries(Path::new("/bin/bash"));
    for (path, program) in more {
        needed.extend(libraries(program));
        let content = std::fs::read(program).with_context(|| format!("read {}", program.display()))?;
        file(&mut layer, path, 0o755, &content)?;
    }
    for library in needed {
        let content = std::fs::read(&library).with_context(|| format!("read {library}"))?;
        file(&mut layer, library.trim_start_matches('/'), 0o755, &content)?;
    }
    Ok(layer)
}

/// Builds both images and imports them into a node's data directory.
///
/// # Errors
/// Something they are made of is missing, or `kelp` refuses them.
pub fn import(kelp: &Path, agnhost: &Path, data_dir: &Path, scratch: &Path) -> Result<()> {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let archives: [(PathBuf, &str, Layer, serde_json::Value); 2] = [
        (
            scratch.join("busybox.tar"),
            BUSYBOX,
            base(
                "root:x:0:0:root:/root:/bin/sh\n",
                "root:x:0:\n",
                &[("bin/getent", Path::new("/usr/bin/getent"))],
            )?,
            json!({"Env": [path], "Cmd": ["sh"]}),
        ),
        (
            scratch.join("agnhost.tar"),
            AGNHOST,
            base(
                "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n",
                "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
                &[("agnhost", agnhost)],
            )?,
            json!({"Env": [path], "Entrypoint": ["/agnhost"], "Cmd": ["pause"]}),
        ),
    ];
    for (archive, name, layer, config) in archives {
        xtask::image::write_archive_of(&archive, name, &config, &layer.into_inner()?)?;
        let mut import = Command::new(kelp);
        import.args(["image", "import", "--data-dir"]).arg(data_dir).arg(&archive);
        let out = import.output().context("start kelp")?;
        ensure!(out.status.success(), "import {name}: {}", String::from_utf8_lossy(&out.stderr));
        std::fs::remove_file(&archive)?;
    }
    Ok(())
}
