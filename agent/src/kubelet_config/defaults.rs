//! What a KubeletConfiguration holds where nobody says otherwise: upstream's defaults, but for what works otherwise here.

use kelp_model::duration::GoDuration;
use serde_json::{Map, Value, json};

/// Pods whose memory runs out are ended below this: upstream's `evictionHard` of Linux.
pub const EVICTION_HARD: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];

/// The defaults. Pulls are parallel, swap is no reason not to start, and there are no iptables rules: in these three
/// this agent differs from upstream's.
pub fn defaults() -> Value {
    let parts = [first(), second(), third()];
    Value::Object(parts.into_iter().filter_map(|p| p.as_object().cloned()).flatten().collect())
}

fn first() -> Value {
    json!({
        "kind": super::KIND,
        "apiVersion": super::API_VERSION,
        "enableServer": true,
        "podLogsDir": "/var/log/pods",
        "syncFrequency": "1m0s",
        "fileCheckFrequency": "20s",
        "httpCheckFrequency": "20s",
        "address": "0.0.0.0",
        "port": 10250,
        "authentication": {
            "x509": {},
            "webhook": {"enabled": true, "cacheTTL": "2m0s"},
            "anonymous": {"enabled": false},
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"},
        },
        "registryPullQPS": 5,
        "registryBurst": 10,
        "eventRecordQPS": 50,
        "eventBurst": 100,
        "enableDebuggingHandlers": true,
        "healthzPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "oomScoreAdj": -999,
        "streamingConnectionIdleTimeout": "4h0m0s",
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "5m0s",
        "nodeLeaseDurationSeconds": 40,
        "imageMinimumGCAge": "2m0s",
        "imageMaximumGCAge": "0s",
        "imageGCHighThresholdPercent": 85,
        "imageGCLowThresholdPercent": 80,
        "volumeStatsAggPeriod": "1m0s",
        "cgroupsPerQOS": true,
        "cgroupDriver": "cgroupfs",
        "cpuManagerPolicy": "none",
        "cpuManagerReconcilePeriod": "10s",
        "memoryManagerPolicy": "None",
        "topologyManagerPolicy": "none",
        "topologyManagerScope": "container",
        "runtimeRequestTimeout": "2m0s",
        "hairpinMode": "promiscuous-bridge",
    })
}

fn second() -> Value {
    json!({
        "maxPods": 110,
        "podPidsLimit": -1,
        "resolvConf": "/etc/resolv.conf",
        "cpuCFSQuota": true,
        "cpuCFSQuotaPeriod": "100ms",
        "nodeStatusMaxImages": 50,
        "maxOpenFiles": 1_000_000,
        "contentType": "application/vnd.kubernetes.protobuf",
        "kubeAPIQPS": 50,
        "kubeAPIBurst": 100,
        "serializeImagePulls": false,
        "evictionHard": EVICTION_HARD.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "evictionPressureTransitionPeriod": "5m0s",
        "mergeDefaultEvictionSettings": false,
        "enableControllerAttachDetach": true,
        "makeIPTablesUtilChains": false,
        "iptablesMasqueradeBit": 14,
        "iptablesDropBit": 15,
        "failSwapOn": false,
        "memorySwap": {},
    })
}

fn third() -> Value {
    json!({
        "containerLogMaxSize": "10Mi",
        "containerLogMaxFiles": 5,
        "containerLogMaxWorkers": 1,
        "containerLogMonitorInterval": "10s",
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        "enforceNodeAllocatable": ["pods"],
        "volumePluginDir": "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/",
        "logging": {
            "format": "text",
            "flushFrequency": "5s",
            "verbosity": 0,
            "options": {"text": {"infoBufferSize": "0"}, "json": {"infoBufferSize": "0"}},
        },
        "enableSystemLogHandler": true,
        "enableSystemLogQuery": false,
        "shutdownGracePeriod": "0s",
        "shutdownGracePeriodCriticalPods": "0s",
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5m0s"},
        "enableProfilingHandler": true,
        "enableDebugFlagsHandler": true,
        "seccompDefault": false,
        "memoryThrottlingFactor": 0.9,
        "memoryReservationPolicy": "None",
        "registerNode": true,
        "localStorageCapacityIsolation": true,
        "containerRuntimeEndpoint": "",
        "failCgroupV1": false,
        "imagePullCredentialsVerificationPolicy": "NeverVerifyPreloadedImages",
    })
}

/// Zero values that upstream takes for "not set": text and numbers, and durations of no length.
fn is_unset(name: &str, value: &Value) -> bool {
    match value {
        Value::String(text)
            if name.ends_with("Period") || name.ends_with("Frequency") || name.ends_with("TTL") =>
        {
            text.parse::<GoDuration>().is_ok_and(|d| d.is_zero())
        }
        Value::String(text) => text.is_empty(),
        // Fields that may be 0 are pointers upstream.
        Value::Number(number) => {
            let plain = [
                "port",
                "registryBurst",
                "eventBurst",
                "nodeLeaseDurationSeconds",
                "maxPods",
                "maxOpenFiles",
            ];
            number.as_i64() == Some(0) && (plain.contains(&name) || name == "kubeAPIBurst")
        }
        _ => false,
    }
}

/// Adds the defaults to what is configured.
pub fn apply(configured: &Map<String, Value>) -> Map<String, Value> {
    let set = |name: &str| configured.get(name).filter(|v| !is_unset(name, v));
    let mut defaults = match defaults() {
        Value::Object(defaults) => defaults,
        _ => Map::new(),
    };
    // A status that is computed at another pace is also told at it, unless said otherwise.
    if let (Some(update), None) = (set("nodeStatusUpdateFrequency"), set("nodeStatusReportFrequency")) {
        defaults.insert("nodeStatusReportFrequency".into(), update.clone());
    }
    // More than one pull at a time is asked for by a number greater than one.
    if let Some(most) = set("maxParallelImagePulls").and_then(Value::as_i64) {
        defaults.insert("serializeImagePulls".into(), json!(most < 2));
    }
    let merged = set("mergeDefaultEvictionSettings").and_then(Value::as_bool).unwrap_or(false);
    for (name, value) in configured {
        if is_unset(name, value) {
            continue;
        }
        match (defaults.get_mut(name), value) {
            // Thresholds replace the defaults as a whole, unless they are to be merged.
            (Some(Value::Object(map)), Value::Object(own)) if name == "evictionHard" => {
                if !merged {
                    map.clear();
                }
                map.extend(own.clone());
            }
            (Some(Value::Object(map)), Value::Object(own)) => fill(map, own),
            _ => {
                defaults.insert(name.clone(), value.clone());
            }
        }
    }
    // No limit is written in several ways.
    if defaults.get("podPidsLimit").and_then(Value::as_i64).is_some_and(|limit| limit < 0) {
        defaults.insert("podPidsLimit".into(), json!(-1));
    }
    defaults
}

fn fill(defaults: &mut Map<String, Value>, own: &Map<String, Value>) {
    for (name, value) in own {
        if is_unset(name, value) {
            continue;
        }
        match (defaults.get_mut(name), value) {
            (Some(Value::Object(map)), Value::Object(own)) => fill(map, own),
            _ => {
                defaults.insert(name.clone(), value.clone());
            }
        }
    }
}
