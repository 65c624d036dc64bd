//! Where the programs are attached. What is attached holds its program, so nothing changes when the agent dies; the
//! next one finds what is attached and swaps the programs.
//!
//! | Hook | Attached by | Found again by |
//! |---|---|---|
//! | sockets of a cgroup | link | its pin; without one, among all links |
//! | devices, since 6.6 | tcx link | its pin; without one, among the device's |
//! | devices, before | filter of a `clsact` qdisc, see [`super::filter`] | its name, among the device's |
//! | the uplink, before it makes buffers | XDP link, see [`super::xdp`] | its pin; without one, among all links |
//!
//! Pins are lost with their bpffs (one that is mounted over it hides them), and what they held may go on working. So the
//! kernel is asked, whatever is pinned, and what is attached twice is detached. A program is ours if it has the name of
//! one of ours and a map of ours.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kelp_common::maps;

use super::filter::{Filters, Side};
use super::{Kernel, SOCKET_HOOKS, failed, remove};
use crate::dataplane::DatapathError;
use crate::dataplane::sys::query::{self, Target};
use crate::dataplane::sys::{self, AttachType};

/// How the programs of devices are attached.
pub(super) enum Devices {
    /// By links.
    Tcx,
    /// By filters: the kernel has no such links.
    Filters(Filters),
}

impl Devices {
    /// What this kernel has; with `filters`, these in any case.
    pub fn new(filters: bool) -> Result<Self, DatapathError> {
        // Every network namespace has a loopback device, and it is the first.
        const LOOPBACK: u32 = 1;
        if !filters && query::attached(LOOPBACK, AttachType::TcxIngress).is_ok() {
            return Ok(Self::Tcx);
        }
        Ok(Self::Filters(Filters::open().map_err(failed("open a netlink socket"))?))
    }
}

/// The programs of a pod's device.
const POD: [(&str, Side); 2] = [("from_pod", Side::Ingress), ("to_pod", Side::Egress)];
/// The programs of the uplink.
const UPLINK: [(&str, Side); 2] = [("from_net", Side::Ingress), ("to_net", Side::Egress)];

/// The programs of the tunnels' device.
const TUNNEL: [(&str, Side); 2] = [("from_net", Side::Ingress), ("to_tunnel", Side::Egress)];

impl Side {
    fn tcx(self) -> AttachType {
        if self == Self::Ingress { AttachType::TcxIngress } else { AttachType::TcxEgress }
    }

    /// In names of pins.
    fn name(self) -> &'static str {
        if self == Self::Ingress { "in" } else { "out" }
    }
}

impl Kernel {
    /// Attaches the socket hooks to a cgroup2 directory, or swaps their programs when they are attached. Links of
    /// another cgroup than this, or of one that was removed, are replaced.
    ///
    /// # Errors
    /// When the directory is not on a cgroup2 or the kernel refuses a link.
    pub fn attach_sockets(&self, cgroup: &Path) -> Result<(), DatapathError> {
        let directory =
            fs::File::open(cgroup).map_err(failed(format!("open the cgroup {}", cgroup.display())))?;
        let id = directory.metadata().map_err(failed("look at the cgroup"))?.ino();
        let target = directory.as_raw_fd().cast_unsigned();
        let action = |name: &str| format!("attach {name} to the cgroup {}", cgroup.display());
        // The kernel does not tell the links of a cgroup, only its programs: all links are looked at, once.
        let mut there = Vec::new();
        for link in query::links().map_err(failed("list links"))? {
            let info = query::link_info(link.as_fd()).map_err(failed("look at a link"))?;
            if info.target == Target::Cgroup(id) {
                there.push((info.attach_type, link));
            }
        }
        for (name, attach_type) in SOCKET_HOOKS {
            let (mine, rest) = there.into_iter().partition(|(hook, _)| *hook == attach_type as u32);
            there = rest;
            let mine = mine.into_iter().map(|(_, link)| link).collect();
            self.attach(name, name, Target::Cgroup(id), target, attach_type, mine)
                .map_err(failed(action(name)))?;
        }
        Ok(())
    }

    /// Attaches the programs of the uplink; those of another device than `ifindex` are detached, unless it is `tunnel`.
    ///
    /// # Errors
    /// When the device is gone or the kernel refuses.
    pub fn attach_uplink(&self, ifindex: u32, tunnel: u32) -> Result<(), DatapathError> {
        let action = || format!("attach to the uplink with index {ifindex}");
        if let Devices::Filters(filters) = &self.devices {
            let others = devices().map_err(failed(action()))?.into_iter();
            for other in others.filter(|other| *other != ifindex && *other != tunnel) {
                let is_ours =
                    |filter: &super::filter::Filter| UPLINK.iter().any(|(program, _)| filter.is_of(program));
                filters.detach(other, is_ours).map_err(failed(action()))?;
            }
        }
        UPLINK
            .into_iter()
            .try_for_each(|(program, side)| self.attach_device(program, "uplink", ifindex, side))
            .map_err(failed(action()))
    }

    /// Attaches the programs of the tunnels' device.
    ///
    /// # Errors
    /// When the device is gone or the kernel refuses.
    pub fn attach_tunnel(&self, ifindex: u32) -> Result<(), DatapathError> {
        TUNNEL
            .into_iter()
            .try_for_each(|(program, side)| self.attach_device(program, "tunnel", ifindex, side))
            .map_err(failed(format!("attach to the tunnels' device with index {ifindex}")))
    }

    /// Detaches the programs of the tunnels' device, which is about to be removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach_tunnel(&self) -> Result<(), DatapathError> {
        match &self.devices {
            Devices::Tcx => TUNNEL.into_iter().try_for_each(|(_, side)| {
                detach_pinned(&self.directory.join(format!("links/tunnel-{}", side.name())))
            }),
            // Filters go with their device.
            Devices::Filters(_) => Ok(()),
        }
    }

    /// Attaches the programs of a pod's host-side device.
    ///
    /// # Errors
    /// When the device is gone or the kernel refuses.
    pub fn attach_pod(&self, ifindex: u32) -> Result<(), DatapathError> {
        POD.into_iter()
            .try_for_each(|(program, side)| {
                self.attach_device(program, &format!("pod-{ifindex}"), ifindex, side)
            })
            .map_err(failed(format!("attach to the pod device with index {ifindex}")))
    }

    /// Detaches the programs of a pod's device; it may be gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach_pod(&self, ifindex: u32) -> Result<(), DatapathError> {
        match &self.devices {
            Devices::Tcx => POD.into_iter().try_for_each(|(_, side)| {
                detach_pinned(&self.directory.join(format!("links/pod-{ifindex}-{}", side.name())))
            }),
            Devices::Filters(filters) => filters
                .detach(ifindex, |filter| POD.iter().any(|(program, _)| filter.is_of(program)))
                .map_err(failed(format!("detach from the pod device with index {ifindex}"))),
        }
    }

    /// Takes over the pods that a former agent left: swaps the programs of those whose devices live, forgets the others.
    /// Returns the devices' indexes.
    ///
    /// # Errors
    /// When the directory of links cannot be read or a program cannot be swapped.
    pub fn adopt_links(&self) -> Result<BTreeSet<u32>, DatapathError> {
        let mut pods = BTreeSet::new();
        if let Devices::Filters(filters) = &self.devices {
            for ifindex in devices().map_err(failed("list the devices"))? {
                let there = filters.list(ifindex, Side::Ingress).map_err(failed("list filters"))?;
                if there.iter().any(|filter| filter.is_of("from_pod")) {
                    self.attach_pod(ifindex)?;
                    pods.insert(ifindex);
                }
            }
            return Ok(pods);
        }
        let directory = self.directory.join("links");
        for entry in fs::read_dir(&directory).map_err(failed("read the directory of links"))? {
            let path = entry.map_err(failed("read the directory of links"))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((ifindex, side)) = name.strip_prefix("pod-").and_then(|rest| rest.split_once('-'))
            else {
                continue;
            };
            let Ok(ifindex) = ifindex.parse::<u32>() else { continue };
            let program = if side == "in" { "from_pod" } else { "to_pod" };
            let link = sys::open_pin(&path).map_err(failed(format!("open the link {}", path.display())))?;
            if !is_at(&link, Target::Device(ifindex)) {
                detach_pinned(&path)?;
                continue;
            }
            sys::link_update(link.as_fd(), self.program(program)?)
                .map_err(failed(format!("replace the program of {name}")))?;
            pods.insert(ifindex);
        }
        Ok(pods)
    }

    /// Attaches to a device.
    fn attach_device(&self, program: &'static str, pin: &str, ifindex: u32, side: Side) -> io::Result<()> {
        match &self.devices {
            Devices::Tcx => {
                let mut there = Vec::new();
                for (_, link) in query::attached(ifindex, side.tcx())? {
                    there.extend(query::link(link)?);
                }
                let pin = format!("{pin}-{}", side.name());
                self.attach(program, &pin, Target::Device(ifindex), ifindex, side.tcx(), there)
            }
            Devices::Filters(filters) => {
                filters.attach(ifindex, side, program, self.program(program).map_err(io::Error::other)?)
            }
        }
    }

    /// Attaches a program by a link, or swaps it in when it is attached already: by the link that is pinned, if it is
    /// one of this place, or by one of those that are `there`. All others of ours that are there are detached.
    fn attach(
        &self,
        program: &'static str,
        pin: &str,
        place: Target,
        target: u32,
        attach_type: AttachType,
        there: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let path = self.directory.join("links").join(pin);
        let pinned = match sys::open_pin(&path) {
            Ok(link) if is_at(&link, place) => Some(link),
            Ok(link) => {
                query::link_detach(link.as_fd())?;
                fs::remove_file(&path)?;
                None
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut known = match &pinned {
            Some(link) => Some(query::link_info(link.as_fd())?.id),
            None => None,
        };
        let fd = self.program(program).map_err(io::Error::other)?;
        if let Some(link) = &pinned {
            sys::link_update(link.as_fd(), fd)?;
        }
        for link in there {
            let info = query::link_info(link.as_fd())?;
            if known == Some(info.id) || !is_ours(info.program, program)? {
                continue;
            }
            if known.is_some() {
                tracing::warn!(program, "detached: it was attached twice");
                query::link_detach(link.as_fd())?;
                continue;
            }
            tracing::warn!(
                program,
                "found attached though its pin is gone; is a bpffs mounted over another?"
            );
            sys::link_update(link.as_fd(), fd)?;
            sys::pin(link.as_fd(), &path)?;
            known = Some(info.id);
        }
        if known.is_none() {
            let link = sys::link_create(fd, target, attach_type, 0)?;
            sys::pin(link.as_fd(), &path)?;
        }
        Ok(())
    }
}

/// Detaches a link and removes its pin; succeeds when there is none. The removal alone would detach it too, but some time
/// later: the kernel lets go of a pinned object after an RCU grace period, on a work queue.
pub(super) fn detach_pinned(path: &Path) -> Result<(), DatapathError> {
    match sys::open_pin(path) {
        Ok(link) => {
            query::link_detach(link.as_fd())
                .map_err(failed(format!("detach the link {}", path.display())))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(format!("open the link {}", path.display()))(error)),
    }
    remove(path)
}

/// Whether a link is attached at this place.
fn is_at(link: &OwnedFd, place: Target) -> bool {
    query::link_info(link.as_fd()).is_ok_and(|info| info.target == place)
}

/// Whether a loaded program is our `name`, of this agent or a former one.
pub(super) fn is_ours(program: u32, name: &str) -> io::Result<bool> {
    let Some(info) = query::program(program)?.filter(|info| info.name == name) else { return Ok(false) };
    for map in info.maps {
        if query::map_name(map)?.is_some_and(|map| is_our_map(&map)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a map, by its name as the kernel keeps it, is one of ours in any version of its layout.
fn is_our_map(name: &str) -> bool {
    let stem = |name: &str| name.rsplit_once("_V").map(|(stem, _)| stem.to_owned());
    let cut = |name: &str| name.chars().take(15).collect::<String>();
    maps::ALL
        .into_iter()
        .any(|ours| cut(ours) == name || stem(ours).is_some_and(|ours| stem(name) == Some(ours)))
}

/// The devices of the calling thread's network namespace.
fn devices() -> io::Result<Vec<u32>> {
    Ok(nix::net::if_::if_nameindex()?.into_iter().map(|device| device.index()).collect())
}

/// Detaches all that uses a map pinned in `directory`: also links whose pins are elsewhere, and filters.
pub(super) fn detach_all(directory: &Path) -> Result<(), DatapathError> {
    let mut own = BTreeSet::new();
    for pin in fs::read_dir(directory.join("maps")).into_iter().flatten().flatten() {
        let id = sys::open_pin(&pin.path()).and_then(|map| query::map_id(map.as_fd()));
        own.insert(id.map_err(failed(format!("look at the map {}", pin.path().display())))?);
    }
    if own.is_empty() {
        return Ok(());
    }
    let is_own = |program: u32| -> io::Result<bool> {
        Ok(query::program(program)?.is_some_and(|info| info.maps.iter().any(|map| own.contains(map))))
    };
    let links = || -> io::Result<()> {
        for link in query::links()? {
            let info = query::link_info(link.as_fd())?;
            if info.target != Target::Other && is_own(info.program)? {
                query::link_detach(link.as_fd())?;
            }
        }
        Ok(())
    };
    links().map_err(failed("detach links"))?;
    let filters = || -> io::Result<()> {
        let filters = Filters::open()?;
        for ifindex in devices()? {
            filters.detach(ifindex, |filter| filter.program.is_some_and(|id| is_own(id).unwrap_or(false)))?;
        }
        Ok(())
    };
    filters().map_err(failed("detach filters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_every_layout_are_ours() {
        for ours in ["FLOWS_V1", "FLOWS_V27", "NODE_CONFIG_V2", "SOURCE_RANGES_V"] {
            assert!(is_our_map(ours), "{ours}");
        }
        for other in ["FLOWS", "cilium_lb4_serv", "SCRATCH", "FLOW_V1", ""] {
            assert!(!is_our_map(other), "{other}");
        }
        assert!(maps::ALL.iter().all(|name| is_our_map(&name.chars().take(15).collect::<String>())));
    }
}
