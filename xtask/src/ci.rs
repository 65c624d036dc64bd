//! The checks that every change must pass.

use crate::build::{cargo, workspace_root};
use crate::command::{output, run};
use crate::{build, build_ebpf, setup};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::time::Instant;

/// Who may depend on whom inside the workspace; the crates that are missing here (the binary, xtask, the tests) may
/// depend on all others.
const ALLOWED: &[(&str, &[&str])] = &[
    ("kelp-common", &[]),
    ("kelp-model", &["kelp-common"]),
    ("kelp-runtime-protocol", &[]),
    ("kelp-streams", &[]),
    ("kelp-shim", &["kelp-runtime-protocol"]),
    ("kelp-runtime-helper", &["kelp-runtime-protocol"]),
    ("kelp-agent", &["kelp-common", "kelp-model", "kelp-runtime-protocol", "kelp-streams"]),
    ("kelp-store", &[]),
    ("kelp-apiserver", &["kelp-model", "kelp-store", "kelp-common", "kelp-streams"]),
    ("kelp-scheduler", &["kelp-model", "kelp-common"]),
    ("kelp-controllers", &["kelp-model", "kelp-common"]),
    ("kelp-ebpf", &["kelp-common"]),
    ("kelp-hello", &[]),
];

/// External crates that only one crate may use directly.
const EXCLUSIVE: &[(&str, &[&str])] = &[("aya", &["kelp-agent"]), ("libcontainer", &["kelp-runtime-helper"])];

/// Formatting, lints, documentation, directions of dependency.
///
/// # Errors
/// The first check that failed.
pub fn check() -> Result<()> {
    setup::ensure_all()?;
    build_ebpf::run(build::workspace_root())?;
    timed("formatting", || run(&mut cargo(&["fmt", "--all", "--check"])))?;
    timed("directions of dependency", dependencies)?;
    timed("lints", || run(&mut cargo(&["clippy", "--quiet", "--all-targets", "--", "--deny", "warnings"])))?;
    timed("documentation", || {
        let mut doc = cargo(&["doc", "--quiet", "--no-deps", "--document-private-items"]);
        run(doc.env("RUSTDOCFLAGS", "--deny warnings"))
    })
}

/// All tests. The end-to-end tests get a release build of `kelp`, which is what users run.
///
/// # Errors
/// Something could not be installed or built, or a test failed.
pub fn test(unit_only: bool) -> Result<()> {
    let kubectl = setup::ensure_all()?;
    setup::ensure_packages(setup::TEST_PACKAGES)?;
    build_ebpf::run(build::workspace_root())?;
    timed("unit, property and packet tests", || {
        run(&mut cargo(&[
            "test",
            "--quiet",
            "--workspace",
            "--exclude",
            "kelp-ebpf",
            "--exclude",
            "kelp-tests",
        ]))
    })?;
    if unit_only {
        return Ok(());
    }
    let kelp = build::build_kelp()?;
    let hello = build::build_hello()?;
    timed("end-to-end tests", || {
        // By name out of the whole workspace, and not by package: a package alone would get other features of its
        // dependencies, and all of them would be built again.
        let mut tests = cargo(&["test", "--workspace", "--exclude", "kelp-ebpf"]);
        for name in end_to_end()? {
            tests.args(["--test", &name]);
        }
        // One at a time: each brings up hosts and measures what it leaves behind.
        tests.args(["--", "--test-threads=1", "--nocapture"]);
        let xtask = std::env::current_exe().context("find the xtask binary")?;
        tests.env("KELP_BIN", &kelp).env("KELP_HELLO", &hello).env("KUBECTL", &kubectl);
        run(tests.env("XTASK_BIN", xtask))
    })
}

/// Names of the end-to-end tests.
fn end_to_end() -> Result<BTreeSet<String>> {
    let dir = workspace_root().join("tests/tests");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        let is_test =
            path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists();
        if is_test && let Some(name) = path.file_stem() {
            names.insert(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

fn timed(what: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("── {what}");
    let started = Instant::now();
    check().with_context(|| format!("{what}: failed"))?;
    println!("   {what}: ok in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Compares the workspace's direct dependencies, as `cargo metadata` gives them, with the allowed ones.
fn dependencies() -> Result<()> {
    let metadata = output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("parse cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let names: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut errors = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter(|dependency| dependency["kind"].as_str() != Some("dev")) {
            let dependency = dependency["name"].as_str().unwrap_or_default();
            let allowed = ALLOWED.iter().find(|(owner, _)| *owner == name).map(|(_, allowed)| *allowed);
            if names.contains(dependency) && allowed.is_some_and(|allowed| !allowed.contains(&dependency)) {
                errors.push(format!("{name} must not depend on {dependency}"));
            }
            let exclusive = EXCLUSIVE.iter().find(|(external, _)| *external == dependency);
            if exclusive.is_some_and(|(_, owners)| !owners.contains(&name)) {
                errors.push(format!("{name} must not use {dependency}"));
            }
        }
    }
    if !errors.is_empty() {
        bail!(
            "{}\nsee the invariants in {}",
            errors.join("\n"),
            workspace_root().join("ARCHITECTURE.md").display()
        );
    }
    Ok(())
}
