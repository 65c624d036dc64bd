//! Rows of priority classes, runtime classes and device resources.

use super::*;
use crate::object::{bool_at, int_at, list_at, str_at};

/// PriorityClasses.
pub static PRIORITY_CLASS_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "Value",
            "integer",
            "value represents the integer value of this priority class. This is the actual priority that pods receive when they have the name of this class in their pod spec.",
        ),
        Column::new(
            "Global-Default",
            "boolean",
            "globalDefault specifies whether this PriorityClass should be considered as the default priority for pods that do not have any priority class. Only one PriorityClass can be marked as `globalDefault`. However, if more than one PriorityClasses exists with their `globalDefault` field set to true, the smallest value of such global default PriorityClasses will be used as the default priority.",
        ),
        Column::AGE,
        Column::new(
            "PreemptionPolicy",
            "string",
            "preemptionPolicy is the Policy for preempting pods with lower priority. One of Never, PreemptLowerPriority. Defaults to PreemptLowerPriority if unset.\n\nPossible enum values:\n - `\"Never\"` means that pod never preempts other pods with lower priority.\n - `\"PreemptLowerPriority\"` means that pod can preempt other pods with lower priority.",
        ),
    ],
    cells: priority_class,
    conditions: no_conditions,
};
/// RuntimeClasses.
pub static RUNTIME_CLASS_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "Handler",
            "string",
            "handler specifies the underlying runtime and configuration that the CRI implementation will use to handle pods of this class. The possible values are specific to the node & CRI configuration.  It is assumed that all handlers are available on every node, and handlers of the same name are equivalent on every node. For example, a handler called \"runc\" might specify that the runc OCI runtime (using native Linux containers) will be used to run the containers in a pod. The Handler must be lowercase, conform to the DNS Label (RFC 1123) requirements, and is immutable.",
        ),
        Column::AGE,
    ],
    cells: runtime_class,
    conditions: no_conditions,
};
/// ResourceClaims.
pub static RESOURCE_CLAIM_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "State",
            "string",
            "A summary of the current state (allocated, pending, reserved, etc.).",
        ),
        Column::AGE,
    ],
    cells: resource_claim,
    conditions: no_conditions,
};
/// ResourceSlices.
pub static RESOURCE_SLICE_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "Node",
            "string",
            "NodeName identifies the node which provides the resources in this pool. A field selector can be used to list only ResourceSlice objects belonging to a certain node.\n\nThis field can be used to limit access from nodes to ResourceSlices with the same node name. It also indicates to autoscalers that adding new nodes of the same type as some old node might also make new resources available.\n\nExactly one of NodeName, NodeSelector, AllNodes, and PerDeviceNodeSelection must be set. This field is immutable.",
        ),
        Column::new(
            "Driver",
            "string",
            "Driver identifies the DRA driver providing the capacity information. A field selector can be used to list only ResourceSlice objects with a certain driver name.\n\nMust be a DNS subdomain and should end with a DNS domain owned by the vendor of the driver. It should use only lower case characters. This field is immutable.",
        ),
        Column::new(
            "Pool",
            "string",
            "Name is used to identify the pool. For node-local devices, this is often the node name, but this is not required.\n\nIt must not be longer than 253 characters and must consist of one or more DNS sub-domains separated by slashes. This field is immutable.",
        ),
        Column::AGE,
    ],
    cells: resource_slice,
    conditions: no_conditions,
};

fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let policy = match str_at(object, &["preemptionPolicy"]) {
        "" => "PreemptLowerPriority",
        policy => policy,
    };
    vec![
        meta(object, "name").into(),
        int_at(object, &["value"]).unwrap_or_default().into(),
        bool_at(object, &["globalDefault"]).into(),
        age(object, now),
        policy.into(),
    ]
}

fn runtime_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![meta(object, "name").into(), str_at(object, &["handler"]).into(), age(object, now)]
}

fn resource_claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let deleted = crate::object::is_deleting(object);
    let allocated = get(object, &["status", "allocation"]).is_some();
    let reserved = !list_at(object, &["status", "reservedFor"]).is_empty();
    let states = [
        (deleted, "deleted"),
        (!allocated && !deleted, "pending"),
        (allocated, "allocated"),
        (allocated && reserved, "reserved"),
    ];
    let states: Vec<&str> = states.into_iter().filter_map(|(holds, state)| holds.then_some(state)).collect();
    vec![meta(object, "name").into(), states.join(",").into(), age(object, now)]
}

fn resource_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        meta(object, "name").into(),
        str_at(object, &["spec", "nodeName"]).into(),
        str_at(object, &["spec", "driver"]).into(),
        str_at(object, &["spec", "pool", "name"]).into(),
        age(object, now),
    ]
}
