//! The tests that need a kernel, on other kernels than this machine's: in virtual machines without KVM.
//!
//! A guest sees the machine's filesystem, under an overlay of its own, so that the programs built here run there. It
//! has pure cgroup v2, which many development machines have not, and no network but loopback. Guests are several times
//! slower than the machine: they are for what is right, not for how fast.

mod kernels;
mod machine;
mod plan;
mod version;

use crate::build::{cargo, target_dir, workspace_root};
use crate::command::{command, output};
use crate::{build_ebpf, setup};
use anyhow::{Context, Result, bail};
use machine::{Machine, Said};
use plan::{Outcome, Reader, Step, Suite};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Debian packages for guests.
const PACKAGES: &[&str] = &[
    "debian-archive-keyring", // signatures of kernels
    "e2fsprogs",              // the guest's disk
    "kmod",                   // modules: loaded by the guest's kernel from our /sbin
    "qemu-system-x86",
    "xz-utils", // modules are compressed
];
/// Until the first test runs.
const BOOT_TIME: Duration = Duration::from_secs(120);

/// Runs the kernel's tests in a guest of each of `kernels` (versions, or `all`); with `filters` those whose path
/// contains one of them, or that belong to a suite of that name. A suite is stopped after `seconds`. Returns whether all
/// passed.
///
/// # Errors
/// Something could not be installed or built, or no test has such a name.
pub fn test(kernels: &str, filters: &[String], seconds: u64) -> Result<bool> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("guests are of x86_64, as they run the programs built here; this machine is not");
    }
    setup::ensure_all()?;
    setup::ensure_packages(PACKAGES)?;
    if !machine::has_virtiofsd() {
        setup::ensure_packages(&["virtiofsd"])?;
    }
    build_ebpf::run(workspace_root())?;
    let program = build_tests()?;
    let listed = output(&mut command(&program, &["--list", "--format", "terse"]))?;
    let selected = plan::select(&listed, filters);
    if selected.is_empty() {
        let names = Suite::ALL.map(Suite::name).join(", ");
        bail!("no test of a kernel is called like {}; suites: {names}", filters.join(" or "));
    }
    let dir = target_dir().join("guest");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let program = keep(&program, &dir.join("tests"))?;
    let kernels: Vec<&str> = match kernels {
        "all" => version::ALL.to_vec(),
        list => list.split(',').map(str::trim).filter(|version| !version.is_empty()).collect(),
    };
    let mut rows = Vec::new();
    for version in &kernels {
        match kernels::ensure(&dir, version) {
            Ok(kernel) => {
                let row = run(&dir, &kernel, &program, &selected, seconds);
                rows.push((kernel.release, row.map_err(|error| format!("{error:#}"))));
            }
            Err(error) if kernels.len() == 1 => return Err(error),
            Err(error) => rows.push(((*version).to_owned(), Err(format!("{error:#}")))),
        }
    }
    println!("\n{}", plan::table(&rows));
    let is_success = |outcomes: &BTreeMap<Suite, Outcome>| {
        selected.keys().all(|suite| outcomes.get(suite).is_some_and(Outcome::is_success))
    };
    Ok(rows.iter().all(|(_, row)| row.as_ref().is_ok_and(is_success)))
}

/// Builds the agent's tests and returns the program.
fn build_tests() -> Result<PathBuf> {
    println!("building the tests");
    let mut build = cargo(&["test", "--no-run", "--package", "kelp-agent", "--lib"]);
    build.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let result = build.stdin(Stdio::null()).output().context("start cargo")?;
    if !result.status.success() {
        bail!("building the tests failed");
    }
    let messages = String::from_utf8_lossy(&result.stdout);
    let program = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == "kelp_agent" && message["profile"]["test"] == true;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    program.context("cargo did not say where the tests are")
}

/// Gives the program another name, under which it stays as it is when it is built again meanwhile.
fn keep(program: &Path, name: &Path) -> Result<PathBuf> {
    match std::fs::remove_file(name) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", name.display()));
        }
        _ => {}
    }
    std::fs::hard_link(program, name).with_context(|| format!("link {}", name.display()))?;
    Ok(name.to_owned())
}

/// Runs suites in one guest.
fn run(
    dir: &Path,
    kernel: &kernels::Kernel,
    program: &Path,
    selected: &BTreeMap<Suite, Vec<String>>,
    seconds: u64,
) -> Result<BTreeMap<Suite, Outcome>> {
    let package = workspace_root().join("agent");
    let steps: Vec<Step<'_>> = selected
        .iter()
        .map(|(suite, tests)| Step {
            suite: *suite,
            directory: &package,
            program,
            arguments: ["--exact", "--color=never"]
                .into_iter()
                .map(str::to_owned)
                .chain(tests.iter().cloned())
                .collect(),
            seconds,
        })
        .collect();
    println!("── Linux {}", kernel.release);
    let console = dir.join(format!("console-{}.log", kernel.release));
    let started = Instant::now();
    let machine = Machine::boot(dir, kernel, &plan::script(&steps), &console)?;
    let limit = BOOT_TIME + Duration::from_secs((seconds + 10) * steps.len() as u64);
    let deadline = started + limit;
    let mut reader = Reader::default();
    let problem = loop {
        match machine.next(deadline) {
            Said::Line(line) => {
                if reader.read(&line) {
                    println!("{line}");
                }
                if reader.is_done {
                    break None;
                }
            }
            Said::End => break Some("the guest ended before its tests did".to_owned()),
            Said::Late => break Some(format!("the guest did not end within {} s", limit.as_secs())),
        }
    };
    drop(machine);
    if let Some(problem) = problem {
        let text = std::fs::read(&console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.iter().skip(lines.len().saturating_sub(40));
        println!("{problem}; the end of its console ({}):", console.display());
        tail.for_each(|line| println!("| {line}"));
        if reader.outcomes.is_empty() {
            bail!("{problem}");
        }
    }
    println!("   Linux {}: {:.0} s", kernel.release, started.elapsed().as_secs_f64());
    Ok(reader.outcomes)
}
