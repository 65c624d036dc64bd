//! What a client sees of a pod, in the words of the recordings.

use serde_json::{Map, Value, json};

/// One line of a recorded `watch`, without its time.
pub fn summary(pod: &Value) -> Value {
    let status = &pod["status"];
    let has = |v: &Value| v.as_str().is_some_and(|s| !s.is_empty());
    let mut line = Map::new();
    for key in ["phase", "reason", "message", "qosClass"] {
        if has(&status[key]) {
            line.insert(key.into(), status[key].clone());
        }
    }
    line.insert("podIP".into(), has(&status["podIP"]).into());
    line.insert("hostIP".into(), has(&status["hostIP"]).into());
    let conditions = status["conditions"].as_array().into_iter().flatten().map(|c| {
        let text = |key: &str| c[key].as_str().unwrap_or_default().to_owned();
        (text("type"), json!([text("status"), text("reason"), text("message")]))
    });
    line.insert("conditions".into(), Value::Object(conditions.collect()));
    for key in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
        if let Some(list) = status[key].as_array().filter(|l| !l.is_empty()) {
            let of = |c: &Value| (c["name"].as_str().unwrap_or_default().to_owned(), container(c));
            line.insert(key.into(), Value::Object(list.iter().map(of).collect()));
        }
    }
    if has(&pod["spec"]["nodeName"]) {
        line.insert("nodeAssigned".into(), true.into());
    }
    if has(&pod["metadata"]["deletionTimestamp"]) {
        let grace = &pod["metadata"]["deletionGracePeriodSeconds"];
        line.insert("deletion".into(), json!({"graceSeconds": grace}));
    }
    Value::Object(line)
}

fn container(status: &Value) -> Value {
    let mut line = Map::new();
    for key in ["state", "lastState"] {
        let bare = state(&status[key]);
        if key == "state" || bare.as_object().is_some_and(|o| !o.is_empty()) {
            line.insert(key.into(), bare);
        }
    }
    for key in ["ready", "started", "restartCount"] {
        line.insert(key.into(), status[key].clone());
    }
    Value::Object(line)
}

/// Without times and ids.
fn state(state: &Value) -> Value {
    let of = |(kind, fields): (&String, &Value)| {
        let fields = fields.as_object().into_iter().flatten();
        let kept = fields.filter(|(k, v)| {
            !["startedAt", "finishedAt", "containerID"].contains(&k.as_str()) && !v.is_null()
        });
        (kind.clone(), Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect()))
    };
    Value::Object(state.as_object().into_iter().flatten().map(of).collect())
}

/// A line for people: what differs between two of them shows at a glance.
pub fn brief(line: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut words = vec![text(&line["phase"])];
    for key in ["reason", "message"] {
        if let Some(value) = line[key].as_str() {
            words.push(format!("{key}={value:?}"));
        }
    }
    if line["podIP"] == true {
        words.push("ip".into());
    }
    for (kind, c) in line["conditions"].as_object().into_iter().flatten() {
        let initials: String = kind.chars().filter(char::is_ascii_uppercase).collect();
        let why = match (text(&c[1]), text(&c[2])) {
            (r, m) if r.is_empty() && m.is_empty() => String::new(),
            (r, m) => format!("({r}|{m})"),
        };
        words.push(format!("{initials}={}{why}", text(&c[0]).chars().take(1).collect::<String>()));
    }
    for key in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
        for (name, c) in line[key].as_object().into_iter().flatten() {
            let flag = |key: &'static str| if c[key] == true { key.get(..1).unwrap_or_default() } else { "" };
            words.push(format!(
                "{name}:{}{}{}#{}{}",
                short(&c["state"]),
                flag("ready"),
                flag("started"),
                c["restartCount"],
                if c["lastState"].is_null() { String::new() } else { format!("<{}", short(&c["lastState"])) }
            ));
        }
    }
    if !line["deletion"].is_null() {
        words.push(format!("deletion={}", line["deletion"]["graceSeconds"]));
    }
    if !line["watch"].is_null() {
        words.push(text(&line["watch"]));
    }
    words.join(" ")
}

fn short(state: &Value) -> String {
    let Some((kind, fields)) = state.as_object().and_then(|s| s.iter().next()) else { return "-".into() };
    let values: Vec<String> =
        fields.as_object().into_iter().flatten().map(|(_, v)| v.to_string().replace('"', "")).collect();
    let kind = kind.get(..1).unwrap_or_default().to_uppercase();
    if values.is_empty() { kind } else { format!("{kind}[{}]", values.join(",")) }
}
