//! What XDP at the uplink wins: packets a second that pass through a node on one core, from a client outside the cluster to a
//! backend of another node, translated by the XDP program, and by the classifier behind the kernel's stack.
//!
//! | Row | Measured |
//! |---|---|
//! | program | the program alone, over one packet (`BPF_PROG_TEST_RUN`), 200 times a call |
//! | path | from the driver of the uplink and back to it: a veth pair, of which the other end sends frames and drops what comes back. The kernel makes frames in batches on the core that then receives them (`BPF_F_TEST_XDP_LIVE_FRAMES`), so one core does it all |
//! | generator | the same with a program at the uplink that drops everything: what sending costs, to be taken off |
//!
//! A device of hardware makes buffers for the classifier as the virtual one does, and takes them back when they are sent; what
//! else it costs, in both cases, is not in here.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kelp_agent::dataplane::config::Xdp;
use kelp_agent::dataplane::kernel::Kernel;
use kelp_agent::dataplane::maps::Table;
use kelp_agent::dataplane::sys::{self, AttachType};
use kelp_agent::dataplane::{Config, cleanup, kernel::ensure_bpffs};
use kelp_common::flow::FLOW_ESTABLISHED;
use kelp_common::{Address, FlowKey, FlowValue, NodeConfig, TCP, maps};
use serde_json::json;

use crate::net::Net;
use crate::report::median;

/// How often a packet is run a call: its hops are counted down, and there are 255.
const RUNS: u32 = 200;
/// Frames of a batch: what the ring between the ends of a pair holds with room to spare.
const BATCH: u32 = 64;
/// `XDP_FLAGS_DRV_MODE`.
const NATIVE: u32 = 1 << 2;
/// Verdicts.
const XDP_TX: i32 = 3;
const TC_ACT_REDIRECT: i32 = 7;

/// What was measured: nanoseconds a packet.
#[derive(Debug, Default)]
pub struct Measured {
    program: [Vec<f64>; 2],
    path: [Vec<f64>; 2],
    generator: Vec<f64>,
}

/// A node with an uplink, whose other end is in a namespace of its own.
struct Node {
    kernel: Kernel,
    directory: PathBuf,
    host: Net,
    outside: Net,
    uplink: u32,
    wire: u32,
    /// A packet from outside; after its translation; MAC addresses of the uplink and its other end.
    packet: Vec<u8>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.host.run(|| Ok(cleanup(&self.directory)?)) {
            eprintln!("pins are left in {}: {error:#}", self.directory.display());
        }
    }
}

fn address(text: &str) -> Address {
    let address: IpAddr = text.parse().expect("an address");
    Address::from(address)
}

/// A flow: from where to where.
fn flow(source: (&str, u16), destination: (&str, u16)) -> FlowKey {
    FlowKey {
        source: address(source.0),
        destination: address(destination.0),
        source_port: source.1.to_be(),
        destination_port: destination.1.to_be(),
        protocol: u32::from(TCP),
    }
}

/// The translation of one flow's packets into another's.
fn into(to: &FlowKey) -> FlowValue {
    FlowValue {
        source: to.source,
        destination: to.destination,
        source_port: to.source_port,
        destination_port: to.destination_port,
        flags: FLOW_ESTABLISHED,
        expires: sys::monotonic_seconds() + 86_400,
        backend: 0,
    }
}

/// An acknowledgement of a flow, as it arrives.
fn segment(flow: &FlowKey, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
    let words = [flow.source.0[3].to_ne_bytes(), flow.destination.0[3].to_ne_bytes()].concat();
    let mut ip = vec![0x45, 0, 0, 40, 0, 7, 0x40, 0, 255, TCP, 0, 0];
    ip.extend(&words);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut tcp = [flow.source_port.to_ne_bytes(), flow.destination_port.to_ne_bytes()].concat();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 16, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(&[words.as_slice(), &[0, TCP, 0, 20], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum);
    [to.as_slice(), &from, &[8, 0], &ip, &tcp].concat()
}

/// The internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// `struct bpf_insn`.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

/// A program that returns this verdict.
fn always(verdict: i32) -> Result<OwnedFd> {
    let program = [instruction(0xb7, 0, 0, 0, verdict), instruction(0x95, 0, 0, 0, 0)];
    sys::load_xdp(&program).context("load a program")
}

/// A program that writes a packet anew, as a frame that came back is used again, and sends it by a device.
fn sending(packet: &[u8], ifindex: u32) -> Result<OwnedFd> {
    let mut program = vec![
        // The packet's begin and end; too short, it is dropped.
        instruction(0x61, 2, 1, 0, 0),
        instruction(0x61, 3, 1, 4, 0),
        instruction(0xbf, 4, 2, 0, 0),
        instruction(0x07, 4, 0, 0, packet.len() as i32),
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x2d, 4, 3, packet.len() as i16 / 2 + 3, 0),
    ];
    for (at, half) in packet.chunks_exact(2).enumerate() {
        let value = i32::from(u16::from_ne_bytes([half[0], half[1]]));
        program.push(instruction(0x6a, 2, 0, at as i16 * 2, value));
    }
    program.extend([
        instruction(0xb7, 1, 0, 0, ifindex.cast_signed()),
        instruction(0xb7, 2, 0, 0, 0),
        instruction(0x85, 0, 0, 0, 23),
        instruction(0x95, 0, 0, 0, 0),
    ]);
    sys::load_xdp(&program).context("load the generator")
}

impl Node {
    fn new() -> Result<Self> {
        let directory = Path::new("/sys/fs/bpf").join(format!("kelp-bench-xdp-{}", std::process::id()));
        ensure_bpffs(&directory)?;
        let (host, outside) = (Net::new()?, Net::new()?);
        host.ip(&format!("link add uplink type veth peer name wire netns {}", outside.path()))?;
        host.ip("address add 192.0.2.10/24 dev uplink")?;
        host.ip("link set uplink up")?;
        outside.ip("link set wire up")?;
        let (own, other) = (host.mac("uplink")?, outside.mac("wire")?);
        let text = other.map(|byte| format!("{byte:02x}")).join(":");
        host.ip("route add default via 192.0.2.1")?;
        host.ip(&format!("neigh replace 192.0.2.1 lladdr {text} dev uplink nud permanent"))?;
        let uplink = host.run(|| Ok(nix::net::if_::if_nametoindex("uplink")?))?;
        let wire = outside.run(|| Ok(nix::net::if_::if_nametoindex("wire")?))?;
        // Without XDP too, frames are taken as a driver takes them: by NAPI.
        host.run(|| receive_by_napi("uplink"))?;
        let kernel = Kernel::load(&directory)?;
        let config = Config { node_addresses: vec![IpAddr::from([192, 0, 2, 10])], ..Config::default() };
        Table::<u32, NodeConfig>::open(&kernel, maps::NODE_CONFIG)?
            .put(&0, &config.for_kernel(uplink, 1_500, 1))?;
        Table::<Address, u32>::open(&kernel, maps::NODE_ADDRESSES)?.put(&address("192.0.2.10"), &1)?;
        // The flow, and another way back to its beginning, so that a program that is run again and again has the same to do.
        let client = flow(("198.51.100.9", 5_000), ("192.0.2.10", 30_084));
        let backend = flow(("192.0.2.10", 61_000), ("10.244.1.5", 8_080));
        let (there, back) = (
            flow(("198.51.100.9", 5_001), ("198.51.100.10", 80)),
            flow(("198.51.100.11", 5_001), ("198.51.100.12", 80)),
        );
        let flows: Table<FlowKey, FlowValue> = Table::open(&kernel, maps::FLOWS)?;
        for (from, to) in [(client, backend), (there, back), (back, there)] {
            flows.put(&from, &into(&to))?;
        }
        let packet = segment(&client, other, own);
        Ok(Self { kernel, directory, host, outside, uplink, wire, packet })
    }

    /// Nanoseconds of one run of a program.
    fn program(&self, name: &str, verdict: i32) -> Result<f64> {
        let there = flow(("198.51.100.9", 5_001), ("198.51.100.10", 80));
        let packet = segment(&there, [2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let run = self.host.run(|| Ok(sys::test_run(self.kernel.program(name)?, &packet, 0, RUNS)?))?;
        ensure!(run.verdict == verdict, "{name} did not send the packet: {}", run.verdict);
        Ok(f64::from(run.nanoseconds))
    }

    /// Nanoseconds of a packet that is sent by the other end, as long as this takes. Packets that were lost between the ends
    /// count with those that were not.
    fn path(&self, generator: &OwnedFd, length: Duration, counter: (&Net, &str)) -> Result<f64> {
        const FRAMES: u32 = 64 * BATCH;
        let before = received(counter.0, counter.1)?;
        let times = self.outside.run(|| {
            let mut core = nix::sched::CpuSet::new();
            core.set(0)?;
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &core)?;
            let (mut times, started) = (Vec::new(), Instant::now());
            while started.elapsed() < length {
                let time = sys::run_frames(generator.as_fd(), &self.packet, FRAMES, BATCH)?;
                times.push(f64::from(time));
            }
            Ok(times)
        })?;
        let sent = f64::from(FRAMES) * times.len() as f64;
        let arrived = (received(counter.0, counter.1)? - before) as f64;
        ensure!(arrived > sent / 2.0, "only {arrived} of {sent} packets arrived");
        Ok(median(&times) * sent / arrived)
    }

    /// Attaches a program to an end, as long as what is returned lives.
    fn attach(net: &Net, ifindex: u32, verdict: i32) -> Result<OwnedFd> {
        let program = always(verdict)?;
        net.run(|| {
            sys::link_create(program.as_fd(), ifindex, AttachType::Xdp, NATIVE).context("attach a program")
        })
    }
}

/// How many packets a device has received.
fn received(net: &Net, device: &str) -> Result<u64> {
    net.run(|| {
        let output =
            std::process::Command::new("ip").args(["-j", "-s", "link", "show", "dev", device]).output()?;
        let value: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        value.pointer("/0/stats64/rx/packets").and_then(serde_json::Value::as_u64).context("read a counter")
    })
}

/// Turns generic receive offload on, with which a veth device polls.
fn receive_by_napi(device: &str) -> Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_SGRO: u32 = 0x2c;
    let mut value = [ETHTOOL_SGRO, 1];
    // SAFETY: plain system calls; the structures are ours, the name fits and the rest of it is zero.
    let result = unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        ensure!(socket >= 0, "no socket: {}", std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(device.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), SIOCETHTOOL, &raw mut request)
    };
    ensure!(result == 0, "turn on offloads of {device}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Measures in rounds, each as long as said.
///
/// # Errors
/// Something cannot be set up, or packets do not come out.
pub fn measure(rounds: usize, length: Duration) -> Result<Measured> {
    let node = Node::new()?;
    let mut measured = Measured::default();
    let _sink = Node::attach(&node.outside, node.wire, 1)?;
    let generator = sending(&node.packet, node.wire)?;
    for round in 0..=rounds {
        let mut values = Vec::new();
        let attach = |wanted| node.host.run(|| Ok(node.kernel.attach_xdp("uplink", node.uplink, wanted)?));
        attach(Xdp::Native)?;
        for (name, verdict) in [("xdp_from_net", XDP_TX), ("from_net", TC_ACT_REDIRECT)] {
            let (mut runs, started) = (Vec::new(), Instant::now());
            while started.elapsed() < length / 4 {
                runs.push(node.program(name, verdict)?);
            }
            values.push(median(&runs));
        }
        values.push(node.path(&generator, length, (&node.outside, "wire"))?);
        attach(Xdp::Off)?;
        node.host.run(|| Ok(node.kernel.attach_uplink(node.uplink, 0)?))?;
        values.push(node.path(&generator, length, (&node.outside, "wire"))?);
        {
            let _nothing = Node::attach(&node.host, node.uplink, 1)?;
            values.push(node.path(&generator, length, (&node.host, "uplink"))?);
        }
        // The first round warms caches.
        if round > 0 {
            measured.program[0].push(values[0]);
            measured.program[1].push(values[1]);
            measured.path[0].push(values[2]);
            measured.path[1].push(values[3]);
            measured.generator.push(values[4]);
        }
    }
    Ok(measured)
}

impl Measured {
    /// A Markdown table: medians, and how many times as many packets XDP has as the classifier.
    pub fn table(&self) -> String {
        let row = |out: &mut String, title: &str, [xdp, tc]: [f64; 2]| {
            let each = |time: f64| format!("{time:.0} ns, {:.2} M/s", 1e3 / time);
            let _ = writeln!(out, "| {title} | {} | {} | ×{:.2} |", each(xdp), each(tc), tc / xdp);
        };
        let medians = |values: &[Vec<f64>; 2]| [median(&values[0]), median(&values[1])];
        let generator = median(&self.generator);
        let mut out = format!(
            "\nNodePort, backend of another node, one core, medians of {} rounds\n\n| a packet | XDP | tc | packets a second, XDP to tc |\n|---|---|---|---|\n",
            self.generator.len()
        );
        row(&mut out, "program (test run)", medians(&self.program));
        row(&mut out, "path, with the generator", medians(&self.path));
        row(&mut out, "path, less the generator", medians(&self.path).map(|time| time - generator));
        let _ = writeln!(out, "| generator | {generator:.0} ns | | |");
        out
    }

    /// Writes `xdp.{md,json}` into a directory; returns their paths.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let values = json!({"benchmark": "xdp", "unit": "ns a packet",
            "program": {"xdp": self.program[0], "tc": self.program[1]},
            "path": {"xdp": self.path[0], "tc": self.path[1]}, "generator": self.generator});
        let mut written = Vec::new();
        for (name, text) in [("xdp.md", self.table()), ("xdp.json", values.to_string())] {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            written.push(path);
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_packets() {
        let measured = Measured {
            program: [vec![100.0], vec![150.0]],
            path: [vec![200.0], vec![500.0]],
            generator: vec![100.0],
        };
        let table = measured.table();
        assert!(
            table.contains("| program (test run) | 100 ns, 10.00 M/s | 150 ns, 6.67 M/s | ×1.50 |"),
            "{table}"
        );
        assert!(
            table.contains("less the generator | 100 ns, 10.00 M/s | 400 ns, 2.50 M/s | ×4.00 |"),
            "{table}"
        );
    }

    #[test]
    fn checksums_of_what_is_sent_are_right() {
        let packet = segment(&flow(("198.51.100.9", 5_000), ("192.0.2.10", 30_084)), [1; 6], [2; 6]);
        assert_eq!(packet.len(), 54);
        assert_eq!(checksum(&packet[14..34]), [0, 0]);
        let pseudo = [&packet[26..34], &[0, TCP, 0, 20], &packet[34..]].concat();
        assert_eq!(checksum(&pseudo), [0, 0]);
    }
}
