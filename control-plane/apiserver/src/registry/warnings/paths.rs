//! Files of one volume that are in each other's way.

use super::MOST;
use crate::error::quote;
use crate::object::{get, list_at, str_at};
use serde_json::Value;
use std::collections::HashMap;

/// Paths seen so far, to find those that are equal to another one, above it or below it.
#[derive(Default)]
struct Seen {
    all: Vec<(String, String)>,
    at: HashMap<String, Vec<usize>>,
    below: HashMap<String, Vec<usize>>,
}

impl Seen {
    /// Adds a path of a source; the earlier ones it overlaps, in their order, as warnings show both.
    fn add(&mut self, path: &str, source: &str) -> Vec<String> {
        let path = path.trim_end_matches('/');
        if path.is_empty() {
            return Vec::new();
        }
        let above = || path.match_indices('/').map(|(i, _)| path.get(..i).unwrap_or_default());
        let mut found: Vec<usize> =
            above().chain([path]).filter_map(|p| self.at.get(p)).flatten().copied().collect();
        found.extend(self.below.get(path).into_iter().flatten());
        found.sort_unstable();
        let shown = |(path, source): &(String, String)| match source.as_str() {
            "" => quote(path),
            source => format!("{} ({source})", quote(path)),
        };
        let this = (path.to_owned(), source.to_owned());
        let out = found
            .iter()
            .filter_map(|i| self.all.get(*i))
            .take(MOST)
            .map(|other| format!("{} with {}", shown(&this), shown(other)))
            .collect();
        // One that was there already has the warnings it will cause told.
        if !found.iter().any(|i| self.all.get(*i) == Some(&this)) {
            let index = self.all.len();
            for p in above().filter(|p| !p.is_empty()) {
                self.below.entry(p.to_owned()).or_default().push(index);
            }
            self.at.entry(path.to_owned()).or_default().push(index);
            self.all.push(this);
        }
        out
    }
}

fn paths(items: &[Value]) -> impl Iterator<Item = &str> {
    items.iter().map(|item| str_at(item, &["path"]))
}

/// What a projected volume takes its files from: the name warnings show, and the paths.
fn projected(source: &Value) -> (String, Vec<&str>) {
    let named = |kind: &str, name: &str| format!("{kind} {}", quote(name));
    let with_items = |member: &str| {
        let from = source.get(member)?;
        from.get("items").filter(|items| items.is_array())?;
        Some((from, paths(list_at(from, &["items"])).collect()))
    };
    let single = |member: &str| source.get(member).filter(|v| v.is_object());
    if let Some((from, paths)) = with_items("configMap") {
        (named("ConfigMap", str_at(from, &["name"])), paths)
    } else if let Some((from, paths)) = with_items("secret") {
        (named("Secret", str_at(from, &["name"])), paths)
    } else if let Some((_, paths)) = with_items("downwardAPI") {
        ("DownwardAPI".to_owned(), paths)
    } else if let Some(token) = single("serviceAccountToken") {
        ("ServiceAccountToken".to_owned(), vec![str_at(token, &["path"])])
    } else if let Some(bundle) = single("clusterTrustBundle") {
        let name = get(bundle, &["name"]).or_else(|| get(bundle, &["signerName"])).and_then(Value::as_str);
        (named("ClusterTrustBundle", name.unwrap_or_default()), vec![str_at(bundle, &["path"])])
    } else {
        (String::new(), Vec::new())
    }
}

fn tell(volume: &str, of: &str, overlaps: Vec<String>, out: &mut Vec<String>) {
    let room = MOST.saturating_sub(out.len());
    let told = overlaps.into_iter().take(room);
    out.extend(told.map(|overlap| format!("volume {volume} ({of}): overlapping paths: {overlap}")));
}

/// Warns about overlapping files of volumes.
pub(super) fn warn(volumes: &[Value], out: &mut Vec<String>) {
    for volume in volumes {
        let name = quote(str_at(volume, &["name"]));
        for (member, kind, named) in [
            ("configMap", "ConfigMap", "name"),
            ("secret", "Secret", "secretName"),
            ("downwardAPI", "DownwardAPI", ""),
        ] {
            let Some(source) = volume.get(member) else { continue };
            let of = match named {
                "" => kind.to_owned(),
                field => format!("{kind} {}", quote(str_at(source, &[field]))),
            };
            let mut seen = Seen::default();
            for path in paths(list_at(source, &["items"])) {
                tell(&name, &of, seen.add(path, ""), out);
            }
        }
        let mut seen = Seen::default();
        for source in list_at(volume, &["projected", "sources"]) {
            if !source.as_object().is_some_and(|members| members.values().any(|v| !v.is_null())) {
                out.push(format!("volume {name} (Projected) has no sources provided"));
                continue;
            }
            let (of, paths) = projected(source);
            for path in paths {
                tell(&name, "Projected", seen.add(path, &of), out);
            }
        }
    }
}
