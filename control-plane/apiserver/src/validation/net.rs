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
