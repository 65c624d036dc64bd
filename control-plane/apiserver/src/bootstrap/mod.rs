//! The objects that every cluster has: namespaces, default roles, the `kubernetes` Service with its endpoints, and the
//! Service of cluster DNS.

pub(crate) mod policy;

pub(crate) mod cluster;
pub(crate) mod flowcontrol;
mod keeper;

use crate::error::ApiError;
use crate::handlers;
use crate::object::meta;
use crate::server::Core;
use futures::{StreamExt, TryStreamExt};
use policy::Reconciled;
use serde_json::{Value, json};
use std::sync::Arc;

/// Default roles written at one time; the store makes one write of those that wait.
const ROLES_AT_ONCE: usize = 32;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

pub(crate) async fn run(core: &Arc<Core>) -> Result<(), ApiError> {
    core.follow_flow_control();
    crate::custom::Keeper::start(core).await?;
    for name in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(core, "", "namespaces", object).await?;
    }
    roles(core).await?;
    core.policy.ready().await?;
    cluster::run(core).await?;
    let port = core.config.advertise_port;
    let address = core.config.advertise_address.to_string();
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": core.first_service_address(),
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]}});
    ensure(core, "", "services", service).await?;
    cluster_dns(core).await;
    keeper::start(core);
    let advertised = core.config.advertise_address;
    if advertised.is_loopback() || advertised.is_unspecified() {
        tracing::warn!(%advertised, "pods cannot reach the API server at this address: the kubernetes Service gets no endpoint");
        return Ok(());
    }
    let mirror = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": mirror},
        "subsets": [{"addresses": [{"ip": address}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]});
    replace(core, "", "endpoints", endpoints).await?;
    let family = if core.config.advertise_address.is_ipv4() { "IPv4" } else { "IPv6" };
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
    replace(core, "discovery.k8s.io", "endpointslices", slice).await
}

/// Makes the Service of cluster DNS, unless it is there. It selects nothing: each node answers by itself, until somebody
/// gives the Service endpoints of its own. That it cannot be made (its address is taken) keeps nobody from starting.
async fn cluster_dns(core: &Arc<Core>) {
    let addresses: Vec<String> = core.config.cluster_dns.iter().map(ToString::to_string).collect();
    let Some(first) = addresses.first() else { return };
    let policy = if addresses.len() > 1 { "PreferDualStack" } else { "SingleStack" };
    // Names and labels of the manifests that CoreDNS comes with.
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true",
        "kubernetes.io/name": "CoreDNS"});
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": first, "clusterIPs": addresses, "ipFamilyPolicy": policy,
            "ports": [{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53}]}});
    if let Err(error) = ensure(core, "", "services", service).await {
        tracing::warn!(%error, ?addresses, "the Service kube-system/kube-dns cannot be made: pods find no names at these addresses");
    }
}

/// Makes and completes the default roles and bindings.
async fn roles(core: &Arc<Core>) -> Result<(), ApiError> {
    futures::stream::iter(policy::defaults())
        .map(|default| role(core, default))
        .buffer_unordered(ROLES_AT_ONCE)
        .try_collect()
        .await
}

async fn role(core: &Arc<Core>, default: policy::Default) -> Result<(), ApiError> {
    let (group, plural, wanted) = (crate::auth::rbac::GROUP, default.plural, default.object);
    let resource = core.builtin.find(group, "v1", plural).ok_or_else(ApiError::unknown_resource)?;
    let key = resource.key(meta(&wanted, "namespace"), meta(&wanted, "name"));
    let Some(existing) = crate::storage::read(&core.store, resource, &key).await? else {
        return ensure(core, group, plural, wanted).await;
    };
    match policy::reconcile(&existing.object, &wanted) {
        Reconciled::Same => Ok(()),
        Reconciled::Update(object) => {
            tracing::info!(%key, "completing a default role or binding");
            handlers::internal(core, "update", group, plural, object).await
        }
        Reconciled::Recreate => {
            tracing::info!(%key, "making a default binding anew: its role was another");
            handlers::internal(core, "delete", group, plural, existing.object).await?;
            ensure(core, group, plural, wanted).await
        }
    }
}

async fn ensure(core: &Arc<Core>, group: &str, plural: &str, object: Value) -> Result<(), ApiError> {
    match handlers::internal(core, "create", group, plural, object.clone()).await {
        Ok(()) => Ok(()),
        Err(error) if error.reason() == "AlreadyExists" => Ok(()),
        // An object that is there may also be refused because it holds what a second one would need (its address).
        Err(error) => handlers::internal(core, "get", group, plural, object).await.map_err(|_| error),
    }
}

/// Writes an object whose content follows the configuration.
async fn replace(core: &Arc<Core>, group: &str, plural: &str, object: Value) -> Result<(), ApiError> {
    tracing::debug!(kind = plural, name = meta(&object, "name"), "writing");
    match handlers::internal(core, "create", group, plural, object.clone()).await {
        Err(error) if error.reason() == "AlreadyExists" => {
            handlers::internal(core, "update", group, plural, object).await
        }
        other => other,
    }
}
