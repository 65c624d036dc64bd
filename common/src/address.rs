//! Addresses of both families in one form.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv6 or v4-mapped address: four words in network byte order, so that kernel code compares words.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Address(pub [u32; 4]);

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);

/// The third word of a v4-mapped address (`0000:ffff`).
pub const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();

impl Address {
    /// `0.0.0.0`: the address of node port frontends of IPv4.
    pub const ANY_V4: Self = Self::v4(0);
    /// `::`: the address of node port frontends of IPv6.
    pub const ANY_V6: Self = Self([0; 4]);

    /// A v4-mapped address from an IPv4 address in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(network_order: u32) -> Self {
        Self([0, 0, MAPPED_PREFIX, network_order])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.0[2] == MAPPED_PREFIX && self.0[0] == 0 && self.0[1] == 0
    }

    /// The frontend address of node ports of this address' family.
    #[inline(always)]
    #[must_use]
    pub const fn any_of_family(&self) -> Self {
        if self.is_v4() { Self::ANY_V4 } else { Self::ANY_V6 }
    }

    /// Whether this is a loopback address (`127.0.0.0/8` or `::1`).
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// Whether this is an IPv6 link-local unicast or a multicast address of either family (or limited broadcast).
    #[inline(always)]
    #[must_use]
    pub const fn is_link_scoped(&self) -> bool {
        if self.is_v4() {
            let top = u32::from_be(self.0[3]) >> 28;
            return top == 0xe || self.0[3] == u32::MAX;
        }
        let top = u32::from_be(self.0[0]) >> 16;
        top & 0xffc0 == 0xfe80 || top & 0xff00 == 0xff00
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::v4(u32::from_ne_bytes(address.octets())),
            IpAddr::V6(address) => {
                let o = address.octets();
                let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
                Self([word(0), word(4), word(8), word(12)])
            }
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            return Self::V4(Ipv4Addr::from(address.0[3].to_ne_bytes()));
        }
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(address.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Self::V6(Ipv6Addr::from(octets))
    }
}

/// An address range. The default matches no address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    /// The first address.
    pub network: Address,
    /// The bits that must be equal.
    pub mask: Address,
}

const _: () = assert!(size_of::<Cidr>() == 32);

impl Default for Cidr {
    fn default() -> Self {
        Self::NONE
    }
}

impl Cidr {
    /// Matches no address: bits of the network lie outside the mask.
    pub const NONE: Self = Self { network: Address([u32::MAX; 4]), mask: Address([0; 4]) };

    /// The range `network/prefix`; bits behind the prefix are cleared, a prefix that is too long counts as a host.
    #[must_use]
    pub fn new(network: IpAddr, prefix: u8) -> Self {
        let bits = match network {
            IpAddr::V4(_) => 96 + u32::from(prefix.min(32)),
            IpAddr::V6(_) => u32::from(prefix.min(128)),
        };
        let mut mask = [0_u32; 4];
        let mut left = bits;
        for word in &mut mask {
            let here = left.min(32);
            *word = if here == 0 { 0 } else { (u32::MAX << (32 - here)).to_be() };
            left -= here;
        }
        let mut network = Address::from(network);
        for (word, mask) in network.0.iter_mut().zip(mask) {
            *word &= mask;
        }
        Self { network, mask: Address(mask) }
    }

    /// Whether an address lies in the range.
    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, address: &Address) -> bool {
        // The last words differ most often: the common answer is "no" after one comparison.
        address.0[3] & self.mask.0[3] == self.network.0[3]
            && address.0[2] & self.mask.0[2] == self.network.0[2]
            && address.0[1] & self.mask.0[1] == self.network.0[1]
            && address.0[0] & self.mask.0[0] == self.network.0[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::from(text.parse::<IpAddr>().expect("an address"))
    }

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["10.96.0.1", "0.0.0.0", "255.255.255.255", "::", "::1", "fd00:10:96::a"] {
            assert_eq!(IpAddr::from(address(text)), text.parse::<IpAddr>().expect("an address"));
        }
        assert_eq!(address("0.0.0.0"), Address::ANY_V4);
        assert_eq!(address("::"), Address::ANY_V6);
        assert_eq!(address("::ffff:1.2.3.4"), address("1.2.3.4"), "a mapped address is the IPv4 address");
    }

    #[test]
    fn ranges_match_their_own_family_only() {
        let range = Cidr::new("10.96.0.0".parse().expect("an address"), 16);
        assert!(range.contains(&address("10.96.255.255")));
        assert!(!range.contains(&address("10.97.0.0")));
        assert!(!range.contains(&address("::a60:1")));
        let all = Cidr::new("0.0.0.0".parse().expect("an address"), 0);
        assert!(all.contains(&address("1.2.3.4")) && !all.contains(&address("fd00::1")));
        let range = Cidr::new("fd00:10:96::".parse().expect("an address"), 112);
        assert!(range.contains(&address("fd00:10:96::ffff")));
        assert!(!range.contains(&address("fd00:10:96::1:0")));
        let odd = Cidr::new("10.244.1.77".parse().expect("an address"), 25);
        assert!(odd.contains(&address("10.244.1.127")) && !odd.contains(&address("10.244.1.128")));
        for text in ["0.0.0.0", "::", "255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert!(!Cidr::NONE.contains(&address(text)));
        }
    }

    #[test]
    fn scopes_are_told_apart() {
        assert!(address("127.0.0.1").is_loopback() && address("::1").is_loopback());
        assert!(!address("128.0.0.1").is_loopback() && !address("::2").is_loopback());
        for text in ["fe80::1", "ff02::1", "224.0.0.1", "255.255.255.255"] {
            assert!(address(text).is_link_scoped(), "{text}");
        }
        for text in ["fd00::1", "10.0.0.1", "169.254.1.1", "2001:db8::1"] {
            assert!(!address(text).is_link_scoped(), "{text}");
        }
    }
}
