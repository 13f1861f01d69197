//! `status --watch`: the table again and again, on a terminal in its place and otherwise one after
//! another.
//!
//! Nothing flickers: a frame is one write, drawn over the one before, each line cleared behind its
//! end. The terminal is left as it was found, whatever ends this: `q`, a signal, an error.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use stubdm_qmp::text::json_line;
use xen_store::Watch;

use super::{Screens, rows, show};
use crate::libxl::domains::Domains;
use crate::rt::error::{Context, Result};
use crate::rt::poll::{Interest, sleep};
use crate::rt::signals::Signals;
use crate::tools::terminal::{Keys, Terminal, pressed, print};

/// Domains start and end in bursts; a burst is one frame.
const BURST: Duration = Duration::from_millis(100);

pub(super) fn run(domains: &mut Domains, folder: &Path, pace: Duration, json: bool) -> Result<()> {
    let store = domains.store().clone();
    let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let signals = Signals::take(&[&ends[..], &[Signal::SIGWINCH, Signal::SIGTSTP]].concat())
        .context("taking over signals")?;
    // Without them (in a domU) only time brings the next frame.
    let watches: Vec<Watch> = ["@introduceDomain", "@releaseDomain"]
        .iter()
        .filter_map(|event| store.watch(event).ok())
        .collect();
    let terminal = (!json && io::stdout().is_terminal()).then(|| Terminal::take(Keys::Lines));
    let mut screens = Screens::default();
    let mut keys = io::stdin().is_terminal() && terminal.is_some();
    loop {
        let rows = rows(domains, folder, &mut screens)?;
        let frame = match (&terminal, json) {
            (_, true) => json_line(&show::json(&rows)) + "\n",
            (Some(_), _) => frame(&show::table(&rows)),
            (None, _) => format!("{}\n", show::table(&rows)),
        };
        if let Err(error) = print(&frame) {
            // Nobody looks any more.
            return match error.kind() {
                io::ErrorKind::BrokenPipe => Ok(()),
                _ => Err(error).context("printing"),
            };
        }
        let mut next = Instant::now() + pace;
        while Instant::now() < next {
            let mut interests: Vec<Interest<'_>> = vec![(signals.as_fd(), PollFlags::POLLIN)];
            interests.extend(
                watches
                    .iter()
                    .filter_map(|w| Some((w.poll_fd().ok()?, PollFlags::POLLIN))),
            );
            let stdin = io::stdin();
            if keys {
                interests.push((stdin.as_fd(), PollFlags::POLLIN));
            }
            sleep(&interests, Some(next)).context("waiting")?;
            match signals.next().context("reading signals")? {
                // Stopped, it would leave the terminal as it is.
                Some(Signal::SIGWINCH | Signal::SIGTSTP) => next = Instant::now(),
                Some(_) => return Ok(()),
                None => {}
            }
            if keys {
                let mut bytes = [0];
                match pressed(&mut bytes) {
                    Some(b"q" | b"Q" | b"\x03") => return Ok(()),
                    Some(_) => {}
                    None => keys = false,
                }
            }
            let mut event = false;
            for watch in &watches {
                while watch.try_next().context("the store")?.is_some() {
                    event = true;
                }
            }
            if event {
                next = next.min(Instant::now() + BURST);
            }
        }
    }
}

/// A table as a frame over the one before.
fn frame(table: &str) -> String {
    let mut frame = String::from("\x1b[H");
    for line in table.lines() {
        frame += line;
        frame += "\x1b[K\r\n";
    }
    frame + "\x1b[K\r\nq ends this\x1b[J"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_begins_at_the_corner_and_clears_what_it_does_not_fill() {
        assert_eq!(
            frame("a\nb\n"),
            "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[K\r\nq ends this\x1b[J"
        );
    }
}
