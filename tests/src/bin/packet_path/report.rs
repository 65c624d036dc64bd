//! What was measured: names, medians, the table, and the files in `target/bench`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use crate::plot::{Panel, Series, svg};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Metric {
    /// Requests a second over one TCP connection.
    TcpRequests,
    /// CPU time of such a request on both ends, µs.
    CpuEach,
    /// Requests a second over one UDP socket.
    UdpRequests,
    /// Connections a second with a request each.
    Connections,
    /// From `connect` to its return: SYN to SYN-ACK, of which the first packet finds no connection. µs.
    FirstP50,
    /// Its 90th percentile.
    FirstP90,
    /// Its 99th percentile.
    FirstP99,
    /// MiB a second.
    Throughput,
}

impl Metric {
    /// All, in the order of the table.
    pub const ALL: [Self; 8] = [
        Self::TcpRequests,
        Self::CpuEach,
        Self::UdpRequests,
        Self::Connections,
        Self::FirstP50,
        Self::FirstP90,
        Self::FirstP99,
        Self::Throughput,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::TcpRequests => "TCP_RR, requests/s",
            Self::CpuEach => "CPU a TCP_RR request, µs",
            Self::UdpRequests => "UDP_RR, requests/s",
            Self::Connections => "TCP_CRR, connections/s",
            Self::FirstP50 => "first packet p50, µs",
            Self::FirstP90 => "first packet p90, µs",
            Self::FirstP99 => "first packet p99, µs",
            Self::Throughput => "TCP_STREAM, MiB/s",
        }
    }
}

/// All measured values: by the number of services, what was measured, and the column.
#[derive(Debug, Default)]
pub struct Results {
    /// From where to where.
    title: String,
    /// Begins the names of the files.
    stem: String,
    columns: Vec<String>,
    values: BTreeMap<(usize, Metric, usize), Vec<f64>>,
}

/// The median; not a number of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Results {
    /// Nothing yet; the first column is the baseline. Files will be named `stem.md` and so on.
    pub fn new(title: &str, stem: &str, columns: Vec<String>) -> Self {
        Self { title: title.to_owned(), stem: stem.to_owned(), columns, values: BTreeMap::new() }
    }

    /// Adds a value.
    pub fn add(&mut self, services: usize, metric: Metric, column: usize, value: f64) {
        self.values.entry((services, metric, column)).or_default().push(value);
    }

    fn of(&self, services: usize, metric: Metric, column: usize) -> &[f64] {
        self.values.get(&(services, metric, column)).map_or(&[], Vec::as_slice)
    }

    /// A Markdown table of one number of services: medians, the lowest and the highest value, and the ratio to the
    /// baseline.
    pub fn table(&self, services: usize) -> String {
        let rounds = self.of(services, Metric::TcpRequests, 0).len();
        let mut out = format!(
            "\n{}, {services} services, medians of {rounds} rounds (lowest–highest), × the first column\n\n| |",
            self.title
        );
        for column in &self.columns {
            let _ = write!(out, " {column} |");
        }
        let _ = writeln!(out, "\n|---|{}", "---|".repeat(self.columns.len()));
        for metric in Metric::ALL {
            let _ = write!(out, "| {} |", metric.title());
            let baseline = median(self.of(services, metric, 0));
            for column in 0..self.columns.len() {
                let values = self.of(services, metric, column);
                let low = values.iter().copied().fold(f64::INFINITY, f64::min);
                let high = values.iter().copied().fold(0.0, f64::max);
                let middle = median(values);
                let _ = write!(out, " {middle:.1} ({low:.1}–{high:.1})");
                let _ = if column == 0 {
                    write!(out, " |")
                } else {
                    write!(out, " ×{:.3} |", middle / baseline)
                };
            }
            out.push('\n');
        }
        out
    }

    fn numbers(&self) -> Vec<usize> {
        let mut numbers: Vec<usize> = self.values.keys().map(|(services, ..)| *services).collect();
        numbers.dedup();
        numbers
    }

    fn panel(&self, metric: Metric) -> Panel {
        let line = |(column, label): (usize, &String)| Series {
            label: label.clone(),
            points: self
                .numbers()
                .into_iter()
                .map(|services| (services as f64, median(self.of(services, metric, column))))
                .collect(),
        };
        Panel {
            title: metric.title().to_owned(),
            series: self.columns.iter().enumerate().map(line).collect(),
        }
    }

    /// Writes a table, a plot and all values into a directory; returns the paths of the files.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let tables: String = self.numbers().into_iter().map(|services| self.table(services)).collect();
        let panels = [Metric::Connections, Metric::FirstP50, Metric::FirstP99, Metric::TcpRequests];
        let values: Vec<_> = self
            .values
            .iter()
            .map(|((services, metric, column), values)| {
                json!({"services": services, "metric": metric, "way": self.columns.get(*column),
                    "median": median(values), "values": values})
            })
            .collect();
        let files = [
            ("md", tables),
            ("svg", svg("number of services", &panels.map(|metric| self.panel(metric)))),
            ("json", json!({"benchmark": self.stem, "way": self.title, "results": values}).to_string()),
        ];
        let mut written = Vec::new();
        for (kind, text) in files {
            let path = dir.join(format!("{}.{kind}", self.stem));
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            written.push(path);
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_the_first_column() {
        let mut results = Results::new("a → b", "a-b", vec!["pod".to_owned(), "service".to_owned()]);
        for value in [100.0, 300.0, 200.0] {
            results.add(1, Metric::TcpRequests, 0, value);
            results.add(1, Metric::TcpRequests, 1, value / 2.0);
        }
        let table = results.table(1);
        assert!(
            table.contains("| TCP_RR, requests/s | 200.0 (100.0–300.0) | 100.0 (50.0–150.0) ×0.500 |"),
            "{table}"
        );
    }
}
