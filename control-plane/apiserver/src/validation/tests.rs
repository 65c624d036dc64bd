use serde_json::json;

use super::*;
use crate::codec::{self, FieldValidation};
use crate::{ApiError, defaults, schema};

fn gvk(group: &str, kind: &str) -> GroupVersionKind {
    GroupVersionKind::new(group, "v1", kind)
}

fn prepared(gvk: &GroupVersionKind, body: &Value) -> Value {
    let schema = schema::by_gvk(gvk).unwrap();
    let text = body.to_string();
    let mut object =
        codec::decode_body(None, text.as_bytes(), gvk, schema, FieldValidation::Strict).unwrap().object;
    defaults::apply(gvk, &mut object);
    if set(at(&object, "metadata"), "name") || !set(at(&object, "metadata"), "generateName") {
        let namespaced = !matches!(gvk.kind.as_str(), "Node" | "Namespace");
        if namespaced && !set(at(&object, "metadata"), "namespace") {
            object["metadata"]["namespace"] = json!("default");
        }
    }
    object
}

fn messages(group: &str, kind: &str, body: Value) -> Vec<String> {
    let gvk = gvk(group, kind);
    create(&gvk, &prepared(&gvk, &body)).iter().map(ToString::to_string).collect()
}

fn pod(spec: Value) -> Vec<String> {
    messages("", "Pod", json!({"metadata": {"name": "a"}, "spec": spec}))
}

#[test]
fn pods() {
    let ok = json!({"containers": [{"name": "c", "image": "i"}]});
    assert!(pod(ok).is_empty());
    for (spec, want) in [
        (json!({}), vec!["spec.containers: Required value"]),
        (
            json!({"containers": [{"name": "A", "image": ""}, {"name": "b", "image": " i"}, {"name": "b", "image": "i"}]}),
            vec![
                "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                "spec.containers[0].image: Required value",
                "spec.containers[2].name: Duplicate value: \"b\"",
                "spec.containers[1].image: Invalid value: \" i\": must not have leading or trailing whitespace",
            ],
        ),
        (
            json!({"restartPolicy": "Sometimes", "dnsPolicy": "None", "containers": [{"name": "c", "image": "i",
                "ports": [{"containerPort": 70000, "protocol": "X", "name": "80"}],
                "volumeMounts": [{"name": "v", "mountPath": "/a"}],
                "livenessProbe": {"successThreshold": 2, "httpGet": {"port": 0}, "tcpSocket": {"port": 1}},
                "resources": {"requests": {"cpu": "2", "podz": "1"}, "limits": {"cpu": "1"}}}]}),
            vec![
                "spec.containers[0].ports[0].name: Invalid value: \"80\": must contain at least one letter (a-z)",
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
                "spec.containers[0].resources.requests[podz]: Invalid value: \"podz\": must be a standard resource type or fully qualified",
                "spec.containers[0].resources.requests[podz]: Invalid value: \"podz\": must be a standard resource for containers",
                "spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
                "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            ],
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "env": [{"name": ""}, {"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "spec.nope"}}}],
                   "envFrom": [{}]}],
                   "tolerations": [{"operator": "Equal"}], "nodeSelector": {"a b": "c"}, "activeDeadlineSeconds": 0}),
            vec![
                "spec.containers[0].env[0].name: Required value",
                "spec.containers[0].env[1].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.nope\": error converting fieldPath: field label not supported: spec.nope",
                "spec.containers[0].env[1].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
                "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
                "spec.nodeSelector: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ],
        ),
        (
            json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x/../y"}}, {"name": "w", "secret": {}}],
                   "containers": [{"name": "c", "image": "i"}]}),
            vec![
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
                "spec.volumes[1].secret.secretName: Required value",
            ],
        ),
    ] {
        // The rules that come first upstream come first here; compare as sets where upstream's order is a map's.
        assert_eq!(pod(spec.clone()), want, "{spec}");
    }
}

#[test]
fn pod_updates() {
    let kind = gvk("", "Pod");
    let mut old = prepared(
        &kind,
        &json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}),
    );
    old["metadata"]["resourceVersion"] = json!("1");
    let check = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        update(&kind, &new, &old).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(check(&|p| p["spec"]["containers"][0]["image"] = json!("i:2")).is_empty());
    assert!(check(&|p| p["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}])).is_empty());
    let bad = check(&|p| p["spec"]["containers"][0]["command"] = json!(["x"]));
    assert!(
        bad[0].starts_with(
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
        ),
        "{bad:?}"
    );
    assert_eq!(
        check(&|p| p["spec"]["containers"].as_array_mut().unwrap().clear()).last().unwrap(),
        "spec.containers: Forbidden: pod updates may not add or remove containers"
    );
    assert_eq!(
        check(&|p| p["spec"]["schedulingGates"] = json!([{"name": "e.com/g"}])),
        [
            "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'e.com/g'"
        ]
    );
    assert_eq!(
        check(&|p| p["metadata"]["uid"] = json!("x")),
        ["metadata.uid: Invalid value: \"x\": field is immutable"; 2]
    );
    assert_eq!(
        check(&|p| p["metadata"]["resourceVersion"] = json!(""))[0],
        "metadata.resourceVersion: Invalid value: \"\": must be specified for an update"
    );
}

#[test]
fn deployments() {
    let body = |spec: Value| json!({"metadata": {"name": "w"}, "spec": spec});
    let template =
        json!({"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(
        messages("apps", "Deployment", body(json!({"template": template}))),
        [
            "spec.selector: Required value",
            "spec.template.metadata.labels: Invalid value: {\"app\":\"w\"}: `selector` does not match template `labels`"
        ]
    );
    assert_eq!(
        messages("apps", "Deployment", body(json!({"selector": {}, "template": template}))),
        ["spec.selector: Invalid value: {}: empty selector is invalid for deployment"]
    );
    assert_eq!(
        messages(
            "apps",
            "Deployment",
            body(json!({"selector": {"matchLabels": {"app": "w"}}, "template": template, "replicas": -1,
                "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}, "minReadySeconds": 600}))
        ),
        [
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
        ]
    );
    let kind = gvk("apps", "Deployment");
    let mut old =
        prepared(&kind, &body(json!({"selector": {"matchLabels": {"app": "w"}}, "template": template})));
    old["metadata"]["resourceVersion"] = json!("1");
    let mut new = old.clone();
    new["spec"]["selector"]["matchLabels"]["app"] = json!("z");
    new["spec"]["template"]["metadata"]["labels"]["app"] = json!("z");
    let errs: Vec<_> = update(&kind, &new, &old).iter().map(ToString::to_string).collect();
    assert_eq!(errs, ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"z\"}}: field is immutable"]);
}

#[test]
fn config() {
    assert_eq!(
        messages("", "ConfigMap", json!({"metadata": {"name": "a"}, "data": {"a/b": "x"}}))[0],
        "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
    );
    let big = json!({"metadata": {"name": "a"}, "data": {"a": "x".repeat((1 << 20) + 1)}});
    assert_eq!(messages("", "ConfigMap", big), [": Too long: may not be more than 1048576 bytes"]);
    assert_eq!(
        messages("", "Secret", json!({"metadata": {"name": "a"}, "type": "kubernetes.io/tls", "data": {}})),
        ["data[tls.crt]: Required value", "data[tls.key]: Required value"]
    );
    assert!(messages("", "Namespace", json!({"metadata": {"name": "a"}})).is_empty());
    assert!(messages("", "Node", json!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]}})).is_empty());
}

/// An object as a Status: what a client sees.
fn status(gvk: &GroupVersionKind, object: &Value, errs: &[FieldError]) -> Value {
    // Both groups of Event have one internal kind, which has none.
    let group = if gvk.kind == "Event" { "" } else { gvk.group.as_str() };
    ApiError::invalid(group, &gvk.kind, text(at(object, "metadata"), "name"), errs).to_status()
}

/// Recorded refusals of creations that validation alone decides, in every field.
#[test]
fn agrees_with_recorded_refusals() {
    let root = std::env::var_os("KELP_SHARED").map(std::path::PathBuf::from).or_else(|| {
        let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().ok()?;
        Some(workspace.parent()?.join("shared"))
    });
    let Some(root) = root.map(|r| r.join("data/kubernetes-1.36")).filter(|d| d.is_dir()) else {
        eprintln!("no recorded answers: set KELP_SHARED to check against them");
        return;
    };
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(root.join(name)).unwrap()).unwrap()
    };
    let (pairs, scenarios) = (read("request-response-cases.json"), read("api-scenarios.json"));
    let mut steps: Vec<(String, Value)> = Vec::new();
    for case in pairs.as_array().into_iter().flatten() {
        steps.push((text(case, "name").to_owned(), case.clone()));
    }
    for scenario in list(&scenarios, "scenarios") {
        for step in list(scenario, "steps") {
            steps.push((text(scenario, "name").to_owned(), step.clone()));
        }
    }
    // Kinds that have rules here, and what something else than validation refuses.
    const KINDS: [&str; 17] = [
        "CronJob",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "Pod",
        "Service",
        "Deployment",
        "ReplicaSet",
        "ConfigMap",
        "Secret",
        "Namespace",
        "Node",
        "Lease",
        "Endpoints",
        "EndpointSlice",
        "LimitRange",
        "ResourceQuota",
        "Event",
    ];
    let elsewhere = |message: &str| {
        message.starts_with("CreateOptions")
            || message.contains("failed to allocate")
            || message.contains("this cluster")
            || message.contains("must be 'RequireDualStack'")
    };
    let (mut checked, mut wrong) = (0, Vec::new());
    for (name, step) in &steps {
        let (request, response) = (at(step, "request"), at(step, "response"));
        let kind = text(request, "kind");
        let recorded = step["status"] == 422 && text(step, "method") == "POST";
        if !recorded || !KINDS.contains(&kind) || elsewhere(text(response, "message")) {
            continue;
        }
        let gvk = GroupVersionKind::from_api_version(text(request, "apiVersion"), kind);
        let mut object = prepared(&gvk, request);
        if text(&object["regarding"], "namespace") == "<ns>" {
            object["regarding"]["namespace"] = object["metadata"]["namespace"].clone();
        }
        // As the service strategy does before it validates.
        if kind == "Service" && set(&object["spec"], "clusterIP") && !set(&object["spec"], "clusterIPs") {
            object["spec"]["clusterIPs"] = json!([object["spec"]["clusterIP"]]);
        }
        let ours = status(&gvk, &object, &create(&gvk, &object));
        if ours != *response {
            wrong.push(format!("{name}\n  ours     {}\n  recorded {}", ours["message"], response["message"]));
        }
        checked += 1;
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked > 20, "only {checked} refusals were compared");
}
