//! The command line.

use crate::look::{CtCommand, EndpointCommand, FlowsArgs, PolicyCommand, ServiceCommand};
use clap::{Args, Parser, Subcommand, ValueEnum};
use kelp_agent::dataplane::config::{
    Balancing, DSR_PORT, MAGLEV_SIZE, MAGLEV_SIZES, TUNNEL_PORT, is_maglev_size, sizable_maps,
};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// A Kubernetes node and control plane in one binary.
#[derive(Debug, Parser)]
#[command(name = "kelp", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to log: error, warn, info, debug, trace, or a list like `info,kelp_agent=debug`.
    #[arg(long, env = "KELP_LOG", global = true, default_value = "info")]
    pub log_level: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this host: control plane, node agent and dataplane.
    Up(Box<UpArgs>),
    /// Run the control plane: store, API server, scheduler, controllers.
    Server(Box<ServerArgs>),
    /// Run the node agent and its dataplane.
    Agent(Box<AgentArgs>),
    /// Work with the images of this node.
    #[command(subcommand)]
    Image(ImageCommand),
    /// See the services that the dataplane of this node serves.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// See the endpoints of services, and the pods of this node.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// See the flows that the dataplane of this node remembers.
    #[command(subcommand)]
    Ct(CtCommand),
    /// Watch what becomes of packets and connections on this node.
    Flows(Box<FlowsArgs>),
    /// See what network policies decide on this node.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Sign a client certificate with the data directory's authority and print a kubeconfig.
    Kubeconfig(KubeconfigArgs),
    /// Look whether this host can run Kelp and say how to repair what is missing.
    Check(CheckArgs),
    /// Print the version.
    Version,
}

/// Arguments of `kelp up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub controllers: ControllerArgs,
    #[command(flatten)]
    pub api: ApiArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of `kelp server`.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Parts to run.
    #[arg(long, value_delimiter = ',', default_values = ["apiserver", "scheduler", "controllers"])]
    pub components: Vec<Component>,
    /// Kubeconfig for the scheduler and the controllers when the API server is not among the components.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub controllers: ControllerArgs,
    #[command(flatten)]
    pub api: ApiArgs,
    #[command(flatten)]
    pub node: AddressArgs,
}

/// A part of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Component {
    /// Store and API server.
    Apiserver,
    /// Scheduler.
    Scheduler,
    /// Controllers.
    Controllers,
}

/// Arguments of `kelp agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Kubeconfig of the node's identity (`kelp kubeconfig --node NAME` makes one) [default: a pod's service account].
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig with which the node asks for its first client certificate when `--kubeconfig` names none that is good; that
    /// file is written then.
    #[arg(long, value_name = "FILE", requires = "kubeconfig")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Renew the client certificate by certificate signing requests before it ends (`rotateCertificates`).
    #[arg(long)]
    pub rotate_certificates: bool,
    /// Run only the service dataplane, beside another kubelet (instead of kube-proxy). `--config` is a
    /// KubeProxyConfiguration then, whose values come before those of the command line.
    #[arg(long)]
    pub dataplane_only: bool,
    /// Run no dataplane: services are another program's affair (kube-proxy, or `kelp agent --dataplane-only` in a pod),
    /// the host's stack forwards to and from pods, and NetworkPolicies are not enforced.
    #[arg(long, conflicts_with_all = ["dataplane_only", "cleanup"])]
    pub without_dataplane: bool,
    /// Remove the programs and maps that are pinned in `--bpf-dir`, and end.
    #[arg(long)]
    pub cleanup: bool,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Where persistent data lives.
#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    /// Persistent data: store, certificates, images, volumes.
    #[arg(long, default_value = "/var/lib/kelp")]
    pub data_dir: PathBuf,
}

/// Address ranges of the cluster; the same on every host.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// Service addresses: one range a family, the first is the primary family.
    #[arg(long, value_delimiter = ',', default_values = ["10.96.0.0/16", "fd00:10:96::/112"])]
    pub service_cidr: Vec<Cidr>,
    /// Pod addresses: one range a family. A node gets a /24 or a /64 of it.
    #[arg(long, value_delimiter = ',', default_values = ["10.244.0.0/16", "fd00:10:244::/56"])]
    pub cluster_cidr: Vec<Cidr>,
    /// Ports for NodePort services.
    #[arg(long, default_value = "30000-32767")]
    pub node_port_range: PortRange,
    /// Who answers at the address of cluster DNS (the tenth of each service range) while the Service kube-system/kube-dns
    /// has no endpoints of its own.
    #[arg(long, value_enum, default_value_t = Dns::Builtin)]
    pub dns: Dns,
}

impl ClusterArgs {
    /// Addresses of cluster DNS, the primary family first.
    pub fn dns_addresses(&self) -> Vec<IpAddr> {
        self.service_cidr.iter().filter_map(|cidr| cidr.nth(10)).collect()
    }
}

/// Who answers at the address of cluster DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dns {
    /// Each node, for its pods.
    Builtin,
    /// Nobody, unless something is deployed; the Service is not made either.
    Off,
}

/// Settings of the controllers, by the names that they have in the upstream controller manager.
#[derive(Debug, Clone, Args)]
pub struct ControllerArgs {
    /// Never detach volumes by force from a node only because it has not been ready for six minutes: a node that is lost has
    /// to be given the taint `node.kubernetes.io/out-of-service` then.
    #[arg(long)]
    pub disable_force_detach_on_timeout: bool,
    /// Addresses of one subset of Endpoints that are mirrored to EndpointSlices; more are left out.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub mirroring_max_endpoints_per_subset: u16,
}

/// How the API server is reached.
#[derive(Debug, Clone, Args)]
pub struct ApiArgs {
    /// Address and port to serve the API on. A listening socket inherited by LISTEN_FDS is served too.
    #[arg(long, default_value = "[::]:6443")]
    pub listen: SocketAddr,
    /// Address other hosts reach the API server by [default: the node's address].
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// Further host names and addresses for the serving certificate.
    #[arg(long = "extra-san", value_name = "NAME|ADDRESS", value_delimiter = ',')]
    pub extra_sans: Vec<String>,
    /// Also write the administrator's kubeconfig here.
    #[arg(long, value_name = "PATH")]
    pub write_kubeconfig: Option<PathBuf>,
    /// Server URL in the written kubeconfigs [default: https://127.0.0.1:PORT].
    #[arg(long, value_name = "URL")]
    pub kubeconfig_server: Option<String>,
}

/// The host's name and addresses.
#[derive(Debug, Clone, Args)]
pub struct AddressArgs {
    /// Name of this node [default: the host name in lower case].
    #[arg(long)]
    pub node_name: Option<String>,
    /// Addresses of this node, one a family [default: those of the default route's interface].
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
}

/// The node's own settings.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    #[command(flatten)]
    pub address: AddressArgs,
    /// Run-time state, lost at a reboot.
    #[arg(long, default_value = "/run/kelp")]
    pub run_dir: PathBuf,
    /// Logs of the pods [default: /var/log/pods].
    #[arg(long)]
    pub log_dir: Option<PathBuf>,
    /// Directory of the sockets of device plugins and CSI drivers; plugins expect the default.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// The node's KubeletConfiguration (kubelet.config.k8s.io/v1beta1). Arguments come before it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of further ones (*.conf), each merged over those before it in the order of their names.
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Cgroup under which the pods' cgroups are made, relative to each hierarchy's mount point.
    #[arg(long, default_value = "kelp")]
    pub cgroup_root: PathBuf,
    /// cgroup v2 directory where socket programs attach [default: the mount point].
    #[arg(long)]
    pub cgroup2_attach: Option<PathBuf>,
    /// Directory of the pinned BPF maps and links.
    #[arg(long, default_value = "/sys/fs/bpf/kelp")]
    pub bpf_dir: PathBuf,
    /// Where the dataplane tells load balancers and monitors how it is (/healthz, /livez).
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:10256")]
    pub healthz_bind_address: SocketAddr,
    /// Where the dataplane serves its metrics (/metrics).
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,
    /// How many entries a map of the dataplane holds, such as `backends=131072`; repeatable. What a map holds stays when
    /// its size changes. `/metrics` tells how full they are.
    #[arg(long, value_name = "MAP=ENTRIES", value_parser = map_size)]
    pub bpf_map_size: Vec<(&'static str, u32)>,
    /// How new connections from outside the cluster are led to endpoints. The same on all nodes, `maglev` leads a
    /// connection to the same endpoint whichever node its packets reach. A Service says otherwise for itself by the
    /// annotation `kelp.dev/load-balancing`.
    #[arg(long, value_enum, default_value_t = Algorithm::Random)]
    pub lb_algorithm: Algorithm,
    /// Places of a table of `maglev`: a prime number from 251 to 131071, a hundred times the endpoints of a Service or more.
    /// The same on all nodes.
    #[arg(long, value_name = "PLACES", default_value_t = MAGLEV_SIZE, value_parser = maglev_size)]
    pub maglev_table_size: u32,
    /// How clients outside the cluster reach pods of other nodes: `snat` through this node and with its address, `dsr` with
    /// their own, and answered by the pod's node itself (direct server return). For nodes on one L2 whose routers let
    /// answers with another node's address pass; set it when every node runs a version that has it.
    #[arg(long, value_enum, default_value_t = LbMode::Snat)]
    pub lb_mode: LbMode,
    /// UDP port by which nodes hand each other packets in mode `dsr` (Geneve). The same on all nodes.
    #[arg(long, value_name = "PORT", default_value_t = DSR_PORT)]
    pub dsr_port: u16,
    /// Whether an XDP program at the uplink translates what only passes through the node, between clients outside the cluster
    /// and pods of other nodes (not in mode `dsr`): `native` in its driver, `generic` in the kernel's stack (for tests),
    /// `auto` in its driver if it can. A program of others that is attached there stays.
    #[arg(long, value_enum, default_value_t = Xdp::Auto)]
    pub xdp: Xdp,
    /// How pods of other nodes are reached: `direct` by a route to the node, `tunnel` through VXLAN, `auto` as each node needs it:
    /// directly when its address is in a network of the uplink.
    #[arg(long, value_enum, default_value_t = Routing::Auto)]
    pub routing: Routing,
    /// UDP port of tunnels to other nodes (VXLAN). The same on all nodes.
    #[arg(long, value_name = "PORT", default_value_t = TUNNEL_PORT)]
    pub tunnel_port: u16,
    /// Port of the node's addresses on which cluster DNS is answered (UDP and TCP).
    #[arg(long, value_name = "PORT", default_value_t = kelp_agent::dns::DEFAULT_PORT)]
    pub dns_port: u16,
    /// How registries are reached (YAML); need not exist.
    #[arg(long, value_name = "FILE", default_value = "/etc/kelp/registries.yaml")]
    pub registries: PathBuf,
    /// Configuration of credential provider plugins.
    #[arg(long, value_name = "FILE", requires = "image_credential_provider_bin_dir")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Directory of the plugins' programs.
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// The node's resolv.conf, from which pods inherit [default: /etc/resolv.conf].
    #[arg(long)]
    pub resolv_conf: Option<PathBuf>,
    /// Directory with manifests of static pods.
    #[arg(long)]
    pub pod_manifest_path: Option<PathBuf>,
}

/// How an endpoint is chosen for a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Algorithm {
    /// By chance.
    Random,
    /// By consistent hashing.
    Maglev,
}

/// How pods of other nodes are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Routing {
    /// Directly or through a tunnel, as each node needs it.
    Auto,
    /// By routes to the nodes.
    Direct,
    /// Through tunnels.
    Tunnel,
}

impl From<Routing> for kelp_agent::network::Routing {
    fn from(routing: Routing) -> Self {
        match routing {
            Routing::Auto => Self::Auto,
            Routing::Direct => Self::Direct,
            Routing::Tunnel => Self::Tunnel,
        }
    }
}

/// How clients outside the cluster reach pods of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LbMode {
    /// Through the node that they reach, with its address.
    Snat,
    /// Through the node that they reach, which the answers do not pass.
    Dsr,
}

/// Where packets that only pass through the node are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Xdp {
    /// In the uplink's driver, if it can.
    Auto,
    /// In the uplink's driver.
    Native,
    /// In the kernel's stack, before anything else.
    Generic,
    /// Where all packets are.
    Off,
}

impl NodeArgs {
    /// What the dataplane is told of [`Xdp`].
    #[must_use]
    pub fn xdp(&self) -> kelp_agent::dataplane::config::Xdp {
        use kelp_agent::dataplane::config::Xdp as Setting;
        match self.xdp {
            Xdp::Auto => Setting::Auto,
            Xdp::Native => Setting::Native,
            Xdp::Generic => Setting::Generic,
            Xdp::Off => Setting::Off,
        }
    }

    /// What the dataplane is told of [`Algorithm`].
    #[must_use]
    pub fn balancing(&self) -> Balancing {
        Balancing { consistent: self.lb_algorithm == Algorithm::Maglev, table_size: self.maglev_table_size }
    }
}

/// A number of places.
fn maglev_size(text: &str) -> Result<u32, String> {
    let (least, most) = MAGLEV_SIZES;
    text.parse()
        .ok()
        .filter(|size| is_maglev_size(*size))
        .ok_or_else(|| format!("not a prime number from {least} to {most}"))
}

/// How `kelp image pull` tells how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressForm {
    /// Lines for people.
    Plain,
    /// An object a line.
    Json,
    /// Nothing.
    None,
}

/// `kelp image …`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Import an OCI or docker archive.
    Import {
        #[command(flatten)]
        data: DataArgs,
        /// The archive, a tar file.
        archive: PathBuf,
    },
    /// Pull an image from its registry.
    Pull {
        #[command(flatten)]
        data: DataArgs,
        /// How registries are reached; need not exist.
        #[arg(long, value_name = "FILE", default_value = "/etc/kelp/registries.yaml")]
        registries: PathBuf,
        /// File with credentials, in the format of docker's config.json.
        #[arg(long, value_name = "FILE")]
        auth_file: Option<PathBuf>,
        /// How it is told how far the pull is: `plain` on standard error, `json` as an object a line on standard output;
        /// unless it is said, `plain` on a terminal.
        #[arg(long, value_name = "FORM")]
        progress: Option<ProgressForm>,
        /// Reference of the image.
        image: String,
    },
    /// List the images.
    Ls {
        #[command(flatten)]
        data: DataArgs,
    },
    /// Remove an image.
    Rm {
        #[command(flatten)]
        data: DataArgs,
        /// Reference or ID of the image.
        image: String,
    },
    /// Remove layers that no image uses.
    Prune {
        #[command(flatten)]
        data: DataArgs,
    },
}

/// Arguments of `kelp kubeconfig`.
#[derive(Debug, Args)]
pub struct KubeconfigArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// User name of the client.
    #[arg(long, required_unless_present = "node", conflicts_with = "node")]
    pub user: Option<String>,
    /// Group of the client; may be given more than once.
    #[arg(long = "group", requires = "user")]
    pub groups: Vec<String>,
    /// Make the identity of the agent on this node.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// URL of the API server [default: as in the data directory's admin.kubeconfig].
    #[arg(long)]
    pub server: Option<String>,
}

/// Arguments of `kelp check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub data: DataArgs,
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// First address.
    pub network: IpAddr,
    /// Leading bits that all addresses share.
    pub prefix: u8,
}

impl Cidr {
    /// The address `index` steps after the first; `None` past the end of the range.
    pub fn nth(&self, index: u64) -> Option<IpAddr> {
        match self.network {
            IpAddr::V4(network) => {
                let size = 1u64 << (32 - u32::from(self.prefix));
                let index = u32::try_from(index).ok().filter(|&i| u64::from(i) < size)?;
                Some(IpAddr::V4(u32::from(network).checked_add(index)?.into()))
            }
            IpAddr::V6(network) => {
                let host_bits = 128 - u32::from(self.prefix);
                if host_bits < 64 && index >> host_bits != 0 {
                    return None;
                }
                Some(IpAddr::V6(u128::from(network).checked_add(index.into())?.into()))
            }
        }
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write it like 10.96.0.0/16 or fd00:10:96::/112";
        let (network, prefix) = text.split_once('/').ok_or(format!("no prefix length; {example}"))?;
        let network: IpAddr =
            network.parse().map_err(|_| format!("{network:?} is not an address; {example}"))?;
        let bits: u8 = if network.is_ipv4() { 32 } else { 128 };
        let prefix: u8 =
            prefix.parse().ok().filter(|p| *p <= bits).ok_or(format!("prefix length must be 0 to {bits}"))?;
        let has_host_bits = match network {
            IpAddr::V4(a) => prefix < 32 && u32::from(a) << prefix != 0,
            IpAddr::V6(a) => prefix < 128 && u128::from(a) << prefix != 0,
        };
        if has_host_bits {
            return Err(format!("{network} has bits set after the first {prefix}"));
        }
        Ok(Self { network, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// `backends=131072`.
fn map_size(text: &str) -> Result<(&'static str, u32), String> {
    let (name, entries) = text.split_once('=').ok_or("write it like backends=131072")?;
    let entries = entries.parse().ok().filter(|entries| *entries > 0);
    let entries = entries.ok_or_else(|| format!("{text}: the number of entries is not one from 1 on"))?;
    let found = sizable_maps().find(|(known, _)| known == name);
    found.map(|(_, map)| (map, entries)).ok_or_else(|| {
        let known: Vec<String> = sizable_maps().map(|(name, _)| name).collect();
        format!("no map {name}; there are {}", known.join(", "))
    })
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').ok_or("write it like 30000-32767")?;
        let parse = |port: &str| port.parse::<u16>().map_err(|_| format!("{port:?} is not a port"));
        let range = Self { first: parse(first)?, last: parse(last)? };
        if range.first == 0 || range.first > range.last {
            return Err("the first port must be at least 1 and at most the last".to_owned());
        }
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_of_maps() {
        assert_eq!(map_size("source-ranges=7").map(|(_, entries)| entries), Ok(7));
        for bad in ["backends", "backends=0", "backends=x", "backends=-1", "counters=9"] {
            assert!(map_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tables_of_hashing_have_prime_sizes() {
        assert_eq!(maglev_size("16381"), Ok(16_381));
        for bad in ["", "16384", "241", "131101", "-251", "x"] {
            assert!(maglev_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges() {
        let cidr: Cidr = "10.96.0.0/16".parse().expect("range");
        assert_eq!(cidr.nth(1), Some("10.96.0.1".parse().expect("address")));
        assert_eq!(cidr.nth(65535), Some("10.96.255.255".parse().expect("address")));
        assert_eq!(cidr.nth(65536), None);
        let six: Cidr = "fd00:10:96::/112".parse().expect("range");
        assert_eq!(six.nth(1), Some("fd00:10:96::1".parse().expect("address")));
        assert_eq!(six.nth(1 << 16), None);
        assert_eq!("::/0".parse::<Cidr>().expect("range").nth(7), Some("::7".parse().expect("address")));
        assert_eq!(
            "0.0.0.0/0".parse::<Cidr>().expect("range").nth(7),
            Some("0.0.0.7".parse().expect("address"))
        );
        for bad in ["10.96.0.1/16", "10.96.0.0", "10.96.0.0/33", "fd00::1/64", "x/8", "::/129"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        assert_eq!("1-65535".parse(), Ok(PortRange { first: 1, last: 65535 }));
        for bad in ["", "5", "5-4", "0-3", "1-65536", "-1-3"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }
}
