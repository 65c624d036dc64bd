//! Address ranges of `ipBlock`s.

use std::net::IpAddr;
use std::str::FromStr;

use kelp_common::{Address, Cidr};

/// An address range in the v4-mapped form: bits behind the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// The first address.
    pub network: Address,
    /// Length of the prefix in the v4-mapped form, 0–128.
    pub prefix: u8,
}

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a CIDR such as 10.9.8.0/24 or 2001:db8::/64")]
pub struct RangeError(String);

impl Range {
    /// All IPv4 addresses.
    pub const V4: Self = Self { network: Address::ANY_V4, prefix: 96 };

    /// Whether this is a range of IPv4 addresses.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.prefix >= 96 && self.network.is_v4()
    }

    /// Whether an address lies in the range. (`::/0` has no IPv4 address.)
    #[must_use]
    pub fn contains(&self, address: &Address) -> bool {
        self.is_v4() == address.is_v4() && shared_bits(&self.network, address) >= u32::from(self.prefix)
    }

    /// Whether every address of another range lies in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.is_v4() == other.is_v4()
            && self.prefix <= other.prefix
            && shared_bits(&self.network, &other.network) >= u32::from(self.prefix)
    }
}

/// How many of their first bits two addresses have in common.
fn shared_bits(a: &Address, b: &Address) -> u32 {
    let bits = |address: &Address| {
        address.0.iter().fold(0_u128, |all, word| all << 32 | u128::from(u32::from_be(*word)))
    };
    (bits(a) ^ bits(b)).leading_zeros()
}

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            // "+8" is a number for Rust.
            let prefix: u8 =
                prefix.bytes().all(|byte| byte.is_ascii_digit()).then(|| prefix.parse().ok())??;
            let (most, offset) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
            let network = (prefix <= most).then(|| Cidr::new(address, prefix).network)?;
            Some(Self { network, prefix: prefix + offset })
        };
        parse().ok_or_else(|| RangeError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_do_not_mix() {
        let range = |text: &str| text.parse::<Range>().unwrap();
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        assert!(range("10.1.2.3/8").contains(&address("10.255.0.1")));
        assert!(!range("10.0.0.0/8").contains(&address("11.0.0.1")));
        assert!(range("0.0.0.0/0").contains(&address("1.2.3.4")));
        assert!(!range("::/0").contains(&address("1.2.3.4")) && range("::/0").contains(&address("fd00::1")));
        assert!(!range("0.0.0.0/0").contains(&address("fd00::1")));
        assert!(
            range("10.0.0.0/8").covers(&range("10.3.0.0/16"))
                && !range("10.3.0.0/16").covers(&range("10.0.0.0/8"))
        );
        assert!(!range("::/0").covers(&Range::V4) && range("0.0.0.0/0").covers(&Range::V4));
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "x/8", "fd00::/129", "10.0.0.0/", "/8", ""] {
            let error = bad.parse::<Range>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
