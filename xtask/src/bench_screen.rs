//! `cargo xtask bench screen`: a guest's screen as `consoled` and as QEMU serve it, and the page that
//! compares them.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::bench;
use crate::host::Options;
use crate::workspace::Workspace;

/// Pairs that a verdict needs.
const PAIRS: usize = 5;

/// A unit, as it is printed.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Millis,
    /// Of bytes.
    Bytes,
    /// Of KiB.
    Memory,
    Count,
}

impl Unit {
    fn print(self, value: f64) -> String {
        match self {
            Self::Millis => format!("{value:.1}"),
            Self::Bytes if value < 10_240.0 => format!("{value:.0} B"),
            Self::Bytes => format!("{:.1} KiB", value / 1024.0),
            Self::Memory => format!("{:.1}", value / 1024.0),
            Self::Count => format!("{value:.0}"),
        }
    }
}

/// Each figure's name in the agent, its line in the table, and its unit.
const FIGURES: &[(&str, &str, Unit)] = &[
    ("key", "key → guest, ms", Unit::Millis),
    ("picture", "picture → viewer, ms", Unit::Millis),
    (
        "key to picture",
        "key → picture in the viewer, ms",
        Unit::Millis,
    ),
    (
        "picture later",
        "picture → viewer, after 4 s of quiet, ms",
        Unit::Millis,
    ),
    ("tiles, Raw", "tiles, Raw", Unit::Bytes),
    ("tiles, Hextile", "tiles, Hextile", Unit::Bytes),
    ("tiles, ZRLE", "tiles, ZRLE", Unit::Bytes),
    ("text, Raw", "text, Raw", Unit::Bytes),
    ("text, Hextile", "text, Hextile", Unit::Bytes),
    ("text, ZRLE", "text, ZRLE", Unit::Bytes),
    ("colours, Raw", "colours, Raw", Unit::Bytes),
    ("colours, Hextile", "colours, Hextile", Unit::Bytes),
    ("colours, ZRLE", "colours, ZRLE", Unit::Bytes),
    ("noise, Raw", "noise, Raw", Unit::Bytes),
    ("noise, Hextile", "noise, Hextile", Unit::Bytes),
    ("noise, ZRLE", "noise, ZRLE", Unit::Bytes),
    ("idle bytes", "20 s of quiet", Unit::Bytes),
    ("idle wake-ups", "wake-ups in 20 s of quiet", Unit::Count),
    ("resident", "memory in dom0, resident, MiB", Unit::Memory),
    ("share", "memory in dom0, its own share, MiB", Unit::Memory),
];

/// Runs it and writes `screen.md` into the folder.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    starts: u32,
    out: &Path,
    timeout: Duration,
) -> Result<ExitCode> {
    let script = format!("exec xen-testbed-agent bench-screen --starts {starts}");
    let rows = bench::values(workspace, options, &script, timeout)?;
    let page = page(&rows, options.release.name, starts)?;
    bench::write_page(out, "screen.md", &page)?;
    Ok(ExitCode::SUCCESS)
}

/// The values of a figure in a way, in the order of the rounds.
fn values(rows: &[Value], way: &str, figure: &str) -> Vec<f64> {
    let rows = rows.iter();
    let rows = rows.filter(|row| row["way"] == way && row["figure"] == figure);
    rows.filter_map(|row| row["value"].as_f64()).collect()
}

/// The quartiles and the median.
fn quartiles(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |quarter: usize| values[(last * quarter + 2) / 4];
    Some([at(1), at(2), at(3)])
}

fn spread(values: Vec<f64>, print: impl Fn(f64) -> String) -> String {
    match quartiles(values) {
        Some([low, middle, high]) if low == high => print(middle),
        Some([low, middle, high]) => {
            format!("{} ({} to {})", print(middle), print(low), print(high))
        }
        None => "–".to_owned(),
    }
}

/// Ours over the other's. Less is better everywhere.
fn ratio(ours: f64, other: f64) -> f64 {
    if ours == other { 1.0 } else { ours / other }
}

/// Both quartiles have to be on one side of 1. Bytes vary little, and within 1 % they are equal.
fn verdict(ratios: &[f64], unit: Unit) -> &'static str {
    let bytes = matches!(unit, Unit::Bytes);
    match quartiles(ratios.to_vec()) {
        Some(_) if ratios.len() < PAIRS => "too few pairs",
        Some([low, _, high]) if bytes && low >= 0.99 && high <= 1.01 => "equal",
        Some([_, _, high]) if high < 1.0 => "better",
        Some([low, ..]) if low > 1.0 => "worse",
        Some(_) => "not told apart",
        None => "–",
    }
}

fn page(rows: &[Value], release: &str, starts: u32) -> Result<String> {
    let mut page = format!(
        "# A guest's screen, served by consoled and by QEMU\n\n\
         Written by `cargo xtask bench screen`. Xen {release} in QEMU; starts: {starts}, each of three guests\n\
         at once that draw the same. Two have a stubdomain, and\n\
         [`consoled`](../screen.md#without-qemu-in-dom0) or dom0's QEMU serves the screen; the third one's\n\
         QEMU is in dom0 and serves it itself. 800x600 pixels of 32 bits, one viewer in dom0. Rounds are\n\
         interleaved.\n\n\
         A figure is the median with the quartiles; a ratio is taken in each round, of two runs that\n\
         follow one another, and less than 1 is better. *Better* and *worse* need five rounds and both\n\
         quartiles on one side of 1; bytes within 1 % are *equal*. Times are by the machine's clock,\n\
         which counts instructions, those of the kernels and of Xen included.\n\n\
         | | consoled | dom0's QEMU | consoled / dom0's QEMU | verdict | guest's own QEMU in dom0 |\n\
         |---|---|---|---|---|---|\n"
    );
    for (figure, title, unit) in FIGURES {
        let [ours, qemu, plain] =
            ["consoled", "qemu", "plain"].map(|way| values(rows, way, figure));
        ensure!(
            !ours.is_empty() && ours.len() == qemu.len(),
            "{figure}: {} and {} values",
            ours.len(),
            qemu.len()
        );
        let pairs = ours.iter().zip(&qemu);
        let ratios: Vec<f64> = pairs.map(|(ours, qemu)| ratio(*ours, *qemu)).collect();
        let print = |value| unit.print(value);
        page += &format!(
            "| {title} | {} | {} | {} | {} | {} |\n",
            spread(ours, print),
            spread(qemu, print),
            spread(ratios.clone(), |value| format!("{value:.2}")),
            verdict(&ratios, *unit),
            spread(plain, print),
        );
    }
    page += "\n\
        * **key → guest**: from the viewer's message to the guest's program, which writes to a page\n  \
          that dom0 reads. *Picture → viewer*: from the guest's last pixel of a square of 16 by 16, which\n  \
          that key draws, to the end of the update that has it.\n\
        * **after 4 s of quiet**: the guest draws by itself. QEMU looks at its picture at intervals\n  \
          that grow while nothing changes: in the stubdomain in both ways, and dom0's once more.\n\
        * **tiles** of 32 by 32 pixels in eight colours; **text** in letters of 8 by 16; **colours**\n  \
          that change from pixel to pixel; **noise**. The bytes that a viewer receives when nearly every\n  \
          pixel changes, until no byte came for 1.5 s.\n\
        * **wake-ups** are voluntary context switches of all processes that serve the screen, with a\n  \
          viewer that waits for an update.\n\
        * **memory**: the sum of `stubdm-run consoled` and `serve-screen`, which serve the consoles\n  \
          too, as dom0's QEMU does. The guest's own QEMU emulates all of its devices there.\n";
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows(ours: &[f64], qemu: &[f64]) -> Vec<Value> {
        let row = |way: &str, figure: &str, value: f64| json!({"way": way, "figure": figure, "value": value});
        let mut rows = Vec::new();
        for (figure, ..) in FIGURES {
            for (ours, qemu) in ours.iter().zip(qemu) {
                rows.push(row("consoled", figure, *ours));
                rows.push(row("qemu", figure, *qemu));
            }
            rows.push(row("plain", figure, 2048.0));
        }
        rows
    }

    #[test]
    fn the_page_has_each_figure_with_a_verdict_of_pairs() {
        let ours = [10.0, 20.0, 30.0, 40.0, 50.0];
        let rows = rows(&ours, &[20.0, 40.0, 60.0, 80.0, 10.0]);
        let page = page(&rows, "4.17", 5).unwrap();
        for line in [
            "| key → guest, ms | 30.0 (20.0 to 40.0) | 40.0 (20.0 to 60.0) | 0.50 | better | 2048.0 |",
            "| tiles, Raw | 30 B (20 B to 40 B) | 40 B (20 B to 60 B) | 0.50 | better | 2048 B |",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        assert_eq!(page.matches("| better |").count(), FIGURES.len());
        assert!(page.contains("| memory in dom0, resident, MiB | 0.0 (0.0 to 0.0) |"));
    }

    #[test]
    fn a_verdict_needs_both_quartiles_and_enough_pairs() {
        let times = |ratios: &[f64]| verdict(ratios, Unit::Millis);
        assert_eq!(times(&[0.5; 4]), "too few pairs");
        assert_eq!(times(&[0.5, 0.5, 0.9, 0.99, 3.0]), "better");
        assert_eq!(times(&[0.5, 0.5, 0.9, 1.0, 3.0]), "not told apart");
        assert_eq!(times(&[0.1, 1.005, 1.2, 1.3, 1.4]), "worse");
        assert_eq!(times(&[1.005; 5]), "worse");
        assert_eq!(verdict(&[1.005; 5], Unit::Bytes), "equal");
        assert_eq!(verdict(&[1.02; 5], Unit::Bytes), "worse");
        assert_eq!(ratio(0.0, 0.0), 1.0);
        assert_eq!(verdict(&[ratio(3.0, 0.0); 5], Unit::Bytes), "worse");
    }

    #[test]
    fn a_figure_that_is_missing_is_an_error() {
        assert!(page(&[], "4.17", 5).is_err());
        let mut rows = rows(&[1.0], &[1.0]);
        rows.pop();
        rows.retain(|row| row["way"] != "qemu" || row["figure"] != "share");
        assert!(page(&rows, "4.17", 5).is_err());
    }
}
