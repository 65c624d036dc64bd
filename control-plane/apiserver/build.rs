//! What is made at build time: the texts that describe types and their fields, and a tag of all that documents are made
//! from.

#[path = "build/descriptions.rs"]
mod descriptions;

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=src");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let texts = descriptions::packed()?;
    let mut hash = Sha256::new();
    hash.update(&texts);
    add_sources(Path::new("src"), &mut hash)?;
    fs::write(out.join("descriptions.gz"), &texts)?;
    let tag: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=KELP_SOURCE_TAG={tag}");
    Ok(())
}

/// Adds every source file of the crate: documents are made by code from tables, so their content changes with these
/// files only.
fn add_sources(dir: &Path, hash: &mut Sha256) -> io::Result<()> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            add_sources(&path, hash)?;
        } else {
            hash.update(path.to_string_lossy().as_bytes());
            hash.update(fs::read(&path)?);
        }
    }
    Ok(())
}
