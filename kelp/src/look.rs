//! `kelp service`, `kelp endpoint` and `kelp ct`: what the dataplane of this node holds. The kernel's maps are read, so it is
//! the truth also while no agent runs.

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use kelp_agent::dataplane::view::{
    self, Conversation, EndpointRow, Filter, Nat, Pins, PodRow, ServiceRow, protocol_number,
};
use serde::Serialize;
use std::fmt::Display;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

mod flows;
mod table;
mod trace;

pub use flows::{FlowsArgs, run as flows};
pub use table::Table;
pub use trace::{PolicyCommand, run as policy};

/// `kelp service …`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List the addresses and ports that are served, with their endpoints.
    #[command(visible_alias = "ls")]
    List(ListArgs),
}

/// `kelp endpoint …`.
#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// List the endpoints that services lead to.
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        list: ListArgs,
        /// List the pods of this node instead, with their devices and whether network policies apply to them.
        #[arg(long, conflicts_with_all = ["service", "protocol"])]
        pods: bool,
    },
}

/// `kelp ct …`.
#[derive(Debug, Subcommand)]
pub enum CtCommand {
    /// List the flows that are translated, and those that network policies have judged.
    #[command(visible_alias = "ls")]
    List(ListArgs),
}

/// How a list is made.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only services and pods of this namespace.
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Only what concerns this Service.
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub service: Option<String>,
    /// Only what has this address anywhere.
    #[arg(long)]
    pub address: Option<IpAddr>,
    /// Only this protocol: tcp, udp, sctp, icmp, icmpv6 or a number.
    #[arg(long, value_parser = protocol_number)]
    pub protocol: Option<u8>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub pins: PinArgs,
}

/// Where the maps are.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Directory of the pinned BPF maps, as the agent was given it.
    #[arg(long, default_value = "/sys/fs/bpf/kelp")]
    pub bpf_dir: PathBuf,
}

/// How something is shown.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// For people or for programs.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// For whom something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// People.
    Table,
    /// Programs.
    Json,
}

impl ListArgs {
    fn filter(&self) -> Filter {
        Filter {
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            address: self.address,
            protocol: self.protocol,
        }
    }
}

/// Runs `kelp service …`.
///
/// # Errors
/// Fails if there is no dataplane, or the caller may not read its maps.
pub fn service(command: &ServiceCommand) -> Result<()> {
    let ServiceCommand::List(list) = command;
    show(list, &view::services(&Pins::new(&list.pins.bpf_dir), &list.filter())?, services_table)
}

/// Runs `kelp endpoint …`.
///
/// # Errors
/// As of [`service`].
pub fn endpoint(command: &EndpointCommand) -> Result<()> {
    let EndpointCommand::List { list, pods } = command;
    let maps = Pins::new(&list.pins.bpf_dir);
    if *pods {
        return show(list, &view::pods(&maps, &list.filter())?, pods_table);
    }
    show(list, &view::endpoints(&maps, &list.filter())?, endpoints_table)
}

/// Runs `kelp ct …`.
///
/// # Errors
/// As of [`service`].
pub fn ct(command: &CtCommand) -> Result<()> {
    let CtCommand::List(list) = command;
    show(list, &view::conversations(&Pins::new(&list.pins.bpf_dir), &list.filter())?, flows_table)
}

fn show<T: Serialize>(list: &ListArgs, rows: &[T], table: fn(&[T]) -> Table) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match list.output.output {
        Output::Table => write!(out, "{}", table(rows))?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, rows)?;
            writeln!(out)?;
        }
    }
    Ok(())
}

/// What is known, or a dash.
pub fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Values in one cell.
fn joined(values: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = values.collect();
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}

fn services_table(rows: &[ServiceRow]) -> Table {
    let mut table = Table::new(&["SERVICE", "ADDRESS", "PORT", "PROTOCOL", "FOR", "ENDPOINTS", "OPTIONS"]);
    for row in rows {
        let endpoints = row.endpoints.iter().map(|endpoint| {
            format!("{}{}", endpoint.address, if endpoint.draining { " (draining)" } else { "" })
        });
        let mut options = Vec::new();
        if row.affinity_seconds > 0 {
            options.push(format!("affinity {} s", row.affinity_seconds));
        }
        if row.local_only {
            options.push("this node only".to_owned());
        }
        if let Some(ranges) = &row.source_ranges {
            options.push(format!("from {}", ranges.join(" ")));
        }
        if row.drops_without_endpoints {
            options.push("drops without endpoints".to_owned());
        }
        if row.endpoints.len() != row.count as usize {
            options.push(format!("{} of {} endpoints found", row.endpoints.len(), row.count));
        }
        table.row([
            row.service.as_ref().map_or_else(|| format!("table {}", row.table), ToString::to_string),
            if row.node_port { "node port".to_owned() } else { row.address.to_string() },
            row.port.to_string(),
            row.protocol.clone(),
            if row.external { "outside" } else { "all" }.to_owned(),
            joined(endpoints),
            joined(options.into_iter()),
        ]);
    }
    table
}

fn endpoints_table(rows: &[EndpointRow]) -> Table {
    let mut table = Table::new(&["ADDRESS", "PORT", "PROTOCOL", "POD", "STATE", "SERVICES", "ID"]);
    for row in rows {
        let named = row.services.iter().map(ToString::to_string);
        let unnamed = row.unnamed_tables.iter().map(|id| format!("table {id}"));
        table.row([
            row.address.to_string(),
            row.port.to_string(),
            row.protocol.clone(),
            or_dash(row.pod.as_ref()),
            if row.draining { "draining" } else { "serving" }.to_owned(),
            joined(named.chain(unnamed)),
            row.id.to_string(),
        ]);
    }
    table
}

fn pods_table(rows: &[PodRow]) -> Table {
    let mut table = Table::new(&["POD", "ADDRESS", "DEVICE", "INGRESS POLICY", "EGRESS POLICY", "SOCKETS"]);
    for row in rows {
        table.row([
            or_dash(row.pod.as_ref()),
            row.address.to_string(),
            row.device.clone().unwrap_or_else(|| format!("index {}", row.ifindex)),
            row.ingress.to_string(),
            row.egress.to_string(),
            or_dash(row.sockets_translated.map(|is| if is { "translated" } else { "untranslated" })),
        ]);
    }
    table
}

fn flows_table(rows: &[Conversation]) -> Table {
    let mut table = Table::new(&[
        "PATH",
        "PROTOCOL",
        "STATE",
        "SOURCE",
        "DESTINATION",
        "NAT",
        "BECOMES",
        "SERVICE",
        "PODS",
        "VERDICT",
        "IDLE",
        "TIMEOUT",
    ]);
    for row in rows {
        let lower = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        let source = |ends: &view::Ends| or_dash(ends.source);
        let becomes = match row.nat {
            Nat::None => "-".to_owned(),
            Nat::Destination => row.translated.destination.to_string(),
            Nat::Source | Nat::Both => {
                format!("{} > {}", source(&row.translated), row.translated.destination)
            }
        };
        let pods = match (&row.source_pod, &row.destination_pod) {
            (None, None) => "-".to_owned(),
            (from, to) => format!("{} > {}", or_dash(from.as_ref()), or_dash(to.as_ref())),
        };
        table.row([
            lower(&row.path),
            row.protocol.clone(),
            or_dash(row.state.map(|state| lower(&state))),
            source(&row.original),
            row.original.destination.to_string(),
            lower(&row.nat),
            becomes,
            or_dash(row.service.as_ref()),
            pods,
            or_dash(row.verdict),
            or_dash(row.idle_seconds.map(|seconds| format!("{seconds} s"))),
            or_dash(row.timeout_seconds.map(|seconds| format!("{seconds} s"))),
        ]);
    }
    table
}

#[cfg(test)]
mod tests;
