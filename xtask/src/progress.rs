//! Progress of the testbed: bars on a terminal, plain lines elsewhere.

use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A step that takes a while; prints that it began and, when finished, how long it took.
#[derive(Debug)]
pub(crate) struct Step {
    what: String,
    started: Instant,
    bar: Option<ProgressBar>,
    total: u64,
    last_line: Instant,
}

/// How often a plain line is printed for a step that counts.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Step {
    /// Begins a step of unknown length.
    pub(crate) fn begin(what: impl Into<String>) -> Self {
        Self::with_total(what.into(), 0, "{spinner} {msg} {elapsed}")
    }

    /// Begins a step that counts towards `total` bytes.
    pub(crate) fn bytes(what: impl Into<String>, total: u64) -> Self {
        Self::with_total(
            what.into(),
            total,
            "{spinner} {msg} {wide_bar} {bytes}/{total_bytes} {eta}",
        )
    }

    /// Begins a step that counts towards `total` items.
    pub(crate) fn items(what: impl Into<String>, total: u64) -> Self {
        Self::with_total(what.into(), total, "{spinner} {msg} {wide_bar} {pos}/{len}")
    }

    fn with_total(what: String, total: u64, template: &str) -> Self {
        let started = Instant::now();
        let bar = stderr().is_terminal().then(|| {
            let bar = if total == 0 {
                ProgressBar::new_spinner()
            } else {
                ProgressBar::new(total)
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("xtask: {what} …");
        }
        Self {
            what,
            started,
            bar,
            total,
            last_line: started,
        }
    }

    /// Shows how far the step is.
    pub(crate) fn at(&mut self, position: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        } else if self.last_line.elapsed() >= LINE_EVERY && self.total > 0 {
            self.last_line = Instant::now();
            eprintln!(
                "xtask: {}: {} %",
                self.what,
                position.saturating_mul(100) / self.total
            );
        }
    }

    /// Shows what the step is busy with.
    pub(crate) fn note(&self, note: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {note}", self.what));
        }
    }

    /// Ends the step and prints how long it took.
    pub(crate) fn done(mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        eprintln!(
            "xtask: {}: done in {:.1} s",
            self.what,
            self.started.elapsed().as_secs_f64()
        );
    }

    /// Ends the step without a word, because its output follows or because it failed.
    pub(crate) fn clear(mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
