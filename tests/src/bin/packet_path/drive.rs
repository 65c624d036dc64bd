//! Servers, and clients that measure for a given time.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::net::Net;
use crate::report::Metric;

/// The pod that asks.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
/// The pod that serves.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 3);
/// The service that leads to it.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);
/// The pod that serves on the other node.
pub const FAR_SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
/// The service that leads to that.
pub const FAR_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 1);
/// The service with node ports, which leads to the pod on this node.
pub const OUTER_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 2);
/// The node.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The other node.
pub const FAR_NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
/// The client that is no part of the cluster, on the network of the nodes.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What lies between a port of a service and its node port.
pub const NODE_PORTS: u16 = 21_000;
/// Port where every byte comes back, over TCP and UDP.
pub const ECHO: u16 = 9001;
/// Port of one request a connection.
pub const ONCE: u16 = 9002;
/// Port that takes everything.
pub const SINK: u16 = 9003;
/// Every way has ports of its own: a connection that the server still remembers from another way, where the client's
/// kernel counts sequence numbers and timestamps differently, would make it answer a new one late.
pub const PORT_STEP: u16 = 10;

/// One measurement of everything at an address, whose ports lie `step` after the usual, by the calling thread.
pub fn measure(address: Ipv4Addr, step: u16, length: Duration) -> Result<Vec<(Metric, f64)>> {
    let at = |port| SocketAddr::new(address.into(), port + step);
    let (rate, mut latencies) = connections(at(ONCE), length)?;
    latencies.sort_by(f64::total_cmp);
    let quantile = |part: f64| {
        let index = (latencies.len() as f64 * part) as usize;
        latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    };
    let used = cpu();
    let (requests, per_second) = tcp_requests(at(ECHO), length)?;
    let cpu_each = (cpu() - used).as_secs_f64() * 1e6 / requests as f64;
    Ok(vec![
        (Metric::TcpRequests, per_second),
        (Metric::CpuEach, cpu_each),
        (Metric::UdpRequests, udp_requests(at(ECHO), length)?),
        (Metric::Connections, rate),
        (Metric::FirstP50, quantile(0.5)),
        (Metric::FirstP90, quantile(0.9)),
        (Metric::FirstP99, quantile(0.99)),
        (Metric::Throughput, throughput(at(SINK), length)?),
    ])
}

/// CPU time of this process: both ends, and what the kernel does for them on their way.
fn cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

/// Starts servers in a pod with this address, at ports that lie `step` after the usual; their threads end with the process.
pub fn serve(net: &Net, address: Ipv4Addr, step: u16) -> Result<()> {
    let listen = |port: u16| net.run(|| Ok(TcpListener::bind((address, port + step))?));
    let (echo, once, sink) = (listen(ECHO)?, listen(ONCE)?, listen(SINK)?);
    let datagrams = net.run(|| Ok(UdpSocket::bind((address, ECHO + step))?))?;
    std::thread::spawn(move || {
        for mut stream in echo.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    std::thread::spawn(move || {
        // The server closes first, so that the client's ports are free again at once.
        for mut stream in once.incoming().flatten() {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_ok() {
                let _ = stream.write_all(&byte);
            }
        }
    });
    std::thread::spawn(move || {
        for mut stream in sink.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 18];
                let mut total = 0_u64;
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    total += length as u64;
                }
                let _ = stream.write_all(&total.to_le_bytes());
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..length], peer);
        }
    });
    Ok(())
}

/// Requests over one connection: how many, and how many a second.
fn tcp_requests(address: SocketAddr, length: Duration) -> Result<(u64, f64)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut byte = [7];
    let started = Instant::now();
    let mut count = 0_u64;
    while started.elapsed() < length {
        for _ in 0..16 {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
        }
        count += 16;
    }
    Ok((count, count as f64 / started.elapsed().as_secs_f64()))
}

fn udp_requests(address: SocketAddr, length: Duration) -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(address)?;
    let mut byte = [7];
    let started = Instant::now();
    let mut count = 0_u64;
    while started.elapsed() < length {
        for _ in 0..16 {
            socket.send(&byte)?;
            socket.recv(&mut byte)?;
        }
        count += 16;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// Connections a second, each with one request, and how long each connect took, µs.
fn connections(address: SocketAddr, length: Duration) -> Result<(f64, Vec<f64>)> {
    let started = Instant::now();
    let mut latencies = Vec::new();
    while started.elapsed() < length {
        let before = Instant::now();
        let mut stream = TcpStream::connect(address)?;
        latencies.push(before.elapsed().as_secs_f64() * 1e6);
        let mut byte = [7];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        ensure!(stream.read(&mut byte)? == 0, "the server closes");
    }
    Ok((latencies.len() as f64 / started.elapsed().as_secs_f64(), latencies))
}

/// MiB a second that arrived.
fn throughput(address: SocketAddr, length: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect(address)?;
    let buffer = vec![7; 1 << 17];
    let started = Instant::now();
    while started.elapsed() < length {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(u64::from_le_bytes(total) as f64 / (1 << 20) as f64 / started.elapsed().as_secs_f64())
}
