//! Makes requests from a sandbox host and prints a report as JSON.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kelp_tests::{Report, pattern};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_FAILURES_SHOWN: usize = 20;

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
