//! Recorded traffic of a real API server, replayed. The recordings are not part of the repository: the test does nothing
//! without them.

use anyhow::{Context, Result, ensure};
use kelp_tests::{ApiServer, expected};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Names that are expected to fail, with the reason of each.
const EXPECTED: &str = include_str!("replay_failures.txt");

fn recordings() -> Option<PathBuf> {
    let root = std::env::var_os("KELP_SHARED").map(PathBuf::from).or_else(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().ok()?;
        Some(workspace.parent()?.join("shared"))
    })?;
    root.join("tools/replay_api.py").is_file().then_some(root)
}

#[test]
fn recorded_traffic_is_answered_alike() -> Result<()> {
    let Some(shared) = recordings() else {
        eprintln!("no recordings: set KELP_SHARED to the directory with tools/replay_api.py");
        return Ok(());
    };
    let server = ApiServer::start("replay", "apiserver")?;
    let data = shared.join("data/kubernetes-1.36");
    let (tool, kubeconfig) = (shared.join("tools/replay_api.py"), server.kubeconfig());
    let files = ["request-response-cases.json", "api-scenarios.json"].map(|name| data.join(name));
    let mut args = vec![tool.to_str().context("path")?, "--kubeconfig", kubeconfig.to_str().context("path")?];
    args.extend(["--jobs", "4"]);
    for file in &files {
        args.push(file.to_str().context("path")?);
    }
    let output = server.try_feed(Path::new("python3"), &args, "")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (mut passed, mut failed) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("pass"), Some(name)) => passed.insert(name.to_owned()),
            (Some("FAIL"), Some(name)) => failed.insert(name.to_owned()),
            _ => false,
        };
    }
    ensure!(
        passed.len() + failed.len() > 150,
        "the tool said\n{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{} passed, {} failed", passed.len(), failed.len());
    let expected = expected(EXPECTED);
    let new: Vec<_> = failed.iter().filter(|name| !expected.contains_key(name.as_str())).collect();
    let over: Vec<_> = expected.keys().filter(|name| passed.contains(**name)).collect();
    ensure!(new.is_empty(), "these failed and should not (run the tool with --verbose --only NAME): {new:?}");
    ensure!(over.is_empty(), "these pass now: take them out of replay_failures.txt: {over:?}");
    Ok(())
}
