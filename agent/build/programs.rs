//! Builds the shim and the runtime helper as static executables and leaves them in `OUT_DIR` for `include_bytes!`.
//!
//! They are built by a nested cargo with its own target directory, profile and flags: whatever the outer build is
//! (check, clippy, doc, test, another profile or RUSTFLAGS), the agent carries the same two programs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const PROGRAMS: [&str; 2] = ["kelp-shim", "kelp-runtime-helper"];

/// Builds and copies them.
pub fn build() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| fail(&format!("{name} is not set")));
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(variable("OUT_DIR"));
    let Some(workspace) = manifest_dir.parent() else { fail("the agent crate has no workspace") };

    for input in ["runtime/protocol", "runtime/shim", "runtime/helper"] {
        for part in ["src", "Cargo.toml"] {
            println!("cargo::rerun-if-changed={}", workspace.join(input).join(part).display());
        }
    }
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.lock").display());
    println!("cargo::rerun-if-env-changed=LIBSECCOMP_LIB_PATH");

    let arch = variable("CARGO_CFG_TARGET_ARCH");
    let target = format!("{arch}-unknown-linux-gnu");
    require_library("libseccomp.a", "libseccomp-dev", &arch);

    // Fixed, so that builds of every kind share it and the second one finds all of it done.
    let target_dir = workspace.join("target/embed");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(workspace)
        .args(["build", "--quiet", "--locked", "--profile", "embed", "--target", &target])
        .arg("--target-dir")
        .arg(&target_dir);
    for program in PROGRAMS {
        cargo.args(["--package", program]);
    }
    // What cargo and rustup told this build script is about the outer build.
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        let is_outer = ["CARGO_", "DEP_", "RUSTC", "RUSTDOC", "CLIPPY_"]
            .iter()
            .any(|prefix| name_text.starts_with(prefix));
        let is_kept = matches!(&*name_text, "CARGO_HOME" | "CARGO_NET_OFFLINE" | "CARGO_HTTP_PROXY");
        let is_flag = matches!(
            &*name_text,
            "RUSTFLAGS" | "TARGET" | "HOST" | "PROFILE" | "OPT_LEVEL" | "DEBUG" | "OUT_DIR" | "NUM_JOBS"
        );
        if (is_outer && !is_kept) || is_flag {
            cargo.env_remove(name);
        }
    }
    // Static and at a fixed address: fewer private pages in every shim.
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    cargo.env("LIBSECCOMP_LINK_TYPE", "static");
    if env::var_os("LIBSECCOMP_LIB_PATH").is_none() {
        cargo.env("LIBSECCOMP_LIB_PATH", library_dir("libseccomp.a", &arch).unwrap_or_default());
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("building the shim and the runtime helper failed ({status})")),
        Err(error) => fail(&format!("cannot start cargo: {error}")),
    }
    for program in PROGRAMS {
        let built = target_dir.join(&target).join("embed").join(program);
        // Copied, not included in place: a build in another worktree or at another time must not change it meanwhile.
        if let Err(error) = std::fs::copy(&built, out_dir.join(program)) {
            fail(&format!("cannot copy {}: {error}", built.display()));
        }
    }
}

fn library_dir(file: &str, arch: &str) -> Option<PathBuf> {
    let multiarch = format!("/usr/lib/{arch}-linux-gnu");
    [multiarch.as_str(), "/usr/lib64", "/usr/lib", "/usr/local/lib64", "/usr/local/lib"]
        .into_iter()
        .map(Path::new)
        .find(|dir| dir.join(file).exists())
        .map(Path::to_path_buf)
}

fn require_library(file: &str, package: &str, arch: &str) {
    let given = env::var_os("LIBSECCOMP_LIB_PATH").is_some_and(|dir| Path::new(&dir).join(file).exists());
    if !given && library_dir(file, arch).is_none() {
        fail(&format!("{file} is missing; install it with: apt-get install {package}"));
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
