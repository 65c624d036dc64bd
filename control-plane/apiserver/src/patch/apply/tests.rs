use serde_json::json;

use super::*;
use crate::gvk::GroupVersionKind;
use crate::{defaults, schema};

const STATUS: Owns = Owns::AllBut(&[&["status"]]);

fn one_version(_: &Value, _: &str) -> Option<(Value, &'static TypeSchema)> {
    None
}

fn writer<'a>(
    manager: &'a str,
    api_version: &'a str,
    time: &'a str,
    schema: &'static TypeSchema,
) -> Writer<'a, 'static> {
    Writer {
        manager,
        subresource: "",
        api_version,
        time,
        owns: STATUS,
        schema,
        decode: &codec::decode_value,
        convert: &one_version,
    }
}

/// Applies YAML text.
fn apply_text(
    live: Option<&Value>,
    text: &str,
    writer: &Writer<'_, '_>,
    force: bool,
) -> Result<Value, ApiError> {
    let object = codec::decode_configuration(text.as_bytes(), codec::FieldValidation::Warn)?.object;
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    apply(live, &Configuration { object: &object, force, kind: &kind }, writer)
}

fn config_map(data: Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}).to_string()
}

fn apply_config(live: Option<&Value>, data: Value, manager: &str, force: bool) -> Result<Value, ApiError> {
    let schema = schema::by_name("core.v1.ConfigMap").unwrap();
    apply_text(live, &config_map(data), &writer(manager, "v1", "2026-01-01T00:00:00Z", schema), force)
}

#[test]
fn ownership_and_conflicts() {
    let one = apply_config(None, json!({"x": "1", "y": "2"}), "m1", false).unwrap();
    assert_eq!(
        one["metadata"]["managedFields"],
        json!([{"manager": "m1", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:x": {}, "f:y": {}}}}])
    );
    // The same again changes nothing.
    assert_eq!(apply_config(Some(&one), json!({"x": "1", "y": "2"}), "m1", false).unwrap(), one);
    let error = apply_config(Some(&one), json!({"x": "9"}), "m2", false).unwrap_err();
    assert_eq!(error.message(), "Apply failed with 1 conflict: conflict with \"m1\": .data.x");
    let two = apply_config(Some(&one), json!({"x": "1", "z": "3"}), "m2", false).unwrap();
    // Shared fields stay until nobody applies them.
    let three = apply_config(Some(&two), json!({"y": "2"}), "m1", false).unwrap();
    assert_eq!(three["data"], json!({"x": "1", "y": "2", "z": "3"}));
    let four = apply_config(Some(&three), json!({}), "m2", false).unwrap();
    assert_eq!(four["data"], json!({"y": "2"}));
    let forced = apply_config(Some(&four), json!({"y": "7"}), "m3", true).unwrap();
    // The one that lost its only field is gone; the one that applied the empty map owns the map.
    let managers = forced["metadata"]["managedFields"].as_array().unwrap();
    let names: Vec<_> = managers.iter().map(|m| (&m["manager"], &m["fieldsV1"])).collect();
    assert_eq!(
        names,
        [(&json!("m2"), &json!({"f:data": {}})), (&json!("m3"), &json!({"f:data": {"f:y": {}}}))]
    );
}

#[test]
fn upstream_messages() {
    let schema = schema::by_name("core.v1.ConfigMap").unwrap();
    let run = |body: Value| {
        apply_text(None, &body.to_string(), &writer("m", "v1", "", schema), false)
            .unwrap_err()
            .message()
            .to_owned()
    };
    let with = |extra: Value| {
        let mut body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
        json_patch::merge(&mut body, &extra);
        body
    };
    let typed = "failed to create typed patch object (/a; /v1, Kind=ConfigMap): ";
    assert_eq!(run(with(json!({"nope": 1}))), format!("{typed}.nope: field not declared in schema"));
    assert_eq!(
        run(with(json!({"data": {"k": 3}}))),
        format!("{typed}.data.k: expected string, got &value.valueUnstructured{{Value:3}}")
    );
    assert_eq!(
        run(with(json!({"metadata": {"finalizers": ["e.com/c", "e.com/c"]}}))),
        format!("{typed}.metadata.finalizers: duplicate entries for key [=\"e.com/c\"]")
    );
    assert_eq!(run(with(json!({"metadata": {"managedFields": []}}))), "metadata.managedFields must be nil");
}

#[test]
fn updates_are_tracked() {
    let schema = schema::by_name("apps.v1.Deployment").unwrap();
    let body = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "w"}},
        "template": {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let mut new = codec::decode_value(body, schema).unwrap().0;
    defaults::apply(&GroupVersionKind::new("apps", "v1", "Deployment"), &mut new);
    track(None, &mut new, &writer("fm1", "apps/v1", "2026-01-01T00:00:01Z", schema));
    let fields = |o: &Value, i: usize| o["metadata"]["managedFields"][i]["fieldsV1"].clone();
    assert_eq!(
        fields(&new, 0)["f:spec"]["f:strategy"],
        json!({"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}})
    );
    assert_eq!(fields(&new, 0)["f:spec"]["f:selector"], json!({}));
    assert_eq!(
        fields(&new, 0)["f:spec"]["f:template"]["f:metadata"],
        json!({"f:labels": {".": {}, "f:app": {}}})
    );
    assert_eq!(fields(&new, 0).get("f:metadata"), None);
    let old = new.clone();
    new["spec"]["replicas"] = json!(3);
    track(Some(&old), &mut new, &writer("fm2", "apps/v1", "2026-01-01T00:00:02Z", schema));
    assert_eq!(fields(&new, 1), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(fields(&new, 0)["f:spec"].get("f:replicas"), None);
    // An update that changes nothing changes no entry.
    let (old, mut same) = (new.clone(), new.clone());
    track(Some(&old), &mut same, &writer("fm3", "apps/v1", "2026-01-01T00:00:03Z", schema));
    assert_eq!(same, old);
}

/// Replays the recorded scenarios of server-side apply: `managedFields` and conflicts must be as recorded.
#[test]
fn agrees_with_recorded_scenarios() {
    let root = std::env::var_os("KELP_SHARED").map(std::path::PathBuf::from).or_else(|| {
        let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().ok()?;
        Some(workspace.parent()?.join("shared"))
    });
    let text =
        root.and_then(|r| std::fs::read_to_string(r.join("data/kubernetes-1.36/api-scenarios.json")).ok());
    let Some(text) = text else {
        eprintln!("no recorded scenarios: set KELP_SHARED to check against them");
        return;
    };
    const NAMES: [&str; 12] = [
        "apply-create-configmap",
        "apply-second-manager-adds-field",
        "apply-remove-field",
        "apply-shared-ownership",
        "apply-deployment-replicas-conflict",
        "apply-ports-key-containerport-protocol",
        "apply-env-order-and-removal",
        "apply-volumes-and-mounts",
        "apply-finalizers-set",
        "apply-atomic-selector",
        "apply-atomic-list-args",
        "apply-unknown-and-bad-fields",
    ];
    let all: Value = serde_json::from_str(&text).unwrap();
    let (mut steps, mut wrong) = (0, Vec::new());
    for scenario in all["scenarios"].as_array().unwrap() {
        let name = scenario["name"].as_str().unwrap();
        if !NAMES.contains(&name) {
            continue;
        }
        let mut live: std::collections::BTreeMap<String, Value> = Default::default();
        for (i, step) in scenario["steps"].as_array().unwrap().iter().enumerate() {
            let (method, path) =
                (step["method"].as_str().unwrap_or_default(), step["path"].as_str().unwrap_or_default());
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            let body = match &step["request"] {
                Value::String(s) => s.clone(),
                other => other.to_string(),
            };
            if method != "PATCH" || step["contentType"] != "application/apply-patch+yaml" {
                continue;
            }
            let parsed = codec::parse_yaml(body.as_bytes()).unwrap();
            let text = |n: &str| parsed[n].as_str().unwrap_or_default().to_owned();
            let gvk = GroupVersionKind::from_api_version(&text("apiVersion"), &text("kind"));
            let schema = schema::by_gvk(&gvk).unwrap();
            let manager = query.split('&').find_map(|q| q.strip_prefix("fieldManager=")).unwrap_or("replay");
            let force = query.contains("force=true");
            let api_version = gvk.api_version();
            let w = writer(manager, &api_version, "<time>", schema);
            let outcome = apply_text(live.get(path), &body, &w, force);
            let (ours, theirs) = match outcome {
                Ok(mut object) => {
                    defaults::apply(&gvk, &mut object);
                    // Admission, which is not part of this, fills a Pod's spec.
                    let spec = |o: &Value| if gvk.kind == "Pod" { Value::Null } else { o["spec"].clone() };
                    let seen = |o: &Value| {
                        let metadata = &o["metadata"];
                        json!([metadata["managedFields"], spec(o), o["data"], metadata["finalizers"]])
                    };
                    let both = (seen(&object), seen(&step["response"]));
                    live.insert(path.to_owned(), object);
                    both
                }
                Err(error) => (error.to_status(), step["response"].clone()),
            };
            steps += 1;
            if ours != theirs {
                wrong.push(format!("{name}[{i}]\n  ours     {ours}\n  recorded {theirs}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {steps}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(steps > 25, "only {steps} steps were replayed");
}

fn update(live: Option<&Value>, data: Value, list: Option<Value>, manager: &str) -> Value {
    let schema = schema::by_name("core.v1.ConfigMap").unwrap();
    let mut new = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
    if let Some(list) = list {
        new["metadata"]["managedFields"] = list;
    }
    let (mut new, _) = codec::decode_value(new, schema).unwrap();
    track(live, &mut new, &writer(manager, "v1", "2026-01-01T00:00:05Z", schema));
    new
}

fn names(object: &Value) -> Vec<String> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .map(|e| format!("{} {}", e["operation"], e["manager"]).replace('"', ""))
        .collect()
}

#[test]
fn lists_that_clients_send() {
    let live = update(None, json!({"k": "v"}), None, "one");
    // Nothing sent, or nothing that can be read: the live list counts.
    for list in [None, Some(json!([{"manager": "x", "operation": "Jump"}]))] {
        assert_eq!(names(&update(Some(&live), json!({"k": "w"}), list, "two")), ["Update one", "Update two"]);
    }
    // A readable list replaces it.
    let other = json!([{"manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:z": {}}}}]);
    let changed = update(Some(&live), json!({"k": "w"}), Some(other), "two");
    assert_eq!(names(&changed), ["Update x", "Update two"]);
    // An empty one ends tracking until the first apply.
    for list in [json!([]), json!([{}])] {
        let untracked = update(Some(&live), json!({"k": "w"}), Some(list), "two");
        assert_eq!(names(&untracked), [""; 0]);
        assert_eq!(names(&update(Some(&untracked), json!({"k": "x"}), None, "two")), [""; 0]);
        let applied = apply_config(Some(&untracked), json!({"z": "1"}), "me", false).unwrap();
        assert_eq!(names(&applied), ["Apply me", "Update before-first-apply"]);
        let fields = &applied["metadata"]["managedFields"][1]["fieldsV1"];
        assert_eq!(fields, &json!({"f:data": {".": {}, "f:k": {}}}));
    }
}

#[test]
fn the_oldest_updates_are_merged() {
    let schema = schema::by_name("core.v1.ConfigMap").unwrap();
    let mut live = update(None, json!({"k0": ""}), None, "m0");
    for i in 1..14_usize {
        let mut new = live.clone();
        new["data"][format!("k{i}")] = json!("");
        let (manager, time) = (format!("m{i}"), format!("2026-01-01T00:01:{i:02}Z"));
        track(Some(&live), &mut new, &writer(&manager, "v1", &time, schema));
        live = new;
    }
    let all = names(&live);
    assert_eq!(all.len(), 10, "{all:?}");
    assert_eq!(all[0], "Update ancient-changes");
    assert_eq!(all[9], "Update m13");
    let ancient = &live["metadata"]["managedFields"][0];
    assert_eq!(ancient["time"], "2026-01-01T00:01:04Z");
    assert_eq!(
        ancient["fieldsV1"],
        json!({"f:data": {".": {}, "f:k0": {}, "f:k1": {}, "f:k2": {}, "f:k3": {}, "f:k4": {}}})
    );
}

#[test]
fn client_side_apply_is_taken_over() {
    let schema = schema::by_name("core.v1.ConfigMap").unwrap();
    let last = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v", "l": "m"}});
    let mut live = last.clone();
    live["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": last.to_string()});
    track(None, &mut live, &writer("kubectl-client-side-apply", "v1", "2026-01-01T00:00:01Z", schema));
    // Another value for what client-side apply set is no conflict for kubectl, but for everybody else.
    let new = json!({"k": "w", "l": "m"});
    assert_eq!(apply_config(Some(&live), new.clone(), "other", false).unwrap_err().code(), 409);
    let taken = apply_config(Some(&live), new, "kubectl", false).unwrap();
    assert_eq!(taken["data"]["k"], "w");
    let annotation = taken.pointer("/metadata/annotations").unwrap().as_object().unwrap();
    let text = annotation.values().next().and_then(Value::as_str).unwrap();
    assert_eq!(text, format!("{}\n", config_map(json!({"k": "w", "l": "m"}))));
    // What somebody changed since is in conflict.
    let changed = update(Some(&live), json!({"k": "x", "l": "m"}), None, "third");
    let mut changed_with = changed.clone();
    changed_with["metadata"]["annotations"] = live["metadata"]["annotations"].clone();
    assert_eq!(
        apply_config(Some(&changed_with), json!({"k": "w"}), "kubectl", false).unwrap_err().code(),
        409
    );
}

/// Two versions of a kind, of which the second calls `data` by another name.
fn two_versions(object: &Value, version: &str) -> Option<(Value, &'static TypeSchema)> {
    let mut out = object.clone();
    let map = out.as_object_mut()?;
    let name = match version {
        "v1" => "core.v1.ConfigMap",
        "v2" => "core.v1.Secret",
        _ => return None,
    };
    let (from, to) = if version == "v1" { ("stringData", "data") } else { ("data", "stringData") };
    if let Some(value) = map.remove(from) {
        map.insert(to.to_owned(), value);
    }
    map.insert("apiVersion".to_owned(), version.into());
    Some((out, schema::by_name(name)?))
}

#[test]
fn owners_in_other_versions_keep_and_lose_their_fields() {
    let v1 = schema::by_name("core.v1.ConfigMap").unwrap();
    let v2 = schema::by_name("core.v1.Secret").unwrap();
    let versioned = |manager: &'static str, version: &'static str, schema| Writer {
        decode: &codec::decode_value,
        convert: &two_versions,
        ..writer(manager, version, "2026-01-01T00:00:01Z", schema)
    };
    let config = |version: &str, data: Value| {
        let field = if version == "v1" { "data" } else { "stringData" };
        json!({"apiVersion": version, "kind": "K", "metadata": {"name": "a"}, field: data})
    };
    let run = |live: Option<&Value>, object: &Value, w: &Writer<'_, '_>, force| {
        let live = live.map(|l| two_versions(l, w.api_version).unwrap().0);
        apply(live.as_ref(), &Configuration { object, force, kind: "K" }, w)
    };
    let first =
        run(None, &config("v1", json!({"a": "1", "b": "2"})), &versioned("one", "v1", v1), false).unwrap();
    let in_v2 = versioned("two", "v2", v2);
    let conflict = run(Some(&first), &config("v2", json!({"a": "9"})), &in_v2, false).unwrap_err();
    assert_eq!(conflict.message(), "Apply failed with 1 conflict: conflict with \"one\": .data.a");
    let forced = run(Some(&first), &config("v2", json!({"a": "9"})), &in_v2, true).unwrap();
    let list = forced["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(
        (&list[0]["apiVersion"], &list[0]["fieldsV1"]),
        (&json!("v1"), &json!({"f:data": {"f:b": {}}}))
    );
    assert_eq!(list[1]["fieldsV1"], json!({"f:stringData": {"f:a": {}}}));
    // The same manager in the other version: what it no longer applies goes.
    let again =
        run(Some(&forced), &config("v2", json!({"c": "3"})), &versioned("one", "v2", v2), false).unwrap();
    assert_eq!(again["stringData"], json!({"a": "9", "c": "3"}));
    // Entries of versions that are no more are dropped.
    let mut old = again.clone();
    old["metadata"]["managedFields"][0]["apiVersion"] = json!("v0");
    let third =
        run(Some(&old), &config("v2", json!({"d": "4"})), &versioned("three", "v2", v2), false).unwrap();
    assert_eq!(third["metadata"]["managedFields"].as_array().unwrap().len(), 2);
}

#[test]
fn scales_share_the_count() {
    let schema = schema::by_name("apps.v1.Deployment").unwrap();
    let scale_schema = schema::by_name("autoscaling.v1.Scale").unwrap();
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "paused": true}});
    track(None, &mut object, &writer("one", "apps/v1", "2026-01-01T00:00:01Z", schema));
    let (versions, path) = (["apps/v1"], ["spec", "replicas"]);
    let mut scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {"name": "d", "managedFields": to_scale(&object, &versions, &path)}, "spec": {"replicas": 1}});
    assert_eq!(names(&scale), ["Update one"]);
    let before = scale.clone();
    scale["spec"]["replicas"] = json!(4);
    let scaler = Writer {
        subresource: "scale",
        owns: Owns::ALL,
        ..writer("two", "autoscaling/v1", "2026-01-01T00:00:02Z", scale_schema)
    };
    track(Some(&before), &mut scale, &scaler);
    let list = from_scale(&object, &scale, "apps/v1", &versions, &path);
    let shown: Vec<_> = list.iter().map(|e| (&e["manager"], &e["subresource"], &e["fieldsV1"])).collect();
    assert_eq!(
        shown,
        [
            (&json!("two"), &json!("scale"), &json!({"f:spec": {"f:replicas": {}}})),
            (&json!("one"), &Value::Null, &json!({"f:spec": {"f:paused": {}}}))
        ]
    );
}

#[test]
fn endpoints_own_their_part() {
    let set = shape::field_set(
        &json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}}]}}),
        schema::by_name("core.v1.Pod").unwrap(),
    );
    let resources = Owns::Only(&[&["spec", "containers", "*", "resources"]]);
    assert_eq!(resources.filter(set.clone()).paths(), [".spec.containers[name=\"c\"].resources.limits.cpu"]);
    assert!(Owns::AllBut(&[&["spec"]]).filter(set).is_empty());
}
