//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Kind of a metric.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Text being written.
#[derive(Default)]
pub(super) struct Text(String);

/// A label's value in quotes, with what must be escaped.
fn quoted(value: &str, out: &mut String) {
    out.push('"');
    for letter in value.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
    out.push('"');
}

impl Text {
    /// The head of a metric.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One value.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.line(name, "", labels, None, value);
    }

    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[(&str, &str)],
        bound: Option<&str>,
        value: impl Display,
    ) {
        self.0.push_str(name);
        self.0.push_str(suffix);
        let all = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        for (index, (name, value)) in all.enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            self.0.push_str(name);
            self.0.push('=');
            quoted(value, &mut self.0);
        }
        if !labels.is_empty() || bound.is_some() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A histogram, with only the bounds from `skip` on.
    pub(super) fn histogram<const N: usize>(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        histogram: &Histogram<N>,
        skip: usize,
    ) {
        let mut sum = 0;
        for (index, (bound, count)) in histogram.bounds.iter().zip(&histogram.counts).enumerate() {
            sum += count.load(Ordering::Relaxed);
            if index >= skip {
                self.line(name, "_bucket", labels, Some(&bound.to_string()), sum);
            }
        }
        let total = sum + histogram.above.load(Ordering::Relaxed);
        self.line(name, "_bucket", labels, Some("+Inf"), total);
        self.line(name, "_sum", labels, None, histogram.sum());
        self.line(name, "_count", labels, None, total);
    }

    /// For metrics that others write.
    pub(super) fn raw(&mut self) -> &mut String {
        &mut self.0
    }

    /// All of it.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// Counts of values up to each of some bounds.
pub(super) struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    /// Values up to each bound and above the one before.
    counts: [AtomicU64; N],
    above: AtomicU64,
    /// Sum in millionths.
    millionths: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    pub(super) fn new(bounds: &'static [f64; N]) -> Self {
        Histogram {
            bounds,
            counts: [const { AtomicU64::new(0) }; N],
            above: AtomicU64::new(0),
            millionths: AtomicU64::new(0),
        }
    }

    pub(super) fn observe(&self, value: f64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts.get(place).unwrap_or(&self.above).fetch_add(1, Ordering::Relaxed);
        self.millionths.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    pub(super) fn time(&self, took: Duration) {
        self.observe(took.as_secs_f64());
    }

    /// Number of values.
    pub(super) fn total(&self) -> u64 {
        self.counts.iter().chain([&self.above]).map(|count| count.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.total() == 0
    }

    fn sum(&self) -> f64 {
        self.millionths.load(Ordering::Relaxed) as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_prometheus_own() {
        static BOUNDS: [f64; 3] = [0.005, 1.0, 30.0];
        let histogram = Histogram::new(&BOUNDS);
        for value in [0.001, 0.005, 0.5, 100.0] {
            histogram.observe(value);
        }
        let mut text = Text::default();
        text.family("a_seconds", Kind::Histogram, "How long.");
        text.histogram("a_seconds", &[("verb", "G\"E\\T\n")], &histogram, 0);
        text.family("b", Kind::Gauge, "Some.");
        text.sample("b", &[], 3);
        let expected = "# HELP a_seconds How long.\n# TYPE a_seconds histogram\n\
            a_seconds_bucket{verb=\"G\\\"E\\\\T\\n\",le=\"0.005\"} 2\n\
            a_seconds_bucket{verb=\"G\\\"E\\\\T\\n\",le=\"1\"} 3\n\
            a_seconds_bucket{verb=\"G\\\"E\\\\T\\n\",le=\"30\"} 3\n\
            a_seconds_bucket{verb=\"G\\\"E\\\\T\\n\",le=\"+Inf\"} 4\n\
            a_seconds_sum{verb=\"G\\\"E\\\\T\\n\"} 100.506\n\
            a_seconds_count{verb=\"G\\\"E\\\\T\\n\"} 4\n\
            # HELP b Some.\n# TYPE b gauge\nb 3\n";
        assert_eq!(text.finish(), expected);
    }
}
