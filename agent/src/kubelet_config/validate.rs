//! Which values can be used, with upstream's texts.

use super::Settings;
use super::gates::Gates;
use kelp_model::duration::GoDuration;
use kelp_model::eviction;
use kelp_model::quantity::Quantity;
use serde_json::Value;

/// Checks a complete configuration.
///
/// # Errors
/// What is wrong, all of it.
pub fn validate(settings: &Settings, all: &Value, gates: &Gates) -> Result<(), String> {
    let mut errors: Vec<String> = Vec::new();
    numbers(settings, all, &mut errors);
    names(settings, all, &mut errors);
    shutdown(settings, &mut errors);
    gated(settings, gates, &mut errors);
    reservations(settings, all, &mut errors);
    let thresholds = eviction::parse(&eviction::Config {
        hard: &settings.eviction_hard,
        soft: &settings.eviction_soft,
        soft_grace_period: &settings.eviction_soft_grace_period,
        minimum_reclaim: &settings.eviction_minimum_reclaim,
    });
    if let Err(error) = thresholds {
        errors.push(error);
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

fn numbers(s: &Settings, all: &Value, errors: &mut Vec<String>) {
    let mut wrong = |is: bool, text: String| {
        if is {
            errors.push(format!("invalid configuration: {text}"));
        }
    };
    let number = |name: &str| all.get(name).and_then(Value::as_i64).unwrap_or(0);
    let negative = |name: &str, flag: &str| {
        let value = number(name);
        (value < 0, format!("{name} (--{flag}) {value} must not be a negative number"))
    };
    wrong(s.node_lease_duration_seconds <= 0, "nodeLeaseDurationSeconds must be greater than 0".into());
    for (name, flag) in [
        ("eventBurst", "event-burst"),
        ("eventRecordQPS", "event-qps"),
        ("kubeAPIBurst", "kube-api-burst"),
        ("kubeAPIQPS", "kube-api-qps"),
        ("maxOpenFiles", "max-open-files"),
        ("maxPods", "max-pods"),
        ("podsPerCore", "pods-per-core"),
        ("registryBurst", "registry-burst"),
        ("registryPullQPS", "registry-qps"),
    ] {
        let (is, text) = negative(name, flag);
        wrong(is, text);
    }
    let (high, low) = (s.image_gc_high_threshold_percent, s.image_gc_low_threshold_percent);
    for (name, flag, value) in [
        ("imageGCHighThresholdPercent", "image-gc-high-threshold", high),
        ("imageGCLowThresholdPercent", "image-gc-low-threshold", low),
    ] {
        let text = format!("{name} (--{flag}) {value} must be between 0 and 100, inclusive");
        wrong(!(0..=100).contains(&value), text);
    }
    wrong(
        low >= high,
        format!(
            "imageGCLowThresholdPercent (--image-gc-low-threshold) {low} must be less than imageGCHighThresholdPercent (--image-gc-high-threshold) {high}"
        ),
    );
    let (least, most) = (s.image_minimum_gc_age, s.image_maximum_gc_age);
    wrong(least.0 < 0, format!("imageMinimumGCAge {least} must not be negative"));
    wrong(most.0 < 0, format!("imageMaximumGCAge {most} must not be negative"));
    wrong(
        most.0 > 0 && most <= least,
        format!("imageMaximumGCAge {most} must be greater than imageMinimumGCAge {least}"),
    );
    for (name, flag) in
        [("iptablesDropBit", "iptables-drop-bit"), ("iptablesMasqueradeBit", "iptables-masquerade-bit")]
    {
        let value = number(name);
        let text = format!("{name} (--{flag}) {value} must be between 0 and 31, inclusive");
        wrong(!(0..=31).contains(&value), text);
    }
    let images = s.node_status_max_images;
    wrong(
        images < -1,
        format!("nodeStatusMaxImages (--node-status-max-images) {images} must be -1 or greater"),
    );
    let adjust = number("oomScoreAdj");
    let text = format!("oomScoreAdj (--oom-score-adj) {adjust} must be between -1000 and 1000, inclusive");
    wrong(!(-1000..=1000).contains(&adjust), text);
    let port = s.port;
    wrong(
        !(1..=65535).contains(&port),
        format!("port (--port) {port} must be between 1 and 65535, inclusive"),
    );
    let port = number("readOnlyPort");
    let text = format!("readOnlyPort (--read-only-port) {port} must be between 0 and 65535, inclusive");
    wrong(!(0..=65535).contains(&port), text);
    let port = number("healthzPort");
    let text = format!("healthzPort (--healthz-port) {port} must be between 1 and 65535, inclusive");
    wrong(!(0..=65535).contains(&port), text);
    if let Some(pulls) = s.max_parallel_image_pulls {
        wrong(pulls < 1, format!("maxParallelImagePulls {pulls} must be a positive number"));
        let text = "maxParallelImagePulls cannot be larger than 1 unless SerializeImagePulls (--serialize-image-pulls) is set to false";
        wrong(s.serialize_image_pulls && pulls > 1, text.into());
    }
    let size = &s.container_log_max_size;
    wrong(
        Quantity::parse(size).is_err(),
        format!("failed to parse container log max size {size:?}: it is a quantity such as 10Mi"),
    );
    wrong(s.container_log_max_files <= 1, "containerLogMaxFiles must be greater than 1".into());
    wrong(
        number("containerLogMaxWorkers") < 1,
        "containerLogMaxWorkers must be greater than or equal to 1".into(),
    );
    let interval = all.get("containerLogMonitorInterval").and_then(Value::as_str).unwrap_or_default();
    wrong(
        interval.parse::<GoDuration>().is_ok_and(|d| d.as_secs() < 3),
        "containerLogMonitorInterval must be a positive time duration greater than or equal to 3s".into(),
    );
    if let Some(longest) = s.crash_loop_back_off.max_container_restart_period {
        let seconds = longest.0 as f64 / 1e9;
        wrong(
            !(1_000..=300_000).contains(&(longest.0 / 1_000_000)),
            format!(
                "CrashLoopBackOff.MaxContainerRestartPeriod (got: {seconds} seconds) must be set between 1s and 300s"
            ),
        );
    }
    let factor = all.get("memoryThrottlingFactor").and_then(Value::as_f64).unwrap_or(0.9);
    wrong(
        factor <= 0.0 || factor > 1.0,
        format!("memoryThrottlingFactor {factor} must be greater than 0 and less than or equal to 1.0"),
    );
}

fn one_of(value: &str, list: &[&str]) -> bool {
    list.contains(&value)
}

fn names(s: &Settings, all: &Value, errors: &mut Vec<String>) {
    let text = |name: &str| all.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut wrong = |is: bool, text: String| {
        if is {
            errors.push(format!("invalid configuration: {text}"));
        }
    };
    let run_once = all.get("runOnce").and_then(Value::as_bool).unwrap_or(false);
    wrong(
        run_once,
        "runOnce (--runOnce) true, Runonce mode has been deprecated and should not be set".into(),
    );
    wrong(
        !text("systemCgroups").is_empty() && text("cgroupRoot").is_empty(),
        "systemCgroups (--system-cgroups) was specified and cgroupRoot (--cgroup-root) was not specified"
            .into(),
    );
    let policy = text("topologyManagerPolicy");
    let policies = ["none", "best-effort", "restricted", "single-numa-node"];
    wrong(
        !one_of(policy, &policies),
        format!(
            "topologyManagerPolicy (--topology-manager-policy) {policy:?} must be one of: [{}]",
            policies.map(|p| format!("{p:?}")).join(" ")
        ),
    );
    let scope = text("topologyManagerScope");
    wrong(
        !one_of(scope, &["container", "pod"]),
        format!(
            "topologyManagerScope (--topology-manager-scope) {scope:?} must be one of: \"container\", or \"pod\""
        ),
    );
    let mode = text("hairpinMode");
    wrong(
        !one_of(mode, &["none", "hairpin-veth", "promiscuous-bridge"]),
        format!(
            "option {mode:?} specified for hairpinMode (--hairpin-mode). Valid options are \"none\", \"hairpin-veth\" or \"promiscuous-bridge\""
        ),
    );
    let swap = all.get("memorySwap").and_then(|m| m.get("swapBehavior")).and_then(Value::as_str);
    let swap = swap.unwrap_or_default();
    wrong(
        !one_of(swap, &["", "NoSwap", "LimitedSwap"]),
        format!("memorySwap.swapBehavior {swap:?} must be one of: \"\", \"LimitedSwap\" or \"NoSwap\""),
    );
    let logs = s.pod_logs_dir.to_string_lossy();
    wrong(!s.pod_logs_dir.is_absolute(), format!("pod logs path {logs:?} must be absolute path"));
    let clean: std::path::PathBuf = s.pod_logs_dir.components().collect();
    wrong(
        clean.as_os_str() != s.pod_logs_dir.as_os_str() || logs.contains("/../") || logs.ends_with("/.."),
        format!("pod logs path {logs:?} must be normalized"),
    );
    wrong(!logs.is_ascii(), format!("pod logs path {logs:?} mut contains ASCII characters only"));
    let query = all.get("enableSystemLogQuery").and_then(Value::as_bool).unwrap_or(false);
    wrong(
        query && !s.enable_system_log_handler,
        "enableSystemLogHandler is required for enableSystemLogQuery".into(),
    );
    let mode = &s.authorization.mode;
    wrong(
        !one_of(mode, &["Webhook", "AlwaysAllow"]),
        format!("unknown authorization mode {mode:?}; it is \"Webhook\" or \"AlwaysAllow\""),
    );
    let version = s.tls_min_version.as_str();
    if !one_of(version, &["", "VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"]) {
        errors.push(format!("unknown tls version {version:?}"));
    }
    for suite in &s.tls_cipher_suites {
        if crate::server::tls::suite(suite).is_none() {
            errors.push(format!("Cipher suite {suite} not supported or doesn't exist"));
        }
    }
    for taint in &s.register_with_taints {
        let effect = taint.effect.as_str();
        let key = !kelp_model::names::qualified_name(&taint.key).is_empty();
        if key || !one_of(effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]) {
            let value = taint.value.as_deref().unwrap_or_default();
            errors.push(format!("invalid taint: {{{} {value} {effect} <nil>}}", taint.key));
        }
        if taint.time_added.is_some() {
            errors.push("invalid configuration: taint.TimeAdded is not nil".into());
        }
    }
}

fn shutdown(s: &Settings, errors: &mut Vec<String>) {
    let (all, critical) = (s.shutdown_grace_period, s.shutdown_grace_period_critical_pods);
    let mut wrong = |is: bool, text: String| {
        if is {
            errors.push(format!("invalid configuration: {text}"));
        }
    };
    // Go prints the structure that holds a duration in braces.
    wrong(
        critical > all,
        format!("shutdownGracePeriodCriticalPods {{{critical}}} must be <= shutdownGracePeriod {{{all}}}"),
    );
    for (name, period) in [("shutdownGracePeriod", all), ("shutdownGracePeriodCriticalPods", critical)] {
        wrong(
            period.0 < 0 || (period.0 > 0 && period.as_secs() < 1),
            format!("{name} {{{period}}} must be either zero or otherwise >= 1 sec"),
        );
    }
    wrong(
        !s.shutdown_grace_period_by_pod_priority.is_empty() && (all.0 > 0 || critical.0 > 0),
        "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time"
            .into(),
    );
}

/// What needs a feature gate that is off.
fn gated(s: &Settings, gates: &Gates, errors: &mut Vec<String>) {
    let mut wrong = |is: bool, gate: &str, text: &str| {
        if is && !gates.on(gate) {
            errors.push(format!("invalid configuration: {text}"));
        }
    };
    wrong(
        s.server_tls_bootstrap,
        "RotateKubeletServerCertificate",
        "serverTLSBootstrap true requires feature gate RotateKubeletServerCertificate",
    );
    wrong(
        s.shutdown_grace_period.0 > 0 || s.shutdown_grace_period_critical_pods.0 > 0,
        "GracefulNodeShutdown",
        "specifying shutdownGracePeriod or shutdownGracePeriodCriticalPods requires feature gate GracefulNodeShutdown",
    );
    wrong(
        !s.shutdown_grace_period_by_pod_priority.is_empty(),
        "GracefulNodeShutdownBasedOnPodPriority",
        "Specifying shutdownGracePeriodByPodPriority requires feature gate GracefulNodeShutdownBasedOnPodPriority",
    );
}

/// Resources that can be reserved.
const RESERVABLE: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pid"];

fn reservations(s: &Settings, all: &Value, errors: &mut Vec<String>) {
    let text = |name: &str| all.get(name).and_then(Value::as_str).unwrap_or_default();
    for reserved in [&s.system_reserved, &s.kube_reserved] {
        for (name, amount) in reserved {
            if !RESERVABLE.contains(&name.as_str()) {
                errors.push(format!("cannot reserve {name:?} resource"));
                continue;
            }
            match Quantity::parse(amount) {
                Err(error) => {
                    errors
                        .push(format!("failed to parse quantity {amount:?} for {name:?} resource: {error}"));
                }
                Ok(quantity) if quantity.signum() < 0 => {
                    errors.push(format!("resource quantity for {name:?} cannot be negative: {amount}"));
                }
                Ok(_) => {}
            }
        }
    }
    let mut wrong = |is: bool, text: String| {
        if is {
            errors.push(format!("invalid configuration: {text}"));
        }
    };
    let (system, kube) = (text("systemReservedCgroup"), text("kubeReservedCgroup"));
    let list = &s.enforce_node_allocatable;
    let mut seen: Vec<&str> = Vec::new();
    for option in list {
        if seen.contains(&option.as_str()) {
            let text = format!(
                "duplicated enforcements {option:?} in enforceNodeAllocatable (--enforce-node-allocatable)"
            );
            wrong(true, text);
            continue;
        }
        seen.push(option);
        let needs = |cgroup: &str, field: &str, flag: &str, first: &str| {
            let text = format!(
                "{field} (--{flag}) must be specified when {first:?} or \"{first}-compressible\" included in enforceNodeAllocatable (--enforce-node-allocatable)"
            );
            (cgroup.is_empty(), text)
        };
        match option.as_str() {
            "pods" => {}
            "none" => wrong(
                list.len() > 1,
                "enforceNodeAllocatable (--enforce-node-allocatable) may not contain additional enforcements when \"none\" is specified".into(),
            ),
            "system-reserved" | "system-reserved-compressible" => {
                let (is, text) = needs(system, "systemReservedCgroup", "system-reserved-cgroup", "system-reserved");
                wrong(is, text);
            }
            "kube-reserved" | "kube-reserved-compressible" => {
                let (is, text) = needs(kube, "kubeReservedCgroup", "kube-reserved-cgroup", "kube-reserved");
                wrong(is, text);
            }
            other => wrong(
                true,
                format!(
                    "option {other:?} specified for enforceNodeAllocatable (--enforce-node-allocatable). Valid options are \"pods\", \"system-reserved\", \"system-reserved-compressible\", \"kube-reserved\", \"kube-reserved-compressible\" or \"none\""
                ),
            ),
        }
    }
    let cpus = &s.reserved_system_cpus;
    if !cpus.is_empty() {
        wrong(
            !system.is_empty() || !kube.is_empty(),
            "can't use reservedSystemCPUs (--reserved-cpus) with systemReservedCgroup (--system-reserved-cgroup) or kubeReservedCgroup (--kube-reserved-cgroup)".into(),
        );
        if let Err(error) = cpu_set(cpus) {
            wrong(
                true,
                format!("unable to parse reservedSystemCPUs (--reserved-cpus) {cpus}, error: {error}"),
            );
        }
    }
}

/// How many CPUs a list such as `0-3,7` names.
///
/// # Errors
/// It is none, with Go's text.
pub fn cpu_set(text: &str) -> Result<usize, String> {
    let mut cpus = std::collections::BTreeSet::new();
    let number = |text: &str| {
        let why = if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            "invalid syntax"
        } else {
            "value out of range"
        };
        text.parse::<u32>()
            .ok()
            .filter(|n| *n < 1 << 16)
            .ok_or_else(|| format!("strconv.Atoi: parsing {text:?}: {why}"))
    };
    for range in text.split(',') {
        match range.split_once('-') {
            None => {
                cpus.insert(number(range)?);
            }
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(format!("invalid range {range:?} ({first} > {last})"));
                }
                cpus.extend(first..=last);
            }
        }
    }
    Ok(cpus.len())
}
