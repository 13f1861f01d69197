//! The output of the job's serial port, split at the marker lines that frame it.
//!
//! ```text
//!   noise  @@begin NONCE@@\n  the job's own bytes  \n@@exit NONCE STATUS@@\n
//! ```
//!
//! The nonce is new in every run, so that nothing a job prints passes for its end. The line feed
//! before the second marker belongs to the marker.

/// A piece of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The job began.
    Begin,
    /// Bytes the job printed.
    Bytes(Vec<u8>),
    /// The job ended with this status.
    Exit(i32),
}

/// Splits a stream into events, however it is cut into pieces.
#[derive(Debug)]
pub(crate) struct Framing {
    begin: Vec<u8>,
    exit: Vec<u8>,
    held: Vec<u8>,
    inside: bool,
}

impl Framing {
    /// For the run with this nonce.
    pub(crate) fn new(nonce: &str) -> Self {
        Self {
            begin: format!("@@begin {nonce}@@").into_bytes(),
            exit: format!("\n@@exit {nonce} ").into_bytes(),
            held: Vec::new(),
            inside: false,
        }
    }

    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<Event> {
        self.held.extend_from_slice(piece);
        let mut events = Vec::new();
        while self.step(&mut events) {}
        events
    }

    /// Returns the bytes held back as a marker's possible beginning, now that no more will come.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        if self.inside {
            std::mem::take(&mut self.held)
        } else {
            Vec::new()
        }
    }

    /// One step; whether there may be another.
    fn step(&mut self, events: &mut Vec<Event>) -> bool {
        if !self.inside {
            let Some(at) = find(&self.held, &self.begin) else {
                // Only a marker's beginning is worth keeping.
                let keep = self.held.len().min(self.begin.len());
                self.held.drain(..self.held.len() - keep);
                return false;
            };
            let Some(end) = self.held[at..].iter().position(|&b| b == b'\n') else {
                return false;
            };
            self.held.drain(..=at + end);
            self.inside = true;
            events.push(Event::Begin);
            return true;
        }
        if let Some(at) = find(&self.held, &self.exit) {
            let rest = &self.held[at + self.exit.len()..];
            let Some(end) = find(rest, b"@@") else {
                return false;
            };
            let status = std::str::from_utf8(&rest[..end])
                .ok()
                .and_then(|s| s.parse().ok());
            let end = at + self.exit.len() + end + 2;
            if at > 0 {
                events.push(Event::Bytes(self.held[..at].to_vec()));
            }
            self.held.drain(..end);
            self.inside = false;
            events.push(Event::Exit(status.unwrap_or(-1)));
            return true;
        }
        // Everything but what may be a marker's beginning is the job's.
        let limit = (0..self.held.len())
            .find(|&at| self.exit.starts_with(&self.held[at..]))
            .unwrap_or(self.held.len());
        if limit > 0 {
            events.push(Event::Bytes(self.held.drain(..limit).collect()));
        }
        false
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// The last lines of a console log, fit to be shown: no control characters but tabs.
pub(crate) fn last_lines(log: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<String> = text
        .lines()
        .map(|l| {
            l.chars()
                .filter(|c| !c.is_control() || *c == '\t')
                .collect::<String>()
        })
        .filter(|l| !l.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events with neighbouring bytes joined.
    fn joined(events: Vec<Event>) -> Vec<Event> {
        let mut all: Vec<Event> = Vec::new();
        for event in events {
            match (all.last_mut(), event) {
                (Some(Event::Bytes(have)), Event::Bytes(more)) => have.extend(more),
                (_, event) => all.push(event),
            }
        }
        all
    }

    #[test]
    fn the_jobs_bytes_come_out_exactly_however_the_stream_is_cut() {
        let stream = b"boot noise\n@@begin 7a@@\nout\n\n@@exit 00 1@@\n@@ex\n@@exit 7a 3@@\ntail";
        let expected = [
            Event::Begin,
            Event::Bytes(b"out\n\n@@exit 00 1@@\n@@ex".to_vec()),
            Event::Exit(3),
        ];
        for size in 1..stream.len() {
            let mut framing = Framing::new("7a");
            let events = stream
                .chunks(size)
                .flat_map(|piece| framing.push(piece))
                .collect();
            assert_eq!(joined(events), expected, "cut every {size} bytes");
        }
    }

    #[test]
    fn a_job_without_output_and_one_after_another() {
        let mut framing = Framing::new("n");
        let events = framing.push(b"@@begin n@@\n\n@@exit n 0@@\n@@begin n@@\nx");
        assert_eq!(
            events,
            [
                Event::Begin,
                Event::Exit(0),
                Event::Begin,
                Event::Bytes(b"x".to_vec())
            ]
        );
    }

    #[test]
    fn output_is_not_held_back() {
        let mut framing = Framing::new("n");
        framing.push(b"@@begin n@@\n");
        assert_eq!(framing.push(b"line\n"), [Event::Bytes(b"line".to_vec())]);
        assert_eq!(framing.push(b"x\n"), [Event::Bytes(b"\nx".to_vec())]);
        assert_eq!(framing.rest(), b"\n");
    }

    #[test]
    fn the_last_lines_are_clean() {
        let log = b"a\r\n\r\n\x1b[31mb\r\nc\td";
        assert_eq!(last_lines(log, 2), ["[31mb", "c\td"]);
    }
}
