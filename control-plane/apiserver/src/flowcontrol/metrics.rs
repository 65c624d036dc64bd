//! Counts and gauges, with upstream's names.

use super::config::Config;
use super::queues::Reason;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Bounds of the waiting times, in seconds.
const BUCKETS: [f64; 12] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0];

const REASONS: [(Reason, &str); 4] = [
    (Reason::QueueFull, "queue-full"),
    (Reason::ConcurrencyLimit, "concurrency-limit"),
    (Reason::TimeOut, "time-out"),
    (Reason::Cancelled, "cancelled"),
];

#[derive(Debug, Default)]
struct Waits {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Waits {
    fn note(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bucket, bound) in self.buckets.iter().zip(BUCKETS) {
            if seconds <= bound {
                bucket.fetch_add(1, Relaxed);
            }
        }
        self.count.fetch_add(1, Relaxed);
        self.micros.fetch_add(time.as_micros() as u64, Relaxed);
    }
}

/// Counts of one schema.
#[derive(Debug, Default)]
pub(super) struct SchemaStats {
    dispatched: AtomicU64,
    rejected: [AtomicU64; REASONS.len()],
    executed: Waits,
    refused: Waits,
}

impl SchemaStats {
    pub(super) fn dispatched(&self, waited: Duration) {
        self.dispatched.fetch_add(1, Relaxed);
        self.executed.note(waited);
    }

    pub(super) fn rejected(&self, reason: Reason, waited: Duration) {
        for ((known, _), count) in REASONS.iter().zip(&self.rejected) {
            if *known == reason {
                count.fetch_add(1, Relaxed);
            }
        }
        self.refused.note(waited);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(
        out,
        "# HELP apiserver_flowcontrol_{name} {help}\n# TYPE apiserver_flowcontrol_{name} {kind}"
    );
}

/// The text for `/metrics`.
pub(super) fn render(config: &Config, out: &mut String) {
    head(
        out,
        "dispatched_requests_total",
        "counter",
        "Number of requests executed by API Priority and Fairness.",
    );
    for schema in &config.schemas {
        let (name, level, count) = (&schema.name, &schema.level.name, schema.stats.dispatched.load(Relaxed));
        let _ = writeln!(
            out,
            "apiserver_flowcontrol_dispatched_requests_total{{flow_schema=\"{name}\",priority_level=\"{level}\"}} {count}"
        );
    }
    head(
        out,
        "rejected_requests_total",
        "counter",
        "Number of requests rejected by API Priority and Fairness.",
    );
    for schema in &config.schemas {
        for ((_, reason), count) in REASONS.iter().zip(&schema.stats.rejected) {
            let (name, level, count) = (&schema.name, &schema.level.name, count.load(Relaxed));
            if count > 0 {
                let _ = writeln!(
                    out,
                    "apiserver_flowcontrol_rejected_requests_total{{flow_schema=\"{name}\",priority_level=\"{level}\",\
                     reason=\"{reason}\"}} {count}"
                );
            }
        }
    }
    head(
        out,
        "request_wait_duration_seconds",
        "histogram",
        "Length of time a request spent waiting in its queue.",
    );
    for schema in &config.schemas {
        for (execute, waits) in [(true, &schema.stats.executed), (false, &schema.stats.refused)] {
            let count = waits.count.load(Relaxed);
            if count == 0 {
                continue;
            }
            let labels = format!(
                "execute=\"{execute}\",flow_schema=\"{}\",priority_level=\"{}\"",
                schema.name, schema.level.name
            );
            let name = "apiserver_flowcontrol_request_wait_duration_seconds";
            for (bucket, bound) in waits.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {}", bucket.load(Relaxed));
            }
            let sum = Duration::from_micros(waits.micros.load(Relaxed)).as_secs_f64();
            let _ = writeln!(
                out,
                "{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}"
            );
        }
    }
    let levels: Vec<_> = config.levels.iter().map(|level| (level, level.level.usage())).collect();
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(usize) -> f64| {
        head(out, name, "gauge", help);
        for (index, (level, _)) in levels.iter().enumerate() {
            let _ = writeln!(
                out,
                "apiserver_flowcontrol_{name}{{priority_level=\"{}\"}} {}",
                level.name,
                value(index)
            );
        }
    };
    let usage = |index: usize| levels.get(index).map(|(level, usage)| (&**level, usage));
    gauge("nominal_limit_seats", "Nominal number of execution seats of a priority level.", &|i| {
        usage(i).map_or(0.0, |(level, _)| level.nominal as f64)
    });
    gauge("lower_limit_seats", "Lower bound on the number of execution seats.", &|i| {
        usage(i).map_or(0.0, |(level, _)| level.min as f64)
    });
    gauge("upper_limit_seats", "Upper bound on the number of execution seats.", &|i| {
        usage(i).map_or(0.0, |(level, _)| level.max as f64)
    });
    gauge("current_limit_seats", "Current derived number of execution seats.", &|i| {
        usage(i).map_or(0.0, |(_, usage)| usage.limit as f64)
    });
    gauge("current_executing_seats", "Concurrency (number of seats) occupied by executing requests.", &|i| {
        usage(i).map_or(0.0, |(_, usage)| usage.seats as f64)
    });
    gauge("current_executing_requests", "Number of requests in initial execution phase.", &|i| {
        usage(i).map_or(0.0, |(_, usage)| usage.executing as f64)
    });
    gauge("current_inqueue_requests", "Number of requests currently pending in queues.", &|i| {
        usage(i).map_or(0.0, |(_, usage)| usage.waiting as f64)
    });
    gauge(
        "demand_seats_high_watermark",
        "High watermark of demand_seats over the last adjustment period.",
        &|i| usage(i).map_or(0.0, |(_, usage)| usage.demand.watermark as f64),
    );
    gauge(
        "demand_seats_average",
        "Time-weighted average of demand_seats over the last adjustment period.",
        &|i| usage(i).map_or(0.0, |(_, usage)| usage.demand.average),
    );
    gauge("demand_seats_smoothed", "Smoothed seat demands.", &|i| {
        usage(i).map_or(0.0, |(_, usage)| usage.demand.smoothed)
    });
}
