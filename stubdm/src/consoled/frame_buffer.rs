//! A stubdomain's frame buffer with dom0's QEMU from 9.1 on, which serves one only if asked.
//!
//! libxl up to 4.20 starts dom0's QEMU for a guest with a screen as it did for older QEMUs:
//!
//! ```text
//! QEMU -xen-domid S … -vnc 127.0.0.1:0,to=99 -display none -machine xenpv -m MEGABYTES
//! ```
//!
//! | QEMU | its frame buffer |
//! |---|---|
//! | up to 9.0 | served with these words |
//! | from 9.1 on | served only with `-vga xenfb`; without, `vfb` stays in state 1 |
//!
//! So the launcher adds `-vga xenfb`. For a VNC server it adds a QMP monitor as well, and leaves a
//! process at the other end of that ([`select_console`](super::select_console)).

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use stubdm_image::{ASKED_FOR_SCREENS, version_in};
use xen_sys::DomId;

use crate::consoled::argv::domain;
use crate::consoled::select_console;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::log;

/// QEMU's additional arguments.
#[derive(Debug, Default)]
pub(super) struct Additions {
    /// The arguments.
    pub(super) arguments: Vec<OsString>,
    /// QEMU's end of the monitor, which is named in the arguments and open on exec.
    monitor: Option<OwnedFd>,
}

impl Additions {
    /// Returns what `arguments` lack for the QEMU `real`, and starts the process that the VNC
    /// server needs. A failure is logged, and QEMU runs without.
    pub(super) fn find(real: &Path, arguments: &[OsString]) -> Self {
        let Some(screen) = recognise(arguments) else {
            return Self::default();
        };
        match version_of(real) {
            Ok(version) if version >= ASKED_FOR_SCREENS => {}
            Ok(_) => return Self::default(),
            Err(failure) => {
                log::complain(format_args!("no frame buffer is added: {failure}"));
                return Self::default();
            }
        }
        let mut all = Self::default();
        all.arguments.extend(["-vga", "xenfb"].map(OsString::from));
        if screen.vnc {
            match start(screen.domain) {
                Ok(monitor) => all.add_monitor(monitor),
                Err(failure) => log::complain(format_args!(
                    "VNC viewers see the screen after Ctrl-Alt-1 only: {failure}"
                )),
            }
        }
        all
    }

    fn add_monitor(&mut self, monitor: OwnedFd) {
        let chardev = format!("socket,id=stubdm-run,fd={}", monitor.as_raw_fd());
        let monitor_of = "chardev=stubdm-run,mode=control";
        let words = ["-chardev", &*chardev, "-mon", monitor_of];
        self.arguments.extend(words.map(OsString::from));
        self.monitor = Some(monitor);
    }
}

/// A PV domain's screen that a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Screen {
    domain: DomId,
    /// The screen is served over VNC.
    vnc: bool,
}

/// Reads QEMU's arguments; returns `None` if they ask for no PV domain's screen, or name a video
/// card already.
fn recognise(arguments: &[OsString]) -> Option<Screen> {
    let value = |option: &str| {
        let mut pairs = arguments.windows(2);
        pairs.find_map(|pair| (pair[0] == option).then(|| pair[1].as_os_str()))
    };
    let shows = |option| value(option).is_some_and(|value: &OsStr| value != "none");
    let vnc = shows("-vnc");
    let shown = vnc || shows("-display");
    let wanted = shown && value("-machine")? == "xenpv" && value("-vga").is_none();
    let domain = domain(value("-xen-domid")?)?;
    wanted.then_some(Screen { domain, vnc })
}

/// Asks the program `real` for its version.
fn version_of(real: &Path) -> Result<(u32, u32)> {
    let mut command = Command::new(real);
    command.arg("-version").stdin(Stdio::null());
    let output = command.output().context(real.display())?;
    version_in(&output.stdout)
        .ok_or_else(|| Failure::new(format_args!("{} prints no version", real.display())))
}

/// Starts the process for the stubdomain `domain`; returns QEMU's end of the monitor.
fn start(domain: DomId) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().context("a socket")?;
    let theirs = OwnedFd::from(theirs);
    select_console::start(domain, ours.into())?;
    // Not before: the process would hold it open, and not notice that QEMU ended.
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).context("a socket")?;
    Ok(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// libxl's words, with some of them replaced.
    fn words(change: &[(&str, &str)]) -> Vec<OsString> {
        let mut line = "-xen-domid 7 -no-shutdown -nodefaults -xen-attach -name g-dm \
                        -vnc 127.0.0.1:0,to=99 -display none -machine xenpv -m 32"
            .to_owned();
        for (from, to) in change {
            assert!(line.contains(from), "{from}");
            line = line.replace(from, to);
        }
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn only_a_pv_domains_screen_without_a_card_is_recognised() {
        let domain = DomId::new(7);
        let vnc = true;
        assert_eq!(recognise(&words(&[])), Some(Screen { domain, vnc }));
        let sdl = words(&[
            ("127.0.0.1:0,to=99", "none"),
            ("-display none", "-display sdl"),
        ]);
        let vnc = false;
        assert_eq!(recognise(&sdl), Some(Screen { domain, vnc }));
        for change in [
            ("127.0.0.1:0,to=99", "none"),
            ("-vnc 127.0.0.1:0,to=99 ", ""),
            ("-machine xenpv", "-machine xenfv"),
            ("-machine xenpv ", ""),
            ("-xen-domid 7", "-xen-domid 0"),
            ("-xen-domid 7 ", ""),
            ("-m 32", "-m 32 -vga xenfb"),
            ("-m 32", "-m 32 -vga none"),
        ] {
            assert_eq!(recognise(&words(&[change])), None, "{change:?}");
        }
        assert_eq!(recognise(&[]), None);
    }

    #[test]
    fn only_a_qemu_that_needs_the_card_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("qemu");
        // Without VNC no process is started.
        let sdl = words(&[
            ("127.0.0.1:0,to=99", "none"),
            ("-display none", "-display sdl"),
        ]);
        for (version, expected) in [
            ("7.2.0", &[][..]),
            ("9.0.4", &[]),
            ("9.1.0", &["-vga", "xenfb"]),
            ("10.0.2", &["-vga", "xenfb"]),
            ("?", &[]),
        ] {
            let script = format!("#!/bin/sh\necho QEMU emulator version {version}\n");
            std::fs::write(&real, script).unwrap();
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&real, mode).unwrap();
            let found = Additions::find(&real, &sdl);
            assert_eq!(found.arguments, expected, "{version}");
            assert!(found.monitor.is_none(), "{version}");
        }
        let missing = Additions::find(&dir.path().join("missing"), &sdl);
        assert!(missing.arguments.is_empty());
    }

    #[test]
    fn the_monitor_is_open_for_qemu_under_the_number_in_its_arguments() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let number = theirs.as_raw_fd();
        let mut all = Additions::default();
        all.add_monitor(theirs.into());
        let chardev = format!("socket,id=stubdm-run,fd={number}");
        let words = [
            "-chardev",
            &chardev,
            "-mon",
            "chardev=stubdm-run,mode=control",
        ];
        assert_eq!(all.arguments, words);
        assert!(all.monitor.is_some(), "it is closed before QEMU starts");
    }
}
