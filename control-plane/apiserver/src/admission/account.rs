//! The service account of pods: it must exist, its token is mounted into every container, its pull secrets are used
//! (upstream's `ServiceAccount` admission).

use super::forbidden;
use crate::auth::references::{Referred, containers, of_pod};
use crate::cache::Entry;
use crate::error::{ApiError, quote};
use crate::object::{get, list_at, map_mut, meta, str_at};
use crate::server::Core;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long a new pod waits for the default ServiceAccount of its namespace, which a controller makes.
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);
/// Where tokens are mounted.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What the names of token volumes begin with.
const VOLUME: &str = "kube-api-access-";
/// Life of mounted tokens, in seconds: an odd number by which the server recognizes clients that may read it only once.
const LIFETIME: i64 = 3607;

/// Completes and checks a new pod.
pub(super) async fn admit(core: &Core, pod: &mut Value) -> Result<(), ApiError> {
    if get(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_some() {
        // A static pod's mirror is what the node made it.
        return mirror(pod).map_err(|why| forbidden(pod, why));
    }
    let name = match str_at(pod, &["spec", "serviceAccountName"]) {
        "" => "default",
        name => name,
    }
    .to_owned();
    let namespace = meta(pod, "namespace").to_owned();
    let Some(account) = find(core, &namespace, &name).await? else {
        let why = format!(
            "error looking up service account {namespace}/{name}: serviceaccount {} not found",
            quote(&name)
        );
        return Err(forbidden(pod, &why));
    };
    let account = account.encoded.parse();
    let spec = map_mut(pod, "spec");
    spec.insert("serviceAccountName".into(), name.clone().into());
    // The old name of the field is kept for old clients.
    spec.insert("serviceAccount".into(), name.into());
    if mounts_token(&account, pod) {
        mount_token(pod);
    }
    if list_at(pod, &["spec", "imagePullSecrets"]).is_empty()
        && let Some(secrets) = get(&account, &["imagePullSecrets"])
    {
        map_mut(pod, "spec").insert("imagePullSecrets".into(), secrets.clone());
    }
    limit_secrets(&account, pod).map_err(|why| forbidden(pod, &why))
}

/// What mirror pods must not refer to.
fn mirror(pod: &Value) -> Result<(), &'static str> {
    if !str_at(pod, &["spec", "serviceAccountName"]).is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    let references = of_pod(pod);
    let has = |kind: Referred| references.iter().any(|(own, _)| *own == kind);
    if has(Referred::Secret) {
        return Err("a mirror pod may not reference secrets");
    }
    if has(Referred::ConfigMap) {
        return Err("a mirror pod may not reference configmaps");
    }
    let volumes = list_at(pod, &["spec", "volumes"]);
    let token = |source: &Value| get(source, &["serviceAccountToken"]).is_some();
    if volumes.iter().any(|volume| list_at(volume, &["projected", "sources"]).iter().any(token)) {
        return Err("a mirror pod may not use service account token projections");
    }
    Ok(())
}

async fn find(core: &Core, namespace: &str, name: &str) -> Result<Option<Arc<Entry>>, ApiError> {
    let Some(accounts) = core.builtin.find("", "v1", "serviceaccounts") else { return Ok(None) };
    let cache = core.cache(accounts);
    cache.wait_loaded().await?;
    if let Some(found) = cache.get(namespace, name) {
        return Ok(Some(found));
    }
    cache.wait_fresh().await?;
    if name != "default" {
        return Ok(cache.get(namespace, name));
    }
    let mut changes = cache.changes();
    let appears = async {
        loop {
            changes.mark_unchanged();
            if let Some(found) = cache.get(namespace, name) {
                return Some(found);
            }
            changes.changed().await.ok()?;
        }
    };
    Ok(tokio::time::timeout(ACCOUNT_WAIT, appears).await.unwrap_or_default())
}

/// Whether the token is mounted: the pod says so first, then its account.
fn mounts_token(account: &Value, pod: &Value) -> bool {
    let field = "automountServiceAccountToken";
    let own = get(pod, &["spec", field]).or_else(|| get(account, &[field])).and_then(Value::as_bool);
    own.unwrap_or(true)
}

fn mount_token(pod: &mut Value) {
    let existing = list_at(pod, &["spec", "volumes"])
        .iter()
        .map(|volume| str_at(volume, &["name"]))
        .find(|name| name.starts_with(VOLUME))
        .map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| crate::handlers::generated(VOLUME));
    let mut needed = false;
    let spec = map_mut(pod, "spec");
    for field in ["initContainers", "containers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            // Who mounts something there does not want the token.
            if list_at(container, &["volumeMounts"]).iter().any(|m| str_at(m, &["mountPath"]) == MOUNT_PATH) {
                continue;
            }
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            if let Some(mounts) = mounts.as_array_mut() {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                needed = true;
            }
        }
    }
    if existing.is_some() || !needed {
        return;
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(token_volume(&name));
    }
}

/// Token, authority of the API server, namespace, and the authority of services' certificates.
fn token_volume(name: &str) -> Value {
    let map =
        |name: &str, key: &str| json!({"configMap": {"name": name, "items": [{"key": key, "path": key}]}});
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": LIFETIME, "path": "token"}},
        map("kube-root-ca.crt", "ca.crt"),
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        map("openshift-service-ca.crt", "service-ca.crt")]}})
}

/// An account may say that its pods use the secrets it lists and no others.
fn limit_secrets(account: &Value, pod: &Value) -> Result<(), String> {
    let annotation = ["metadata", "annotations", "kubernetes.io/enforce-mountable-secrets"];
    if !matches!(str_at(account, &annotation), "1" | "t" | "T" | "true" | "TRUE" | "True") {
        return Ok(());
    }
    let names = |field: &str| {
        list_at(account, &[field]).iter().map(|s| str_at(s, &["name"]).to_owned()).collect::<Vec<_>>()
    };
    let name = meta(account, "name");
    let (mountable, pull) = (names("secrets"), names("imagePullSecrets"));
    let refused = |secret: &str| !secret.is_empty() && !mountable.iter().any(|own| own == secret);
    let end = format!("is not allowed because service account {name} does not reference that");
    for volume in list_at(pod, &["spec", "volumes"]) {
        let secret = str_at(volume, &["secret", "secretName"]);
        if refused(secret) {
            return Err(format!("volume with secret.secretName=\"{secret}\" {end} secret"));
        }
    }
    for container in containers(pod) {
        let init = list_at(pod, &["spec", "initContainers"]).iter().any(|own| std::ptr::eq(own, container));
        for env in list_at(container, &["env"]) {
            let secret = str_at(env, &["valueFrom", "secretKeyRef", "name"]);
            if refused(secret) {
                return Err(format!(
                    "{}container {} with envVar {} referencing secret.secretName=\"{secret}\" {end} secret",
                    if init { "init " } else { "" },
                    str_at(container, &["name"]),
                    str_at(env, &["name"])
                ));
            }
        }
        for from in list_at(container, &["envFrom"]) {
            let secret = str_at(from, &["secretRef", "name"]);
            if refused(secret) {
                return Err(format!(
                    "{}container {} with envFrom referencing secret.secretName=\"{secret}\" {end} secret",
                    if init { "init " } else { "" },
                    str_at(container, &["name"])
                ));
            }
        }
    }
    for (i, secret) in list_at(pod, &["spec", "imagePullSecrets"]).iter().enumerate() {
        let secret = str_at(secret, &["name"]);
        if !pull.iter().any(|own| own == secret) {
            return Err(format!("imagePullSecrets[{i}].name=\"{secret}\" {end} imagePullSecret"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_says_first_whether_the_token_is_mounted() {
        let pod = |own: Value| json!({"spec": {"automountServiceAccountToken": own}});
        let account = |own: Value| json!({"automountServiceAccountToken": own});
        assert!(mounts_token(&account(Value::Null), &pod(Value::Null)));
        assert!(!mounts_token(&account(json!(false)), &pod(Value::Null)));
        assert!(mounts_token(&account(json!(false)), &pod(json!(true))));
        assert!(!mounts_token(&account(json!(true)), &pod(json!(false))));
    }

    #[test]
    fn one_volume_for_all_containers_that_want_it() {
        let own = json!([{"name": "v", "mountPath": MOUNT_PATH}]);
        let mut pod = json!({"spec": {"initContainers": [{"name": "i"}],
            "containers": [{"name": "c", "volumeMounts": own}, {"name": "d"}], "volumes": [{"name": "v"}]}});
        mount_token(&mut pod);
        assert_eq!(list_at(&pod, &["spec", "volumes"]).len(), 2);
        let name = str_at(&pod["spec"]["volumes"][1], &["name"]).to_owned();
        assert!(name.starts_with(VOLUME) && name.len() == VOLUME.len() + 5);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"], own);
        let mount = json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}]);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"], mount);
        assert_eq!(pod["spec"]["initContainers"][0]["volumeMounts"], mount);
        // A second admission adds nothing.
        let before = pod.clone();
        mount_token(&mut pod);
        assert_eq!(pod, before);
        let mut none = json!({"spec": {"containers": [{"volumeMounts": own}]}});
        mount_token(&mut none);
        assert!(none["spec"].get("volumes").is_none());
    }

    #[test]
    fn accounts_that_list_their_secrets() {
        let account = json!({"metadata": {"name": "a", "annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}},
            "secrets": [{"name": "s"}], "imagePullSecrets": [{"name": "p"}]});
        let check = |spec: Value| limit_secrets(&account, &json!({"spec": spec}));
        assert_eq!(
            check(json!({"volumes": [{"secret": {"secretName": "s"}}], "imagePullSecrets": [{"name": "p"}]})),
            Ok(())
        );
        assert_eq!(
            check(json!({"volumes": [{"secret": {"secretName": "t"}}]})),
            Err("volume with secret.secretName=\"t\" is not allowed because service account a does not reference that secret".into())
        );
        let env = json!([{"name": "e", "valueFrom": {"secretKeyRef": {"name": "t"}}}]);
        assert_eq!(
            check(json!({"initContainers": [{"name": "c", "env": env}]})),
            Err("init container c with envVar e referencing secret.secretName=\"t\" is not allowed because service account a does not reference that secret".into())
        );
        assert_eq!(
            check(json!({"imagePullSecrets": [{"name": "q"}]})),
            Err("imagePullSecrets[0].name=\"q\" is not allowed because service account a does not reference that imagePullSecret".into())
        );
        assert_eq!(
            limit_secrets(&json!({"metadata": {}}), &json!({"spec": {"imagePullSecrets": [{"name": "q"}]}})),
            Ok(())
        );
    }

    #[test]
    fn mirror_pods_refer_to_nothing() {
        assert_eq!(mirror(&json!({"spec": {}})), Ok(()));
        assert!(mirror(&json!({"spec": {"serviceAccountName": "x"}})).is_err());
        let token = json!({"spec": {"volumes": [token_volume("x")]}});
        assert_eq!(mirror(&token), Err("a mirror pod may not reference configmaps"));
    }
}
