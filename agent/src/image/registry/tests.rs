//! Pulls from Debian's docker-registry, with TLS and a password, and from a registry of our own that misbehaves.

use super::*;
use crate::image::store::hex_digest;
use crate::image::testing::{Layer, config};
use crate::image::{ImageError, ImageStore};
use base64::Engine;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex_digest(bytes))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What a registry has of one image: an index, a manifest, blobs.
#[derive(Clone)]
struct Content {
    index: Vec<u8>,
    manifest: Vec<u8>,
    blobs: BTreeMap<String, Vec<u8>>,
    layers: Vec<String>,
}

impl Content {
    /// Of layers as they travel; `plain` are the same, unpacked.
    fn new(packed: &[Vec<u8>], plain: &[Vec<u8>]) -> Self {
        let config = config(plain, &json!({"Cmd": ["run"]}));
        let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let layers: Vec<_> =
            packed.iter().map(|l| describe("application/vnd.oci.image.layer.v1.tar+gzip", l)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.image.config.v1+json", &config), "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = describe("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["platform"] = json!({"os": "linux", "architecture": crate::image::archive::architecture()});
        let mut other = entry.clone();
        other["platform"]["os"] = "windows".into();
        other["digest"] = digest(b"windows").into();
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [other, entry],
        });
        let mut blobs: BTreeMap<String, Vec<u8>> = packed.iter().map(|l| (digest(l), l.clone())).collect();
        blobs.insert(digest(&config), config);
        Self {
            index: index.to_string().into_bytes(),
            manifest,
            blobs,
            layers: packed.iter().map(|l| digest(l)).collect(),
        }
    }

    fn small() -> Self {
        let one = Layer::new().dir("etc/", 0o755).file("etc/a", 0o644, b"first\n").bytes();
        let two = Layer::new().file("etc/b", 0o644, b"second\n").bytes();
        let packed = [gzip(&one), zstd::encode_all(two.as_slice(), 1).unwrap()];
        Self::new(&packed, &[one, two])
    }

    /// Writes it as docker-registry keeps its content.
    fn store(&self, root: &Path, repository: &str, tag: &str) {
        let base = root.join("docker/registry/v2");
        let put = |path: std::path::PathBuf, bytes: &[u8]| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        let documents = [(digest(&self.index), &self.index), (digest(&self.manifest), &self.manifest)];
        let blobs = self.blobs.iter().map(|(d, b)| (d.clone(), b));
        for (digest, bytes) in documents.iter().map(|(d, b)| (d.clone(), *b)).chain(blobs) {
            let hex = digest.strip_prefix("sha256:").unwrap();
            put(base.join("blobs/sha256").join(&hex[..2]).join(hex).join("data"), bytes);
            for kind in ["_layers", "_manifests/revisions"] {
                let link = base
                    .join("repositories")
                    .join(repository)
                    .join(kind)
                    .join("sha256")
                    .join(hex)
                    .join("link");
                put(link, digest.as_bytes());
            }
        }
        let tag =
            base.join("repositories").join(repository).join("_manifests/tags").join(tag).join("current/link");
        put(tag, digest(&self.index).as_bytes());
    }
}

/// Debian's registry on a port of its own.
struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    name: String,
}

/// bcrypt of `secret` for the user `kelp`.
const HTPASSWD: &str = "kelp:$2y$05$LTog/3BxyM8yGNhpnf1VaOYKkIlEnyWe9he0UM86Tm185IYC.KU/y\n";

impl Registry {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(at("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(at("htpasswd"), HTPASSWD).unwrap();
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {0}/data}}}}\n\
             http: {{addr: '127.0.0.1:{port}', tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}}}\n\
             auth: {{htpasswd: {{realm: kelp, path: {0}/htpasswd}}}}\n",
            dir.path().display()
        );
        std::fs::write(at("config.yml"), text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(at("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("apt-get install docker-registry");
        let registry = Self { child, dir, name: format!("127.0.0.1:{port}") };
        let start = Instant::now();
        while tokio::net::TcpStream::connect(&registry.name).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "docker-registry does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        registry
    }

    fn config(&self, text: &str) -> RegistryConfig {
        let path = self.dir.path().join("registries.yaml");
        let ca = self.dir.path().join("cert.pem");
        let text = text.replace("NAME", &self.name).replace("CA", &ca.display().to_string());
        std::fs::write(&path, text).unwrap();
        RegistryConfig::load(&path).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn secret(registry: &str, password: &str) -> Keyring {
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("kelp:{password}"));
    let json = json!({"auths": {registry: {"auth": auth}}}).to_string().into_bytes();
    let mut ring = Keyring::default();
    ring.add_secret(&[(".dockerconfigjson".to_owned(), json)].into());
    ring
}

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    (dir, store)
}

fn puller(store: &ImageStore, config: RegistryConfig) -> Puller {
    Puller::new(store.clone(), config, CredentialProviders::default())
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut d| d.next().is_none())
}

#[tokio::test]
async fn a_real_registry_with_tls_and_a_password() {
    let registry = Registry::start().await;
    let content = Content::small();
    content.store(&registry.dir.path().join("data"), "team/app", "v1");
    let config = registry.config("registries:\n  'NAME':\n    ca: CA\n");
    let (dir, store) = store();
    let reference = format!("{}/team/app:v1", registry.name);
    let pull = async |config: &RegistryConfig, reference: &str, ring: &Keyring| {
        puller(&store, config.clone()).pull(reference, ring).await.map_err(|e| e.to_string())
    };
    let good = secret(&registry.name, "secret");

    let error = pull(&RegistryConfig::default(), &reference, &good).await.unwrap_err();
    assert!(
        error.ends_with("tls: failed to verify certificate: x509: certificate signed by unknown authority"),
        "{error}"
    );
    for ring in [Keyring::default(), secret(&registry.name, "wrong")] {
        let error = pull(&config, &reference, &ring).await.unwrap_err();
        assert!(error.contains("authorization failed"), "{error}");
    }
    let error = pull(&config, &format!("{}/team/app:v2", registry.name), &good).await.unwrap_err();
    let whole = format!("{}/team/app:v2", registry.name);
    assert_eq!(
        error,
        format!("failed to pull and unpack image {whole:?}: failed to resolve image: {whole}: not found")
    );
    assert!(store.list().unwrap().is_empty());

    let image = pull(&config, &reference, &good).await.unwrap();
    assert_eq!(image.names, std::slice::from_ref(&reference));
    assert_eq!(image.digests, [format!("{}/team/app@{}", registry.name, digest(&content.index))]);
    assert_eq!(image.layers.len(), 2);
    let layers = store.acquire(&image.id, "test").unwrap();
    assert_eq!(std::fs::read(layers.dir.join(&layers.names[0]).join("etc/b")).unwrap(), b"second\n");
    assert!(is_empty(&dir.path().join("images/downloads")) && is_empty(&dir.path().join("images/tmp")));

    // By digest, of the index or of the manifest.
    for pin in [digest(&content.index), digest(&content.manifest)] {
        let pinned = format!("{}/team/app@{pin}", registry.name);
        pull(&config, &pinned, &good).await.unwrap();
        assert_eq!(store.resolve(&pinned).unwrap().unwrap().id, image.id);
    }
    // The configuration's password, no verification, and a mirror that has nothing.
    let configured = registry.config(
        "registries:\n  'NAME':\n    insecureSkipVerify: true\n    username: kelp\n    password: secret\n    \
         mirrors: ['http://127.0.0.1:1']\n",
    );
    pull(&configured, &reference, &Keyring::default()).await.unwrap();
    // A registry that is a mirror of another name.
    let mirrored = registry.config(
        "registries:\n  'NAME':\n    ca: CA\n    username: kelp\n    password: secret\n  r.example:\n    mirrors: ['https://NAME']\n",
    );
    let image = pull(&mirrored, "r.example/team/app:v1", &Keyring::default()).await.unwrap();
    assert!(image.names.contains(&"r.example/team/app:v1".to_owned()));
}

#[tokio::test]
async fn nobody_listens() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_dir, store) = store();
    let reference = format!("127.0.0.1:{port}/absent:1");
    let error =
        puller(&store, RegistryConfig::default()).pull(&reference, &Keyring::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "failed to pull and unpack image {reference:?}: failed to resolve image: failed to do request: Head \
             \"https://127.0.0.1:{port}/v2/absent/manifests/1\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        )
    );
    let error =
        puller(&store, RegistryConfig::default()).pull("Not_A_Valid:Name:x", &Keyring::default()).await;
    assert!(matches!(error, Err(PullError::Image(ImageError::Reference { .. }))));
}

/// How a registry of our own behaves.
#[derive(Default)]
struct Manner {
    /// Asks for a token, which only the user `kelp` gets.
    bearer: bool,
    /// Blobs whose content is cut at first: the number of times.
    cut: BTreeMap<String, usize>,
    /// Blobs that have another content than their digest says.
    wrong: BTreeMap<String, Vec<u8>>,
    /// Requests, in order.
    requests: Vec<String>,
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

fn body(bytes: &[u8]) -> Body {
    Full::new(Bytes::copy_from_slice(bytes)).map_err(|never| match never {}).boxed_unsync()
}

/// Serves an image over HTTP without TLS.
async fn misbehaving(content: Content, manner: Arc<Mutex<Manner>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = listener.local_addr().unwrap().to_string();
    let own = name.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (content, manner, own) = (content.clone(), manner.clone(), own.clone());
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let answer = answer(&content, &manner, &own, &request);
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    name
}

fn answer<B>(
    content: &Content,
    manner: &Mutex<Manner>,
    own: &str,
    request: &http::Request<B>,
) -> http::Response<Body> {
    let mut manner = manner.lock();
    let path = request.uri().path().to_owned();
    manner.requests.push(format!("{} {path}", request.method()));
    let header =
        |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let reply = |code: u16| http::Response::builder().status(code);
    if path == "/token" {
        let basic = base64::engine::general_purpose::STANDARD.encode("kelp:secret");
        let scoped = request.uri().query().is_some_and(|q| q.contains("scope=repository%3Aapp%3Apull"));
        let good = header("authorization") == format!("Basic {basic}") && scoped;
        let text = if good { r#"{"access_token":"good"}"# } else { r#"{"token":"useless"}"# };
        return reply(200).body(body(text.as_bytes())).unwrap();
    }
    if manner.bearer && header("authorization") != "Bearer good" {
        let challenge =
            format!("Bearer realm=\"http://{own}/token\",service=\"s\",scope=\"repository:app:pull\"");
        return reply(401).header("www-authenticate", challenge).body(body(b"")).unwrap();
    }
    let Some(rest) = path.strip_prefix("/v2/app/") else { return reply(404).body(body(b"")).unwrap() };
    if let Some(wanted) = rest.strip_prefix("manifests/") {
        let document = match wanted {
            "v1" => &content.index,
            other if other == digest(&content.manifest) => &content.manifest,
            _ => return reply(404).body(body(b"")).unwrap(),
        };
        return reply(200).body(body(document)).unwrap();
    }
    let wanted = rest.strip_prefix("blobs/").unwrap_or_default().to_owned();
    let Some(bytes) = manner.wrong.get(&wanted).or(content.blobs.get(&wanted)).cloned() else {
        return reply(404).body(body(b"")).unwrap();
    };
    let from: usize =
        header("range").strip_prefix("bytes=").map_or(0, |r| r.trim_end_matches('-').parse().unwrap());
    let mut answer = reply(if from > 0 { 206 } else { 200 });
    if from > 0 {
        answer = answer.header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()));
    }
    match manner.cut.get_mut(&wanted) {
        Some(left) if *left > 0 => {
            *left -= 1;
            let half = from + (bytes.len() - from) / 2;
            let part = Bytes::copy_from_slice(&bytes[from..half]);
            let cut = async {
                // What came before is sent when nothing follows at once.
                tokio::task::yield_now().await;
                Err(std::io::Error::other("the line is cut"))
            };
            let broken = futures::stream::iter([Ok(Frame::data(part))]).chain(futures::stream::once(cut));
            answer.body(BodyExt::boxed_unsync(StreamBody::new(broken))).unwrap()
        }
        _ => answer.body(body(&bytes[from..])).unwrap(),
    }
}

fn plain(name: &str) -> RegistryConfig {
    let host = Host { plain_http: true, ..Host::default() };
    RegistryConfig { registries: [(name.to_owned(), host)].into() }
}

#[tokio::test]
async fn bearer_tokens_and_layers_that_are_there_already() {
    let manner = Arc::new(Mutex::new(Manner { bearer: true, ..Manner::default() }));
    let content = Content::small();
    let name = misbehaving(content.clone(), manner.clone()).await;
    let (_dir, store) = store();
    let puller = puller(&store, plain(&name));
    let reference = format!("{name}/app:v1");
    assert!(
        puller
            .pull(&reference, &Keyring::default())
            .await
            .unwrap_err()
            .to_string()
            .contains("authorization failed")
    );
    // The first credential that fits is useless, the second is not.
    let mut ring = secret(&name, "secret");
    ring.add(&format!("{name}/app"), Credential { username: "other".into(), password: "x".into() });
    puller.pull(&reference, &ring).await.unwrap();
    manner.lock().requests.clear();
    puller.pull(&reference, &ring).await.unwrap();
    let asked = manner.lock().requests.clone();
    assert!(!asked.iter().any(|r| content.layers.iter().any(|l| r.ends_with(l.as_str()))), "{asked:?}");
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let noise: Vec<u8> = (0..600_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let layer = Layer::new().file("noise", 0o644, &noise).bytes();
    let content = Content::new(&[gzip(&layer)], &[layer]);
    let blob = content.layers[0].clone();
    let manner = Arc::new(Mutex::new(Manner { cut: [(blob.clone(), 2)].into(), ..Manner::default() }));
    let name = misbehaving(content, manner.clone()).await;
    let (_dir, store) = store();
    let (puller, reference) = (puller(&store, plain(&name)), format!("{name}/app:v1"));
    let told = Mutex::new(Vec::new());
    let tell = |progress: Progress| told.lock().push(progress);
    puller.pull_telling(&reference, &Keyring::default(), &tell).await.unwrap();
    let asked = manner.lock().requests.iter().filter(|r| r.ends_with(blob.as_str())).count();
    assert_eq!(asked, 3);
    let told = std::mem::take(&mut *told.lock());
    let [
        Progress::Resolved { layers: 1, missing: 1, bytes, .. },
        steps @ ..,
        Progress::Downloaded { .. },
        Progress::Unpacking,
    ] = told.as_slice()
    else {
        panic!("{told:?}");
    };
    let steps: Vec<(u64, u64)> = steps
        .iter()
        .map(|step| match step {
            Progress::Downloading { done, size, .. } => (*done, *size),
            other => panic!("{other:?}"),
        })
        .collect();
    // Three attempts, each from where the one before broke.
    assert!(steps.len() == 3 && steps[0].0 == 0 && steps.iter().all(|(_, size)| size == bytes), "{steps:?}");
    assert!(steps.is_sorted() && steps[1].0 > 0 && steps[2].0 > steps[1].0, "{steps:?}");

    // Once more: nothing of it is missing.
    let again = Mutex::new(Vec::new());
    let tell = |progress: Progress| again.lock().push(progress);
    puller.pull_telling(&reference, &Keyring::default(), &tell).await.unwrap();
    let again = again.into_inner();
    assert!(
        matches!(again.as_slice(), [Progress::Resolved { missing: 0, bytes: 0, .. }, Progress::Unpacking]),
        "{again:?}"
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_layer_is_said_and_nothing_of_it_stays() {
    let good = Content::small();
    let bomb = {
        // 16 MiB of zeros in a tar, packed.
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let mut header = tar::Header::new_gnu();
        header.set_path("zeros").unwrap();
        header.set_size(16 << 20);
        header.set_mode(0o644);
        header.set_cksum();
        encoder.write_all(header.as_bytes()).unwrap();
        for _ in 0..16 {
            encoder.write_all(&vec![0; 1 << 20]).unwrap();
        }
        encoder.finish().unwrap()
    };
    let escape = Layer::new().symlink("out", "/").file("../../escape", 0o644, b"x").bytes();
    let truncated = gzip(&Layer::new().file("a", 0o644, &[7; 5000]).bytes());
    let truncated = truncated[..truncated.len() / 2].to_vec();
    type Case = (&'static str, Content, BTreeMap<String, Vec<u8>>, &'static str);
    let cases: [Case; 5] = [
        (
            "corrupted",
            good.clone(),
            [(good.layers[0].clone(), vec![1; good.blobs[&good.layers[0]].len()])].into(),
            "the content is damaged",
        ),
        (
            "longer",
            good.clone(),
            [(good.layers[0].clone(), vec![1; 100_000])].into(),
            "content is longer than",
        ),
        ("bomb", Content::new(&[bomb], &[vec![1]]), BTreeMap::new(), "out of proportion"),
        (
            "not what the config says",
            Content::new(&[gzip(&Layer::new().bytes())], &[vec![1]]),
            BTreeMap::new(),
            "content has digest",
        ),
        ("truncated", Content::new(&[truncated], &[vec![1]]), BTreeMap::new(), "layer sha256:"),
    ];
    for (what, content, wrong, message) in cases {
        let manner = Arc::new(Mutex::new(Manner { wrong, ..Manner::default() }));
        let name = misbehaving(content, manner).await;
        let (dir, store) = store();
        let error = puller(&store, plain(&name)).pull(&format!("{name}/app:v1"), &Keyring::default()).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(message), "{what}: {error}");
        assert!(store.list().unwrap().is_empty(), "{what}");
        for left in ["layers", "tmp", "images"] {
            assert!(is_empty(&dir.path().join("images").join(left)), "{what} leaves something in {left}");
        }
    }
    // A path that leaves the layer is an error or stays within; nothing appears outside.
    let content = Content::new(&[gzip(&escape)], std::slice::from_ref(&escape));
    let name = misbehaving(content, Arc::default()).await;
    let (dir, store) = store();
    let result = puller(&store, plain(&name)).pull(&format!("{name}/app:v1"), &Keyring::default()).await;
    assert!(!dir.path().join("escape").exists() && !Path::new("/escape").exists());
    if let Err(error) = result {
        assert!(error.to_string().contains("escape"), "{error}");
    }
}

/// Unmounts when it is dropped.
struct Mount(tempfile::TempDir);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_is_a_clear_error() {
    let mount = Mount(tempfile::tempdir().unwrap());
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), mount.0.path(), Some("tmpfs"), flags, Some("size=3m")).unwrap();
    let noise: Vec<u8> = (0..8 << 20).map(|i: u32| (i / 64) as u8).collect();
    let layer = Layer::new().file("large", 0o644, &noise).bytes();
    let content = Content::new(&[gzip(&layer)], &[layer]);
    let name = misbehaving(content, Arc::default()).await;
    let store = ImageStore::open(&mount.0.path().join("images")).unwrap();
    let error =
        puller(&store, plain(&name)).pull(&format!("{name}/app:v1"), &Keyring::default()).await.unwrap_err();
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert!(store.list().unwrap().is_empty() && is_empty(&mount.0.path().join("images/layers")));
    assert!(is_empty(&mount.0.path().join("images/tmp")));
}
