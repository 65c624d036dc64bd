//! Addresses and ranges.

use std::net::IpAddr;

use super::Errors;
use crate::error::FieldError;

/// Reads an address as upstream does, which takes leading zeros in IPv4 for decimal.
pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let parts: Vec<&str> = text.split('.').collect();
    let numbers: Option<Vec<u8>> = parts
        .iter()
        .map(|p| if p.is_empty() || !p.bytes().all(|b| b.is_ascii_digit()) { None } else { p.parse().ok() })
        .collect();
    let [a, b, c, d] = numbers?.try_into().ok()?;
    Some(IpAddr::from([a, b, c, d]))
}

pub(super) fn ip(errs: &mut Errors, path: &str, value: &str) -> bool {
    if parse_ip(value).is_some() {
        return true;
    }
    errs.push(FieldError::invalid(
        path,
        value,
        "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
    ));
    false
}

pub(super) fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address = parse_ip(address)?;
    let bits: u8 = if bits.bytes().all(|b| b.is_ascii_digit()) { bits.parse().ok()? } else { return None };
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

pub(super) fn cidr(errs: &mut Errors, path: &str, value: &str) {
    if parse_cidr(value).is_none() {
        errs.push(FieldError::invalid(
            path,
            value,
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ));
    }
}

/// Addresses that name no single host elsewhere are refused for endpoints and external addresses.
pub(super) fn not_special(errs: &mut Errors, path: &str, value: &str) {
    let Some(address) = parse_ip(value) else {
        errs.push(FieldError::invalid(path, value, "must be a valid IP address"));
        return;
    };
    let (link_local, link_local_multicast) = match address {
        IpAddr::V4(a) => (a.is_link_local(), a.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(a) => (a.segments()[0] & 0xffc0 == 0xfe80, a.segments()[0] & 0xff0f == 0xff02),
    };
    let mut bad = |detail: String| errs.push(FieldError::invalid(path, value, detail));
    if address.is_unspecified() {
        bad(format!("may not be unspecified ({value})"));
    }
    if address.is_loopback() {
        bad("may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned());
    }
    if link_local {
        bad("may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned());
    }
    if link_local_multicast {
        bad("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned());
    }
}

/// True when the two addresses are of different families.
pub(super) fn dual_stack(addresses: &[&str]) -> bool {
    let v6 = |a: &&str| parse_ip(a.split('/').next().unwrap_or_default()).is_some_and(|a| a.is_ipv6());
    addresses.iter().any(v6) && !addresses.iter().all(v6)
}

/// The address with its host bits cleared.
pub(super) fn masked(address: IpAddr, bits: u8) -> IpAddr {
    let keep = |width: u32| u128::MAX.checked_shl(width.saturating_sub(u32::from(bits))).unwrap_or(0);
    match address {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a) & keep(32) as u32).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a) & keep(128)).into()),
    }
}

/// As Go prints an address: IPv4 in IPv6 is IPv4.
fn shown(address: IpAddr) -> String {
    address.to_canonical().to_string()
}

fn mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.to_ipv4_mapped().is_some())
}

/// What is unusual about an address in a field that allows old spellings.
pub(crate) fn ip_warnings(path: &str, value: &str) -> Vec<String> {
    let Some(address) = parse_ip(value) else { return Vec::new() };
    let quoted = crate::error::quote(value);
    match value.parse::<IpAddr>() {
        Ok(strict) if !mapped(strict) => {
            let canonical = strict.to_string();
            if strict.is_ipv4() || canonical == value {
                return Vec::new();
            }
            let canonical = crate::error::quote(&canonical);
            vec![format!(
                "{path}: IPv6 address {quoted} should be in RFC 5952 canonical format ({canonical})"
            )]
        }
        _ => {
            let better = crate::error::quote(&shown(address));
            vec![format!("{path}: non-standard IP address {quoted} is invalid: use {better}")]
        }
    }
}

/// What is unusual about a range in a field that allows old spellings.
pub(crate) fn cidr_warnings(path: &str, value: &str) -> Vec<String> {
    use crate::error::quote;
    let Some((address, bits)) = parse_cidr(value) else { return Vec::new() };
    let strict = value.split_once('/').and_then(|(a, b)| {
        let digits = b.parse::<u8>().is_ok_and(|n| n.to_string() == b);
        a.parse::<IpAddr>().ok().filter(|a| digits && !mapped(*a))
    });
    let (width, bits_shown) = match (address, mapped(address)) {
        (IpAddr::V4(_), _) => (32, bits),
        (IpAddr::V6(_), true) => (128, bits.saturating_sub(96)),
        (IpAddr::V6(_), false) => (128, bits),
    };
    let network = masked(address, bits);
    let better = quote(&format!("{}/{bits_shown}", shown(network)));
    let mut out = Vec::new();
    if network != address {
        let single = quote(&format!("{}/{width}", shown(address)));
        let value = quote(value);
        out.push(format!(
            "{path}: CIDR value {value} is ambiguous in this context (should be {better} or {single}?)"
        ));
    }
    match strict {
        None => {
            out.push(format!("{path}: non-standard CIDR value {} is invalid: use {better}", quote(value)))
        }
        Some(address) => {
            let canonical = format!("{address}/{bits}");
            if out.is_empty() && address.is_ipv6() && canonical != value {
                out.push(format!(
                    "{path}: IPv6 CIDR value {} should be in RFC 5952 canonical format ({})",
                    quote(value),
                    quote(&canonical)
                ));
            }
        }
    }
    out
}

/// A range in its one canonical spelling.
pub(super) fn strict_cidr(errs: &mut Errors, path: &str, value: &str) {
    let mut bad = |detail: String| errs.push(FieldError::invalid(path, value, detail));
    let Some((address, bits)) = parse_cidr(value) else {
        return bad("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned());
    };
    let strict = value.split_once('/').is_some_and(|(a, b)| {
        a.parse::<IpAddr>().is_ok() && b.parse::<u8>().is_ok_and(|n| n.to_string() == b)
    });
    if !strict {
        return bad("must not have leading 0s in IP or prefix length".to_owned());
    }
    if mapped(address) {
        return bad("must not have an IPv4-mapped IPv6 address".to_owned());
    }
    if masked(address, bits) != address {
        return bad("must not have bits set beyond the prefix length".to_owned());
    }
    let canonical = format!("{address}/{bits}");
    if canonical != value {
        bad(format!("must be in canonical form ({})", crate::error::quote(&canonical)));
    }
}

/// An address of an interface with its prefix length, in its one canonical spelling.
pub(super) fn interface_address(errs: &mut Errors, path: &str, value: &str) {
    let Some((address, bits)) = parse_cidr(value) else {
        let detail = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
        errs.push(FieldError::invalid(path, value, detail));
        return;
    };
    let bits = if mapped(address) { bits.saturating_sub(96) } else { bits };
    let canonical = format!("{}/{bits}", shown(address));
    if canonical != value {
        let detail = format!("must be in canonical form ({})", crate::error::quote(&canonical));
        errs.push(FieldError::invalid(path, value, detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusual_spellings() {
        assert!(ip_warnings("p", "10.0.0.1").is_empty());
        assert!(ip_warnings("p", "fd00::1").is_empty());
        assert_eq!(
            ip_warnings("p", "010.0.0.1"),
            ["p: non-standard IP address \"010.0.0.1\" is invalid: use \"10.0.0.1\""]
        );
        assert_eq!(
            ip_warnings("p", "::ffff:1.2.3.4"),
            ["p: non-standard IP address \"::ffff:1.2.3.4\" is invalid: use \"1.2.3.4\""]
        );
        assert_eq!(
            ip_warnings("p", "FD00:0::1"),
            ["p: IPv6 address \"FD00:0::1\" should be in RFC 5952 canonical format (\"fd00::1\")"]
        );
        assert!(cidr_warnings("p", "10.0.0.0/8").is_empty());
        assert_eq!(
            cidr_warnings("p", "10.0.0.1/8"),
            [
                "p: CIDR value \"10.0.0.1/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.0.0.1/32\"?)"
            ]
        );
        assert_eq!(
            cidr_warnings("p", "010.0.0.0/8"),
            ["p: non-standard CIDR value \"010.0.0.0/8\" is invalid: use \"10.0.0.0/8\""]
        );
        assert_eq!(
            cidr_warnings("p", "FD00::/8"),
            ["p: IPv6 CIDR value \"FD00::/8\" should be in RFC 5952 canonical format (\"fd00::/8\")"]
        );
    }
}
