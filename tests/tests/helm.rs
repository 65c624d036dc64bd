//! helm 3 and 4: install, upgrade, rollback and uninstall of a chart with many kinds.

use anyhow::{Context, Result, ensure};
use kelp_tests::{ApiServer, clients};
use std::path::Path;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/everything");

/// Kinds of the chart's objects, as kubectl names them.
const KINDS: &str = "serviceaccount,configmap,secret,service,deployment,statefulset,cronjob,ingress,networkpolicy,\
                     poddisruptionbudget,role,rolebinding,horizontalpodautoscaler";

#[test]
fn a_chart_lives() -> Result<()> {
    let server = ApiServer::start("helm", "apiserver")?;
    for (age, clients) in clients()? {
        let namespace = format!("helm-{age}");
        let helm = |words: &str| {
            let mut args = vec!["--namespace", namespace.as_str()];
            args.extend(words.split(' '));
            server.run(&clients.helm, &args).with_context(|| format!("{age}: helm {words}"))
        };
        let kubectl = |args: &[&str]| {
            server.run(&clients.kubectl, &[&["--namespace", namespace.as_str()], args].concat())
        };
        let count = || -> Result<usize> {
            let listed = kubectl(&["get", KINDS, "-l", "app.kubernetes.io/instance=r", "-o", "name"])?;
            Ok(listed.lines().count())
        };
        let installed = helm(&format!("install r {CHART} --create-namespace"))?;
        ensure!(installed.contains("STATUS: deployed") && installed.contains("r says hello."), "{installed}");
        ensure!(count()? == 13, "{age}: {} objects", count()?);
        ensure!(helm("list")?.contains("everything-0.1.0"));
        ensure!(helm("get manifest r")?.contains("kind: HorizontalPodAutoscaler"));
        let again =
            server.try_feed(&clients.helm, &["--namespace", &namespace, "install", "r", CHART], "")?;
        ensure!(!again.status.success(), "{age}: a release was installed twice");

        let upgraded = helm(&format!("upgrade r {CHART} --set message=bye,replicas=3,autoscaling=false"))?;
        ensure!(upgraded.contains("r says bye."), "{upgraded}");
        ensure!(count()? == 12, "{age}: the autoscaler is still there");
        let field = |object: &str, path: &str| kubectl(&["get", object, "-o", &format!("jsonpath={path}")]);
        ensure!(field("deployment/r-everything", "{.spec.replicas}")? == "3");
        ensure!(field("configmap/r-everything", "{.data.message}")? == "bye");
        ensure!(field("secret/r-everything", "{.data.password}")? == "Ynll");
        ensure!(field("configmap/r-hook", "{.data.revision}")? == "2");

        helm("rollback r 1")?;
        ensure!(count()? == 13, "{age}: {} objects after the rollback", count()?);
        ensure!(field("deployment/r-everything", "{.spec.replicas}")? == "2");
        let history = helm("history r")?;
        ensure!(history.contains("superseded") && history.contains("Rollback to 1"), "{history}");

        helm(&format!("upgrade --install r {CHART} --reuse-values --set image=registry.test/app:2"))?;
        ensure!(helm("uninstall r")?.contains("uninstalled"));
        ensure!(count()? == 0, "{age}: {} objects are left", count()?);
        ensure!(!helm("list")?.contains("everything"));
    }
    Ok(())
}

#[test]
fn a_chart_that_the_server_refuses_says_why() -> Result<()> {
    let server = ApiServer::start("helm-bad", "apiserver")?;
    for (age, clients) in clients()? {
        let args =
            ["install", "bad", CHART, "--set", "replicas=-1", "--namespace", age, "--create-namespace"];
        let output = server.try_feed(Path::new(&clients.helm), &args, "")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && text.contains("must be greater than or equal to 0"),
            "{age}: {text}"
        );
    }
    Ok(())
}
