//! Rows of workload controllers and their templates.

use super::*;
use crate::object::int_at;

/// Deployments.
pub static DEPLOYMENT_TABLE: TableSpec =
    TableSpec { columns: DEPLOYMENT, cells: deployment, conditions: no_conditions };
/// ReplicaSets.
pub static REPLICA_SET_TABLE: TableSpec =
    TableSpec { columns: REPLICA_SET, cells: replica_set, conditions: no_conditions };

const TEMPLATE: &[&str] = &["spec", "template", "spec", "containers"];

fn number(object: &Value, path: &[&str]) -> i64 {
    int_at(object, path).unwrap_or_default()
}

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object, TEMPLATE);
    let ready = number(object, &["status", "readyReplicas"]);
    let wanted = int_at(object, &["spec", "replicas"]).unwrap_or(1);
    vec![
        meta(object, "name").into(),
        format!("{ready}/{wanted}").into(),
        number(object, &["status", "updatedReplicas"]).into(),
        number(object, &["status", "availableReplicas"]).into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(get(object, &["spec", "selector"])).into(),
    ]
}

fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object, TEMPLATE);
    vec![
        meta(object, "name").into(),
        int_at(object, &["spec", "replicas"]).unwrap_or(1).into(),
        number(object, &["status", "replicas"]).into(),
        number(object, &["status", "readyReplicas"]).into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(get(object, &["spec", "selector"])).into(),
    ]
}

const CONTAINERS: Column = wide("Containers", "Names of each container in the template.");
const IMAGES: Column = wide("Images", "Images referenced by each container in the template.");

/// ReplicationControllers.
pub static REPLICATION_CONTROLLER_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown(
            "Desired",
            "integer",
            "Replicas is the number of desired replicas. This is a pointer to distinguish between explicit zero and unspecified. Defaults to 1. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller#what-is-a-replicationcontroller",
        ),
        shown(
            "Current",
            "integer",
            "Replicas is the most recently observed number of replicas. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller#what-is-a-replicationcontroller",
        ),
        shown("Ready", "integer", "The number of ready replicas for this replication controller."),
        age_column(),
        CONTAINERS,
        IMAGES,
        wide(
            "Selector",
            "Selector is a label query over pods that should match the Replicas count. If Selector is empty, it is defaulted to the labels present on the Pod template. Label keys and values that must match in order to be controlled by this replication controller, if empty defaulted to labels on Pod template. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
        ),
    ],
    cells: |object, now| {
        let mut cells = replica_set(object, now);
        if let Some(last) = cells.last_mut() {
            *last = pairs(get(object, &["spec", "selector"])).into();
        }
        cells
    },
    conditions: no_conditions,
};

/// PodTemplates.
pub static POD_TEMPLATE_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown("Containers", "string", "Names of each container in the template."),
        shown("Images", "string", "Images referenced by each container in the template."),
        shown("Pod Labels", "string", "The labels for the pod template."),
    ],
    cells: |object, _| {
        let (names, images) = containers(object, &["template", "spec", "containers"]);
        let labels = pairs(get(object, &["template", "metadata", "labels"]));
        vec![meta(object, "name").into(), names.into(), images.into(), labels.into()]
    },
    conditions: no_conditions,
};

/// StatefulSets.
pub static STATEFUL_SET_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown("Ready", "string", "Number of the pod with ready state"),
        age_column(),
        CONTAINERS,
        IMAGES,
    ],
    cells: |object, now| {
        let (names, images) = containers(object, TEMPLATE);
        let ready = number(object, &["status", "readyReplicas"]);
        let wanted = number(object, &["spec", "replicas"]);
        vec![
            meta(object, "name").into(),
            format!("{ready}/{wanted}").into(),
            age(object, now),
            names.into(),
            images.into(),
        ]
    },
    conditions: no_conditions,
};

/// DaemonSets.
pub static DAEMON_SET_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown(
            "Desired",
            "integer",
            "The total number of nodes that should be running the daemon pod (including nodes correctly running the daemon pod). More info: https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
        ),
        shown(
            "Current",
            "integer",
            "The number of nodes that are running at least 1 daemon pod and are supposed to run the daemon pod. More info: https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
        ),
        shown(
            "Ready",
            "integer",
            "numberReady is the number of nodes that should be running the daemon pod and have one or more of the daemon pod running with a Ready Condition.",
        ),
        shown("Up-to-date", "integer", "The total number of nodes that are running updated daemon pod"),
        shown(
            "Available",
            "integer",
            "The number of nodes that should be running the daemon pod and have one or more of the daemon pod running and available (ready for at least spec.minReadySeconds)",
        ),
        shown(
            "Node Selector",
            "string",
            "NodeSelector is a selector which must be true for the pod to fit on a node. Selector which must match a node's labels for the pod to be scheduled on that node. More info: https://kubernetes.io/docs/concepts/configuration/assign-pod-node/",
        ),
        age_column(),
        CONTAINERS,
        IMAGES,
        wide(
            "Selector",
            "A label query over pods that are managed by the daemon set. Must match in order to be controlled. It must match the pod template's labels. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
        ),
    ],
    cells: daemon_set,
    conditions: no_conditions,
};

fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object, TEMPLATE);
    let count = |field: &str| Value::from(number(object, &["status", field]));
    vec![
        meta(object, "name").into(),
        count("desiredNumberScheduled"),
        count("currentNumberScheduled"),
        count("numberReady"),
        count("updatedNumberScheduled"),
        count("numberAvailable"),
        pairs(get(object, &["spec", "template", "spec", "nodeSelector"])).into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(get(object, &["spec", "selector"])).into(),
    ]
}

/// ControllerRevisions.
pub static CONTROLLER_REVISION_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown("Controller", "string", "Controller of the object"),
        shown("Revision", "string", "Revision indicates the revision of the state represented by Data."),
        age_column(),
    ],
    cells: |object, now| {
        vec![
            meta(object, "name").into(),
            controller(object).into(),
            number(object, &["revision"]).into(),
            age(object, now),
        ]
    },
    conditions: no_conditions,
};

/// `kind.group/name` of the owner that controls the object.
fn controller(object: &Value) -> String {
    let owner = crate::object::list_at(object, &["metadata", "ownerReferences"])
        .iter()
        .find(|owner| crate::object::bool_at(owner, &["controller"]));
    let Some(owner) = owner else { return "<none>".to_owned() };
    let text = |field: &str| crate::object::str_at(owner, &[field]);
    let (kind, name) = (text("kind").to_lowercase(), text("name"));
    match text("apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{}/{name}", group.to_lowercase()),
        None => format!("{kind}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_and_revisions() {
        let now = Timestamp::now();
        let cells = |table: &TableSpec, object: &Value| (table.cells)(object, now);
        let set = json!({"metadata": {"name": "s"}, "spec": {"replicas": 3}, "status": {"readyReplicas": 1}});
        assert_eq!(cells(&STATEFUL_SET_TABLE, &set)[1], "1/3");
        let daemons = json!({"metadata": {"name": "d"}, "status": {"desiredNumberScheduled": 4, "numberReady": 2},
            "spec": {"template": {"spec": {"nodeSelector": {"b": "2", "a": "1"}}}}});
        assert_eq!(
            cells(&DAEMON_SET_TABLE, &daemons)[1..7],
            [json!(4), json!(0), json!(2), json!(0), json!(0), json!("a=1,b=2")]
        );
        let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "s", "controller": true});
        let revision = json!({"metadata": {"name": "r", "ownerReferences": [owner]}, "revision": 5});
        assert_eq!(
            cells(&CONTROLLER_REVISION_TABLE, &revision)[1..3],
            [json!("statefulset.apps/s"), json!(5)]
        );
        let rc = json!({"metadata": {"name": "r"}, "spec": {"replicas": 2, "selector": {"a": "b"}}});
        assert_eq!(cells(&REPLICATION_CONTROLLER_TABLE, &rc).last(), Some(&json!("a=b")));
    }

    #[test]
    fn a_cell_for_every_column() {
        let rows = crate::registry::Registry::builtin();
        for row in rows.rows() {
            let object =
                json!({"kind": row.kind(), "apiVersion": row.api_version(), "metadata": {"name": "x"}});
            let cells = row.table.cells(&object, Timestamp::now());
            assert_eq!(cells.len(), row.table.definitions().as_array().map_or(0, Vec::len), "{row:?}");
        }
    }
}
