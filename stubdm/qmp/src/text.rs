//! Text from another domain, made harmless for a terminal, a log, a store node and whoever reads
//! them.
//!
//! | where | function |
//! |---|---|
//! | a line of a log, a table, a message | [`one_line`]; [`one_line_bytes`] for what may not be UTF-8 |
//! | text of several lines, as a human monitor's | [`lines`] |
//! | JSON | [`json`], [`json_line`] |
//!
//! All of them use [`is_active`].

use std::borrow::Cow;

use serde_json::Value;

/// Returns whether a character does something to the text around it, or hides in it, instead of
/// standing there.
///
/// * Control characters: C0, DEL and C1 (U+009B begins an escape sequence, U+0085 a line), and
///   U+2028 and U+2029, which end a line.
/// * What changes the order in which a line is shown: U+061C, U+200E, U+200F, U+202A to U+202E,
///   U+2066 to U+2069.
/// * What is not seen: U+00AD, U+034F, U+180E, U+200B to U+200D, U+2060 to U+2065, U+206A to
///   U+206F, U+FEFF, U+FFF9 to U+FFFB, tags and the rest of U+E0000 to U+E0FFF.
///
/// Two names that look the same may still differ: letters of several scripts have one schema.
#[must_use]
pub fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// One line: active characters and white space become single spaces, none at either end.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    let mut gap = false;
    for c in text.chars() {
        if is_active(c) || c.is_whitespace() {
            gap = true;
        } else {
            if gap && !line.is_empty() {
                line.push(' ');
            }
            gap = false;
            line.push(c);
        }
    }
    line
}

/// As [`one_line`]; what is not UTF-8 becomes U+FFFD.
#[must_use]
pub fn one_line_bytes(bytes: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(bytes))
}

/// Text of several lines: an active character becomes a space, except a tab, a line feed, and a
/// carriage return before one.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    if first_bad(text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, bad)) = first_bad(rest) {
        let (good, after) = rest.split_at(at);
        clean.push_str(good);
        clean.push(' ');
        rest = after.get(bad.len_utf8()..).unwrap_or_default();
    }
    clean.push_str(rest);
    Cow::Owned(clean)
}

/// The first character that [`lines`] replaces, and where it is.
fn first_bad(text: &str) -> Option<(usize, char)> {
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let ends_line = c == '\r' && chars.peek().is_some_and(|(_, next)| *next == '\n');
        if is_active(c) && !matches!(c, '\n' | '\t') && !ends_line {
            return Some((at, c));
        }
    }
    None
}

/// JSON over several lines. Active characters are escaped, so that what a program reads is
/// unchanged.
#[must_use]
pub fn json(value: &Value) -> String {
    escaped(&format!("{value:#}"))
}

/// JSON on one line.
#[must_use]
pub fn json_line(value: &Value) -> String {
    escaped(&value.to_string())
}

/// In what is JSON already: outside strings there are no such characters but line feeds, which
/// stay.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_active(c) && c != '\n' {
            text.push_str(&escape(c));
        } else {
            text.push(c);
        }
    }
    text
}

/// A character as JSON writes it if it may not stand there itself.
#[must_use]
pub fn escape(c: char) -> String {
    let mut units = [0; 2];
    let units = c.encode_utf16(&mut units).iter();
    units.map(|unit| format!("\\u{unit:04x}")).collect()
}

/// At most `limit` bytes of a text, whole characters.
#[must_use]
pub fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rfind(|n| text.is_char_boundary(*n));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Characters that mislead a terminal, a reader or a line-based program.
    const ACTIVE: &[char] = &[
        '\0',
        '\u{7}',
        '\u{8}',
        '\r',
        '\u{b}',
        '\u{1b}',
        '\u{7f}',
        '\u{85}',
        '\u{9b}',
        '\u{9d}',
        '\u{ad}',
        '\u{61c}',
        '\u{180e}',
        '\u{200b}',
        '\u{200d}',
        '\u{200e}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202a}',
        '\u{202e}',
        '\u{2060}',
        '\u{2066}',
        '\u{2069}',
        '\u{feff}',
        '\u{fff9}',
        '\u{e0001}',
        '\u{e0041}',
        '\u{e007f}',
    ];

    #[test]
    fn no_active_character_is_left_in_a_line_in_lines_or_in_json() {
        for &c in ACTIVE {
            let text = format!("a{c}b");
            assert_eq!(one_line(&text), "a b", "{c:?}");
            assert_eq!(lines(&text), "a b", "{c:?}");
            let value = json!({ text.as_str(): [text] });
            for json in [json(&value), json_line(&value)] {
                assert!(!json.replace('\n', "").contains(is_active), "{json:?}");
                assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), value);
            }
        }
    }

    #[test]
    fn ordinary_text_of_any_script_stays_as_it_is() {
        let text = "Grüße, שלום, سلام, 日本語, ﷺ, 🏳️";
        assert_eq!(one_line(text), text);
        assert_eq!(lines(text), text);
        assert_eq!(json_line(&json!(text)), format!("\"{text}\""));
    }

    #[test]
    fn lines_keep_their_ends_and_lone_returns_go() {
        assert_eq!(lines("a\r\nb\tc\n"), "a\r\nb\tc\n");
        assert_eq!(lines("safe\rEVIL\r\r\n\r"), "safe EVIL \r\n ");
        assert_eq!(one_line(" a\r\n\tb\u{2028} "), "a b");
        assert_eq!(one_line_bytes(b"a\xffb\xc2"), "a\u{fffd}b\u{fffd}");
    }
}
