//! Standard output: lines, colours, JSON.

use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write as _};

use serde_json::{Map, Value};
use xen_store::{Node, Permissions};

use crate::cli::Color;
use crate::failure::Outcome;
use crate::text::{escape, quote, to_hex};

/// Standard output, and how it is written.
#[derive(Debug)]
pub(crate) struct Output {
    writer: BufWriter<Stdout>,
    /// One JSON object a line in place of text.
    pub(crate) json: bool,
    with_color: bool,
    /// Standard output is a terminal that can do more than print lines.
    is_screen: bool,
}

/// The parts of a line that have a colour.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Path,
    Value,
    Added,
    Removed,
    /// Less important parts: permissions, remarks.
    Remark,
}

impl Part {
    /// The parameter of the terminal's SGR sequence.
    const fn color(self) -> &'static str {
        match self {
            Self::Path => "36",
            Self::Value | Self::Added => "32",
            Self::Removed => "31",
            Self::Remark => "2",
        }
    }
}

impl Output {
    pub(crate) fn new(color: Color, json: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let is_screen = io::stdout().is_terminal() && !is_dumb;
        let with_color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => is_screen && !set("NO_COLOR"),
        };
        Self {
            writer: BufWriter::new(io::stdout()),
            json,
            with_color: with_color && !json,
            is_screen,
        }
    }

    /// Writes a line of text that has no foreign bytes in it.
    pub(crate) fn line(&mut self, line: &str) -> Outcome {
        Ok(writeln!(self.writer, "{line}")?)
    }

    /// Writes bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Outcome {
        Ok(self.writer.write_all(bytes)?)
    }

    /// Writes a JSON object as a line of printable ASCII.
    pub(crate) fn object(&mut self, object: Map<String, Value>) -> Outcome {
        let text = Value::Object(object).to_string();
        self.line(&ascii(&text))
    }

    pub(crate) fn flush(&mut self) -> Outcome {
        Ok(self.writer.flush()?)
    }

    /// Begins a table that replaces the one before it: on a screen at its top.
    pub(crate) fn page(&mut self) -> Outcome {
        if self.is_screen && !self.json {
            self.raw(b"\x1b[H\x1b[2J")?;
        }
        Ok(())
    }

    /// Returns text in the colour of a part.
    pub(crate) fn paint(&self, part: Part, text: &str) -> String {
        if self.with_color && !text.is_empty() {
            format!("\x1b[{}m{text}\x1b[0m", part.color())
        } else {
            text.to_owned()
        }
    }

    /// Returns a path or name as text.
    pub(crate) fn path(&self, path: &str) -> String {
        self.paint(Part::Path, &escape(path.as_bytes()))
    }

    /// Returns a value between quotes.
    pub(crate) fn value(&self, value: &[u8]) -> String {
        self.paint(Part::Value, &quote(value))
    }

    /// Returns a remark in parentheses, after a space.
    pub(crate) fn remark(&self, text: &str) -> String {
        format!(" {}", self.paint(Part::Remark, &format!("({text})")))
    }
}

/// Returns JSON text with an escape in the place of each character that is no printable ASCII:
/// `serde_json` leaves DEL, C1 controls and characters that change directions as they are.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if matches!(character, ' '..='~') {
            text.push(character);
            continue;
        }
        // Only strings contain them.
        for unit in character.encode_utf16(&mut [0; 2]) {
            text.push_str(&format!("\\u{unit:04x}"));
        }
    }
    text
}

/// Adds a value to a JSON object: as `value` if it is text, otherwise as `value_hex`.
pub(crate) fn add_value(object: &mut Map<String, Value>, value: Option<&[u8]>) {
    let (name, value) = match value.map(|value| (value, std::str::from_utf8(value))) {
        None => ("value", Value::Null),
        Some((_, Ok(text))) => ("value", text.into()),
        Some((bytes, Err(_))) => ("value_hex", to_hex(bytes).into()),
    };
    object.insert(name.to_owned(), value);
}

/// Returns a JSON object about a path.
pub(crate) fn about(path: &str) -> Map<String, Value> {
    Map::from_iter([("path".to_owned(), path.into())])
}

/// Returns a node as a JSON object.
pub(crate) fn node_object(path: &str, node: &Node) -> Map<String, Value> {
    let mut object = about(path);
    add_value(&mut object, node.value.as_deref());
    let permissions = node.permissions.as_ref().map(entries);
    object.insert("permissions".to_owned(), permissions.into());
    object
}

/// Returns the entries of permissions as JSON strings.
fn entries(permissions: &Permissions) -> Vec<String> {
    let entries = permissions.entries().iter();
    entries.map(ToString::to_string).collect()
}

/// Returns permissions as one word: `n0,r5`.
pub(crate) fn permissions_word(permissions: &Permissions) -> String {
    entries(permissions).join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_printable_ascii_and_the_same_text() {
        let text = "a\u{7f}\u{9b}\u{202e}\u{1f600}\x1b\"\\é";
        let json = ascii(&Value::from(text).to_string());
        assert!(
            json.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{json}"
        );
        let back: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(back, text);
    }

    #[test]
    fn a_value_that_is_no_text_is_hexadecimal() {
        let mut object = about("/a");
        add_value(&mut object, Some(b"\xff\0"));
        assert_eq!(
            Value::from(object).to_string(),
            r#"{"path":"/a","value_hex":"ff00"}"#
        );
    }
}
