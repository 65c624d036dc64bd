//! Recorded cases of the upstream scheduler, replayed against the core.
//!
//! `KELP_RECORDINGS` names the directory with `controller-cases.json`; `KELP_CASES` picks cases by a part of their name.

use super::*;
use std::collections::BTreeSet;

/// Cases left out, and why.
const LEFT_OUT: [(&str, &str); 1] = [("sched-binding", "the API server's part")];

/// What other components do to a new object: the priority of its class, the taint of a node that is not ready.
fn admitted(mut object: Value, classes: &HashMap<String, Value>) -> Value {
    object["metadata"]["uid"] = object["metadata"]["name"].clone();
    if object["kind"] == "Node" {
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.clone().any(|c| c["type"] == "Ready" && c["status"] == "True");
        if !ready && conditions.count() > 0 {
            object["spec"]["taints"] =
                json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
        }
        return object;
    }
    object["metadata"]["namespace"] = "default".into();
    let class = object["spec"]["priorityClassName"].as_str().and_then(|name| classes.get(name));
    if let Some(class) = class {
        object["spec"]["priority"] = class["value"].clone();
        object["spec"]["preemptionPolicy"] = class["preemptionPolicy"].clone();
    }
    object
}

fn replay(case: &Value) -> Vec<String> {
    let mut w = World::new();
    let mut classes = HashMap::new();
    let initial = case["initial"].as_array().into_iter().flatten().map(|object| (object, "create", object));
    let actions = case["actions"].as_array().into_iter().flatten();
    let actions = actions.map(|a| (a, a["do"].as_str().unwrap_or_default(), &a["object"]));
    for (action, what, object) in initial.chain(actions) {
        match (what, object["kind"].as_str().unwrap_or_default()) {
            ("create", "Node") => {
                let node = admitted(object.clone(), &classes);
                let node = NodeInfo::from_api(&serde_json::from_value(node).expect("node"));
                w.core.handle(Event::NodeApplied(Box::new(node)), w.now);
            }
            ("create", "Pod") => {
                let pod = admitted(object.clone(), &classes);
                let name = pod["metadata"]["name"].as_str().expect("name").to_owned();
                w.pods.insert(name.clone(), pod);
                w.changed(&name);
            }
            ("create", "PriorityClass") => {
                classes.insert(object["metadata"]["name"].as_str().expect("name").to_owned(), object.clone());
            }
            ("create", "PersistentVolume" | "PersistentVolumeClaim" | "StorageClass") => {
                w.storage(object);
                w.settle();
                w.wait(10);
                // What the binder does with a claim that names its volume.
                if object["spec"]["volumeName"].is_string() {
                    let mut bound = object.clone();
                    bound["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
                    w.storage(&bound);
                }
            }
            ("patch", _) => {
                let patch = if action["body"].is_null() { &action["patch"] } else { &action["body"] };
                w.change(action["name"].as_str().expect("name"), patch);
            }
            _ => {}
        }
        w.settle();
        let gone = w.pods.iter().filter(|(_, pod)| !pod["metadata"]["deletionTimestamp"].is_null());
        for name in gone.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            w.remove_pod(&name);
        }
        w.wait(30);
    }
    compare(&w, &case["outcome"])
}

fn compare(w: &World, outcome: &Value) -> Vec<String> {
    let mut differences = Vec::new();
    for pod in outcome["objects"].as_array().into_iter().flatten().filter(|o| o["kind"] == "Pod") {
        let name = pod["metadata"]["name"].as_str().expect("name");
        let want = pod["spec"]["nodeName"].as_str();
        match w.pods.get(name) {
            Some(_) if w.node_of(name) == want => {}
            Some(_) => differences.push(format!("{name}: on {:?}, recorded {want:?}", w.node_of(name))),
            None => differences.push(format!("{name}: was evicted")),
        }
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let scheduled = conditions.filter(|c| c["type"] == "PodScheduled" && c["reason"] == "Unschedulable");
        for message in scheduled.filter_map(|c| c["message"].as_str()) {
            let said = w.messages.iter().rfind(|(pod, _)| pod == name).map(|(_, m)| m.as_str());
            if said != Some(message) {
                differences.push(format!("{name}: says {said:?}, recorded {message:?}"));
            }
        }
    }
    let events = outcome["events"].as_array().into_iter().flatten();
    let preempted = events.clone().filter(|e| e["reason"] == "Preempted");
    let preempted =
        preempted.filter_map(|e| e["object"].as_str()?.strip_prefix("Pod/")).collect::<BTreeSet<_>>();
    let evicted = w.evicted.iter().map(String::as_str).collect::<BTreeSet<_>>();
    if preempted != evicted {
        differences.push(format!("evicted {evicted:?}, recorded {preempted:?}"));
    }
    let failed = events.filter(|e| e["reason"] == "FailedScheduling");
    let failed =
        failed.filter_map(|e| Some((e["object"].as_str()?.strip_prefix("Pod/")?, e["message"].as_str()?)));
    for (pod, message) in failed {
        // A node that is not ready yet is refused for its taint, which does not happen to nodes here.
        if !message.contains("untolerated taint") && !w.messages.iter().any(|(p, m)| p == pod && m == message)
        {
            differences.push(format!("{pod}: never says {message:?}"));
        }
    }
    differences
}

#[test]
#[ignore = "needs the recordings: set KELP_RECORDINGS to their directory"]
fn recorded_cases() {
    let directory = std::env::var("KELP_RECORDINGS").expect("KELP_RECORDINGS");
    let only = std::env::var("KELP_CASES").unwrap_or_default();
    let text = std::fs::read_to_string(std::path::Path::new(&directory).join("controller-cases.json"))
        .expect("cases");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let mut failed = 0;
    let cases = all["cases"].as_array().into_iter().flatten().filter(|case| case["area"] == "scheduler");
    for case in cases {
        let name = case["name"].as_str().unwrap_or_default();
        if !name.contains(&only) || LEFT_OUT.iter().any(|(left_out, _)| *left_out == name) {
            continue;
        }
        let differences = replay(case);
        println!("{name}: {}", if differences.is_empty() { "as recorded" } else { "DIFFERS" });
        differences.iter().for_each(|difference| println!("    {difference}"));
        failed += usize::from(!differences.is_empty());
    }
    assert_eq!(failed, 0, "cases differ");
}
