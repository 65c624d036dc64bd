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
use crate::{build, build_ebpf, setup};
use anyhow::{Context, Result, bail};
use machine::{Machine, Said};
use plan::{CLUSTER, END_TO_END, Outcome, Reader, Step, Suite};
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
    let kubectl = setup::ensure_all()?;
    setup::ensure_packages(PACKAGES)?;
    setup::ensure_packages(setup::TEST_PACKAGES)?;
    if !machine::has_virtiofsd() {
        setup::ensure_packages(&["virtiofsd"])?;
    }
    build_ebpf::run(workspace_root())?;
    let built = build_tests()?;
    let selected = plan::select(&list(&built)?, filters);
    if selected.is_empty() {
        let names = Suite::ALL.map(Suite::name).join(", ");
        bail!("no test of a kernel is called like {}; suites: {names}", filters.join(" or "));
    }
    let dir = target_dir().join("guest");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let mut programs = BTreeMap::new();
    for (name, program) in built {
        let kept = keep(&program, &dir.join(&name))?;
        programs.insert(name, kept);
    }
    let mut tests = Tests { programs, selected, environment: Vec::new(), seconds };
    if tests.selected.contains_key(&Suite::Cluster) {
        let kelp = match std::env::var_os("KELP_BIN") {
            Some(given) => PathBuf::from(given),
            None => build::build_kelp()?,
        };
        let kelp = keep(&kelp, &dir.join("kelp"))?;
        tests.environment = vec![
            ("KELP_BIN", shown(&kelp)),
            ("KELP_HELLO", shown(&build::build_hello()?)),
            ("KUBECTL", shown(&kubectl)),
            ("XTASK_BIN", shown(&std::env::current_exe().context("find the xtask binary")?)),
            // Containers' filesystems cannot lie on the overlay that the guest's root is.
            ("KELP_SANDBOXES", "/tmp".to_owned()),
            // Recorded pods, on a machine that is several times slower than the one of the recordings.
            ("KELP_CASES_JOBS", "2".to_owned()),
            ("KELP_CASES_PATIENCE", "5".to_owned()),
        ];
        let chosen = std::env::var("KELP_CASES").ok().map(|cases| ("KELP_CASES", cases));
        tests.environment.extend(chosen);
    }
    let kernels: Vec<&str> = match kernels {
        "all" => version::ALL.to_vec(),
        list => list.split(',').map(str::trim).filter(|version| !version.is_empty()).collect(),
    };
    let mut rows = Vec::new();
    for version in &kernels {
        match kernels::ensure(&dir, version) {
            Ok(kernel) => {
                let row = run(&dir, &kernel, &tests);
                rows.push((kernel.release, row.map_err(|error| format!("{error:#}"))));
            }
            Err(error) if kernels.len() == 1 => return Err(error),
            Err(error) => rows.push(((*version).to_owned(), Err(format!("{error:#}")))),
        }
    }
    println!("\n{}", plan::table(&rows));
    let is_success = |outcomes: &BTreeMap<Suite, Outcome>| {
        tests.selected.keys().all(|suite| outcomes.get(suite).is_some_and(Outcome::is_success))
    };
    Ok(rows.iter().all(|(_, row)| row.as_ref().is_ok_and(is_success)))
}

/// What runs in each guest.
struct Tests {
    /// The agent's tests as [`AGENT`], and those of whole clusters.
    programs: BTreeMap<String, PathBuf>,
    selected: BTreeMap<Suite, Vec<String>>,
    /// Of the tests of whole clusters.
    environment: Vec<(&'static str, String)>,
    /// Most that a suite may take, or a test of a whole cluster.
    seconds: u64,
}

/// Name of the program with the agent's tests.
const AGENT: &str = "kelp_agent";

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Builds the agent's tests and the end-to-end tests; returns the programs by their names.
fn build_tests() -> Result<BTreeMap<String, PathBuf>> {
    println!("building the tests");
    let mut programs = BTreeMap::new();
    let agent = ["--package", "kelp-agent", "--lib"].map(str::to_owned).to_vec();
    // Out of the whole workspace, as `cargo xtask test` does: a package alone has other features of its dependencies.
    let workspace = ["--workspace", "--exclude", "kelp-ebpf"].map(str::to_owned).to_vec();
    let end_to_end = END_TO_END.iter().flat_map(|name| ["--test".to_owned(), (*name).to_owned()]);
    for arguments in [agent, workspace.into_iter().chain(end_to_end).collect()] {
        let mut build = cargo(&["test", "--no-run"]);
        build.args(arguments).args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
        let result = build.stdin(Stdio::null()).output().context("start cargo")?;
        if !result.status.success() {
            bail!("building the tests failed");
        }
        for line in String::from_utf8_lossy(&result.stdout).lines() {
            let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let target = (message["target"]["name"].as_str(), message["executable"].as_str());
            if let ((Some(name), Some(program)), true) = (target, message["profile"]["test"] == true) {
                programs.insert(name.to_owned(), PathBuf::from(program));
            }
        }
    }
    Ok(programs)
}

/// The paths of all tests in these programs, as `--list --format terse` prints them; those of whole clusters begin with
/// [`CLUSTER`] and the name of their program.
fn list(programs: &BTreeMap<String, PathBuf>) -> Result<String> {
    let mut listed = String::new();
    for name in std::iter::once(AGENT).chain(END_TO_END) {
        let program =
            programs.get(name).with_context(|| format!("cargo did not say where the tests {name} are"))?;
        for test in output(&mut command(program, &["--list", "--format", "terse"]))?.lines() {
            let prefix = if name == AGENT { String::new() } else { format!("{CLUSTER}{name}::") };
            listed += &format!("{prefix}{test}\n");
        }
    }
    Ok(listed)
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

/// What a guest does for `tests`.
fn steps<'a>(tests: &'a Tests, agent: &'a Path, end_to_end: &'a Path) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    for (suite, names) in &tests.selected {
        if *suite == Suite::Cluster {
            for test in names {
                let path = test.strip_prefix(CLUSTER).and_then(|path| path.split_once("::"));
                let Some((program, name)) = path else { continue };
                let Some(program) = tests.programs.get(program) else { continue };
                steps.push(Step {
                    suite: *suite,
                    test: Some(test),
                    directory: end_to_end,
                    program,
                    arguments: ["--exact", "--nocapture", "--color=never", name].map(str::to_owned).to_vec(),
                    environment: &tests.environment,
                    seconds: tests.seconds,
                });
            }
        } else if let Some(program) = tests.programs.get(AGENT) {
            let options = ["--exact", "--color=never"].into_iter().map(str::to_owned);
            steps.push(Step {
                suite: *suite,
                test: None,
                directory: agent,
                program,
                arguments: options.chain(names.iter().cloned()).collect(),
                environment: &[],
                seconds: tests.seconds,
            });
        }
    }
    steps
}

/// Runs suites in one guest.
fn run(dir: &Path, kernel: &kernels::Kernel, tests: &Tests) -> Result<BTreeMap<Suite, Outcome>> {
    let (agent, end_to_end) = (workspace_root().join("agent"), workspace_root().join("tests"));
    let steps = steps(tests, &agent, &end_to_end);
    let seconds = tests.seconds;
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
