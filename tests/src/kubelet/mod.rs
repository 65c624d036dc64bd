//! Pods recorded under the real kubelet, replayed on a sandbox cluster and compared.
//!
//! `../shared/data/kubernetes-1.36/kubelet-cases.json` says in its `format` how to read a recording.

mod compare;
mod images;
mod node;
mod observe;
mod run;
mod special;

pub use images::{BUSYBOX, import as import_images};
pub use run::{Runner, run_all};

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// Namespace of the recordings.
pub const NAMESPACE: &str = "cases";

/// One recording.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name, which is the pod's.
    pub name: String,
    /// What it is about.
    pub area: String,
    /// The whole recording.
    pub record: Value,
}

impl Case {
    /// A list of the recording; empty when it is absent.
    pub fn list(&self, key: &str) -> &[Value] {
        self.record[key].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// It changes the node, or the namespace, for others, or needs it for itself.
    pub fn is_exclusive(&self) -> bool {
        const NODE: [&str; 10] = [
            // Services of the one are in the environment of the other.
            "env-services",
            "env-services-no-links",
            "cordoned",
            "taint-no-schedule",
            "kubelet-restart-exits",
            "resize-deferred",
            "node-object",
            "kubelet-endpoints",
            "port-forward",
            "out-of-memory",
        ];
        NODE.contains(&self.name.as_str())
    }
}

/// Reads the recordings whose name or area contains one of `selection`'s words; all of them when it is empty.
///
/// # Errors
/// The file cannot be read.
pub fn load(file: &Path, selection: &str) -> Result<Vec<Case>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let document: Value = serde_json::from_str(&text).context("parse the recordings")?;
    let words: Vec<&str> = selection.split([',', ' ']).filter(|w| !w.is_empty()).collect();
    let mut cases = Vec::new();
    for record in document["cases"].as_array().into_iter().flatten() {
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let case = Case { name: text("name"), area: text("area"), record: record.clone() };
        if words.is_empty() || words.iter().any(|w| case.name == *w || case.area == *w || glob(w, &case.name))
        {
            cases.push(case);
        }
    }
    Ok(cases)
}

/// Whether `text` matches `pattern`, in which `*` stands for any text.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "abd", false),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*b*", "abc", true),
            ("a*b*c", "axxbyyc", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
