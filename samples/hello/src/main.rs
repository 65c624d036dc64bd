//! A small static web server that names its pod.
//!
//! `GET /` answers with the host name, which is the pod's name. `GET /bytes?n=N&rate=R` sends N bytes of a fixed
//! pattern at R bytes/s (no `rate`: as fast as the connection takes them), for transfers that last. `GET /healthz`
//! answers 200. A UDP datagram to the same port is answered with the host name too.
//!
//! On SIGTERM it goes on answering for a drain time, so that clients which have not yet heard that the pod is
//! leaving are still served, and then waits for running answers to end.

#![forbid(unsafe_code)]

mod http;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Number of connections that are being served; lets the drain wait for the last of them.
#[derive(Default)]
struct InFlight {
    count: Mutex<usize>,
    changed: Condvar,
}

impl InFlight {
    fn add(&self, delta: isize) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_add_signed(delta);
        self.changed.notify_all();
    }

    fn wait_until_idle(&self, limit: Duration) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        // Either nothing runs any more or the limit has passed: both end the process.
        let _ = self.changed.wait_timeout_while(count, limit, |count| *count > 0);
    }
}

fn main() -> Result<()> {
    let port: u16 = match std::env::var("PORT") {
        Ok(port) => port.parse().with_context(|| format!("PORT={port:?} is not a port number"))?,
        Err(_) => 8080,
    };
    let drain = match std::env::var("DRAIN_SECONDS") {
        Ok(text) => text.parse().with_context(|| format!("DRAIN_SECONDS={text:?} is not a number"))?,
        Err(_) => 3,
    };
    // Blocked before the first thread starts, so that every thread inherits the mask and only `wait` takes them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("block SIGTERM")?;

    let name: Arc<str> = nix::unistd::gethostname().context("read the host name")?.to_string_lossy().into();
    let in_flight = Arc::new(InFlight::default());

    let (tcp, udp) = bind(port)?;
    let udp_name = name.clone();
    std::thread::spawn(move || serve_udp(&udp, &udp_name));
    let serving = in_flight.clone();
    std::thread::spawn(move || serve_tcp(&tcp, &name, &serving));

    let signal = signals.wait().context("wait for a signal")?;
    if signal == Signal::SIGTERM {
        let (_keep, never) = mpsc::channel::<()>();
        if let Err(RecvTimeoutError::Disconnected) = never.recv_timeout(Duration::from_secs(drain)) {
            unreachable!("the sender lives in this scope");
        }
        in_flight.wait_until_idle(Duration::from_secs(30));
    }
    Ok(())
}

/// Listens on all addresses of both families, or of IPv4 alone where the host has no IPv6.
fn bind(port: u16) -> Result<(TcpListener, UdpSocket)> {
    let any6 = (Ipv6Addr::UNSPECIFIED, port);
    match (TcpListener::bind(any6), UdpSocket::bind(any6)) {
        (Ok(tcp), Ok(udp)) => Ok((tcp, udp)),
        _ => Ok((
            TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("listen on TCP port {port}"))?,
            UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("listen on UDP port {port}"))?,
        )),
    }
}

fn serve_tcp(listener: &TcpListener, name: &Arc<str>, in_flight: &Arc<InFlight>) {
    for stream in listener.incoming().flatten() {
        let name = name.clone();
        let serving = in_flight.clone();
        in_flight.add(1);
        std::thread::spawn(move || {
            // A client that went away is no concern of the others.
            let _ = http::serve(&stream, &name);
            serving.add(-1);
        });
    }
}

fn serve_udp(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 2048];
    while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
        // The answer is as unreliable as UDP is.
        let _ = socket.send_to(name.as_bytes(), peer);
    }
}
