//! Making a case's objects, doing its actions, judging what came of it.

use super::compare::{event_differences, text_matches, value_differences, watch_differences};
use super::node::SeenNode;
use super::observe::{brief, summary};
use super::{Case, NAMESPACE};
use crate::Cluster;
use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::discovery::ApiResource;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::Instant;
use xtask::sandbox::NodeLayout;

/// Everything seen of one pod.
#[derive(Debug, Default, Clone)]
struct Seen {
    lines: Vec<Value>,
    last: Value,
    deleted: bool,
    /// First appearance of each event, by its name.
    events: Vec<(String, Value)>,
}

#[derive(Debug, Default)]
struct Book {
    pods: HashMap<String, Seen>,
}

/// Replays cases on one cluster.
pub struct Runner {
    client: kube::Client,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    scratch: PathBuf,
    node: crate::NodeFacts,
    host: NodeLayout,
    book: Arc<Mutex<Book>>,
    changed: watch::Sender<()>,
    patience: u32,
    verbose: bool,
}

impl Runner {
    /// A runner for a cluster whose one node is host 2. Whatever is waited for may take `patience` times as long as usual.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub async fn new(cluster: &Cluster, patience: u32, verbose: bool) -> Result<Arc<Self>> {
        let kubeconfig = cluster.layout().kubeconfig();
        let config = kube::config::Kubeconfig::read_from(&kubeconfig).context("read the kubeconfig")?;
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await?;
        let node = cluster.node(2);
        let runner = Arc::new(Self {
            client: kube::Client::try_from(config)?,
            kubectl: cluster.kubectl_program().to_owned(),
            kubeconfig,
            scratch: cluster.layout().dir().join("cases"),
            node: crate::NodeFacts { name: node.name(), run_dir: node.run_dir(), cgroup: node.cgroup() },
            host: node,
            book: Arc::default(),
            changed: watch::channel(()).0,
            patience,
            verbose,
        });
        std::fs::create_dir_all(&runner.scratch)?;
        let namespaces: Api<DynamicObject> =
            Api::all_with(runner.client.clone(), &resource("", "Namespace", "namespaces"));
        let namespace: DynamicObject = serde_json::from_value(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        )?;
        if let Err(error) = namespaces.create(&PostParams::default(), &namespace).await {
            ensure!(matches!(&error, kube::Error::Api(e) if e.code == 409), "make the namespace: {error}");
        }
        // The token of its service account is mounted into each pod.
        let accounts: Api<DynamicObject> = Api::namespaced_with(
            runner.client.clone(),
            NAMESPACE,
            &resource("", "ServiceAccount", "serviceaccounts"),
        );
        for _ in 0..100 {
            if accounts.get_opt("default").await?.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for what in ["Pod", "Event"] {
            tokio::spawn(runner.clone().follow(what));
        }
        Ok(runner)
    }

    async fn follow_node(&self, case: &Case, verdict: &mut Verdict) -> Result<()> {
        if !case.record["node"].is_null() {
            verdict.node = Some(SeenNode::follow(&self.client, &self.node.name).await?);
        }
        Ok(())
    }

    pub(super) fn client(&self) -> &kube::Client {
        &self.client
    }

    pub(super) fn kubectl_path(&self) -> &std::path::Path {
        &self.kubectl
    }

    pub(super) fn scratch_dir(&self) -> &std::path::Path {
        &self.scratch
    }

    pub(super) fn node_name(&self) -> &str {
        &self.node.name
    }

    /// A text of this cluster with the node's name as in the recordings.
    pub(super) fn as_recorded(&self, text: &str) -> String {
        text.replace(&self.node.name, "node1")
    }

    /// A word of the recordings with the node's name here.
    fn here(&self, word: &str) -> String {
        match word.strip_suffix("-node1") {
            Some(start) => format!("{start}-{}", self.node.name),
            None => word.to_owned(),
        }
    }

    /// Environment and directory of a kubectl.
    pub(super) fn environment<'a>(
        &self,
        command: &'a mut tokio::process::Command,
    ) -> &'a mut tokio::process::Command {
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.scratch).current_dir(&self.scratch)
    }

    fn pods(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), NAMESPACE, &resource("", "Pod", "pods"))
    }

    async fn follow(self: Arc<Self>, what: &'static str) {
        let plural = if what == "Pod" { "pods" } else { "events" };
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), NAMESPACE, &resource("", what, plural));
        let mut version = "0".to_owned();
        loop {
            let Ok(stream) = api.watch(&WatchParams::default().timeout(290), &version).await else {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            let mut stream = stream.boxed();
            while let Ok(Some(event)) = stream.try_next().await {
                let (object, deleted) = match event {
                    WatchEvent::Added(o) | WatchEvent::Modified(o) => (o, false),
                    WatchEvent::Deleted(o) => (o, true),
                    WatchEvent::Bookmark(_) => continue,
                    WatchEvent::Error(_) => {
                        version = "0".to_owned();
                        break;
                    }
                };
                version = object.metadata.resource_version.clone().unwrap_or_default();
                if let Ok(object) = serde_json::to_value(&object) {
                    self.note(what, object, deleted);
                }
            }
        }
    }

    fn note(&self, what: &str, object: Value, deleted: bool) {
        let text = object.to_string().replace(&self.node.name, "node1");
        let object: Value = serde_json::from_str(&text).unwrap_or(object);
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        if what == "Pod" {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let seen = book.pods.entry(name).or_default();
            if seen.deleted && !deleted {
                *seen = Seen { events: std::mem::take(&mut seen.events), ..Seen::default() };
            }
            let mut line = summary(&object);
            if deleted {
                line["watch"] = "DELETED".into();
                if seen.lines.last().is_some_and(|l| {
                    let mut l = l.clone();
                    l["watch"] = "DELETED".into();
                    l == line
                }) {
                    line = json!({"watch": "DELETED", "same": true});
                }
            }
            if seen.lines.last() != Some(&line) {
                seen.lines.push(line);
            }
            seen.last = object;
            seen.deleted = deleted;
        } else if !deleted {
            let name = object["involvedObject"]["name"].as_str().unwrap_or_default().to_owned();
            let id = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let seen = book.pods.entry(name).or_default();
            let mut event = object;
            event["fieldPath"] = event["involvedObject"]["fieldPath"].clone();
            match seen.events.iter_mut().find(|(known, _)| *known == id) {
                Some(known) => known.1 = event,
                None => seen.events.push((id, event)),
            }
        }
        drop(book);
        self.changed.send_replace(());
    }

    fn seen(&self, pod: &str) -> Seen {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.pods.get(pod).cloned().unwrap_or_default()
    }

    async fn wait(&self, pod: &str, until: &str, timeout: Duration) -> Result<()> {
        let timeout = timeout * self.patience;
        let mut changed = self.changed.subscribe();
        let deadline = Instant::now() + timeout;
        loop {
            changed.borrow_and_update();
            if reached(&self.seen(pod), until) {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                bail!("{until} not reached in {timeout:?}");
            }
        }
    }

    async fn create(&self, object: &Value) -> Result<()> {
        let text = object.to_string().replace("\"node1\"", &format!("\"{}\"", self.node.name));
        let mut object: DynamicObject = serde_json::from_str(&text)?;
        object.metadata.namespace = Some(NAMESPACE.to_owned());
        let kind = object.types.as_ref().map(|t| t.kind.clone()).unwrap_or_default();
        let resource = resource("", &kind, &format!("{}s", kind.to_lowercase()));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), NAMESPACE, &resource);
        api.create(&PostParams::default(), &object).await.with_context(|| format!("create the {kind}"))?;
        Ok(())
    }

    async fn patch_node(&self, body: Value) -> Result<()> {
        let nodes: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource("", "Node", "nodes"));
        nodes.patch(&self.node.name, &PatchParams::default(), &Patch::Strategic(body)).await?;
        Ok(())
    }

    /// kubectl with a namespace; `exit` is `None` after `timeout`.
    async fn kubectl(&self, args: &[String], stdin: Option<&str>, timeout: Duration) -> Result<Ran> {
        let mut command = tokio::process::Command::new(&self.kubectl);
        command.arg("--namespace").arg(NAMESPACE).args(args.iter().map(|word| self.here(word)));
        self.environment(&mut command).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start kubectl")?;
        let mut input = child.stdin.take().context("no stdin")?;
        if let Some(text) = stdin {
            input.write_all(text.as_bytes()).await?;
        }
        drop(input);
        let pid = child.id();
        let run = child.wait_with_output();
        tokio::pin!(run);
        let (out, over) = tokio::select! {
            out = &mut run => (out?, false),
            () = tokio::time::sleep(timeout * self.patience) => {
                if let Some(pid) = pid.and_then(|p| i32::try_from(p).ok()) {
                    // Our child, not reaped yet.
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
                (run.await?, true)
            }
        };
        let text = |bytes: &[u8]| self.as_recorded(&String::from_utf8_lossy(bytes));
        Ok(Ran {
            exit: if over { json!("timeout") } else { json!(out.status.code()) },
            stdout: text(&out.stdout),
            stderr: text(&out.stderr),
        })
    }

    async fn log(&self, pod: &str, container: &str) -> Result<String> {
        let (name, previous) = match container.split_once(':') {
            Some((name, _)) => (name, true),
            None => (container, false),
        };
        let uri = format!(
            "/api/v1/namespaces/{NAMESPACE}/pods/{}/log?container={name}{}",
            self.here(pod),
            if previous { "&previous=true" } else { "" }
        );
        let request = http::Request::get(uri).body(Vec::new())?;
        match self.client.request_text(request).await {
            Ok(text) => Ok(self.as_recorded(&text)),
            Err(kube::Error::Api(status)) => Ok(format!(
                "HTTP {code}: {{\n  \"kind\": \"Status\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {{}},\n  \"status\": \"Failure\",\n  \"message\": {message},\n  \"reason\": {reason:?},\n  \"code\": {code}\n}}",
                code = status.code,
                message = Value::String(status.message.clone()),
                reason = status.reason,
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Replays one case; returns its differences and notes.
    ///
    /// # Errors
    /// The case could not be carried out.
    pub async fn replay(&self, case: &Case) -> Result<Verdict> {
        if case.record["pod"].is_null() {
            return self.node_objects(case).await;
        }
        let mut verdict = Verdict::default();
        for object in case.list("setup") {
            self.create(object).await?;
        }
        let first = case.list("actions").first().and_then(|a| a["do"].as_str()).unwrap_or_default();
        if first.starts_with("cordon") {
            self.patch_node(json!({"spec": {"unschedulable": true}})).await?;
        }
        if first.starts_with("taint") {
            let taint = json!([{"key": "example.test/t", "value": "v", "effect": "NoSchedule"}]);
            self.patch_node(json!({"spec": {"taints": taint}})).await?;
        }
        let is_static =
            case.list("actions").iter().any(|a| a["do"].as_str().is_some_and(|d| d.contains("static pods")));
        let mut name = case.name.clone();
        if is_static {
            name = format!("{}-node1", case.record["pod"]["metadata"]["name"].as_str().unwrap_or_default());
        } else {
            self.create(&case.record["pod"]).await?;
        }
        for action in case.list("actions") {
            if let Err(error) = self.act(case, &name, action, &mut verdict).await {
                verdict.wrong.push(format!("action {}: {error:#}", action["do"]));
                break;
            }
        }
        if !case.list("endpoints").is_empty() {
            // Statistics of a container come after a moment.
            self.wait(&name, "ready", Duration::from_secs(30)).await?;
            tokio::time::sleep(Duration::from_secs(12)).await;
            self.endpoints(case, &mut verdict).await?;
            self.clean_up(case, &name, is_static).await;
            return Ok(verdict);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut seen = self.seen(&name);
        // Events are told after the fact.
        for _ in 0..20 {
            let missing = event_differences(&sequences(case, "events", "otherEvents"), &values(&seen));
            if !missing.iter().any(|m| m.starts_with("event: -")) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            seen.events = self.seen(&name).events;
        }
        if let Some(logs) = case.record["log"].as_object() {
            for (container, recorded) in logs {
                let recorded = recorded.as_str().unwrap_or_default();
                let log = match self.log(&name, container).await {
                    Ok(log) => log,
                    Err(error) => format!("error: {error}"),
                };
                // What a log of a removed container says is the runtime's own text.
                if !text_matches(
                    recorded,
                    log.strip_suffix('\n').filter(|_| !recorded.ends_with('\n')).unwrap_or(&log),
                ) && !recorded.starts_with("unable to retrieve")
                {
                    verdict
                        .wrong
                        .push(format!("log {container}:\n   recorded {recorded:?}\n   saw      {log:?}"));
                }
            }
        }
        let mut wrong = Vec::new();
        value_differences("status", &case.record["final"], &seen.last["status"], &mut wrong);
        // Reported in some runs of one recording and not in others.
        wrong.retain(|w| !w.starts_with("status.resources:"));
        if !wrong.is_empty() && is_timing(case, &seen) {
            verdict.notes.append(&mut wrong);
            verdict.timing = true;
        }
        verdict.wrong.append(&mut wrong);
        if let Some(node) = verdict.node.take() {
            verdict.wrong.extend(node.differences(&self.client, case).await?);
        }
        let (disorder, notes) = watch_differences(&sequences(case, "watch", "otherWatch"), &seen.lines);
        verdict.wrong.extend(disorder);
        verdict.notes.extend(notes);
        verdict.wrong.extend(event_differences(&sequences(case, "events", "otherEvents"), &values(&seen)));
        if self.verbose {
            verdict.notes.extend(seen.lines.iter().map(|l| format!("seen {}", brief(l))));
        }
        self.clean_up(case, &name, is_static).await;
        Ok(verdict)
    }

    async fn clean_up(&self, case: &Case, name: &str, is_static: bool) {
        if !is_static {
            let _ = self.pods().delete(name, &DeleteParams::default().grace_period(0)).await;
        }
        for object in case.list("setup") {
            let kind = object["kind"].as_str().unwrap_or_default();
            let resource = resource("", kind, &format!("{}s", kind.to_lowercase()));
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), NAMESPACE, &resource);
            let _ = api
                .delete(object["metadata"]["name"].as_str().unwrap_or_default(), &DeleteParams::default())
                .await;
        }
    }

    async fn act(&self, case: &Case, pod: &str, action: &Value, verdict: &mut Verdict) -> Result<()> {
        let text = |key: &str| action[key].as_str().unwrap_or_default().to_owned();
        let words = |key: &str| -> Vec<String> {
            action[key]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|w| w.as_str())
                .map(str::to_owned)
                .collect()
        };
        let seconds = Duration::from_secs_f64(action["seconds"].as_f64().unwrap_or(0.0));
        let what = text("do");
        match what.as_str() {
            "sleep" => tokio::time::sleep(seconds).await,
            "wait" => self.wait(pod, &text("until"), seconds * 2 + Duration::from_secs(30)).await?,
            "delete" => {
                let seconds = action["gracePeriodSeconds"].as_u64().and_then(|s| u32::try_from(s).ok());
                let how = DeleteParams { grace_period_seconds: seconds, ..DeleteParams::default() };
                self.pods().delete(pod, &how).await?;
            }
            "create" => self.create(&action["object"]).await?,
            "patch" => {
                let how = Patch::Strategic(action["body"].clone());
                match text("subresource").as_str() {
                    "" => self.pods().patch(pod, &PatchParams::default(), &how).await.map(drop),
                    sub => {
                        self.pods().patch_subresource(sub, pod, &PatchParams::default(), &how).await.map(drop)
                    }
                }
                .with_context(|| format!("patch {}", action["body"]))?;
            }
            "patchobj" => self.patch_node(action["body"].clone()).await?,
            "exec" => {
                let mut args = vec![
                    "exec".to_owned(),
                    pod.to_owned(),
                    "-c".to_owned(),
                    text("container"),
                    "--".to_owned(),
                ];
                args.extend(words("command"));
                let ran = self.kubectl(&args, None, Duration::from_secs(30)).await?;
                verdict.compare_run(action, &ran);
            }
            "poll" => {
                let mut args = vec!["exec".to_owned(), pod.to_owned(), "--".to_owned()];
                args.extend(words("command"));
                let deadline = Instant::now() + Duration::from_secs(120);
                while !self
                    .kubectl(&args, None, Duration::from_secs(10))
                    .await?
                    .stdout
                    .contains(&text("untilOutputContains"))
                {
                    ensure!(Instant::now() < deadline, "{} never appeared", action["untilOutputContains"]);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
            "kubectl" => {
                if let Some(stdin) =
                    action["stdin"].as_str().filter(|_| words("args").contains(&"cp".to_owned()))
                {
                    std::fs::write(self.scratch.join("in.txt"), stdin)?;
                }
                std::fs::write(self.scratch.join("in.txt"), "payload\n")?;
                let timeout = if action["exit"] == "timeout" { 4 } else { 40 };
                let ran = self
                    .kubectl(&words("args"), action["stdin"].as_str(), Duration::from_secs(timeout))
                    .await?;
                verdict.compare_run(action, &ran);
            }
            "read" => {
                let places = [PathBuf::from("/run/kubelet-cases").join(text("file")), self.scratch.clone()];
                let read = places.iter().find_map(|dir| std::fs::read_to_string(dir.join(text("file"))).ok());
                let seen = read.unwrap_or_default();
                // The uptime that one of them notes is cut off in the recording.
                let seen: String =
                    seen.lines().map(|l| format!("{}\n", l.split(' ').next().unwrap_or_default())).collect();
                if seen != text("content") {
                    verdict.wrong.push(format!("file {}: {seen:?}", text("file")));
                }
            }
            "stop the kubelet" => {
                self.wait(pod, "ready", Duration::from_secs(60)).await?;
                tokio::time::sleep(seconds).await;
                self.follow_node(case, verdict).await?;
                let host = self.host.clone();
                tokio::task::spawn_blocking(move || crate::stop_host(&host)).await??;
            }
            "start the kubelet" => {
                // The control plane is patient for less than a minute with a node that is silent.
                self.wait(pod, "notready", Duration::from_secs(180)).await?;
                let host = self.host.clone();
                tokio::task::spawn_blocking(move || crate::start_host(&host, &[])).await??;
                self.wait(pod, "phase:Failed|Succeeded", Duration::from_secs(60)).await?;
            }
            "port-forward" => self.forward(action, verdict).await?,
            w if w.starts_with("kubectl exec -it") => self.in_terminal(pod, action, verdict).await?,
            "sigkill" => self.node.kill_main(uid(&self.seen(pod)), &text("container"))?,
            "SIGKILL to the pause process of the sandbox, from the host" => {
                self.node.kill_sandbox(uid(&self.seen(pod)))?
            }
            "cordon the node, then create the pod" => {}
            w if w.starts_with("taint the node") => {}
            "write the manifest into the folder of static pods" => {
                let file = self.scratch.join("static").join(format!("{}.json", case.name));
                std::fs::write(file, case.record["pod"].to_string())?;
            }
            "remove the file" => {
                std::fs::remove_file(self.scratch.join("static").join(format!("{}.json", case.name)))?
            }
            "metadata of the mirror pod" => {
                let seen = self.seen(pod).last;
                let mut wrong = Vec::new();
                for (key, value) in action["metadata"].as_object().into_iter().flatten() {
                    value_differences(&format!("metadata.{key}"), value, &seen["metadata"][key], &mut wrong);
                }
                for (key, value) in action["spec"].as_object().into_iter().flatten() {
                    value_differences(&format!("spec.{key}"), value, &seen["spec"][key], &mut wrong);
                }
                verdict.wrong.append(&mut wrong);
            }
            "watch of the second pod" => {
                let second = self.seen(&format!("{pod}-2"));
                let mut wrong = Vec::new();
                value_differences("second", &action["final"], &second.last["status"], &mut wrong);
                let of = |key: &str| vec![action[key].as_array().cloned().unwrap_or_default()];
                wrong.extend(event_differences(&of("events"), &values(&second)));
                wrong.extend(watch_differences(&of("watch"), &second.lines).0);
                verdict.wrong.append(&mut wrong);
            }
            other => bail!("not replayed here: {other}"),
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Ran {
    exit: Value,
    stdout: String,
    stderr: String,
}

/// What came of a case.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Differences that count.
    pub wrong: Vec<String>,
    /// Differences that are a matter of timing.
    pub notes: Vec<String>,
    /// The final state differs as two recordings of a crash loop may.
    pub timing: bool,
    /// What is seen of the Node, when that counts.
    pub(super) node: Option<SeenNode>,
}

impl Verdict {
    fn compare_run(&mut self, action: &Value, ran: &Ran) {
        let what = if action["args"].is_null() { &action["command"] } else { &action["args"] };
        if action["exit"] != ran.exit {
            self.wrong
                .push(format!("{what}: exit {}, recorded {}: {}", ran.exit, action["exit"], ran.stderr));
        }
        for (stream, seen) in [("stdout", &ran.stdout), ("stderr", &ran.stderr)] {
            let recorded = action[stream].as_str().unwrap_or_default();
            if !text_matches(recorded, seen) {
                self.wrong.push(format!("{what}: {stream}\n   recorded {recorded:?}\n   saw      {seen:?}"));
            }
        }
    }
}

fn resource(group: &str, kind: &str, plural: &str) -> ApiResource {
    let mut resource = ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk(group, "v1", kind));
    resource.plural = plural.to_owned();
    resource
}

fn uid(seen: &Seen) -> &str {
    seen.last["metadata"]["uid"].as_str().unwrap_or_default()
}

fn values(seen: &Seen) -> Vec<Value> {
    seen.events.iter().map(|(_, e)| e.clone()).collect()
}

/// The recorded sequence and those of other runs.
fn sequences(case: &Case, key: &str, others: &str) -> Vec<Vec<Value>> {
    let mut all = vec![case.list(key).to_vec()];
    all.extend(case.list(others).iter().filter_map(|s| s.as_array().cloned()));
    all
}

/// A container that crashes again and again is somewhere in its loop when a recording by the clock ends.
fn is_timing(case: &Case, seen: &Seen) -> bool {
    let by_the_clock = case.list("actions").iter().all(|a| a["do"] == "sleep");
    let loops = case.list("events").iter().any(|e| e["reason"] == "BackOff" && e["type"] == "Warning");
    let strip = |line: &Value| {
        let mut text = brief(line);
        for seconds in ["10s", "20s", "40s", "1m20s"] {
            text = text.replace(&format!("back-off {seconds} "), "back-off ");
        }
        let text: Vec<&str> = text.split('#').collect();
        let first = text.first().copied().unwrap_or_default().to_owned();
        let rest: Vec<String> = text
            .iter()
            .skip(1)
            .map(|t| t.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned())
            .collect();
        first + &rest.join("#")
    };
    let last = strip(&summary(&seen.last));
    let known = sequences(case, "watch", "otherWatch");
    // In another run it ended like this.
    let ended = summary(&seen.last);
    let mut others = case.list("otherWatch").iter().filter_map(|s| s.as_array().and_then(|s| s.last()));
    if others.any(|line| super::compare::same_line(line, &ended)) {
        return true;
    }
    by_the_clock && loops && known.iter().flatten().any(|line| text_matches(&strip(line), &last))
}

fn reached(seen: &Seen, until: &str) -> bool {
    let status = &seen.last["status"];
    let condition = |kind: &str, value: &str| {
        let mut all = status["conditions"].as_array().into_iter().flatten();
        all.any(|c| c["type"] == kind && c["status"] == value)
    };
    let containers = || {
        let keys = ["initContainerStatuses", "containerStatuses"];
        keys.into_iter().flat_map(|key| status[key].as_array().into_iter().flatten())
    };
    match until.split_once(':').unwrap_or((until, "")) {
        ("deleted", _) => seen.deleted,
        ("ready", _) => condition("Ready", "True"),
        ("notready", _) => condition("Ready", "False"),
        ("phase", phases) => phases.split('|').any(|p| status["phase"] == p),
        ("restarts", n) => containers().any(|c| c["restartCount"].as_u64() >= n.parse().ok()),
        ("running", name) => containers().any(|c| c["name"] == name && !c["state"]["running"].is_null()),
        ("condition", what) => what.split_once('=').is_some_and(|(k, v)| condition(k, v)),
        ("eventmsg", text) => {
            seen.events.iter().any(|(_, e)| e["message"].as_str().is_some_and(|m| m.contains(text)))
        }
        _ => false,
    }
}

/// Replays cases, several at once; prints a line for each and returns the names of those that differ.
///
/// # Errors
/// None but those of a task that panicked.
pub async fn run_all(runner: &Arc<Runner>, cases: Vec<Case>, jobs: usize) -> Result<Vec<String>> {
    let (alone, together): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(Case::is_exclusive);
    let mut failed = Vec::new();
    let mut passed = 0;
    for (cases, jobs) in [(together, jobs), (alone, 1)] {
        let mut running = futures::stream::iter(cases)
            .map(|case| {
                let runner = runner.clone();
                async move {
                    let verdict = tokio::spawn({
                        let case = case.clone();
                        async move { runner.replay(&case).await }
                    });
                    (case, verdict.await)
                }
            })
            .buffer_unordered(jobs.max(1));
        while let Some((case, verdict)) = running.next().await {
            let verdict = match verdict? {
                Ok(verdict) => verdict,
                Err(error) => Verdict { wrong: vec![format!("{error:#}")], ..Verdict::default() },
            };
            let word = match (verdict.wrong.is_empty(), verdict.timing) {
                (false, _) => "FAIL",
                (true, true) => "pass (but for timing)",
                (true, false) => "pass",
            };
            println!("{word} {}/{}", case.area, case.name);
            for line in &verdict.wrong {
                println!("  {line}");
            }
            if runner.verbose || !verdict.wrong.is_empty() {
                for line in &verdict.notes {
                    println!("    ~ {line}");
                }
            }
            if verdict.wrong.is_empty() {
                passed += 1;
            } else {
                failed.push(case.name.clone());
            }
        }
    }
    println!("{passed} pass, {} differ: {}", failed.len(), failed.join(" "));
    Ok(failed)
}
