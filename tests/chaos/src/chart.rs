//! The time line as SVG: calls done in each second, their 99th percentile, and the faults.

use std::fmt::Write as _;

use crate::journal::{Brief, Outcome};
use crate::nemesis::Fault;

const WIDTH: f64 = 1_200.0;
const HEIGHT: f64 = 150.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 30.0;
const GAP: f64 = 50.0;

/// Of a second: calls done, those without an outcome, and the times of those done in ms.
#[derive(Clone, Default)]
struct Second {
    unknown: usize,
    times: Vec<u64>,
}

/// Draws the calls of a run, without those of these kinds.
pub(crate) fn timeline(calls: &[Brief], faults: &[Fault], without: &[&str]) -> String {
    let seconds = calls.iter().map(|call| call.to_us / 1_000_000 + 1).max().unwrap_or(1) as usize;
    let mut by_second = vec![Second::default(); seconds];
    for call in calls.iter().filter(|call| !without.contains(&call.call)) {
        let second = &mut by_second[(call.to_us / 1_000_000) as usize];
        match call.outcome {
            Outcome::Unknown => second.unknown += 1,
            _ => second.times.push((call.to_us - call.from_us) / 1_000),
        }
    }
    let done: Vec<f64> = by_second.iter().map(|second| second.times.len() as f64).collect();
    let unknown: Vec<f64> = by_second.iter().map(|second| second.unknown as f64).collect();
    let slow: Vec<f64> = by_second
        .iter_mut()
        .map(|second| {
            second.times.sort_unstable();
            let at = second.times.len().saturating_sub(1) * 99 / 100;
            second.times.get(at).copied().unwrap_or_default() as f64
        })
        .collect();
    let height = TOP + 3.0 * (HEIGHT + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + 20.0
    );
    mark(&mut svg, faults, seconds as f64, height - GAP);
    plot(&mut svg, 0, "calls answered per second", "#1f6fb2", &done);
    plot(&mut svg, 1, "calls without an outcome per second", "#b2351f", &unknown);
    plot(&mut svg, 2, "p99 of answered calls, ms", "#3b8a3e", &slow);
    svg += "</svg>\n";
    svg
}

fn mark(svg: &mut String, faults: &[Fault], seconds: f64, bottom: f64) {
    for (index, fault) in faults.iter().enumerate() {
        let x = |us: u64| LEFT + us as f64 / 1e6 / seconds * WIDTH;
        let (from, to) = (x(fault.from_us), x(fault.to_us.max(fault.from_us)));
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\" fill=\"#f3c969\" \
             fill-opacity=\"0.5\"><title>{} of node {}</title></rect>",
            (to - from).max(1.0),
            bottom - TOP,
            fault.kind,
            fault.node
        );
        let y = 10 + 9 * (index % 2);
        let _ = writeln!(
            svg,
            "<text x=\"{from:.1}\" y=\"{y}\" font-size=\"8\">{} {}</text>",
            fault.kind, fault.node
        );
    }
}

fn plot(svg: &mut String, row: usize, title: &str, colour: &str, values: &[f64]) {
    let top = TOP + row as f64 * (HEIGHT + GAP);
    let most = values.iter().copied().fold(1.0, f64::max);
    let points: String = values
        .iter()
        .enumerate()
        .map(|(second, value)| {
            let x = LEFT + second as f64 / values.len() as f64 * WIDTH;
            format!("{x:.1},{:.1} ", top + HEIGHT - value / most * HEIGHT)
        })
        .collect();
    let bottom = top + HEIGHT;
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{}\">{title}</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{most:.0}</text>\n\
         <text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\n\
         <path d=\"M{LEFT} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} s</text>\n\
         <polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\"/>",
        top - 4.0,
        LEFT - 4.0,
        top + 10.0,
        LEFT - 4.0,
        LEFT + WIDTH,
        LEFT + WIDTH,
        bottom + 14.0,
        values.len()
    );
}
