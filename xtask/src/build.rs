//! Building the binaries that a sandbox runs.

use crate::command::run;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Root of the workspace.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts its output: `CARGO_TARGET_DIR` or `target`.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace_root().join(dir),
        None => workspace_root().join("target"),
    }
}

/// A cargo command in the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args).current_dir(workspace_root());
    // What `cargo run` tells about xtask: build scripts that look at it would run again at each turn.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Builds the `kelp` binary in release mode and returns its path.
///
/// # Errors
/// The build failed.
pub fn build_kelp() -> Result<PathBuf> {
    println!("building kelp");
    run(&mut cargo(&["build", "--release", "--package", "kelp"]))?;
    Ok(target_dir().join("release/kelp"))
}

/// Builds the web server of the sample workload as a static binary and returns its path.
///
/// # Errors
/// The build failed.
pub fn build_hello() -> Result<PathBuf> {
    println!("building the hello web server");
    // Its own directory, as other flags would make cargo rebuild everything at each turn.
    let dir = target_dir().join("hello");
    let triple = host_triple();
    let mut build = cargo(&["build", "--release", "--package", "kelp-hello", "--target", &triple]);
    build.arg("--target-dir").arg(&dir).env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(build.env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
    Ok(dir.join(triple).join("release/kelp-hello"))
}

/// Builds `xtask` itself, for callers that are another program, and returns its path.
///
/// # Errors
/// The build failed.
pub fn build_xtask() -> Result<PathBuf> {
    run(&mut cargo(&["build", "--package", "xtask"]))?;
    Ok(target_dir().join("debug/xtask"))
}

/// Target triple of this machine, with glibc.
pub fn host_triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}
