//! Rule sets of the shape that kube-proxy writes, for iptables and nftables: what a packet to a service meets on its way
//! is the same, chain by chain. One endpoint a service, as the services of the measurement have.

use std::fmt::Write;
use std::net::Ipv4Addr;

/// A port of a service and its endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Port {
    /// Address of the service.
    pub address: Ipv4Addr,
    /// Port of the service.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The endpoint.
    pub backend: (Ipv4Addr, u16),
    /// Port of every node that leads there too.
    pub node_port: Option<u16>,
}

const PODS: &str = "10.244.0.0/16";
const MASQUERADE: &str = "0x4000";

/// Input of iptables-restore(8): one rule a service port in one long chain, a chain a service port and one an endpoint.
pub fn iptables(ports: &[Port]) -> String {
    let mut chains = String::new();
    let mut services = String::new();
    let mut rest = String::new();
    for (number, Port { address, port, protocol, backend: (to, to_port), node_port }) in
        ports.iter().enumerate()
    {
        let (service, endpoint) = (format!("SVC-{number:016}"), format!("SEP-{number:016}"));
        let _ = writeln!(chains, ":{service} - [0:0]\n:{endpoint} - [0:0]");
        let to_service = format!("-d {address}/32 -p {protocol} -m {protocol} --dport {port}");
        let comment = format!("-m comment --comment \"default/s{number}:p cluster IP\"");
        let _ = writeln!(services, "-A SERVICES {comment} {to_service} -j {service}");
        let _ = writeln!(rest, "-A {service} {comment} {to_service} ! -s {PODS} -j MARK-MASQ");
        let _ = writeln!(rest, "-A {service} -m comment --comment \"default/s{number}:p\" -j {endpoint}");
        let _ = writeln!(rest, "-A {endpoint} -s {to}/32 -j MARK-MASQ");
        let _ = writeln!(
            rest,
            "-A {endpoint} -p {protocol} -m {protocol} -j DNAT --to-destination {to}:{to_port}"
        );
        if let Some(node_port) = node_port {
            let external = format!("EXT-{number:016}");
            let _ = writeln!(chains, ":{external} - [0:0]");
            let to_node = format!("-p {protocol} -m {protocol} --dport {node_port}");
            let _ = writeln!(rest, "-A NODEPORTS {comment} {to_node} -j {external}");
            let _ = writeln!(rest, "-A {external} {comment} -j MARK-MASQ\n-A {external} -j {service}");
        }
    }
    format!(
        "*nat\n:SERVICES - [0:0]\n:NODEPORTS - [0:0]\n:POSTROUTE - [0:0]\n:MARK-MASQ - [0:0]\n{chains}\
         -A PREROUTING -m comment --comment \"service portals\" -j SERVICES\n\
         -A OUTPUT -m comment --comment \"service portals\" -j SERVICES\n\
         -A POSTROUTING -m comment --comment \"postrouting rules\" -j POSTROUTE\n\
         -A POSTROUTE -m mark ! --mark {MASQUERADE}/{MASQUERADE} -j RETURN\n\
         -A POSTROUTE -j MARK --xor-mark {MASQUERADE}\n\
         -A POSTROUTE -j MASQUERADE --random-fully\n\
         -A MARK-MASQ -j MARK --or-mark {MASQUERADE}\n\
         {services}-A SERVICES -m addrtype --dst-type LOCAL -j NODEPORTS\n{rest}COMMIT\n\
         *filter\n:KFORWARD - [0:0]\n:UNSERVED - [0:0]\n:EXTERNAL - [0:0]\n\
         -A INPUT -m conntrack --ctstate NEW -j EXTERNAL\n\
         -A FORWARD -m conntrack --ctstate NEW -j UNSERVED\n\
         -A FORWARD -m conntrack --ctstate NEW -j EXTERNAL\n\
         -A FORWARD -j KFORWARD\n\
         -A OUTPUT -m conntrack --ctstate NEW -j UNSERVED\n\
         -A KFORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KFORWARD -m mark --mark {MASQUERADE}/{MASQUERADE} -j ACCEPT\n\
         -A KFORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
    )
}

/// Input of nft(8): one verdict map of all service ports, a chain a service port and one an endpoint.
pub fn nftables(ports: &[Port]) -> String {
    let mut chains = String::new();
    let mut elements = Vec::new();
    let mut node_ports = String::new();
    let mut cluster_ips: Vec<String> = Vec::new();
    for (number, Port { address, port, protocol, backend: (to, to_port), node_port }) in
        ports.iter().enumerate()
    {
        let (service, endpoint) = (format!("service-{number}"), format!("endpoint-{number}"));
        elements.push(format!("{address} . {protocol} . {port} : goto {service}"));
        let address_text = address.to_string();
        if cluster_ips.last() != Some(&address_text) {
            cluster_ips.push(address_text);
        }
        let _ = writeln!(
            chains,
            "chain {endpoint} {{\n ip saddr {to} jump mark-for-masquerade\n \
             meta l4proto {protocol} dnat to {to}:{to_port}\n}}\n\
             chain {service} {{\n ip daddr {address} {protocol} dport {port} ip saddr != {PODS} jump \
             mark-for-masquerade\n numgen random mod 1 vmap {{ 0 : goto {endpoint} }}\n}}"
        );
        if let Some(node_port) = node_port {
            let separator = if node_ports.is_empty() { "" } else { ", " };
            let _ = write!(node_ports, "{separator}{protocol} . {node_port} : goto external-{number}");
            let _ = writeln!(
                chains,
                "chain external-{number} {{\n jump mark-for-masquerade\n goto {service}\n}}"
            );
        }
    }
    if !node_ports.is_empty() {
        node_ports = format!(" elements = {{ {node_ports} }}\n");
    }
    // A map cannot name a chain before it is there.
    format!(
        "table ip services {{\n\
         chain mark-for-masquerade {{\n meta mark set mark or {MASQUERADE}\n}}\n\
         chain masquerading {{\n meta mark & {MASQUERADE} == 0 return\n \
         meta mark set mark xor {MASQUERADE}\n masquerade fully-random\n}}\n\
         chain reject-chain {{\n reject\n}}\n{chains}\
         set cluster-ips {{\n type ipv4_addr\n elements = {{ {} }}\n}}\n\
         map unserved {{\n type ipv4_addr . inet_proto . inet_service : verdict\n}}\n\
         map node-ports {{\n type inet_proto . inet_service : verdict\n{node_ports}}}\n\
         map service-ips {{\n type ipv4_addr . inet_proto . inet_service : verdict\n elements = {{ {} }}\n}}\n\
         chain services {{\n ip daddr . meta l4proto . th dport vmap @service-ips\n \
         fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @node-ports\n}}\n\
         chain endpoints-check {{\n ip daddr . meta l4proto . th dport vmap @unserved\n}}\n\
         chain cluster-ips-check {{\n ip daddr @cluster-ips reject\n}}\n\
         chain nat-prerouting {{\n type nat hook prerouting priority dstnat; policy accept;\n jump services\n}}\n\
         chain nat-output {{\n type nat hook output priority -100; policy accept;\n jump services\n}}\n\
         chain nat-postrouting {{\n type nat hook postrouting priority srcnat; policy accept;\n jump masquerading\n}}\n\
         chain filter-prerouting {{\n type filter hook prerouting priority -110; policy accept;\n \
         ct state new jump endpoints-check\n}}\n\
         chain filter-forward {{\n type filter hook forward priority -110; policy accept;\n \
         ct state new jump endpoints-check\n ct state new jump cluster-ips-check\n}}\n}}\n",
        cluster_ips.join(", "),
        elements.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Port = Port {
        address: Ipv4Addr::new(10, 96, 0, 2),
        port: 80,
        protocol: "tcp",
        backend: (Ipv4Addr::new(10, 244, 0, 3), 8080),
        node_port: None,
    };

    #[test]
    fn a_chain_a_service_and_one_an_endpoint() {
        let text = iptables(&[PORT, Port { port: 81, ..PORT }]);
        assert_eq!(text.matches("\n-A SERVICES -m comment").count(), 2);
        assert_eq!(text.matches("-j DNAT --to-destination 10.244.0.3:8080").count(), 2);
        assert_eq!(text.matches(":SVC-").count(), 2);
    }

    #[test]
    fn one_element_a_service() {
        let text = nftables(&[PORT, Port { port: 81, ..PORT }]);
        assert!(
            text.contains("{ 10.96.0.2 . tcp . 80 : goto service-0, 10.96.0.2 . tcp . 81 : goto service-1 }")
        );
        assert!(text.contains("elements = { 10.96.0.2 }"), "an address once");
    }

    #[test]
    fn node_ports_lead_to_chains_of_their_own() {
        let port = Port { node_port: Some(30_080), ..PORT };
        let text = iptables(&[PORT, port]);
        assert_eq!(text.matches("-A NODEPORTS ").count(), 1);
        assert!(text.contains("--dport 30080 -j EXT-0000000000000001\n"), "{text}");
        let text = nftables(&[port, Port { port: 81, node_port: Some(30_081), ..PORT }]);
        assert!(
            text.contains(" elements = { tcp . 30080 : goto external-0, tcp . 30081 : goto external-1 }\n"),
            "{text}"
        );
    }
}
