//! `/configz`: the settings in force, as a KubeletConfiguration (upstream's `kubelet.config.k8s.io/v1beta1`). Settings
//! that mean nothing here are left out.

use super::Server;
use super::answer::{Answer, json as answer};
use crate::runtime::{LOG_MAX_FILES, LOG_MAX_SIZE, Runtime};
use serde_json::{Value, json};

impl<R: Runtime + Clone> Server<R> {
    /// `/configz`.
    pub(super) fn configz(&self) -> Answer {
        answer(&json!({"kubeletconfig": self.settings()}))
    }

    fn settings(&self) -> Value {
        let config = &self.config;
        json!({
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "address": "0.0.0.0",
            "port": config.kubelet_port,
            "enableServer": true,
            "enableDebuggingHandlers": true,
            "enableSystemLogHandler": true,
            "enableSystemLogQuery": false,
            "authentication": {
                "x509": {},
                "webhook": {"enabled": true, "cacheTTL": "2m0s"},
                "anonymous": {"enabled": false},
            },
            "authorization": {
                "mode": "Webhook",
                "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"},
            },
            "registerNode": true,
            "maxPods": config.max_pods,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", config.cgroup_root.display()),
            "cgroupsPerQOS": true,
            "cpuCFSQuota": true,
            "cpuCFSQuotaPeriod": "100ms",
            "cpuManagerPolicy": "none",
            "memoryManagerPolicy": "None",
            "topologyManagerPolicy": "none",
            "topologyManagerScope": "container",
            "clusterDNS": config.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "clusterDomain": config.cluster_domain,
            "resolvConf": config.resolv_conf.display().to_string(),
            "configMapAndSecretChangeDetectionStrategy": "Watch",
            "containerLogMaxSize": format!("{}Mi", LOG_MAX_SIZE >> 20),
            "containerLogMaxFiles": LOG_MAX_FILES,
            "podLogsDir": config.pod_log_dir.display().to_string(),
            "imageMinimumGCAge": "2m0s",
            "imageGCHighThresholdPercent": 85,
            "imageGCLowThresholdPercent": 80,
            "serializeImagePulls": false,
            "nodeLeaseDurationSeconds": 40,
            "failSwapOn": false,
            "failCgroupV1": false,
            "makeIPTablesUtilChains": false,
            "streamingConnectionIdleTimeout": "4h0m0s",
        })
    }
}
