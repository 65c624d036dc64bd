//! The older Endpoints object of a Service, which some clients still read.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Pod, Service};

use super::endpointslice::{endpoint_ports, pod_address, service_families};
use super::pods;

/// Addresses an Endpoints object holds at most; more are cut off.
pub const MAX_ADDRESSES: usize = 1000;

/// The subsets of a Service's Endpoints: pods with the same ports, ready and not ready, of the Service's first family.
#[must_use]
pub fn desired_subsets<'a>(
    service: &Service,
    pods: impl IntoIterator<Item = &'a Pod>,
) -> Vec<EndpointSubset> {
    let family = service_families(service).into_iter().next().unwrap_or_default();
    let spec = service.spec.as_ref();
    let publish = spec.and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let no_ports = spec.and_then(|s| s.ports.as_ref()).is_none_or(Vec::is_empty);
    // Keyed so that neither the order of pods nor that of ports matters.
    let mut subsets: BTreeMap<Vec<PortKey>, (ByIp, ByIp)> = BTreeMap::new();
    for pod in pods {
        if pods::is_terminal(pod) || (pods::is_terminating(pod) && !publish) {
            continue;
        }
        let Some(ip) = pod_address(pod, &family) else { continue };
        let ports: BTreeSet<PortKey> = endpoint_ports(service, pod)
            .into_iter()
            .map(|p| PortKey {
                name: p.name.filter(|n| !n.is_empty()),
                port: p.port.unwrap_or(0),
                protocol: p.protocol.unwrap_or_default(),
                app_protocol: p.app_protocol,
            })
            .collect();
        if ports.is_empty() && !no_ports {
            continue;
        }
        let pod_spec = pod.spec.as_ref();
        let address = EndpointAddress {
            ip: ip.into(),
            hostname: pod_spec
                .filter(|s| s.subdomain.is_some() && s.subdomain == service.metadata.name)
                .and_then(|s| s.hostname.clone())
                .filter(|h| !h.is_empty()),
            node_name: pod_spec.and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty()),
            target_ref: Some(super::endpointslice::target_ref(pod)),
        };
        let (ready, unready) = subsets.entry(ports.into_iter().collect()).or_default();
        if publish || pods::is_ready(pod) {
            ready.insert(ip.into(), address);
        } else {
            unready.insert(ip.into(), address);
        }
    }
    let list = |map: ByIp| (!map.is_empty()).then(|| map.into_values().collect::<Vec<_>>());
    subsets
        .into_iter()
        .map(|(ports, (ready, unready))| EndpointSubset {
            addresses: list(ready),
            not_ready_addresses: list(unready),
            ports: (!ports.is_empty()).then(|| ports.into_iter().map(EndpointPort::from).collect()),
        })
        .collect()
}

/// Cuts subsets down to [`MAX_ADDRESSES`], ready ones first. Returns whether something was cut.
pub fn truncate(subsets: &mut Vec<EndpointSubset>) -> bool {
    let total = |s: &[EndpointSubset]| -> usize {
        s.iter()
            .map(|s| s.addresses.iter().flatten().count() + s.not_ready_addresses.iter().flatten().count())
            .sum()
    };
    if total(subsets) <= MAX_ADDRESSES {
        return false;
    }
    let mut left = MAX_ADDRESSES;
    let mut cut = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(list) = list {
            list.truncate(left);
            left -= list.len();
        }
    };
    subsets.iter_mut().for_each(|s| cut(&mut s.addresses));
    subsets.iter_mut().for_each(|s| cut(&mut s.not_ready_addresses));
    subsets.retain(|s| total(std::slice::from_ref(s)) > 0);
    true
}

/// Addresses in order.
type ByIp = BTreeMap<String, EndpointAddress>;

/// A port in a form that has an order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PortKey {
    pub(super) protocol: String,
    pub(super) port: i32,
    /// Never empty.
    pub(super) name: Option<String>,
    pub(super) app_protocol: Option<String>,
}

impl From<&EndpointPort> for PortKey {
    fn from(port: &EndpointPort) -> Self {
        Self {
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: port.port,
            name: port.name.clone().filter(|name| !name.is_empty()),
            app_protocol: port.app_protocol.clone(),
        }
    }
}

impl From<PortKey> for EndpointPort {
    fn from(key: PortKey) -> Self {
        Self { name: key.name, port: key.port, protocol: Some(key.protocol), app_protocol: key.app_protocol }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, ip: &str, ready: bool) -> Value {
        json!({"metadata": {"name": name, "uid": name}, "spec": {"nodeName": "w", "containers": []},
               "status": {"podIP": ip, "phase": "Running",
                          "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
    }

    fn subsets(service: Value, pods: Vec<Value>) -> Value {
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": service})).unwrap();
        let pods: Vec<Pod> = pods.into_iter().map(|p| serde_json::from_value(p).unwrap()).collect();
        let mut value = serde_json::to_value(desired_subsets(&service, &pods)).unwrap();
        for subset in value.as_array_mut().unwrap() {
            for list in ["addresses", "notReadyAddresses"] {
                if let Some(list) = subset.get_mut(list) {
                    *list = list.as_array().unwrap().iter().map(|a| a["ip"].clone()).collect();
                }
            }
        }
        value
    }

    #[test]
    fn ready_and_not_ready_share_a_subset() {
        let pods = vec![pod("b", "10.0.0.2", true), pod("a", "10.0.0.1", true), pod("c", "10.0.0.3", false)];
        assert_eq!(
            subsets(json!({"ports": [{"port": 80, "targetPort": 8080}]}), pods),
            json!([{"addresses": ["10.0.0.1", "10.0.0.2"], "notReadyAddresses": ["10.0.0.3"],
                    "ports": [{"port": 8080, "protocol": "TCP"}]}])
        );
    }

    #[test]
    fn a_pod_being_deleted_is_left_out() {
        let mut leaving = pod("a", "10.0.0.1", true);
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(subsets(json!({"ports": [{"port": 80}]}), vec![leaving.clone()]), json!([]));
        let publish =
            subsets(json!({"ports": [{"port": 80}], "publishNotReadyAddresses": true}), vec![leaving]);
        assert_eq!(publish[0]["addresses"], json!(["10.0.0.1"]));
    }

    #[test]
    fn a_headless_service_needs_no_ports() {
        assert_eq!(
            subsets(json!({"clusterIP": "None"}), vec![pod("a", "10.0.0.1", true)]),
            json!([{"addresses": ["10.0.0.1"]}])
        );
    }

    #[test]
    fn no_more_than_a_thousand_addresses() {
        let address = |i: usize| EndpointAddress { ip: i.to_string(), ..EndpointAddress::default() };
        let mut subsets = vec![EndpointSubset {
            addresses: Some((0..900).map(address).collect()),
            not_ready_addresses: Some((900..1200).map(address).collect()),
            ports: None,
        }];
        assert!(truncate(&mut subsets));
        assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 900);
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap().len(), 100);
        assert!(!truncate(&mut subsets));
    }
}
