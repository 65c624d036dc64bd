//! Query options.

use crate::error::{ApiError, FieldError, quote};
use crate::selector::{FieldSelector, LabelSelector};

/// Decodes `%41` (and `+` in queries); broken escapes stay as they are.
pub fn percent_decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|b| (*b as char).to_digit(16));
        match byte {
            b'%' => match (hex(1), hex(2)) {
                (Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    at += 2;
                }
                _ => out.push(byte),
            },
            b'+' if plus => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// A parsed query string.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `a=b&c`.
    pub fn parse(text: &str) -> Self {
        Query(
            text.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (percent_decode(key, true), percent_decode(value, true))
                })
                .collect(),
        )
    }

    /// First value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All values of a key.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// First value of a key, empty when absent.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    /// A boolean as upstream reads it: present and not `0` or `false` (an empty value is false too for `watch`).
    pub fn flag(&self, key: &str) -> bool {
        !matches!(self.get(key), None | Some("0" | "false" | "False" | "FALSE" | "f" | "F"))
    }

    /// An integer; a malformed one is a 400.
    pub fn int(&self, key: &str) -> Result<Option<i64>, ApiError> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", quote(text)))
            }),
        }
    }
}

/// `resourceVersionMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    /// At least as new.
    NotOlderThan,
    /// Exactly this one.
    Exact,
}

/// Options of list, watch and deletecollection.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Label selector.
    pub labels: LabelSelector,
    /// Field selector.
    pub fields: FieldSelector,
    /// At most this many items; 0 is all.
    pub limit: usize,
    /// Token of a previous page.
    pub continue_token: String,
    /// Version as given, may be empty.
    pub resource_version: String,
    /// How the version is meant.
    pub version_match: Option<VersionMatch>,
    /// Watch: begin with the present objects and a bookmark.
    pub send_initial_events: Option<bool>,
    /// Watch: bookmarks are welcome.
    pub bookmarks: bool,
    /// Seconds until the answer ends.
    pub timeout_seconds: Option<u64>,
}

impl ListOptions {
    /// Parses and checks, as upstream's `ListOptions` validation does.
    pub fn parse(query: &Query, watch: bool) -> Result<Self, ApiError> {
        let labels = LabelSelector::parse(query.text("labelSelector"))?;
        let fields = FieldSelector::parse(query.text("fieldSelector"))?;
        let timeout = query.int("timeoutSeconds")?;
        let limit = query.int("limit")?.unwrap_or(0);
        let send_initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let matching = query.text("resourceVersionMatch");
        let version = query.text("resourceVersion");
        let continue_token = query.text("continue");
        let errors = if watch {
            watch_errors(send_initial_events, matching)
        } else {
            list_errors(send_initial_events, matching, version, continue_token)
        };
        if !errors.is_empty() {
            return Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", &errors));
        }
        Ok(ListOptions {
            labels,
            fields,
            limit: usize::try_from(limit).unwrap_or(0),
            continue_token: continue_token.to_owned(),
            resource_version: version.to_owned(),
            version_match: match matching {
                "Exact" => Some(VersionMatch::Exact),
                "NotOlderThan" => Some(VersionMatch::NotOlderThan),
                _ => None,
            },
            send_initial_events,
            bookmarks: query.flag("allowWatchBookmarks"),
            timeout_seconds: timeout.and_then(|t| u64::try_from(t).ok()).filter(|t| *t > 0),
        })
    }
}

const MATCH: &str = "resourceVersionMatch";

fn watch_errors(initial: Option<bool>, matching: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    if initial.is_some() {
        if matching != "NotOlderThan" {
            out.push(FieldError::forbidden(
                MATCH,
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if !matching.is_empty() && matching != "NotOlderThan" {
            out.push(FieldError::not_supported(MATCH, matching, &["NotOlderThan"]));
        }
    } else if !matching.is_empty() {
        out.push(FieldError::forbidden(
            MATCH,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ));
    }
    out
}

fn list_errors(initial: Option<bool>, matching: &str, version: &str, token: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    if !matching.is_empty() {
        if version.is_empty() {
            out.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !token.is_empty() {
            out.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            out.push(FieldError::not_supported(MATCH, matching, &["Exact", "NotOlderThan", ""]));
        }
        if matching == "Exact" && version == "0" {
            out.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    if initial.is_some() {
        out.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    out
}

/// What happens to dependents of a deleted object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Dependents are collected afterwards.
    Background,
    /// Dependents first.
    Foreground,
    /// Dependents stay.
    Orphan,
}

/// Options of a deletion.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds the object may take to end.
    pub grace_period: Option<i64>,
    /// Dependents.
    pub propagation: Option<Propagation>,
    /// UID the object must have.
    pub uid: Option<String>,
    /// resourceVersion the object must have.
    pub resource_version: Option<String>,
    /// Only pretend.
    pub dry_run: bool,
}

/// `dryRun` values of a kind of options; anything but `All` is a 422.
pub fn dry_run<'a>(values: impl Iterator<Item = &'a str>, kind: &str) -> Result<bool, ApiError> {
    let values: Vec<&str> = values.filter(|v| !v.is_empty()).collect();
    if values.iter().all(|v| *v == "All") {
        return Ok(!values.is_empty());
    }
    let shown = serde_json::Value::from(values);
    let error = FieldError::not_supported("dryRun", shown, &["All"]);
    Err(ApiError::invalid("meta.k8s.io", kind, "", &[error]))
}

/// How unknown and duplicate fields are treated.
pub fn field_validation(query: &Query, kind: &str) -> Result<crate::machinery::FieldValidation, ApiError> {
    use crate::machinery::FieldValidation as V;
    match query.text("fieldValidation") {
        "" | "Warn" => Ok(V::Warn),
        "Strict" => Ok(V::Strict),
        "Ignore" => Ok(V::Ignore),
        other => {
            let error =
                FieldError::not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]);
            Err(ApiError::invalid("meta.k8s.io", kind, "", &[error]))
        }
    }
}
