//! KubeProxyConfiguration (`kubeproxy.config.k8s.io/v1alpha1`), as a node's kube-proxy has it: what has a meaning here is
//! taken over, the rest is named in a warning.
//!
//! Source: <https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/>. As upstream's decoder, an unknown
//! field is no error.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::config::Network;

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// Ports that an address without one gets.
const HEALTHZ_PORT: u16 = 10_256;
const METRICS_PORT: u16 = 10_249;

/// Fields that upstream knows and that mean nothing to programs in the kernel.
const WITHOUT_MEANING: [&str; 21] = [
    "featureGates",
    "logging",
    "bindAddress",
    "bindAddressHardFail",
    "enableProfiling",
    "showHiddenMetricsForVersion",
    "mode",
    "iptables",
    "ipvs",
    "nftables",
    "winkernel",
    "detectLocalMode",
    "detectLocal",
    "nodePortAddresses",
    "oomScoreAdj",
    "conntrack",
    "configSyncPeriod",
    "portRange",
    "windowsRunAsService",
    "udpIdleTimeout",
    "resourceContainer",
];

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is no such configuration.
    #[error("{path}: no {KIND} of {API_VERSION}: {why}")]
    Other {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A value cannot be used.
    #[error("{path}: {field}: {why}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Its field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// What of the configuration has a meaning here; what is not said is `None` or empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyConfig {
    /// `clientConnection.kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `hostnameOverride`.
    pub node_name: Option<String>,
    /// `healthzBindAddress`.
    pub healthz_address: Option<SocketAddr>,
    /// `metricsBindAddress`.
    pub metrics_address: Option<SocketAddr>,
    /// `clusterCIDR`: the ranges of pods.
    pub cluster_cidrs: Vec<Network>,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

impl ProxyConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is something else, or has a value that cannot be used.
    pub fn load(path: &Path) -> Result<Self, ProxyConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ProxyConfigError::File { path: path.to_owned(), why: error.to_string() })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ProxyConfigError> {
        let other = |why: String| ProxyConfigError::Other { path: path.to_owned(), why };
        let value: Value = serde_norway::from_str(text).map_err(|error| other(error.to_string()))?;
        let Value::Object(fields) = value else { return Err(other("it is no object".to_owned())) };
        for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            let found = fields.get(field).and_then(Value::as_str).unwrap_or_default();
            if found != expected {
                return Err(other(format!("{field} is {found:?}")));
            }
        }
        let invalid = |field: &'static str| {
            move |why: String| ProxyConfigError::Invalid { path: path.to_owned(), field, why }
        };
        let text = |field: &'static str| text_of(fields.get(field)).map_err(invalid(field));
        let address = |field: &'static str, port: u16| {
            text(field)?.map(|text| address_of(&text, port)).transpose().map_err(invalid(field))
        };
        let connection = fields.get("clientConnection").and_then(Value::as_object);
        let kubeconfig = text_of(connection.and_then(|connection| connection.get("kubeconfig")));
        let ranges = text("clusterCIDR")?.unwrap_or_default();
        let ranges = ranges.split(',').map(str::trim).filter(|range| !range.is_empty()).map(range_of);
        Ok(ProxyConfig {
            kubeconfig: kubeconfig.map_err(invalid("clientConnection.kubeconfig"))?.map(PathBuf::from),
            node_name: text("hostnameOverride")?,
            healthz_address: address("healthzBindAddress", HEALTHZ_PORT)?,
            metrics_address: address("metricsBindAddress", METRICS_PORT)?,
            cluster_cidrs: ranges.collect::<Result<_, _>>().map_err(invalid("clusterCIDR"))?,
            warnings: warnings(&fields),
        })
    }
}

/// A text; an empty one says nothing.
fn text_of(value: Option<&Value>) -> Result<Option<String>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("{other} is no string")),
    }
}

fn address_of(text: &str, port: u16) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    // Go's form for all addresses.
    let whole = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    whole.parse().map_err(|_| format!("{text:?} is no address with a port"))
}

fn range_of(text: &str) -> Result<Network, String> {
    let wrong = || format!("{text:?} is no range of addresses");
    let (network, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let network: IpAddr = network.parse().map_err(|_| wrong())?;
    let longest = if network.is_ipv4() { 32 } else { 128 };
    let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
    if prefix > longest { Err(wrong()) } else { Ok((network, prefix)) }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "0s",
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(items) => items.iter().all(is_nothing),
        Value::Object(fields) => fields.values().all(is_nothing),
        Value::Bool(true) => false,
    }
}

fn warnings(fields: &Map<String, Value>) -> Vec<String> {
    let known = [
        "apiVersion",
        "kind",
        "clientConnection",
        "hostnameOverride",
        "healthzBindAddress",
        "metricsBindAddress",
        "clusterCIDR",
    ];
    let names = |wanted: &dyn Fn(&str) -> bool| -> Vec<&str> {
        let said = fields.iter().filter(|(name, value)| wanted(name) && !is_nothing(value));
        said.map(|(name, _)| name.as_str()).collect()
    };
    let without = names(&|name| WITHOUT_MEANING.contains(&name));
    let unknown = names(&|name| !WITHOUT_MEANING.contains(&name) && !known.contains(&name));
    let mut out = Vec::new();
    if !without.is_empty() {
        out.push(format!("these fields of {KIND} have no effect here: {}", without.join(", ")));
    }
    if !unknown.is_empty() {
        out.push(format!("{KIND} has no fields {}", unknown.join(", ")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<ProxyConfig, ProxyConfigError> {
        ProxyConfig::parse(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}"), Path::new("f"))
    }

    #[test]
    fn what_has_a_meaning_is_taken_over_and_the_rest_is_named() {
        // As kubeadm writes it.
        let config = parse(
            "bindAddress: 0.0.0.0\nbindAddressHardFail: false\nclientConnection: {acceptContentTypes: \"\", burst: 0, \
             kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}\nclusterCIDR: 10.244.0.0/16,fd00::/56\nconntrack: \
             {maxPerCore: null, min: null}\nhealthzBindAddress: \"\"\nhostnameOverride: n1\nmetricsBindAddress: \
             127.0.0.1:9\nmode: \"\"\niptables: {syncPeriod: 0s, masqueradeBit: null}\nipvs: {strictARP: true}\nwat: 1\n",
        )
        .expect("a configuration");
        assert_eq!(config.kubeconfig.as_deref(), Some(Path::new("/var/lib/kube-proxy/kubeconfig.conf")));
        assert_eq!(config.node_name.as_deref(), Some("n1"));
        assert_eq!((config.healthz_address, config.metrics_address), (None, "127.0.0.1:9".parse().ok()));
        assert_eq!(config.cluster_cidrs.len(), 2);
        assert_eq!(
            config.warnings,
            [
                "these fields of KubeProxyConfiguration have no effect here: bindAddress, ipvs",
                "KubeProxyConfiguration has no fields wat"
            ]
        );
        assert_eq!(parse("").expect("nothing is needed"), ProxyConfig::default());
    }

    #[test]
    fn addresses_have_a_port_or_get_one() {
        let healthz =
            |text: &str| parse(&format!("healthzBindAddress: \"{text}\"")).map(|c| c.healthz_address);
        for (text, expected) in
            [("1.2.3.4", "1.2.3.4:10256"), ("::1", "[::1]:10256"), (":7", "[::]:7"), ("[::1]:8", "[::1]:8")]
        {
            assert_eq!(healthz(text), Ok(expected.parse().ok()), "{text}");
        }
        assert!(healthz("host:80").is_err());
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let why = |rest: &str| parse(rest).expect_err("an error").to_string();
        assert_eq!(
            why("clusterCIDR: 10.0.0.0/40"),
            "f: clusterCIDR: \"10.0.0.0/40\" is no range of addresses"
        );
        assert_eq!(why("hostnameOverride: 5"), "f: hostnameOverride: 5 is no string");
        let other = ProxyConfig::parse("kind: X", Path::new("f")).expect_err("an error").to_string();
        assert!(other.contains("apiVersion is \"\""), "{other}");
        assert!(ProxyConfig::parse("[", Path::new("f")).is_err());
    }
}
