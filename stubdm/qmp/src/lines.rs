//! Cuts a byte stream into lines, holding no more than a stated number of bytes.
//!
//! QEMU ends every message with `\r\n`, and JSON allows no raw line break inside a string, so a
//! line is a message. A line over the limit is not kept: it is dropped to its end and reported
//! once. The lines after it are returned as usual.

/// The longest line taken from QEMU: libxl's own limit on what it will buffer.
pub const LINE_MAX: usize = 1 << 20;

/// One thing found in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line without its `\n` or `\r\n`. Empty lines are passed over.
    Whole(Vec<u8>),
    /// A line longer than the limit; this many of its bytes had arrived when it was dropped.
    TooLong(usize),
}

/// The cutter. Memory: at most the limit, plus what one call to [`Lines::push`] brings.
#[derive(Debug)]
pub struct Lines {
    partial: Vec<u8>,
    limit: usize,
    dropping: bool,
}

impl Lines {
    /// Lines of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            partial: Vec::new(),
            limit,
            dropping: false,
        }
    }

    /// Takes the next bytes, and passes each line they complete to `found`.
    pub fn push(&mut self, mut bytes: &[u8], mut found: impl FnMut(Line)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (line, rest) = bytes.split_at(end);
            self.take(line, &mut found);
            let mut whole = std::mem::take(&mut self.partial);
            if whole.last() == Some(&b'\r') {
                whole.pop();
            }
            if !self.dropping && !whole.is_empty() {
                found(Line::Whole(whole));
            }
            self.dropping = false;
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.take(bytes, &mut found);
    }

    fn take(&mut self, bytes: &[u8], found: &mut impl FnMut(Line)) {
        if self.dropping {
            return;
        }
        let length = self.partial.len().saturating_add(bytes.len());
        if length > self.limit {
            self.partial = Vec::new();
            self.dropping = true;
            found(Line::TooLong(length));
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }

    /// Takes the bytes of the unfinished line, which then counts as never begun.
    pub fn take_partial(&mut self) -> Vec<u8> {
        self.dropping = false;
        std::mem::take(&mut self.partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(limit: usize, chunks: &[&[u8]]) -> Vec<Line> {
        let mut lines = Lines::new(limit);
        let mut out = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |line| out.push(line));
        }
        out
    }

    fn whole(text: &str) -> Line {
        Line::Whole(text.as_bytes().to_vec())
    }

    #[test]
    fn the_cut_does_not_depend_on_how_the_bytes_arrive() {
        let stream = b"one\r\n\r\ntwo\nthree\r\nrest";
        let expected = vec![whole("one"), whole("two"), whole("three")];
        for size in 1..=stream.len() {
            let chunks: Vec<&[u8]> = stream.chunks(size).collect();
            assert_eq!(cut(100, &chunks), expected, "chunks of {size}");
        }
    }

    #[test]
    fn a_line_at_the_limit_passes_and_one_byte_more_does_not() {
        assert_eq!(cut(4, &[b"abcd\n"]), [whole("abcd")]);
        assert_eq!(cut(4, &[b"abcde\nf\n"]), [Line::TooLong(5), whole("f")]);
        assert_eq!(
            cut(4, &[b"abc", b"de", b"fghij", b"k\nl\n"]),
            [Line::TooLong(5), whole("l")]
        );
    }

    #[test]
    fn an_endless_line_is_reported_once_and_held_not_at_all() {
        let mut lines = Lines::new(1000);
        let mut reports = 0;
        for _ in 0..10_000 {
            lines.push(&[b'x'; 512], |_| reports += 1);
            assert!(lines.partial.len() <= 1000);
        }
        assert_eq!(reports, 1);
    }

    #[test]
    fn an_unfinished_line_can_be_taken_out() {
        let mut lines = Lines::new(100);
        lines.push(b"a\nb", |_| ());
        assert_eq!(lines.take_partial(), b"b");
        let mut out = Vec::new();
        lines.push(b"c\n", |line| out.push(line));
        assert_eq!(out, [whole("c")]);
    }
}
