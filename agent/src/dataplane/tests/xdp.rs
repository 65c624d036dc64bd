//! XDP at the uplink of a node in namespaces: a client outside asks for a backend of another node.
//!
//! The uplink is one end of a veth pair. What its driver sends back arrives only if the other end has an XDP program too,
//! and it can be sent only if the other end has computed the checksums, as whatever comes over a wire has.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use kelp_common::maps::xdp;

use super::*;
use crate::dataplane::cleanup;
use crate::dataplane::config::Xdp;
use crate::dataplane::kernel::xdp::{Device, Mode};
use crate::dataplane::sys::{self, AttachType, query};

const REMOTE6: &str = "fd00:10:244:1::5";

/// `XDP_FLAGS_DRV_MODE`.
const NATIVE: u32 = 1 << 2;

/// A program that lets everything pass: `return XDP_PASS`.
fn passing() -> OwnedFd {
    sys::load_xdp(&[0x2_0000_00b7, 0x95]).unwrap()
}

/// Attaches such a program to a device.
fn attach(net: &Net, device: &str) -> OwnedFd {
    let ifindex = net.ifindex(device);
    net.run(|| sys::link_create(passing().as_fd(), ifindex, AttachType::Xdp, NATIVE).unwrap())
}

/// Whether checksums of what is sent by a device are computed before (`ethtool --offload DEVICE tx off`).
fn compute_checksums(net: &Net, device: &str) {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_STXCSUM: u32 = 0x17;
    net.run(|| {
        let mut value = [ETHTOOL_STXCSUM, 0];
        // SAFETY: plain system calls; the structures are ours, the name fits and the rest of it is zero.
        unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            assert!(socket >= 0);
            let socket = OwnedFd::from_raw_fd(socket);
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
            assert_eq!(
                libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), SIOCETHTOOL, &raw mut request),
                0
            );
        }
    });
}

/// A node whose uplink has a helpful other end, as long as that lives; it computes checksums, if `whole`.
fn node(setting: Xdp, whole: bool) -> (World, OwnedFd) {
    let mut world = World::new();
    world.config.xdp = setting;
    world.outside.ip(&format!("address add {REMOTE6}/128 dev lo nodad"));
    for address in [REMOTE4, REMOTE6] {
        serve_tcp(&world.outside, at(address, 8080), "remote");
        serve_udp(&world.outside, at(address, 8080), "remote");
    }
    for v4 in [true, false] {
        serve_tcp(&world.pods[0].net, SocketAddr::new(world.pods[0].address(v4), 8080), "one");
    }
    let end = attach(&world.outside, "wire");
    if whole {
        compute_checksums(&world.outside, "wire");
    }
    serve(&world);
    (world, end)
}

/// Starts the agent with a service elsewhere and one here.
fn serve(world: &World) {
    let here = |v4: bool| vec![world.pods[0].address(v4)];
    world.start(
        vec![
            service("far", &[FAR4, "fd00:10:96::a"], 30084),
            service("near", &["10.96.0.11", "fd00:10:96::b"], 30085),
        ],
        vec![
            slice("far", &[REMOTE4.parse().unwrap()], 8080),
            slice("far", &[REMOTE6.parse().unwrap()], 8080),
            slice("near", &here(true), 8080),
            slice("near", &here(false), 8080),
        ],
    );
}

fn counted(world: &World, index: u32) -> u64 {
    world.dataplane().xdp_counters().unwrap()[index as usize]
}

/// The XDP programs of the uplink.
fn programs(world: &World) -> Vec<(Mode, u32)> {
    let ifindex = world.host.ifindex("uplink");
    world.host.run(|| Device::look(ifindex).unwrap().programs)
}

/// The id of the XDP link that holds a program.
fn link_of(program: u32) -> u32 {
    let links = query::links().unwrap().into_iter();
    links
        .map(|link| query::link_info(link.as_fd()).unwrap())
        .find(|info| info.program == program && info.attach_type == AttachType::Xdp as u32)
        .expect("a link")
        .id
}

/// Asks in both protocols and families, far and near.
fn ask(world: &World) {
    world.outside.run(|| {
        for (node, client) in [(NODE4, OUTSIDE4), (NODE6, OUTSIDE6)] {
            for _ in 0..5 {
                assert_eq!(ask_tcp(at(node, 30084)).unwrap(), ("remote".to_owned(), node.to_owned()));
                let (name, seen) = ask_udp(at(node, 30084), true).unwrap();
                assert_eq!((name.as_str(), seen.as_str()), ("remote", node));
            }
            assert_eq!(ask_tcp(at(node, 30085)).unwrap(), ("one".to_owned(), client.to_owned()));
        }
    });
}

fn connect(world: &World, address: &str) -> TcpStream {
    let mut stream = world.outside.run(|| TcpStream::connect_timeout(&at(address, 30084), TIMEOUT).unwrap());
    assert_eq!(stream.peer_addr().unwrap(), at(address, 30084));
    assert_eq!(greeting(&mut stream).unwrap(), ("remote".to_owned(), address.to_owned()));
    stream
}

#[test]
fn connections_that_pass_through_go_by_xdp_and_survive_the_agent() {
    let (world, _end) = node(Xdp::Native, true);
    ask(&world);
    let first = programs(&world);
    assert_eq!(first.iter().map(|(mode, _)| *mode).collect::<Vec<_>>(), [Mode::Native]);
    let link = link_of(first[0].1);
    let mut streams = [NODE4, NODE6].map(|node| connect(&world, node));
    let before = counted(&world, xdp::FORWARDED);
    for stream in &mut streams {
        echo(stream, 20);
    }
    // Each message of an established connection passes in both directions, and its answer too.
    assert!(counted(&world, xdp::FORWARDED) >= before + 2 * 2 * 20, "{before}");
    for _ in 0..2 {
        world.kill();
        for stream in &mut streams {
            echo(stream, 3);
        }
        ask(&world);
        serve(&world);
        let now = programs(&world);
        assert_eq!(now.len(), 1);
        assert_ne!(now[0].1, first[0].1, "the program is another one");
        assert_eq!(link_of(now[0].1), link, "in the same link: no packet passed without one of the two");
        let before = counted(&world, xdp::FORWARDED);
        for stream in &mut streams {
            echo(stream, 3);
        }
        assert!(counted(&world, xdp::FORWARDED) >= before + 2 * 2 * 3);
    }
    // Without its pin, as after a bpffs was mounted over it.
    world.kill();
    std::fs::rename(
        world.config.bpf_directory.join("links/uplink-xdp"),
        world.config.bpf_directory.join("elsewhere"),
    )
    .unwrap();
    serve(&world);
    assert_eq!(link_of(programs(&world)[0].1), link);
    std::fs::remove_file(world.config.bpf_directory.join("elsewhere")).unwrap();
    for stream in &mut streams {
        echo(stream, 3);
    }
    assert_eq!(link_of(programs(&world)[0].1), link, "it is pinned again");
    world.kill();
    world.host.run(|| cleanup(&world.config.bpf_directory)).unwrap();
    assert_eq!(programs(&world), []);
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/conf/lo/forwarding");
        let forwards = world.host.run(|| std::fs::read_to_string(path).unwrap());
        assert_eq!(forwards.trim(), "0", "as it was");
    }
}

#[test]
fn a_setting_that_changes_is_followed() {
    let (mut world, _end) = node(Xdp::Off, true);
    for setting in [Xdp::Generic, Xdp::Native, Xdp::Auto, Xdp::Generic, Xdp::Off] {
        world.kill();
        world.config.xdp = setting;
        serve(&world);
        let modes: Vec<Mode> = programs(&world).into_iter().map(|(mode, _)| mode).collect();
        let expected = match setting {
            Xdp::Native => vec![Mode::Native],
            Xdp::Generic => vec![Mode::Generic],
            // A veth device is no case for it.
            Xdp::Auto | Xdp::Off => vec![],
        };
        assert_eq!(modes, expected, "{setting:?}");
        let before = counted(&world, xdp::FORWARDED);
        ask(&world);
        assert_eq!(counted(&world, xdp::FORWARDED) > before, !expected.is_empty(), "{setting:?}");
    }
}

#[test]
fn packets_whose_checksums_are_not_computed_go_by_the_stack() {
    for setting in [Xdp::Native, Xdp::Generic] {
        let (world, _end) = node(setting, false);
        let mut streams = [NODE4, NODE6].map(|node| {
            ask(&world);
            connect(&world, node)
        });
        for stream in &mut streams {
            echo(stream, 20);
        }
        // All but what the stack sends by itself, such as the acknowledgement of a segment that comes too late.
        let (gone, forwarded) = (counted(&world, xdp::NO_WAY), counted(&world, xdp::FORWARDED));
        assert!(gone > 200 && forwarded < 20, "{setting:?}: {gone}, {forwarded}");
    }
}

#[test]
fn a_program_of_others_stays() {
    let (mut world, _end) = node(Xdp::Off, true);
    let other = attach(&world.host, "uplink");
    let theirs = programs(&world);
    for setting in [Xdp::Native, Xdp::Off] {
        world.kill();
        world.config.xdp = setting;
        serve(&world);
        ask(&world);
        assert_eq!(programs(&world), theirs);
        assert_eq!(counted(&world, xdp::FORWARDED), 0);
    }
    world.kill();
    world.host.run(|| cleanup(&world.config.bpf_directory)).unwrap();
    assert_eq!(programs(&world), theirs);
    drop(other);
}

#[test]
fn a_device_that_cannot_is_an_error_unless_it_does_not_matter() {
    let (world, _end) = node(Xdp::Off, false);
    let dataplane = world.dataplane();
    // A bridge has no XDP of its own.
    world.host.ip("link add bridge type bridge");
    let ifindex = world.host.ifindex("bridge");
    world.host.run(|| {
        let kernel = dataplane.kernel();
        kernel.attach_xdp("bridge", ifindex, Xdp::Auto).unwrap();
        assert_eq!(Device::look(ifindex).unwrap().programs, []);
        let error = crate::dataplane::chain(&kernel.attach_xdp("bridge", ifindex, Xdp::Native).unwrap_err());
        assert!(error.contains("bridge") && error.contains("--xdp=auto"), "{error}");
        kernel.attach_xdp("bridge", ifindex, Xdp::Generic).unwrap();
        assert_eq!(Device::look(ifindex).unwrap().programs.len(), 1);
        kernel.attach_xdp("bridge", ifindex, Xdp::Off).unwrap();
        assert_eq!(Device::look(ifindex).unwrap().programs, []);
    });
}
