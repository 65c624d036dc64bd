//! Choosing CPUs by where they are: whole NUMA nodes and sockets, then whole cores, then single ones, the fullest places
//! first (upstream's `takeByTopologyNUMAPacked`).

use super::CpuSet;
use std::collections::{BTreeMap, BTreeSet};

/// Where a CPU is. Numbers are unique in the machine: that of a core is its first CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// NUMA node.
    pub numa: u32,
    /// Socket.
    pub socket: u32,
    /// Core.
    pub core: u32,
}

/// The CPUs of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology(pub BTreeMap<u32, Place>);

/// There are too few CPUs; the text is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not enough cpus available to satisfy request: requested={requested}, available={available}")]
pub struct NotEnough {
    /// CPUs asked for.
    pub requested: usize,
    /// CPUs that there are.
    pub available: usize,
}

type Level = fn(&Place) -> u32;
const NUMA: Level = |place| place.numa;
const SOCKET: Level = |place| place.socket;
const CORE: Level = |place| place.core;

impl Topology {
    /// All CPUs.
    pub fn cpus(&self) -> CpuSet {
        self.0.keys().copied().collect()
    }

    fn count(&self, level: Level) -> usize {
        self.0.values().map(level).collect::<BTreeSet<_>>().len()
    }

    /// CPUs of a core, where all cores are alike.
    pub fn per_core(&self) -> usize {
        self.0.len().checked_div(self.count(CORE)).unwrap_or(1).max(1)
    }

    /// The CPUs of all cores that a set has a part of.
    pub fn whole_cores(&self, cpus: &CpuSet) -> CpuSet {
        let cores: BTreeSet<u32> =
            cpus.0.iter().filter_map(|cpu| self.0.get(cpu)).map(|place| place.core).collect();
        self.0.iter().filter(|(_, place)| cores.contains(&place.core)).map(|(cpu, _)| *cpu).collect()
    }

    /// Chooses `wanted` of the `available` CPUs.
    ///
    /// # Errors
    /// There are fewer.
    pub fn take(&self, available: &CpuSet, wanted: usize) -> Result<CpuSet, NotEnough> {
        let free = self.0.iter().filter(|(cpu, _)| available.0.contains(cpu));
        let mut taking = Taking {
            all: self,
            free: free.map(|(cpu, place)| (*cpu, *place)).collect(),
            taken: CpuSet::default(),
            left: wanted,
        };
        if taking.free.len() < wanted {
            return Err(NotEnough { requested: wanted, available: taking.free.len() });
        }
        // What is higher in the hierarchy of memory comes first.
        let numa_first = self.count(SOCKET) >= self.count(NUMA);
        let levels = if numa_first { [NUMA, SOCKET] } else { [SOCKET, NUMA] };
        taking.whole(&taking.sorted(&levels[..1]), levels[0]);
        taking.whole(&taking.sorted(&levels), levels[1]);
        let order = [levels[0], levels[1], CORE];
        taking.whole(&taking.sorted(&order), CORE);
        for core in taking.sorted(&order) {
            for cpu in taking.of(CORE, core) {
                if taking.left > 0 {
                    taking.take(&[cpu]);
                }
            }
        }
        Ok(taking.taken)
    }
}

struct Taking<'a> {
    all: &'a Topology,
    free: BTreeMap<u32, Place>,
    taken: CpuSet,
    left: usize,
}

impl Taking<'_> {
    fn of(&self, level: Level, id: u32) -> Vec<u32> {
        self.free.iter().filter(|(_, place)| level(place) == id).map(|(cpu, _)| *cpu).collect()
    }

    /// The places of the last of `levels`, sorted by free CPUs within those of the level before.
    fn sorted(&self, levels: &[Level]) -> Vec<u32> {
        let mut groups: Vec<Vec<(u32, Place)>> = vec![self.free.iter().map(|(c, p)| (*c, *p)).collect()];
        let mut ids = Vec::new();
        for level in levels {
            ids.clear();
            let mut next = Vec::new();
            for group in groups {
                let mut parts: BTreeMap<u32, Vec<(u32, Place)>> = BTreeMap::new();
                for (cpu, place) in group {
                    parts.entry(level(&place)).or_default().push((cpu, place));
                }
                let mut parts: Vec<_> = parts.into_iter().collect();
                // Of all its free CPUs, wherever else they belong.
                parts.sort_by_key(|(id, _)| (self.of(*level, *id).len(), *id));
                for (id, part) in parts {
                    ids.push(id);
                    next.push(part);
                }
            }
            groups = next;
        }
        ids
    }

    /// Takes places that are free as a whole and not more than what is left to take.
    fn whole(&mut self, ids: &[u32], level: Level) {
        for id in ids {
            let all = self.all.0.values().filter(|place| level(place) == *id).count();
            let free = self.of(level, *id);
            if free.len() == all && all <= self.left {
                self.take(&free);
            }
        }
    }

    fn take(&mut self, cpus: &[u32]) {
        for cpu in cpus {
            self.free.remove(cpu);
            self.taken.0.insert(*cpu);
        }
        self.left = self.left.saturating_sub(cpus.len());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two sockets (each a NUMA node) of three cores with two threads; thread siblings are six apart.
    pub fn two_sockets() -> Topology {
        let place = |cpu: u32| {
            let core = cpu % 6;
            Place { numa: core % 2, socket: core % 2, core }
        };
        Topology((0..12).map(|cpu| (cpu, place(cpu))).collect())
    }

    fn take(available: &str, wanted: usize) -> String {
        let cpus = two_sockets().take(&available.parse().unwrap(), wanted);
        cpus.map_or_else(|e| e.to_string(), |cpus| cpus.to_string())
    }

    #[test]
    fn whole_places_come_first() {
        assert_eq!(take("0-11", 6), "0,2,4,6,8,10", "a socket");
        assert_eq!(take("0-11", 2), "0,6", "a core");
        assert_eq!(take("0-11", 8), "0-2,4,6-8,10", "a socket and a core of the other");
        assert_eq!(take("0-11", 1), "0");
        assert_eq!(take("1-11", 1), "6", "the core that is taken in part");
        assert_eq!(take("1-5,7-11", 3), "2,4,8", "the socket with fewer left");
        assert_eq!(take("0-11", 0), "");
        assert_eq!(take("0-11", 12), "0-11");
        assert_eq!(take("3-4", 3), "not enough cpus available to satisfy request: requested=3, available=2");
    }

    #[test]
    fn cores() {
        let topology = two_sockets();
        assert_eq!(topology.per_core(), 2);
        assert_eq!(topology.whole_cores(&"0,3".parse().unwrap()).to_string(), "0,3,6,9");
        assert_eq!(Topology::default().per_core(), 1);
    }

    #[test]
    fn numa_nodes_within_a_socket() {
        // One socket, two NUMA nodes of two cores without siblings.
        let place = |cpu: u32| Place { numa: cpu / 2, socket: 0, core: cpu };
        let topology = Topology((0..4).map(|cpu| (cpu, place(cpu))).collect());
        let take =
            |available: &str, wanted| topology.take(&available.parse().unwrap(), wanted).unwrap().to_string();
        assert_eq!(take("0-3", 2), "0-1");
        assert_eq!(take("1-3", 2), "2-3", "a whole node");
        assert_eq!(take("1-3", 1), "1");
        assert_eq!(take("0-3", 4), "0-3");
    }
}
