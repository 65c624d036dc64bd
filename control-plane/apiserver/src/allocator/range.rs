//! Ranges of addresses and ports with what is taken of them.

use std::collections::HashSet;
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

impl Slots {
    fn next(&mut self) -> Option<u64> {
        let pick = |slots: &Self, first: u64, size: u64| {
            if size == 0 {
                return None;
            }
            // A random place, then the next free one: a number that was just given back is not reused at once.
            let start = rand::rng().random_range(0..size);
            (0..size.min(slots.taken.len() as u64 + 1))
                .map(|i| first + (start + i) % size)
                .find(|n| !slots.taken.contains(n))
        };
        let number =
            pick(self, self.reserved, self.size - self.reserved).or_else(|| pick(self, 0, self.reserved))?;
        self.taken.insert(number);
        Some(number)
    }
}

/// A range of service addresses.
#[derive(Debug, Clone)]
pub struct IpRange {
    first: IpAddr,
    bits: u8,
    slots: Slots,
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
        Ok(IpRange { first, bits, slots: Slots { taken: HashSet::new(), size, reserved } })
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

    fn slot(&self, ip: IpAddr) -> Option<u64> {
        if ip.is_ipv4() != self.first.is_ipv4() {
            return None;
        }
        let offset = as_number(ip).checked_sub(as_number(self.first))?.checked_sub(1)?;
        u64::try_from(offset).ok().filter(|o| *o < self.slots.size)
    }

    /// Takes an address.
    ///
    /// # Errors
    /// When it is taken or not in the range; a dry run words the latter in another way.
    pub fn take(&mut self, ip: IpAddr, dry: bool) -> Result<(), AllocationError> {
        let Some(slot) = self.slot(ip) else {
            return Err(if dry {
                AllocationError::IpNotInRange { ip, range: format!("{}/{}", self.first, self.bits) }
            } else {
                AllocationError::IpOutside
            });
        };
        if self.slots.taken.insert(slot) { Ok(()) } else { Err(AllocationError::IpTaken) }
    }

    /// Takes any free address.
    ///
    /// # Errors
    /// When none is free.
    pub fn take_next(&mut self) -> Result<IpAddr, AllocationError> {
        self.slots.next().map(|slot| at(self.first, slot + 1)).ok_or(AllocationError::Full)
    }

    /// Gives an address back.
    pub fn release(&mut self, ip: IpAddr) {
        if let Some(slot) = self.slot(ip) {
            self.slots.taken.remove(&slot);
        }
    }

    /// True when the address is taken.
    #[must_use]
    pub fn is_taken(&self, ip: IpAddr) -> bool {
        self.slot(ip).is_some_and(|slot| self.slots.taken.contains(&slot))
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
