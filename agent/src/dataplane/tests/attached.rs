//! What is attached where, as the kernel tells it: once, whatever became of pins and agents, and nothing when it shall not.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::world::*;
use super::*;
use crate::dataplane::PodDatapath;
use crate::dataplane::kernel::filter::{Filters, Side};
use crate::dataplane::sys::AttachType;
use crate::dataplane::sys::query;

/// Programs at the sockets' hooks, the uplink, and each pod's device.
pub type Count = (usize, usize, [usize; 2]);

/// Everything is attached once.
pub const ALL: Count = (8, 2, [2, 2]);

/// Counts what is attached in a world; also what is not ours.
pub fn count(world: &World) -> Count {
    let cgroup = std::fs::File::open(&world.cgroup).unwrap();
    let hooks = [
        AttachType::Connect4,
        AttachType::Connect6,
        AttachType::Sendmsg4,
        AttachType::Sendmsg6,
        AttachType::Recvmsg4,
        AttachType::Recvmsg6,
        AttachType::Getpeername4,
        AttachType::Getpeername6,
    ];
    let sockets = hooks
        .map(|hook| query::attached(cgroup.as_raw_fd().cast_unsigned(), hook).unwrap().len())
        .into_iter()
        .sum();
    let at = |ifindex: u32| {
        world.host.run(|| {
            let tcx: usize = [AttachType::TcxIngress, AttachType::TcxEgress]
                .into_iter()
                .map(|side| query::attached(ifindex, side).map_or(0, |programs| programs.len()))
                .sum();
            let filters = Filters::open().unwrap();
            let filters = Side::BOTH.into_iter().flat_map(|side| filters.list(ifindex, side).unwrap());
            tcx + filters.filter(|filter| filter.handle != 0).count()
        })
    };
    let pods = [0, 1].map(|pod| at(world.pods[pod].endpoint.host_ifindex));
    (sockets, at(world.host.ifindex("uplink")), pods)
}

fn tc(world: &World, arguments: &str) -> String {
    world.host.run(|| {
        let output = Command::new("tc").args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    })
}

#[test]
fn a_removed_pod_leaves_nothing() {
    for clsact in [false, true] {
        let world = world_with(clsact);
        assert_eq!(count(&world), ALL);
        let pod = &world.pods[1];
        let dataplane = world.dataplane();
        world.block_on(async {
            for _ in 0..2 {
                dataplane.detach_endpoint(&pod.endpoint.addresses).await.unwrap();
            }
        });
        assert_eq!(count(&world), (8, 2, [2, 0]));
        let error = world.pods[0].net.run(|| ask_tcp(SocketAddr::new(pod.v4, 8080)).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        // A device that vanished while no agent ran: the next one forgets the pod.
        world.kill();
        drop(dataplane);
        world.host.ip("link del pod1");
        world.start_without_pods();
        assert_eq!(count(&world), (8, 2, [0, 0]));
        let left = world.dataplane().endpoint_count().unwrap();
        assert_eq!(left, 0);
    }
}

/// A bpffs that is mounted over the one with the pins hides them: what is attached goes on, and must not be attached a
/// second time.
#[test]
fn a_remounted_bpffs_leads_to_no_second_program() {
    for clsact in [false, true] {
        let world = world_with(clsact);
        let directory = world.config.bpf_directory.clone();
        world.kill();
        let over = Over::mount(&directory);
        for _ in 0..2 {
            start(&world);
            assert_eq!(count(&world), ALL, "clsact {clsact}");
            let net = &world.pods[0].net;
            for sockets in [true, false] {
                let body = || assert_both(&spread(|| ask_tcp(at(WEB4, 80)), 30).0, "after a remount");
                if sockets { world.with_sockets(net, body) } else { net.run(body) }
            }
            world.kill();
        }
        // The pins below come back: they are of the same links.
        drop(over);
        start(&world);
        assert_eq!(count(&world), ALL, "clsact {clsact}");
    }
}

/// A bpffs that hides a directory as long as this lives.
struct Over(PathBuf);

impl Over {
    fn mount(directory: &Path) -> Self {
        let none = None::<&str>;
        nix::mount::mount(Some("bpf"), directory, Some("bpf"), nix::mount::MsFlags::empty(), none).unwrap();
        Self(directory.to_owned())
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// Programs that were attached twice by something else than this version.
#[test]
fn a_second_program_is_detached() {
    let world = world();
    let kernel = world.dataplane();
    let fd = kernel.kernel().program("connect4").unwrap();
    let cgroup = std::fs::File::open(&world.cgroup).unwrap();
    let twice =
        crate::dataplane::sys::link_create(fd, cgroup.as_raw_fd().cast_unsigned(), AttachType::Connect4, 0);
    let twice = twice.unwrap();
    assert_eq!(count(&world).0, ALL.0 + 1);
    drop(kernel);
    world.kill();
    start(&world);
    assert_eq!(count(&world), ALL);
    drop(twice);
    assert_eq!(count(&world), ALL);
}

#[test]
fn filters_of_others_stay() {
    let mut world = World::new();
    world.config.clsact = true;
    tc(&world, "qdisc add dev uplink clsact");
    // One that would be in the way of ours, one behind, and one on a pod's device.
    for device in [
        "uplink ingress protocol ip prio 1",
        "uplink egress protocol all prio 9",
        "pod2 ingress protocol ip prio 3",
    ] {
        if device.starts_with("pod2") {
            tc(&world, "qdisc add dev pod2 clsact");
        }
        tc(&world, &format!("filter add dev {device} u32 match u32 0 0xffffffff at 0 flowid 1:1"));
    }
    let others = |world: &World| {
        ["uplink ingress", "uplink egress", "pod2 ingress"]
            .map(|device| tc(world, &format!("filter show dev {device}")).matches("flowid").count())
    };
    for _ in 0..2 {
        start(&world);
        assert_eq!(others(&world), [1, 1, 1]);
        let shown = tc(&world, "filter show dev uplink ingress");
        assert_eq!(shown.matches("kelp-from_net").count(), 1, "{shown}");
        assert!(shown.contains("pref 2 bpf"), "behind the other's: {shown}");
        world.kill();
    }
    world.host.run(|| crate::dataplane::cleanup(&world.config.bpf_directory)).unwrap();
    assert_eq!(others(&world), [1, 1, 1]);
    for device in ["uplink ingress", "uplink egress", "pod2 ingress", "pod1 ingress"] {
        assert!(!tc(&world, &format!("filter show dev {device}")).contains("kelp"), "{device}");
    }
    assert!(tc(&world, "qdisc show dev pod2").contains("clsact"), "somebody's");
    assert!(!tc(&world, "qdisc show dev pod1").contains("clsact"), "ours");
}
