//! Comparing what was seen with what was recorded.

use super::glob;
use super::observe::brief;
use serde_json::Value;

/// Placeholders of the recordings, for which any text is right.
const PLACEHOLDERS: [&str; 28] = [
    "containerd://<containerID>",
    "<date>",
    "<systemUUID>",
    "<id>",
    "<shifted>",
    "<cgroup-root>",
    "<suffix>",
    "<imageID>",
    "<resourceVersion>",
    "<uid>",
    "<nodeIP>",
    "<value>",
    "<timestamped-dir>",
    "<containerID>",
    "<further lines of /etc/hosts of the node>",
    "<time>",
    "<kubelet-root>",
    "<dir>",
    "<kernelVersion>",
    "<path>",
    "<a name of the image>",
    "<node hostname>",
    "<pid>",
    "<bootID>",
    "<host filesystem>",
    "<podIP>",
    "<machineID>",
    "<n>",
];

/// Whether a text is what was recorded.
pub fn text_matches(recorded: &str, seen: &str) -> bool {
    let mut pattern = options_in_order(recorded);
    let seen = options_in_order(seen);
    let seen = seen.as_str();
    // Cases with services were recorded in namespaces of their own.
    pattern = pattern.replace("svcenv2/", "cases/").replace("svcenv/", "cases/");
    // The recording machine had a little less memory.
    pattern = pattern.replace("capacity: 25171644416", "capacity: *");
    if pattern == seen {
        return true;
    }
    for placeholder in PLACEHOLDERS {
        pattern = pattern.replace(placeholder, "*");
    }
    glob(&pattern, seen)
}

/// The order of a resolv.conf's options is chance; this machine's filesystem has options that the recording one had not.
fn options_in_order(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix("options ") {
        Some(options) => {
            let mut words: Vec<&str> = options.split(' ').collect();
            words.sort_unstable();
            format!("options {}", words.join(" "))
        }
        None => line.replace(",discard,resv_strict,resuid=65534,resgid=65534", ""),
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Fields in which a status is not that of the recording.
pub fn value_differences(at: &str, recorded: &Value, seen: &Value, found: &mut Vec<String>) {
    match (recorded, seen) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                value_differences(&format!("{at}.{key}"), value, b.get(key).unwrap_or(&Value::Null), found);
            }
            for (key, value) in b {
                if !a.contains_key(key) && !is_empty(value) {
                    found.push(format!("{at}.{key}: {value} is too much"));
                }
            }
        }
        // This cluster has two families.
        (Value::Array(a), Value::Array(b)) if at.ends_with("IPs") => {
            if a.is_empty() != b.is_empty() {
                found.push(format!("{at}: {seen}"));
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            if a.len() != b.len() {
                found.push(format!("{at}: recorded {} items, saw {}: {seen}", a.len(), b.len()));
            }
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                value_differences(&format!("{at}[{i}]"), a, b, found);
            }
        }
        (Value::String(a), Value::String(b)) if text_matches(a, b) => {}
        // What cgroup v1 shows for "no limit".
        (Value::String(a), Value::Null) if a == "9007199254740988Ki" => {}
        (Value::Object(a), Value::Null) if a.values().all(|v| v == "9007199254740988Ki") => {}
        (a, b) if a == b || is_empty(a) && is_empty(b) => {}
        (a, b) => found.push(format!("{at}: recorded {a}, saw {b}")),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// Whether two lines of a watch say the same.
pub fn same_line(recorded: &Value, seen: &Value) -> bool {
    let mut found = Vec::new();
    let strip = |v: &Value| {
        let mut v = v.clone();
        if let Some(line) = v.as_object_mut() {
            line.remove("t");
        }
        v
    };
    value_differences("", &strip(recorded), &strip(seen), &mut found);
    found.is_empty()
}

/// Judgement about a sequence of states: (out of order, notes about states that only one side has).
pub fn watch_differences(recorded: &[Vec<Value>], seen: &[Value]) -> (Vec<String>, Vec<String>) {
    let mut best: Option<(Vec<String>, Vec<String>)> = None;
    for sequence in recorded {
        let judged = one_watch(sequence, seen);
        let weight = |j: &(Vec<String>, Vec<String>)| (j.0.len(), j.1.len());
        if best.as_ref().is_none_or(|b| weight(&judged) < weight(b)) {
            best = Some(judged);
        }
    }
    best.unwrap_or_default()
}

fn one_watch(recorded: &[Value], seen: &[Value]) -> (Vec<String>, Vec<String>) {
    let (mut wrong, mut notes) = (Vec::new(), Vec::new());
    // Each state that was seen is looked for after the one before it.
    let mut next = 0;
    let mut used = vec![false; recorded.len()];
    for line in seen {
        let later = recorded.iter().enumerate().skip(next).find(|(_, r)| same_line(r, line));
        if let Some((at, _)) = later {
            next = at + 1;
            if let Some(u) = used.get_mut(at) {
                *u = true;
            }
        } else if recorded.iter().any(|r| same_line(r, line)) {
            wrong.push(format!("watch: out of order: {}", brief(line)));
        } else {
            notes.push(format!("watch: + {}", brief(line)));
        }
    }
    for (line, used) in recorded.iter().zip(used) {
        if !used {
            notes.push(format!("watch: - {}", brief(line)));
        }
    }
    (wrong, notes)
}

/// One event as the recordings order them.
fn event_line(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    format!("{} {} {} | {}", text("type"), text("reason"), text("fieldPath"), text("message"))
}

/// Differences of the events, in order of first appearance.
pub fn event_differences(recorded: &[Vec<Value>], seen: &[Value]) -> Vec<String> {
    let mut best: Option<Vec<String>> = None;
    for sequence in recorded {
        let found = one_event_list(sequence, seen);
        if best.as_ref().is_none_or(|b| found.len() < b.len()) {
            best = Some(found);
        }
    }
    best.unwrap_or_default()
}

fn one_event_list(recorded: &[Value], seen: &[Value]) -> Vec<String> {
    let a: Vec<String> = recorded.iter().map(event_line).collect();
    let mut b: Vec<String> = seen.iter().map(event_line).collect();
    // Other runs of a recording leave the field path out.
    let same = |a: &str, b: &str| {
        text_matches(a, b) || {
            let cut = |s: &str| s.split_once(" | ").map(|(_, m)| m.to_owned()).unwrap_or_default();
            let path = a.split(" | ").next().unwrap_or_default().ends_with(' ');
            path && !b.contains("  |")
                && a.split(' ').nth(1) == b.split(' ').nth(1)
                && text_matches(&cut(a), &cut(b))
        }
    };
    let mut found = Vec::new();
    let mut order = Vec::new();
    for line in &a {
        match b.iter().position(|s| same(line, s)) {
            Some(at) => {
                order.push(at);
                if let Some(used) = b.get_mut(at) {
                    used.clear();
                }
            }
            None => found.push(format!("event: - {line}")),
        }
    }
    found.extend(b.iter().filter(|s| !s.is_empty()).map(|s| format!("event: + {s}")));
    // Containers are stopped at the same time: the order of their events is chance.
    let reason = |at: usize| seen.get(at).and_then(|e| e["reason"].as_str());
    // The scheduler tells in its own time that it has placed a pod.
    order.retain(|at| reason(*at) != Some("Scheduled"));
    let disordered = |w: &[usize]| match w {
        [a, b] => a > b && reason(*a) != reason(*b),
        _ => false,
    };
    if order.windows(2).any(disordered) {
        let order: Vec<String> = seen.iter().map(event_line).collect();
        found.push(format!("event: order: {order:#?}"));
    }
    found
}
