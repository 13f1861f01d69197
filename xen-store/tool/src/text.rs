//! Values and names as text: printable ASCII, and escapes for every other byte.

use std::fmt::Write as _;

/// Returns `bytes` as printable ASCII: `\n`, `\r`, `\t`, `\\` and `\xHH` stand for other bytes.
/// [`unescape`] reverses it.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(byte)),
            // Writing to a string does not fail.
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

/// Returns `bytes` as [`escape`] does, between quotes, with quotes inside escaped.
pub(crate) fn quote(bytes: &[u8]) -> String {
    format!("\"{}\"", escape(bytes).replace('"', "\\\""))
}

/// Returns the bytes that `text` stands for: `\n`, `\r`, `\t`, `\\`, `\"`, `\xHH` and, as in the
/// classic tools, `\NNN` in octal digits. `None` for another escape.
pub(crate) fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (byte, tail) = match rest {
            [b'n', tail @ ..] => (b'\n', tail),
            [b'r', tail @ ..] => (b'\r', tail),
            [b't', tail @ ..] => (b'\t', tail),
            [sign @ (b'\\' | b'"'), tail @ ..] => (*sign, tail),
            [b'x', high, low, tail @ ..] => (number(&[*high, *low], 16)?, tail),
            [a, b, c, tail @ ..] => (number(&[*a, *b, *c], 8)?, tail),
            _ => return None,
        };
        bytes.push(byte);
        rest = tail;
    }
    Some(bytes)
}

/// Returns the byte that digits of a base are.
fn number(digits: &[u8], base: u32) -> Option<u8> {
    let value = digits.iter().try_fold(0, |value, digit| {
        Some(value * base + char::from(*digit).to_digit(base)?)
    })?;
    u8::try_from(value).ok()
}

/// Returns `bytes` in hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    let digits = |byte: &u8| format!("{byte:02x}");
    bytes.iter().map(digits).collect()
}

/// Returns the bytes that hexadecimal digits stand for.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [_, _] => number(pair, 16),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn escapes_are_printable_and_read_back(bytes: Vec<u8>) {
            let text = escape(&bytes);
            prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            prop_assert_eq!(unescape(text.as_bytes()), Some(bytes.clone()));
            let quoted = quote(&bytes);
            let inside = &quoted.as_bytes()[1..quoted.len() - 1];
            prop_assert_eq!(unescape(inside), Some(bytes.clone()));
            prop_assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text: Vec<u8>) {
            let _ = (unescape(&text), from_hex(&String::from_utf8_lossy(&text)));
        }
    }

    #[test]
    fn escapes_of_the_classic_tools_are_read() {
        assert_eq!(
            unescape(b"a\\tb\\x1bc\\033\\\\\\\"").unwrap(),
            b"a\tb\x1bc\x1b\\\""
        );
        for wrong in [
            "\\", "\\q", "\\x1", "\\x", "\\xg0", "\\400", "\\08", "\\389",
        ] {
            assert_eq!(unescape(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("+1"), None);
    }
}
