//! The fields that the agent honours, as it reads them.

use k8s_openapi::api::core::v1::Taint;
use kelp_model::duration::GoDuration;
use kelp_model::eviction::{self, Threshold};
use kelp_model::quantity::{Format, Quantity};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Honoured fields of a KubeletConfiguration with its defaults; names and meaning are upstream's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Whether the kubelet API is served.
    pub enable_server: bool,
    /// Directory of the static pods' manifests; empty: none.
    #[serde(default)]
    pub static_pod_path: PathBuf,
    /// Directory of the pods' logs.
    pub pod_logs_dir: PathBuf,
    /// Address that the kubelet API is served on.
    pub address: String,
    /// Its port.
    pub port: i32,
    /// Certificate of the kubelet API, PEM; empty: one is made.
    #[serde(default)]
    pub tls_cert_file: PathBuf,
    /// Its key.
    #[serde(default)]
    pub tls_private_key_file: PathBuf,
    /// Names of the cipher suites of the kubelet API (Go's `crypto/tls`); empty: all.
    #[serde(default)]
    pub tls_cipher_suites: Vec<String>,
    /// Least version of TLS: `VersionTLS12`, `VersionTLS13`; empty: 1.2.
    #[serde(default)]
    pub tls_min_version: String,
    /// The certificate by which the node calls the API server is renewed.
    #[serde(default)]
    pub rotate_certificates: bool,
    /// The serving certificate is asked of the API server.
    #[serde(default, rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    /// Who calls.
    pub authentication: Authentication,
    /// What they may.
    pub authorization: Authorization,
    /// Events a second; 0: any number.
    #[serde(rename = "eventRecordQPS")]
    pub event_record_qps: i32,
    /// Events at once, above that.
    pub event_burst: i32,
    /// Whether logs, exec, attach, port-forward and run are served.
    pub enable_debugging_handlers: bool,
    /// Domain of the cluster DNS; empty: as by the command line.
    #[serde(default)]
    pub cluster_domain: String,
    /// Addresses of the cluster DNS; empty: as by the command line.
    #[serde(default, rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    /// How often the node's status is computed.
    pub node_status_update_frequency: GoDuration,
    /// How often it is written when it has not changed.
    pub node_status_report_frequency: GoDuration,
    /// How long the node's Lease is good, seconds.
    pub node_lease_duration_seconds: i32,
    /// Least age of an image that is removed because the disk fills up.
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: GoDuration,
    /// Age from which on an unused image is removed; 0: never.
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: GoDuration,
    /// Use of the disk, percent, from which on images are removed; 100: never.
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: i32,
    /// Use of the disk, percent, down to which they are.
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: i32,
    /// Most pods.
    pub max_pods: i32,
    /// Most pods a CPU; 0: any number.
    #[serde(default)]
    pub pods_per_core: i32,
    /// Most processes and threads of a pod; -1: any number.
    pub pod_pids_limit: i64,
    /// The node's resolv.conf, from which pods inherit; empty: none.
    #[serde(default)]
    pub resolv_conf: PathBuf,
    /// Whether CPU limits are enforced.
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    /// Most images in the node's status; -1: all.
    pub node_status_max_images: i32,
    /// One image is pulled at a time.
    pub serialize_image_pulls: bool,
    /// Most pulls at a time.
    #[serde(default)]
    pub max_parallel_image_pulls: Option<i32>,
    /// Thresholds at which pods are ended at once: quantity or percentage by signal.
    #[serde(default)]
    pub eviction_hard: BTreeMap<String, String>,
    /// Thresholds at which pods are ended after a grace period.
    #[serde(default)]
    pub eviction_soft: BTreeMap<String, String>,
    /// Those grace periods.
    #[serde(default)]
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    /// How long a pressure condition outlives its cause.
    pub eviction_pressure_transition_period: GoDuration,
    /// Longest time, seconds, that a pod gets to stop when a soft threshold is met.
    #[serde(default)]
    pub eviction_max_pod_grace_period: i32,
    /// How far above a threshold things must be again.
    #[serde(default)]
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    /// Start although swap is on.
    pub fail_swap_on: bool,
    /// Whether containers get CPUs to themselves: `none` or `static`.
    pub cpu_manager_policy: String,
    /// How they are chosen.
    #[serde(default)]
    pub cpu_manager_policy_options: BTreeMap<String, String>,
    /// Swap of containers.
    #[serde(default)]
    pub memory_swap: MemorySwap,
    /// Size at which a log is rotated.
    pub container_log_max_size: String,
    /// Files of a log that are kept.
    pub container_log_max_files: u32,
    /// Resources that are not for pods: the system's.
    #[serde(default)]
    pub system_reserved: BTreeMap<String, String>,
    /// And the node's daemons'.
    #[serde(default)]
    pub kube_reserved: BTreeMap<String, String>,
    /// CPUs that are not for pods; it replaces the CPU of the two.
    #[serde(default, rename = "reservedSystemCPUs")]
    pub reserved_system_cpus: String,
    /// What is held to the reservations: `pods`, `none`.
    #[serde(default)]
    pub enforce_node_allocatable: Vec<String>,
    /// Sysctls beyond the safe ones.
    #[serde(default)]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Id of the machine with its provider.
    #[serde(default, rename = "providerID")]
    pub provider_id: String,
    /// Whether `/logs/` is served.
    pub enable_system_log_handler: bool,
    /// Whether it answers queries for logs of services.
    pub enable_system_log_query: bool,
    /// How long a shutdown of the host waits for pods; 0: not at all.
    pub shutdown_grace_period: GoDuration,
    /// The part of it that critical pods get.
    pub shutdown_grace_period_critical_pods: GoDuration,
    /// The same by pod priority.
    #[serde(default)]
    pub shutdown_grace_period_by_pod_priority: Vec<ShutdownPeriod>,
    /// Restarts of containers.
    #[serde(default)]
    pub crash_loop_back_off: CrashLoopBackOff,
    /// Containers without a seccomp profile get that of the runtime.
    pub seccomp_default: bool,
    /// Taints of a new Node.
    #[serde(default)]
    pub register_with_taints: Vec<Taint>,
    /// Whether a Node is made.
    pub register_node: bool,
    /// Whether limits of ephemeral storage are enforced.
    pub local_storage_capacity_isolation: bool,
    /// Not to start with control groups of version 1.
    #[serde(rename = "failCgroupV1")]
    pub fail_cgroup_v1: bool,
}

impl Settings {
    /// Size of a log at which it is rotated, bytes; 0: never.
    pub fn log_max_size(&self) -> u64 {
        let size = Quantity::parse(&self.container_log_max_size).unwrap_or(Quantity::ZERO);
        u64::try_from(size.value()).unwrap_or(0)
    }

    /// How much of a resource is kept from pods: the system's and the daemons' part.
    pub fn reserved(&self, resource: &str) -> Quantity {
        let of = |list: &BTreeMap<String, String>| {
            list.get(resource).and_then(|text| Quantity::parse(text).ok()).unwrap_or(Quantity::ZERO)
        };
        match super::validate::cpu_set(&self.reserved_system_cpus) {
            // The list is instead of both.
            Ok(cpus) if resource == "cpu" => {
                Quantity::new(i64::try_from(cpus).unwrap_or(i64::MAX), Format::DecimalSi)
            }
            _ => of(&self.system_reserved) + of(&self.kube_reserved),
        }
    }

    /// Thresholds of eviction.
    pub fn thresholds(&self) -> Vec<Threshold> {
        // They were read when the configuration was.
        eviction::parse(&eviction::Config {
            hard: &self.eviction_hard,
            soft: &self.eviction_soft,
            soft_grace_period: &self.eviction_soft_grace_period,
            minimum_reclaim: &self.eviction_minimum_reclaim,
        })
        .unwrap_or_default()
    }

    /// Whether all pods together are held to what the node offers.
    pub fn enforces_pods(&self) -> bool {
        self.enforce_node_allocatable.iter().any(|e| e == "pods")
    }

    /// What pods get at a shutdown of the host, by priority, the lowest first; empty: it does not wait for them.
    pub fn shutdown_periods(&self) -> Vec<ShutdownPeriod> {
        let mut periods = self.shutdown_grace_period_by_pod_priority.clone();
        let (all, critical) =
            (self.shutdown_grace_period.as_secs(), self.shutdown_grace_period_critical_pods.as_secs());
        if periods.is_empty() && all > 0 {
            let period =
                |priority, seconds| ShutdownPeriod { priority, shutdown_grace_period_seconds: seconds };
            periods = vec![period(0, all - critical), period(CRITICAL, critical)];
        }
        periods.sort_by_key(|p| p.priority);
        periods
    }
}

/// Priority of the least critical of the critical pods.
const CRITICAL: i32 = 2_000_000_000;

/// Who calls the kubelet API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Authentication {
    /// By client certificate.
    #[serde(default)]
    pub x509: X509,
    /// By bearer token.
    pub webhook: WebhookAuthentication,
    /// Not at all.
    pub anonymous: Anonymous,
}

/// Swap of containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemorySwap {
    /// `NoSwap` (the default) or `LimitedSwap`.
    #[serde(default)]
    pub swap_behavior: String,
}

/// Client certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct X509 {
    /// Authorities, PEM; empty: the cluster's.
    #[serde(default, rename = "clientCAFile")]
    pub client_ca_file: PathBuf,
}

/// Bearer tokens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WebhookAuthentication {
    /// They are reviewed by the API server.
    pub enabled: bool,
    /// How long an answer is good.
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: GoDuration,
}

/// Callers that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Anonymous {
    /// They are `system:anonymous`.
    pub enabled: bool,
}

/// What callers may.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Authorization {
    /// `Webhook`: the API server says so. `AlwaysAllow`.
    pub mode: String,
    /// How long its answers are good.
    pub webhook: WebhookAuthorization,
}

/// How long answers are good.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WebhookAuthorization {
    /// Yes.
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: GoDuration,
    /// No.
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: GoDuration,
}

/// What pods of a priority get at a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShutdownPeriod {
    /// Least priority of such pods.
    pub priority: i32,
    /// Time to stop.
    pub shutdown_grace_period_seconds: i64,
}

/// Restarts of containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CrashLoopBackOff {
    /// Longest wait before one.
    #[serde(default)]
    pub max_container_restart_period: Option<GoDuration>,
}
