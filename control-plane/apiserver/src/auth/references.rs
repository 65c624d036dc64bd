//! Which other objects a pod or a persistent volume names.

use crate::object::{list_at, meta, str_at};
use serde_json::Value;

/// Kinds that pods refer to and nodes may then read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Referred {
    Secret,
    ConfigMap,
    Claim,
    Account,
    ResourceClaim,
}

/// Volume sources with a secret at `secretRef.name`.
const SECRET_REFS: &[&str] = &["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"];

/// The containers of a pod of every sort.
pub(crate) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|field| list_at(pod, &["spec", field]))
}

/// Names in the pod's namespace that the pod refers to, with their kinds; some may come twice.
pub(crate) fn of_pod(pod: &Value) -> Vec<(Referred, String)> {
    let mut out = Vec::new();
    let mut add = |kind: Referred, name: &str| {
        if !name.is_empty() {
            out.push((kind, name.to_owned()));
        }
    };
    add(Referred::Account, str_at(pod, &["spec", "serviceAccountName"]));
    for secret in list_at(pod, &["spec", "imagePullSecrets"]) {
        add(Referred::Secret, str_at(secret, &["name"]));
    }
    for container in containers(pod) {
        for from in list_at(container, &["envFrom"]) {
            add(Referred::Secret, str_at(from, &["secretRef", "name"]));
            add(Referred::ConfigMap, str_at(from, &["configMapRef", "name"]));
        }
        for env in list_at(container, &["env"]) {
            add(Referred::Secret, str_at(env, &["valueFrom", "secretKeyRef", "name"]));
            add(Referred::ConfigMap, str_at(env, &["valueFrom", "configMapKeyRef", "name"]));
        }
    }
    for volume in list_at(pod, &["spec", "volumes"]) {
        add(Referred::Secret, str_at(volume, &["secret", "secretName"]));
        add(Referred::Secret, str_at(volume, &["azureFile", "secretName"]));
        add(Referred::Secret, str_at(volume, &["csi", "nodePublishSecretRef", "name"]));
        for source in SECRET_REFS {
            add(Referred::Secret, str_at(volume, &[source, "secretRef", "name"]));
        }
        add(Referred::ConfigMap, str_at(volume, &["configMap", "name"]));
        for source in list_at(volume, &["projected", "sources"]) {
            add(Referred::Secret, str_at(source, &["secret", "name"]));
            add(Referred::ConfigMap, str_at(source, &["configMap", "name"]));
        }
        add(Referred::Claim, str_at(volume, &["persistentVolumeClaim", "claimName"]));
        if volume.get("ephemeral").is_some_and(Value::is_object) {
            add(Referred::Claim, &format!("{}-{}", meta(pod, "name"), str_at(volume, &["name"])));
        }
    }
    for claim in list_at(pod, &["status", "resourceClaimStatuses"]) {
        add(Referred::ResourceClaim, str_at(claim, &["resourceClaimName"]));
    }
    for claim in list_at(pod, &["spec", "resourceClaims"]) {
        add(Referred::ResourceClaim, str_at(claim, &["resourceClaimName"]));
    }
    out
}

/// `namespace/name` of the claim that a persistent volume is bound to, if any, and of the secrets that a node needs for
/// the volume.
pub(crate) fn of_volume(volume: &Value) -> (Option<String>, Vec<String>) {
    let claim = |field| str_at(volume, &["spec", "claimRef", field]);
    let bound = (!claim("name").is_empty()).then(|| format!("{}/{}", claim("namespace"), claim("name")));
    let mut secrets = Vec::new();
    let mut add = |name: &str, namespace: &str| {
        let namespace = if namespace.is_empty() { claim("namespace") } else { namespace };
        if !name.is_empty() && !namespace.is_empty() {
            secrets.push(format!("{namespace}/{name}"));
        }
    };
    add(
        str_at(volume, &["spec", "azureFile", "secretName"]),
        str_at(volume, &["spec", "azureFile", "secretNamespace"]),
    );
    let source = |path: &[&str], field: &str| {
        let mut whole = vec!["spec"];
        whole.extend(path);
        whole.push(field);
        str_at(volume, &whole).to_owned()
    };
    let mut paths: Vec<[&str; 2]> = SECRET_REFS.iter().map(|kind| [*kind, "secretRef"]).collect();
    // What only controllers need is not for nodes.
    paths.extend(
        ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"].map(|field| ["csi", field]),
    );
    for path in paths {
        add(&source(&path, "name"), &source(&path, "namespace"));
    }
    (bound, secrets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_a_pod_names() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "s1"}}, {"configMapRef": {"name": "c1"}}]}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s2"}}},
                {"valueFrom": {"configMapKeyRef": {"name": "c2"}}}]}],
            "volumes": [{"secret": {"secretName": "s3"}}, {"configMap": {"name": "c3"}},
                {"projected": {"sources": [{"secret": {"name": "s4"}}, {"configMap": {"name": "c4"}}]}},
                {"persistentVolumeClaim": {"claimName": "v1"}}, {"name": "e", "ephemeral": {}},
                {"rbd": {"secretRef": {"name": "s5"}}}]}});
        let all = of_pod(&pod);
        let of = |kind| all.iter().filter(|(k, _)| *k == kind).map(|(_, n)| n.as_str()).collect::<Vec<_>>();
        assert_eq!(of(Referred::Secret), ["pull", "s1", "s2", "s3", "s4", "s5"]);
        assert_eq!(of(Referred::ConfigMap), ["c1", "c2", "c3", "c4"]);
        assert_eq!(of(Referred::Claim), ["v1", "p-e"]);
        assert_eq!(of(Referred::Account), ["sa"]);
    }

    #[test]
    fn secrets_of_volumes() {
        let volume = json!({"spec": {"claimRef": {"namespace": "ns", "name": "c"},
            "csi": {"nodeStageSecretRef": {"namespace": "x", "name": "s"},
                "controllerPublishSecretRef": {"namespace": "x", "name": "t"}},
            "azureFile": {"secretName": "a"}}});
        assert_eq!(of_volume(&volume), (Some("ns/c".into()), vec!["ns/a".into(), "x/s".into()]));
        assert_eq!(of_volume(&json!({"spec": {}})), (None, vec![]));
    }
}
