//! A small line plot: panels one below the other, the horizontal axis logarithmic.

use std::fmt::Write;

/// A line.
#[derive(Debug, Clone)]
pub struct Series {
    /// What it shows.
    pub label: String,
    /// Its points by growing x.
    pub points: Vec<(f64, f64)>,
}

/// One plot.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What the vertical axis shows.
    pub title: String,
    /// Its lines; the same ones in every panel.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 300.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 40.0;
const COLOURS: [&str; 8] =
    ["#444444", "#1b7837", "#5aae61", "#b35806", "#f1a340", "#542788", "#998ec3", "#c51b7d"];

/// The next rounder number.
fn ceiling(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1e-9).log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|step| *step >= value).unwrap_or(value)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The text of an SVG file.
pub fn svg(x_title: &str, panels: &[Panel]) -> String {
    let height = HEIGHT * panels.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (number, panel) in panels.iter().enumerate() {
        let _ = writeln!(out, "<g transform=\"translate(0 {})\">", HEIGHT * number as f64);
        draw(&mut out, x_title, panel);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, x_title: &str, panel: &Panel) {
    let points = || panel.series.iter().flat_map(|series| &series.points).filter(|(_, y)| y.is_finite());
    let top = ceiling(points().map(|(_, y)| *y).fold(0.0, f64::max));
    let low = points().map(|(x, _)| x.max(1.0).log10()).fold(f64::INFINITY, f64::min);
    let high = points().map(|(x, _)| x.max(1.0).log10()).fold(low + 1e-9, f64::max);
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let at_x = |x: f64| LEFT + (x.max(1.0).log10() - low) / (high - low) * (right - LEFT);
    let at_y = |y: f64| bottom - y / top * (bottom - TOP);
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"24\" font-weight=\"bold\">{}</text>", escape(&panel.title));
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let y = at_y(value);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    let mut marks: Vec<f64> = points().map(|(x, _)| *x).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    for mark in marks {
        let x = at_x(mark);
        let _ =
            writeln!(out, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{mark}</text>", bottom + 16.0);
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(LEFT, right),
        bottom + 32.0,
        escape(x_title)
    );
    for (number, series) in panel.series.iter().enumerate() {
        let colour = COLOURS.get(number % COLOURS.len()).copied().unwrap_or("black");
        let seen = series.points.iter().filter(|(_, y)| y.is_finite());
        let line: Vec<String> = seen.map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for point in &line {
            let (x, y) = point.split_once(',').unwrap_or_default();
            let _ = writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let y = TOP + 18.0 * number as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{}\" y=\"{}\" width=\"12\" height=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{}\">{}</text>",
            right + 16.0,
            y - 5.0,
            right + 34.0,
            y,
            escape(&series.label)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_drawn_between_zero_and_a_round_number() {
        assert_eq!([0.9, 1.0, 1.2, 23.0, 260.0, 7000.0].map(ceiling), [1.0, 1.0, 2.0, 25.0, 500.0, 10_000.0]);
        let panel = Panel {
            title: "a < b".to_owned(),
            series: vec![Series { label: "one".to_owned(), points: vec![(1.0, 5.0), (100.0, 10.0)] }],
        };
        let text = svg("x", &[panel]);
        assert!(text.contains("80.0,150.0 600.0,40.0") && text.contains("a &lt; b"), "{text}");
    }
}
