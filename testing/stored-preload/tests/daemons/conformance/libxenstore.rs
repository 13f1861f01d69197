//! A script carried out by libxenstore, in the program `testing/c/c-store-script.c`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use super::script::Line;
use crate::rounds::LIMIT;
use crate::world;

/// The running program; killed when dropped.
pub(crate) struct Libxenstore {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Libxenstore {
    /// Starts it; it has connected to all sockets when this returns.
    pub(crate) fn start(sockets: &[PathBuf]) -> Self {
        let root = world::c_root();
        let program = root.join("c/c-store-script");
        assert!(
            program.exists(),
            "no {}: `cargo xtask soak store-conformance` builds it",
            program.display()
        );
        let mut child = Command::new(program)
            .args(sockets)
            .env("LD_LIBRARY_PATH", world::libraries(&root))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sent, lines) = mpsc::channel();
        thread::spawn(move || {
            // It ends with the program, or when nobody asks any more.
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

    pub(crate) fn carry_out(&mut self, line: &Line) -> String {
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
