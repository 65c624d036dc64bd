//! kubectl's verbs against the API server, with a current kubectl and one of five versions ago. There are no controllers:
//! where something must act on an object, the test does.

use anyhow::{Context, Result, ensure};
use kelp_tests::{ApiServer, clients};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;

const MANIFEST: &str = include_str!("verbs.yaml");

/// kubectl in one namespace.
struct Kubectl<'a> {
    server: &'a ApiServer,
    program: PathBuf,
    namespace: String,
}

impl Kubectl<'_> {
    fn run(&self, words: &str) -> Result<String> {
        self.args(&words.split(' ').collect::<Vec<_>>())
    }

    fn args(&self, args: &[&str]) -> Result<String> {
        self.feed(args, "")
    }

    fn feed(&self, args: &[&str], input: &str) -> Result<String> {
        let mut all = vec!["--namespace", &self.namespace];
        all.extend(args);
        self.server.feed(&self.program, &all, input).with_context(|| format!("kubectl {}", args.join(" ")))
    }

    /// Runs it; it must exit with `code`. Returns what it said.
    fn code(&self, code: i32, args: &[&str], input: &str) -> Result<String> {
        let mut all = vec!["--namespace", &self.namespace];
        all.extend(args);
        let output = self.server.try_feed(&self.program, &all, input)?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(output.status.code() == Some(code), "{args:?}: {} {text}", output.status);
        Ok(text)
    }

    /// A verb that must say something.
    fn says(&self, words: &str, expected: &str) -> Result<()> {
        let text = self.run(words)?;
        ensure!(text.contains(expected), "kubectl {words} said {text}");
        Ok(())
    }

    fn field(&self, object: &str, path: &str) -> Result<String> {
        self.args(&["get", object, "-o", &format!("jsonpath={path}")])
    }

    /// What a deployment's controller would write after it has done what the spec says.
    fn play_rollout(&self, name: &str, replicas: u32) -> Result<()> {
        let generation = self.field(&format!("deployment/{name}"), "{.metadata.generation}")?;
        let status = format!(
            "{{\"status\":{{\"observedGeneration\":{generation},\"replicas\":{replicas},\"updatedReplicas\":{replicas},\
             \"readyReplicas\":{replicas},\"availableReplicas\":{replicas},\"conditions\":[{{\"type\":\"Progressing\",\
             \"status\":\"True\",\"reason\":\"NewReplicaSetAvailable\"}},{{\"type\":\"Available\",\"status\":\"True\",\
             \"reason\":\"MinimumReplicasAvailable\"}}]}}}}"
        );
        self.args(&["patch", "deployment", name, "--subresource=status", "--type=merge", "-p", &status])?;
        Ok(())
    }
}

fn each(name: &str, test: impl Fn(&Kubectl<'_>) -> Result<()>) -> Result<()> {
    let server = ApiServer::start(name, "apiserver")?;
    for (age, clients) in clients()? {
        let namespace = format!("{name}-{age}");
        let kubectl = Kubectl { server: &server, program: clients.kubectl, namespace };
        kubectl.args(&["create", "namespace", &kubectl.namespace])?;
        test(&kubectl).with_context(|| format!("with the {age} kubectl"))?;
    }
    Ok(())
}

#[test]
fn objects_are_created_and_changed() -> Result<()> {
    each("change", |kubectl| {
        kubectl.says("create configmap c --from-literal=a=1 --from-literal=b=2", "configmap/c created")?;
        kubectl.says(
            "create deployment d --image=registry.test/app:1 --replicas=2",
            "deployment.apps/d created",
        )?;
        kubectl.says("create service clusterip d --tcp=80:8080", "service/d created")?;
        kubectl.says("create secret generic s --from-literal=p=q", "secret/s created")?;
        kubectl.says("create serviceaccount sa", "serviceaccount/sa created")?;
        kubectl.says("expose deployment d --name=e --port=80", "service/e exposed")?;
        let error = kubectl.code(1, &["create", "configmap", "c"], "")?;
        ensure!(error.contains("configmaps \"c\" already exists"), "{error}");

        ensure!(kubectl.feed(&["apply", "-f", "-"], MANIFEST)?.contains("deployment.apps/web created"));
        ensure!(kubectl.feed(&["apply", "-f", "-"], MANIFEST)?.contains("deployment.apps/web unchanged"));
        ensure!(kubectl.code(0, &["diff", "-f", "-"], MANIFEST)?.is_empty());
        let changed = MANIFEST.replace("web:1", "web:2");
        let diff = kubectl.code(1, &["diff", "-f", "-"], &changed)?;
        ensure!(diff.contains("-      - image: registry.test/web:1") && diff.contains("web:2"), "{diff}");
        ensure!(kubectl.feed(&["apply", "-f", "-"], &changed)?.contains("deployment.apps/web configured"));
        ensure!(kubectl.run("apply view-last-applied deployment web")?.contains("web:2"));
        let again = MANIFEST.replace("web:1", "web:3");
        // kubectl itself may take over what its client-side apply owns; others may not.
        let other = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
        let conflict = kubectl.code(1, &other, &again)?;
        ensure!(conflict.contains("conflict with \"kubectl-client-side-apply\""), "{conflict}");
        let forced = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        ensure!(kubectl.feed(&forced, &again)?.contains("serverside-applied"));
        ensure!(
            kubectl.code(0, &["diff", "--server-side", "--force-conflicts", "-f", "-"], &again)?.is_empty()
        );
        let strict = kubectl.code(1, &["apply", "-f", "-"], &MANIFEST.replace("replicas:", "replicaz:"))?;
        ensure!(strict.contains("strict decoding error: unknown field \"spec.replicaz\""), "{strict}");
        ensure!(
            kubectl.feed(&["apply", "--dry-run=server", "-f", "-"], MANIFEST)?.contains("(server dry run)")
        );

        kubectl.args(&["patch", "configmap", "c", "--type=merge", "-p", "{\"data\":{\"m\":\"1\"}}"])?;
        let json = "[{\"op\":\"add\",\"path\":\"/data/j\",\"value\":\"1\"},{\"op\":\"test\",\"path\":\"/data/m\",\"value\":\"1\"}]";
        kubectl.args(&["patch", "configmap", "c", "--type=json", "-p", json])?;
        let strategic = "{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"app\",\"env\":[{\"name\":\"X\",\"value\":\"1\"}]}]}}}}";
        kubectl.args(&["patch", "deployment", "d", "-p", strategic])?;
        ensure!(
            kubectl.field("deployment/d", "{.spec.template.spec.containers[*].image}")?
                == "registry.test/app:1"
        );
        ensure!(
            kubectl.field("configmap/c", "{.data}")? == "{\"a\":\"1\",\"b\":\"2\",\"j\":\"1\",\"m\":\"1\"}"
        );

        let yaml = kubectl.run("get configmap c -o yaml")?;
        let replaced = kubectl.feed(&["replace", "-f", "-"], &yaml.replace("j: \"1\"", "j: \"5\""))?;
        ensure!(replaced.contains("configmap/c replaced"));
        let stale = kubectl.code(1, &["replace", "-f", "-"], &yaml)?;
        ensure!(
            stale.contains("the object has been modified; please apply your changes to the latest version"),
            "{stale}"
        );
        ensure!(
            kubectl
                .feed(&["replace", "--force", "-f", "-"], MANIFEST)?
                .contains("deployment.apps/web replaced")
        );
        kubectl.says("label configmap c tier=x", "configmap/c labeled")?;
        let refused = kubectl.code(1, &["label", "configmap", "c", "tier=y"], "")?;
        ensure!(refused.contains("--overwrite is false"), "{refused}");
        kubectl.says("label configmap c tier-", "configmap/c unlabeled")?;
        kubectl.says("annotate configmap c note=n", "configmap/c annotated")?;
        kubectl.says("set image deployment d app=registry.test/app:2", "deployment.apps/d image updated")?;
        kubectl.says("set env deployment d A=b", "deployment.apps/d env updated")?;
        edit(kubectl)
    })
}

/// `kubectl edit` with an editor that changes one value.
fn edit(kubectl: &Kubectl<'_>) -> Result<()> {
    let editor = kubectl.server.dir().join("editor");
    let mut file = std::fs::File::create(&editor)?;
    file.write_all(b"#!/bin/sh\nexec sed -i 's/a: \"1\"/a: \"9\"/' \"$1\"\n")?;
    drop(file);
    std::fs::set_permissions(&editor, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let args = ["--namespace", &kubectl.namespace, "edit", "configmap", "c"];
    let mut command = kubectl.server.command(&kubectl.program, &args);
    let output = command.env("EDITOR", &editor).env("KUBE_EDITOR", &editor).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(kubectl.field("configmap/c", "{.data.a}")? == "9");
    Ok(())
}

#[test]
fn objects_are_shown_in_every_form() -> Result<()> {
    each("show", |kubectl| {
        kubectl.feed(&["apply", "-f", "-"], MANIFEST)?;
        kubectl.run("create configmap c --from-literal=a=1")?;
        for (form, expected) in [
            ("json", "\"kind\": \"ConfigMap\""),
            ("yaml", "kind: ConfigMap"),
            ("name", "configmap/c"),
            ("wide", "DATA"),
            ("jsonpath={.data.a}", "1"),
            ("jsonpath-as-json={.data.a}", "\"1\""),
            ("go-template={{.metadata.name}}", "c"),
            ("custom-columns=NAME:.metadata.name,A:.data.a", "NAME"),
        ] {
            kubectl.says(&format!("get configmap c -o {form}"), expected)?;
        }
        kubectl.says("get all", "deployment.apps/web")?;
        kubectl.says("get deployments,services --show-labels", "app=web")?;
        kubectl.says("get deployments -A --field-selector metadata.name=web --no-headers", "web")?;
        kubectl.says("get deployments -l app=web --sort-by=.metadata.name", "0/2")?;
        kubectl.says("get deployment web --subresource=status", "web")?;
        kubectl.says("describe deployment web", "Replicas:")?;
        kubectl.says("describe service web", "Port:")?;
        kubectl.says("explain deployment.spec --recursive", "minReadySeconds")?;
        kubectl.says("explain pods.spec.containers.imagePullPolicy", "IfNotPresent")?;
        kubectl.says("api-resources --verbs=list -o name", "deployments.apps")?;
        kubectl.says("api-resources --namespaced=false", "Namespace")?;
        kubectl.says("api-versions", "apps/v1")?;
        kubectl.says("auth whoami", "Username")?;
        kubectl.says("auth can-i create pods", "yes")?;
        kubectl.says("auth can-i --list", "*.*")?;
        let refused = kubectl.code(1, &["auth", "can-i", "create", "pods", "--as=bob"], "")?;
        ensure!(refused.contains("no"), "{refused}");
        kubectl.says("version", "Server Version: v1.36")?;
        kubectl.says("cluster-info", "Kubernetes control plane")?;
        kubectl.says("get --raw /readyz?verbose", "readyz check passed")?;
        kubectl.says("get --raw /metrics", "apiserver_request_total")?;
        let missing = kubectl.code(1, &["get", "pod", "none"], "")?;
        ensure!(missing.contains("Error from server (NotFound): pods \"none\" not found"), "{missing}");
        let unknown = kubectl.code(1, &["get", "frobs"], "")?;
        ensure!(unknown.contains("the server doesn't have a resource type \"frobs\""), "{unknown}");
        Ok(())
    })
}

/// A definition, and an object of it.
const CUSTOM: (&str, &str) = (include_str!("verbs-definition.yaml"), include_str!("verbs-custom.yaml"));

#[test]
fn custom_resources_are_objects_like_others() -> Result<()> {
    let server = ApiServer::start("custom", "apiserver,controllers")?;
    for (age, clients) in clients()? {
        let kubectl =
            Kubectl { server: &server, program: clients.kubectl, namespace: format!("custom-{age}") };
        kubectl.args(&["create", "namespace", &kubectl.namespace])?;
        custom(&kubectl).with_context(|| format!("with the {age} kubectl"))?;
    }
    Ok(())
}

fn custom(kubectl: &Kubectl<'_>) -> Result<()> {
    let (definition, object) = CUSTOM;
    kubectl.feed(&["apply", "-f", "-"], definition)?;
    kubectl.says("wait crd/crontabs.stable.example.com --for=condition=Established --timeout=30s", "met")?;
    kubectl.says("api-resources --api-group=stable.example.com", "crontabs")?;
    kubectl.says("explain crontab.spec.cronSpec", "when it runs")?;
    kubectl.says("explain crontab.spec --recursive", "replicas")?;
    kubectl.says("explain crontab.metadata", "ObjectMeta")?;
    ensure!(kubectl.feed(&["apply", "-f", "-"], object)?.contains("crontab.stable.example.com/mine created"));
    ensure!(kubectl.feed(&["apply", "-f", "-"], object)?.contains("mine unchanged"));
    let strict = kubectl.code(1, &["apply", "-f", "-"], &object.replace("image:", "imago:"))?;
    ensure!(strict.contains("unknown field \"spec.imago\""), "{strict}");
    let wrong = kubectl.code(1, &["apply", "-f", "-"], &object.replace("replicas: 3", "replicas: 30"))?;
    ensure!(wrong.contains("should be less than or equal to 10"), "{wrong}");
    let ruled = kubectl.code(1, &["apply", "-f", "-"], &object.replace("web:1", "none"))?;
    ensure!(ruled.contains("the image has a tag"), "{ruled}");
    let changed = object.replace("web:1", "web:2");
    let diff = kubectl.code(1, &["diff", "-f", "-"], &changed)?;
    ensure!(diff.contains("web:2"), "{diff}");
    ensure!(
        kubectl
            .feed(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &changed)?
            .contains("applied")
    );
    let table = kubectl.run("get ct")?;
    ensure!(table.contains("SPEC") && table.contains("* * * * */5"), "{table}");
    kubectl.says("get all", "crontab.stable.example.com/mine")?;
    kubectl.says("describe crontab mine", "Cron Spec:")?;
    kubectl.says("scale crontab mine --replicas=5", "scaled")?;
    ensure!(kubectl.field("crontab/mine", "{.spec.replicas}")? == "5");
    let merge = "{\"spec\":{\"image\":\"registry.test/web:3\"}}";
    kubectl.args(&["patch", "crontab", "mine", "--type=merge", "-p", merge])?;
    kubectl.args(&[
        "patch",
        "ct",
        "mine",
        "--subresource=status",
        "--type=merge",
        "-p",
        "{\"status\":{\"replicas\":5}}",
    ])?;
    kubectl.says("wait ct/mine --for=jsonpath={.status.replicas}=5 --timeout=5s", "condition met")?;
    kubectl.says("label ct mine tier=x", "labeled")?;
    kubectl.says("get ct -l tier=x -o name", "crontab.stable.example.com/mine")?;
    let none = kubectl.code(0, &["get", "ct", "--field-selector", "spec.cronSpec=none"], "")?;
    ensure!(none.contains("No resources found"), "{none}");
    // A namespace goes with what it holds, and with what belongs to an object of a definition.
    let uid = kubectl.field("ct/mine", "{.metadata.uid}")?;
    let owned = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"owned\",\"ownerReferences\":[{{\
         \"apiVersion\":\"stable.example.com/v1\",\"kind\":\"CronTab\",\"name\":\"mine\",\"uid\":\"{uid}\"}}]}}}}"
    );
    kubectl.feed(&["create", "-f", "-"], &owned)?;
    kubectl.says("delete ct mine", "deleted")?;
    kubectl.says("wait configmap/owned --for=delete --timeout=30s", "")?;
    kubectl.feed(&["apply", "-f", "-"], object)?;
    kubectl.says(&format!("delete namespace {} --timeout=60s", kubectl.namespace), "deleted")?;
    kubectl.code(1, &["get", "ct", "mine"], "")?;
    kubectl.says("delete crd crontabs.stable.example.com --timeout=60s", "deleted")?;
    // kubectl itself remembers for hours what kinds there are.
    let gone = kubectl.code(1, &["get", "crontabs"], "")?;
    ensure!(gone.contains("the server could not find the requested resource"), "{gone}");
    let kinds = kubectl.code(1, &["get", "--raw", "/apis/stable.example.com/v1"], "")?;
    ensure!(kinds.contains("NotFound"), "{kinds}");
    Ok(())
}

#[test]
fn changes_are_watched_and_waited_for() -> Result<()> {
    each("watch", |kubectl| {
        kubectl.feed(&["apply", "-f", "-"], MANIFEST)?;
        let args = ["--namespace", &kubectl.namespace, "get", "configmap", "-w", "-o", "name"];
        let mut command = kubectl.server.command(&kubectl.program, &args);
        let mut watching = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(watching.stdout.take().context("no stdout")?).lines();
        kubectl.run("create configmap one")?;
        kubectl.run("create configmap two")?;
        let seen = lines.find(|line| line.as_ref().is_ok_and(|l| l == "configmap/two"));
        watching.kill()?;
        watching.wait()?;
        ensure!(seen.is_some(), "the watch ended");

        let args =
            ["--namespace", &kubectl.namespace, "wait", "--for=jsonpath={.data.done}=yes", "configmap/one"];
        let mut waiting =
            kubectl.server.command(&kubectl.program, &[&args[..], &["--timeout=60s"]].concat()).spawn()?;
        kubectl.args(&[
            "patch",
            "configmap",
            "one",
            "--type=merge",
            "-p",
            "{\"data\":{\"done\":\"yes\"}}",
        ])?;
        ensure!(waiting.wait()?.success());
        let late = kubectl.code(1, &["wait", "--for=delete", "configmap/one", "--timeout=1s"], "")?;
        ensure!(late.contains("timed out"), "{late}");

        let args =
            ["--namespace", &kubectl.namespace, "rollout", "status", "deployment/web", "--timeout=60s"];
        let mut rolling = kubectl.server.command(&kubectl.program, &args).stdout(Stdio::null()).spawn()?;
        kubectl.play_rollout("web", 2)?;
        ensure!(rolling.wait()?.success());
        kubectl.says("wait deployment/web --for=condition=Available --timeout=5s", "condition met")?;
        kubectl.says("scale deployment web --replicas=3", "deployment.apps/web scaled")?;
        ensure!(kubectl.field("deployment/web", "{.spec.replicas}")? == "3");
        let wrong =
            kubectl.code(1, &["scale", "deployment", "web", "--current-replicas=9", "--replicas=1"], "")?;
        ensure!(wrong.contains("xpected replicas to be 9, was 3"), "{wrong}");
        kubectl.says("rollout pause deployment web", "paused")?;
        kubectl.says("rollout resume deployment web", "resumed")?;
        kubectl.says("rollout restart deployment web", "restarted")?;
        Ok(())
    })
}

#[test]
fn objects_are_deleted_with_each_cascade() -> Result<()> {
    each("delete", |kubectl| {
        for (cascade, finalizer) in [("orphan", "orphan"), ("foreground", "foregroundDeletion")] {
            kubectl.feed(&["apply", "-f", "-"], MANIFEST)?;
            kubectl.says(&format!("delete deployment web --cascade={cascade} --wait=false"), "deleted")?;
            let finalizers = kubectl.field("deployment/web", "{.metadata.finalizers}")?;
            ensure!(finalizers == format!("[\"{finalizer}\"]"), "{finalizers}");
            ensure!(!kubectl.field("deployment/web", "{.metadata.deletionTimestamp}")?.is_empty());
            // What the garbage collector does when it is done with the dependents.
            let done = "{\"metadata\":{\"finalizers\":null}}";
            kubectl.args(&["patch", "deployment", "web", "--type=merge", "-p", done])?;
            kubectl.code(1, &["get", "deployment", "web"], "")?;
        }
        kubectl.run("create configmap a")?;
        kubectl.run("create configmap b")?;
        kubectl.run("create configmap kept")?;
        kubectl.run("label configmap a b gone=yes")?;
        kubectl.says("delete configmap a --cascade=background", "configmap \"a\" deleted")?;
        kubectl.says("delete configmap -l gone=yes", "configmap \"b\" deleted")?;
        kubectl.says("get configmap -o name", "configmap/kept")?;
        kubectl.says("delete configmap none --ignore-not-found kept", "deleted")?;
        kubectl.says("delete configmap --all", "")?;
        let namespace = kubectl.namespace.clone();
        kubectl.says(&format!("delete namespace {namespace} --wait=false"), "deleted")?;
        kubectl.says(&format!("get namespace {namespace}"), "Terminating")?;
        let late = kubectl.code(1, &["create", "configmap", "late"], "")?;
        ensure!(late.contains("because it is being terminated"), "{late}");
        Ok(())
    })
}

/// History and undo need the controllers' ReplicaSets.
#[test]
fn rollouts_are_undone() -> Result<()> {
    let server = ApiServer::start("undo", "apiserver,controllers")?;
    for (age, clients) in clients()? {
        let kubectl = Kubectl { server: &server, program: clients.kubectl, namespace: format!("undo-{age}") };
        kubectl.args(&["create", "namespace", &kubectl.namespace])?;
        kubectl.feed(&["apply", "-f", "-"], MANIFEST)?;
        kubectl.run("wait deployment/web --for=jsonpath={.status.observedGeneration}=1 --timeout=30s")?;
        kubectl.run("set image deployment web c=registry.test/web:2")?;
        kubectl.run("wait deployment/web --for=jsonpath={.status.observedGeneration}=2 --timeout=30s")?;
        let history = kubectl.run("rollout history deployment web")?;
        ensure!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
        kubectl.says("rollout history deployment web --revision=1", "registry.test/web:1")?;
        kubectl.says("rollout undo deployment web", "rolled back")?;
        ensure!(
            kubectl.field("deployment/web", "{.spec.template.spec.containers[*].image}")?
                == "registry.test/web:1"
        );
    }
    Ok(())
}
