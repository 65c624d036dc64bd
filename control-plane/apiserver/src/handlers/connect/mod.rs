//! Connections through the server: `exec`, `attach` and `portforward` of pods to the node's kubelet API, `proxy` of pods,
//! services and nodes to what listens there. What was upgraded is piped; the rest is forwarded as HTTP.

mod forward;
mod html;
mod location;
mod node;
mod options;
mod rewrite;
mod translate;
mod transport;

pub(super) use node::{connect as connect_node, kubelet};

use super::{Context, Reply};
use crate::auth::Attributes;
use crate::error::ApiError;
use crate::registry::Subresource;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::upgrade::OnUpgrade;
use std::net::IpAddr;

/// Why a body could not be read.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A body that is passed on as it comes.
pub(crate) type RawBody = UnsyncBoxBody<Bytes, BodyError>;

/// A request as it came: what is passed on.
pub(crate) struct Raw {
    /// Method.
    pub(crate) method: http::Method,
    /// Path, not decoded.
    pub(crate) path: String,
    /// Query, not decoded.
    pub(crate) query: Option<String>,
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// The client's connection, once it is upgraded.
    pub(crate) upgrade: Option<OnUpgrade>,
    /// Body.
    pub(crate) body: RawBody,
    /// Where the client is.
    pub(crate) peer: Option<IpAddr>,
}

impl Raw {
    /// The client's connection, which is upgraded once the answer says so.
    fn take_upgrade(&mut self) -> Result<OnUpgrade, ApiError> {
        let missing = || ApiError::plain_internal("request connection cannot be hijacked");
        self.upgrade.take().ok_or_else(missing)
    }

    /// The client wants another protocol on its connection.
    fn is_upgrade(&self) -> bool {
        self.headers
            .get_all(http::header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.to_ascii_lowercase().contains("upgrade"))
    }
}

/// Serves a connection to a subresource.
pub(crate) async fn connect(context: Context, sub: &Subresource, raw: Raw) -> Result<Reply, ApiError> {
    if context.query.get("dryRun").is_some() {
        return Err(ApiError::bad_request("dryRun is not supported"));
    }
    let methods: &[&str] = if sub.name == "proxy" {
        &["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
    } else {
        &["GET", "POST"]
    };
    if !methods.contains(&raw.method.as_str()) {
        return Err(ApiError::method_not_allowed());
    }
    if sub.name == "proxy" {
        let path = location::behind(&raw.path);
        let target = location::of_proxy(&context).await?;
        return forward::forward(&context, raw, target, &path).await;
    }
    // A WebSocket begins with a GET: what it does is to create, whatever the method.
    let mut create = context.info.clone();
    create.verb = "create";
    let asked = Attributes::of(&context.user, &create, &context.query);
    let decision = context.core.policy.authorize(&asked).await?;
    if !decision.allowed {
        return Err(asked.forbidden(&decision.reason));
    }
    let to = location::of_stream(&context).await?;
    if !raw.is_upgrade() {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    if !to.websockets && sub.name == "portforward" && translate::is_tunnel(&raw.headers) {
        return translate::tunnel(&context, raw, to).await;
    }
    if !to.websockets && sub.name != "portforward" && translate::is_remote_command(&raw.headers) {
        return translate::remote_command(&context, raw, to).await;
    }
    forward::upgrade(&context, raw, &to.target, &to.address).await
}
