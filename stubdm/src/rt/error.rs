//! One error for a program that reports in one line: what was being done, and why it failed.

use std::fmt;

use stubdm_qmp::policy::PolicyError;
use stubdm_qmp::text::one_line;

/// An error of `stubdm-run`, ready to be shown: one line, and its exit status.
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

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        Self::new(error)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_the_causes_text() {
        let cause: std::result::Result<(), _> = Err("first\r\n\tsecond\u{1b}[31m\n");
        let failure = cause.context("reading\nx").unwrap_err();
        assert_eq!(failure.to_string(), "reading x: first second [31m");
        assert_eq!(failure.status(), 1);
        assert_eq!(Failure::usage("no").status(), 2);
    }
}
