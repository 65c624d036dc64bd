//! Rows of pods: the summary of what all containers do.

use super::*;
use crate::object::{bool_at, int_at, is_deleting, list_at, str_at};

/// Pods.
pub static POD_TABLE: TableSpec = TableSpec { columns: POD, cells: pod, conditions };

fn conditions(object: &Value) -> Option<Value> {
    let (reason, message) = match str_at(object, &["status", "phase"]) {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

struct Summary {
    reason: String,
    ready: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list_at(object, &["status", "conditions"]).iter().find(|c| str_at(c, &["type"]) == kind)
}

/// Reason that a terminated state shows: its own, else signal or exit code.
fn terminated_reason(state: &Value) -> String {
    match str_at(state, &["reason"]) {
        "" => match int_at(state, &["signal"]).filter(|s| *s != 0) {
            Some(signal) => format!("Signal:{signal}"),
            None => format!("ExitCode:{}", int_at(state, &["exitCode"]).unwrap_or_default()),
        },
        reason => reason.to_owned(),
    }
}

fn later(a: Option<Timestamp>, status: &Value) -> Option<Timestamp> {
    let b = str_at(status, &["lastState", "terminated", "finishedAt"]).parse().ok();
    a.max(b)
}

fn summarize(object: &Value) -> Summary {
    let mut summary = Summary {
        reason: match str_at(object, &["status", "reason"]) {
            "" => str_at(object, &["status", "phase"]).to_owned(),
            reason => reason.to_owned(),
        },
        ready: 0,
        restarts: 0,
        last_restart: None,
    };
    if condition(object, "PodScheduled").is_some_and(|c| str_at(c, &["reason"]) == "SchedulingGated") {
        summary.reason = "SchedulingGated".to_owned();
    }
    let specs = list_at(object, &["spec", "initContainers"]);
    let restartable = |name: &str| {
        specs.iter().any(|c| str_at(c, &["name"]) == name && str_at(c, &["restartPolicy"]) == "Always")
    };
    let mut initializing = false;
    let (mut sidecar_restarts, mut sidecar_last) = (0, None);
    for (index, status) in list_at(object, &["status", "initContainerStatuses"]).iter().enumerate() {
        let restarts = int_at(status, &["restartCount"]).unwrap_or_default();
        summary.restarts += restarts;
        summary.last_restart = later(summary.last_restart, status);
        let sidecar = restartable(str_at(status, &["name"]));
        if sidecar {
            sidecar_restarts += restarts;
            sidecar_last = later(sidecar_last, status);
        }
        let terminated = get(status, &["state", "terminated"]);
        let waiting = str_at(status, &["state", "waiting", "reason"]);
        if terminated.is_some_and(|t| int_at(t, &["exitCode"]).unwrap_or_default() == 0) {
            continue;
        }
        if sidecar && bool_at(status, &["started"]) {
            if bool_at(status, &["ready"]) {
                summary.ready += 1;
            }
            continue;
        }
        summary.reason = match terminated {
            Some(state) => format!("Init:{}", terminated_reason(state)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{index}/{}", specs.len()),
        };
        initializing = true;
        break;
    }
    let initialized = condition(object, "Initialized").is_some_and(|c| str_at(c, &["status"]) == "True");
    if !initializing || initialized {
        summary.restarts = sidecar_restarts;
        summary.last_restart = sidecar_last;
        let mut running = false;
        for status in list_at(object, &["status", "containerStatuses"]).iter().rev() {
            summary.restarts += int_at(status, &["restartCount"]).unwrap_or_default();
            summary.last_restart = later(summary.last_restart, status);
            let waiting = str_at(status, &["state", "waiting", "reason"]);
            if !waiting.is_empty() {
                summary.reason = waiting.to_owned();
            } else if let Some(state) = get(status, &["state", "terminated"]) {
                summary.reason = terminated_reason(state);
            } else if bool_at(status, &["ready"]) && get(status, &["state", "running"]).is_some() {
                running = true;
                summary.ready += 1;
            }
        }
        if summary.reason == "Completed" && running {
            let ready = condition(object, "Ready").is_some_and(|c| str_at(c, &["status"]) == "True");
            summary.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    let finished = matches!(str_at(object, &["status", "phase"]), "Succeeded" | "Failed");
    if is_deleting(object) && str_at(object, &["status", "reason"]) == "NodeLost" {
        summary.reason = "Unknown".to_owned();
    } else if is_deleting(object) && !finished {
        summary.reason = "Terminating".to_owned();
    }
    summary
}

fn gates(object: &Value) -> String {
    let gates = list_at(object, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let holds = gates.iter().filter(|gate| {
        condition(object, str_at(gate, &["conditionType"])).is_some_and(|c| str_at(c, &["status"]) == "True")
    });
    format!("{}/{}", holds.count(), gates.len())
}

fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

fn pod(object: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(object);
    let sidecars = list_at(object, &["spec", "initContainers"])
        .iter()
        .filter(|c| str_at(c, &["restartPolicy"]) == "Always")
        .count();
    let total = list_at(object, &["spec", "containers"]).len() + sidecars;
    let restarts = match summary.last_restart {
        Some(time) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, human(now.as_second() - time.as_second()))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = match list_at(object, &["status", "podIPs"]).first() {
        Some(first) => str_at(first, &["ip"]),
        None => str_at(object, &["status", "podIP"]),
    };
    vec![
        meta(object, "name").into(),
        format!("{}/{total}", summary.ready).into(),
        summary.reason.into(),
        restarts.into(),
        age(object, now),
        or_none(ip),
        or_none(str_at(object, &["spec", "nodeName"])),
        or_none(str_at(object, &["status", "nominatedNodeName"])),
        gates(object).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(object: Value) -> Vec<String> {
        let now = "2026-01-01T01:00:00Z".parse().expect("time");
        pod(&object, now)
            .into_iter()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .collect()
    }

    #[test]
    fn crash_loop_and_restarts() {
        let cells = cells(json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "n"},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [
                {"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}},
                {"name": "b", "ready": false, "restartCount": 3,
                 "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:30Z"}}}]}}));
        assert_eq!(
            cells,
            ["p", "1/2", "CrashLoopBackOff", "3 (30s ago)", "60m", "10.0.0.1", "n", "<none>", "<none>"]
        );
    }

    #[test]
    fn states() {
        let status = |status: Value, deleting: bool| {
            let mut object = json!({"metadata": {"name": "p"}, "status": status,
                "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]}});
            if deleting {
                object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            cells(object)[2].clone()
        };
        assert_eq!(status(json!({"phase": "Pending"}), false), "Pending");
        assert_eq!(status(json!({"phase": "Pending"}), true), "Terminating");
        let init = json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]});
        assert_eq!(status(init, false), "Init:1/2");
        let init = json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 3}}}]});
        assert_eq!(status(init, false), "Init:ExitCode:3");
        let done = json!({"phase": "Succeeded", "containerStatuses": [
            {"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]});
        assert_eq!(status(done.clone(), false), "Completed");
        assert_eq!(status(done, true), "Completed");
    }
}
