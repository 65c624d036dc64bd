//! Defaults: what upstream fills in between decoding and admission. Facts that the type table holds (its defaults,
//! resource lists in whole thousandths) are applied to every kind; the rest is a function per kind.

mod config;
mod core;
mod pod;
mod resource;
mod workload;

use serde_json::{Map, Value, json};

use crate::gvk::GroupVersionKind;
use crate::schema::{self, Type, TypeSchema};
use kelp_model::quantity::Quantity;

/// Fills in the defaults of a built-in kind. The object must be in canonical form (as decoding leaves it).
pub fn apply(gvk: &GroupVersionKind, object: &mut Value) {
    let Some(schema) = schema::by_gvk(gvk) else { return };
    from_table(object, schema);
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => {
            pod::pod(object);
            crate::registry::pod::align_addresses(object);
        }
        ("", "PodTemplate") => pod::template(object.get_mut("template")),
        ("", "Service") => core::service(object),
        ("", "Endpoints") => core::endpoints(object),
        ("discovery.k8s.io", "EndpointSlice") => core::endpoint_slice(object),
        ("", "Namespace") => core::namespace(object),
        ("", "Node") => {
            core::node(object);
            crate::registry::node::align_cidrs(object);
        }
        ("", "Secret") => core::secret(object),
        ("", "PersistentVolume") => core::persistent_volume(object),
        ("", "PersistentVolumeClaim") => core::claim(object),
        ("", "LimitRange") => core::limit_range(object),
        ("", "ReplicationController") => workload::replication_controller(object),
        ("apps", "Deployment") => workload::deployment(object),
        ("apps", "ReplicaSet") => workload::replica_set(object),
        ("apps", "StatefulSet") => workload::stateful_set(object),
        ("apps", "DaemonSet") => workload::daemon_set(object),
        ("batch", "Job") => workload::job(object),
        ("batch", "CronJob") => workload::cron_job(object),
        ("autoscaling", "HorizontalPodAutoscaler") => config::autoscaler(object, &gvk.version),
        ("networking.k8s.io", "NetworkPolicy") => config::network_policy(object),
        ("networking.k8s.io", "IngressClass") => config::ingress_class(object),
        ("storage.k8s.io", "StorageClass") => config::storage_class(object),
        ("storage.k8s.io", "CSIDriver") => config::csi_driver(object),
        ("scheduling.k8s.io", "PriorityClass") => config::priority_class(object),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => config::role_binding(object),
        ("admissionregistration.k8s.io", _) => config::admission(object, &gvk.kind),
        ("authentication.k8s.io", "TokenRequest") => {
            set_default(object, "spec", "expirationSeconds", 3600);
        }
        ("flowcontrol.apiserver.k8s.io", _) => config::flow_control(object, &gvk.kind),
        ("resource.k8s.io", "ResourceClaim") => resource::claim(object),
        ("resource.k8s.io", "ResourceClaimTemplate") => resource::template(object),
        ("resource.k8s.io", "ResourceSlice") => resource::slice(object),
        ("apiregistration.k8s.io", "APIService") => config::api_service(object),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => config::custom_resource_definition(object),
        _ => {}
    }
}

/// The table's defaults, and resource lists rounded up to thousandths, everywhere in the object.
fn from_table(value: &mut Value, schema: &TypeSchema) {
    let Value::Object(map) = value else { return };
    for field in &schema.fields {
        let name = field.name.as_ref();
        match map.get_mut(name) {
            Some(v) if !v.is_null() => into_type(v, &field.ty),
            _ => {
                if let Some(default) = &field.default
                    && let Ok(default) = serde_json::from_str(default)
                {
                    map.insert(name.to_owned(), default);
                }
            }
        }
    }
}

fn into_type(value: &mut Value, ty: &Type) {
    match (ty, value) {
        (Type::Object(r), value) => from_table(value, r.get()),
        (Type::List(t), Value::Array(items)) => items.iter_mut().for_each(|v| into_type(v, t)),
        (Type::Map(t), Value::Object(map)) => {
            let quantity = matches!(**t, Type::Quantity);
            for v in map.values_mut() {
                if quantity {
                    round_quantity(v);
                } else {
                    into_type(v, t);
                }
            }
        }
        _ => {}
    }
}

fn round_quantity(value: &mut Value) {
    if let Some(q) = value.as_str().and_then(|s| Quantity::parse(s).ok())
        && !q.is_multiple_of_scale(-3)
    {
        *value = q.round_up(-3).to_string().into();
    }
}

/// True when the field is not set.
fn unset(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name).is_none_or(Value::is_null)
}

/// The text of a field, empty when it is not set.
fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Sets a field that is not set (or is the empty text).
fn default(value: &mut Value, name: &str, to: impl Into<Value>) {
    if let Value::Object(map) = value
        && (unset(map, name) || map.get(name).is_some_and(|v| v == ""))
    {
        map.insert(name.to_owned(), to.into());
    }
}

/// Sets a field that is not set; the empty text counts as set (a pointer in Go).
fn default_pointer(value: &mut Value, name: &str, to: impl Into<Value>) {
    if let Value::Object(map) = value
        && unset(map, name)
    {
        map.insert(name.to_owned(), to.into());
    }
}

/// Sets a field of a member that is not set; does nothing when the member is missing.
fn set_default(value: &mut Value, member: &str, name: &str, to: impl Into<Value>) {
    if let Some(member) = value.get_mut(member) {
        default(member, name, to);
    }
}

/// The items of a list field.
fn items<'a>(value: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The member, created empty when it is not set.
fn member<'a>(value: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    default_pointer(value, name, json!({}));
    value.get_mut(name)
}

#[cfg(test)]
mod tests;
