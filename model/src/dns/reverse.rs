//! Names of addresses: `in-addr.arpa` (RFC 1035) and `ip6.arpa` (RFC 3596).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address whose name this is, in lower case; `None` for any other name, also for one of a range of addresses.
pub(super) fn address(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0_u8; 4];
        let mut labels = digits.split('.');
        for octet in octets.iter_mut().rev() {
            let label = labels.next()?;
            // `01` is another name than `1`.
            let plain = !label.starts_with('+') && (label == "0" || !label.starts_with('0'));
            *octet = label.parse().ok().filter(|_| plain)?;
        }
        return labels.next().is_none().then(|| Ipv4Addr::from(octets).into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0_u128;
    let mut count = 0_u32;
    for label in digits.split('.') {
        let mut characters = label.chars();
        let digit = characters.next()?.to_digit(16)?;
        if characters.next().is_some() || count == 32 {
            return None;
        }
        bits |= u128::from(digit) << (4 * count);
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> Option<String> {
        address(name).map(|address| address.to_string())
    }

    #[test]
    fn names_of_addresses() {
        assert_eq!(text("1.0.96.10.in-addr.arpa").as_deref(), Some("10.96.0.1"));
        let v6 = "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(text(v6).as_deref(), Some("fd00:10:96::a"));
        for other in [
            "in-addr.arpa",
            "0.96.10.in-addr.arpa",
            "1.1.0.96.10.in-addr.arpa",
            "01.0.96.10.in-addr.arpa",
            "+1.0.96.10.in-addr.arpa",
            "256.0.96.10.in-addr.arpa",
            ".in-addr.arpa",
            "a.ip6.arpa",
            "ip6.arpa",
            "10.96.0.1",
            &format!("0.{v6}"),
            &v6.replacen("a.", "aa.", 1),
        ] {
            assert_eq!(text(other), None, "{other}");
        }
    }
}
