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
    Writer { manager, subresource: "", api_version, time, owns: STATUS, schema, convert: &one_version }
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
