//! Custom resources as a client sees them, from their definition to its end.

use anyhow::{Context, Result, ensure};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use kelp_apiserver::{ApiServer, Config, TlsFiles, UserInfo};
use kelp_store::{EmbeddedStore, StoreOptions};
use kube::Client;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const FOOS: &str = "/apis/example.com/v1/namespaces/default/foos";

struct Server {
    client: Client,
    store: Arc<EmbeddedStore>,
    shutdown: CancellationToken,
}

impl Server {
    async fn begin(directory: &Path) -> Result<Self> {
        let tls = TlsFiles { certificate: Vec::new(), key: Vec::new(), client_ca: Vec::new() };
        let config = Config::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), tls);
        let store = Arc::new(EmbeddedStore::open(directory, StoreOptions::default())?);
        let shutdown = CancellationToken::new();
        let server = ApiServer::new(config, store.clone(), shutdown.clone())?;
        server.bootstrap().await?;
        let client = Client::new(server.client_service(UserInfo::admin("admin")), "default");
        Ok(Server { client, store, shutdown })
    }

    async fn end(self) -> Result<()> {
        self.shutdown.cancel();
        self.store.close().await;
        Ok(())
    }

    async fn call(&self, method: &str, path: &str, media: &str, body: Value) -> Result<Value, kube::Error> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request =
            http::Request::builder().method(method).uri(path).header("Content-Type", media).body(body);
        self.client.request(request.map_err(kube::Error::HttpError)?).await
    }

    async fn get(&self, path: &str) -> Result<Value, kube::Error> {
        self.call("GET", path, JSON, Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value, kube::Error> {
        self.call("POST", path, JSON, body).await
    }

    /// Lines of a watch.
    async fn watch(&self, path: &str) -> Result<impl futures::Stream<Item = Result<Value>> + Unpin + use<>> {
        let request = http::Request::builder().uri(path).body(Vec::new())?;
        let lines = self.client.request_stream(request).await?.lines();
        Ok(lines.map(|line| Ok(serde_json::from_str(&line?)?)))
    }

    /// Waits until a definition says this of itself.
    async fn until(&self, name: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let watch = self.watch(&format!("{CRDS}?watch=1&fieldSelector=metadata.name={name}")).await?;
        let mut objects = watch.try_filter_map(|mut event| {
            let object = event["object"].take();
            std::future::ready(Ok(is(&object).then_some(object)))
        });
        tokio::time::timeout(Duration::from_secs(30), objects.next()).await?.context("the watch ended")?
    }
}

fn condition<'v>(definition: &'v Value, kind: &str) -> &'v Value {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|c| c["type"] == kind).unwrap_or(&Value::Null)
}

fn is_established(definition: &Value) -> bool {
    condition(definition, "Established")["status"] == "True"
}

fn definition(plural: &str, kind: &str) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": format!("{plural}.example.com")},
    "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": plural, "kind": kind},
        "versions": [
            {"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "n": {"type": "integer", "default": 3}, "s": {"type": "string"}}}}}}},
            {"name": "v2", "served": true, "storage": false, "deprecated": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "n": {"type": "integer"}, "extra": {"type": "string", "default": "e"}}}}}}},
        ]}})
}

fn foo(name: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": {"s": "x", "gone": 1}})
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_before_and_after_their_definition_and_a_restart() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = Server::begin(directory.path()).await?;
    let early = server.post(FOOS, foo("a")).await;
    ensure!(early.is_err(), "created without a definition: {early:?}");
    server.post(CRDS, definition("foos", "Foo")).await?;
    server.until("foos.example.com", is_established).await?;
    // Who saw that it is established can use it at once.
    let made = server.post(FOOS, foo("a")).await?;
    assert_eq!(made["spec"], json!({"n": 3, "s": "x"}));
    let groups = server.get("/apis").await?;
    let group = groups["groups"].as_array().into_iter().flatten().find(|g| g["name"] == "example.com");
    assert_eq!(group.context("group")?["preferredVersion"]["version"], "v2");
    server.end().await?;

    let server = Server::begin(directory.path()).await?;
    let read = server.get(&format!("{FOOS}/a")).await?;
    assert_eq!(read["spec"], made["spec"]);
    // The same object in the other version: its own defaults, none of the fields that it does not know.
    let other = server.get("/apis/example.com/v2/namespaces/default/foos/a").await?;
    assert_eq!(
        (&other["apiVersion"], &other["spec"]),
        (&json!("example.com/v2"), &json!({"n": 3, "extra": "e"}))
    );
    assert_eq!(other["metadata"]["resourceVersion"], read["metadata"]["resourceVersion"]);
    server.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_goes_with_its_objects_and_ends_their_watches() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = Server::begin(directory.path()).await?;
    server.post(CRDS, definition("foos", "Foo")).await?;
    server.until("foos.example.com", is_established).await?;
    server.post(FOOS, foo("a")).await?;
    let mut held = foo("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.post(FOOS, held).await?;
    let mut watch = server.watch(&format!("{FOOS}?watch=1")).await?;
    let going = server.call("DELETE", &format!("{CRDS}/foos.example.com"), JSON, Value::Null).await?;
    assert_eq!(condition(&going, "Terminating")["reason"], "InstanceDeletionPending");
    assert_eq!(going["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    // The finalizer of an object holds the definition.
    server
        .until("foos.example.com", |d| condition(d, "Terminating")["reason"] == "InstanceDeletionInProgress")
        .await?;
    let late = server.post(FOOS, foo("late")).await;
    ensure!(matches!(&late, Err(kube::Error::Api(status)) if status.code == 403), "{late:?}");
    let unhold = json!({"metadata": {"finalizers": null}});
    let mut seen = Vec::new();
    while let Some(event) = tokio::time::timeout(Duration::from_secs(30), watch.next()).await? {
        let event = event?;
        let (kind, name) = (event["type"].clone(), event["object"]["metadata"]["name"].clone());
        if kind == "MODIFIED" && name == "held" {
            server.call("PATCH", &format!("{FOOS}/held"), MERGE, unhold.clone()).await?;
        }
        seen.push((kind, name));
    }
    for name in ["a", "held"] {
        ensure!(seen.contains(&(json!("DELETED"), json!(name))), "{name} was not seen to go: {seen:?}");
    }
    // The watch ended because nothing is served there any more.
    let after = server.get(FOOS).await;
    ensure!(matches!(&after, Err(kube::Error::Api(status)) if status.code == 404), "{after:?}");
    server.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_given_once_and_free_when_their_holder_goes() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = Server::begin(directory.path()).await?;
    server.post(CRDS, definition("foos", "Foo")).await?;
    server.until("foos.example.com", is_established).await?;
    server.post(CRDS, definition("others", "Foo")).await?;
    let refused =
        server.until("others.example.com", |d| condition(d, "NamesAccepted")["status"] == "False").await?;
    assert_eq!(condition(&refused, "NamesAccepted")["reason"], "ListKindConflict");
    assert_eq!(condition(&refused, "Established")["reason"], "NotAccepted");
    server.call("DELETE", &format!("{CRDS}/foos.example.com"), JSON, Value::Null).await?;
    let given = server.until("others.example.com", is_established).await?;
    assert_eq!(given["status"]["acceptedNames"]["kind"], "Foo");
    server.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_definition_is_served_in_its_new_form() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = Server::begin(directory.path()).await?;
    server.post(CRDS, definition("foos", "Foo")).await?;
    server.until("foos.example.com", is_established).await?;
    server.post(FOOS, foo("a")).await?;
    let mut watch = server.watch(&format!("{FOOS}?watch=1")).await?;
    let mut versions = definition("foos", "Foo")["spec"]["versions"].take();
    versions[1]["served"] = json!(false);
    server
        .call("PATCH", &format!("{CRDS}/foos.example.com"), MERGE, json!({"spec": {"versions": versions}}))
        .await?;
    // Watches of the old form end; their clients come again.
    while let Some(event) = tokio::time::timeout(Duration::from_secs(30), watch.next()).await? {
        event?;
    }
    let gone = server.get("/apis/example.com/v2/namespaces/default/foos").await;
    ensure!(matches!(&gone, Err(kube::Error::Api(status)) if status.code == 404), "{gone:?}");
    assert_eq!(server.get(FOOS).await?["items"][0]["metadata"]["name"], "a");
    server.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_a_mebibyte_is_served() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = Server::begin(directory.path()).await?;
    let mut big = definition("foos", "Foo");
    let properties: serde_json::Map<String, Value> = (0..9_000)
        .map(|i| (format!("f{i}"), json!({"type": "string", "description": "d".repeat(60), "maxLength": 5})))
        .collect();
    let spec = &mut big["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["properties"] = Value::Object(properties);
    ensure!(big.to_string().len() > 1 << 20, "{} bytes", big.to_string().len());
    server.post(CRDS, big).await?;
    server.until("foos.example.com", is_established).await?;
    let wrong = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"},
        "spec": {"f8999": "too long"}});
    let answer = server.post(FOOS, wrong).await;
    ensure!(matches!(&answer, Err(kube::Error::Api(status)) if status.code == 422), "{answer:?}");
    server.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_evaluated_and_one_that_explodes_is_an_error() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = Server::begin(directory.path()).await?;
    let expensive = "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c >= 0)))";
    let mut ruled = definition("foos", "Foo");
    ruled["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({"type": "object",
    "properties": {"n": {"type": "integer"}, "list": {"type": "array", "items": {"type": "integer"}}},
    "x-kubernetes-validations": [
        {"rule": "!has(self.list) || size(self.list) < 9 || (EXPENSIVE)".replace("EXPENSIVE", expensive)},
        {"rule": "self.n >= oldSelf.n", "messageExpression": "'%d is less than %d'.format([self.n, oldSelf.n])"},
    ]});
    server.post(CRDS, ruled).await?;
    server.until("foos.example.com", is_established).await?;
    let foo = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": spec});
    server.post(FOOS, foo(json!({"n": 3, "list": [1]}))).await?;
    let refused = |answer: Result<Value, kube::Error>, with: &str| match answer {
        Err(kube::Error::Api(status)) if status.code == 422 && status.message.contains(with) => Ok(()),
        other => anyhow::bail!("{other:?}"),
    };
    let path = format!("{FOOS}/a");
    let less = server.call("PATCH", &path, MERGE, json!({"spec": {"n": 2}})).await;
    refused(less, "spec: Invalid value: 2 is less than 3")?;
    server.call("PATCH", &path, MERGE, json!({"spec": {"n": 4}})).await?;
    let list: Vec<u32> = (0..10_000).collect();
    let explodes = server.call("PATCH", &path, MERGE, json!({"spec": {"list": list}})).await;
    refused(explodes, "actual cost limit exceeded")?;
    server.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_describe_what_is_defined() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = Server::begin(directory.path()).await?;
    let hash = async |name: &str| -> Result<Value> {
        Ok(server.get("/openapi/v3").await?["paths"][name]["serverRelativeURL"].take())
    };
    ensure!(hash("apis/example.com/v1").await?.is_null());
    let apps = hash("apis/apps/v1").await?;
    let mut foos = definition("foos", "Foo");
    foos["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["either"] =
        json!({"x-kubernetes-int-or-string": true, "description": "a number or a name"});
    foos["spec"]["versions"][0]["subresources"] = json!({"status": {}});
    server.post(CRDS, foos).await?;
    server.until("foos.example.com", is_established).await?;
    assert_eq!(hash("apis/apps/v1").await?, apps, "no built-in document changes");
    let first = hash("apis/example.com/v1").await?;
    let document = server.get(first.as_str().context("no document")?).await?;
    let foo = &document["components"]["schemas"]["com.example.v1.Foo"];
    assert_eq!(
        foo["x-kubernetes-group-version-kind"],
        json!([{"group": "example.com", "kind": "Foo", "version": "v1"}])
    );
    let spec = &foo["properties"]["spec"]["properties"];
    assert_eq!(spec["n"], json!({"type": "integer", "default": 3}));
    assert_eq!(spec["either"]["anyOf"], json!([{"type": "integer"}, {"type": "string"}]));
    let meta = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    assert_eq!(foo["properties"]["metadata"]["allOf"], json!([{"$ref": meta}]));
    let path = &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/foos/{name}/status"];
    assert_eq!(path["get"]["operationId"], "readExampleComV1NamespacedFooStatus");
    assert_eq!(document["info"]["title"], "Kubernetes CRD Swagger");

    // v2 has one document for all; what it cannot say is left out.
    let v2 = server.get("/openapi/v2").await?;
    let foo = &v2["definitions"]["com.example.v1.Foo"]["properties"]["spec"]["properties"];
    assert_eq!(foo["n"], json!({"type": "integer"}));
    assert_eq!(
        foo["either"],
        json!({"x-kubernetes-int-or-string": true, "description": "a number or a name"})
    );
    assert_eq!(v2["definitions"]["com.example.v1.FooList"]["required"], json!(["items"]));

    let mut versions = definition("foos", "Foo")["spec"]["versions"].take();
    versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["added"] =
        json!({"type": "boolean"});
    let patch = json!({"spec": {"versions": versions}});
    server.call("PATCH", &format!("{CRDS}/foos.example.com"), MERGE, patch).await?;
    let second = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let now = hash("apis/example.com/v1").await?;
            if now != first {
                return anyhow::Ok(now);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let second = second.await??;
    let document = server.get(second.as_str().context("no document")?).await?;
    let spec = &document["components"]["schemas"]["com.example.v1.Foo"]["properties"]["spec"]["properties"];
    assert_eq!(spec["added"], json!({"type": "boolean"}));
    let v2 = server.get("/openapi/v2").await?;
    assert_eq!(
        v2["definitions"]["com.example.v1.Foo"]["properties"]["spec"]["properties"]["added"],
        json!({"type": "boolean"})
    );
    server.end().await
}
