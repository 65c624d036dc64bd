//! Leases of pod addresses from the node's podCIDRs.
//!
//! The file is JSON, replaced atomically and synced at each change, so that no address has two holders after a
//! crash. Addresses are handed out in a circle: one that was released is the last to be used again.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// What can go wrong with leases.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// Every address of a prefix is taken.
    #[error("no address is left in {0}; the node runs as many pods as its podCIDR has addresses")]
    Exhausted(Prefix),
    /// The file cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// The file is damaged.
    #[error("{path} is damaged; stop the node's pods and remove it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: serde_json::Error,
    },
}

/// An address and a prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// First address.
    pub address: IpAddr,
    /// Bits that are fixed.
    pub length: u8,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is no address prefix such as 10.244.0.0/24");
        let (address, length) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let length: u8 = length.parse().map_err(|_| error())?;
        if length > bits(address) {
            return Err(error());
        }
        let prefix = Self { address, length };
        Ok(Self { address: prefix.nth(0), length })
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Prefix {
    /// Number of addresses, at most `u64::MAX`.
    fn size(&self) -> u64 {
        1u64.checked_shl(u32::from(bits(self.address) - self.length)).unwrap_or(u64::MAX)
    }

    /// The address `index` after the first; bits outside the prefix stay.
    fn nth(&self, index: u64) -> IpAddr {
        match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                IpAddr::V4(Ipv4Addr::from((u32::from(a) & mask) | (index & !mask)))
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from((u128::from(a) & mask) | (u128::from(index) & !mask)))
            }
        }
    }

    /// The address belongs to the prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        let other = Self { address, length: self.length };
        self.address.is_ipv4() == address.is_ipv4() && other.nth(0) == self.nth(0)
    }

    /// Indexes that a pod may have: not the network's own address, the gateway's customary one, or the broadcast.
    fn usable(&self) -> std::ops::Range<u64> {
        let end = if self.address.is_ipv4() { self.size().saturating_sub(1) } else { self.size() };
        2..end.max(2)
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// Pod UID to its addresses, primary first.
    leases: BTreeMap<String, Vec<IpAddr>>,
    /// Prefix to the index after the last one handed out.
    next: BTreeMap<String, u64>,
}

/// The leases.
#[derive(Debug)]
pub struct Ipam {
    path: PathBuf,
    state: Mutex<State>,
}

impl Ipam {
    /// Reads the leases; a missing file is an empty one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(path: &Path) -> Result<Self, IpamError> {
        let state = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| IpamError::Damaged { path: path.to_owned(), source })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(source) => return Err(IpamError::Io { action: "read", path: path.to_owned(), source }),
        };
        Ok(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    /// Pods that hold addresses.
    pub fn holders(&self) -> Vec<String> {
        self.state.lock().leases.keys().cloned().collect()
    }

    /// The addresses a pod holds.
    pub fn lease_of(&self, uid: &str) -> Option<Vec<IpAddr>> {
        self.state.lock().leases.get(uid).cloned()
    }

    /// One address of each prefix for a pod; the ones it holds if it holds some.
    ///
    /// # Errors
    /// No address is left, or the file cannot be written: nothing is leased then.
    pub fn lease(&self, uid: &str, prefixes: &[Prefix]) -> Result<Vec<IpAddr>, IpamError> {
        let mut state = self.state.lock();
        if let Some(held) = state.leases.get(uid) {
            return Ok(held.clone());
        }
        let mut new = state.clone();
        let taken: BTreeSet<IpAddr> = new.leases.values().flatten().copied().collect();
        let mut addresses = Vec::new();
        for prefix in prefixes {
            let usable = prefix.usable();
            let next = new.next.entry(prefix.to_string()).or_insert(usable.start);
            let first = (*next).clamp(usable.start, usable.end);
            let found = (first..usable.end)
                .chain(usable.start..first)
                .find(|index| !taken.contains(&prefix.nth(*index)))
                .ok_or(IpamError::Exhausted(*prefix))?;
            *next = found + 1;
            addresses.push(prefix.nth(found));
        }
        new.leases.insert(uid.to_owned(), addresses.clone());
        self.write(&new)?;
        *state = new;
        Ok(addresses)
    }

    /// Gives a pod's addresses back.
    ///
    /// # Errors
    /// The file cannot be written: the pod keeps them then.
    pub fn release(&self, uid: &str) -> Result<(), IpamError> {
        let mut state = self.state.lock();
        if !state.leases.contains_key(uid) {
            return Ok(());
        }
        let mut new = state.clone();
        new.leases.remove(uid);
        self.write(&new)?;
        *state = new;
        Ok(())
    }

    fn write(&self, state: &State) -> Result<(), IpamError> {
        let write = || -> std::io::Result<()> {
            let temporary = self.path.with_extension("tmp");
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(state)?)?;
            file.sync_data()?;
            std::fs::rename(&temporary, &self.path)
        };
        write().map_err(|source| IpamError::Io { action: "write", path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn both_families_and_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        let prefixes = [prefix("10.244.3.0/24"), prefix("fd00:10:244:3::/64")];
        let ipam = Ipam::open(&path).unwrap();
        let first = ipam.lease("a", &prefixes).unwrap();
        assert_eq!(first, ["10.244.3.2".parse::<IpAddr>().unwrap(), "fd00:10:244:3::2".parse().unwrap()]);
        assert_eq!(ipam.lease("a", &prefixes).unwrap(), first);
        let ipam = Ipam::open(&path).unwrap();
        assert_eq!(ipam.lease_of("a"), Some(first.clone()));
        ipam.release("a").unwrap();
        let second = ipam.lease("b", &prefixes).unwrap();
        assert_ne!(second, first, "a released address is not used again at once");
    }

    #[test]
    fn a_full_prefix_is_an_error_that_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ipam = Ipam::open(&dir.path().join("l")).unwrap();
        let prefixes = [prefix("10.0.0.0/29")];
        for i in 0..5 {
            ipam.lease(&i.to_string(), &prefixes).unwrap();
        }
        assert!(matches!(ipam.lease("x", &prefixes), Err(IpamError::Exhausted(_))));
        ipam.release("2").unwrap();
        assert_eq!(ipam.lease("x", &prefixes).unwrap(), ["10.0.0.4".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn odd_prefixes() {
        assert_eq!(prefix("10.1.2.3/24").to_string(), "10.1.2.0/24");
        assert!(prefix("0.0.0.0/0").contains("1.2.3.4".parse().unwrap()));
        assert!(!prefix("10.0.0.0/8").contains("fd00::1".parse().unwrap()));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "/"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let ipam = Ipam::open(&dir.path().join("l")).unwrap();
        for tiny in ["10.0.0.1/32", "10.0.0.0/31", "10.0.0.0/30"] {
            let _ = ipam.lease(tiny, &[prefix(tiny)]);
        }
    }

    proptest! {
        // Each step syncs a file.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn no_address_has_two_holders(steps in proptest::collection::vec((0u8..12, any::<bool>()), 0..60)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("l");
            let mut ipam = Ipam::open(&path).unwrap();
            let prefixes = [prefix("10.0.0.0/28"), prefix("fd00::/124")];
            for (who, lease) in steps {
                let uid = who.to_string();
                if lease {
                    let got = ipam.lease(&uid, &prefixes).unwrap();
                    prop_assert!(got.iter().zip(&prefixes).all(|(a, p)| p.contains(*a)));
                } else {
                    ipam.release(&uid).unwrap();
                    ipam = Ipam::open(&path).unwrap();
                }
                let all: Vec<IpAddr> = ipam.holders().iter().flat_map(|h| ipam.lease_of(h).unwrap()).collect();
                let distinct: BTreeSet<_> = all.iter().collect();
                prop_assert_eq!(all.len(), distinct.len());
            }
        }
    }
}
