//! Where one run has its files, and the processes it is found by.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::unistd::Pid;

/// Marks the processes of one run, by their environment.
pub(crate) const MARK: &str = "STUBDM_SIM_TEST";

/// A place for a run's temporary files, and nothing else's; an empty one for PATH.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tmp", "path"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    pub(crate) fn sim(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
        command.arg("sim").args(args).stdin(Stdio::null());
        command.env("TMPDIR", self.dir.path().join("tmp"));
        command.env("PATH", self.dir.path().join("path"));
        command.env(MARK, self.dir.path());
        command
    }

    /// A program to be used as QEMU.
    pub(crate) fn script(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("qemu");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    /// The processes of this run.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.dir.path().display());
        let all = std::fs::read_dir("/proc").unwrap();
        all.filter_map(|entry| {
            let process = entry.unwrap().path();
            let environment = std::fs::read(process.join("environ")).unwrap_or_default();
            let marked = environment
                .split(|byte| *byte == 0)
                .any(|word| word == mark.as_bytes());
            let number = process.file_name()?.to_str()?.parse().ok()?;
            marked.then(|| Pid::from_raw(number))
        })
        .collect()
    }

    /// Their command lines.
    pub(crate) fn processes(&self) -> Vec<String> {
        let line = |pid: &Pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ")
        };
        self.pids().iter().map(line).collect()
    }

    pub(crate) fn assert_no_process(&self) {
        assert_eq!(self.processes(), Vec::<String>::new());
    }

    pub(crate) fn assert_nothing_left(&self) {
        self.assert_no_process();
        let tmp = std::fs::read_dir(self.dir.path().join("tmp")).unwrap();
        let files: Vec<_> = tmp.map(|entry| entry.unwrap().path()).collect();
        assert!(files.is_empty(), "{files:?}");
    }
}
