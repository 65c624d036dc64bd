//! Recordings that are more than one pod: terminals, forwarded ports, the Node, the kubelet's endpoints.

use super::Case;
use super::compare::{text_matches, value_differences};
use super::run::{Runner, Verdict};
use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;

/// What differs between machines, runtimes and versions, by the end of its path.
const OF_THE_MACHINE: [&str; 9] = [
    ".metadata.managedFields",
    ".status.capacity.memory",
    ".status.capacity.ephemeral-storage",
    ".status.allocatable.memory",
    ".status.allocatable.ephemeral-storage",
    ".status.nodeInfo.containerRuntimeVersion",
    ".status.nodeInfo.kubeletVersion",
    ".status.nodeInfo.osImage",
    ".status.images",
];

/// Words for sh, each as it is.
fn quoted(words: &[String]) -> String {
    let quote = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What a client prints but for its log: lines that begin with a letter for the severity and the date.
fn without_log(output: &str) -> String {
    let is_log = |line: &&str| {
        let head = line.as_bytes();
        head.len() > 5
            && b"IWEF".contains(&head[0])
            && head[1..5].iter().all(u8::is_ascii_digit)
            && head[5] == b' '
    };
    output.split_inclusive('\n').filter(|line| !is_log(line)).collect()
}

impl Runner {
    /// kubectl in a terminal of script(1).
    pub(super) async fn in_terminal(&self, pod: &str, action: &Value, verdict: &mut Verdict) -> Result<()> {
        let mut line =
            vec![self.kubectl_path().display().to_string(), "--namespace".into(), super::NAMESPACE.into()];
        line.extend(words(&action["args"]).iter().map(|word| word.replace("$POD", pod)));
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &quoted(&line), "/dev/null"]);
        self.environment(&mut script).env("TERM", "xterm").env("SHELL", "/bin/sh");
        script.stdin(Stdio::null()).kill_on_drop(true);
        let run = tokio::time::timeout(Duration::from_secs(60), script.output());
        let out = run.await.context("kubectl does not end")?.context("start script")?;
        let output = String::from_utf8_lossy(&out.stdout).into_owned();
        if action["exit"].as_i64() != out.status.code().map(i64::from) {
            verdict.wrong.push(format!("exit {:?}, recorded {}", out.status.code(), action["exit"]));
        }
        // script(1), whose own input is at its end, writes a zero byte at some time; the terminal echoes it. And it may be
        // that the process has ended by then, so that kubectl's own log tells that it could not send it.
        let (recorded, output) = (
            action["output"].as_str().unwrap_or_default().replace("^@", ""),
            without_log(&output.replace("^@", "")),
        );
        if !text_matches(&recorded, &output) {
            verdict.wrong.push(format!("terminal:\n   recorded {recorded:?}\n   saw      {output:?}"));
        }
        Ok(())
    }

    /// kubectl port-forward with a client.
    pub(super) async fn forward(&self, action: &Value, verdict: &mut Verdict) -> Result<()> {
        for run in action["runs"].as_array().into_iter().flatten() {
            // The port of the recording may be in use here.
            let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let here = |text: &str| text.replace("18080", &port.to_string());
            let path = self.scratch_dir().join(format!("forward-{port}"));
            let file = std::fs::File::create(&path)?;
            let mut kubectl = Command::new(self.kubectl_path());
            kubectl
                .arg("--namespace")
                .arg(super::NAMESPACE)
                .args(words(&run["args"]).iter().map(|w| here(w)));
            self.environment(&mut kubectl).stdin(Stdio::null()).kill_on_drop(true);
            kubectl.stdout(file.try_clone()?).stderr(file);
            let mut child = kubectl.spawn().context("start kubectl")?;
            let deadline = Instant::now() + Duration::from_secs(20);
            while !std::fs::read_to_string(&path)?.contains("[::1]") {
                ensure!(
                    Instant::now() < deadline,
                    "nothing is forwarded: {}",
                    std::fs::read_to_string(&path)?
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--max-time", "15"]);
            let client =
                curl.arg(format!("http://127.0.0.1:{port}/hostname")).output().await.context("start curl")?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let _ = child.kill().await;
            let output = std::fs::read_to_string(&path)?;
            let _ = std::fs::remove_file(&path);
            let what = &run["args"];
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
            let of = &run["client"];
            let seen = [
                ("curl exit", client.status.code().map(|c| c.to_string()).unwrap_or_default()),
                ("body", text(&client.stdout)),
                ("error", text(&client.stderr)),
            ];
            for (key, seen) in seen {
                let recorded = of[key].as_str().map_or_else(|| of[key].to_string(), str::to_owned);
                if recorded != seen {
                    verdict.wrong.push(format!("{what}: {key} {seen:?}, recorded {recorded:?}"));
                }
            }
            let recorded = here(run["output"].as_str().unwrap_or_default());
            if !text_matches(&recorded, &output) {
                verdict.wrong.push(format!("{what}:\n   recorded {recorded:?}\n   saw      {output:?}"));
            }
        }
        Ok(())
    }

    async fn get(&self, path: &str) -> Result<(u16, Option<String>, String)> {
        let request = http::Request::get(path).body(kube::client::Body::empty())?;
        let response = self.client().send(request).await?;
        let code = response.status().as_u16();
        let kind = response.headers().get(http::header::CONTENT_TYPE);
        let kind = kind.and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body = response.into_body().collect().await?.to_bytes();
        Ok((code, kind, self.as_recorded(&String::from_utf8_lossy(&body))))
    }

    /// The Node and its Lease.
    pub(super) async fn node_objects(&self, case: &Case) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        let name = self.node_name();
        for (what, path) in [
            ("node", format!("/api/v1/nodes/{name}")),
            ("lease", format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}")),
        ] {
            let (_, _, body) = self.get(&path).await?;
            let mut seen: Value = serde_json::from_str(&body).context("parse the answer")?;
            // This cluster has two families.
            for list in ["/spec/podCIDRs", "/status/addresses"] {
                if let Some(items) = seen.pointer_mut(list).and_then(Value::as_array_mut) {
                    items.retain(|item| {
                        let text = item["address"].as_str().or(item.as_str());
                        !text.is_some_and(|text| text.contains(':'))
                    });
                }
            }
            let mut wrong = Vec::new();
            value_differences("", &case.record[what], &seen, &mut wrong);
            wrong.retain(|w| !OF_THE_MACHINE.iter().any(|path| w.starts_with(path)));
            verdict.wrong.extend(wrong.into_iter().map(|w| format!("{what}{w}")));
        }
        Ok(verdict)
    }

    /// What the kubelet of the pod's node answers.
    pub(super) async fn endpoints(&self, case: &Case, verdict: &mut Verdict) -> Result<()> {
        let pod = &case.name;
        for recorded in case.list("endpoints") {
            let path = recorded["path"].as_str().unwrap_or_default();
            let (code, kind, body) =
                self.get(&format!("/api/v1/nodes/{}/proxy{path}", self.node_name())).await?;
            let mut wrong = Vec::new();
            if recorded["code"].as_u64() != Some(code.into()) {
                wrong.push(format!("code {code}, recorded {}", recorded["code"]));
            }
            if recorded["contentType"].as_str() != kind.as_deref() {
                wrong.push(format!("content type {kind:?}, recorded {}", recorded["contentType"]));
            }
            if let Some(text) = recorded["body"].as_str().filter(|text| *text != body) {
                wrong.push(format!("body {body:?}, recorded {text:?}"));
            }
            let parsed: Value = serde_json::from_str(&body).unwrap_or_default();
            list_differences(recorded, &parsed, &mut wrong);
            if !recorded["shape"].is_null() {
                shape_differences("node", &recorded["shape"]["node"], &parsed["node"], &mut wrong);
                let own = parsed["pods"].as_array().into_iter().flatten();
                let own = own
                    .into_iter()
                    .find(|p| p["podRef"]["name"] == pod.as_str())
                    .cloned()
                    .unwrap_or_default();
                shape_differences("pod", &recorded["shape"]["pod"], &own, &mut wrong);
            }
            if let Some(keys) = recorded["keys"].as_array() {
                let seen = parsed["kubeletconfig"].as_object().cloned().unwrap_or_default();
                let missing: Vec<_> =
                    keys.iter().filter(|k| !seen.contains_key(k.as_str().unwrap_or_default())).collect();
                if !missing.is_empty() {
                    wrong.push(format!("missing keys {missing:?}"));
                }
            }
            family_differences(recorded, &body, &mut wrong);
            verdict.wrong.extend(wrong.into_iter().map(|w| format!("{path}: {w}")));
        }
        Ok(())
    }
}

fn list_differences(recorded: &Value, seen: &Value, wrong: &mut Vec<String>) {
    let Some(kind) = recorded["kind"].as_str() else { return };
    if seen["kind"] != kind {
        wrong.push(format!("kind {}, recorded {kind}", seen["kind"]));
    }
    let item = &seen["items"][0];
    let keys: Vec<&String> = item.as_object().into_iter().flat_map(|o| o.keys()).collect();
    let missing: Vec<String> =
        words(&recorded["itemKeys"]).into_iter().filter(|k| !keys.contains(&k)).collect();
    if !missing.is_empty() {
        wrong.push(format!("items have {keys:?}, not {missing:?}"));
    }
    let has_status = item["status"].as_object().is_some_and(|s| !s.is_empty());
    if recorded["statusIncluded"] == true && !has_status {
        wrong.push("items have no status".into());
    }
}

/// Keys and kinds of values; a list is like its first item.
fn shape_differences(at: &str, recorded: &Value, seen: &Value, wrong: &mut Vec<String>) {
    match recorded {
        Value::Object(fields) => {
            for (key, value) in fields {
                shape_differences(&format!("{at}.{key}"), value, &seen[key.as_str()], wrong);
            }
        }
        Value::Array(items) => {
            if let Some(item) = items.first() {
                shape_differences(&format!("{at}[]"), item, &seen[0], wrong);
            }
        }
        Value::String(kind) => {
            let same = match kind.as_str() {
                "str" => seen.is_string(),
                "int" | "float" => seen.is_number(),
                _ => true,
            };
            if !same {
                wrong.push(format!("{at} is {seen}, recorded {kind}"));
            }
        }
        _ => {}
    }
}

/// Metric families: kinds and label names. A family without samples shows its labels only when it has some.
fn family_differences(recorded: &Value, text: &str, wrong: &mut Vec<String>) {
    let Some(families) = recorded["families"].as_object() else { return };
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut labels: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            if let Some((name, kind)) = rest.split_once(' ') {
                kinds.insert(name, kind);
            }
        } else if !line.starts_with('#') {
            let Some((name, rest)) = line.split_once('{') else { continue };
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end).filter(|base| kinds.contains_key(base)));
            let names =
                rest.split('}').next().unwrap_or_default().split(',').filter_map(|l| l.split_once('='));
            let names = names.map(|(name, _)| name.trim().to_owned()).filter(|n| n != "le");
            labels.entry(base.unwrap_or(name)).or_default().extend(names);
        }
    }
    let mut missing = Vec::new();
    for (name, family) in families {
        match kinds.get(name.as_str()) {
            None => missing.push(name.as_str()),
            Some(kind) if family["type"] != **kind => wrong.push(format!("{name} is a {kind}")),
            Some(_) => {
                let recorded: BTreeSet<String> = words(&family["labels"]).into_iter().collect();
                if let Some(seen) =
                    labels.get(name.as_str()).filter(|seen| **seen != recorded && !recorded.is_empty())
                {
                    wrong.push(format!("{name} has labels {seen:?}, recorded {recorded:?}"));
                }
            }
        }
    }
    if !missing.is_empty() {
        wrong.push(format!("missing families {missing:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_log_is_not_what_it_prints() {
        let output = "xterm\r\nE1126 16:28:55.191666   27754 v2.go:105] \"Copying stdin failed\"\r\nE2e\r\n";
        assert_eq!(without_log(output), "xterm\r\nE2e\r\n");
        assert_eq!(without_log("I\nno end"), "I\nno end");
    }
}
