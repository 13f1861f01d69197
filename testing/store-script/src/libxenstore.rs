//! A script carried out by libxenstore, in the program `testing/c/c-store-script.c`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::script::Line;

/// Longer than anything takes that ends at all.
const LIMIT: Duration = Duration::from_secs(30);

/// The running program; killed when dropped.
#[derive(Debug)]
pub struct Libxenstore {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Libxenstore {
    /// Starts `program`; it has connected to all `places`, sockets or devices, when this returns.
    /// `libraries` is the folder of libxenstore, if it is not the system's.
    #[must_use]
    pub fn start(program: &Path, libraries: Option<&Path>, places: &[PathBuf]) -> Self {
        assert!(
            program.exists(),
            "no {}: `cargo xtask soak store-conformance` builds it",
            program.display()
        );
        let libraries = libraries.map(|folder| ("LD_LIBRARY_PATH", folder));
        let mut child = Command::new(program)
            .args(places)
            .envs(libraries)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sent, lines) = mpsc::channel();
        thread::spawn(move || {
            // It ends with the program, or with the last request.
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sent.send(line))
        });
        let input = child.stdin.take().unwrap();
        let this = Self {
            child,
            input,
            lines,
        };
        assert_eq!(this.line(), "ready");
        this
    }

    fn line(&self) -> String {
        let line = self.lines.recv_timeout(LIMIT);
        line.unwrap_or_else(|error| panic!("libxenstore does not answer: {error}"))
    }

    /// Carries out a line, and returns the answer.
    pub fn carry_out(&mut self, line: &Line) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.line()
    }
}

impl Drop for Libxenstore {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
