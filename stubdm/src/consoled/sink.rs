//! The destination of one console's bytes, and the source of those for it. Nothing here blocks.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tracing::warn;

use super::logfile::LogFile;
use super::pty::Pty;
use super::statefile::StateFile;
use crate::libxl::discover::SAVE;
use crate::libxl::output::Output;
use crate::rt::log_file::AppendFile;
use crate::rt::poll::Interest;

/// The far side of a console.
#[derive(Debug)]
pub enum Sink {
    /// Takes everything, gives nothing.
    Null,
    /// A log.
    Log(LogFile),
    /// Saved states.
    State(StateFile),
    /// A file to be read once; bytes from the console are dropped.
    Source(Option<File>),
    /// A terminal.
    Pty(Box<Pty>),
}

impl Sink {
    /// Opens what `output` names for the console of that number. A log is limited to `limit` bytes.
    /// Files are emptied unless they are `kept`.
    ///
    /// # Errors
    /// The system's.
    pub fn open(output: &Output, number: u32, limit: u64, kept: bool) -> io::Result<Self> {
        Ok(match output {
            Output::Null => Self::Null,
            Output::Pty => Self::Pty(Box::new(Pty::open()?)),
            Output::File(path) if number == SAVE => Self::State(StateFile::open(path, kept)?),
            Output::File(path) => Self::Log(LogFile::open(path, limit, kept)?),
            Output::Pipe(path) => Self::Source(Some(source(path)?)),
        })
    }

    /// The terminal's name, if it is one.
    pub fn terminal(&self) -> Option<&Path> {
        match self {
            Self::Pty(pty) => Some(pty.name()),
            _ => None,
        }
    }

    /// Returns the file of the domain's bytes, if the sink is one.
    pub fn file(&self) -> Option<&AppendFile> {
        match self {
            Self::Log(log) => Some(log.file()),
            Self::State(state) => Some(state.file()),
            _ => None,
        }
    }

    /// Cuts the file back to `before`, as [`LogFile::cut`] does.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn cut(&self, before: [u64; 3], most: u64) -> io::Result<()> {
        match self {
            Self::Log(log) => log.cut(before, most),
            Self::State(state) => state.file().cut(before, most),
            _ => Ok(()),
        }
    }

    /// Takes what the domain wrote, to the last byte.
    pub fn take(&mut self, bytes: &[u8]) {
        match self {
            Self::Null | Self::Source(_) => {}
            Self::Log(log) => log.take(bytes),
            Self::State(state) => state.take(bytes),
            Self::Pty(pty) => pty.take(bytes),
        }
    }

    /// Reads bytes for the domain into `buffer` and returns their number; 0 for nothing now.
    pub fn give(&mut self, buffer: &mut [u8]) -> usize {
        match self {
            Self::Null | Self::Log(_) | Self::State(_) | Self::Source(None) => 0,
            Self::Pty(pty) => {
                pty.flush();
                pty.give(buffer)
            }
            Self::Source(Some(file)) => {
                let count = file.read(buffer).unwrap_or_else(|error| {
                    warn!("reading a console's file: {error}");
                    0
                });
                if count == 0 {
                    *self = Self::Source(None);
                }
                count
            }
        }
    }

    /// Returns the descriptors to wait for; input only if it is `wanted`.
    pub fn interests(&self, wanted: bool) -> Vec<Interest<'_>> {
        match self {
            Self::Pty(pty) => pty.interests(wanted),
            _ => Vec::new(),
        }
    }
}

fn source(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    file.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_given_once_and_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resume");
        std::fs::write(&path, [7; 3000]).unwrap();
        let mut sink = Sink::open(&Output::Pipe(path.clone()), 2, 1, false).unwrap();
        // As libxl does once we run.
        std::fs::remove_file(&path).unwrap();
        sink.take(b"ignored");
        let mut buffer = [0; 1024];
        let counts: Vec<usize> = (0..5).map(|_| sink.give(&mut buffer)).collect();
        assert_eq!(counts, [1024, 1024, 952, 0, 0]);
        assert!(Sink::open(&Output::Pipe(path), 2, 1, false).is_err());
    }

    #[test]
    fn the_number_decides_what_a_file_is_for() {
        let dir = tempfile::tempdir().unwrap();
        let output = Output::File(dir.path().join("f"));
        assert!(matches!(
            Sink::open(&output, 0, 1, false).unwrap(),
            Sink::Log(_)
        ));
        assert!(matches!(
            Sink::open(&output, 1, 1, false).unwrap(),
            Sink::State(_)
        ));
        assert!(
            Sink::open(&output, 3, 1, false)
                .unwrap()
                .terminal()
                .is_none()
        );
        let pty = Sink::open(&Output::Pty, 3, 1, false).unwrap();
        assert!(pty.terminal().unwrap().starts_with("/dev/pts"));
    }
}
