//! Rows of the core group, and of the small groups around it.

use super::fields::*;
use super::*;
use crate::table;

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];
const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];

const fn sub(
    name: &'static str,
    does: SubresourceKind,
    kind: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, does, kind: Some(kind), verbs }
}

static PLAIN: Strategy = Strategy::PLAIN;

static NAMESPACE: Strategy = Strategy {
    prepare_create: |object| {
        let mut finalizers: Vec<Value> = crate::object::list_at(object, &["spec", "finalizers"]).to_vec();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
        object["spec"] = serde_json::json!({"finalizers": finalizers});
        object["status"] = serde_json::json!({"phase": "Active"});
        label_namespace(object);
    },
    prepare_update: |new, old| {
        carry(new, old, &["spec", "status"]);
        label_namespace(new);
    },
    delete_returns_object: true,
    ..Strategy::PLAIN
};

/// Every namespace is labelled with its name.
pub(crate) fn label_namespace(object: &mut Value) {
    let name = crate::object::meta(object, "name").to_owned();
    let metadata = crate::object::meta_mut(object);
    let labels = metadata.entry("labels").or_insert_with(|| serde_json::json!({}));
    if !labels.is_object() {
        *labels = serde_json::json!({});
    }
    labels["kubernetes.io/metadata.name"] = name.into();
}

/// Copies members of the old object over the new one's.
pub(super) fn carry(new: &mut Value, old: &Value, members: &[&str]) {
    let Some(new) = new.as_object_mut() else { return };
    for member in members {
        crate::object::set_or_remove(new, member, old.get(*member).cloned());
    }
}

static NODE: Strategy = Strategy {
    prepare_create: super::node::align_cidrs,
    prepare_update: |new, old| {
        carry(new, old, &["status"]);
        super::node::align_cidrs(new);
    },
    warnings: super::warnings::of_node,
    ..Strategy::PLAIN
};

static POD: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: super::pod::prepare_create,
    prepare_update: super::pod::prepare_update,
    prepare_status: super::pod::prepare_status,
    prepare_part: super::pod::prepare_part,
    warnings: super::warnings::of_pod,
    status_warnings: super::warnings::of_pod_status,
    warn_at_creation_only: true,
    grace: Grace::Pod,
    delete_returns_object: true,
    ..Strategy::PLAIN
};

static SERVICE: Strategy = Strategy {
    prepare_create: |object| {
        object["status"] = serde_json::json!({"loadBalancer": {}});
        crate::allocator::prepare_create(object);
    },
    prepare_update: |new, old| {
        carry(new, old, &["status"]);
        if crate::object::str_at(new, &["spec", "type"]) != "LoadBalancer" {
            new["status"]["loadBalancer"] = serde_json::json!({});
        }
        crate::allocator::prepare_update(new, old);
    },
    allocation: Allocation::Service,
    warnings: super::service::warnings,
    delete_returns_object: true,
    ..Strategy::PLAIN
};

static EVENT: Strategy = Strategy { create_on_update: true, ttl_seconds: 3600, ..Strategy::PLAIN };

static LEASE: Strategy = Strategy {
    create_on_update: true,
    unconditional_update: false,
    // Leaders are not elected by the server: what asks for it has no effect and is not kept.
    prepare_create: |object| without_election(object, &Value::Null),
    prepare_update: without_election,
    ..Strategy::PLAIN
};

/// Takes away what a lease says about elections, unless it said so before.
fn without_election(new: &mut Value, old: &Value) {
    for field in ["strategy", "preferredHolder"] {
        if crate::object::get(old, &["spec", field]).is_none_or(Value::is_null)
            && let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut)
        {
            spec.remove(field);
        }
    }
}

static SERVICE_ACCOUNT: Strategy = Strategy {
    delete_returns_object: true,
    warnings: super::warnings::of_service_account,
    ..Strategy::PLAIN
};

static ENDPOINTS: Strategy = Strategy { warnings: super::service::endpoints_warnings, ..Strategy::PLAIN };

static ENDPOINT_SLICE: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: super::service::slice_create,
    prepare_update: super::service::slice_update,
    warnings: super::service::slice_warnings,
    ..Strategy::PLAIN
};

static CONTROLLER: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: |object| {
        object["status"] = crate::codec::zero_object("core.v1.ReplicationControllerStatus")
    },
    prepare_update: |new, old| carry(new, old, &["status"]),
    generation_warnings: super::warnings::of_owner,
    orphan_dependents: true,
    ..Strategy::PLAIN
};

static POD_TEMPLATE: Strategy = Strategy {
    generation: Generation::Spec,
    delete_returns_object: true,
    warnings: super::warnings::of_pod_template,
    ..Strategy::PLAIN
};

static LIMIT_RANGE: Strategy = Strategy { create_on_update: true, ..Strategy::PLAIN };

static QUOTA: Strategy = Strategy {
    prepare_create: |object| object["status"] = serde_json::json!({}),
    prepare_update: |new, old| carry(new, old, &["status"]),
    delete_returns_object: true,
    ..Strategy::PLAIN
};

static CONTROLLER_SUB: &[Subresource] = &[
    sub("scale", SubresourceKind::Scale, ("autoscaling", "v1", "Scale"), STATUS_VERBS),
    sub("status", SubresourceKind::Status, ("", "v1", "ReplicationController"), STATUS_VERBS),
];
static QUOTA_SUB: &[Subresource] =
    &[sub("status", SubresourceKind::Status, ("", "v1", "ResourceQuota"), STATUS_VERBS)];
static NAMESPACE_SUB: &[Subresource] = &[
    sub("finalize", SubresourceKind::Finalize, ("", "v1", "Namespace"), &["update"]),
    sub("status", SubresourceKind::Status, ("", "v1", "Namespace"), STATUS_VERBS),
];
static NODE_SUB: &[Subresource] = &[
    sub("proxy", SubresourceKind::Connect, ("", "v1", "NodeProxyOptions"), PROXY_VERBS),
    sub("status", SubresourceKind::Status, ("", "v1", "Node"), STATUS_VERBS),
];
static POD_SUB: &[Subresource] = &[
    sub("attach", SubresourceKind::Connect, ("", "v1", "PodAttachOptions"), &["create", "get"]),
    sub("binding", SubresourceKind::Binding, ("", "v1", "Binding"), &["create"]),
    sub("ephemeralcontainers", SubresourceKind::Part, ("", "v1", "Pod"), STATUS_VERBS),
    sub("eviction", SubresourceKind::Eviction, ("policy", "v1", "Eviction"), &["create"]),
    sub("exec", SubresourceKind::Connect, ("", "v1", "PodExecOptions"), &["create", "get"]),
    sub("log", SubresourceKind::Connect, ("", "v1", "Pod"), &["get"]),
    sub("portforward", SubresourceKind::Connect, ("", "v1", "PodPortForwardOptions"), &["create", "get"]),
    sub("proxy", SubresourceKind::Connect, ("", "v1", "PodProxyOptions"), PROXY_VERBS),
    sub("resize", SubresourceKind::Part, ("", "v1", "Pod"), STATUS_VERBS),
    sub("status", SubresourceKind::Status, ("", "v1", "Pod"), STATUS_VERBS),
];
static SERVICE_ACCOUNT_SUB: &[Subresource] =
    &[sub("token", SubresourceKind::Token, ("authentication.k8s.io", "v1", "TokenRequest"), &["create"])];
static SERVICE_SUB: &[Subresource] = &[
    sub("proxy", SubresourceKind::Connect, ("", "v1", "ServiceProxyOptions"), PROXY_VERBS),
    sub("status", SubresourceKind::Status, ("", "v1", "Service"), STATUS_VERBS),
];

pub(super) const BASE: Row = Row {
    group: "",
    version: "v1",
    plural: "",
    singular: "",
    kind: "",
    namespaced: true,
    short_names: &[],
    categories: &[],
    verbs: ALL_VERBS,
    subresources: &[],
    storage_prefix: "",
    stored_as: None,
    fields: &[],
    own_field_labels: false,
    field_label_error: None,
    table: &table::SERVICE_ACCOUNT_TABLE,
    strategy: &PLAIN,
    deprecated: None,
};

pub(super) fn rows() -> Vec<Row> {
    vec![
        // Not stored: a binding is applied to its pod.
        Row {
            plural: "bindings",
            singular: "binding",
            kind: "Binding",
            verbs: &["create"],
            storage_prefix: "/registry/bindings/",
            ..BASE
        },
        // Not stored: what the server knows of the parts of the control plane.
        Row {
            plural: "componentstatuses",
            singular: "componentstatus",
            kind: "ComponentStatus",
            namespaced: false,
            short_names: &["cs"],
            verbs: &["get", "list"],
            storage_prefix: "/registry/componentstatuses/",
            table: &table::COMPONENT_STATUS_TABLE,
            deprecated: Some("v1 ComponentStatus is deprecated in v1.19+"),
            ..BASE
        },
        Row {
            plural: "configmaps",
            singular: "configmap",
            kind: "ConfigMap",
            short_names: &["cm"],
            storage_prefix: "/registry/configmaps/",
            table: &table::CONFIG_MAP_TABLE,
            ..BASE
        },
        Row {
            plural: "endpoints",
            singular: "endpoints",
            kind: "Endpoints",
            short_names: &["ep"],
            storage_prefix: "/registry/endpoints/",
            table: &table::ENDPOINTS_TABLE,
            strategy: &ENDPOINTS,
            deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
            ..BASE
        },
        Row {
            plural: "events",
            singular: "event",
            kind: "Event",
            short_names: &["ev"],
            storage_prefix: "/registry/events/",
            fields: EVENT_FIELDS,
            own_field_labels: true,
            table: &table::EVENT_TABLE,
            strategy: &EVENT,
            ..BASE
        },
        Row {
            plural: "limitranges",
            singular: "limitrange",
            kind: "LimitRange",
            short_names: &["limits"],
            storage_prefix: "/registry/limitranges/",
            table: &table::DEFAULT_TABLE,
            strategy: &LIMIT_RANGE,
            ..BASE
        },
        Row {
            plural: "namespaces",
            singular: "namespace",
            kind: "Namespace",
            namespaced: false,
            short_names: &["ns"],
            verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
            subresources: NAMESPACE_SUB,
            storage_prefix: "/registry/namespaces/",
            fields: NAMESPACE_FIELDS,
            own_field_labels: true,
            table: &table::NAMESPACE_TABLE,
            strategy: &NAMESPACE,
            ..BASE
        },
        Row {
            plural: "nodes",
            singular: "node",
            kind: "Node",
            namespaced: false,
            short_names: &["no"],
            subresources: NODE_SUB,
            storage_prefix: "/registry/nodes/",
            fields: NODE_FIELDS,
            own_field_labels: true,
            table: &table::NODE_TABLE,
            strategy: &NODE,
            ..BASE
        },
        Row {
            plural: "pods",
            singular: "pod",
            kind: "Pod",
            short_names: &["po"],
            categories: &["all"],
            subresources: POD_SUB,
            storage_prefix: "/registry/pods/",
            fields: POD_FIELDS,
            own_field_labels: true,
            table: &table::POD_TABLE,
            strategy: &POD,
            ..BASE
        },
        Row {
            plural: "podtemplates",
            singular: "podtemplate",
            kind: "PodTemplate",
            storage_prefix: "/registry/podtemplates/",
            table: &table::POD_TEMPLATE_TABLE,
            strategy: &POD_TEMPLATE,
            ..BASE
        },
        Row {
            plural: "replicationcontrollers",
            singular: "replicationcontroller",
            kind: "ReplicationController",
            short_names: &["rc"],
            categories: &["all"],
            subresources: CONTROLLER_SUB,
            storage_prefix: "/registry/replicationcontrollers/",
            fields: CONTROLLER_FIELDS,
            own_field_labels: true,
            table: &table::REPLICATION_CONTROLLER_TABLE,
            strategy: &CONTROLLER,
            ..BASE
        },
        Row {
            plural: "resourcequotas",
            singular: "resourcequota",
            kind: "ResourceQuota",
            short_names: &["quota"],
            subresources: QUOTA_SUB,
            storage_prefix: "/registry/resourcequotas/",
            table: &table::RESOURCE_QUOTA_TABLE,
            strategy: &QUOTA,
            ..BASE
        },
        Row {
            plural: "secrets",
            singular: "secret",
            kind: "Secret",
            storage_prefix: "/registry/secrets/",
            fields: SECRET_FIELDS,
            own_field_labels: true,
            table: &table::SECRET_TABLE,
            ..BASE
        },
        Row {
            plural: "serviceaccounts",
            singular: "serviceaccount",
            kind: "ServiceAccount",
            short_names: &["sa"],
            subresources: SERVICE_ACCOUNT_SUB,
            storage_prefix: "/registry/serviceaccounts/",
            strategy: &SERVICE_ACCOUNT,
            ..BASE
        },
        Row {
            plural: "services",
            singular: "service",
            kind: "Service",
            short_names: &["svc"],
            categories: &["all"],
            subresources: SERVICE_SUB,
            storage_prefix: "/registry/services/",
            fields: SERVICE_FIELDS,
            own_field_labels: true,
            table: &table::SERVICE_TABLE,
            strategy: &SERVICE,
            ..BASE
        },
        Row {
            group: "events.k8s.io",
            plural: "events",
            singular: "event",
            kind: "Event",
            short_names: &["ev"],
            storage_prefix: "/registry/events/",
            stored_as: Some(StoredAs {
                kind: "Event",
                api_version: "v1",
                encode: super::event::to_core,
                decode: super::event::from_core,
            }),
            fields: NEW_EVENT_FIELDS,
            own_field_labels: true,
            table: &table::EVENT_TABLE,
            strategy: &EVENT,
            ..BASE
        },
        Row {
            group: "coordination.k8s.io",
            plural: "leases",
            singular: "lease",
            kind: "Lease",
            storage_prefix: "/registry/coordination.k8s.io/leases/",
            table: &table::LEASE_TABLE,
            strategy: &LEASE,
            ..BASE
        },
        Row {
            group: "discovery.k8s.io",
            plural: "endpointslices",
            singular: "endpointslice",
            kind: "EndpointSlice",
            storage_prefix: "/registry/discovery.k8s.io/endpointslices/",
            table: &table::ENDPOINT_SLICE_TABLE,
            strategy: &ENDPOINT_SLICE,
            ..BASE
        },
    ]
}
