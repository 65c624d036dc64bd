//! /healthz, /livez, /readyz with their single checks, and /version.

use super::Core;
use crate::error::quote;
use crate::handlers::Reply;
use crate::request::{Accepted, Query};
use http::header::{self, HeaderValue};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a check looks at.
#[derive(Clone, Copy)]
enum Subject {
    /// The server answers.
    Process,
    /// The store.
    Store,
    /// The first objects.
    Bootstrap,
    /// The server goes on.
    Shutdown,
}

/// Checks by upstream's names, with whether only readiness has them.
const CHECKS: &[(&str, bool, Subject)] = &[
    ("ping", false, Subject::Process),
    ("log", false, Subject::Process),
    ("etcd", false, Subject::Store),
    ("etcd-readiness", true, Subject::Store),
    ("informer-sync", true, Subject::Bootstrap),
    ("poststarthook/start-system-namespaces-controller", false, Subject::Bootstrap),
    ("poststarthook/rbac/bootstrap-roles", false, Subject::Bootstrap),
    ("poststarthook/scheduling/bootstrap-system-priority-classes", false, Subject::Bootstrap),
    ("poststarthook/start-kubernetes-service-cidr-controller", false, Subject::Bootstrap),
    ("shutdown", true, Subject::Shutdown),
];

const ENDPOINTS: [&str; 3] = ["healthz", "livez", "readyz"];

struct Check {
    name: &'static str,
    failure: Option<String>,
}

/// Whether the path is a health path, whose answer needs [`store`].
pub(super) fn is_health(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    ENDPOINTS.contains(&first)
}

fn checks(endpoint: &str) -> impl Iterator<Item = &'static (&'static str, bool, Subject)> {
    let ready = endpoint == "readyz";
    CHECKS.iter().filter(move |(_, only_ready, _)| ready || !only_ready)
}

/// Paths that this module, the metrics and the documents answer, for the list at `/`.
pub(crate) fn paths() -> Vec<String> {
    let others = [
        "/.well-known/openid-configuration",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/openid/v1/jwks",
        "/version",
    ];
    let mut out: Vec<String> = others.map(str::to_owned).into();
    for endpoint in ENDPOINTS {
        out.push(format!("/{endpoint}"));
        out.extend(checks(endpoint).map(|(name, ..)| format!("/{endpoint}/{name}")));
    }
    out
}

/// Answers a health path or the version; `None` for others. `store` is why the store fails, if it does.
pub(super) fn serve(core: &Core, path: &str, query: &Query, store: Option<&str>) -> Option<Reply> {
    if path == "/version" || path == "/version/" {
        return Some(Reply::value(200, &version(), Accepted { pretty: true, ..Accepted::JSON }));
    }
    let path = path.strip_prefix('/')?;
    let (endpoint, single) = path.split_once('/').unwrap_or((path, ""));
    if !ENDPOINTS.contains(&endpoint) {
        return None;
    }
    let failure = |subject: Subject| match subject {
        Subject::Process => None,
        Subject::Store => store.map(str::to_owned),
        Subject::Bootstrap => (!core.started.load(Ordering::Acquire)).then(|| "not finished".to_owned()),
        Subject::Shutdown => core.shutdown.is_cancelled().then(|| "process is shutting down".to_owned()),
    };
    let mut checks = checks(endpoint).map(|(name, _, subject)| Check { name, failure: failure(*subject) });
    if single.is_empty() {
        return Some(summary(endpoint, checks.collect(), query));
    }
    let check = checks.find(|c| c.name == single)?;
    Some(match check.failure {
        None => text(200, "ok".to_owned()),
        Some(why) => text(500, format!("internal server error: {why}\n")),
    })
}

/// Why a subject is not well, if it is not.
fn failure(core: &Core, subject: Subject, store: Option<&str>) -> Option<String> {
    match subject {
        Subject::Process => None,
        Subject::Store => store.map(str::to_owned),
        Subject::Bootstrap => (!core.started.load(Ordering::Acquire)).then(|| "not finished".to_owned()),
        Subject::Shutdown => core.shutdown.is_cancelled().then(|| "process is shutting down".to_owned()),
    }
}

/// Every check of every endpoint: name, endpoint, whether it is well.
pub(super) fn states(core: &Core, store: Option<&str>) -> Vec<(&'static str, &'static str, bool)> {
    let of = |endpoint: &'static str| {
        checks(endpoint)
            .map(move |(name, _, subject)| (*name, endpoint, failure(core, *subject, store).is_none()))
    };
    ENDPOINTS.into_iter().flat_map(of).collect()
}

fn text(code: u16, body: String) -> Reply {
    let mut reply = Reply::text(code, body);
    reply.set(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// The answer about all checks: a word, or a line for each when asked for or when one fails.
fn summary(endpoint: &str, checks: Vec<Check>, query: &Query) -> Reply {
    let mut unknown: Vec<&str> = query.all("exclude").collect();
    unknown.sort_unstable();
    unknown.dedup();
    let excluded = unknown.clone();
    let (mut out, mut failed) = (String::new(), false);
    for check in &checks {
        if excluded.contains(&check.name) {
            unknown.retain(|name| *name != check.name);
            out.push_str(&format!("[+]{} excluded: ok\n", check.name));
            continue;
        }
        match &check.failure {
            None => out.push_str(&format!("[+]{} ok\n", check.name)),
            Some(why) => {
                tracing::debug!(check = check.name, %why, "a health check failed");
                // Everyone may ask: the reason is for those who may ask for the single check.
                out.push_str(&format!("[-]{} failed: reason withheld\n", check.name));
                failed = true;
            }
        }
    }
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.iter().map(|name| quote(name)).collect();
        let names = names.join(",");
        out.push_str(&format!("warn: some health checks cannot be excluded: no matches for {names}\n"));
    }
    if failed {
        return text(500, format!("{out}{endpoint} check failed\n"));
    }
    if query.get("verbose").is_none() {
        return text(200, "ok".to_owned());
    }
    text(200, format!("{out}{endpoint} check passed\n"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, failure: Option<&str>) -> Check {
        Check { name, failure: failure.map(str::to_owned) }
    }

    fn body(reply: Reply) -> (u16, String) {
        let crate::handlers::ReplyBody::Full(bytes) = reply.body else { panic!("a stream") };
        (reply.code, String::from_utf8(bytes.to_vec()).expect("text"))
    }

    #[test]
    fn summaries_as_upstream_words_them() {
        let all = || vec![check("ping", None), check("etcd", None)];
        assert_eq!(body(summary("livez", all(), &Query::default())), (200, "ok".to_owned()));
        let verbose = Query::parse("verbose&exclude=etcd&exclude=no");
        let text = "[+]ping ok\n[+]etcd excluded: ok\nwarn: some health checks cannot be excluded: no matches for \
                    \"no\"\nlivez check passed\n";
        assert_eq!(body(summary("livez", all(), &verbose)), (200, text.to_owned()));
        let broken = || vec![check("ping", None), check("etcd", Some("secret"))];
        let text = "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n";
        assert_eq!(body(summary("readyz", broken(), &Query::default())), (500, text.to_owned()));
        assert_eq!(body(summary("readyz", broken(), &Query::parse("exclude=etcd"))).0, 200);
    }

    #[test]
    fn single_checks_have_paths() {
        let paths = paths();
        for path in ["/readyz/etcd-readiness", "/livez/ping", "/healthz/poststarthook/rbac/bootstrap-roles"] {
            assert!(paths.iter().any(|p| p == path), "{path}");
        }
        assert!(!paths.iter().any(|p| p == "/livez/shutdown"));
    }
}
