//! Just enough HTTP/1.1: GET, keep-alive, a streamed body.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

/// Longest request head that is read; a longer one ends the connection.
const MAX_HEAD: u64 = 16 * 1024;

/// Answers the requests of one connection until the client closes it.
pub(crate) fn serve(stream: &TcpStream, name: &str) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(head) = read_head(&mut reader)? {
        answer(stream, &head, name)?;
        if head.close {
            break;
        }
    }
    Ok(())
}

struct Head {
    method: String,
    path: String,
    query: String,
    close: bool,
}

fn read_head(reader: &mut BufReader<&TcpStream>) -> Result<Option<Head>> {
    let mut limited = reader.by_ref().take(MAX_HEAD);
    let mut line = String::new();
    if limited.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(Error::new(ErrorKind::InvalidData, "malformed request line"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut head = Head {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        close: words.next() == Some("HTTP/1.0"),
    };
    loop {
        let mut header = String::new();
        if limited.read_line(&mut header)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let header = header.trim();
        if header.is_empty() {
            return Ok(Some(head));
        }
        if header.eq_ignore_ascii_case("connection: close") {
            head.close = true;
        }
    }
}

fn answer(stream: &TcpStream, head: &Head, name: &str) -> Result<()> {
    match (head.method.as_str(), head.path.as_str()) {
        ("GET" | "HEAD", "/") => text(stream, head, "200 OK", &format!("hello from {name}\n")),
        ("GET" | "HEAD", "/healthz") => text(stream, head, "200 OK", "ok\n"),
        ("GET", "/bytes") => bytes(stream, head),
        ("GET" | "HEAD", _) => text(stream, head, "404 Not Found", "no such page\n"),
        _ => text(stream, head, "405 Method Not Allowed", "GET only\n"),
    }
}

fn text(mut stream: &TcpStream, head: &Head, status: &str, body: &str) -> Result<()> {
    let connection = if head.close { "close" } else { "keep-alive" };
    let length = body.len();
    let body = if head.method == "HEAD" { "" } else { body };
    // One write, so that the answer is one segment.
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes())
}

fn bytes(mut stream: &TcpStream, head: &Head) -> Result<()> {
    let parameter = |key: &str| {
        head.query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok())
    };
    let Some(total) = parameter("n") else {
        return text(stream, head, "400 Bad Request", "n=<number of bytes> is missing\n");
    };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {total}\r\n\r\n"
    )?;
    let rate = parameter("rate").filter(|rate| *rate > 0);
    // Paced in steps of 20 ms.
    let step = rate.map_or(64 * 1024, |rate| (rate / 50).max(1));
    let (_keep, pause) = mpsc::channel::<()>();
    let mut sent = 0;
    while sent < total {
        let end = total.min(sent + step);
        let chunk: Vec<u8> = (sent..end).map(pattern).collect();
        stream.write_all(&chunk)?;
        sent = end;
        if rate.is_some() {
            let _ = pause.recv_timeout(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Byte number `i` of the stream: a sequence in which a lost, repeated or moved block shows.
fn pattern(i: u64) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 13) as u8
}
