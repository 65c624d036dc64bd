//! `/configz`: the settings in force, as a KubeletConfiguration (upstream's `kubelet.config.k8s.io/v1beta1`).

use super::Server;
use super::answer::{Answer, json as answer};
use super::tls::OWN;
use crate::config::AgentConfig;
use crate::runtime::Runtime;
use serde_json::{Map, Value, json};

impl<R: Runtime + Clone> Server<R> {
    /// `/configz`.
    pub(super) fn configz(&self) -> Answer {
        answer(&json!({"kubeletconfig": in_force(&self.config)}))
    }
}

/// The configuration with what the command line says instead.
fn in_force(config: &AgentConfig) -> Value {
    let mut all = config.kubelet.effective.as_object().cloned().unwrap_or_default();
    let own = json!({
        "port": config.kubelet_port,
        "maxPods": config.max_pods,
        "cgroupRoot": format!("/{}", config.cgroup_root.display()),
        "clusterDNS": config.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "clusterDomain": config.cluster_domain,
        "resolvConf": config.resolv_conf.display().to_string(),
        "podLogsDir": config.pod_log_dir.display().to_string(),
        "containerRuntimeEndpoint": "",
    });
    let own = own.as_object().cloned().unwrap_or_default();
    all.extend(own);
    // Where the node's own certificate is, when the configuration names none.
    let made = config.data_dir.join("kubelet-pki");
    let named = |key| all.get(key).and_then(Value::as_str).is_some_and(|path: &str| !path.is_empty());
    if !(named("tlsCertFile") && named("tlsPrivateKeyFile")) {
        for (key, file) in ["tlsCertFile", "tlsPrivateKeyFile"].into_iter().zip(OWN) {
            all.insert(key.into(), json!(made.join(file).display().to_string()));
        }
    }
    if let Some(dir) = &config.static_pods {
        all.insert("staticPodPath".into(), json!(dir.display().to_string()));
    }
    Value::Object(without_null(all))
}

fn without_null(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_is_shown() {
        let mut config = AgentConfig::new("node1", vec![]);
        config.max_pods = 7;
        config.static_pods = Some("/etc/manifests".into());
        let shown = in_force(&config);
        assert_eq!((&shown["kind"], &shown["maxPods"]), (&json!("KubeletConfiguration"), &json!(7)));
        assert_eq!(shown["staticPodPath"], json!("/etc/manifests"));
        assert_eq!(shown["clusterDNS"], json!(["10.96.0.10"]));
        assert_eq!(shown["evictionHard"]["memory.available"], json!("100Mi"));
    }
}
