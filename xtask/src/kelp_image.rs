//! The image of kelp itself, for clusters that run it as a DaemonSet: the program and the libraries it is linked with.

use crate::build;
use crate::image::{self, File};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the image is called in `manifests/kelp-dataplane.yaml`.
pub const NAME: &str = "localhost/kelp:latest";

/// Builds `kelp` unless given one, and writes `target/images/kelp.tar`, an OCI archive.
///
/// # Errors
/// The build failed, a library is missing, or the archive cannot be written.
pub fn run(kelp: Option<PathBuf>) -> Result<PathBuf> {
    let kelp = match kelp {
        Some(kelp) => kelp,
        None => {
            crate::build_ebpf::run(build::workspace_root())?;
            build::build_kelp()?
        }
    };
    let out = build::target_dir().join("images/kelp.tar");
    write(&kelp, &out)?;
    Ok(out)
}

fn write(kelp: &Path, out: &Path) -> Result<()> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let libraries = libraries(kelp)?;
    let mut files = vec![File { path: "usr/bin/kelp", mode: 0o755, content: read(kelp)? }];
    for library in &libraries {
        files.push(File {
            path: library.trim_start_matches('/'),
            mode: 0o755,
            content: read(Path::new(library))?,
        });
    }
    let config = json!({"Entrypoint": ["/usr/bin/kelp"], "Env": ["PATH=/usr/bin:/bin"]});
    image::write_archive(out, NAME, &config, &files)
}

/// Paths of the libraries that a program is linked with, its loader among them.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    ensure!(
        output.status.success(),
        "ldd {}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).context("ldd's answer is no text")?;
    ensure!(!text.contains("not found"), "libraries of {} are missing:\n{text}", program.display());
    Ok(paths(&text))
}

/// The absolute paths in ldd's answer: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
fn paths(text: &str) -> Vec<String> {
    let path = |line: &str| {
        let rest = line.split_once("=> ").map_or(line, |(_, rest)| rest).trim();
        let path = rest.split_once(" (").map_or(rest, |(path, _)| path);
        path.starts_with('/').then(|| path.to_owned())
    };
    text.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_of_libraries() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f00)\n";
        assert_eq!(paths(text), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn an_image_has_the_program_and_its_loader() {
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("kelp.tar");
        write(Path::new("/bin/true"), &out).expect("an archive");
        let mut archive = tar::Archive::new(std::fs::File::open(&out).expect("the archive"));
        let mut layer = None;
        for entry in archive.entries().expect("entries") {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry.expect("an entry"), &mut content).expect("content");
            if content.starts_with(&[0x1f, 0x8b]) {
                layer = Some(content);
            }
        }
        let layer = layer.expect("a layer");
        let mut layer = tar::Archive::new(flate2::read::GzDecoder::new(&*layer));
        let names: Vec<String> = layer
            .entries()
            .expect("entries")
            .map(|entry| entry.expect("an entry").path().expect("a path").display().to_string())
            .collect();
        assert!(names.iter().any(|name| name == "usr/bin/kelp"), "{names:?}");
        assert!(names.iter().any(|name| name.contains("ld-linux")), "{names:?}");
    }
}
