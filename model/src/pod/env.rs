//! Environment variables: `$(NAME)` expansion and the variables that name services.

use k8s_openapi::api::core::v1::Service;
use std::collections::BTreeMap;

/// Replaces `$(NAME)` by `lookup(NAME)`; an unknown name stays as it is, `$$` is a `$`.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(inner) = after.strip_prefix('(') {
            match inner.find(')') {
                Some(end) => {
                    let name = &inner[..end];
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    rest = &inner[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = inner;
                }
            }
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The variables of the services a pod in `namespace` sees: all of its namespace when `links`, and always the
/// API server's own (`default/kubernetes`).
pub fn service_variables<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        let api = of == "default" && name == "kubernetes";
        if of == namespace && links {
            chosen.insert(name, service);
        } else if api {
            chosen.entry(name).or_insert(service);
        }
    }
    let mut variables = BTreeMap::new();
    for (name, service) in chosen {
        one_service(name, service, &mut variables);
    }
    variables
}

fn one_service(name: &str, service: &Service, variables: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    let mut set = |key: String, value: String| variables.insert(key, value);
    set(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    set(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    for (index, port) in ports.iter().enumerate() {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            set(format!("{prefix}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{host}:{}", port.port);
        if index == 0 {
            set(format!("{prefix}_PORT"), url.clone());
        }
        let key = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        set(format!("{key}_PROTO"), lower);
        set(format!("{key}_PORT"), port.port.to_string());
        set(format!("{key}_ADDR"), ip.to_owned());
        set(key, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("a$b", "a$b"),
            ("$()", "$()"),
            ("ü$(A)ü", "ü1ü"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_expands(text in "[$()A-B€]{0,40}") {
            expand(&text, |_| Some("$(A)".to_owned()));
        }

        #[test]
        fn text_without_dollar_is_unchanged(text in "[^$]{0,40}") {
            prop_assert_eq!(expand(&text, |_| None), text);
        }
    }

    #[test]
    fn services_as_recorded() {
        let services: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"name": "kubernetes", "namespace": "default"},
             "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}},
            {"metadata": {"name": "my-svc", "namespace": "cases"}, "spec": {"clusterIP": "10.96.77.1",
             "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns-udp", "port": 53, "protocol": "UDP"}]}},
            {"metadata": {"name": "headless", "namespace": "cases"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}},
            {"metadata": {"name": "other", "namespace": "elsewhere"}, "spec": {"clusterIP": "10.96.77.2", "ports": [{"port": 1}]}}
        ]))
        .unwrap();
        let all = service_variables(&services, "cases", true);
        let text: Vec<String> = all.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(text.len(), 21);
        for expected in [
            "KUBERNETES_PORT=tcp://10.96.0.1:443",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
            "MY_SVC_PORT=tcp://10.96.77.1:80",
            "MY_SVC_PORT_53_UDP=udp://10.96.77.1:53",
            "MY_SVC_PORT_53_UDP_PROTO=udp",
            "MY_SVC_SERVICE_PORT_DNS_UDP=53",
        ] {
            assert!(text.iter().any(|t| t == expected), "{expected} missing in {text:?}");
        }
        let without = service_variables(&services, "cases", false);
        assert!(without.keys().all(|k| k.starts_with("KUBERNETES_")) && without.len() == 8, "{without:?}");
    }
}
