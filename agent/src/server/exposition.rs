//! The text format of Prometheus, version 0.0.4, with Go's way of writing numbers.

use crate::metrics::{Kind, Metric, Sample};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

#[derive(Debug, Default)]
struct Family {
    kind: &'static str,
    help: &'static str,
    lines: Vec<String>,
}

/// Families of metrics, by name.
#[derive(Debug, Default)]
pub struct Exposition(BTreeMap<&'static str, Family>);

/// Labels in the order they are written: sorted by name.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    /// Adds a value of a counter.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        value: f64,
        at: Option<i64>,
    ) {
        self.add(name, "counter", help, labels, value, at);
    }

    /// Adds a value of a gauge.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        value: f64,
        at: Option<i64>,
    ) {
        self.add(name, "gauge", help, labels, value, at);
    }

    /// Names a family that may have no values yet.
    pub fn declare(&mut self, metric: &Metric) {
        let family = self.0.entry(metric.name).or_default();
        (family.kind, family.help) = (metric.kind.name(), metric.help);
    }

    /// Adds what was counted, set or observed.
    pub fn sample(&mut self, metric: &Metric, sample: &Sample) {
        let labels: Vec<(&str, &str)> = sample.labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let value = match metric.kind {
            Kind::Counter => Some(sample.count as f64),
            Kind::Gauge => Some(sample.sum),
            Kind::Histogram(_) => None,
        };
        if let Some(value) = value {
            self.add(metric.name, metric.kind.name(), metric.help, &labels, value, None);
            return;
        }
        let mut lines = Vec::new();
        let bounds = sample.buckets.iter().map(|(bound, count)| (number(*bound), *count));
        for (bound, count) in bounds.chain([("+Inf".to_owned(), sample.count)]) {
            let mut labels = labels.clone();
            labels.push(("le", &bound));
            lines.push(line(&format!("{}_bucket", metric.name), &labels, count as f64, None));
        }
        lines.push(line(&format!("{}_sum", metric.name), &labels, sample.sum, None));
        lines.push(line(&format!("{}_count", metric.name), &labels, sample.count as f64, None));
        let family = self.0.entry(metric.name).or_default();
        (family.kind, family.help) = ("histogram", metric.help);
        family.lines.append(&mut lines);
    }

    fn add(
        &mut self,
        name: &'static str,
        kind: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        value: f64,
        at: Option<i64>,
    ) {
        let family = self.0.entry(name).or_default();
        family.kind = kind;
        family.help = help;
        family.lines.push(line(name, labels, value, at));
    }

    /// The whole text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (name, family) in &self.0 {
            let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} {}", family.help, family.kind);
            for line in &family.lines {
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }
}

fn line(name: &str, labels: Labels<'_>, value: f64, at: Option<i64>) -> String {
    let mut line = name.to_owned();
    if !labels.is_empty() {
        line.push('{');
        for (index, (key, text)) in labels.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // Writing to a String cannot fail.
            let _ = write!(line, "{comma}{key}=\"{text}\"");
        }
        line.push('}');
    }
    let _ = write!(line, " {}", number(value));
    if let Some(at) = at {
        let _ = write!(line, " {at}");
    }
    line
}

/// Go's shortest form: with an exponent from a million on.
fn number(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let text = format!("{value:e}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_go_writes_them() {
        for (value, text) in [
            (0.0, "0"),
            (0.226_693_506, "0.226693506"),
            (786_432.0, "786432"),
            (1_437_696.0, "1.437696e+06"),
            (2_118_131_712.0, "2.118131712e+09"),
            (7_944.775_023_46, "7944.77502346"),
            (0.000_01, "1e-05"),
            (-1.5, "-1.5"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn families_are_sorted_and_labels_escaped() {
        let mut all = Exposition::default();
        all.gauge("b", "B.", &[("k", "a\"b\\c\nd")], 1.0, None);
        all.counter("a", "A.", &[], 2.0, Some(5));
        assert_eq!(
            all.text(),
            "# HELP a A.\n# TYPE a counter\na 2 5\n# HELP b B.\n# TYPE b gauge\nb{k=\"a\\\"b\\\\c\\nd\"} 1\n"
        );
    }
}
