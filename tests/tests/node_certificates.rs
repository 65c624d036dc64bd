//! A node's identity: renewed by certificate signing requests, and asked for with a bootstrap token.

use anyhow::{Context, Result, ensure};
use kelp_tests::{Cluster, eventually, start_host, stop_host};
use serde_json::Value;

const CLIENT: &str = env!("CARGO_BIN_EXE_client");
/// The sandbox's only node.
const NODE: &str = "t-nodecert-2";
const TOKEN: &str = "
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData: {token-id: abcdef, token-secret: 0123456789abcdef, usage-bootstrap-authentication: 'true'}
";

fn json(cluster: &Cluster, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(args)?)?)
}

/// A granted request of a user for a node's client certificate: its name.
fn granted(cluster: &Cluster, user: &str) -> Result<String> {
    eventually("a certificate", || {
        let list = json(cluster, &["get", "csr", "-o", "json"])?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let own = items.iter().find(|item| {
            item["spec"]["signerName"] == "kubernetes.io/kube-apiserver-client-kubelet"
                && item["spec"]["username"] == user
                && item["status"]["certificate"].is_string()
        });
        Ok(own.and_then(|i| i["metadata"]["name"].as_str()).map(str::to_owned))
    })
}

/// The node tells that it is there.
fn is_alive(cluster: &Cluster) -> Result<()> {
    let renewed = || {
        let path = "jsonpath={.spec.renewTime}";
        cluster.kubectl(&["-n", "kube-node-lease", "get", "lease", NODE, "-o", path])
    };
    eventually("the node's Lease", || Ok(renewed().ok().filter(|time| !time.is_empty())))?;
    let before = renewed()?;
    eventually("a renewed Lease", || Ok((renewed()? != before).then_some(())))?;
    cluster.wait(&format!("node/{NODE}"), "condition=Ready", 60)
}

#[test]
fn a_node_renews_its_certificate_and_gets_its_first() -> Result<()> {
    let cluster = Cluster::up_apart("t-nodecert", false, CLIENT, Vec::new(), |_| Ok(()))?;
    let node = cluster.node(2);
    let file = node.data_dir().join("kubelet-pki/kubelet-client-current.pem");
    ensure!(!file.exists(), "nobody asked for a certificate");

    // What the kubeconfig holds is renewed at once.
    stop_host(&node)?;
    let rotate = "--rotate-certificates".to_owned();
    start_host(&node, std::slice::from_ref(&rotate))?;
    let name = granted(&cluster, &format!("system:node:{NODE}"))?;
    ensure!(name.starts_with("csr-"), "{name}");
    eventually("the certificate's file", || Ok(file.exists().then_some(())))?;
    is_alive(&cluster)?;

    // Without an identity, and with a token that may ask for one.
    stop_host(&node)?;
    cluster.kubectl(&["delete", "node", NODE])?;
    cluster.kubectl(&["delete", "csr", "--all"])?;
    cluster.apply(TOKEN)?;
    let own = node.agent_kubeconfig();
    let text = std::fs::read_to_string(&own)?;
    let parsed = kube::config::Kubeconfig::from_yaml(&text).context("parse the node's kubeconfig")?;
    let mut bootstrap = serde_json::to_value(&parsed)?;
    bootstrap["users"][0]["user"] = serde_json::json!({"token": "abcdef.0123456789abcdef"});
    let bootstrap_file = node.dir().join("bootstrap.kubeconfig");
    std::fs::write(&bootstrap_file, serde_json::to_string(&bootstrap)?)?;
    std::fs::remove_file(&own)?;
    std::fs::remove_file(&file)?;
    start_host(
        &node,
        &["--bootstrap-kubeconfig".into(), bootstrap_file.to_string_lossy().into_owned(), rotate],
    )?;
    let name = granted(&cluster, "system:bootstrap:abcdef")?;
    ensure!(name.starts_with("node-csr-"), "{name}");
    let text = std::fs::read_to_string(&own).context("read the kubeconfig that was made")?;
    ensure!(text.contains("kubelet-client-current.pem"), "{text}");
    is_alive(&cluster)
}
