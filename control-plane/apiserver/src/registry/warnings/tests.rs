use super::*;
use serde_json::json;

fn pod(spec: Value) -> Vec<String> {
    of_pod(&json!({"metadata": {"name": "p"}, "spec": spec}))
}

#[test]
fn names_become_host_names() {
    let told = of_pod(&json!({"metadata": {"name": "a.b"}, "spec": {}}));
    let [only] = told.as_slice() else { panic!("{told:?}") };
    assert!(only.starts_with("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]"), "{only}");
    let deployment = json!({"metadata": {"name": "a.b"}, "spec": {}});
    let told = of_owner(&deployment, true);
    assert!(
        told.first()
            .is_some_and(|t| t.starts_with("metadata.name: this is used in Pod names and hostnames,"))
    );
    assert!(of_owner(&deployment, false).is_empty());
    assert!(of_set(&deployment, true).is_empty());
}

#[test]
fn variables_that_hide_others() {
    let told = pod(json!({"containers": [{"env": [
        {"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)3"},
        {"name": "A", "value": "$(A)"}, {"name": "A", "valueFrom": {"fieldRef": {}}}]}]}));
    let hides = |i: usize| {
        format!(
            "spec.containers[0].env[{i}]: hides previous definition of \"A\", which may be dropped when using apply"
        )
    };
    assert_eq!(told, [hides(1), hides(3), hides(4)]);
}

#[test]
fn ports_that_meet() {
    let told = pod(json!({"initContainers": [{"ports": [{"containerPort": 80, "protocol": "TCP"}]}],
        "containers": [{"ports": [
            {"containerPort": 80, "protocol": "TCP"},
            {"containerPort": 80, "protocol": "UDP", "hostIP": "1.2.3.4"},
            {"containerPort": 80, "protocol": "TCP", "hostPort": 5},
            {"containerPort": 80, "protocol": "TCP", "hostPort": 5, "hostIP": "1.2.3.4"}]}]}));
    let at = |i: usize| format!("spec.containers[0].ports[{i}]");
    let init = "spec.initContainers[0].ports[0]";
    assert_eq!(
        told,
        [
            format!("{}: duplicate port definition with {init}", at(0)),
            format!(
                "{}: hostIP set without hostPort: {{Name: HostPort:0 ContainerPort:80 Protocol:UDP HostIP:1.2.3.4}}",
                at(1)
            ),
            format!("{}: overlapping port definition with {init}", at(2)),
            format!("{}: overlapping port definition with {}", at(2), at(0)),
            format!("{}: overlapping port definition with {init}", at(3)),
            format!("{}: overlapping port definition with {}", at(3), at(0)),
            format!("{}: dangerously ambiguous port definition with {}", at(3), at(2)),
        ]
    );
}

#[test]
fn files_that_meet() {
    let told = pod(json!({"volumes": [
        {"name": "c", "configMap": {"name": "m", "items": [
            {"path": "a"}, {"path": "ab"}, {"path": "a/b/"}, {"path": "x/y"}, {"path": "x"}, {"path": "x"}]}},
        {"name": "p", "projected": {"sources": [{},
            {"configMap": {"name": "m", "items": [{"path": "token"}]}},
            {"secret": {"name": "s", "items": [{"path": "other"}]}},
            {"serviceAccountToken": {"path": "token"}}]}}]}));
    assert_eq!(
        told,
        [
            "volume \"c\" (ConfigMap \"m\"): overlapping paths: \"a/b\" with \"a\"",
            "volume \"c\" (ConfigMap \"m\"): overlapping paths: \"x\" with \"x/y\"",
            "volume \"c\" (ConfigMap \"m\"): overlapping paths: \"x\" with \"x/y\"",
            "volume \"c\" (ConfigMap \"m\"): overlapping paths: \"x\" with \"x\"",
            "volume \"p\" (Projected) has no sources provided",
            "volume \"p\" (Projected): overlapping paths: \"token\" (ServiceAccountToken) with \"token\" (ConfigMap \"m\")",
        ]
    );
}

#[test]
fn old_and_odd_fields_of_templates() {
    let told = of_owner(
        &json!({"metadata": {"name": "d"}, "spec": {"template": {
            "metadata": {"annotations": {"scheduler.alpha.kubernetes.io/critical-pod": "",
                "container.apparmor.security.beta.kubernetes.io/c": "runtime/default",
                "container.seccomp.security.alpha.kubernetes.io/c": "runtime/default"}},
            "spec": {
                "nodeSelector": {"beta.kubernetes.io/os": "linux", "x": "y"},
                "topologySpreadConstraints": [{"topologyKey": "failure-domain.beta.kubernetes.io/zone"}],
                "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"podAffinityTerm": {"topologyKey": "x"}}]}},
                "volumes": [{"name": "s", "storageos": {}}, {"name": "e", "ephemeral": {"volumeClaimTemplate":
                    {"spec": {"resources": {"requests": {"storage": "1500m"}}}}}}],
                "imagePullSecrets": [{"name": "a"}, {"name": "a"}, {}],
                "terminationGracePeriodSeconds": -1,
                "hostAliases": [{"ip": "010.0.0.1"}],
                "containers": [{"name": "c", "resources": {"limits": {"memory": "100m"}}}]}}}}),
        false,
    );
    let path = |rest: &str| format!("spec.template.{rest}");
    assert_eq!(
        told,
        [
            path(
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead"
            ),
            path(
                "spec.topologySpreadConstraints[0].topologyKey: failure-domain.beta.kubernetes.io/zone is deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
            ),
            path(
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod"
            ),
            path(
                r#"metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the \"priorityClassName\" field instead"#
            ),
            path("spec.volumes[0].storageOS: deprecated in v1.22, non-functional in v1.25+"),
            path(
                "spec.volumes[1].ephemeral.volumeClaimTemplate.spec.resources.requests[storage]: fractional byte value \"1500m\" is invalid, must be an integer"
            ),
            path("spec.imagePullSecrets[1].name: duplicate name \"a\""),
            path("spec.imagePullSecrets[2].name: invalid empty name \"\""),
            path(
                r#"metadata.annotations[container.seccomp.security.alpha.kubernetes.io/c]: non-functional in v1.27+; use the \"seccompProfile\" field instead"#
            ),
            path(
                r#"metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated since v1.30; use the \"appArmorProfile\" field instead"#
            ),
            path(
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer"
            ),
            path(
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
            ),
            path(
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod"
            ),
            path(
                "spec.hostAliases[0].ip: non-standard IP address \"010.0.0.1\" is invalid: use \"10.0.0.1\""
            ),
        ]
    );
}

#[test]
fn volumes_sets_and_schedules() {
    let told =
        of_volume(&json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "x"}},
        "spec": {"persistentVolumeReclaimPolicy": "Recycle", "rbd": {}, "capacity": {"storage": "1m"}}}));
    assert_eq!(told.len(), 4, "{told:?}");
    assert_eq!(
        told.get(2).map(String::as_str),
        Some("spec.rbd: deprecated in v1.28, non-functional in v1.31+")
    );
    let told = of_stateful_set(&json!({"spec": {"revisionHistoryLimit": -1, "volumeClaimTemplates": [
        {"spec": {"resources": {"requests": {"storage": "1m"}}}}]}}));
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(of_schedule(&json!({"spec": {"schedule": "0 * * * *"}})).is_empty());
    assert_eq!(of_schedule(&json!({"spec": {"schedule": "TZ=UTC 0 * * * *"}})).len(), 1);
    let spec = json!({"completionMode": "Indexed", "completions": 100_001, "parallelism": 10_001});
    assert_eq!(of_job(&json!({"metadata": {"name": "j"}, "spec": spec}), true).len(), 1);
}
