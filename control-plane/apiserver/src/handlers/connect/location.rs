//! What a connection leads to.

use super::node::{kubelet, kubelet_with_features};
use super::options::{flag, numbers, split};
use super::transport::{Target, client_config};
use crate::cache::Filter;
use crate::error::ApiError;
use crate::handlers::Context;
use crate::object::{list_at, meta, str_at};
use crate::request::percent_decode;
use crate::selector::{FieldSelector, LabelSelector};
use crate::storage;
use rand::seq::IndexedRandom;
use serde_json::Value;
use std::net::IpAddr;

/// Path of a request behind its subresource, cleaned, and empty when there is none.
pub(super) fn behind(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let skip = match parts.as_slice() {
        ["api", _, "namespaces", ..] => 7,
        _ => 5,
    };
    // `api/v1/namespaces/NS/pods/NAME/proxy` or `api/v1/nodes/NAME/proxy`.
    let mut clean: Vec<&str> = Vec::new();
    let rest = parts.get(skip..).unwrap_or_default();
    for part in rest {
        match *part {
            "." => {}
            ".." => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    let mut out: String = clean.iter().flat_map(|part| ["/", part]).collect();
    if path.ends_with('/') && !out.ends_with('/') {
        out.push('/');
    }
    out
}

async fn object(context: &Context, name: &str) -> Result<Value, ApiError> {
    let resource = &context.resource;
    let key = resource.key(context.namespace(), name);
    let found = storage::read(&context.core.store, resource, &key).await?;
    found.map(|s| s.object).ok_or_else(|| ApiError::not_found(resource.group(), resource.plural(), name))
}

/// Where `exec`, `attach` and `portforward` lead.
pub(super) struct Stream {
    /// The kubelet API.
    pub(super) target: Target,
    /// Path and query there.
    pub(super) address: String,
    /// The node says that it speaks WebSocket; others get SPDY.
    pub(super) websockets: bool,
}

/// The kubelet API and the path there of `exec`, `attach` and `portforward`.
pub(super) async fn of_stream(context: &Context) -> Result<Stream, ApiError> {
    let name = &context.info.name;
    let kind = context.info.subresource.as_str();
    let ports = numbers(&context.query, "ports")?;
    let pod = object(context, name).await?;
    let container = if kind == "portforward" {
        String::new()
    } else {
        crate::handlers::subresource::container(context.query.text("container"), &pod)?
    };
    let node = str_at(&pod, &["spec", "nodeName"]);
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let (target, websockets) = kubelet_with_features(context, node).await?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let namespace = meta(&pod, "namespace");
    let path = if kind == "portforward" {
        for port in ports {
            query.append_pair("port", &port.to_string());
        }
        format!("/portForward/{namespace}/{name}")
    } else {
        if kind == "exec" {
            for word in context.query.all("command") {
                query.append_pair("command", word);
            }
        }
        for (parameter, option) in
            [("error", "stderr"), ("input", "stdin"), ("output", "stdout"), ("tty", "tty")]
        {
            if flag(&context.query, option) {
                query.append_pair(parameter, "1");
            }
        }
        format!("/{kind}/{namespace}/{name}/{container}")
    };
    let query = query.finish();
    let address = if query.is_empty() { path } else { format!("{path}?{query}") };
    Ok(Stream { target, address, websockets })
}

/// What `proxy` of a pod, service or node leads to.
pub(super) async fn of_proxy(context: &Context) -> Result<Target, ApiError> {
    let id = percent_decode(&context.info.name, false);
    let kind = context.resource.kind().to_ascii_lowercase();
    let Some((scheme, name, port)) = split(&id) else {
        return Err(ApiError::bad_request(format!("invalid {kind} request {}", crate::error::quote(&id))));
    };
    match kind.as_str() {
        "pod" => pod(context, scheme, name, port).await,
        "service" => service(context, &id, scheme, name, port).await,
        _ => node(context, scheme, name, port).await,
    }
}

fn tls(scheme: &str) -> Result<Option<std::sync::Arc<rustls::ClientConfig>>, ApiError> {
    if scheme != "https" {
        return Ok(None);
    }
    client_config(None).map(Some).map_err(ApiError::internal)
}

/// Addresses that belong to the server's own machine or link are not reached through it.
fn allowed(context: &Context, address: &str) -> Result<IpAddr, ApiError> {
    let refused = || ApiError::bad_request("address not allowed");
    let address: IpAddr = address.parse().map_err(|_| refused())?;
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let loopback = address.is_loopback() && !context.core.config.proxy_to_loopback;
    if loopback || local || address.is_unspecified() || address.is_multicast() {
        return Err(refused());
    }
    Ok(address)
}

fn number(port: &str, scheme: &str) -> Result<u16, ApiError> {
    if port.is_empty() {
        return Ok(if scheme == "https" { 443 } else { 80 });
    }
    port.parse().map_err(|_| {
        let why = format!("error trying to reach service: dial tcp: lookup tcp/{port}: unknown port");
        ApiError::service_unavailable(why)
    })
}

async fn pod(context: &Context, scheme: &str, name: &str, port: &str) -> Result<Target, ApiError> {
    let pod = object(context, name).await?;
    // Without a port: the first one of the first container that has any.
    let first = list_at(&pod, &["spec", "containers"])
        .iter()
        .find_map(|c| list_at(c, &["ports"]).first().and_then(|p| p["containerPort"].as_i64()))
        .map(|p| p.to_string());
    let port = if port.is_empty() { first.unwrap_or_default() } else { port.to_owned() };
    let ips = list_at(&pod, &["status", "podIPs"]);
    let ip = ips.first().map_or_else(|| str_at(&pod, &["status", "podIP"]), |ip| str_at(ip, &["ip"]));
    let host = allowed(context, ip)?.to_string();
    Ok(Target { host, port: number(&port, scheme)?, tls: tls(scheme)? })
}

async fn service(
    context: &Context,
    id: &str,
    scheme: &str,
    name: &str,
    port: &str,
) -> Result<Target, ApiError> {
    let service = object(context, name).await?;
    let port = match port.parse::<i64>() {
        // A number stands for the name that the service gives it.
        Ok(number) => {
            let ports = list_at(&service, &["spec", "ports"]);
            let found = ports.iter().find(|p| p["port"].as_i64() == Some(number));
            let found = found.ok_or_else(|| {
                ApiError::service_unavailable(format!(
                    "no service port {number} found for service \"{name}\""
                ))
            })?;
            str_at(found, &["name"]).to_owned()
        }
        Err(_) => port.to_owned(),
    };
    let none = || ApiError::service_unavailable(format!("no endpoints available for service \"{id}\""));
    let slices = slices(context, name).await?;
    let mut found = Vec::new();
    for slice in &slices {
        let Some(number) = list_at(slice, &["ports"])
            .iter()
            .find(|p| str_at(p, &["name"]) == port)
            .and_then(|p| p["port"].as_i64())
            .and_then(|p| u16::try_from(p).ok())
        else {
            continue;
        };
        for endpoint in list_at(slice, &["endpoints"]) {
            if endpoint["conditions"]["ready"] != false
                && let Some(address) = list_at(endpoint, &["addresses"]).first().and_then(Value::as_str)
            {
                found.push((address, number));
            }
        }
        // Slices of the first family come first; one with endpoints is enough.
        if !found.is_empty() {
            break;
        }
    }
    let (address, number) = found.choose(&mut rand::rng()).ok_or_else(none)?;
    let host = allowed(context, address)?.to_string();
    Ok(Target { host, port: *number, tls: tls(scheme)? })
}

async fn slices(context: &Context, service: &str) -> Result<Vec<Value>, ApiError> {
    let core = &context.core;
    let row = core
        .builtin
        .find("discovery.k8s.io", "v1", "endpointslices")
        .ok_or_else(ApiError::unknown_resource)?
        .clone();
    let cache = core.cache(&row);
    cache.wait_fresh().await?;
    let labels = LabelSelector::parse(&format!("kubernetes.io/service-name={service}"))?;
    let filter =
        Filter { namespace: context.namespace().to_owned(), labels, fields: FieldSelector::default() };
    let snapshot = cache.snapshot(&filter, None);
    let chosen = snapshot.entries.into_iter().filter(|e| filter.matches(&row, e));
    let mut out: Vec<Value> = chosen.map(|entry| entry.encoded.parse()).collect();
    out.sort_by_key(|slice| str_at(slice, &["addressType"]) != "IPv4");
    Ok(out)
}

async fn node(context: &Context, scheme: &str, name: &str, port: &str) -> Result<Target, ApiError> {
    let kubelet = kubelet(context, name).await?;
    if port.is_empty() || port == kubelet.port.to_string() {
        return Ok(kubelet);
    }
    let host = allowed(context, &kubelet.host)?.to_string();
    Ok(Target { host, port: number(port, scheme)?, tls: tls(scheme)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_behind_subresources() {
        assert_eq!(behind("/api/v1/namespaces/n/pods/p/proxy"), "");
        assert_eq!(behind("/api/v1/namespaces/n/pods/p/proxy/"), "/");
        assert_eq!(behind("/api/v1/namespaces/n/services/https:s:web/proxy/a/b%2Fc"), "/a/b%2Fc");
        assert_eq!(behind("/api/v1/nodes/n/proxy/stats/summary/"), "/stats/summary/");
        assert_eq!(behind("/api/v1/nodes/n/proxy//a/../../x"), "/x");
    }
}
