//! Pods recorded under the real kubelet, on a sandbox cluster.
//!
//! All of them take minutes, so that a part that stands for the others runs unless `KELP_CASES` selects by name or area
//! (words, `*` allowed; `*` alone is all of them). `KELP_CASES_JOBS` says how many run at once, `KELP_CASES_PATIENCE` how
//! many times as long as usual they may take (for slow machines), `KELP_CASES_VERBOSE` shows every state.
//! `KELP_CASES_KEEP` keeps the cluster and uses the one that is there.
//!
//! What differs must be in `kubelet_failures.txt`, with its reason; what is there must differ. The recordings are not part of
//! the repository: the test does nothing without them.

use anyhow::{Context, Result, ensure};
use kelp_tests::kubelet::{Runner, import_images, load, run_all};
use kelp_tests::{Cluster, expected, sandbox_enter};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::BTreeSet;
use std::path::Path;

const NAME: &str = "t-cases";
/// Names that are expected to differ, with the reason of each.
const EXPECTED: &str = include_str!("kubelet_failures.txt");
/// Names that may differ where control groups are those of version 2 alone, as the recordings' were not.
const UNIFIED: &str = include_str!("kubelet_unified.txt");
/// Cases of each area that are soon done.
const USUAL: &str = "env container-environment node-object kubelet-endpoints exit-0-never exit-3-never init-ordered \
    poststart-exec-ok termination-message-* delete-completed qos-* stop-signal hostname-* host-aliases* configmap-volume \
    secret-volume projected-combined downward-api-volume subpath read-only-mount fs-group* run-as-user \
    supplemental-* capabilities-* seccomp-unconfined sysctl-safe user-namespace exec exec-tty";

/// The directory that the recordings name in hostPath volumes, on a shared mount as hosts have it.
struct HostDir;

impl HostDir {
    const PATH: &str = "/run/kubelet-cases";

    fn make() -> Result<Self> {
        drop(Self);
        std::fs::create_dir_all(Self::PATH)?;
        mount(Some("tmpfs"), Self::PATH, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .context("mount a tmpfs")?;
        mount(None::<&str>, Self::PATH, None::<&str>, MsFlags::MS_SHARED, None::<&str>)
            .context("share it")?;
        Ok(Self)
    }
}

impl Drop for HostDir {
    fn drop(&mut self) {
        while umount2(Self::PATH, MntFlags::MNT_DETACH).is_ok() {}
        let _ = std::fs::remove_dir_all(Self::PATH);
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

#[test]
fn recorded_pods() -> Result<()> {
    let shared = variable("KELP_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), Into::into);
    let file = shared.join("data/kubernetes-1.36/kubelet-cases.json");
    if !file.exists() {
        eprintln!(
            "no recordings: set KELP_SHARED to the directory with data/kubernetes-1.36/kubelet-cases.json"
        );
        return Ok(());
    }
    let selection = variable("KELP_CASES").unwrap_or_else(|| USUAL.to_owned());
    let cases = load(&file, &selection)?;
    ensure!(!cases.is_empty(), "no case has this name or area");
    let selected: BTreeSet<String> = cases.iter().map(|case| case.name.clone()).collect();
    let keep = variable("KELP_CASES_KEEP").is_some();
    let layout = xtask::sandbox::Layout::new(NAME)?;
    let scratch = layout.dir().join("cases");
    let resolv_conf = scratch.join("resolv.conf");
    let arguments =
        [("--resolv-conf", resolv_conf.as_path()), ("--pod-manifest-path", &scratch.join("static"))];
    let arguments: Vec<String> =
        arguments.iter().flat_map(|(k, v)| [(*k).to_owned(), v.to_string_lossy().into_owned()]).collect();
    let cluster = Cluster::up_apart(NAME, keep, env!("CARGO_BIN_EXE_client"), arguments, |layout| {
        let scratch = layout.dir().join("cases");
        std::fs::create_dir_all(scratch.join("static")).context("make the scratch directory")?;
        std::fs::write(
            scratch.join("resolv.conf"),
            "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch example.test corp.example.test\noptions timeout:2 attempts:3\n",
        )?;
        Ok(())
    })?;
    let host_dir = HostDir::make()?;
    let node = cluster.node(2);
    let agnhost = env!("CARGO_BIN_EXE_agnhost");
    if !scratch.join("images").exists() {
        let kelp =
            variable("KELP_BIN").map_or_else(|| xtask::build::target_dir().join("release/kelp"), Into::into);
        import_images(&kelp, Path::new(agnhost), &node.data_dir(), &scratch)?;
        std::fs::write(scratch.join("images"), "")?;
    }
    let mut registry =
        sandbox_enter(&node, &[agnhost, "absent-registry", "5001"]).spawn().context("start the registry")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let failed = runtime.block_on(async {
        let patience = variable("KELP_CASES_PATIENCE").and_then(|times| times.parse().ok()).unwrap_or(1);
        let runner = Runner::new(&cluster, patience, variable("KELP_CASES_VERBOSE").is_some()).await?;
        let jobs = variable("KELP_CASES_JOBS").and_then(|j| j.parse().ok()).unwrap_or(8);
        run_all(&runner, cases, jobs).await
    });
    let _ = registry.kill();
    let _ = registry.wait();
    if keep {
        std::mem::forget(cluster);
    } else {
        drop(cluster);
    }
    drop(host_dir);
    let failed = failed?;
    let expected = expected(EXPECTED);
    let unified = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { UNIFIED } else { "" };
    let may = kelp_tests::expected(unified);
    let known = |name: &str| expected.contains_key(name) || may.contains_key(name);
    let new: Vec<_> = failed.iter().filter(|name| !known(name)).collect();
    let over: Vec<_> = expected
        .keys()
        .filter(|name| selected.contains(**name) && !failed.iter().any(|f| f == *name))
        .collect();
    ensure!(new.is_empty(), "these differ and should not: {new:?}");
    ensure!(over.is_empty(), "these pass now: take them out of kubelet_failures.txt: {over:?}");
    Ok(())
}
