//! `/logs/?query=`: logs of the node's services, from the journal or from files below /var/log (`enableSystemLogQuery`).

use super::answer::{Answer, text, typed};
use super::query::Query;
use http::StatusCode;
use jiff::Timestamp;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Most lines that may be asked for, and most services, and the longest name of one.
const MAX_LINES: i64 = 100_000;
const MAX_SERVICES: usize = 4;
const MAX_NAME: usize = 256;
/// How long the journal may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer, bytes: more is cut.
const MAX_ANSWER: u64 = 64 << 20;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    services: Vec<String>,
    files: Vec<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    lines: Option<i64>,
    boot: Option<i64>,
    pattern: String,
}

/// Where the answer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The path of the request, as without a query.
    Path,
    /// A file below /var/log.
    File(String),
    /// Services.
    Services(LogQuery),
}

fn invalid(field: &str, value: impl std::fmt::Debug, why: &str) -> String {
    format!("{field}: Invalid value: {value:?}: {why}")
}

fn all(errors: &[String]) -> Result<(), String> {
    match errors {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// Go's text of a number that is none.
fn number(field: &str, value: &str, errors: &mut Vec<String>) -> Option<i64> {
    let parsed = value.parse();
    if parsed.is_err() {
        let why = format!("strconv.Atoi: parsing {value:?}: invalid syntax");
        errors.push(invalid(field, value, &why));
    }
    parsed.ok()
}

impl LogQuery {
    /// Reads the parameters of a request.
    ///
    /// # Errors
    /// The status and text that upstream answers.
    pub fn parse(query: &Query, logs: &Path) -> Result<Asked, (StatusCode, String)> {
        let mut asked = Self::default();
        let mut errors = Vec::new();
        for name in query.all("query") {
            // A slash is a hint that a file is meant.
            if name.contains(['/', '\\']) {
                asked.files.push(name.replace('\\', "/"));
            } else if !name.trim().is_empty() {
                asked.services.push(name.to_owned());
            }
        }
        let named = !asked.files.is_empty() || !asked.services.is_empty();
        if query.first("query").is_some() && !named {
            errors.push(invalid("query", query.all("query").collect::<Vec<_>>(), "query cannot be empty"));
        }
        let value = |name: &str| query.first(name).filter(|value| !value.is_empty());
        let time = |name: &str, errors: &mut Vec<String>| -> Option<Timestamp> {
            let parsed = value(name)?.parse().ok();
            if parsed.is_none() {
                errors.push(invalid(name, value(name).unwrap_or_default(), "invalid time format"));
            }
            parsed
        };
        asked.since = time("sinceTime", &mut errors);
        asked.until = time("untilTime", &mut errors);
        asked.boot = value("boot").and_then(|boot| number("boot", boot, &mut errors));
        asked.lines = value("tailLines").and_then(|lines| number("tailLines", lines, &mut errors));
        asked.pattern = value("pattern").unwrap_or_default().to_owned();
        all(&errors).map_err(|text| (StatusCode::BAD_REQUEST, text))?;
        if asked == Self::default() {
            return Ok(Asked::Path);
        }
        asked.validate(logs).map_err(|text| (StatusCode::NOT_ACCEPTABLE, text))?;
        Ok(match asked.files.pop() {
            Some(file) => Asked::File(file),
            None => Asked::Services(asked),
        })
    }

    fn has_options(&self) -> bool {
        let without = Self { services: self.services.clone(), files: self.files.clone(), ..Self::default() };
        *self != without
    }

    fn validate(&self, logs: &Path) -> Result<(), String> {
        let mut errors = Vec::new();
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
        for service in &self.services {
            if service.len() > MAX_NAME {
                let why = format!("length must be less than {MAX_NAME}");
                errors.push(invalid("query", service, &why));
            } else if !service.chars().all(safe) {
                errors.push(invalid("query", service, "input contains unsupported characters"));
            }
        }
        if self.services.len() > MAX_SERVICES {
            let count = self.services.len();
            errors.push(format!("query: Too many: {count}: must have at most {MAX_SERVICES} items"));
        }
        match (self.files.as_slice(), self.services.as_slice()) {
            ([], []) => errors.push("query: Required value: cannot be empty with options".into()),
            ([_, ..], [_, ..]) => {
                let both = format!("[{}], [{}]", self.files.join(" "), self.services.join(" "));
                errors.push(invalid("query", both, "cannot specify a file and service"));
            }
            ([_, _, ..], []) => {
                errors.push(invalid("query", &self.files, "cannot specify more than one file"));
            }
            ([_], []) if self.has_options() => {
                errors.push(invalid("query", &self.files, "cannot specify file with options"));
            }
            ([file], []) if inside(logs, file).is_none() => {
                errors.push(invalid("query", &self.files, "no such file or directory"));
            }
            _ => {}
        }
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since > until
        {
            errors.push(invalid("untilTime", until.to_string(), "must be after `sinceTime`"));
        }
        if let Some(boot) = self.boot.filter(|boot| *boot > 0) {
            errors.push(format!("boot: Invalid value: {boot}: must be less than 1"));
        }
        if let Some(lines) = self.lines.filter(|lines| !(0..=MAX_LINES).contains(lines)) {
            errors.push(format!(
                "tailLines: Invalid value: {lines}: must be between 0 and {MAX_LINES}, inclusive"
            ));
        }
        all(&errors)
    }

    /// Arguments of journalctl.
    fn arguments(&self, services: &[String]) -> Vec<String> {
        let at = |time: Timestamp| time.strftime("%Y-%-m-%-d %-H:%-M:%-S").to_string();
        let mut arguments = vec!["--utc".to_owned(), "--no-pager".to_owned()];
        arguments.extend(self.since.map(|time| format!("--since={}", at(time))));
        arguments.extend(self.until.map(|time| format!("--until={}", at(time))));
        if let Some(lines) = self.lines {
            arguments.extend(["--pager-end".to_owned(), format!("--lines={lines}")]);
        }
        arguments.extend(services.iter().map(|service| format!("--unit={service}")));
        if !self.pattern.is_empty() {
            arguments.extend([format!("--grep={}", self.pattern), "--case-sensitive=false".to_owned()]);
        }
        if let Some(boot) = self.boot {
            arguments.extend(["--boot".to_owned(), boot.to_string()]);
        }
        arguments.push("--output=short-precise".to_owned());
        arguments
    }

    /// The logs of the services: from the journal, or, of those that it does not know, from files below `logs`.
    pub async fn answer(self, logs: PathBuf) -> Answer {
        let units = journal(&["--field".to_owned(), "_SYSTEMD_UNIT".to_owned()]).await.unwrap_or_default();
        let units = String::from_utf8_lossy(&units).into_owned();
        let (native, by_file): (Vec<String>, Vec<String>) =
            self.services.iter().cloned().partition(|name| units.contains(&format!("{name}.service")));
        let bytes = if by_file.is_empty() {
            match journal(&self.arguments(&native)).await {
                Ok(bytes) => bytes,
                Err(_) => b"\nerror: journal output not available\n".to_vec(),
            }
        } else if self.has_options() {
            let list = by_file.join(" ");
            format!(
                "\noptions present and query resolved to log files for [{list}]\ntry without specifying options\n"
            )
            .into_bytes()
        } else {
            let read = tokio::task::spawn_blocking(move || files(&logs, &by_file));
            read.await.unwrap_or_default()
        };
        typed(StatusCode::OK, "text/plain;charset=UTF-8", bytes)
    }
}

/// What journalctl says.
async fn journal(arguments: &[String]) -> std::io::Result<Vec<u8>> {
    let mut command = Command::new("journalctl");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn()?;
    let mut bytes = Vec::new();
    let read = async {
        if let Some(out) = child.stdout.take() {
            out.take(MAX_ANSWER).read_to_end(&mut bytes).await?;
        }
        child.wait().await
    };
    // What came until then is the answer.
    if let Ok(ended) = tokio::time::timeout(PATIENCE, read).await {
        ended?;
    }
    Ok(bytes)
}

/// A path below a directory that no link leads out of.
fn inside(dir: &Path, path: &str) -> Option<PathBuf> {
    let (dir, full) = (dir.canonicalize().ok()?, dir.join(path.trim_start_matches('/')).canonicalize().ok()?);
    full.starts_with(dir).then_some(full)
}

/// Each service's file: of its name, with `.log`, or that in a directory of its name.
fn files(logs: &Path, services: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for service in services {
        let names = [service.clone(), format!("{service}.log"), format!("{service}/{service}.log")];
        let found = names.iter().find_map(|name| inside(logs, name).filter(|path| path.is_file()));
        let Some(found) = found else {
            bytes.extend(format!("\nlog not found for {service}\n").into_bytes());
            continue;
        };
        if let Err(error) = File::open(&found).and_then(|f| f.take(MAX_ANSWER).read_to_end(&mut bytes)) {
            bytes.extend(format!("\nerror getting log for {service}: {error}\n").into_bytes());
        }
    }
    bytes
}

/// The answer to a query that cannot be.
pub fn refused((code, why): (StatusCode, String)) -> Answer {
    text(code, format!("{why}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str, logs: &Path) -> Result<Asked, (u16, String)> {
        LogQuery::parse(&Query::parse(query), logs).map_err(|(code, text)| (code.as_u16(), text))
    }

    #[test]
    fn what_may_be_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.log"), "x").unwrap();
        let parse = |query: &str| parse(query, dir.path());
        assert_eq!(parse(""), Ok(Asked::Path));
        assert_eq!(parse("query=/a.log"), Ok(Asked::File("/a.log".into())));
        let error = |query: &str| parse(query).unwrap_err();
        assert_eq!(
            error("query=+"),
            (400, "query: Invalid value: [\" \"]: query cannot be empty".to_owned())
        );
        assert_eq!(
            error("tailLines=3"),
            (406, "query: Required value: cannot be empty with options".to_owned())
        );
        assert_eq!(error("query=a&sinceTime=x").1, "sinceTime: Invalid value: \"x\": invalid time format");
        assert_eq!(error("query=/../a.log").0, 406);
        assert_eq!(
            error("query=a%3Bb").1,
            "query: Invalid value: \"a;b\": input contains unsupported characters"
        );
        assert_eq!(error("query=a&boot=1").1, "boot: Invalid value: 1: must be less than 1");
        assert_eq!(
            error("query=a&query=/a.log").1.split(": ").last().unwrap(),
            "cannot specify a file and service"
        );
        assert_eq!(
            error("query=a&query=b&query=c&query=d&query=e").1,
            "query: Too many: 5: must have at most 4 items"
        );
        let Ok(Asked::Services(asked)) =
            parse("query=kubelet&query=ssh&tailLines=5&boot=-1&pattern=x.*y&sinceTime=2026-01-02T03:04:05Z")
        else {
            panic!("services");
        };
        assert_eq!(
            asked.arguments(&asked.services),
            [
                "--utc",
                "--no-pager",
                "--since=2026-1-2 3:4:5",
                "--pager-end",
                "--lines=5",
                "--unit=kubelet",
                "--unit=ssh",
                "--grep=x.*y",
                "--case-sensitive=false",
                "--boot",
                "-1",
                "--output=short-precise",
            ]
        );
    }

    #[test]
    fn services_that_log_to_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("a.log"), "of a\n").unwrap();
        std::fs::write(dir.path().join("b/b.log"), "of b\n").unwrap();
        let services = ["a", "b", "c"].map(str::to_owned);
        let text = String::from_utf8(files(dir.path(), &services)).unwrap();
        assert_eq!(text, "of a\nof b\n\nlog not found for c\n");
    }
}
