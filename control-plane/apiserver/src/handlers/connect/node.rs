//! Where a node's kubelet API is.

use super::transport::{Connection, Target, node_tls};
use crate::error::ApiError;
use crate::handlers::Context;
use crate::object::{int_at, list_at, str_at};
use crate::storage;

/// Kinds of addresses in the order in which they are tried: what is surely an address of the node comes first.
const ADDRESSES: [&str; 2] = ["InternalIP", "ExternalIP"];

/// What a node declares when WebSockets may reach its kubelet (upstream's feature of this name).
const WEBSOCKETS: &str = "ExtendWebSocketsToKubelet";

/// The kubelet API of a node, spoken to with our identity.
pub(crate) async fn kubelet(context: &Context, node: &str) -> Result<Target, ApiError> {
    Ok(kubelet_with_features(context, node).await?.0)
}

/// The same, and whether it says that it speaks WebSocket.
pub(super) async fn kubelet_with_features(context: &Context, node: &str) -> Result<(Target, bool), ApiError> {
    let core = &context.core;
    let Some(identity) = &core.config.kubelet_client else {
        return Err(ApiError::service_unavailable("this server has no identity to ask nodes with"));
    };
    let nodes = core.builtin.find("", "v1", "nodes").ok_or_else(ApiError::unknown_resource)?.clone();
    let found = storage::read(&core.store, &nodes, &nodes.key("", node)).await?;
    let found = found.ok_or_else(|| ApiError::not_found("", "nodes", node))?.object;
    let addresses = list_at(&found, &["status", "addresses"]);
    let host = ADDRESSES.iter().find_map(|kind| {
        let mut of_kind = addresses.iter().filter(|a| str_at(a, &["type"]) == *kind);
        of_kind.find_map(|a| str_at(a, &["address"]).parse::<std::net::IpAddr>().ok())
    });
    let port = int_at(&found, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
    match (host, port) {
        (Some(host), Some(port)) => {
            let tls = node_tls(core, identity).map_err(ApiError::internal)?;
            let websockets =
                list_at(&found, &["status", "declaredFeatures"]).iter().any(|feature| feature == WEBSOCKETS);
            Ok((Target { host: host.to_string(), port, tls: Some(tls) }, websockets))
        }
        _ => Err(ApiError::internal(format!("no preferred addresses found for node {node}"))),
    }
}

/// Connects to a kubelet API for a request that fails with the address of what it asked for.
pub(crate) async fn connect(target: &Target, path: &str) -> Result<Box<dyn Connection>, ApiError> {
    target
        .dial()
        .await
        .map_err(|error| ApiError::internal(format!("Get \"https://{}{path}\": {error}", target.authority())))
}
