//! Every kind of `objects/cluster.yaml` from creation to deletion, as a client sees it.

use anyhow::{Context, Result, ensure};
use kelp_apiserver::{ApiServer, Config, TlsFiles, UserInfo};
use kelp_store::{EmbeddedStore, StoreOptions};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

async fn call(
    client: &Client,
    method: &str,
    path: &str,
    media: &str,
    body: &Value,
) -> Result<Value, kube::Error> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = http::Request::builder().method(method).uri(path).header("Content-Type", media).body(body);
    client.request(request.map_err(kube::Error::HttpError)?).await
}

/// What of `want` is missing or different in `got`.
fn missing(want: &Value, got: &Value, path: &str, out: &mut Vec<String>) {
    match (want, got) {
        (Value::Object(w), Value::Object(g)) => {
            for (key, value) in w {
                missing(value, g.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"), out);
            }
        }
        (Value::Array(w), Value::Array(g)) if w.len() == g.len() => {
            for (i, (w, g)) in w.iter().zip(g).enumerate() {
                missing(w, g, &format!("{path}[{i}]"), out);
            }
        }
        _ if want == got => {}
        _ => out.push(format!("{path}: sent {want}, got {got}")),
    }
}

/// Plural names by apiVersion and kind, from discovery.
async fn resources(client: &Client, api_version: &str) -> Result<Vec<(String, String, bool)>> {
    let list = call(client, "GET", &format!("/apis/{api_version}"), "application/json", &Value::Null).await?;
    let resources = list["resources"].as_array().context("resources")?;
    let text = |r: &Value, field: &str| r[field].as_str().unwrap_or_default().to_owned();
    Ok(resources.iter().map(|r| (text(r, "kind"), text(r, "name"), r["namespaced"] == true)).collect())
}

async fn round_trip(client: &Client, object: &Value) -> Result<()> {
    const JSON: &str = "application/json";
    let (api_version, kind) = (object["apiVersion"].as_str().context("apiVersion")?, &object["kind"]);
    let known = resources(client, api_version).await?;
    let (_, plural, namespaced) =
        known.iter().find(|(k, plural, _)| *kind == **k && !plural.contains('/')).context("in discovery")?;
    let place = if *namespaced { "/namespaces/default" } else { "" };
    let all = format!("/apis/{api_version}{place}/{plural}");
    let one = format!("{all}/{}", object["metadata"]["name"].as_str().context("name")?);
    let strict = format!("{all}?fieldValidation=Strict");
    let created = call(client, "POST", &strict, JSON, object).await.context("create")?;
    let mut wrong = Vec::new();
    missing(object, &created, "", &mut wrong);
    ensure!(wrong.is_empty(), "{wrong:?}");
    let read = call(client, "GET", &one, JSON, &Value::Null).await.context("get")?;
    ensure!(read == created, "got {read}\ncreated {created}");
    let list = call(client, "GET", &all, JSON, &Value::Null).await.context("list")?;
    ensure!(
        list["items"].to_string().contains(created["metadata"]["uid"].as_str().context("uid")?),
        "{list}"
    );
    let same = call(client, "PUT", &one, JSON, &read).await.context("update")?;
    ensure!(same == read, "an update without a change changed {read}\nto {same}");
    let patch = json!({"metadata": {"labels": {"patched": "yes"}}});
    let patched =
        call(client, "PATCH", &one, "application/merge-patch+json", &patch).await.context("patch")?;
    ensure!(patched["metadata"]["labels"]["patched"] == "yes", "{patched}");
    ensure!(patched.get("spec") == read.get("spec"), "{patched}");
    let table = http::Request::get(&all).header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table: Value = client.request(table.body(Vec::new())?).await.context("table")?;
    let width = table["columnDefinitions"].as_array().map(Vec::len);
    for row in table["rows"].as_array().context("rows")? {
        ensure!(row["cells"].as_array().map(Vec::len) == width, "{table}");
    }
    call(client, "DELETE", &one, JSON, &Value::Null).await.context("delete")?;
    let gone = call(client, "GET", &one, JSON, &Value::Null).await;
    ensure!(matches!(&gone, Err(kube::Error::Api(e)) if e.code == 404), "{gone:?}");
    Ok(())
}

#[tokio::test]
async fn every_kind_there_and_back() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let tls = TlsFiles { certificate: Vec::new(), key: Vec::new(), client_ca: Vec::new() };
    let config = Config::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), tls);
    let store = Arc::new(EmbeddedStore::open(directory.path(), StoreOptions::default())?);
    let shutdown = CancellationToken::new();
    let server = ApiServer::new(config, store.clone(), shutdown.clone())?;
    server.bootstrap().await?;
    let client = Client::new(server.client_service(UserInfo::admin("admin")), "default");
    let mut kinds = 0;
    let mut failures = Vec::new();
    for document in serde_norway::Deserializer::from_str(include_str!("objects/cluster.yaml")) {
        let object = Value::deserialize(document)?;
        if let Err(error) = round_trip(&client, &object).await {
            failures.push(format!("{}: {error:#}", object["kind"]));
        }
        kinds += 1;
    }
    ensure!(failures.is_empty(), "{} of {kinds}:\n{}", failures.len(), failures.join("\n"));
    ensure!(kinds > 25, "{kinds}");
    shutdown.cancel();
    store.close().await;
    Ok(())
}
