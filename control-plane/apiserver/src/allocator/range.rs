//! Ranges of addresses and ports with what is taken of them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use rand::Rng;

/// Why an address or a port cannot be taken; the texts are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// Somebody else has the address.
    #[error("provided IP is already allocated")]
    IpTaken,
    /// The address is in no range of the cluster.
    #[error("the provided network does not match the current range")]
    IpOutside,
    /// As [`AllocationError::IpOutside`], in a dry run.
    #[error("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}")]
    IpNotInRange {
        /// The address.
        ip: IpAddr,
        /// The range.
        range: String,
    },
    /// Somebody else has the port.
    #[error("provided port is already allocated")]
    PortTaken,
    /// The port is not in the range.
    #[error("provided port is not in the valid range. The range of valid ports is {first}-{last}")]
    PortNotInRange {
        /// First port of the range.
        first: u16,
        /// Last port of the range.
        last: u16,
    },
    /// Nothing is free.
    #[error("range is full")]
    Full,
}

/// Numbers of `0..size` that are taken. The first `reserved` ones are left to explicit requests as long as others are
/// free.
#[derive(Debug, Clone)]
struct Slots {
    taken: HashSet<u64>,
    size: u64,
    reserved: u64,
}

/// A random free number of `first..first + size`, when so many of all numbers are busy at most.
fn pick(first: u64, size: u64, busy: u64, free: impl Fn(u64) -> bool) -> Option<u64> {
    if size == 0 {
        return None;
    }
    // A random place, then the next free one: a number that was just given back is not reused at once.
    let start = rand::rng().random_range(0..size);
    (0..size.min(busy.saturating_add(1))).map(|i| first + (start + i) % size).find(|n| free(*n))
}

impl Slots {
    fn next(&mut self) -> Option<u64> {
        let busy = self.taken.len() as u64;
        let free = |n: u64| !self.taken.contains(&n);
        let number = pick(self.reserved, self.size - self.reserved, busy, free)
            .or_else(|| pick(0, self.reserved, busy, free))?;
        self.taken.insert(number);
        Some(number)
    }
}

/// A range of service addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpRange {
    first: IpAddr,
    bits: u8,
    size: u64,
    reserved: u64,
}

/// The address is a Service's.
const OF_SERVICE: u8 = 1;
/// An IPAddress object of somebody else names the address.
const OF_OBJECT: u8 = 2;

/// The addresses of all ranges in use. Ranges may overlap.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// Ranges to take from, the preferred ones first.
    pub(super) ranges: Vec<IpRange>,
    taken: HashMap<IpAddr, u8>,
}

fn as_number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn at(first: IpAddr, offset: u64) -> IpAddr {
    match first {
        IpAddr::V4(ip) => IpAddr::V4(u32::from(ip).wrapping_add(offset as u32).into()),
        IpAddr::V6(ip) => IpAddr::V6(u128::from(ip).wrapping_add(u128::from(offset)).into()),
    }
}

impl IpRange {
    /// A range such as `10.96.0.0/16`. Of an IPv4 range the first and the last address are not used, of an IPv6 range the
    /// first; of large IPv6 ranges only the first 2^62 addresses are.
    ///
    /// # Errors
    /// A text for the operator when the range cannot be read or has no usable address.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("service range {text:?} is no address range: write it as 10.96.0.0/16");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        if bits >= width {
            return Err(format!("service range {text:?} has no usable address: use a shorter prefix"));
        }
        let host_bits = u32::from(width - bits);
        let mask = if host_bits >= 128 { u128::MAX } else { (1u128 << host_bits) - 1 };
        let base = as_number(address) & !mask;
        let first = match address {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(base).unwrap_or_default().into()),
            IpAddr::V6(_) => IpAddr::V6(base.into()),
        };
        let all = 1u64 << host_bits.min(62);
        let size = if address.is_ipv4() { all.saturating_sub(2) } else { all - 1 };
        if size == 0 {
            return Err(format!("service range {text:?} has no usable address: use a shorter prefix"));
        }
        // The part for explicit requests: a sixteenth, at least 16, at most 256 addresses; none of tiny ranges.
        let reserved = if size < 16 { 0 } else { (size / 16).clamp(16, 256).min(size) };
        Ok(IpRange { first, bits, size, reserved })
    }

    /// The first usable address, which the `kubernetes` Service has.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        at(self.first, 1)
    }

    /// True for an IPv6 range.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.first.is_ipv6()
    }

    /// True when the address may be given to a Service.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        if ip.is_ipv4() != self.first.is_ipv4() {
            return false;
        }
        let offset = as_number(ip).checked_sub(as_number(self.first)).and_then(|o| o.checked_sub(1));
        offset.and_then(|o| u64::try_from(o).ok()).is_some_and(|o| o < self.size)
    }
}

impl Addresses {
    /// Nothing taken of these ranges.
    #[must_use]
    pub fn new(ranges: Vec<IpRange>) -> Self {
        Addresses { ranges, taken: HashMap::new() }
    }

    /// Takes an address for a Service.
    ///
    /// # Errors
    /// When it is taken or in no range; a dry run words the latter in another way.
    pub fn take(&mut self, ip: IpAddr, dry: bool) -> Result<(), AllocationError> {
        if !self.ranges.iter().any(|range| range.contains(ip)) {
            let range = self.ranges.iter().find(|range| range.is_ipv6() == ip.is_ipv6());
            return Err(match range.filter(|_| dry) {
                Some(range) => {
                    AllocationError::IpNotInRange { ip, range: format!("{}/{}", range.first, range.bits) }
                }
                None => AllocationError::IpOutside,
            });
        }
        if self.is_taken(ip) {
            return Err(AllocationError::IpTaken);
        }
        self.taken.insert(ip, OF_SERVICE);
        Ok(())
    }

    /// Takes any free address of a family.
    ///
    /// # Errors
    /// When none is free.
    pub fn take_next(&mut self, ipv6: bool) -> Result<IpAddr, AllocationError> {
        let found = self.ranges.iter().filter(|range| range.is_ipv6() == ipv6).find_map(|range| {
            let busy = self.taken.len() as u64;
            let free = |slot: u64| !self.taken.contains_key(&at(range.first, slot + 1));
            let slot = pick(range.reserved, range.size - range.reserved, busy, free)
                .or_else(|| pick(0, range.reserved, busy, free))?;
            Some(at(range.first, slot + 1))
        });
        let ip = found.ok_or(AllocationError::Full)?;
        self.taken.insert(ip, OF_SERVICE);
        Ok(ip)
    }

    /// Marks an address as a Service's, wherever it is.
    pub fn mark(&mut self, ip: IpAddr) {
        *self.taken.entry(ip).or_default() |= OF_SERVICE;
    }

    /// Gives an address back.
    pub fn release(&mut self, ip: IpAddr) {
        self.taken.remove(&ip);
    }

    /// An IPAddress object names the address, whoever has it.
    pub fn name(&mut self, ip: IpAddr) {
        *self.taken.entry(ip).or_default() |= OF_OBJECT;
    }

    /// The IPAddress object is gone; a Service keeps its address.
    pub fn forget(&mut self, ip: IpAddr) {
        if let Some(marks) = self.taken.get_mut(&ip) {
            *marks &= !OF_OBJECT;
            if *marks == 0 {
                self.taken.remove(&ip);
            }
        }
    }

    /// True when the address is taken.
    #[must_use]
    pub fn is_taken(&self, ip: IpAddr) -> bool {
        self.taken.contains_key(&ip)
    }

    /// Whether a taken address is in one of the first ranges and in none of the others.
    #[must_use]
    pub fn only_in(&self, first: &[IpRange], others: &[IpRange]) -> bool {
        let within = |ranges: &[IpRange], ip: IpAddr| ranges.iter().any(|range| range.contains(ip));
        self.taken.keys().any(|ip| within(first, *ip) && !within(others, *ip))
    }
}

/// The range of node ports.
#[derive(Debug, Clone)]
pub struct PortRange {
    first: u16,
    last: u16,
    slots: Slots,
}

impl PortRange {
    /// The ports from `first` to `last`.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Self {
        let size = u64::from(last.saturating_sub(first)) + 1;
        // The part for explicit requests: a thirty-second, at least 16, at most 128 ports; none of tiny ranges.
        let reserved = if size < 16 { 0 } else { (size / 32).clamp(16, 128).min(size) };
        PortRange { first, last, slots: Slots { taken: HashSet::new(), size, reserved } }
    }

    fn slot(&self, port: i64) -> Option<u64> {
        u64::try_from(port - i64::from(self.first)).ok().filter(|s| *s < self.slots.size)
    }

    /// Takes a port.
    ///
    /// # Errors
    /// When it is taken or not in the range.
    pub fn take(&mut self, port: i64) -> Result<(), AllocationError> {
        let Some(slot) = self.slot(port) else {
            return Err(AllocationError::PortNotInRange { first: self.first, last: self.last });
        };
        if self.slots.taken.insert(slot) { Ok(()) } else { Err(AllocationError::PortTaken) }
    }

    /// Takes any free port.
    ///
    /// # Errors
    /// When none is free.
    pub fn take_next(&mut self) -> Result<i64, AllocationError> {
        let slot = self.slots.next().ok_or(AllocationError::Full)?;
        Ok(i64::from(self.first) + i64::try_from(slot).unwrap_or_default())
    }

    /// Gives a port back.
    pub fn release(&mut self, port: i64) {
        if let Some(slot) = self.slot(port) {
            self.slots.taken.remove(&slot);
        }
    }

    /// True when the port is taken.
    #[must_use]
    pub fn is_taken(&self, port: i64) -> bool {
        self.slot(port).is_some_and(|slot| self.slots.taken.contains(&slot))
    }
}
