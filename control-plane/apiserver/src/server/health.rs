//! /healthz, /livez, /readyz and /version.

use super::Core;
use crate::handlers::Reply;
use crate::request::{Accepted, Query};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

struct Check {
    name: &'static str,
    failure: Option<String>,
}

/// Whether the path is a health path, whose answer needs [`store`].
pub(super) fn is_health(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    matches!(first, "healthz" | "livez" | "readyz")
}

/// Answers a health path or the version; `None` for others. `store` is why the store fails, if it does.
pub(super) fn serve(core: &Core, path: &str, query: &Query, store: Option<String>) -> Option<Reply> {
    if path == "/version" || path == "/version/" {
        return Some(Reply::value(200, &version(), Accepted { pretty: true, ..Accepted::JSON }));
    }
    let (endpoint, single) = path.strip_prefix('/')?.split_once('/').unwrap_or((path.strip_prefix('/')?, ""));
    if !matches!(endpoint, "healthz" | "livez" | "readyz") {
        return None;
    }
    let mut checks = vec![Check { name: "ping", failure: None }, Check { name: "log", failure: None }];
    checks.push(Check { name: "etcd", failure: store });
    if endpoint == "readyz" {
        let failure = core.shutdown.is_cancelled().then(|| "process is shutting down".to_owned());
        checks.push(Check { name: "shutdown", failure });
    }
    if !single.is_empty() {
        let check = checks.into_iter().find(|c| c.name == single)?;
        return Some(match check.failure {
            None => Reply::text(200, "ok"),
            Some(why) => Reply::text(500, format!("internal server error: {why}\n")),
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    checks.retain(|c| !excluded.contains(&c.name));
    let failed = checks.iter().any(|c| c.failure.is_some());
    if !failed && query.get("verbose").is_none() {
        return Some(Reply::text(200, "ok"));
    }
    let mut text: String = checks
        .iter()
        .map(|c| match &c.failure {
            None => format!("[+]{} ok\n", c.name),
            Some(_) => format!("[-]{} failed: reason withheld\n", c.name),
        })
        .collect();
    text.push_str(&format!("{endpoint} check {}\n", if failed { "failed" } else { "passed" }));
    Some(Reply::text(if failed { 500 } else { 200 }, text))
}

/// Why the store does not work, if it does not.
pub(super) async fn store(core: Arc<Core>) -> Option<String> {
    let mut request = kelp_store::RangeRequest::key("/registry/health");
    request.count_only = true;
    match tokio::time::timeout(Duration::from_secs(2), core.store.range(request)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("the store does not answer".to_owned()),
    }
}

fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": "v1.36.0+kelp", "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", architecture()),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
