//! Maps of another size, without losing what they hold. A map cannot grow in place, so a new one is made beside it:
//!
//! 1. The pin of the old map moves aside; loading makes and pins the new one.
//! 2. The content is copied, then programs that use the new map replace the old ones at their links.
//! 3. What was written to the old map between the copy and the replacement is copied, and the old map is forgotten.
//!
//! Every step can be repeated, so an agent that dies in between is no harm: the next one finds the old map aside.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use kelp_common::{
    Address, AffinityKey, AffinityValue, Backend, ConnectionValue, EndpointValue, EndpointValueV1, FlowKey,
    FlowValue, FrontendKey, FrontendValue, IdentityKey, PortKey, PrefixKey, RuleKey, SlotKey, SocketKey,
    SocketValue, SourceRangeKey, limits, maps,
};

use super::{Kernel, check_shape, failed};
use crate::dataplane::DatapathError;
use crate::dataplane::sys::{self, Plain};

/// Directory of maps that are being replaced.
pub const OLD_MAPS: &str = "old-maps";

/// The maps whose size can be chosen, with their usual size.
pub const SIZES: [(&str, u32); 13] = [
    (maps::FRONTENDS, limits::FRONTENDS),
    (maps::SLOTS, limits::SLOTS),
    (maps::BACKENDS, limits::BACKENDS),
    (maps::SOURCE_RANGES, limits::SOURCE_RANGES),
    (maps::MAGLEV, limits::MAGLEV),
    (maps::AFFINITIES, limits::AFFINITIES),
    (maps::FLOWS, limits::FLOWS),
    (maps::SOCKETS, limits::SOCKETS),
    (maps::IDENTITIES, limits::IDENTITIES),
    (maps::PREFIXES, limits::PREFIXES),
    (maps::RULES, limits::RULES),
    (maps::PORTS, limits::PORTS),
    (maps::CONNECTIONS, limits::CONNECTIONS),
];

/// Moves the pins of maps with another size aside.
pub fn put_aside(directory: &Path, sizes: &BTreeMap<&'static str, u32>) -> Result<(), DatapathError> {
    for (name, size) in sizes {
        let pin = directory.join("maps").join(name);
        let Ok(map) = sys::open_pin(&pin) else { continue };
        let (_, _, entries) =
            sys::map_shape(map.as_fd()).map_err(failed(format!("look at the map {name}")))?;
        let aside = directory.join(OLD_MAPS).join(name);
        // One that is aside already holds what is not in the new map yet; it is taken over first.
        if entries == *size || aside.exists() {
            continue;
        }
        fs::create_dir_all(directory.join(OLD_MAPS)).map_err(failed("create the directory of old maps"))?;
        fs::rename(&pin, &aside).map_err(failed(format!("put the map {name} aside")))?;
        tracing::info!(map = name, from = entries, to = size, "map gets another size");
    }
    Ok(())
}

/// Copies what maps put aside hold and their successors do not.
pub fn copy(kernel: &Kernel) -> Result<(), DatapathError> {
    for (name, _) in SIZES {
        let Ok(old) = sys::open_pin(&kernel.directory().join(OLD_MAPS).join(name)) else { continue };
        let new = kernel.map(name)?;
        let (old, new) = (old.as_fd(), new.as_fd());
        match name {
            maps::FRONTENDS => copy_entries::<FrontendKey, FrontendValue>(name, old, new),
            maps::SLOTS => copy_entries::<SlotKey, u32>(name, old, new),
            maps::BACKENDS => copy_entries::<u32, Backend>(name, old, new),
            maps::SOURCE_RANGES => copy_entries::<SourceRangeKey, u32>(name, old, new),
            maps::MAGLEV => super::maglev::copy(old, new).map_err(failed(format!("copy the map {name}"))),
            maps::AFFINITIES => copy_entries::<AffinityKey, AffinityValue>(name, old, new),
            maps::FLOWS => copy_entries::<FlowKey, FlowValue>(name, old, new),
            maps::SOCKETS => copy_entries::<SocketKey, SocketValue>(name, old, new),
            maps::IDENTITIES => copy_entries::<IdentityKey, u32>(name, old, new),
            maps::PREFIXES => copy_entries::<PrefixKey, u32>(name, old, new),
            maps::RULES => copy_entries::<RuleKey, u32>(name, old, new),
            maps::PORTS => copy_entries::<PortKey, u32>(name, old, new),
            maps::CONNECTIONS => copy_entries::<FlowKey, ConnectionValue>(name, old, new),
            _ => Ok(()),
        }?;
    }
    Ok(())
}

fn copy_entries<K: Plain, V: Plain>(
    name: &str,
    old: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
) -> Result<(), DatapathError> {
    check_shape::<K, V>(old, name)?;
    let mut result = Ok(());
    let scan = sys::map_scan(old, |key: &K, value: &V| {
        if result.is_ok() {
            result = match sys::map_insert(new, key, value) {
                // A smaller map holds what it can; the reconciler reports what is missing.
                Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => Ok(()),
                other => other.map(drop),
            };
        }
    });
    scan.and(result).map_err(failed(format!("copy the map {name}")))
}

/// Takes over the pods of an agent whose endpoints had no policies yet, before programs look for them in the new map.
pub fn adopt_endpoints(kernel: &Kernel) -> Result<(), DatapathError> {
    let name = maps::ENDPOINTS_BEFORE_POLICIES;
    let Ok(old) = sys::open_pin(&kernel.directory().join("maps").join(name)) else { return Ok(()) };
    check_shape::<Address, EndpointValueV1>(old.as_fd(), name)?;
    let new = kernel.map(maps::ENDPOINTS)?;
    let mut result = Ok(());
    let scan = sys::map_scan(old.as_fd(), |address: &Address, old: &EndpointValueV1| {
        let EndpointValueV1 { ifindex, pod_mac, host_mac } = *old;
        let value = EndpointValue { ifindex, pod_mac, host_mac, ..EndpointValue::default() };
        if result.is_ok() {
            result = sys::map_insert(new.as_fd(), address, &value).map(drop);
        }
    });
    scan.and(result).map_err(failed(format!("copy the map {name}")))
}

/// Removes the pins of maps that were replaced.
pub fn forget(directory: &Path) -> Result<(), DatapathError> {
    let directory = directory.join(OLD_MAPS);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("remove {}", directory.display()))(error))
        }
        _ => Ok(()),
    }
}
