//! The unsuccessful ends of a run, and their statuses.

use std::io;
use std::process::ExitCode;

use xen_store::{Error, Invalid};

use crate::PROGRAM;
use crate::text::escape;

/// The end of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why the program ends with another status than 0, or with a closed standard output.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    /// One line for standard error; none where the status is the answer.
    message: Option<String>,
}

impl Failure {
    const NO: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    const FAILED: u8 = 3;
    const TIMED_OUT: u8 = 4;

    /// The answer is no; standard output has the details.
    pub(crate) fn no() -> Self {
        Self {
            status: Self::NO,
            message: None,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            status: Self::USAGE,
            message: Some(message.into()),
        }
    }

    /// Something other than the store is wrong: a file, or what it contains.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self {
            status: Self::FAILED,
            message: Some(message.into()),
        }
    }

    pub(crate) fn timed_out(message: impl Into<String>) -> Self {
        Self {
            status: Self::TIMED_OUT,
            message: Some(message.into()),
        }
    }

    /// The store's error about a node.
    pub(crate) fn about<'a>(path: &'a str) -> impl Fn(Error) -> Self + 'a {
        move |error| {
            let status = match &error {
                Error::Invalid(Invalid::PayloadTooLong { .. }) => Self::FAILED,
                // Paths and permissions are from the command line.
                Error::Invalid(_) => Self::USAGE,
                Error::TimedOut { .. } => Self::TIMED_OUT,
                error if error.is_not_found() => Self::NO,
                _ => Self::FAILED,
            };
            Self {
                status,
                message: Some(format!("{path}: {error}")),
            }
        }
    }

    /// The failure of a file or of standard input.
    pub(crate) fn file(name: &str) -> impl Fn(io::Error) -> Self + '_ {
        move |error| Self::failed(format!("{name}: {error}"))
    }

    /// Prints the message as one line.
    pub(crate) fn report(&self) {
        if let Some(message) = &self.message {
            use io::Write as _;
            // A closed standard error takes no message.
            let _ = writeln!(io::stderr(), "{PROGRAM}: {}", escape(message.as_bytes()));
        }
    }

    pub(crate) fn status(&self) -> ExitCode {
        ExitCode::from(self.status)
    }

    /// Returns the one with the higher status, or `self`.
    pub(crate) fn or_worse(self, other: Self) -> Self {
        if other.status > self.status {
            other
        } else {
            self
        }
    }
}

/// The failure of standard output. A reader that has closed it (`| head`) causes none.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self {
                status: 0,
                message: None,
            }
        } else {
            Self::failed(format!("standard output: {error}"))
        }
    }
}
