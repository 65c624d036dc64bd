//! The loopback device forwards, so that programs may ask the routing tables: `bpf_fib_lookup` is refused for a device that
//! does not, and what comes in by the uplink shall not be forwarded by the kernel. Nothing that would be comes in by the
//! loopback device.

use std::fs;
use std::io;

/// The settings of the loopback device, with those of all devices.
const FAMILIES: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/conf/lo/forwarding", "/proc/sys/net/ipv4/conf/all/forwarding"),
    ("/proc/sys/net/ipv6/conf/lo/forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"),
];

/// Lets the loopback device of the calling thread's network namespace forward. A family that cannot be is told of.
///
/// # Errors
/// When no family can be.
pub(super) fn forward() -> io::Result<()> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for (path, _) in FAMILIES {
        match enable(path) {
            Ok(()) => result = Ok(()),
            // A kernel without the family.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, "{path} is not 1: packets of the family are not translated by XDP");
                result = result.map_err(|_: io::Error| error);
            }
        }
    }
    result
}

/// The opposite of [`forward`], unless all devices do.
pub(super) fn rest() -> io::Result<()> {
    for (path, all) in FAMILIES {
        match fs::read_to_string(all) {
            Ok(value) if value.trim() == "0" => fs::write(path, "0")?,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn enable(path: &str) -> io::Result<()> {
    if fs::read_to_string(path)?.trim() != "0" {
        return Ok(());
    }
    if path.contains("ipv6") && are_advertised(&fs::read_to_string("/proc/thread-self/net/ipv6_route")?) {
        return Err(io::Error::other(
            "the kernel would forget the routes that routers have advertised; configure routes, and set it",
        ));
    }
    fs::write(path, "1")
}

/// Whether any of the kernel's IPv6 routes was advertised by a router: a host that begins to forward, by whichever device,
/// forgets those.
fn are_advertised(routes: &str) -> bool {
    // `RTF_DEFAULT` and `RTF_ADDRCONF`.
    const ADVERTISED: u32 = 0x0005_0000;
    routes
        .lines()
        .filter_map(|line| u32::from_str_radix(line.split_whitespace().nth(8)?, 16).ok())
        .any(|flags| flags & ADVERTISED != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::tests::world::{Net, eventually};

    #[test]
    fn advertised_routes_are_told_from_configured_ones() {
        let route = |flags: &str| {
            let zeros = "00000000000000000000000000000000";
            format!("{zeros} 00 {zeros} 00 {zeros} 00000400 00000001 00000000 {flags}     eth0\n")
        };
        let configured = route("00000003") + &route("80200001");
        assert!(!are_advertised(&configured));
        assert!(are_advertised(&(configured.clone() + &route("00450003"))));
        assert!(are_advertised(&(configured + &route("00040001"))));
    }

    #[test]
    fn the_loopback_device_forwards_and_rests() {
        let values = || FAMILIES.map(|(path, _)| fs::read_to_string(path).unwrap().trim().to_owned());
        let net = Net::new();
        net.run(|| {
            assert_eq!(values(), ["0", "0"]);
            forward().unwrap();
            assert_eq!(values(), ["1", "1"]);
            rest().unwrap();
            assert_eq!(values(), ["0", "0"]);
            for (_, all) in FAMILIES {
                fs::write(all, "1").unwrap();
            }
            rest().unwrap();
            assert_eq!(values(), ["1", "1"], "the host forwards anyway");
        });
    }

    /// A router that advertises itself once (RFC 4861, 4.2), by the only device of a namespace but the loopback device.
    fn advertise(router: &Net) {
        use nix::sys::socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt,
            socket, sockopt::Ipv6MulticastHops,
        };
        let ifindex = router.ifindex("far");
        router.run(|| {
            let (family, kind) = (AddressFamily::Inet6, SockType::Raw);
            let socket = socket(family, kind, SockFlag::empty(), SockProtocol::IcmpV6).unwrap();
            setsockopt(&socket, Ipv6MulticastHops, &255).unwrap();
            let all = std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, ifindex);
            // Type 134, 64 hops, half an hour; the kernel computes the checksum.
            let message = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
            let to = SockaddrIn6::from(all);
            // It fails until the device has its address.
            let _ = sendto(std::os::fd::AsRawFd::as_raw_fd(&socket), &message, &to, MsgFlags::empty());
        });
    }

    #[test]
    fn what_routers_advertised_is_not_forgotten() {
        let (net, router) = (Net::new(), Net::new());
        net.ip(&format!("link add near type veth peer name far netns {}", router.path()));
        net.ip("link set near up");
        router.ip("link set far up");
        let routes = || net.run(|| fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap());
        eventually("the router has an address, and is heard", || {
            advertise(&router);
            are_advertised(&routes())
        });
        let value = |path: &str| net.run(|| fs::read_to_string(path).unwrap().trim().to_owned());
        net.run(|| forward().unwrap());
        assert_eq!(FAMILIES.map(|(path, _)| value(path)), ["1", "0"]);
        assert!(are_advertised(&routes()));
        // What is avoided.
        net.run(|| fs::write(FAMILIES[1].0, "1").unwrap());
        assert!(!are_advertised(&routes()));
    }
}
