//! Makes requests from a sandbox host and prints a report as JSON.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kelp_tests::{Report, pattern};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_FAILURES_SHOWN: usize = 20;
/// A request that takes longer, in µs, has waited for a segment to be sent again.
const SLOW_US: u64 = 900_000;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Sends `GET /` on a new connection each time
    Get {
        address: SocketAddr,
        /// Stop after this many requests
        #[arg(long, default_value_t = 100_000)]
        count: usize,
        /// Stop after this many seconds
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Stop when this many different answers have come
        #[arg(long)]
        distinct: Option<usize>,
        /// Pause between two requests, ms
        #[arg(long, default_value_t = 2)]
        pause: u64,
    },
    /// Sends `GET /` on new connections at a steady rate, whatever the answers take
    Load {
        address: SocketAddr,
        /// Connections a second
        #[arg(long, default_value_t = 100)]
        rate: u32,
        /// Stop after this many seconds
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Most requests at once
        #[arg(long, default_value_t = 64)]
        threads: u32,
    },
    /// Sends UDP datagrams from a new socket each time
    Udp {
        address: SocketAddr,
        #[arg(long, default_value_t = 30)]
        count: usize,
    },
    /// Fetches `/bytes` and checks each byte
    Transfer {
        address: SocketAddr,
        #[arg(long)]
        bytes: u64,
        /// bytes/s
        #[arg(long, default_value_t = 0)]
        rate: u64,
    },
}

fn main() -> Result<()> {
    let report = match Cli::parse().work {
        Work::Get { address, count, seconds, distinct, pause } => {
            let stopped = stdin_closed();
            let deadline = Instant::now() + Duration::from_secs(seconds);
            let mut report = Report::default();
            for _ in 0..count {
                record(&mut report, get(address));
                if distinct.is_some_and(|distinct| report.answers.len() >= distinct) {
                    break;
                }
                let paused = stopped.recv_timeout(Duration::from_millis(pause));
                if paused != Err(RecvTimeoutError::Timeout) || Instant::now() >= deadline {
                    break;
                }
            }
            report
        }
        Work::Load { address, rate, seconds, threads } => load(address, rate.max(1), seconds, threads.max(1)),
        Work::Udp { address, count } => {
            let mut report = Report::default();
            for _ in 0..count {
                record(&mut report, ask(address));
            }
            report
        }
        Work::Transfer { address, bytes, rate } => {
            let mut report = Report::default();
            if let Err(error) = transfer(address, bytes, rate, &mut report.bytes) {
                record(&mut report, Err(error));
            }
            report
        }
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Starts a request at every tick of the rate; one that finds all threads busy starts late and is not left out.
fn load(address: SocketAddr, rate: u32, seconds: u64, threads: u32) -> Report {
    let stop = Arc::new((Mutex::new(false), Condvar::new()));
    let (closed, stopping) = (stdin_closed(), stop.clone());
    std::thread::spawn(move || {
        let _ = closed.recv();
        *stopping.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        stopping.1.notify_all();
    });
    let started = Instant::now();
    let worker = |number: u32| {
        let (mut report, mut latencies) = (Report::default(), Vec::new());
        for turn in (u64::from(number)..u64::from(rate) * seconds).step_by(threads as usize) {
            let at = started + Duration::from_secs_f64(turn as f64 / f64::from(rate));
            let stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
            let left = at.saturating_duration_since(Instant::now());
            let waited = stop.1.wait_timeout_while(stopped, left, |stopped| !*stopped);
            if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                break;
            }
            let begun = Instant::now();
            record(&mut report, get(address));
            latencies.push(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        (report, latencies)
    };
    let mut all = Report::default();
    let mut latencies: Vec<u64> = Vec::new();
    std::thread::scope(|scope| {
        let worker = &worker;
        let workers: Vec<_> = (0..threads).map(|number| scope.spawn(move || worker(number))).collect();
        for done in workers {
            let (report, more) = done.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            latencies.extend(more);
            all.failed += report.failed;
            all.failures.extend(report.failures);
            for (answer, count) in report.answers {
                *all.answers.entry(answer).or_insert(0) += count;
            }
        }
    });
    all.failures.truncate(MAX_FAILURES_SHOWN);
    latencies.sort_unstable();
    all.slow = latencies.iter().filter(|latency| **latency > SLOW_US).count();
    for (name, part) in [("p50", 500), ("p90", 900), ("p99", 990), ("p999", 999), ("max", 1000)] {
        let index = (latencies.len() * part / 1000).min(latencies.len().saturating_sub(1));
        if let Some(latency) = latencies.get(index) {
            all.latency_us.insert(name.to_owned(), *latency);
        }
    }
    all.milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    all
}

/// Fires when standard input ends.
fn stdin_closed() -> Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = sender.send(());
    });
    receiver
}

fn record(report: &mut Report, result: Result<String>) {
    match result {
        Ok(answer) => *report.answers.entry(answer).or_insert(0) += 1,
        Err(error) => {
            report.failed += 1;
            if report.failures.len() < MAX_FAILURES_SHOWN {
                report.failures.push(format!("{error:#}"));
            }
        }
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).context("connect")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn get(address: SocketAddr) -> Result<String> {
    let mut stream = connect(address)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n").context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive")?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer:?}"))?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok(body.trim().to_owned())
}

fn ask(address: SocketAddr) -> Result<String> {
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send_to(b"who are you", address).context("send")?;
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer).context("receive")?;
    anyhow::ensure!(from == address, "the answer came from {from}, not from {address}");
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}

fn transfer(address: SocketAddr, bytes: u64, rate: u64, received: &mut u64) -> Result<()> {
    let mut stream = connect(address)?;
    let request =
        format!("GET /bytes?n={bytes}&rate={rate} HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("send")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        anyhow::ensure!(reader.read_line(&mut line).context("receive")? > 0, "no answer");
    }
    let mut buffer = vec![0; 64 * 1024];
    while *received < bytes {
        let length = reader.read(&mut buffer).context("receive")?;
        anyhow::ensure!(length > 0, "the stream ended after {received} bytes");
        for byte in buffer.iter().take(length) {
            anyhow::ensure!(*byte == pattern(*received), "byte {received} is wrong");
            *received += 1;
        }
    }
    Ok(())
}
