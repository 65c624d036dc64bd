//! The fields of `kubelet.config.k8s.io/v1beta1` KubeletConfiguration (Kubernetes 1.36): what each holds, and whether
//! this agent does something about it.

use kelp_model::duration::GoDuration;
use serde_json::{Map, Value};

/// What a field holds.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// A boolean.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A number.
    Float,
    /// A string.
    Text,
    /// A duration in Go's notation.
    Duration,
    /// A list of strings.
    Texts,
    /// Strings by name.
    TextMap,
    /// Booleans by name.
    BoolMap,
    /// An object of upstream's Go type of this name.
    Object(&'static str, &'static [Field]),
    /// A list of such objects.
    Objects(&'static str, &'static [Field]),
    /// Anything: it has no effect here.
    Any,
}

/// Whether the agent honours a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It does.
    Honoured,
    /// It has no meaning here, or is not done: a value other than the default is named in a warning.
    None,
}

/// A field.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name in JSON.
    pub name: &'static str,
    /// What it holds.
    pub shape: Shape,
    /// Whether it is honoured.
    pub effect: Effect,
}

const fn yes(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, effect: Effect::Honoured }
}

const fn no(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, effect: Effect::None }
}

use Shape::{Any, Bool, BoolMap, Duration, Float, Int32, Int64, Object, Objects, Text, TextMap, Texts};

const AUTHENTICATION: &[Field] = &[
    yes("x509", Object("KubeletX509Authentication", &[yes("clientCAFile", Text)])),
    yes(
        "webhook",
        Object("KubeletWebhookAuthentication", &[yes("enabled", Bool), yes("cacheTTL", Duration)]),
    ),
    yes("anonymous", Object("KubeletAnonymousAuthentication", &[yes("enabled", Bool)])),
];

const AUTHORIZATION: &[Field] = &[
    yes("mode", Text),
    yes(
        "webhook",
        Object(
            "KubeletWebhookAuthorization",
            &[yes("cacheAuthorizedTTL", Duration), yes("cacheUnauthorizedTTL", Duration)],
        ),
    ),
];

const TAINT: &[Field] = &[yes("key", Text), yes("value", Text), yes("effect", Text), yes("timeAdded", Any)];

const SHUTDOWN: &[Field] = &[yes("priority", Int32), yes("shutdownGracePeriodSeconds", Int64)];

/// Fields of KubeletConfiguration.
pub const FIELDS: &[Field] = &[
    yes("kind", Text),
    yes("apiVersion", Text),
    yes("enableServer", Bool),
    yes("staticPodPath", Text),
    yes("podLogsDir", Text),
    // Nothing polls here: files and objects are watched.
    no("syncFrequency", Duration),
    no("fileCheckFrequency", Duration),
    no("httpCheckFrequency", Duration),
    no("staticPodURL", Text),
    no("staticPodURLHeader", Any),
    yes("address", Text),
    yes("port", Int32),
    no("readOnlyPort", Int32),
    yes("tlsCertFile", Text),
    yes("tlsPrivateKeyFile", Text),
    yes("tlsCipherSuites", Texts),
    yes("tlsMinVersion", Text),
    no("tlsCurvePreferences", Any),
    yes("rotateCertificates", Bool),
    yes("serverTLSBootstrap", Bool),
    yes("authentication", Object("KubeletAuthentication", AUTHENTICATION)),
    yes("authorization", Object("KubeletAuthorization", AUTHORIZATION)),
    no("registryPullQPS", Int32),
    no("registryBurst", Int32),
    yes("eventRecordQPS", Int32),
    yes("eventBurst", Int32),
    yes("enableDebuggingHandlers", Bool),
    no("enableContentionProfiling", Bool),
    no("healthzPort", Int32),
    no("healthzBindAddress", Text),
    no("oomScoreAdj", Int32),
    yes("clusterDomain", Text),
    yes("clusterDNS", Texts),
    no("streamingConnectionIdleTimeout", Duration),
    yes("nodeStatusUpdateFrequency", Duration),
    yes("nodeStatusReportFrequency", Duration),
    yes("nodeLeaseDurationSeconds", Int32),
    yes("imageMinimumGCAge", Duration),
    yes("imageMaximumGCAge", Duration),
    yes("imageGCHighThresholdPercent", Int32),
    yes("imageGCLowThresholdPercent", Int32),
    no("volumeStatsAggPeriod", Duration),
    no("kubeletCgroups", Text),
    no("systemCgroups", Text),
    no("cgroupRoot", Text),
    no("cgroupsPerQOS", Bool),
    no("cgroupDriver", Text),
    yes("cpuManagerPolicy", Text),
    no("singleProcessOOMKill", Bool),
    yes("cpuManagerPolicyOptions", TextMap),
    no("cpuManagerReconcilePeriod", Duration),
    no("memoryManagerPolicy", Text),
    no("topologyManagerPolicy", Text),
    no("topologyManagerScope", Text),
    no("topologyManagerPolicyOptions", TextMap),
    no("qosReserved", TextMap),
    no("runtimeRequestTimeout", Duration),
    no("hairpinMode", Text),
    yes("maxPods", Int32),
    no("podCIDR", Text),
    yes("podPidsLimit", Int64),
    yes("resolvConf", Text),
    no("runOnce", Bool),
    yes("cpuCFSQuota", Bool),
    no("cpuCFSQuotaPeriod", Duration),
    yes("nodeStatusMaxImages", Int32),
    no("maxOpenFiles", Int64),
    no("contentType", Text),
    no("kubeAPIQPS", Int32),
    no("kubeAPIBurst", Int32),
    yes("serializeImagePulls", Bool),
    yes("maxParallelImagePulls", Int32),
    yes("evictionHard", TextMap),
    yes("evictionSoft", TextMap),
    yes("evictionSoftGracePeriod", TextMap),
    yes("evictionPressureTransitionPeriod", Duration),
    yes("evictionMaxPodGracePeriod", Int32),
    yes("evictionMinimumReclaim", TextMap),
    yes("mergeDefaultEvictionSettings", Bool),
    yes("podsPerCore", Int32),
    no("enableControllerAttachDetach", Bool),
    no("protectKernelDefaults", Bool),
    no("makeIPTablesUtilChains", Bool),
    no("iptablesMasqueradeBit", Int32),
    no("iptablesDropBit", Int32),
    yes("featureGates", BoolMap),
    yes("failSwapOn", Bool),
    yes("memorySwap", Object("MemorySwapConfiguration", &[yes("swapBehavior", Text)])),
    yes("containerLogMaxSize", Text),
    yes("containerLogMaxFiles", Int32),
    no("containerLogMaxWorkers", Int32),
    no("containerLogMonitorInterval", Duration),
    no("configMapAndSecretChangeDetectionStrategy", Text),
    yes("systemReserved", TextMap),
    yes("kubeReserved", TextMap),
    yes("reservedSystemCPUs", Text),
    no("showHiddenMetricsForVersion", Text),
    no("systemReservedCgroup", Text),
    no("kubeReservedCgroup", Text),
    yes("enforceNodeAllocatable", Texts),
    yes("allowedUnsafeSysctls", Texts),
    no("volumePluginDir", Text),
    yes("providerID", Text),
    // The kernel's notification is used where there is one.
    no("kernelMemcgNotification", Bool),
    no("logging", Any),
    yes("enableSystemLogHandler", Bool),
    yes("enableSystemLogQuery", Bool),
    yes("shutdownGracePeriod", Duration),
    yes("shutdownGracePeriodCriticalPods", Duration),
    yes("shutdownGracePeriodByPodPriority", Objects("ShutdownGracePeriodByPodPriority", SHUTDOWN)),
    yes("crashLoopBackOff", Object("CrashLoopBackOffConfig", &[yes("maxContainerRestartPeriod", Duration)])),
    no("reservedMemory", Any),
    no("enableProfilingHandler", Bool),
    no("enableDebugFlagsHandler", Bool),
    yes("seccompDefault", Bool),
    no("memoryThrottlingFactor", Float),
    no("memoryReservationPolicy", Text),
    yes("registerWithTaints", Objects("Taint", TAINT)),
    yes("registerNode", Bool),
    no("tracing", Any),
    yes("localStorageCapacityIsolation", Bool),
    no("containerRuntimeEndpoint", Text),
    no("imageServiceEndpoint", Text),
    yes("failCgroupV1", Bool),
    no("userNamespaces", Any),
    no("imagePullCredentialsVerificationPolicy", Text),
    no("preloadedImagesVerificationAllowlist", Texts),
];

/// Checks an object against its fields. What is unknown is taken out of `object` and its path added to `unknown`.
///
/// # Errors
/// A value is of another kind than its field; the text is that of Go's decoder.
pub fn check(object: &mut Map<String, Value>, unknown: &mut Vec<String>) -> Result<(), String> {
    check_object(object, "KubeletConfiguration", FIELDS, "", unknown)
}

fn check_object(
    object: &mut Map<String, Value>,
    type_name: &str,
    fields: &[Field],
    path: &str,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let names: Vec<String> = object.keys().cloned().collect();
    for name in names {
        let full = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let Some(field) = fields.iter().find(|f| f.name == name) else {
            object.remove(&name);
            unknown.push(full);
            continue;
        };
        let Some(value) = object.get_mut(&name) else { continue };
        if value.is_null() {
            // As if it were not there.
            object.remove(&name);
            continue;
        }
        check_value(value, field.shape, type_name, &full, unknown)?;
    }
    Ok(())
}

/// What Go calls a JSON value.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(number) if number.is_f64() => format!("number {number}"),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}

fn check_value(
    value: &mut Value,
    shape: Shape,
    type_name: &str,
    path: &str,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let mismatch = |value: &Value, go: &str| {
        let what = match value {
            Value::Number(number) if go.starts_with("int") => format!("number {number}"),
            Value::Number(_) => "number".into(),
            other => kind(other),
        };
        Err(format!("json: cannot unmarshal {what} into Go struct field {type_name}.{path} of type {go}"))
    };
    match shape {
        Any => Ok(()),
        Bool if value.is_boolean() => Ok(()),
        Bool => mismatch(value, "bool"),
        Int32 if value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
        Int32 => mismatch(value, "int32"),
        Int64 if value.is_i64() => Ok(()),
        Int64 => mismatch(value, "int64"),
        Float if value.is_number() => Ok(()),
        Float => mismatch(value, "float64"),
        Text if value.is_string() => Ok(()),
        Text => mismatch(value, "string"),
        Duration => match value {
            Value::String(text) => text.parse::<GoDuration>().map(|_| ()),
            other => Err(format!("json: cannot unmarshal {} into Go value of type string", kind(other))),
        },
        Texts => match value.as_array() {
            None => mismatch(value, "[]string"),
            Some(list) => match list.iter().find(|v| !v.is_string()) {
                Some(other) => mismatch(other, "string"),
                None => Ok(()),
            },
        },
        TextMap | BoolMap => {
            let (whole, one) = match shape {
                TextMap => ("map[string]string", "string"),
                _ => ("map[string]bool", "bool"),
            };
            let fits = |v: &Value| if one == "string" { v.is_string() } else { v.is_boolean() };
            match value.as_object() {
                None => mismatch(value, whole),
                Some(map) => match map.values().find(|v| !fits(v)) {
                    Some(other) => mismatch(other, one),
                    None => Ok(()),
                },
            }
        }
        Object(name, fields) => match value {
            Value::Object(object) => check_object(object, name, fields, path, unknown),
            other => mismatch(other, &format!("v1beta1.{name}")),
        },
        Objects(name, fields) => match value {
            Value::Array(list) => {
                for (index, item) in list.iter_mut().enumerate() {
                    match item {
                        Value::Object(object) => {
                            let path = format!("{path}[{index}]");
                            check_object(object, name, fields, &path, unknown)?;
                        }
                        other => return mismatch(other, &format!("v1beta1.{name}")),
                    }
                }
                Ok(())
            }
            other => mismatch(other, &format!("[]v1beta1.{name}")),
        },
    }
}
