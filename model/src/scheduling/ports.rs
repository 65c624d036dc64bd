//! Ports of the host.

/// A host port of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Address on the host; none for all.
    pub address: Option<Box<str>>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Box<str>,
    /// The port.
    pub port: i32,
}

impl HostPort {
    /// The port of the given fields; an empty or unspecified address is all addresses, an empty protocol is TCP.
    pub fn new(address: &str, protocol: &str, port: i32) -> Self {
        Self {
            address: Some(address).filter(|a| !matches!(*a, "" | "0.0.0.0" | "::")).map(Into::into),
            protocol: if protocol.is_empty() { "TCP" } else { protocol }.into(),
            port,
        }
    }

    /// Whether both cannot be used on one host.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address.is_none() || other.address.is_none() || self.address == other.address)
    }
}

/// Ports in use on a node; a port may be listed once per pod that uses it.
#[derive(Debug, Clone, Default)]
pub struct UsedPorts(Vec<HostPort>);

impl UsedPorts {
    /// Marks ports used.
    pub fn add(&mut self, ports: &[HostPort]) {
        self.0.extend_from_slice(ports);
    }

    /// Marks ports free that one pod used.
    pub fn remove(&mut self, ports: &[HostPort]) {
        for port in ports {
            if let Some(at) = self.0.iter().position(|used| used == port) {
                self.0.swap_remove(at);
            }
        }
    }

    /// Whether none of `ports` is in use.
    pub fn are_free(&self, ports: &[HostPort]) -> bool {
        !ports.iter().any(|port| self.0.iter().any(|used| used.conflicts(port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts() {
        let mut used = UsedPorts::default();
        used.add(&[HostPort::new("127.0.0.1", "TCP", 80), HostPort::new("", "UDP", 53)]);
        for (address, protocol, port, free) in [
            ("127.0.0.1", "", 80, false),
            ("", "TCP", 80, false),
            ("0.0.0.0", "TCP", 80, false),
            ("192.0.2.1", "TCP", 80, true),
            ("127.0.0.1", "UDP", 80, true),
            ("192.0.2.1", "UDP", 53, false),
            ("127.0.0.1", "TCP", 81, true),
        ] {
            assert_eq!(
                used.are_free(&[HostPort::new(address, protocol, port)]),
                free,
                "{address} {protocol} {port}"
            );
        }
        used.remove(&[HostPort::new("127.0.0.1", "TCP", 80)]);
        assert!(used.are_free(&[HostPort::new("", "TCP", 80)]));
    }
}
