//! Addresses and networks.

use super::{Args, Out, Own, boolean, fail, integer, own, string, text, value};
use std::net::{IpAddr, Ipv6Addr};

/// An address as Kubernetes takes it: no zone, no IPv4 in IPv6.
fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr =
        text.parse().map_err(|_| format!("IP Address {text:?} parse error during conversion from string"))?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        ip => Ok(ip),
    }
}

pub(in crate::cel) fn ip<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    value(Own::Ip(parse_ip(text(&args, 0)?).map_err(fail)?))
}

pub(in crate::cel) fn is_ip<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    boolean(parse_ip(text(&args, 0)?).is_ok())
}

pub(in crate::cel) fn is_canonical<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let text = text(&args, 0)?;
    boolean(parse_ip(text).map_err(fail)?.to_string() == text)
}

fn parse_cidr(text: &str) -> Result<(IpAddr, u8), String> {
    let wrong = || {
        format!("network address parse error during conversion from string: invalid CIDR address {text:?}")
    };
    let (ip, bits) = text.split_once('/').ok_or_else(wrong)?;
    let ip = parse_ip(ip)?;
    if bits.is_empty()
        || !bits.bytes().all(|b| b.is_ascii_digit())
        || (bits.len() > 1 && bits.starts_with('0'))
    {
        return Err(wrong());
    }
    let bits: u8 = bits.parse().map_err(|_| wrong())?;
    if bits > width(ip) { Err(wrong()) } else { Ok((ip, bits)) }
}

fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The address with its bits after the prefix cleared.
fn network(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(u32::from(32 - bits.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(u32::from(128 - bits.min(128))).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

pub(in crate::cel) fn cidr<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let (ip, bits) = parse_cidr(text(&args, 0)?).map_err(fail)?;
    value(Own::Cidr(ip, bits))
}

pub(in crate::cel) fn is_cidr<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    boolean(parse_cidr(text(&args, 0)?).is_ok())
}

pub(in crate::cel) fn shown<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    match own(&args, 0)? {
        Own::Ip(ip) => string(ip.to_string()),
        Own::Cidr(ip, bits) => string(format!("{ip}/{bits}")),
        _ => Err(fail("no such overload")),
    }
}

fn of_ip<'b, 'v>(args: &Args<'b, 'v>, test: fn(IpAddr) -> bool) -> Out<'b, 'v> {
    match own(args, 0)? {
        Own::Ip(ip) => boolean(test(*ip)),
        _ => Err(fail("no such overload")),
    }
}

pub(in crate::cel) fn family<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    match own(&args, 0)? {
        Own::Ip(IpAddr::V4(_)) => integer(4),
        Own::Ip(IpAddr::V6(_)) => integer(6),
        _ => Err(fail("no such overload")),
    }
}

pub(in crate::cel) fn is_unspecified<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    of_ip(&args, |ip| ip.is_unspecified())
}

pub(in crate::cel) fn is_loopback<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    of_ip(&args, |ip| ip.is_loopback())
}

fn link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            (a, b, c) == (224, 0, 0)
        }
        IpAddr::V6(v6) => first(v6) & 0xff0f == 0xff02,
    }
}

fn link_local_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => first(v6) & 0xffc0 == 0xfe80,
    }
}

fn first(v6: Ipv6Addr) -> u16 {
    let [first, ..] = v6.segments();
    first
}

pub(in crate::cel) fn is_link_local_multicast<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    of_ip(&args, link_local_multicast)
}

pub(in crate::cel) fn is_link_local_unicast<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    of_ip(&args, link_local_unicast)
}

pub(in crate::cel) fn is_global_unicast<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    of_ip(&args, |ip| {
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        !broadcast
            && !ip.is_unspecified()
            && !ip.is_loopback()
            && !ip.is_multicast()
            && !link_local_unicast(ip)
    })
}

fn the_cidr(args: &Args<'_, '_>) -> Result<(IpAddr, u8), cel::ExecutionError> {
    match own(args, 0)? {
        Own::Cidr(ip, bits) => Ok((*ip, *bits)),
        _ => Err(fail("no such overload")),
    }
}

pub(in crate::cel) fn contains_ip<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let (ip, bits) = the_cidr(&args)?;
    let other = match own(&args, 1) {
        Ok(Own::Ip(other)) => *other,
        _ => parse_ip(text(&args, 1)?).map_err(fail)?,
    };
    boolean(ip.is_ipv4() == other.is_ipv4() && network(ip, bits) == network(other, bits))
}

pub(in crate::cel) fn contains_cidr<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let (ip, bits) = the_cidr(&args)?;
    let (other, inner) = match own(&args, 1) {
        Ok(Own::Cidr(other, inner)) => (*other, *inner),
        _ => parse_cidr(text(&args, 1)?).map_err(fail)?,
    };
    boolean(ip.is_ipv4() == other.is_ipv4() && bits <= inner && network(ip, bits) == network(other, bits))
}

pub(in crate::cel) fn cidr_ip<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    value(Own::Ip(the_cidr(&args)?.0))
}

pub(in crate::cel) fn masked<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let (ip, bits) = the_cidr(&args)?;
    value(Own::Cidr(network(ip, bits), bits))
}

pub(in crate::cel) fn prefix_length<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    integer(i64::from(the_cidr(&args)?.1))
}
