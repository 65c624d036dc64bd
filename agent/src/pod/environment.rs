//! Environment variables of a container.

use crate::pod::objects::{Key, Kind, Objects};
use crate::pod::volumes::Downward;
use k8s_openapi::api::core::v1::Container;
use kelp_model::pod::env::expand;
use std::collections::BTreeMap;

/// Variables in order; a later one of a name replaces the earlier one in its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value.into(),
            None => self.0.push((name.to_owned(), value.into())),
        }
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = &(String, String)> {
        self.0.iter()
    }

    /// `NAME=value`.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(|(n, v)| format!("{n}={v}")).collect()
    }
}

/// Resolves envFrom and env of a container. `services` are the variables of services: env may refer to them and
/// replace them.
///
/// # Errors
/// A referenced object or key is missing; the text is that of `CreateContainerConfigError`.
pub async fn resolve(
    container: &Container,
    objects: &Objects,
    downward: &Downward<'_>,
    services: &BTreeMap<String, String>,
) -> Result<Environment, String> {
    let namespace = downward.pod.metadata.namespace.clone().unwrap_or_default();
    let mut env = Environment::default();
    for (name, value) in services {
        env.set(name, value.clone());
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(map), _) => (Kind::ConfigMap, &map.name, map.optional),
            (None, Some(secret)) => (Kind::Secret, &secret.name, secret.optional),
            (None, None) => continue,
        };
        let key = Key { kind, namespace: namespace.clone(), name: name.clone() };
        let Some(data) = objects.get(&key).await? else {
            if optional == Some(true) {
                continue;
            }
            return Err(missing(kind, name));
        };
        for (key, value) in data.iter() {
            env.set(&format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => {
                if let Some(field) = &source.field_ref {
                    Some(downward.field(field)?)
                } else if let Some(resource) = &source.resource_field_ref {
                    let of =
                        resource.container_name.as_deref().filter(|n| !n.is_empty() && *n != container.name);
                    let spec = downward.pod.spec.as_ref();
                    let other = of.and_then(|name| spec.and_then(|s| kelp_model::pod::spec::find(s, name)));
                    Some(downward.resource(other.map_or(container, |(_, c)| c), resource)?)
                } else if let Some(map) = &source.config_map_key_ref {
                    one(objects, Kind::ConfigMap, &namespace, &map.name, &map.key, map.optional).await?
                } else if let Some(secret) = &source.secret_key_ref {
                    one(objects, Kind::Secret, &namespace, &secret.name, &secret.key, secret.optional).await?
                } else {
                    None
                }
            }
            (Some(text), None) => Some(expand(text, |name| env.get(name))),
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(&variable.name, value);
        }
    }
    Ok(env)
}

fn missing(kind: Kind, name: &str) -> String {
    match kind {
        Kind::ConfigMap => format!("configmap {name:?} not found"),
        Kind::Secret => format!("secret {name:?} not found"),
    }
}

async fn one(
    objects: &Objects,
    kind: Kind,
    namespace: &str,
    name: &str,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, String> {
    let object = Key { kind, namespace: namespace.to_owned(), name: name.to_owned() };
    let found = objects.get(&object).await?;
    let optional = optional == Some(true);
    match found {
        None if optional => Ok(None),
        None => Err(missing(kind, name)),
        Some(data) => match data.get(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => {
                let kind = match kind {
                    Kind::ConfigMap => "ConfigMap",
                    Kind::Secret => "Secret",
                };
                Err(format!("couldn't find key {key} in {kind} {namespace}/{name}"))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    #[tokio::test]
    async fn sources_order_and_expansion() {
        let key = |kind, name: &str| Key { kind, namespace: "n".into(), name: name.into() };
        let objects = Objects::fixed([
            (key(Kind::ConfigMap, "cm"), BTreeMap::from([("k".to_owned(), b"1".to_vec())])),
            (key(Kind::Secret, "s"), BTreeMap::from([("p".to_owned(), b"2".to_vec())])),
        ]);
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": []}}))
        .unwrap();
        let downward = Downward {
            pod: &pod,
            node_name: "node1",
            host_ips: &[],
            pod_ips: &[],
            node_milli_cpu: 2000,
            node_memory: 0,
        };
        let container: Container = serde_json::from_value(json!({"name": "c",
            "envFrom": [{"prefix": "X_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "no", "optional": true}}],
            "env": [{"name": "A", "value": "$(X_k)-$(SVC)-$(B)"}, {"name": "B", "value": "b"},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
                    {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "q", "optional": true}}},
                    {"name": "SVC", "value": "mine"}]}))
        .unwrap();
        let services = BTreeMap::from([("SVC".to_owned(), "s".to_owned())]);
        let env = resolve(&container, &objects, &downward, &services).await.unwrap();
        assert_eq!(env.lines(), ["SVC=mine", "X_k=1", "A=1-s-$(B)", "B=b", "NODE=node1", "CPU=2", "P=2"]);
        let missing: Container = serde_json::from_value(json!({"name": "c",
            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "nokey"}}}]}))
        .unwrap();
        let error = resolve(&missing, &objects, &downward, &BTreeMap::new()).await.unwrap_err();
        assert_eq!(error, "couldn't find key nokey in Secret n/s");
    }
}
