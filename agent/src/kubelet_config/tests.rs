use super::*;
use serde_json::json;

const HEAD: &str = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";

fn load(body: &str, drop_ins: &[(&str, &str)]) -> Result<KubeletConfig, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, format!("{HEAD}{body}")).unwrap();
    let directory = dir.path().join("conf.d");
    std::fs::create_dir(&directory).unwrap();
    for (name, text) in drop_ins {
        std::fs::write(directory.join(name), format!("{HEAD}{text}")).unwrap();
    }
    KubeletConfig::load(Some(&file), Some(&directory))
}

fn error(body: &str) -> String {
    let text = load(body, &[]).unwrap_err().to_string();
    let cut = text.find("error failed to decode: ").map(|at| &text[at + 24..]);
    cut.or(text.strip_prefix("failed to validate kubelet configuration, error: ")).unwrap_or(&text).to_owned()
}

#[test]
fn defaults_are_valid_and_complete() {
    let config = KubeletConfig::default();
    assert_eq!((config.settings.port, config.settings.max_pods), (10250, 110));
    assert!(config.warnings.is_empty() && config.configured.is_empty());
    for field in config.effective.as_object().unwrap().keys() {
        assert!(FIELDS.iter().any(|f| f.name == field), "{field}");
    }
}

#[test]
fn what_is_configured_counts_and_drop_ins_come_later() {
    let config = load(
        "maxPods: 20\nevictionHard: {memory.available: 50Mi}\nauthentication: {anonymous: {enabled: true}}\n\
         clusterDNS: [192.0.2.10]\nstaticPodPath: manifests\nnodeStatusUpdateFrequency: 4s\nport: 0\n",
        &[
            ("20-b.conf", "maxPods: 30\nclusterDNS: [192.0.2.11, 192.0.2.12]\n"),
            ("10-a.conf", "maxPods: 25\nevictionHard: {pid.available: 5%}\nshutdownGracePeriod: 30s\n"),
            ("ignored.yaml", "maxPods: 1\n"),
        ],
    )
    .unwrap();
    let s = &config.settings;
    assert_eq!((s.max_pods, s.port), (30, 10250));
    assert_eq!(s.cluster_dns, ["192.0.2.11", "192.0.2.12"]);
    let hard: Vec<_> = s.eviction_hard.keys().map(String::as_str).collect();
    assert_eq!(hard, ["memory.available", "pid.available"], "the defaults are replaced, drop-ins are merged");
    assert!(s.authentication.anonymous.enabled && s.authentication.webhook.enabled);
    assert!(s.static_pod_path.is_absolute() && s.static_pod_path.ends_with("manifests"));
    assert_eq!(s.node_status_report_frequency.to_string(), "4s");
    assert_eq!(config.effective["shutdownGracePeriod"], json!("30s"));
    assert!(config.sets("maxPods") && !config.sets("maxOpenFiles"));
}

#[test]
fn thresholds_are_merged_when_asked() {
    let config =
        load("mergeDefaultEvictionSettings: true\nevictionHard: {memory.available: 1Gi}\n", &[]).unwrap();
    assert_eq!(config.settings.eviction_hard["memory.available"], "1Gi");
    assert_eq!(config.settings.eviction_hard["nodefs.available"], "10%");
}

#[test]
fn nothing_is_ignored_silently() {
    let config =
        load("memoryManagerPolicy: Static\nfoo: 1\nauthentication: {webhook: {bar: 1}}\nmaxPods: 5\n", &[]);
    let warnings = config.unwrap().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].ends_with(
        "Using lenient decoding as strict decoding failed: strict decoding error: unknown field \"authentication.webhook.bar\", unknown field \"foo\""
    ));
    assert!(warnings[1].ends_with("no effect here: memoryManagerPolicy"));
    // The default, written out, is no reason for a word.
    assert!(load("memoryManagerPolicy: None\nsyncFrequency: 1m0s\n", &[]).unwrap().warnings.is_empty());
}

#[test]
fn wrong_kinds_of_values() {
    for (body, expected) in [
        (
            "maxPods: \"110\"",
            "json: cannot unmarshal string into Go struct field KubeletConfiguration.maxPods of type int32",
        ),
        (
            "maxPods: 1.5",
            "json: cannot unmarshal number 1.5 into Go struct field KubeletConfiguration.maxPods of type int32",
        ),
        (
            "authentication: {webhook: {enabled: 1}}",
            "json: cannot unmarshal number into Go struct field KubeletWebhookAuthentication.authentication.webhook.enabled of type bool",
        ),
        (
            "evictionHard: {memory.available: 5}",
            "json: cannot unmarshal number into Go struct field KubeletConfiguration.evictionHard of type string",
        ),
        (
            "clusterDNS: x",
            "json: cannot unmarshal string into Go struct field KubeletConfiguration.clusterDNS of type []string",
        ),
        ("shutdownGracePeriod: 5", "json: cannot unmarshal number into Go value of type string"),
        ("shutdownGracePeriod: \"5\"", "time: missing unit in duration \"5\""),
    ] {
        assert_eq!(error(body), expected);
    }
}

#[test]
fn values_that_cannot_be() {
    for (body, expected) in [
        ("maxPods: -1", "invalid configuration: maxPods (--max-pods) -1 must not be a negative number"),
        (
            "imageGCLowThresholdPercent: 90",
            "invalid configuration: imageGCLowThresholdPercent (--image-gc-low-threshold) 90 must be less than imageGCHighThresholdPercent (--image-gc-high-threshold) 85",
        ),
        ("evictionHard: {cpu.available: 5%}", "unsupported eviction signal cpu.available"),
        (
            "shutdownGracePeriodCriticalPods: 10s",
            "invalid configuration: shutdownGracePeriodCriticalPods {10s} must be <= shutdownGracePeriod {0s}",
        ),
        (
            "reservedSystemCPUs: 0-a",
            "invalid configuration: unable to parse reservedSystemCPUs (--reserved-cpus) 0-a, error: strconv.Atoi: parsing \"a\": invalid syntax",
        ),
        ("containerLogMaxFiles: 1", "invalid configuration: containerLogMaxFiles must be greater than 1"),
        ("kubeReserved: {pods: \"5\"}", "cannot reserve \"pods\" resource"),
        (
            "crashLoopBackOff: {maxContainerRestartPeriod: 301s}",
            "invalid configuration: CrashLoopBackOff.MaxContainerRestartPeriod (got: 301 seconds) must be set between 1s and 300s",
        ),
        (
            "port: 70000\nmaxParallelImagePulls: 0",
            "[invalid configuration: port (--port) 70000 must be between 1 and 65535, inclusive, invalid configuration: maxParallelImagePulls 0 must be a positive number]",
        ),
    ] {
        assert_eq!(error(body), expected);
    }
}

#[test]
fn files_that_are_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c");
    let shown = file.display();
    let fails = |text: Option<&str>| {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        KubeletConfig::load(Some(&file), None).unwrap_err().to_string()
    };
    let start = format!(
        "failed to load kubelet config file, path: {shown}, error: failed to load Kubelet config file {shown}, error "
    );
    assert!(
        fails(None).starts_with(&format!("{start}failed to read kubelet config file \"{shown}\", error: "))
    );
    assert_eq!(fails(Some("")), format!("{start}kubelet config file \"{shown}\" was empty"));
    assert_eq!(
        fails(Some("maxPods: 1\n")),
        format!("{start}failed to decode: Object 'Kind' is missing in '{{\"maxPods\":1}}'")
    );
    assert!(
        fails(Some("kind: Pod\napiVersion: v1\n"))
            .contains("no kind \"Pod\" is registered for version \"v1\"")
    );
    assert!(fails(Some("[1]")).contains("failed to decode"));
    assert!(fails(Some("a: [")).contains("failed to decode: yaml"));
}

#[test]
fn feature_gates_are_known_and_decide() {
    let text = load("featureGates: {NoSuch: true}\n", &[]).unwrap_err().to_string();
    assert!(
        text.ends_with("feature gates from initial flags-based config: unrecognized feature gate: NoSuch")
    );
    assert_eq!(
        error("featureGates: {GracefulNodeShutdown: false}\nshutdownGracePeriod: 30s\n"),
        "invalid configuration: specifying shutdownGracePeriod or shutdownGracePeriodCriticalPods requires feature gate GracefulNodeShutdown"
    );
    let config = load("featureGates: {GracefulNodeShutdown: true}\n", &[]).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.effective["featureGates"]["GracefulNodeShutdown"], json!(true));
}
