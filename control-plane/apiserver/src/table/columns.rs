//! Column definitions of the built-in kinds; the descriptions are those of the API documentation.

use super::Column;

/// Text about `metadata.name`.
pub(crate) const NAME_DOC: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
/// Text about `metadata.creationTimestamp`.
pub(crate) const AGE_DOC: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// The column of names.
pub(crate) const fn name_column() -> Column {
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC }
}

/// The column of ages.
pub(crate) const fn age_column() -> Column {
    shown("Age", "string", AGE_DOC)
}

/// A column that is always shown.
pub(crate) const fn shown(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column { name, kind, format: "", priority: 0, description }
}

/// A column of text shown with `-o wide`.
pub(crate) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 1, description }
}

/// Columns of kinds that have no table of their own.
pub const DEFAULT: &[Column] = &[name_column(), shown("Created At", "date", AGE_DOC)];

/// Columns of pod tables.
pub const POD: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column {
        name: "Ready",
        kind: "string",
        format: "",
        priority: 0,
        description: "The aggregate readiness state of this pod for accepting traffic.",
    },
    Column {
        name: "Status",
        kind: "string",
        format: "",
        priority: 0,
        description: "The aggregate status of the containers in this pod.",
    },
    Column {
        name: "Restarts",
        kind: "string",
        format: "",
        priority: 0,
        description: "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
    },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
    Column {
        name: "IP",
        kind: "string",
        format: "",
        priority: 1,
        description: "podIP address allocated to the pod. Routable at least within the cluster. Empty if not yet allocated.",
    },
    Column {
        name: "Node",
        kind: "string",
        format: "",
        priority: 1,
        description: "NodeName indicates in which node this pod is scheduled. If empty, this pod is a candidate for scheduling by the scheduler defined in schedulerName. Once this field is set, the kubelet for this node becomes responsible for the lifecycle of this pod. This field should not be used to express a desire for the pod to be scheduled on a specific node. https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#nodename",
    },
    Column {
        name: "Nominated Node",
        kind: "string",
        format: "",
        priority: 1,
        description: "nominatedNodeName is set only when this pod preempts other pods on the node, but it cannot be scheduled right away as preemption victims receive their graceful termination periods. This field does not guarantee that the pod will be scheduled on this node. Scheduler may decide to place the pod elsewhere if other nodes become available sooner. Scheduler may also decide to give the resources on this node to a higher priority pod that is created after preemption. As a result, this field may be different than PodSpec.nodeName when the pod is scheduled.",
    },
    Column {
        name: "Readiness Gates",
        kind: "string",
        format: "",
        priority: 1,
        description: "If specified, all readiness gates will be evaluated for pod readiness. A pod is ready when all its containers are ready AND all conditions specified in the readiness gates have status equal to \"True\" More info: https://git.k8s.io/enhancements/keps/sig-network/580-pod-readiness-gates",
    },
];

/// Columns of node tables.
pub const NODE: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column { name: "Status", kind: "string", format: "", priority: 0, description: "The status of the node" },
    Column { name: "Roles", kind: "string", format: "", priority: 0, description: "The roles of the node" },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
    Column {
        name: "Version",
        kind: "string",
        format: "",
        priority: 0,
        description: "Kubelet Version reported by the node.",
    },
    Column {
        name: "Internal-IP",
        kind: "string",
        format: "",
        priority: 1,
        description: "List of addresses reachable to the node. Queried from cloud provider, if available. More info: https://kubernetes.io/docs/reference/node/node-status/#addresses Note: This field is declared as mergeable, but the merge key is not sufficiently unique, which can cause data corruption when it is merged. Callers should instead use a full-replacement patch. See https://pr.k8s.io/79391 for an example. Consumers should assume that addresses can change during the lifetime of a Node. However, there are some exceptions where this may not be possible, such as Pods that inherit a Node's address in its own status or consumers of the downward API (status.hostIP).",
    },
    Column {
        name: "External-IP",
        kind: "string",
        format: "",
        priority: 1,
        description: "List of addresses reachable to the node. Queried from cloud provider, if available. More info: https://kubernetes.io/docs/reference/node/node-status/#addresses Note: This field is declared as mergeable, but the merge key is not sufficiently unique, which can cause data corruption when it is merged. Callers should instead use a full-replacement patch. See https://pr.k8s.io/79391 for an example. Consumers should assume that addresses can change during the lifetime of a Node. However, there are some exceptions where this may not be possible, such as Pods that inherit a Node's address in its own status or consumers of the downward API (status.hostIP).",
    },
    Column {
        name: "OS-Image",
        kind: "string",
        format: "",
        priority: 1,
        description: "OS Image reported by the node from /etc/os-release (e.g. Debian GNU/Linux 7 (wheezy)).",
    },
    Column {
        name: "Kernel-Version",
        kind: "string",
        format: "",
        priority: 1,
        description: "Kernel Version reported by the node from 'uname -r' (e.g. 3.16.0-0.bpo.4-amd64).",
    },
    Column {
        name: "Container-Runtime",
        kind: "string",
        format: "",
        priority: 1,
        description: "ContainerRuntime Version reported by the node through runtime remote API (e.g. containerd://1.4.2).",
    },
];

/// Columns of namespace tables.
pub const NAMESPACE: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column {
        name: "Status",
        kind: "string",
        format: "",
        priority: 0,
        description: "The status of the namespace",
    },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
];

/// Columns of config map tables.
pub const CONFIG_MAP: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column {
        name: "Data",
        kind: "string",
        format: "",
        priority: 0,
        description: "Data contains the configuration data. Each key must consist of alphanumeric characters, '-', '_' or '.'. Values with non-UTF-8 byte sequences must use the BinaryData field. The keys stored in Data must not overlap with the keys in the BinaryData field, this is enforced during validation process.",
    },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
];

/// Columns of deployment tables.
pub const DEPLOYMENT: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column {
        name: "Ready",
        kind: "string",
        format: "",
        priority: 0,
        description: "Number of the pod with ready state",
    },
    Column {
        name: "Up-to-date",
        kind: "string",
        format: "",
        priority: 0,
        description: "Total number of non-terminating pods targeted by this deployment that have the desired template spec.",
    },
    Column {
        name: "Available",
        kind: "string",
        format: "",
        priority: 0,
        description: "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted by this deployment.",
    },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
    Column {
        name: "Containers",
        kind: "string",
        format: "",
        priority: 1,
        description: "Names of each container in the template.",
    },
    Column {
        name: "Images",
        kind: "string",
        format: "",
        priority: 1,
        description: "Images referenced by each container in the template.",
    },
    Column {
        name: "Selector",
        kind: "string",
        format: "",
        priority: 1,
        description: "Label selector for pods. Existing ReplicaSets whose pods are selected by this will be the ones affected by this deployment. It must match the pod template's labels.",
    },
];

/// Columns of replica set tables.
pub const REPLICA_SET: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column {
        name: "Desired",
        kind: "integer",
        format: "",
        priority: 0,
        description: "Replicas is the number of desired pods. This is a pointer to distinguish between explicit zero and unspecified. Defaults to 1. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicaset",
    },
    Column {
        name: "Current",
        kind: "integer",
        format: "",
        priority: 0,
        description: "Replicas is the most recently observed number of non-terminating pods. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicaset",
    },
    Column {
        name: "Ready",
        kind: "integer",
        format: "",
        priority: 0,
        description: "The number of non-terminating pods targeted by this ReplicaSet with a Ready Condition.",
    },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
    Column {
        name: "Containers",
        kind: "string",
        format: "",
        priority: 1,
        description: "Names of each container in the template.",
    },
    Column {
        name: "Images",
        kind: "string",
        format: "",
        priority: 1,
        description: "Images referenced by each container in the template.",
    },
    Column {
        name: "Selector",
        kind: "string",
        format: "",
        priority: 1,
        description: "Selector is a label query over pods that should match the replica count. Label keys and values that must match in order to be controlled by this replica set. It must match the pod template's labels. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
    },
];

/// Columns of service tables.
pub const SERVICE: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column {
        name: "Type",
        kind: "string",
        format: "",
        priority: 0,
        description: "type determines how the Service is exposed. Defaults to ClusterIP. Valid options are ExternalName, ClusterIP, NodePort, and LoadBalancer. \"ClusterIP\" allocates a cluster-internal IP address for load-balancing to endpoints. Endpoints are determined by the selector or if that is not specified, by manual construction of an Endpoints object or EndpointSlice objects. If clusterIP is \"None\", no virtual IP is allocated and the endpoints are published as a set of endpoints rather than a virtual IP. \"NodePort\" builds on ClusterIP and allocates a port on every node which routes to the same endpoints as the clusterIP. \"LoadBalancer\" builds on NodePort and creates an external load-balancer (if supported in the current cloud) which routes to the same endpoints as the clusterIP. \"ExternalName\" aliases this service to the specified externalName. Several other fields do not apply to ExternalName services. More info: https://kubernetes.io/docs/concepts/services-networking/service/#publishing-services-service-types",
    },
    Column {
        name: "Cluster-IP",
        kind: "string",
        format: "",
        priority: 0,
        description: "clusterIP is the IP address of the service and is usually assigned randomly. If an address is specified manually, is in-range (as per system configuration), and is not in use, it will be allocated to the service; otherwise creation of the service will fail. This field may not be changed through updates unless the type field is also being changed to ExternalName (which requires this field to be blank) or the type field is being changed from ExternalName (in which case this field may optionally be specified, as describe above).  Valid values are \"None\", empty string (\"\"), or a valid IP address. Setting this to \"None\" makes a \"headless service\" (no virtual IP), which is useful when direct endpoint connections are preferred and proxying is not required.  Only applies to types ClusterIP, NodePort, and LoadBalancer. If this field is specified when creating a Service of type ExternalName, creation will fail. This field will be wiped when updating a Service to type ExternalName. More info: https://kubernetes.io/docs/concepts/services-networking/service/#virtual-ips-and-service-proxies",
    },
    Column {
        name: "External-IP",
        kind: "string",
        format: "",
        priority: 0,
        description: "externalIPs is a list of IP addresses for which nodes in the cluster will also accept traffic for this service.  These IPs are not managed by Kubernetes.  The user is responsible for ensuring that traffic arrives at a node with this IP.  A common example is external load-balancers that are not part of the Kubernetes system.",
    },
    Column {
        name: "Port(s)",
        kind: "string",
        format: "",
        priority: 0,
        description: "The list of ports that are exposed by this service. More info: https://kubernetes.io/docs/concepts/services-networking/service/#virtual-ips-and-service-proxies",
    },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
    Column {
        name: "Selector",
        kind: "string",
        format: "",
        priority: 1,
        description: "Route service traffic to pods with label keys and values matching this selector. If empty or not present, the service is assumed to have an external process managing its endpoints, which Kubernetes will not modify. Only applies to types ClusterIP, NodePort, and LoadBalancer. Ignored if type is ExternalName. More info: https://kubernetes.io/docs/concepts/services-networking/service/",
    },
];

/// Columns of secret tables.
pub const SECRET: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column {
        name: "Type",
        kind: "string",
        format: "",
        priority: 0,
        description: "Used to facilitate programmatic handling of secret data. More info: https://kubernetes.io/docs/concepts/configuration/secret/#secret-types",
    },
    Column {
        name: "Data",
        kind: "string",
        format: "",
        priority: 0,
        description: "Data contains the secret data. Each key must consist of alphanumeric characters, '-', '_' or '.'. The serialized form of the secret data is a base64 encoded string, representing the arbitrary (possibly non-string) data value here. Described in https://tools.ietf.org/html/rfc4648#section-4",
    },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
];

/// Columns of service account tables.
pub const SERVICE_ACCOUNT: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
];

/// Columns of event tables.
pub const EVENT: &[Column] = &[
    Column {
        name: "Last Seen",
        kind: "string",
        format: "",
        priority: 0,
        description: "The time at which the most recent occurrence of this event was recorded.",
    },
    Column {
        name: "Type",
        kind: "string",
        format: "",
        priority: 0,
        description: "Type of this event (Normal, Warning), new types could be added in the future",
    },
    Column {
        name: "Reason",
        kind: "string",
        format: "",
        priority: 0,
        description: "This should be a short, machine understandable string that gives the reason for the transition into the object's current status.",
    },
    Column {
        name: "Object",
        kind: "string",
        format: "",
        priority: 0,
        description: "The object that this event is about.",
    },
    Column {
        name: "Subobject",
        kind: "string",
        format: "",
        priority: 1,
        description: "If referring to a piece of an object instead of an entire object, this string should contain a valid JSON/Go field access statement, such as desiredState.manifest.containers[2]. For example, if the object reference is to a container within a pod, this would take on a value like: \"spec.containers{name}\" (where \"name\" refers to the name of the container that triggered the event) or if no container name is specified \"spec.containers[2]\" (container with index 2 in this pod). This syntax is chosen only to have some well-defined way of referencing a part of an object.",
    },
    Column {
        name: "Source",
        kind: "string",
        format: "",
        priority: 1,
        description: "The component reporting this event. Should be a short machine understandable string.",
    },
    Column {
        name: "Message",
        kind: "string",
        format: "",
        priority: 0,
        description: "A human-readable description of the status of this operation.",
    },
    Column {
        name: "First Seen",
        kind: "string",
        format: "",
        priority: 1,
        description: "The time at which the event was first recorded. (Time of server receipt is in TypeMeta.)",
    },
    Column {
        name: "Count",
        kind: "string",
        format: "",
        priority: 1,
        description: "The number of times this event has occurred.",
    },
    Column { name: "Name", kind: "string", format: "name", priority: 1, description: NAME_DOC },
];

/// Columns of endpoints tables.
pub const ENDPOINTS: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column {
        name: "Endpoints",
        kind: "string",
        format: "",
        priority: 0,
        description: "The set of all endpoints is the union of all subsets. Addresses are placed into subsets according to the IPs they share. A single address with multiple ports, some of which are ready and some of which are not (because they come from different containers) will result in the address being displayed in different subsets for the different ports. No address will appear in both Addresses and NotReadyAddresses in the same subset. Sets of addresses and ports that comprise a service.",
    },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
];

/// Columns of endpoint slice tables.
pub const ENDPOINT_SLICE: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column {
        name: "AddressType",
        kind: "string",
        format: "",
        priority: 0,
        description: "addressType specifies the type of address carried by this EndpointSlice. All addresses in this slice must be the same type. This field is immutable after creation. The following address types are currently supported: * IPv4: Represents an IPv4 Address. * IPv6: Represents an IPv6 Address. * FQDN: Represents a Fully Qualified Domain Name. (Deprecated) The EndpointSlice controller only generates, and kube-proxy only processes, slices of addressType \"IPv4\" and \"IPv6\". No semantics are defined for the \"FQDN\" type.\n\nPossible enum values:\n - `\"FQDN\"` represents a FQDN.\n - `\"IPv4\"` represents an IPv4 Address.\n - `\"IPv6\"` represents an IPv6 Address.",
    },
    Column {
        name: "Ports",
        kind: "string",
        format: "",
        priority: 0,
        description: "ports specifies the list of network ports exposed by each endpoint in this slice. Each port must have a unique name. Each slice may include a maximum of 100 ports. Services always have at least 1 port, so EndpointSlices generated by the EndpointSlice controller will likewise always have at least 1 port. EndpointSlices used for other purposes may have an empty ports list.",
    },
    Column {
        name: "Endpoints",
        kind: "string",
        format: "",
        priority: 0,
        description: "endpoints is a list of unique endpoints in this slice. Each slice may include a maximum of 1000 endpoints.",
    },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
];

/// Columns of lease tables.
pub const LEASE: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column {
        name: "Holder",
        kind: "string",
        format: "",
        priority: 0,
        description: "holderIdentity contains the identity of the holder of a current lease. If Coordinated Leader Election is used, the holder identity must be equal to the elected LeaseCandidate.metadata.name field.",
    },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
];

const ROLE_REF_DOC: &str = "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.";
const CLUSTER_ROLE_REF_DOC: &str = "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.";

/// Columns of role binding tables.
pub const ROLE_BINDING: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column { name: "Role", kind: "string", format: "", priority: 0, description: ROLE_REF_DOC },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
    Column {
        name: "Users",
        kind: "string",
        format: "",
        priority: 1,
        description: "Users in the roleBinding",
    },
    Column {
        name: "Groups",
        kind: "string",
        format: "",
        priority: 1,
        description: "Groups in the roleBinding",
    },
    Column {
        name: "ServiceAccounts",
        kind: "string",
        format: "",
        priority: 1,
        description: "ServiceAccounts in the roleBinding",
    },
];

/// Columns of cluster role binding tables.
pub const CLUSTER_ROLE_BINDING: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: NAME_DOC },
    Column { name: "Role", kind: "string", format: "", priority: 0, description: CLUSTER_ROLE_REF_DOC },
    Column { name: "Age", kind: "string", format: "", priority: 0, description: AGE_DOC },
    Column {
        name: "Users",
        kind: "string",
        format: "",
        priority: 1,
        description: "Users in the clusterRoleBinding",
    },
    Column {
        name: "Groups",
        kind: "string",
        format: "",
        priority: 1,
        description: "Groups in the clusterRoleBinding",
    },
    Column {
        name: "ServiceAccounts",
        kind: "string",
        format: "",
        priority: 1,
        description: "ServiceAccounts in the clusterRoleBinding",
    },
];

/// Columns of certificate signing request tables.
pub const CERTIFICATE_SIGNING_REQUEST: &[Column] = &[
    name_column(),
    age_column(),
    shown(
        "SignerName",
        "string",
        "Requested signer for the request. It is a qualified name in the form: `scope-hostname.io/name`.",
    ),
    shown("Requestor", "string", "Base64-encoded PKCS#10 CSR data"),
    shown(
        "RequestedDuration",
        "string",
        "expirationSeconds is the requested duration of validity of the issued certificate.",
    ),
    shown("Condition", "string", "Conditions applied to the request, such as approval or denial."),
];
