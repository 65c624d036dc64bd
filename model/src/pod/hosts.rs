//! Texts of the files the agent manages inside a pod: /etc/hosts, /etc/resolv.conf, the host name.

use k8s_openapi::api::core::v1::{HostAlias, Pod, PodSpec};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The pod's name for itself and, with a subdomain, its domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostname {
    /// Host part, at most 63 characters.
    pub host: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`, or empty.
    pub domain: String,
    /// What `hostname` prints inside the pod.
    pub kernel: String,
}

/// The kernel takes no host name longer than this.
const KERNEL_MAX: usize = 64;
/// A DNS label.
const LABEL_MAX: usize = 63;

/// The host name of a pod.
///
/// # Errors
/// With setHostnameAsFQDN, a name longer than the kernel takes; the text is for the `FailedCreatePodSandBox` event.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> Result<Hostname, String> {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let text = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
    if let Some(name) = text(&spec.hostname_override) {
        return Ok(Hostname { host: name.clone(), domain: String::new(), kernel: name });
    }
    let mut host = text(&spec.hostname).unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    if host.len() > LABEL_MAX {
        let cut = (0..=LABEL_MAX).rev().find(|i| host.is_char_boundary(*i)).unwrap_or(0);
        host.truncate(cut);
        host.truncate(host.trim_end_matches(['-', '.']).len());
    }
    let domain = match text(&spec.subdomain) {
        Some(sub) => format!("{sub}.{namespace}.svc.{cluster_domain}"),
        None => String::new(),
    };
    let mut kernel = host.clone();
    if spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        kernel = format!("{host}.{domain}");
        if kernel.len() > KERNEL_MAX {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {kernel} is too long ({KERNEL_MAX} characters is the max, {} characters requested)",
                kernel.len()
            ));
        }
    }
    Ok(Hostname { host, domain, kernel })
}

/// /etc/hosts of a pod with its own network.
pub fn hosts_file(ips: &[IpAddr], name: &Hostname, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        if name.domain.is_empty() {
            text.push_str(&format!("{ip}\t{}\n", name.host));
        } else {
            text.push_str(&format!("{ip}\t{}.{}\t{}\n", name.host, name.domain, name.host));
        }
    }
    text + &alias_lines(aliases)
}

/// /etc/hosts of a pod on the node's network: the node's file.
pub fn host_network_hosts_file(node_file: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node_file}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

/// Contents of a resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolv {
    /// `nameserver` lines.
    pub nameservers: Vec<String>,
    /// `search` domains.
    pub searches: Vec<String>,
    /// `options`.
    pub options: Vec<String>,
}

impl Resolv {
    /// Reads a resolv.conf; unknown lines are skipped, the last `search` counts.
    pub fn parse(text: &str) -> Self {
        let mut resolv = Self::default();
        for line in text.lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
            let key = words.next().unwrap_or_default();
            match key {
                "nameserver" => resolv.nameservers.extend(words.next().map(str::to_owned)),
                "search" => resolv.searches = words.map(str::to_owned).collect(),
                "options" => resolv.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        resolv
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// The pod's resolv.conf by its dnsPolicy and dnsConfig. `node` is the node's own file.
pub fn resolv(pod: &Pod, cluster_dns: &[IpAddr], cluster_domain: &str, node: &Resolv) -> Resolv {
    /// resolv.conf(5) takes no more.
    const MAX_SERVERS: usize = 3;
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    };
    let mut result = if policy == "None" {
        Resolv::default()
    } else if cluster && !cluster_dns.is_empty() {
        let mut searches = vec![
            format!("{namespace}.svc.{cluster_domain}"),
            format!("svc.{cluster_domain}"),
            cluster_domain.to_owned(),
        ];
        searches.extend(node.searches.iter().cloned());
        Resolv {
            nameservers: cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        node.clone()
    };
    if let Some(config) = &spec.dns_config {
        result.nameservers.extend(config.nameservers.iter().flatten().cloned());
        result.searches.extend(config.searches.iter().flatten().cloned());
        // An option of the pod replaces one of the same name.
        let mut options: BTreeMap<String, Option<String>> = BTreeMap::new();
        let mut order = Vec::new();
        let base = result.options.iter().map(|o| match o.split_once(':') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (o.clone(), None),
        });
        let own = config
            .options
            .iter()
            .flatten()
            .filter_map(|o| Some((o.name.clone()?, o.value.clone().filter(|v| !v.is_empty()))));
        for (name, value) in base.collect::<Vec<_>>().into_iter().chain(own) {
            if options.insert(name.clone(), value).is_none() && !order.contains(&name) {
                order.push(name);
            }
        }
        result.options = order
            .into_iter()
            .map(|name| match options.get(&name) {
                Some(Some(value)) => format!("{name}:{value}"),
                _ => name,
            })
            .collect();
    }
    let mut seen = Vec::new();
    result.searches.retain(|s| {
        !seen.contains(s) && {
            seen.push(s.clone());
            true
        }
    });
    let mut seen = Vec::new();
    result.nameservers.retain(|s| {
        !seen.contains(s) && {
            seen.push(s.clone());
            true
        }
    });
    result.nameservers.truncate(MAX_SERVERS);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "front-pod", "namespace": "cases"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn names() {
        let p = pod(json!({"containers": []}));
        assert_eq!(hostname(&p, "cluster.local").unwrap().kernel, "front-pod");
        let p = pod(
            json!({"containers": [], "hostname": "front", "subdomain": "web", "setHostnameAsFQDN": true}),
        );
        let name = hostname(&p, "cluster.local").unwrap();
        assert_eq!(name.kernel, "front.web.cases.svc.cluster.local");
        let file = hosts_file(&["10.0.0.1".parse().unwrap()], &name, &[]);
        assert!(file.ends_with("10.0.0.1\tfront.web.cases.svc.cluster.local\tfront\n"), "{file}");
        let long = "a-subdomain-of-quite-some-length-so-that-the-limit-is-hit";
        let p =
            pod(json!({"containers": [], "hostname": "front", "subdomain": long, "setHostnameAsFQDN": true}));
        assert_eq!(
            hostname(&p, "cluster.local").unwrap_err(),
            "failed to construct FQDN from pod hostname and cluster domain, FQDN front.a-subdomain-of-quite-some-length-so-that-the-limit-is-hit.cases.svc.cluster.local is too long (64 characters is the max, 87 characters requested)"
        );
        let mut p = pod(json!({"containers": []}));
        p.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(40)));
        assert_eq!(hostname(&p, "cluster.local").unwrap().kernel, "a".repeat(62));
    }

    #[test]
    fn dns() {
        let node = Resolv::parse(
            "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch example.test corp.example.test\noptions timeout:2 attempts:3\n",
        );
        let dns: Vec<IpAddr> = vec!["10.96.0.10".parse().unwrap()];
        let text = |spec| resolv(&pod(spec), &dns, "cluster.local", &node).text();
        assert_eq!(
            text(json!({"containers": []})),
            "search cases.svc.cluster.local svc.cluster.local cluster.local example.test corp.example.test\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(
            text(json!({"containers": [], "dnsPolicy": "Default"})),
            "search example.test corp.example.test\nnameserver 192.0.2.53\nnameserver 192.0.2.54\noptions timeout:2 attempts:3\n"
        );
        assert_eq!(
            text(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.2.3.4"],
                "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}})),
            "search a.b\nnameserver 1.2.3.4\noptions ndots:2 edns0\n"
        );
        assert_eq!(
            text(json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}))
                .lines()
                .last(),
            Some("options ndots:2")
        );
        assert!(text(json!({"containers": [], "hostNetwork": true})).contains("192.0.2.53"));
        assert!(
            text(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}))
                .contains("10.96.0.10")
        );
    }
}
