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

/// How Go words a malformed integer.
fn go_error(error: &std::num::ParseIntError) -> &'static str {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    match error.kind() {
        PosOverflow | NegOverflow => "value out of range",
        _ => "invalid syntax",
    }
}

/// Reads a resourceVersion; the empty one is 0.
///
/// # Errors
/// The text of upstream's versioner.
pub fn resource_version(text: &str) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    // No sign is allowed, not even `+`.
    let parsed = if text.starts_with('+') { "+".parse() } else { text.parse::<u64>() };
    match parsed {
        Ok(version) => Ok(i64::try_from(version).unwrap_or(i64::MAX)),
        Err(error) => Err(format!(
            "resourceVersion: Invalid value: {0}: strconv.ParseUint: parsing {0}: {1}",
            quote(text),
            go_error(&error)
        )),
    }
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

    /// A boolean as upstream's conversion reads it: present and neither `0` nor `false` in any case.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    /// An integer; a malformed one (the empty one, too) is a 400.
    pub fn int(&self, key: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|error: std::num::ParseIntError| {
            ApiError::bad_request(format!("strconv.ParseInt: parsing {}: {}", quote(text), go_error(&error)))
        })
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
        // Upstream converts the numbers first, then the selectors.
        let timeout = query.int("timeoutSeconds")?;
        let limit = query.int("limit")?.unwrap_or(0);
        let labels = LabelSelector::parse(query.text("labelSelector"))?;
        let fields = FieldSelector::parse(query.text("fieldSelector"))?;
        let send_initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let matching = query.text("resourceVersionMatch");
        let version = query.text("resourceVersion");
        let continue_token = query.text("continue");
        let errors = if watch {
            watch_errors(send_initial_events, matching, continue_token)
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

fn watch_errors(initial: Option<bool>, matching: &str, token: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    if initial.is_some() && matching != "NotOlderThan" {
        out.push(FieldError::forbidden(
            MATCH,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if !matching.is_empty() {
        if initial.is_none() {
            out.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if matching != "NotOlderThan" {
            out.push(FieldError::not_supported(MATCH, matching, &["NotOlderThan"]));
        }
        if !token.is_empty() {
            out.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
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
    /// The old way to say it, when it was used.
    pub orphan_dependents: Option<bool>,
    /// UID the object must have.
    pub uid: Option<String>,
    /// resourceVersion the object must have.
    pub resource_version: Option<String>,
    /// Only pretend.
    pub dry_run: bool,
}

/// What is wrong with the values of `dryRun`: anything but `All`.
pub fn dry_run_error(values: &[&str]) -> Option<FieldError> {
    let wrong = values.iter().any(|v| *v != "All");
    wrong.then(|| FieldError::not_supported("dryRun", serde_json::Value::from(values), &["All"]))
}

/// Options of every write but a deletion: `CreateOptions`, `UpdateOptions` and `PatchOptions`.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Only pretend.
    pub dry_run: bool,
    /// What becomes of unknown and repeated fields.
    pub validation: crate::machinery::FieldValidation,
    /// `fieldManager` as given, may be empty.
    pub manager: String,
    /// Server-side apply takes fields that others own.
    pub force: bool,
}

/// Longest name of a field manager, in bytes.
pub const MAX_FIELD_MANAGER: usize = 128;

impl WriteOptions {
    /// Reads and checks the options of a create or an update; `kind` names them in errors.
    ///
    /// # Errors
    /// 422 with every wrong option.
    pub fn parse(query: &Query, kind: &str) -> Result<Self, ApiError> {
        Self::checked(query, kind, Vec::new())
    }

    /// Reads and checks the options of a patch.
    ///
    /// # Errors
    /// 422 with every wrong option.
    pub fn of_patch(query: &Query, patch: crate::machinery::PatchKind) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        if patch == crate::machinery::PatchKind::Apply {
            if query.text("fieldManager").is_empty() {
                errors.push(FieldError::required("fieldManager", "is required for apply patch"));
            }
        } else if query.get("force").is_some() {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
        Self::checked(query, "PatchOptions", errors)
    }

    fn checked(query: &Query, kind: &str, mut errors: Vec<FieldError>) -> Result<Self, ApiError> {
        let manager = query.text("fieldManager");
        errors.extend(field_manager_errors("fieldManager", manager));
        let dry: Vec<&str> = query.all("dryRun").collect();
        errors.extend(dry_run_error(&dry));
        let validation = match crate::codec::FieldValidation::parse(query.get("fieldValidation")) {
            Ok(validation) => validation,
            Err(other) => {
                let known = ["", "Ignore", "Strict", "Warn"];
                errors.push(FieldError::not_supported("fieldValidation", other, &known));
                crate::codec::FieldValidation::default()
            }
        };
        if !errors.is_empty() {
            return Err(ApiError::invalid("meta.k8s.io", kind, "", &errors));
        }
        Ok(WriteOptions {
            dry_run: !dry.is_empty(),
            validation,
            manager: manager.to_owned(),
            force: query.flag("force"),
        })
    }
}

/// What is wrong with the name of a field manager.
pub fn field_manager_errors(path: &str, manager: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if manager.len() > MAX_FIELD_MANAGER {
        errors.push(FieldError::too_long(path, MAX_FIELD_MANAGER));
    }
    for (at, c) in manager.char_indices().filter(|(_, c)| !is_printable(*c)) {
        let detail = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
        errors.push(FieldError::invalid(path, manager, detail));
    }
    errors
}

/// Go's `unicode.IsPrint`: everything but control and format characters, private use, and white space other than the
/// space.
pub fn is_printable(c: char) -> bool {
    let format = matches!(u32::from(c), 0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f
        | 0x202a..=0x202e | 0x2060..=0x206f | 0xe000..=0xf8ff | 0xfeff | 0xfff0..=0xfffb | 0xe0000..);
    !c.is_control() && !format && (c == ' ' || !c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_as_go_reads_them() {
        assert_eq!(resource_version(""), Ok(0));
        assert_eq!(resource_version("7"), Ok(7));
        assert_eq!(resource_version("18446744073709551615"), Ok(i64::MAX));
        let error = |text: &str, why: &str| {
            Err(format!(
                "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: {why}"
            ))
        };
        assert_eq!(resource_version("abc"), error("abc", "invalid syntax"));
        assert_eq!(resource_version("-1"), error("-1", "invalid syntax"));
        assert_eq!(resource_version("+1"), error("+1", "invalid syntax"));
        assert_eq!(
            resource_version("18446744073709551616"),
            error("18446744073709551616", "value out of range")
        );
    }

    #[test]
    fn numbers_come_before_selectors() {
        let message = |text: &str| {
            ListOptions::parse(&Query::parse(text), false).map(|_| ()).map_err(|e| e.message().to_owned())
        };
        let bad = |text: &str, why: &str| Err(format!("strconv.ParseInt: parsing {text:?}: {why}"));
        assert_eq!(message("labelSelector=a%3D%3D%3Db&limit=x"), bad("x", "invalid syntax"));
        assert_eq!(message("limit=99999999999999999999"), bad("99999999999999999999", "value out of range"));
        assert_eq!(message("timeoutSeconds="), bad("", "invalid syntax"));
        assert_eq!(message("limit=-1"), Ok(()));
    }

    #[test]
    fn flags() {
        let flag = |text: &str| Query::parse(text).flag("watch");
        assert!(flag("watch") && flag("watch=1") && flag("watch=no") && flag("watch=f"));
        assert!(!flag("") && !flag("watch=0") && !flag("watch=FALSE") && !flag("watch=false"));
    }

    proptest! {
        #[test]
        fn no_query_panics(text in ".{0,120}", watch in any::<bool>()) {
            let query = Query::parse(&text);
            let _ = ListOptions::parse(&query, watch);
            let _ = resource_version(&text);
        }
    }
}
