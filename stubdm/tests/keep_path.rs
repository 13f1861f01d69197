//! Dom0's own QEMU behind the launcher, as init scripts and monitors find it: by its path.
//!
//! Needs root, or user namespaces, and `start-stop-daemon` of dpkg. `cat` stands for QEMU.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A host's folder with a launcher, and a QEMU behind it that repeats its input.
struct Host {
    dir: TempDir,
}

/// Copies a program that this process executes later. A process of its own writes it: a descriptor
/// of ours, inherited by another test's child, would make it busy (`ETXTBSY`).
fn copy(from: &str, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "{from}");
}

/// A QEMU of its own mount namespace's host. It ends with its input.
struct Qemu(Child);

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Self { dir };
        // `start-stop-daemon` stops each process whose executable is the one file at the launcher's
        // path. With a file of its own, a host reaches no other test's processes.
        copy(env!("CARGO_BIN_EXE_stubdm-run"), &host.launcher());
        symlink("stubdm-run", host.place()).unwrap();
        copy("/bin/cat", &host.real());
        host
    }

    fn launcher(&self) -> PathBuf {
        self.dir.path().join("stubdm-run")
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("xen-qemu-system-i386")
    }

    fn real(&self) -> PathBuf {
        self.dir.path().join("xen-qemu-system-i386.distrib")
    }

    /// Returns a command that runs where mounts propagate by `propagation`.
    fn command(&self, propagation: &str) -> Command {
        let mut command = Command::new("unshare");
        if !nix::unistd::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "--propagation", propagation, "--"]);
        command
    }

    fn start(&self, propagation: &str) -> Qemu {
        let mut command = self.command(propagation);
        command.arg(self.place());
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut qemu = Qemu(child);
        // An answer shows that it is no longer the launcher.
        qemu.0.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let mut answer = [0];
        let stdout = qemu.0.stdout.as_mut().unwrap();
        stdout.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"x");
        qemu
    }

    /// Stops what dpkg's `start-stop-daemon` finds by the launcher's path, and returns its report.
    fn stopped_by_path(&self) -> String {
        let output = Command::new("start-stop-daemon")
            .args(["--stop", "--oknodo", "--verbose", "--exec"])
            .arg(self.place())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Qemu {
    fn path(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/exe", self.0.id())).unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn dom0s_qemu_is_found_and_stopped_by_the_path_it_had() {
    use std::os::unix::process::ExitStatusExt;
    let host = Host::new();
    let mut qemu = host.start("shared");
    assert_eq!(qemu.path(), host.place());
    let said = host.stopped_by_path();
    assert!(said.contains(&qemu.0.id().to_string()), "{said}");
    assert_eq!(qemu.0.wait().unwrap().signal(), Some(15));
    let said = host.stopped_by_path();
    assert!(said.contains("none killed"), "{said}");
}

#[test]
fn an_upgrade_of_the_launcher_keeps_the_path_of_a_running_qemu() {
    let host = Host::new();
    let new = host.dir.path().join("new");
    copy(env!("CARGO_BIN_EXE_stubdm-run"), &new);
    let qemu = host.start("shared");
    fs::rename(new, host.launcher()).unwrap();
    assert_eq!(qemu.path(), host.place());
}

#[test]
fn the_launchers_place_is_untouched_for_others() {
    let host = Host::new();
    let script = r#"mkfifo "$2"; "$1" < "$2" & exec 3> "$2"; p=$!
        until [ "$(readlink /proc/$p/exe)" = "$1" ]; do
            i=$((i + 1)); [ $i -lt 400 ] || exit 1; sleep 0.05
        done
        readlink "$1"; grep -c "$3" /proc/self/mountinfo; exec 3>&-; wait $p"#;
    let output = host
        .command("shared")
        .args(["sh", "-c", script, "sh"])
        .args([host.place(), host.dir.path().join("fifo")])
        .arg(host.dir.path().file_name().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "stubdm-run\n0\n");
}

#[test]
fn qemu_stays_in_the_hosts_namespace_where_mounts_would_not_reach_it() {
    let host = Host::new();
    let qemu = host.start("private");
    assert_eq!(qemu.path(), host.real());
}

#[test]
fn a_disk_mounted_later_is_there_for_a_running_qemu() {
    let host = Host::new();
    let script = r#"mkfifo "$2"; "$1" < "$2" > "$3/out" & exec 3> "$2"; p=$!
        until [ "$(readlink /proc/$p/exe)" = "$1" ]; do
            i=$((i + 1)); [ $i -lt 400 ] || exit 1; sleep 0.05
        done
        mkdir "$3/disks"; mount -t tmpfs none "$3/disks"; echo there > "$3/disks/a"
        cat "/proc/$p/root$3/disks/a"; umount "$3/disks"
        ls "/proc/$p/root$3/disks"; exec 3>&-; wait $p"#;
    let output = host
        .command("shared")
        .args(["sh", "-c", script, "sh"])
        .args([host.place(), host.dir.path().join("fifo")])
        .arg(host.dir.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "there\n");
    assert!(output.status.success());
}
