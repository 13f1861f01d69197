//! One error for a program that reports in one line: what was being done, and why it failed.

use std::fmt;

/// What goes wrong in `stubdm-run`, ready to be shown: one line, and the exit status it deserves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    line: String,
    status: u8,
}

/// The result of everything that can be reported to a person.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// The request was fine and could not be met: exit status 1.
    pub fn new(line: impl fmt::Display) -> Self {
        Self {
            line: one_line(&line.to_string()),
            status: 1,
        }
    }

    /// The request itself was wrong: exit status 2.
    pub fn usage(line: impl fmt::Display) -> Self {
        Self {
            line: one_line(&line.to_string()),
            status: 2,
        }
    }

    /// The process exit status: 1 or 2.
    pub fn status(&self) -> u8 {
        self.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Failure {}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Turns the error into a [`Failure`] that reads `what: error`.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure::new(format_args!("{what}: {error}")))
    }
}

/// Makes any text fit for one line of a log, a terminal or a store node: control characters and
/// line breaks become single spaces, so text from another domain cannot forge a line.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    let mut gap = false;
    for c in text.chars() {
        if c.is_control() || c.is_whitespace() || is_deceptive(c) {
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

/// At most `limit` bytes of a text, whole characters.
pub fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rfind(|n| text.is_char_boundary(*n));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Characters that change how the rest of a line is displayed.
pub(crate) fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_the_cause_says() {
        let cause: std::result::Result<(), _> = Err("first\r\n\tsecond\u{1b}[31m\n");
        let failure = cause.context("reading\nx").unwrap_err();
        assert_eq!(failure.to_string(), "reading x: first second [31m");
        assert_eq!(failure.status(), 1);
        assert_eq!(Failure::usage("no").status(), 2);
    }

    #[test]
    fn display_order_cannot_be_changed_by_foreign_text() {
        assert_eq!(one_line("a\u{202e}b"), "a b");
    }
}
