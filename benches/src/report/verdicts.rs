//! Each cell beside libxenvchan's, as far as the rounds show a difference.

use std::fmt::Write as _;

use super::{C, CORE, LEAST_ROUNDS, Measured, OURS, RTRB, Rows, UNIX, WAYS, bytes, times};
use crate::plan::{Task, Work};

/// A cell beside another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    /// Both quartiles of the ratio are above 1.
    Faster,
    /// Both are below 1.
    Slower,
    /// One on either side, or too few rounds.
    NotToldApart,
}

impl Beside {
    fn of(ratio: Measured) -> Self {
        if ratio.rounds < LEAST_ROUNDS {
            Self::NotToldApart
        } else if ratio.low > 1.0 {
            Self::Faster
        } else if ratio.high < 1.0 {
            Self::Slower
        } else {
            Self::NotToldApart
        }
    }
}

/// A cell of the table: the ratio, and the verdict unless it is "faster".
fn cell(ratio: Option<Measured>) -> String {
    let text = times(ratio);
    match ratio.map(Beside::of) {
        Some(Beside::Slower) => format!("**slower**: {text}"),
        Some(Beside::NotToldApart) => format!("*not told apart*: {text}"),
        Some(Beside::Faster) | None => text,
    }
}

/// The ratios of streams.
pub(super) fn table(out: &mut String, rows: Rows<'_>, tasks: &[Task]) {
    out.push_str(
        "The ratio in each round, its median and quartiles: to libxenvchan at both ends, and of \
         ours at both ends to what does not sleep.\n\n\
         | ring | write | ours both ends | ours, corked | C writes, ours reads | ours writes, C reads \
         | the same, corked | ours to a UNIX socket | to the bare ring | to rtrb | rounds |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for task in tasks {
        let _ = write!(out, "| {} | {} ", bytes(task.ring), bytes(task.size));
        for variant in WAYS {
            let _ = write!(out, "| {} ", cell(rows.ratio(task, variant, C)));
        }
        for base in [UNIX, CORE, RTRB] {
            let _ = write!(out, "| {} ", cell(rows.ratio(task, OURS, base)));
        }
        let rounds = rows.find(task, C).map_or(0, |row| row.runs.len());
        let _ = writeln!(out, "| {rounds} |");
    }
}

/// How many cells are faster than libxenvchan's, and which are not.
pub(super) fn summary(out: &mut String, rows: Rows<'_>) {
    for (xen, place) in [(false, "a simulated host"), (true, "real Xen")] {
        let mut counts = [0; 3];
        let mut slower = Vec::new();
        for task in rows.tasks(|task| task.xen == xen && task.work == Work::Stream) {
            for variant in WAYS {
                let Some(ratio) = rows.ratio(&task, variant, C) else {
                    continue;
                };
                let verdict = Beside::of(ratio);
                counts[verdict as usize] += 1;
                if verdict == Beside::Slower {
                    slower.push(format!(
                        "{} in {}, +{} µs, {}: {}",
                        bytes(task.size),
                        bytes(task.ring),
                        task.notify_ns / 1000,
                        super::ends(variant),
                        times(Some(ratio))
                    ));
                }
            }
        }
        let [faster, slow, unknown] = counts;
        if faster + slow + unknown == 0 {
            continue;
        }
        let _ = write!(
            out,
            "\nStreams on {place}: {faster} cells are faster than libxenvchan at both ends, {unknown} \
             are not told apart from it, {slow} are slower{}\n",
            if slower.is_empty() { "." } else { ":" }
        );
        for (i, cell) in slower.iter().enumerate() {
            let _ = writeln!(out, "{}* {cell}", if i == 0 { "\n" } else { "" });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_rounds_and_both_quartiles_on_one_side_of_one() {
        let of = |runs: &[f64]| Beside::of(Measured::of(runs.to_vec()).unwrap());
        assert_eq!(of(&[1.1, 1.2, 1.3, 1.4, 0.2]), Beside::Faster);
        assert_eq!(of(&[0.7, 0.8, 0.9, 0.95, 9.0]), Beside::Slower);
        assert_eq!(of(&[0.7, 0.8, 1.0, 1.1, 1.2]), Beside::NotToldApart);
        assert_eq!(of(&[1.1, 1.2, 1.3, 1.4]), Beside::NotToldApart);
    }

    #[test]
    fn a_cell_that_is_not_faster_has_its_verdict() {
        let of = |runs: &[f64]| cell(Measured::of(runs.to_vec()));
        assert_eq!(of(&[2.0; 5]), "×2.00 (2.00 to 2.00)");
        assert_eq!(of(&[0.5; 5]), "**slower**: ×0.500 (0.500 to 0.500)");
        assert_eq!(of(&[2.0; 4]), "*not told apart*: ×2.00 (2.00 to 2.00)");
        assert_eq!(cell(None), "–");
    }
}
