//! Rows of the group `storage.k8s.io`.

use super::*;
use crate::object::{bool_at, list_at, str_at};

/// StorageClasses.
pub static STORAGE_CLASS_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new("Provisioner", "string", "provisioner indicates the type of the provisioner."),
        Column::new(
            "ReclaimPolicy",
            "string",
            "reclaimPolicy controls the reclaimPolicy for dynamically provisioned PersistentVolumes of this storage class. Defaults to Delete.\n\nPossible enum values:\n - `\"Delete\"` means the volume will be deleted from Kubernetes on release from its claim. The volume plugin must support Deletion.\n - `\"Recycle\"` means the volume will be recycled back into the pool of unbound persistent volumes on release from its claim. The volume plugin must support Recycling.\n - `\"Retain\"` means the volume will be left in its current phase (Released) for manual reclamation by the administrator. The default policy is Retain.",
        ),
        Column::new(
            "VolumeBindingMode",
            "string",
            "volumeBindingMode indicates how PersistentVolumeClaims should be provisioned and bound.  When unset, VolumeBindingImmediate is used. This field is only honored by servers that enable the VolumeScheduling feature.\n\nPossible enum values:\n - `\"Immediate\"` indicates that PersistentVolumeClaims should be immediately provisioned and bound. This is the default mode.\n - `\"WaitForFirstConsumer\"` indicates that PersistentVolumeClaims should not be provisioned and bound until the first Pod is created that references the PeristentVolumeClaim. The volume provisioning and binding will occur during Pod scheduing.",
        ),
        Column::new(
            "AllowVolumeExpansion",
            "string",
            "allowVolumeExpansion shows whether the storage class allow volume expand.",
        ),
        Column::AGE,
    ],
    cells: storage_class,
    conditions: no_conditions,
};
/// CSIDrivers.
pub static CSI_DRIVER_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "AttachRequired",
            "boolean",
            "attachRequired indicates this CSI volume driver requires an attach operation (because it implements the CSI ControllerPublishVolume() method), and that the Kubernetes attach detach controller should call the attach volume interface which checks the volumeattachment status and waits until the volume is attached before proceeding to mounting. The CSI external-attacher coordinates with CSI volume driver and updates the volumeattachment status when the attach operation is complete. If the value is specified to false, the attach operation will be skipped. Otherwise the attach operation will be called.\n\nThis field is immutable.",
        ),
        Column::new(
            "PodInfoOnMount",
            "boolean",
            "podInfoOnMount indicates this CSI volume driver requires additional pod information (like podName, podUID, etc.) during mount operations, if set to true. If set to false, pod information will not be passed on mount. Default is false.\n\nThe CSI driver specifies podInfoOnMount as part of driver deployment. If true, Kubelet will pass pod information as VolumeContext in the CSI NodePublishVolume() calls. The CSI driver is responsible for parsing and validating the information passed in as VolumeContext.\n\nThe following VolumeContext will be passed if podInfoOnMount is set to true. This list might grow, but the prefix will be used. \"csi.storage.k8s.io/pod.name\": pod.Name \"csi.storage.k8s.io/pod.namespace\": pod.Namespace \"csi.storage.k8s.io/pod.uid\": string(pod.UID) \"csi.storage.k8s.io/ephemeral\": \"true\" if the volume is an ephemeral inline volume\n                                defined by a CSIVolumeSource, otherwise \"false\"\n\n\"csi.storage.k8s.io/ephemeral\" is a new feature in Kubernetes 1.16. It is only required for drivers which support both the \"Persistent\" and \"Ephemeral\" VolumeLifecycleMode. Other drivers can leave pod info disabled and/or ignore this field. As Kubernetes 1.15 doesn't support this field, drivers can only support one mode when deployed on such a cluster and the deployment determines which mode that is, for example via a command line parameter of the driver.\n\nThis field was immutable in Kubernetes < 1.29 and now is mutable.",
        ),
        Column::new(
            "StorageCapacity",
            "boolean",
            "storageCapacity indicates that the CSI volume driver wants pod scheduling to consider the storage capacity that the driver deployment will report by creating CSIStorageCapacity objects with capacity information, if set to true.\n\nThe check can be enabled immediately when deploying a driver. In that case, provisioning new volumes with late binding will pause until the driver deployment has published some suitable CSIStorageCapacity object.\n\nAlternatively, the driver can be deployed with the field unset or false and it can be flipped later when storage capacity information has been published.\n\nThis field was immutable in Kubernetes <= 1.22 and now is mutable.",
        ),
        Column::new(
            "TokenRequests",
            "string",
            "tokenRequests indicates the CSI driver needs pods' service account tokens it is mounting volume for to do necessary authentication. Kubelet will pass the tokens in VolumeContext in the CSI NodePublishVolume calls. The CSI driver should parse and validate the following VolumeContext: \"csi.storage.k8s.io/serviceAccount.tokens\": {\n  \"<audience>\": {\n    \"token\": <token>,\n    \"expirationTimestamp\": <expiration timestamp in RFC3339>,\n  },\n  ...\n}\n\nNote: Audience in each TokenRequest should be different and at most one token is empty string. To receive a new token after expiry, RequiresRepublish can be used to trigger NodePublishVolume periodically.",
        ),
        Column::new(
            "RequiresRepublish",
            "boolean",
            "requiresRepublish indicates the CSI driver wants `NodePublishVolume` being periodically called to reflect any possible change in the mounted volume. This field defaults to false.\n\nNote: After a successful initial NodePublishVolume call, subsequent calls to NodePublishVolume should only update the contents of the volume. New mount points will not be seen by a running container.",
        ),
        Column::new(
            "Modes",
            "string",
            "volumeLifecycleModes defines what kind of volumes this CSI volume driver supports. The default if the list is empty is \"Persistent\", which is the usage defined by the CSI specification and implemented in Kubernetes via the usual PV/PVC mechanism.\n\nThe other mode is \"Ephemeral\". In this mode, volumes are defined inline inside the pod spec with CSIVolumeSource and their lifecycle is tied to the lifecycle of that pod. A driver has to be aware of this because it is only going to get a NodePublishVolume call for such a volume.\n\nFor more information about implementing this mode, see https://kubernetes-csi.github.io/docs/ephemeral-local-volumes.html A driver can support one or more of these modes and more modes may be added in the future.\n\nThis field is beta. This field is immutable.",
        ),
        Column::AGE,
    ],
    cells: csi_driver,
    conditions: no_conditions,
};
/// CSINodes.
pub static CSI_NODE_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "Drivers",
            "integer",
            "Drivers indicates the number of CSI drivers registered on the node",
        ),
        Column::AGE,
    ],
    cells: csi_node,
    conditions: no_conditions,
};
/// CSIStorageCapacities.
pub static CSI_STORAGE_CAPACITY_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "StorageClassName",
            "string",
            "storageClassName represents the name of the StorageClass that the reported capacity applies to. It must meet the same requirements as the name of a StorageClass object (non-empty, DNS subdomain). If that object no longer exists, the CSIStorageCapacity object is obsolete and should be removed by its creator. This field is immutable.",
        ),
        Column::new(
            "Capacity",
            "string",
            "capacity is the value reported by the CSI driver in its GetCapacityResponse for a GetCapacityRequest with topology and parameters that match the previous fields.\n\nThe semantic is currently (CSI spec 1.2) defined as: The available capacity, in bytes, of the storage that can be used to provision volumes. If not set, that information is currently unavailable.",
        ),
    ],
    cells: csi_storage_capacity,
    conditions: no_conditions,
};
/// VolumeAttachments.
pub static VOLUME_ATTACHMENT_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::named(
            "Attacher",
            "string",
            "attacher indicates the name of the volume driver that MUST handle this request. This is the name returned by GetPluginName().",
        ),
        Column::new(
            "PV",
            "string",
            "persistentVolumeName represents the name of the persistent volume to attach.",
        ),
        Column::new("Node", "string", "nodeName represents the node that the volume should be attached to."),
        Column::new(
            "Attached",
            "boolean",
            "attached indicates the volume is successfully attached. This field must only be set by the entity completing the attach operation, i.e. the external-attacher.",
        ),
        Column::AGE,
    ],
    cells: volume_attachment,
    conditions: no_conditions,
};
/// VolumeAttributesClasses.
pub static VOLUME_ATTRIBUTES_CLASS_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new("DriverName", "string", "Name of the CSI driver This field is immutable."),
        Column::AGE,
    ],
    cells: volume_attributes_class,
    conditions: no_conditions,
};

/// The name, marked when an annotation makes the class the default one.
fn class_name(object: &Value, annotations: &[&str]) -> Value {
    let name = meta(object, "name");
    let default = annotations.iter().any(|a| str_at(object, &["metadata", "annotations", a]) == "true");
    if default { format!("{name} (default)").into() } else { name.into() }
}

fn storage_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let or = |field: &str, default: &str| match str_at(object, &[field]) {
        "" => default.to_owned(),
        text => text.to_owned(),
    };
    let marks =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    vec![
        class_name(object, &marks),
        str_at(object, &["provisioner"]).into(),
        or("reclaimPolicy", "Delete").into(),
        or("volumeBindingMode", "Immediate").into(),
        bool_at(object, &["allowVolumeExpansion"]).into(),
        age(object, now),
    ]
}

fn csi_driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let flag = |field: &str, default: bool| {
        get(object, &["spec", field]).and_then(Value::as_bool).unwrap_or(default).into()
    };
    let join = |all: Vec<&str>, none: &str| match all.is_empty() {
        true => Value::from(none),
        false => Value::from(all.join(",")),
    };
    let requests = list_at(object, &["spec", "tokenRequests"]);
    let modes = list_at(object, &["spec", "volumeLifecycleModes"]);
    vec![
        meta(object, "name").into(),
        flag("attachRequired", true),
        flag("podInfoOnMount", false),
        flag("storageCapacity", false),
        join(requests.iter().map(|r| str_at(r, &["audience"])).collect(), "<unset>"),
        flag("requiresRepublish", false),
        join(modes.iter().filter_map(Value::as_str).collect(), "<none>"),
        age(object, now),
    ]
}

fn csi_node(object: &Value, now: Timestamp) -> Vec<Value> {
    let drivers = list_at(object, &["spec", "drivers"]).len();
    vec![meta(object, "name").into(), drivers.into(), age(object, now)]
}

fn csi_storage_capacity(object: &Value, _: Timestamp) -> Vec<Value> {
    let class = str_at(object, &["storageClassName"]);
    vec![meta(object, "name").into(), class.into(), str_at(object, &["capacity"]).into()]
}

fn volume_attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        meta(object, "name").into(),
        str_at(object, &["spec", "attacher"]).into(),
        str_at(object, &["spec", "source", "persistentVolumeName"]).into(),
        str_at(object, &["spec", "nodeName"]).into(),
        bool_at(object, &["status", "attached"]).into(),
        age(object, now),
    ]
}

fn volume_attributes_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let marks = ["volumeattributesclass.alpha.kubernetes.io/is-default-class"];
    vec![class_name(object, &marks), str_at(object, &["driverName"]).into(), age(object, now)]
}
