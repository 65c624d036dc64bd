//! Files of configMap, secret and downwardAPI sources.

use super::atomic::{File, Files};
use crate::pod::objects::Data;
use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, ObjectFieldSelector, Pod, ResourceFieldSelector,
    ServiceAccountTokenProjection,
};
use kelp_model::pod::{quantity, spec};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What the downward API can tell.
#[derive(Debug, Clone, Copy)]
pub struct Downward<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The node's name.
    pub node_name: &'a str,
    /// The node's addresses.
    pub host_ips: &'a [IpAddr],
    /// The pod's addresses.
    pub pod_ips: &'a [IpAddr],
    /// The node's allocatable CPU, thousandths: the limit of a container without one.
    pub node_milli_cpu: i64,
    /// The node's allocatable memory, bytes.
    pub node_memory: i64,
}

/// Adds a service account's token. One that the containers' user or the pod's group can read is nobody else's to read.
pub fn token(
    files: &mut Files,
    projection: &ServiceAccountTokenProjection,
    token: String,
    mode: Option<i32>,
    pod: &Pod,
) {
    let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group);
    let owner = only_user(pod);
    let mode = match owner.is_some() || group.is_some() {
        true => 0o600,
        false => mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644),
    };
    files.insert((&projection.path).into(), File { data: token.into_bytes(), mode, owner });
}

/// The user that all containers run as, when every one of them says so.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = spec::containers(spec)
        .map(|(_, c)| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

/// Adds the keys of an object, all of them or those of `items`.
pub fn keys(
    files: &mut Files,
    object: &str,
    what: &str,
    data: &Data,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: bool,
) -> Result<(), String> {
    let mode_of = |own: Option<i32>| u32::try_from(own.or(mode).unwrap_or(0o644)).unwrap_or(0o644);
    match items {
        None | Some([]) => {
            for (key, value) in data {
                files.insert(key.into(), File { data: value.clone(), mode: mode_of(None), owner: None });
            }
        }
        Some(items) => {
            for item in items {
                match data.get(&item.key) {
                    Some(value) => {
                        let file = File { data: value.clone(), mode: mode_of(item.mode), owner: None };
                        files.insert((&item.path).into(), file);
                    }
                    None if optional => {}
                    None => return Err(format!("{object} references non-existent {what} key: {}", item.key)),
                }
            }
        }
    }
    Ok(())
}

/// Adds the files of a downwardAPI source.
pub fn downward(
    files: &mut Files,
    of: &Downward<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: Option<i32>,
) -> Result<(), String> {
    for item in items.unwrap_or_default() {
        let text = if let Some(field) = &item.field_ref {
            of.field(field)?
        } else if let Some(resource) = &item.resource_field_ref {
            let name = resource.container_name.as_deref().unwrap_or_default();
            let spec = of.pod.spec.as_ref();
            let container = spec.and_then(|s| spec::find(s, name)).map(|(_, c)| c);
            of.resource(container.ok_or_else(|| format!("container {name} not found"))?, resource)?
        } else {
            continue;
        };
        let mode = u32::try_from(item.mode.or(mode).unwrap_or(0o644)).unwrap_or(0o644);
        files.insert((&item.path).into(), File { data: text.into_bytes(), mode, owner: None });
    }
    Ok(())
}

fn map_text(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(k, v): (&String, &String)| format!("{k}={v:?}");
    map.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

/// `metadata.annotations['key']` → `("metadata.annotations", "key")`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

impl Downward<'_> {
    /// The value of a fieldRef.
    ///
    /// # Errors
    /// The path names no field that can be had.
    pub fn field(&self, selector: &ObjectFieldSelector) -> Result<String, String> {
        let meta = &self.pod.metadata;
        let path = selector.field_path.as_str();
        if let Some((map, key)) = subscript(path) {
            let map = match map {
                "metadata.annotations" => meta.annotations.as_ref(),
                "metadata.labels" => meta.labels.as_ref(),
                _ => return Err(format!("unsupported fieldPath: {path}")),
            };
            return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
        }
        let spec = self.pod.spec.as_ref();
        let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
        Ok(match path {
            "metadata.name" => meta.name.clone().unwrap_or_default(),
            "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
            "metadata.uid" => meta.uid.clone().unwrap_or_default(),
            "metadata.labels" => map_text(meta.labels.as_ref()),
            "metadata.annotations" => map_text(meta.annotations.as_ref()),
            "spec.nodeName" => self.node_name.to_owned(),
            "spec.serviceAccountName" => {
                spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default()
            }
            "status.hostIP" => first(self.host_ips),
            "status.hostIPs" => join(self.host_ips),
            "status.podIP" => first(self.pod_ips),
            "status.podIPs" => join(self.pod_ips),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        })
    }

    /// The value of a resourceFieldRef, in units of its divisor, rounded up.
    ///
    /// # Errors
    /// The resource or the divisor is not known.
    pub fn resource(
        &self,
        container: &Container,
        selector: &ResourceFieldSelector,
    ) -> Result<String, String> {
        let unsupported = || format!("unsupported container resource : {}", selector.resource);
        let (list, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|r| r.limits.as_ref());
        let requests = resources.and_then(|r| r.requests.as_ref());
        let map = match list {
            "limits" => limits,
            "requests" => requests,
            _ => return Err(unsupported()),
        };
        let own = map.and_then(|m| m.get(resource)).and_then(quantity::milli);
        // Without a limit a container can use the whole node; without a request it asks for nothing, or its limit.
        let node = match resource {
            "cpu" => i128::from(self.node_milli_cpu),
            "memory" => i128::from(self.node_memory) * 1000,
            "ephemeral-storage" => 0,
            r if r.starts_with("hugepages-") => 0,
            _ => return Err(unsupported()),
        };
        let fallback = match list {
            "limits" => node,
            _ => limits.and_then(|m| m.get(resource)).and_then(quantity::milli).unwrap_or(0),
        };
        let milli = own.unwrap_or(fallback);
        let divisor = match &selector.divisor {
            Some(d) => quantity::milli(d).ok_or_else(|| format!("invalid divisor {:?}", d.0))?,
            None => 1000,
        };
        let divisor = if divisor <= 0 { 1000 } else { divisor };
        Ok((milli.div_euclid(divisor) + i128::from(milli.rem_euclid(divisor) != 0)).to_string())
    }
}
