use serde_json::json;

use super::*;
use crate::codec::{self, FieldValidation};

fn defaulted(group: &str, kind: &str, body: Value) -> Value {
    let gvk = GroupVersionKind::new(group, if kind == "HorizontalPodAutoscaler" { "v2" } else { "v1" }, kind);
    let schema = schema::by_gvk(&gvk).unwrap();
    let body = body.to_string();
    let d = codec::decode_body(None, body.as_bytes(), &gvk, schema, FieldValidation::Strict).unwrap();
    let mut object = d.object;
    apply(&gvk, &mut object);
    // Defaults are set once: a second time changes nothing, and the outcome is canonical.
    let mut again = object.clone();
    apply(&gvk, &mut again);
    assert_eq!(again, object);
    assert_eq!(codec::decode_value(object.clone(), schema).unwrap().0, object);
    object
}

#[test]
fn endpoints() {
    let subset = |port: Value| json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [port]}]);
    let endpoints = defaulted("", "Endpoints", json!({"subsets": subset(json!({"port": 80}))}));
    assert_eq!(endpoints["subsets"], subset(json!({"port": 80, "protocol": "TCP"})));
}

#[test]
fn pods() {
    let pod = defaulted(
        "",
        "Pod",
        json!({"spec": {"hostNetwork": true, "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "s"}},
                    {"name": "h", "hostPath": {"path": "/x"}}],
               "containers": [{"name": "c", "image": "nginx",
                    "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}},
                    "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "resources": {"limits": {"cpu": "0.0001", "memory": "1Gi"}, "requests": {"memory": "512Mi"}}}]}}),
    );
    assert_eq!(
        pod["spec"],
        json!({
            "hostNetwork": true, "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler", "enableServiceLinks": true,
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}},
                        {"name": "h", "hostPath": {"path": "/x", "type": ""}}],
            "containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                                  "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "resources": {"limits": {"cpu": "1m", "memory": "1Gi"}, "requests": {"cpu": "1m", "memory": "512Mi"}}}]
        })
    );
}

#[test]
fn pull_policies() {
    for (image, want) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1", "IfNotPresent"),
        ("host:5000/nginx", "Always"),
        ("host:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:abc", "IfNotPresent"),
        ("", "IfNotPresent"),
    ] {
        assert_eq!(pod::pull_policy(image), want, "{image}");
    }
}

#[test]
fn services() {
    let s = defaulted(
        "",
        "Service",
        json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}}),
    );
    assert_eq!(
        s["spec"],
        json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP",
               "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
               "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
               "allocateLoadBalancerNodePorts": true,
               "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}]})
    );
    let s = defaulted("", "Service", json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}));
    assert_eq!(s["spec"], json!({"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None"}));
}

#[test]
fn small_kinds() {
    let s = defaulted("", "Secret", json!({"stringData": {"a": "b"}, "data": {"a": "eA==", "c": "eA=="}}));
    assert_eq!((&s["data"], &s["type"]), (&json!({"a": "Yg==", "c": "eA=="}), &json!("Opaque")));
    assert_eq!(s.get("stringData"), None);
    let n = defaulted("", "Namespace", json!({"metadata": {"name": "n"}}));
    assert_eq!(n["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "n"}));
    assert_eq!(n["status"]["phase"], "Active");
}

/// The recorded answers to creations, where defaults are all that the server adds to the spec.
#[test]
fn agrees_with_recorded_answers() {
    let root = std::env::var_os("KELP_SHARED").map(std::path::PathBuf::from).or_else(|| {
        let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().ok()?;
        Some(workspace.parent()?.join("shared"))
    });
    let text = root.and_then(|r| {
        std::fs::read_to_string(r.join("data/kubernetes-1.36/request-response-cases.json")).ok()
    });
    let Some(text) = text else {
        eprintln!("no recorded answers: set KELP_SHARED to check against them");
        return;
    };
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut checked = 0;
    for case in cases.iter().filter(|c| c["method"] == "POST" && c["status"] == 201) {
        let (request, response) = (&case["request"], &case["response"]);
        let (api_version, kind) = (super::text(request, "apiVersion"), super::text(request, "kind"));
        let gvk = GroupVersionKind::from_api_version(api_version, kind);
        if api_version.is_empty() || schema::by_gvk(&gvk).is_none() || kind.contains("Review") {
            continue;
        }
        let mut ours = defaulted(&gvk.group, kind, request.clone());
        let mut theirs = response.clone();
        // Set by admission, allocation, the strategy and the controllers of the API server.
        for o in [&mut ours, &mut theirs] {
            for (at, names) in [
                (
                    "/spec",
                    &[
                        "clusterIP",
                        "clusterIPs",
                        "ipFamilies",
                        "ipFamilyPolicy",
                        "healthCheckNodePort",
                        "priority",
                        "preemptionPolicy",
                        "serviceAccount",
                        "serviceAccountName",
                        "tolerations",
                        "volumes",
                        "finalizers",
                        "selector",
                    ][..],
                ),
                ("", &["metadata", "status"][..]),
                ("/spec/template", &["metadata"][..]),
            ] {
                if let Some(Value::Object(map)) = o.pointer_mut(at) {
                    map.retain(|k, _| !names.contains(&k.as_str()));
                }
            }
            if let Some(spec) = o.get_mut("spec") {
                for port in items(spec, "ports") {
                    port.as_object_mut().unwrap().remove("nodePort");
                }
                for c in items(spec, "containers") {
                    c.as_object_mut().unwrap().remove("volumeMounts");
                }
                if let Value::Object(t) = &mut *spec {
                    t.remove("taints");
                }
            }
        }
        assert_eq!(ours, theirs, "{}", case["name"]);
        checked += 1;
    }
    assert!(checked > 25, "only {checked} answers were compared");
}
