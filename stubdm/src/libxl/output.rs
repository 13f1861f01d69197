//! A console's `output` node: the place for its bytes, in QEMU's syntax for a character device.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The place that a console's bytes are written to and read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Nowhere: `null`, or no word at all.
    Null,
    /// A terminal of its own: `pty`.
    Pty,
    /// Into a file, emptied first: `file:PATH`.
    File(PathBuf),
    /// Out of a file, from its beginning to its end: `pipe:PATH`.
    Pipe(PathBuf),
}

impl Output {
    /// Reads the word. `None` for what only QEMU understands.
    pub fn parse(word: &[u8]) -> Option<Self> {
        if let Some(path) = word.strip_prefix(b"file:") {
            return absolute(path).map(Self::File);
        }
        if let Some(path) = word.strip_prefix(b"pipe:") {
            return absolute(path).map(Self::Pipe);
        }
        match word {
            b"" | b"null" => Some(Self::Null),
            b"pty" => Some(Self::Pty),
            _ => None,
        }
    }

    /// Returns whether it can be served with the files there are. QEMU makes a pipe of two named
    /// pipes `PATH.in` and `PATH.out` where they are, and writes to a pipe as well; what libxl
    /// calls a pipe is a plain file to read from.
    pub fn is_plain(&self) -> bool {
        match self {
            Self::Null | Self::Pty => true,
            Self::File(path) => !path.exists() || is_file(path),
            Self::Pipe(path) => is_file(path) && !with_suffix(path, ".in").exists(),
        }
    }
}

fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file())
}

/// `path` with more at its end.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn absolute(path: &[u8]) -> Option<PathBuf> {
    let usable = path.first() == Some(&b'/') && !path.contains(&0);
    usable.then(|| PathBuf::from(OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libxls_words_are_known_and_others_are_qemus() {
        let file = |path: &str| PathBuf::from(path);
        for (word, output) in [
            ("", Some(Output::Null)),
            ("null", Some(Output::Null)),
            ("pty", Some(Output::Pty)),
            ("file:/var/a b,c", Some(Output::File(file("/var/a b,c")))),
            ("pipe:/r", Some(Output::Pipe(file("/r")))),
            ("file:a", None),
            ("file:", None),
            ("file:/a\0b", None),
            ("pipe:../r", None),
            ("stdio", None),
            ("vc", None),
            ("/dev/ttyS0", None),
            ("tcp::4444,server", None),
            ("unix:/run/s", None),
            ("pty ", None),
            ("mon:pty", None),
        ] {
            assert_eq!(Output::parse(word.as_bytes()), output, "{word:?}");
        }
    }

    #[test]
    fn only_plain_files_are_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        assert!(
            Output::File(path.clone()).is_plain(),
            "made when it is opened"
        );
        assert!(!Output::Pipe(path.clone()).is_plain());
        std::fs::write(&path, "x").unwrap();
        assert!(Output::Pipe(path.clone()).is_plain());
        assert!(!Output::File(dir.path().to_owned()).is_plain());
        std::fs::write(with_suffix(&path, ".in"), "").unwrap();
        assert!(!Output::Pipe(path).is_plain());
        assert!(!Output::File("/dev/null".into()).is_plain());
    }
}
