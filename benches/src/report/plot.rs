//! The plot: bars on a logarithmic scale, one group for each ring and write size.

use std::fmt::Write as _;

use super::{C, OURS, Rows, WE_READ, WE_WRITE, bytes};
use crate::plan::{Task, Work};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;
const FLOOR: f64 = 360.0;
/// The decades shown, in GB/s.
const DECADES: (i32, i32) = (-2, 2);

fn y(value: f64) -> f64 {
    let (low, high) = (f64::from(DECADES.0), f64::from(DECADES.1));
    let part = (value.log10() - low) / (high - low);
    FLOOR - part.clamp(0.0, 1.0) * (FLOOR - TOP)
}

/// An SVG document of the streams with a notify that costs nothing more.
#[must_use]
pub fn plot(rows: Rows<'_>) -> String {
    let tasks = rows.tasks(|t: &Task| t.work == Work::Stream && t.notify_ns == 0 && !t.xen);
    let series = [
        (C, "#9aa0a6", "libxenvchan both ends"),
        (WE_READ, "#f2a65a", "libxenvchan writes, ours reads"),
        (WE_WRITE, "#58a4b0", "ours writes, libxenvchan reads"),
        (OURS, "#1b4965", "ours both ends"),
    ];
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    for decade in DECADES.0..=DECADES.1 {
        let (value, at) = (10f64.powi(decade), y(10f64.powi(decade)));
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            WIDTH - 10.0,
            LEFT - 8.0,
            at + 4.0
        );
    }
    let _ = writeln!(out, "<text x=\"8\" y=\"{}\">GB/s</text>", TOP - 10.0);
    let group = (WIDTH - LEFT - 20.0) / tasks.len().max(1) as f64;
    let bar = group * 0.8 / series.len() as f64;
    for (i, task) in tasks.iter().enumerate() {
        let start = LEFT + 10.0 + i as f64 * group;
        for (k, (variant, colour, _)) in series.iter().enumerate() {
            let Some(row) = rows.find(task, *variant) else {
                continue;
            };
            let at = y(row.median);
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{at:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"><title>{:.3} GB/s</title></rect>",
                start + k as f64 * bar,
                bar - 1.0,
                FLOOR - at,
                row.median
            );
        }
        let middle = start + group * 0.4;
        let _ = writeln!(
            out,
            "<text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666666\">ring {}</text>",
            FLOOR + 18.0,
            bytes(task.size),
            FLOOR + 34.0,
            bytes(task.ring)
        );
    }
    for (k, (_, colour, label)) in series.iter().enumerate() {
        let x = LEFT + 10.0 + k as f64 * 230.0;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"12\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"22\">{label}</text>",
            x + 18.0
        );
    }
    out.push_str("</svg>\n");
    out
}
