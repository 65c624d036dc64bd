//! What a certificate is for: its subject, names and uses.

use std::net::IpAddr;

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Serving TLS.
    Server,
    /// Identifying a client.
    Client,
}

/// A certificate to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafSpec {
    /// File name without extension in the PKI directory.
    pub file: String,
    /// Subject common name: the user name of a client.
    pub common_name: String,
    /// Subject organizations: the groups of a client.
    pub organizations: Vec<String>,
    /// DNS names a server is known by.
    pub dns_names: Vec<String>,
    /// Addresses a server is known by.
    pub addresses: Vec<IpAddr>,
    /// What it is for.
    pub usage: Usage,
}

impl LeafSpec {
    /// A client certificate.
    pub fn client(file: &str, user: &str, groups: &[&str]) -> Self {
        Self {
            file: file.to_owned(),
            common_name: user.to_owned(),
            organizations: groups.iter().map(|&g| g.to_owned()).collect(),
            dns_names: Vec::new(),
            addresses: Vec::new(),
            usage: Usage::Client,
        }
    }

    /// The cluster administrator.
    pub fn admin() -> Self {
        Self::client("admin", "kubernetes-admin", &["system:masters"])
    }

    /// The scheduler.
    pub fn scheduler() -> Self {
        Self::client("scheduler", "system:kube-scheduler", &[])
    }

    /// The controllers.
    pub fn controller_manager() -> Self {
        Self::client("controller-manager", "system:kube-controller-manager", &[])
    }

    /// The API server towards the nodes.
    pub fn kubelet_client() -> Self {
        Self::client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", &["system:masters"])
    }

    /// A node's agent.
    pub fn node(name: &str) -> Self {
        Self::client(&format!("node-{name}"), &format!("system:node:{name}"), &["system:nodes"])
    }

    /// The API server's serving certificate.
    pub fn apiserver(dns_names: Vec<String>, addresses: Vec<IpAddr>) -> Self {
        Self {
            file: "apiserver".to_owned(),
            common_name: "kube-apiserver".to_owned(),
            organizations: Vec::new(),
            dns_names,
            addresses,
            usage: Usage::Server,
        }
    }
}
