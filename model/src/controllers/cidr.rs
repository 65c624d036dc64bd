//! Giving each node its own piece of the cluster's address range.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address range, `10.244.0.0/16`; host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    base: u128,
    prefix: u8,
    v6: bool,
}

/// Why a text is no address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address range: write it like 10.244.0.0/16 or fd00:10:244::/56")]
pub struct CidrError(String);

impl Cidr {
    /// Whether this is an IPv6 range.
    #[must_use]
    pub fn is_ipv6(self) -> bool {
        self.v6
    }

    /// Bits of the prefix.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    fn bits(self) -> u8 {
        if self.v6 { 128 } else { 32 }
    }

    /// First and last address as numbers.
    fn range(self) -> (u128, u128) {
        let host = u32::from(self.bits() - self.prefix);
        let mask = if host >= 128 { u128::MAX } else { (1u128 << host) - 1 };
        (self.base, self.base | mask)
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let ((a, b), (c, d)) = (self.range(), other.range());
        self.v6 == other.v6 && a <= d && c <= b
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        let (base, v6) = match address.parse::<IpAddr>().map_err(|_| error())? {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), false),
            IpAddr::V6(ip) => (u128::from(ip), true),
        };
        let mut cidr = Self { base, prefix, v6 };
        if prefix > cidr.bits() {
            return Err(error());
        }
        let (_, last) = Self { base: 0, ..cidr }.range();
        cidr.base &= !last;
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.v6 {
            write!(f, "{}/{}", Ipv6Addr::from(self.base), self.prefix)
        } else {
            write!(f, "{}/{}", Ipv4Addr::from(u32::try_from(self.base).unwrap_or_default()), self.prefix)
        }
    }
}

/// The pieces of one cluster range that are in use.
#[derive(Debug, Clone)]
pub struct CidrPool {
    cluster: Cidr,
    node_prefix: u8,
    used: BTreeSet<Cidr>,
    /// Where to look first, so that a piece just given back is not given out at once.
    next: u128,
}

impl CidrPool {
    /// A pool of pieces of `node_prefix` bits. `None` when pieces would be larger than the range or the host part of a
    /// node would be empty.
    #[must_use]
    pub fn new(cluster: Cidr, node_prefix: u8) -> Option<Self> {
        (node_prefix >= cluster.prefix && node_prefix < cluster.bits()).then_some(Self {
            cluster,
            node_prefix,
            used: BTreeSet::new(),
            next: 0,
        })
    }

    /// The cluster's range.
    #[must_use]
    pub fn cluster(&self) -> Cidr {
        self.cluster
    }

    /// Marks a range as in use; `false` when it overlaps one that is in use already.
    pub fn occupy(&mut self, cidr: Cidr) -> bool {
        if self.used.iter().any(|u| u.overlaps(cidr)) {
            return false;
        }
        self.used.insert(cidr)
    }

    /// Gives a range back.
    pub fn release(&mut self, cidr: Cidr) {
        self.used.remove(&cidr);
    }

    /// Takes a free piece, or `None` when all are in use.
    pub fn allocate(&mut self) -> Option<Cidr> {
        let host = u32::from(self.cluster.bits() - self.node_prefix);
        let count = 1u128.checked_shl(u32::from(self.node_prefix - self.cluster.prefix)).unwrap_or(u128::MAX);
        // Each range in use blocks a bounded number of pieces; ranges larger than a piece are rare.
        let mut tried = 0u128;
        let mut index = self.next % count;
        while tried < count {
            let piece = Cidr {
                base: self.cluster.base | (index << host),
                prefix: self.node_prefix,
                v6: self.cluster.v6,
            };
            if self.occupy(piece) {
                self.next = (index + 1) % count;
                return Some(piece);
            }
            index = (index + 1) % count;
            tried += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn reads_and_writes() {
        assert_eq!(cidr("10.244.7.9/16").to_string(), "10.244.0.0/16");
        assert_eq!(cidr("fd00:10:244::1/56").to_string(), "fd00:10:244::/56");
        for bad in ["10.244.0.0", "10.244.0.0/33", "x/8", "fd00::/129", "10.0.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        assert!(cidr("10.0.0.0/8").overlaps(cidr("10.9.0.0/24")));
        assert!(!cidr("10.0.0.0/24").overlaps(cidr("10.0.1.0/24")));
    }

    #[test]
    fn gives_out_each_piece_once_and_none_that_is_in_use() {
        let mut pool = CidrPool::new(cidr("10.244.0.0/22"), 24).unwrap();
        assert!(pool.occupy(cidr("10.244.1.0/24")));
        assert!(!pool.occupy(cidr("10.244.1.128/25")));
        let given: Vec<String> = std::iter::from_fn(|| pool.allocate()).map(|c| c.to_string()).collect();
        assert_eq!(given, ["10.244.0.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        pool.release(cidr("10.244.2.0/24"));
        assert_eq!(pool.allocate(), Some(cidr("10.244.2.0/24")));
    }

    #[test]
    fn ipv6_pieces() {
        let mut pool = CidrPool::new(cidr("fd00:10:244::/56"), 64).unwrap();
        assert_eq!(pool.allocate().unwrap().to_string(), "fd00:10:244::/64");
        assert_eq!(pool.allocate().unwrap().to_string(), "fd00:10:244:1::/64");
        assert!(CidrPool::new(cidr("fd00::/64"), 56).is_none());
        assert!(CidrPool::new(cidr("10.0.0.0/24"), 32).is_none());
    }

    proptest! {
        /// Whatever is taken and given back, pieces in use never overlap and lie in the cluster's range.
        #[test]
        fn pieces_never_overlap(actions in prop::collection::vec(prop::option::of(0usize..20), 1..60)) {
            let mut pool = CidrPool::new(cidr("10.244.0.0/20"), 24).unwrap();
            let mut held: Vec<Cidr> = Vec::new();
            for action in actions {
                match action {
                    Some(i) if i < held.len() => pool.release(held.swap_remove(i)),
                    _ => match pool.allocate() {
                        Some(piece) => {
                            prop_assert!(held.iter().all(|h| !h.overlaps(piece)));
                            prop_assert!(pool.cluster().overlaps(piece));
                            held.push(piece);
                        }
                        None => prop_assert_eq!(held.len(), 16),
                    },
                }
            }
        }
    }
}
