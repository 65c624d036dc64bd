//! Rows of the group `networking.k8s.io`.

use super::*;
use crate::object::{list_at, str_at};
use std::collections::BTreeSet;

/// Ingresses.
pub static INGRESS_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "Class",
            "string",
            "The name of the IngressClass resource that should be used for additional configuration",
        ),
        Column::new(
            "Hosts",
            "string",
            "Hosts that incoming requests are matched against before the ingress rule",
        ),
        Column::new("Address", "string", "Address is a list containing ingress points for the load-balancer"),
        Column::new("Ports", "string", "Ports of TLS configurations that open"),
        Column::AGE,
    ],
    cells: ingress,
    conditions: no_conditions,
};
/// IngressClasses.
pub static INGRESS_CLASS_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new("Controller", "string", "Controller that is responsible for handling this class"),
        Column::new("Parameters", "string", "A reference to a resource with additional parameters"),
        Column::AGE,
    ],
    cells: ingress_class,
    conditions: no_conditions,
};
/// NetworkPolicies.
pub static NETWORK_POLICY_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "Pod-Selector",
            "string",
            "podSelector selects the pods to which this NetworkPolicy object applies. The array of rules is applied to any pods selected by this field. An empty selector matches all pods in the policy's namespace. Multiple network policies can select the same set of pods. In this case, the ingress rules for each are combined additively. This field is optional. If it is not specified, it defaults to an empty selector.",
        ),
        Column::AGE,
    ],
    cells: network_policy,
    conditions: no_conditions,
};
/// IPAddresses.
pub static IP_ADDRESS_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "ParentRef",
            "string",
            "ParentRef references the resource that an IPAddress is attached to. An IPAddress must reference a parent object.",
        ),
        Column::AGE,
    ],
    cells: ip_address,
    conditions: no_conditions,
};
/// ServiceCIDRs.
pub static SERVICE_CIDR_TABLE: TableSpec = TableSpec {
    columns: &[
        Column::NAME,
        Column::new(
            "CIDRs",
            "string",
            "CIDRs defines the IP blocks in CIDR notation (e.g. \"192.168.0.0/24\" or \"2001:db8::/64\") from which to assign service cluster IPs. Max of two CIDRs is allowed, one of each IP family. This field is immutable.",
        ),
        Column::AGE,
    ],
    cells: service_cidr,
    conditions: no_conditions,
};

fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let class = get(object, &["spec", "ingressClassName"]).and_then(Value::as_str).unwrap_or("<none>");
    let rules = list_at(object, &["spec", "rules"]);
    let named: Vec<&str> = rules.iter().map(|r| str_at(r, &["host"])).filter(|h| !h.is_empty()).collect();
    // Upstream counts rules, not hosts, once three hosts are shown.
    let shown = named.iter().take(3).copied().collect::<Vec<_>>().join(",");
    let third = rules.iter().scan(0, |n, r| {
        *n += usize::from(!str_at(r, &["host"]).is_empty());
        Some(*n)
    });
    let complete = third.take_while(|n| *n < 3).count() + 1 >= rules.len();
    let hosts = match shown.as_str() {
        "" => "*".to_owned(),
        _ if complete => shown,
        _ => format!("{shown} + {} more...", rules.len() - 3),
    };
    let points: BTreeSet<&str> = list_at(object, &["status", "loadBalancer", "ingress"])
        .iter()
        .map(|i| match str_at(i, &["ip"]) {
            "" => str_at(i, &["hostname"]),
            ip => ip,
        })
        .filter(|p| !p.is_empty())
        .collect();
    let points: Vec<&str> = points.into_iter().collect();
    let ports = if list_at(object, &["spec", "tls"]).is_empty() { "80" } else { "80, 443" };
    vec![
        meta(object, "name").into(),
        class.into(),
        hosts.into(),
        points.join(",").into(),
        ports.into(),
        age(object, now),
    ]
}

fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match get(object, &["spec", "parameters"]) {
        None => "<none>".to_owned(),
        Some(p) => {
            let group = match str_at(p, &["apiGroup"]) {
                "" => String::new(),
                group => format!(".{group}"),
            };
            format!("{}{group}/{}", str_at(p, &["kind"]), str_at(p, &["name"]))
        }
    };
    let controller = str_at(object, &["spec", "controller"]);
    vec![meta(object, "name").into(), controller.into(), parameters.into(), age(object, now)]
}

fn network_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    let selected = selector(get(object, &["spec", "podSelector"]));
    vec![meta(object, "name").into(), selected.into(), age(object, now)]
}

fn ip_address(object: &Value, now: Timestamp) -> Vec<Value> {
    let parent = match get(object, &["spec", "parentRef"]) {
        None => "<none>".to_owned(),
        Some(parent) => {
            let part = |name: &str| str_at(parent, &[name]).to_owned();
            let resource = match part("group") {
                group if group.is_empty() => part("resource").to_lowercase(),
                group => format!("{}.{group}", part("resource")).to_lowercase(),
            };
            let namespace = match part("namespace") {
                namespace if namespace.is_empty() => namespace,
                namespace => format!("{namespace}/"),
            };
            format!("{resource}/{namespace}{}", part("name"))
        }
    };
    vec![meta(object, "name").into(), parent.into(), age(object, now)]
}

fn service_cidr(object: &Value, now: Timestamp) -> Vec<Value> {
    let ranges: Vec<&str> = list_at(object, &["spec", "cidrs"]).iter().filter_map(Value::as_str).collect();
    vec![meta(object, "name").into(), ranges.join(",").into(), age(object, now)]
}
