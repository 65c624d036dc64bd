//! The store directory: records, layers, leases.

use super::archive::{Archive, ImageSource};
use super::record::LayerRecord;
use super::reference::{is_digest, parse};
use super::{Image, ImageError, unpack};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images of this node. Methods that change the store or unpack block on disk work: call them from
/// `spawn_blocking`. Clones share the store.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    /// Modification time of the records' directory the records were read at.
    stamp: Option<(i64, i64)>,
    images: BTreeMap<String, Image>,
}

/// What an overlay root of an image is mounted from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootLayers {
    /// Directory that holds the layers; relative names keep mount options short.
    pub dir: PathBuf,
    /// Names in `dir`, topmost first, as overlayfs wants them.
    pub names: Vec<String>,
}

impl ImageStore {
    /// Opens or creates a store, and sweeps what a crash left behind.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the directory cannot be created or read.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        for sub in ["images", "layers", "leases", "tmp"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(|e| ImageError::io("create", &path, e))?;
        }
        // Layers hold set-uid files that users of the host must not reach.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(|e| ImageError::io("set the mode of", dir, e))?;
        let dir = dir.canonicalize().map_err(|e| ImageError::io("resolve", dir, e))?;
        let store = Self { inner: Arc::new(Inner { dir, cache: Mutex::default() }) };
        // A held lock means that another process is importing: what looks unfinished is its work.
        if let Some(lock) = store.try_lock()? {
            store.sweep(&lock)?;
        }
        Ok(store)
    }

    /// The directory of the store.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Finds an image by tag (`hello:dev`), digest (`repository@sha256:…`) or id (`sha256:…` or 64 hex digits).
    ///
    /// # Errors
    /// [`ImageError::Reference`] when `reference` is malformed, [`ImageError::Io`] when records cannot be read.
    pub fn resolve(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let id = if is_digest(reference) {
            Some(reference.to_owned())
        } else {
            Some(format!("sha256:{reference}")).filter(|id| is_digest(id))
        };
        if let Some(id) = id {
            return self.with_images(|images| images.get(&id).cloned());
        }
        let wanted = parse(reference)?;
        if let Some(digest) = wanted.digest() {
            let name = format!("{}/{}@{digest}", wanted.registry(), wanted.repository());
            return self.with_images(|images| images.values().find(|i| i.digests.contains(&name)).cloned());
        }
        let name = wanted.whole();
        self.with_images(|images| images.values().find(|i| i.names.contains(&name)).cloned())
    }

    /// Every image, by id.
    ///
    /// # Errors
    /// [`ImageError::Io`] when records cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        self.with_images(|images| images.values().cloned().collect())
    }

    /// Imports the images of an archive: a tar (plain, gzip or zstd) of an OCI image layout or written by
    /// `docker save`, or a directory that is an OCI image layout. `name` replaces the names in the archive, which
    /// must then hold exactly one image for this platform.
    ///
    /// Blobs are verified against their digests, layers against their diff ids. A tag that another image had moves.
    ///
    /// # Errors
    /// [`ImageError::Archive`] names the file or layer that is wrong; nothing of the archive is kept then.
    pub fn import(&self, path: &Path, name: Option<&str>) -> Result<Vec<Image>, ImageError> {
        let name = name.map(super::normalize).transpose()?;
        let lock = self.lock()?;
        self.sweep(&lock)?;
        let work = self.inner.dir.join("tmp/import");
        fs::create_dir(&work).map_err(|e| ImageError::io("create", &work, e))?;
        let result = self.import_in(path, name.as_deref(), &work);
        let cleanup = self.sweep(&lock);
        let images = result?;
        cleanup?;
        Ok(images)
    }

    /// Directory for what is being fetched; on the store's file system.
    pub(super) fn downloads(&self) -> PathBuf {
        self.inner.dir.join("downloads")
    }

    /// Whether a stack of layers is unpacked up to this one.
    pub(super) fn has_layer(&self, chain_id: &str) -> bool {
        let record = self.layer_dir(chain_id).with_extension("json");
        matches!(read_json::<LayerRecord>(&record), Ok(Some(record)) if record.chain_id == chain_id)
    }

    /// Imports what was fetched from a registry.
    ///
    /// # Errors
    /// [`ImageError::Archive`] names the layer that is wrong; nothing of the image is kept then.
    pub(super) fn import_fetched(&self, fetched: Fetched) -> Result<Image, ImageError> {
        let lock = self.lock()?;
        self.sweep(&lock)?;
        let work = self.inner.dir.join("tmp/import");
        fs::create_dir(&work).map_err(|e| ImageError::io("create", &work, e))?;
        let result = self.import_fetched_in(fetched, &work);
        let cleanup = self.sweep(&lock);
        let image = result?;
        cleanup?;
        Ok(image)
    }

    fn import_fetched_in(&self, fetched: Fetched, work: &Path) -> Result<Image, ImageError> {
        let place = |name: &str, bytes: &[u8]| -> Result<PathBuf, ImageError> {
            let path = work.join(name);
            fs::write(&path, bytes).map_err(|e| ImageError::io("write", &path, e))?;
            Ok(path)
        };
        let (digest, manifest) = &fetched.manifest;
        let index = serde_json::json!({"manifests": [{"digest": digest}]}).to_string();
        let blob = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
        let mut files: std::collections::HashMap<String, PathBuf> =
            fetched.blobs.iter().map(|(digest, path)| (blob(digest), path.clone())).collect();
        files.insert(blob(digest), place("manifest", manifest)?);
        files.insert("index.json".to_owned(), place("index", index.as_bytes())?);
        let archive = Archive::of_files(&fetched.repository, files);
        let Some(mut source) = archive.images()?.into_iter().next() else {
            return Err(archive.error("holds no image"));
        };
        source.names = fetched.names;
        source.manifest_digest = Some(fetched.digest);
        source.repository = Some(fetched.repository);
        self.import_image(&archive, source, work)
    }

    fn import_in(&self, path: &Path, name: Option<&str>, work: &Path) -> Result<Vec<Image>, ImageError> {
        let archive = Archive::open(path, &work.join("in"))?;
        let mut sources = archive.images()?;
        if let Some(name) = name {
            let [source] = sources.as_mut_slice() else {
                return Err(archive.error(format!(
                    "holds {} images for this platform, so one name does not fit: import it without a name",
                    sources.len()
                )));
            };
            source.names = vec![name.to_owned()];
        }
        let mut images = Vec::with_capacity(sources.len());
        for source in sources {
            images.push(self.import_image(&archive, source, work)?);
        }
        Ok(images)
    }

    fn import_image(&self, archive: &Archive, source: ImageSource, work: &Path) -> Result<Image, ImageError> {
        let mut chain: Option<String> = None;
        let mut layers = Vec::with_capacity(source.layers.len());
        let mut lower: Vec<PathBuf> = Vec::new();
        let mut size = 0;
        for (layer, diff_id) in source.layers.iter().zip(&source.diff_ids) {
            let chain_id = chain_id(chain.as_deref(), diff_id);
            let target = self.layer_dir(&chain_id);
            let record_path = target.with_extension("json");
            let record = match read_json::<LayerRecord>(&record_path)? {
                Some(record) if record.chain_id == chain_id => record,
                Some(record) => {
                    return Err(archive
                        .error(format!("layer {chain_id} has the short name of layer {}", record.chain_id)));
                }
                None => {
                    let partial = work.join("layer");
                    let most = MIN_UNPACKED.max(archive.layer_size(layer).saturating_mul(MAX_RATIO));
                    let reader = Bounded { inner: archive.layer(layer)?, left: most, most };
                    let size = unpack::unpack(reader, diff_id, &partial, &lower)
                        .map_err(|message| archive.error(format!("layer {diff_id}: {message}")))?;
                    sync_filesystem(&partial)?;
                    fs::rename(&partial, &target)
                        .map_err(|e| ImageError::io("move a layer to", &target, e))?;
                    let record = LayerRecord { chain_id: chain_id.clone(), size };
                    write_json(&record_path, &record)?;
                    record
                }
            };
            size += record.size;
            lower.insert(0, target);
            layers.push(chain_id.clone());
            chain = Some(chain_id);
        }
        let digests = digests(&source);
        let image = Image {
            id: source.id,
            digests,
            names: source.names,
            size,
            imported_at: jiff::Timestamp::now(),
            config: source.config,
            layers,
        };
        self.commit(image)
    }

    /// Writes the record of `image`, merged with one that exists, then takes its names from other images. A crash in
    /// between leaves a name on two images; `sweep` keeps it on the newer.
    fn commit(&self, mut image: Image) -> Result<Image, ImageError> {
        let known = self.with_images(Clone::clone)?;
        if let Some(old) = known.get(&image.id) {
            merge(&mut image.names, &old.names);
            merge(&mut image.digests, &old.digests);
        }
        self.write_record(&image)?;
        for mut other in known.into_values().filter(|other| other.id != image.id) {
            let before = other.names.len();
            other.names.retain(|name| !image.names.contains(name));
            if other.names.len() != before {
                self.write_record(&other)?;
            }
        }
        Ok(image)
    }

    /// Removes a tag or an image. A tag of an image that has more of them only loses the tag.
    ///
    /// # Errors
    /// [`ImageError::InUse`] when the image would go but containers are made of it, [`ImageError::NotFound`].
    pub fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let lock = self.lock()?;
        let Some(mut image) = self.resolve(reference)? else {
            return Err(ImageError::NotFound(reference.to_owned()));
        };
        let tag = parse(reference).ok().map(|r| r.whole()).filter(|t| image.names.contains(t));
        if let Some(tag) = tag
            && image.names.len() > 1
        {
            image.names.retain(|name| *name != tag);
            return self.write_record(&image);
        }
        self.drop_image(&image)?;
        self.sweep(&lock)
    }

    /// Removes every image that no container uses and that `keep` does not want; returns their ids.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn prune(&self, keep: impl Fn(&Image) -> bool) -> Result<Vec<String>, ImageError> {
        let lock = self.lock()?;
        let mut removed = Vec::new();
        for image in self.list()? {
            if keep(&image) {
                continue;
            }
            match self.drop_image(&image) {
                Ok(()) => removed.push(image.id),
                Err(ImageError::InUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.sweep(&lock)?;
        Ok(removed)
    }

    /// Whether a container is made of the image.
    pub fn is_in_use(&self, id: &str) -> bool {
        list_dir(&self.lease_dir(id)).is_ok_and(|users| !users.is_empty())
    }

    /// When a container was made of the image or removed last, as far as that is known.
    pub fn last_used(&self, id: &str) -> Option<jiff::Timestamp> {
        let path = self.inner.dir.join("used").join(hex(id));
        jiff::Timestamp::try_from(fs::metadata(path).ok()?.modified().ok()?).ok()
    }

    /// Notes that the image is used now. Not knowing it is no trouble.
    fn note_use(&self, id: &str) {
        let dir = self.inner.dir.join("used");
        let _ = fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join(hex(id)), ""));
    }

    fn drop_image(&self, image: &Image) -> Result<(), ImageError> {
        let leases = self.lease_dir(&image.id);
        let users = list_dir(&leases)?;
        if !users.is_empty() {
            return Err(ImageError::InUse { image: image.id.clone(), users: users.join(", ") });
        }
        // Removing the lease directory first makes a concurrent `acquire` fail or be seen by this rmdir.
        match fs::remove_dir(&leases) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
                return Err(ImageError::InUse { image: image.id.clone(), users: String::new() });
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::io("remove", &leases, e));
            }
            _ => {}
        }
        let _ = fs::remove_file(self.inner.dir.join("used").join(hex(&image.id)));
        let path = self.record_path(&image.id);
        fs::remove_file(&path).map_err(|e| ImageError::io("remove", &path, e))
    }

    /// Notes that container `user` (a file name) is made of the image and returns its layers; the image stays until
    /// [`ImageStore::release`]. Idempotent.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] when the image is gone.
    pub fn acquire(&self, id: &str, user: &str) -> Result<RootLayers, ImageError> {
        let leases = self.lease_dir(id);
        let path = leases.join(user);
        // Another container's release may remove the empty directory in between.
        let make = || fs::create_dir_all(&leases).and_then(|()| File::create(&path));
        let mut made = make();
        for _ in 0..8 {
            match made {
                Err(e) if e.kind() == io::ErrorKind::NotFound => made = make(),
                _ => break,
            }
        }
        made.map_err(|e| ImageError::io("create", &path, e))?;
        // The lease is visible now: an image that is still there cannot go any more.
        let Some(image) = self.resolve(id)? else {
            self.release(id, user)?;
            return Err(ImageError::NotFound(id.to_owned()));
        };
        self.note_use(id);
        let dir = self.inner.dir.join("layers");
        let names = image.layers.iter().rev().map(|chain| short(chain).to_owned()).collect();
        Ok(RootLayers { dir, names })
    }

    /// Ends the lease of `user`. Idempotent.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn release(&self, id: &str, user: &str) -> Result<(), ImageError> {
        let leases = self.lease_dir(id);
        for result in [fs::remove_file(leases.join(user)), fs::remove_dir(&leases)] {
            match result.map_err(|e| (e.kind(), e)) {
                Ok(()) | Err((io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty, _)) => {}
                Err((_, e)) => return Err(ImageError::io("remove the lease in", &leases, e)),
            }
        }
        if self.record_path(id).exists() {
            self.note_use(id);
        }
        Ok(())
    }

    /// Ends every lease whose user `is_alive` does not know.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn retain_leases(&self, is_alive: impl Fn(&str) -> bool) -> Result<(), ImageError> {
        for image in list_dir(&self.inner.dir.join("leases"))? {
            let id = format!("sha256:{image}");
            for user in list_dir(&self.lease_dir(&id))? {
                if !is_alive(&user) {
                    self.release(&id, &user)?;
                }
            }
        }
        Ok(())
    }

    fn with_images<T>(&self, read: impl FnOnce(&BTreeMap<String, Image>) -> T) -> Result<T, ImageError> {
        let dir = self.inner.dir.join("images");
        let metadata = fs::metadata(&dir).map_err(|e| ImageError::io("read", &dir, e))?;
        let stamp = Some((metadata.mtime(), metadata.mtime_nsec()));
        let mut cache = self.inner.cache.lock();
        if cache.stamp != stamp {
            let mut images = BTreeMap::new();
            for name in list_dir(&dir)?.iter().filter(|n| n.ends_with(".json")) {
                if let Some(image) = read_json::<Image>(&dir.join(name))? {
                    images.insert(image.id.clone(), image);
                }
            }
            // The kernel's clock ticks every few ms: a change in the tick of the last one leaves the time as it was.
            let now = jiff::Timestamp::now().as_nanosecond();
            let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
            *cache = Cache { stamp: stamp.filter(|_| now - modified > 50_000_000), images };
        }
        Ok(read(&cache.images))
    }

    fn write_record(&self, image: &Image) -> Result<(), ImageError> {
        write_json(&self.record_path(&image.id), image)
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.inner.dir.join("images").join(format!("{}.json", hex(id)))
    }

    fn lease_dir(&self, id: &str) -> PathBuf {
        self.inner.dir.join("leases").join(hex(id))
    }

    fn layer_dir(&self, chain_id: &str) -> PathBuf {
        self.inner.dir.join("layers").join(short(chain_id))
    }

    fn lock(&self) -> Result<File, ImageError> {
        let file = self.lock_file()?;
        file.lock().map_err(|e| ImageError::io("lock", &self.inner.dir, e))?;
        Ok(file)
    }

    fn try_lock(&self) -> Result<Option<File>, ImageError> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(ImageError::io("lock", &self.inner.dir, e)),
        }
    }

    fn lock_file(&self) -> Result<File, ImageError> {
        let path = self.inner.dir.join("lock");
        File::create(&path).map_err(|e| ImageError::io("create", &path, e))
    }

    /// Removes unfinished work, and layers that no image refers to. The lock proves that nobody is at work.
    fn sweep(&self, _lock: &File) -> Result<(), ImageError> {
        let tmp = self.inner.dir.join("tmp");
        for name in list_dir(&tmp)? {
            remove_tree(&tmp.join(name))?;
        }
        let records = self.inner.dir.join("images");
        for name in list_dir(&records)?.iter().filter(|name| name.ends_with(".new")) {
            remove_tree(&records.join(name))?;
        }
        let mut images: Vec<Image> = self.list()?;
        images.sort_by_key(|image| std::cmp::Reverse(image.imported_at));
        let mut seen = BTreeSet::new();
        for image in &mut images {
            let before = image.names.len();
            image.names.retain(|name| seen.insert(name.clone()));
            if image.names.len() != before {
                self.write_record(image)?;
            }
        }
        let used: BTreeSet<&str> =
            images.iter().flat_map(|image| &image.layers).map(|chain| short(chain)).collect();
        let layers = self.inner.dir.join("layers");
        // Records go first: a directory without one is garbage, a record without its directory would be a lie.
        let mut names = list_dir(&layers)?;
        names.sort_by_key(|name| !name.ends_with(".json"));
        for name in names {
            let unused = !used.contains(name.trim_end_matches(".json"));
            let incomplete = !name.ends_with(".json") && !layers.join(format!("{name}.json")).exists();
            if unused || incomplete {
                remove_tree(&layers.join(name))?;
            }
        }
        Ok(())
    }
}

/// An image that was fetched.
pub(super) struct Fetched {
    /// Its tag; none when it was asked for by digest.
    pub names: Vec<String>,
    /// Where it comes from, `registry/repository`.
    pub repository: String,
    /// Digest of what the reference stands for, which may be an index.
    pub digest: String,
    /// Digest and content of the manifest.
    pub manifest: (String, Vec<u8>),
    /// Files of the configuration and of the layers that are not unpacked yet, by digest.
    pub blobs: std::collections::HashMap<String, PathBuf>,
}

/// `repository@digest` for each repository the image is known in.
fn digests(source: &ImageSource) -> Vec<String> {
    let Some(digest) = &source.manifest_digest else { return Vec::new() };
    let of_names = source.names.iter().filter_map(|name| {
        let parsed = parse(name).ok()?;
        Some(format!("{}/{}", parsed.registry(), parsed.repository()))
    });
    let repositories: BTreeSet<String> = of_names.chain(source.repository.clone()).collect();
    repositories.into_iter().map(|repository| format!("{repository}@{digest}")).collect()
}

/// A layer may unpack to so many bytes whatever its compressed size.
const MIN_UNPACKED: u64 = if cfg!(test) { 4 << 20 } else { 256 << 20 };
/// And to so many times its compressed size: far more than real content does, less than a bomb.
const MAX_RATIO: u64 = 200;

/// Ends with an error after so many bytes.
struct Bounded<R> {
    inner: R,
    left: u64,
    most: u64,
}

impl<R: io::Read> io::Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::other(format!(
                "unpacks to more than {} MiB, which is out of proportion to its compressed size: refused",
                self.most >> 20
            ))
        })?;
        Ok(n)
    }
}

/// OCI image spec: the id of a stack of layers, so that a layer is unpacked once for each set of layers below it.
pub(super) fn chain_id(parent: Option<&str>, diff_id: &str) -> String {
    match parent {
        None => diff_id.to_owned(),
        Some(parent) => format!("sha256:{}", hex_digest(format!("{parent} {diff_id}").as_bytes())),
    }
}

pub(super) fn hex_digest(bytes: &[u8]) -> String {
    to_hex(&Sha256::digest(bytes))
}

pub(super) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// 16 digits: 240 layers fit into the one page of options that mount(2) takes.
fn short(chain_id: &str) -> &str {
    hex(chain_id).get(..16).unwrap_or("invalid")
}

fn merge(into: &mut Vec<String>, from: &[String]) {
    for name in from {
        if !into.contains(name) {
            into.push(name.clone());
        }
    }
}

fn list_dir(path: &Path) -> Result<Vec<String>, ImageError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ImageError::io("read", path, e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| ImageError::io("read", path, e))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn remove_tree(path: &Path) -> Result<(), ImageError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// `None` when there is no such file, or when it cannot be parsed: a record is rebuilt by importing again.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ImageError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ImageError::io("read", path, e)),
    };
    match serde_json::from_slice(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "ignoring a damaged image record; import the image again");
            Ok(None)
        }
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), ImageError> {
    let text = serde_json::to_vec(value).map_err(|e| ImageError::io("encode", path, e))?;
    let partial = path.with_extension("new");
    let write = || -> io::Result<()> {
        let file = File::create(&partial)?;
        io::Write::write_all(&mut &file, &text)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|e| ImageError::io("write", path, e))
}

/// A layer must be on disk before its record says so.
fn sync_filesystem(path: &Path) -> Result<(), ImageError> {
    let dir = File::open(path).map_err(|e| ImageError::io("open", path, e))?;
    // SAFETY: syncfs takes an open descriptor, which `dir` keeps open, and touches no memory.
    if unsafe { libc::syncfs(dir.as_raw_fd()) } != 0 {
        return Err(ImageError::io("sync", path, io::Error::last_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
