//! The table of controllers.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;

use crate::context::Context;
use crate::error::Result;
use crate::{
    certificates, clusterrole_aggregation, deployment, endpoints, endpointslice, endpointslice_mirroring,
    ephemeral_volume, garbage, namespace, node_ipam, node_lifecycle, node_ttl, pod_gc, replicaset,
    resource_quota, root_ca, serviceaccount, taint_eviction, volume_attach, volume_binder, volume_protection,
};

/// A controller: its name (as `--controllers` takes it) and how it starts.
pub struct Controller {
    /// Name.
    pub name: &'static str,
    /// Whether `*` includes it.
    pub on_by_default: bool,
    /// Registers its handlers and spawns its workers; called before the watches start.
    pub start: fn(&Arc<Context>) -> Result<()>,
}

const fn row(name: &'static str, start: fn(&Arc<Context>) -> Result<()>) -> Controller {
    Controller { name, on_by_default: true, start }
}

/// All controllers.
pub const CONTROLLERS: &[Controller] = &[
    row("deployment-controller", deployment::start),
    row("replicaset-controller", replicaset::start::<ReplicaSet>),
    row("replicationcontroller-controller", replicaset::start::<ReplicationController>),
    row("endpointslice-controller", endpointslice::start),
    row("endpointslice-mirroring-controller", endpointslice_mirroring::start),
    row("endpoints-controller", endpoints::start),
    row("namespace-controller", namespace::start),
    row("serviceaccount-controller", serviceaccount::start),
    row("root-ca-certificate-publisher-controller", root_ca::start),
    row("clusterrole-aggregation-controller", clusterrole_aggregation::start),
    row("resourcequota-controller", resource_quota::start),
    row("node-lifecycle-controller", node_lifecycle::start),
    row("taint-eviction-controller", taint_eviction::start),
    row("node-ipam-controller", node_ipam::start),
    row("ttl-controller", node_ttl::start),
    row("garbage-collector-controller", garbage::start),
    row("pod-garbage-collector-controller", pod_gc::start),
    row("persistentvolume-binder-controller", volume_binder::start),
    row("persistentvolume-attach-detach-controller", volume_attach::start),
    row("ephemeral-volume-controller", ephemeral_volume::start),
    row("persistentvolumeclaim-protection-controller", volume_protection::claims),
    row("persistentvolume-protection-controller", volume_protection::volumes),
    row("certificatesigningrequest-signing-controller", certificates::signing),
    row("certificatesigningrequest-approving-controller", certificates::approving),
    row("certificatesigningrequest-cleaner-controller", certificates::cleaning),
];
