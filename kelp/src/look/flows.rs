//! `kelp flows`: what becomes of packets and connections, as the kernel's programs tell it while this listens.

use super::{Output, OutputArgs, PinArgs, or_dash};
use anyhow::Result;
use clap::Args;
use kelp_agent::dataplane::view::{
    FlowFilter, FlowReport, Listener, Lost, Party, Pins, Verdict, protocol_number, reasons,
};
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Arguments of `kelp flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Listen until interrupted.
    #[arg(long, short, conflicts_with = "seconds")]
    pub follow: bool,
    /// Listen so long.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// End after so many events.
    #[arg(long, value_name = "COUNT")]
    pub count: Option<u64>,
    /// Only these: forwarded, translated, dropped, refused.
    #[arg(long, value_delimiter = ',', value_parser = verdict)]
    pub verdict: Vec<Verdict>,
    /// Only from this address, range, pod ([NAMESPACE/]NAME), or from `node`, `cluster` or `outside`.
    #[arg(long, value_name = "WHO")]
    pub from: Option<Party>,
    /// Only to this address, range, pod or service ([NAMESPACE/]NAME), or to `node`, `cluster` or `outside`.
    #[arg(long, value_name = "WHO")]
    pub to: Option<Party>,
    /// Only this protocol: tcp, udp, sctp, icmp, icmpv6 or a number.
    #[arg(long, value_parser = protocol_number)]
    pub protocol: Option<u8>,
    /// Only with this port on either side.
    #[arg(long)]
    pub port: Option<u16>,
    /// Only dropped or refused for this reason.
    #[arg(long, value_parser = reason)]
    pub reason: Option<String>,
    /// How many events a second and CPU are told at most; what is more is counted.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub pins: PinArgs,
}

fn verdict(text: &str) -> Result<Verdict, String> {
    match text {
        "forwarded" => Ok(Verdict::Forwarded),
        "translated" => Ok(Verdict::Translated),
        "dropped" => Ok(Verdict::Dropped),
        "refused" => Ok(Verdict::Refused),
        _ => Err(format!("{text:?} is none of forwarded, translated, dropped, refused")),
    }
}

fn reason(text: &str) -> Result<String, String> {
    if reasons().contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is none of {}", reasons().join(", ")))
}

impl FlowsArgs {
    fn filter(&self) -> FlowFilter {
        FlowFilter {
            verdicts: self.verdict.clone(),
            from: self.from.clone(),
            to: self.to.clone(),
            protocol: self.protocol,
            port: self.port,
            reason: self.reason.clone(),
        }
    }
}

/// Runs `kelp flows`. What was lost is told on standard error.
///
/// # Errors
/// Fails if there is no dataplane, somebody else listens, or the caller may not read its maps.
pub fn run(args: &FlowsArgs) -> Result<()> {
    let filter = args.filter();
    let mut listener = Listener::open(&Pins::new(&args.pins.bpf_dir), args.rate)?;
    let end = (!args.follow).then(|| Instant::now() + Duration::from_secs(args.seconds));
    let (mut told, mut lost) = (0, Lost::default());
    loop {
        let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(());
        }
        let reports = listener.wait(left)?;
        let mut out = std::io::stdout().lock();
        for report in reports.iter().filter(|report| filter.admits(report)) {
            match args.output.output {
                Output::Table => writeln!(out, "{}", line(report))?,
                // One object a line: there is no end that a list could have.
                Output::Json => {
                    serde_json::to_writer(&mut out, report)?;
                    writeln!(out)?;
                }
            }
            told += 1;
            if args.count.is_some_and(|count| told >= count) {
                return Ok(out.flush()?);
            }
        }
        out.flush()?;
        drop(out);
        let now = listener.lost()?;
        if now != lost {
            eprintln!("{}", loss(now, args.rate));
            lost = now;
        }
    }
}

fn loss(lost: Lost, rate: u32) -> String {
    format!(
        "kelp: not told so far: {} events beyond --rate {rate} a second and CPU, {} for which there was no room",
        lost.rate, lost.ring
    )
}

/// An end for people; a dash for a socket's that has no address yet.
fn end(end: SocketAddr) -> String {
    if end.port() == 0 && end.ip().is_unspecified() { "-".to_owned() } else { end.to_string() }
}

/// An event for people.
fn line(flow: &FlowReport) -> String {
    let mut line = format!(
        "{}  {:<10}  {:<6}  {} ({}) > {} ({})",
        flow.time,
        format!("{:?}", flow.verdict).to_lowercase(),
        flow.protocol,
        end(flow.source),
        flow.source_identity,
        flow.destination,
        flow.service.as_ref().map_or_else(|| flow.destination_identity.to_string(), ToString::to_string),
    );
    match (flow.translated_source, flow.translated_destination) {
        (None, None) => {}
        (source, destination) => {
            let to = destination.unwrap_or(flow.destination);
            let identity = or_dash(flow.translated_identity.as_ref().or(Some(&flow.destination_identity)));
            line.push_str(&format!("  becomes {} > {to} ({identity})", end(source.unwrap_or(flow.source))));
        }
    }
    if let Some(reason) = flow.reason {
        line.push_str(&format!("  {reason}"));
    }
    if !flow.policies.is_empty() {
        let names: Vec<String> = flow.policies.iter().map(ToString::to_string).collect();
        line.push_str(&format!("  by {}", names.join(", ")));
    }
    line.push_str(&format!("  [{}]", flow.seen));
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use kelp_agent::dataplane::view::{Identity, Object};

    fn flow() -> FlowReport {
        let pod = |name: &str| Object { namespace: "shop".to_owned(), name: name.to_owned() };
        FlowReport {
            time: "2026-01-02T03:04:05.6Z".to_owned(),
            verdict: Verdict::Dropped,
            reason: Some("policy_ingress"),
            seen: "from-pod",
            protocol: "TCP".to_owned(),
            source: "10.244.0.3:4711".parse().expect("an address"),
            source_identity: Identity::Pod(pod("web-1")),
            destination: "10.244.0.2:80".parse().expect("an address"),
            destination_identity: Identity::Pod(pod("web-0")),
            translated_source: None,
            translated_destination: None,
            translated_identity: None,
            service: None,
            policies: vec![pod("deny")],
        }
    }

    #[test]
    fn events_are_readable() {
        assert_eq!(
            line(&flow()),
            "2026-01-02T03:04:05.6Z  dropped     TCP     10.244.0.3:4711 (shop/web-1) > 10.244.0.2:80 (shop/web-0)  \
             policy_ingress  by shop/deny  [from-pod]"
        );
        let socket = FlowReport { source: "[::]:0".parse().expect("an address"), ..flow() };
        assert!(line(&socket).contains("  - (shop/web-1) > "), "{}", line(&socket));
        let json = serde_json::to_value(flow()).expect("JSON");
        assert_eq!(json["sourceIdentity"]["pod"]["name"], "web-1");
        assert_eq!((&json["verdict"], &json["reason"]), (&"dropped".into(), &"policy_ingress".into()));
    }

    #[test]
    fn filters_say_what_they_know() {
        assert!(reason("policy_ingress").is_ok() && verdict("dropped") == Ok(Verdict::Dropped));
        assert!(reason("x").is_err_and(|text| text.contains("no_nat_port")));
        assert!(verdict("x").is_err_and(|text| text.contains("translated")));
        assert!(loss(Lost { rate: 1, ring: 2 }, 7).contains("--rate 7"));
    }
}
