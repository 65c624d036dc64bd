//! What runs in a guest: suites of the agent's tests, as a script, and what the script's output says about them.

use std::collections::BTreeMap;
use std::path::Path;

/// Tests that need a kernel, by what they are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// The kernel programs pass the verifier and treat single packets right.
    Packets,
    /// Services with real sockets in network namespaces; programs and maps over restarts.
    Dataplane,
    /// Containers, their cgroups, the shim.
    Runtime,
    /// Pods from the first observation to the last clean-up, volumes, addresses.
    Pods,
    /// Whole clusters, driven by kubectl and other clients from outside.
    Cluster,
}

/// Of the end-to-end tests, those in which a kernel has a part; each is a program of its own.
pub const END_TO_END: [&str; 9] = [
    "spine",
    "kubelet_cases",
    "node_management",
    "node_certificates",
    "storage",
    "eviction",
    "dataplane_only",
    "policies",
    "tunnel",
];

impl Suite {
    /// All of them in the order in which they run.
    pub const ALL: [Self; 5] = [Self::Packets, Self::Dataplane, Self::Runtime, Self::Pods, Self::Cluster];

    /// Its name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Dataplane => "dataplane",
            Self::Runtime => "runtime",
            Self::Pods => "pods",
            Self::Cluster => "cluster",
        }
    }

    /// The suite of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.name() == name)
    }

    /// The suite that a test belongs to, by its path: one of the agent's, or `cluster::PROGRAM::TEST`. The others do not
    /// need another kernel than the one they are built on.
    pub fn of(test: &str) -> Option<Self> {
        const PREFIXES: [(&str, Suite); 9] = [
            ("dataplane::packet_tests::", Suite::Packets),
            ("dataplane::kernel::", Suite::Packets),
            ("dataplane::", Suite::Dataplane),
            ("runtime::", Suite::Runtime),
            ("network::", Suite::Pods),
            ("pod::", Suite::Pods),
            ("csi::", Suite::Pods),
            ("node::facts::", Suite::Pods),
            (CLUSTER, Suite::Cluster),
        ];
        PREFIXES.into_iter().find(|(prefix, _)| test.starts_with(prefix)).map(|(_, suite)| suite)
    }
}

/// Begins the paths of tests of whole clusters.
pub const CLUSTER: &str = "cluster::";

/// The tests to run, by suite: those of `listed` (as `--list --format terse` prints them) that have one of `filters` in
/// their path or are of a suite with that name; all, if there is no filter.
pub fn select(listed: &str, filters: &[String]) -> BTreeMap<Suite, Vec<String>> {
    let mut selected: BTreeMap<Suite, Vec<String>> = BTreeMap::new();
    for test in listed.lines().filter_map(|line| line.strip_suffix(": test")) {
        let Some(suite) = Suite::of(test) else { continue };
        let wanted = |filter: &String| match Suite::by_name(filter) {
            Some(named) => named == suite,
            None => test.contains(filter.as_str()),
        };
        if filters.is_empty() || filters.iter().any(wanted) {
            selected.entry(suite).or_default().push(test.to_owned());
        }
    }
    selected
}

/// Begins the lines that are for [`Reader`].
const MARK: &str = "@kelp";

/// How a guest runs one suite, or a part of one.
#[derive(Debug)]
pub struct Step<'a> {
    /// The suite.
    pub suite: Suite,
    /// The test, where what the program exits with says what became of it; otherwise the program prints that of each.
    pub test: Option<&'a str>,
    /// Where it runs.
    pub directory: &'a Path,
    /// The program of the tests.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment, beside that of the guest.
    pub environment: &'a [(&'static str, String)],
    /// When it is stopped, s.
    pub seconds: u64,
}

/// The script of these steps, those of a suite one after another.
pub fn script(steps: &[Step<'_>]) -> String {
    // Many nodes live in one process of tests, each with the maps of a kernel side.
    let mut script = String::from("export PATH=/usr/sbin:/usr/bin:/sbin:/bin\nulimit -n 65536\n");
    for part in steps.chunk_by(|a, b| a.suite == b.suite) {
        let name = part.first().map_or("", |step| step.suite.name());
        script += &format!("echo '{MARK} begin {name}'\nfailed=0\n");
        for step in part {
            script += &format!("cd {}\nCARGO_MANIFEST_DIR=$PWD", quoted(&step.directory.to_string_lossy()));
            for (name, value) in step.environment {
                script += &format!(" {name}={}", quoted(value));
            }
            let program = quoted(&step.program.to_string_lossy());
            script += &format!(" RUST_BACKTRACE=0 timeout --kill-after=5 {} {program}", step.seconds);
            for argument in &step.arguments {
                script.push(' ');
                script += &quoted(argument);
            }
            script += "\ncode=$?\n[ $code = 0 ] || failed=$code\n";
            if let Some(test) = step.test {
                script += &format!("echo \"{MARK} test {test} $code\"\n");
            }
        }
        script += &format!("echo \"{MARK} end {name} $failed\"\n");
    }
    script + &format!("echo '{MARK} done'\n")
}

/// A word of a shell.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What became of a suite.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed, by path.
    pub failed: Vec<String>,
    /// What the program exited with; nothing when it did not end: the guest died or its time was over.
    pub code: Option<i32>,
}

impl Outcome {
    /// Whether every test ran and passed.
    pub fn is_success(&self) -> bool {
        self.code == Some(0) && self.failed.is_empty() && self.passed > 0
    }
}

/// Reads a guest's output line by line.
#[derive(Debug, Default)]
pub struct Reader {
    /// What is known of the suites that have begun.
    pub outcomes: BTreeMap<Suite, Outcome>,
    /// Whether the script has come to its end.
    pub is_done: bool,
    current: Option<Suite>,
}

impl Reader {
    /// Takes a line; returns whether it is one for people.
    pub fn read(&mut self, line: &str) -> bool {
        if let Some(words) = line.strip_prefix(MARK) {
            let words: Vec<&str> = words.split_whitespace().collect();
            match words.as_slice() {
                ["begin", name] => {
                    self.current = Suite::by_name(name);
                    self.outcomes.extend(self.current.map(|suite| (suite, Outcome::default())));
                }
                ["test", name, code] => {
                    let outcome = self.current.and_then(|suite| self.outcomes.get_mut(&suite));
                    match outcome {
                        Some(outcome) if *code == "0" => outcome.passed += 1,
                        Some(outcome) => outcome.failed.push((*name).to_owned()),
                        None => {}
                    }
                }
                ["end", name, code] => {
                    let suite = Suite::by_name(name);
                    if let Some(outcome) = suite.and_then(|suite| self.outcomes.get_mut(&suite)) {
                        outcome.code = code.parse().ok();
                    }
                    self.current = None;
                }
                ["done"] => self.is_done = true,
                _ => {}
            }
            return false;
        }
        // What else a test of a cluster prints may stand between its name and what became of it.
        let printed = self.current.filter(|suite| *suite != Suite::Cluster);
        let outcome = printed.and_then(|suite| self.outcomes.get_mut(&suite));
        if let (Some(outcome), Some(test)) = (outcome, line.strip_prefix("test ")) {
            if let Some(test) = test.strip_suffix(" ... ok") {
                outcome.passed += usize::from(!test.is_empty());
            } else if let Some(test) = test.strip_suffix(" ... FAILED") {
                outcome.failed.push(test.to_owned());
            }
        }
        true
    }
}

/// A kernel, and what became of its suites or why it did not run.
pub type Row = (String, Result<BTreeMap<Suite, Outcome>, String>);

/// A table of what was found: a row a kernel, a column a suite.
pub fn table(rows: &[Row]) -> String {
    let cell = |outcome: Option<&Outcome>| match outcome {
        None => "-".to_owned(),
        Some(outcome) if outcome.is_success() => format!("{} passed", outcome.passed),
        Some(Outcome { passed, failed, code: Some(code) }) if *code != 124 && *code != 137 => {
            format!("{passed} passed, {} failed", failed.len())
        }
        Some(Outcome { passed, .. }) => format!("{passed} passed, not ended"),
    };
    let mut text = format!("{:<28}", "kernel");
    for suite in Suite::ALL {
        text += &format!(" {:<22}", suite.name());
    }
    for (kernel, row) in rows {
        text = text.trim_end().to_owned() + &format!("\n{kernel:<28}");
        match row {
            Ok(outcomes) => {
                for suite in Suite::ALL {
                    text += &format!(" {:<22}", cell(outcomes.get(&suite)));
                }
            }
            Err(error) => text += &format!(" {error}"),
        }
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "dataplane::packet_tests::a: test\ndataplane::tests::b: test\nruntime::shim::tests::c: test\n\
        server::tests::d: test\npod::worker::tests::a_pod: test\n\n5 tests, 0 benchmarks\n";

    fn chosen(filters: &[&str]) -> Vec<(Suite, Vec<String>)> {
        let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        select(LIST, &filters).into_iter().collect()
    }

    #[test]
    fn filters_are_names_of_suites_or_parts_of_paths() {
        assert_eq!(chosen(&[]).len(), 4);
        assert_eq!(chosen(&["packets"]), [(Suite::Packets, vec!["dataplane::packet_tests::a".to_owned()])]);
        assert_eq!(chosen(&["dataplane"]), [(Suite::Dataplane, vec!["dataplane::tests::b".to_owned()])]);
        assert_eq!(chosen(&["a_pod", "shim::"]).len(), 2);
        assert_eq!(chosen(&["server::tests"]), [], "not one of the kernel's");
    }

    #[test]
    fn outcomes_are_read_from_the_output() {
        let mut reader = Reader::default();
        for line in [
            "@kelp begin packets",
            "running 2 tests",
            "test a::b ... ok",
            "test a::c ... ok",
            "@kelp end packets 0",
            "@kelp begin runtime",
            "test r::a ... FAILED",
            "test r::b ... ok",
            "@kelp end runtime 101",
            "@kelp begin pods",
            "test p::a ... ok",
        ] {
            assert_eq!(reader.read(line), !line.starts_with('@'), "{line}");
        }
        assert!(reader.outcomes[&Suite::Packets].is_success());
        let failed = Outcome { passed: 1, failed: vec!["r::a".to_owned()], code: Some(101) };
        assert_eq!(reader.outcomes[&Suite::Runtime], failed);
        assert!(!failed.is_success());
        // The guest died.
        assert!(!reader.is_done && !reader.outcomes[&Suite::Pods].is_success());
        let table =
            table(&[("6.1".to_owned(), Ok(reader.outcomes)), ("9.9".to_owned(), Err("none".to_owned()))]);
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(lines[0], ["kernel", "packets", "dataplane", "runtime", "pods", "cluster"]);
        assert_eq!(lines[1], ["6.1", "2 passed", "-", "1 passed, 1 failed", "1 passed, not ended", "-"]);
        assert_eq!(lines[2], ["9.9", "none"]);
    }

    #[test]
    fn a_suite_without_tests_is_no_success() {
        assert!(!Outcome { code: Some(0), ..Outcome::default() }.is_success());
    }

    #[test]
    fn tests_of_clusters_are_told_by_what_their_programs_exit_with() {
        let mut reader = Reader::default();
        for line in [
            "@kelp begin cluster",
            "test two_nodes ... kubectl says something",
            "ok",
            "test other ... ok",
            "@kelp test spine::two_nodes 0",
            "@kelp test spine::other 101",
            "@kelp end cluster 101",
            "@kelp done",
        ] {
            reader.read(line);
        }
        let outcome = Outcome { passed: 1, failed: vec!["spine::other".to_owned()], code: Some(101) };
        assert_eq!(reader.outcomes[&Suite::Cluster], outcome);
        assert!(reader.is_done);
    }

    #[test]
    fn the_script_is_what_a_shell_understands() {
        let environment = [("WORD", "it's".to_owned())];
        let step = |test: Option<&'static str>, command: &str| Step {
            suite: if test == Some("none") { Suite::Packets } else { Suite::Cluster },
            test: test.filter(|test| *test != "none"),
            directory: Path::new("/"),
            program: Path::new("sh"),
            arguments: vec!["-c".to_owned(), command.to_owned(), "$HOME".to_owned()],
            environment: &environment,
            seconds: 20,
        };
        let steps = [
            step(Some("none"), "echo \"$0 $WORD\""),
            step(Some("a::b"), "exit 3"),
            step(Some("a::c"), "exit 0"),
        ];
        let output = std::process::Command::new("sh").arg("-c").arg(script(&steps)).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            text,
            "@kelp begin packets\n$HOME it's\n@kelp end packets 0\n@kelp begin cluster\n@kelp test a::b 3\n\
             @kelp test a::c 0\n@kelp end cluster 3\n@kelp done\n"
        );
    }
}
