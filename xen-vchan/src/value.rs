//! A value that another domain wrote, escaped for display.

use std::fmt;

/// How many of its bytes are kept.
const KEPT: usize = 64;

/// The first 64 bytes of a store node that contains no number.
///
/// The peer chose it, so it is printed as a quoted ASCII string in which everything that is not a
/// printable ASCII character is escaped: no line break, no control sequence of a terminal, no
/// character that looks like another, and no more than 256 characters.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeValue {
    kept: Box<[u8]>,
    len: usize,
}

impl NodeValue {
    pub(crate) fn new(value: &[u8]) -> Self {
        Self {
            kept: value[..value.len().min(KEPT)].into(),
            len: value.len(),
        }
    }

    /// Returns the first 64 bytes, as they were read.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        &self.kept
    }

    /// Returns how many bytes the node held.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "nobody asks that of a fault")]
    pub const fn len(&self) -> usize {
        self.len
    }
}

impl fmt::Display for NodeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.kept.escape_ascii())?;
        match self.len - self.kept.len() {
            0 => Ok(()),
            more => write!(f, " and {more} bytes more"),
        }
    }
}

impl fmt::Debug for NodeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &[u8]) -> String {
        let value = NodeValue::new(value);
        assert_eq!(value.to_string(), format!("{value:?}"));
        value.to_string()
    }

    #[test]
    fn hostile_values_are_shown_harmlessly() {
        for (value, text) in [
            (&b""[..], r#""""#),
            (b"twelve", r#""twelve""#),
            (b"8\n9: all is well", r#""8\n9: all is well""#),
            (b"\r\t\0", r#""\r\t\x00""#),
            (b"\x1b[2J\x07\x7f\x9b", r#""\x1b[2J\x07\x7f\x9b""#),
            (b"\" and \\", r#""\" and \\""#),
            (
                "8\u{202e}9\u{661}".as_bytes(),
                r#""8\xe2\x80\xae9\xd9\xa1""#,
            ),
            (b"\xff\xfe", r#""\xff\xfe""#),
            (b"{} %s", r#""{} %s""#),
        ] {
            assert_eq!(shown(value), text);
        }
    }

    #[test]
    fn no_value_takes_more_than_its_room() {
        assert_eq!(shown(&[b'8'; 64]), format!("\"{}\"", "8".repeat(64)));
        assert_eq!(
            shown(&[b'8'; 65]),
            format!("\"{}\" and 1 bytes more", "8".repeat(64))
        );
        let all: Vec<u8> = (0..=u8::MAX).cycle().take(4096).collect();
        let value = NodeValue::new(&all);
        assert_eq!((value.bytes(), value.len()), (&all[..64], 4096));
        for byte in 0..=u8::MAX {
            let text = shown(&[byte; 4096]);
            assert!(text.len() <= 2 + 4 * 64 + " and 4032 bytes more".len());
            assert!(text.bytes().all(|it| (b' '..=b'~').contains(&it)), "{text}");
        }
    }
}
