//! Work in network namespaces: the dataplane's own, and those of pods.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use kelp_common::node::NAMESPACE_NO_SOCKETS;
use kelp_common::{Address, NamespaceValue};
use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;

use super::maps::Table;
use super::{DatapathError, sys};

/// A network namespace that stays the same whichever thread asks.
#[derive(Debug, Clone)]
pub struct Namespace(Arc<OwnedFd>);

impl Namespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn current() -> io::Result<Self> {
        Ok(Self(Arc::new(File::open("/proc/thread-self/ns/net")?.into())))
    }

    /// Runs a closure in the namespace, on a thread of its own: a thread that went on to other work would take the
    /// namespace along.
    ///
    /// # Errors
    /// When there can be no thread or the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let body = || {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)?;
                work()
            };
            let thread =
                std::thread::Builder::new().name("dataplane-netns".into()).spawn_scoped(scope, body)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
        })
    }
}

/// Every network namespace that a process lives in, once each.
///
/// # Errors
/// When /proc cannot be read.
pub fn all() -> io::Result<Vec<Namespace>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let threads = PathBuf::from("/proc").join(&name).join("task");
        // Only the main thread of most processes matters; one that changed its namespace alone is rare, and cheap to see.
        for thread in std::fs::read_dir(threads).into_iter().flatten().flatten() {
            // A thread that has just ended has no namespace any more.
            let Ok(file) = File::open(thread.path().join("ns/net")) else { continue };
            let Ok(metadata) = file.metadata() else { continue };
            if seen.insert((metadata.dev(), metadata.ino())) {
                found.push(Namespace(Arc::new(file.into())));
            }
        }
    }
    Ok(found)
}

/// What the socket hooks know of pods by their namespace.
#[derive(Debug)]
pub(super) struct Namespaces {
    table: Table<u64, NamespaceValue>,
    opted_out: Mutex<BTreeSet<Address>>,
}

impl Namespaces {
    pub fn new(table: Table<u64, NamespaceValue>) -> Self {
        Self { table, opted_out: Mutex::default() }
    }

    /// Makes a pod known.
    pub fn attach(&self, cookie: u64, addresses: &[Address], ifindex: u32) -> Result<(), DatapathError> {
        let of = |v4: bool| addresses.iter().find(|a| a.is_v4() == v4).copied().unwrap_or(Address::ANY_V6);
        let addresses = [of(true), of(false)];
        // Held while the entry is written, so that a change of the set meanwhile meets it.
        let opted_out = self.opted_out.lock();
        let known = self.table.get(&cookie)?;
        // Before the first list is complete an adopted pod keeps what it had.
        let flags = match known {
            Some(known) if opted_out.is_empty() && known.addresses == addresses => known.flags,
            _ => flags(&opted_out, &addresses),
        };
        self.table.put(&cookie, &NamespaceValue { addresses, flags, ifindex })
    }

    /// Forgets the pods whose device is not among these.
    pub fn retain(&self, keep: impl Fn(u32) -> bool) -> Result<(), DatapathError> {
        let mut gone = Vec::new();
        self.table.scan(|cookie, pod| {
            if !keep(pod.ifindex) {
                gone.push(*cookie);
            }
        })?;
        self.table.delete_all(&gone)
    }

    /// Takes over which pods have their sockets left alone.
    pub fn opt_out(&self, addresses: BTreeSet<Address>) -> Result<(), DatapathError> {
        let mut opted_out = self.opted_out.lock();
        let mut changed = Vec::new();
        self.table.scan(|cookie, pod| {
            let flags = flags(&addresses, &pod.addresses);
            if flags != pod.flags {
                changed.push((*cookie, NamespaceValue { flags, ..*pod }));
            }
        })?;
        for (cookie, pod) in changed {
            self.table.put(&cookie, &pod)?;
        }
        *opted_out = addresses;
        Ok(())
    }
}

fn flags(opted_out: &BTreeSet<Address>, addresses: &[Address; 2]) -> u32 {
    if addresses.iter().any(|address| opted_out.contains(address)) { NAMESPACE_NO_SOCKETS } else { 0 }
}

/// The cookies of namespaces, with the namespaces, as far as they are among `wanted`.
pub(super) fn by_cookie(wanted: &BTreeSet<u64>) -> io::Result<Vec<(u64, Namespace)>> {
    let mut found = Vec::new();
    for namespace in all()? {
        // One that cannot be entered is going.
        if let Ok(cookie) = namespace.run(sys::netns_cookie)
            && wanted.contains(&cookie)
        {
            found.push((cookie, namespace));
            if found.len() == wanted.len() {
                break;
            }
        }
    }
    Ok(found)
}
