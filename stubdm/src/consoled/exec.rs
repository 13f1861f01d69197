//! Called by the device model's name: serve the domain ourselves, or hand over to the real QEMU.
//!
//! The real QEMU is the file of the same name with one of [`SUFFIXES`] behind it, where
//! `dpkg-divert` or an administrator put it. It gets the arguments, the environment and the
//! descriptors unchanged, this process and, where possible, the path (`keep_path.rs`). For a
//! screen, a QEMU from 9.1 on gets more arguments (`frame_buffer.rs`). Where there is no real QEMU,
//! `probe.rs` answers libxl's question for QEMU's options. The console server runs as `stubdm-run
//! consoled`, in this process as well, so a list of QEMUs in dom0 shows real ones only.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use stubdm_image::SUFFIXES;
use stubdm_qmp::text::one_line;

use crate::consoled::argv::{Wanted, recognise};
use crate::consoled::frame_buffer::Additions;
use crate::consoled::{keep_path, probe};
use crate::libxl::discover::{Discovered, discover, display};
use crate::libxl::output::with_suffix;
use crate::libxl::store;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::log;

/// The file with one word, `consoled` or `qemu`: the server of screens.
const SCREENS: &str = "/etc/stubdm/screens";

/// The command line of `stubdm-run device-model`.
#[derive(Args, Clone, Debug)]
pub struct ExecOptions {
    /// The QEMU that is started for everything but consoles
    #[arg(long, value_name = "PATH")]
    pub real: PathBuf,
    /// QEMU's arguments
    #[arg(
        value_name = "ARGUMENT",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub arguments: Vec<OsString>,
}

/// Returns whether a program of this name is a libxl device model.
pub fn is_device_model(name: &OsStr) -> bool {
    let name = name.to_str().unwrap_or_default();
    ["qemu-system-i386", "qemu-system-x86_64"]
        .iter()
        .any(|model| {
            name.strip_suffix(model)
                .is_some_and(|rest| rest.is_empty() || rest == "xen-")
        })
}

/// The program as it was called: its name first, then QEMU's arguments.
///
/// # Errors
/// The real QEMU could not be started, or the consoles could not be served.
pub fn called(args: &[OsString]) -> Result<()> {
    let (name, arguments) = args
        .split_first()
        .ok_or_else(|| Failure::usage("no name"))?;
    let name = Path::new(name);
    if name.components().count() < 2 {
        // libxl gives the whole path; for others it is where the shell found us.
        let found = std::env::var_os("PATH").and_then(|path| {
            let mut places = std::env::split_paths(&path).map(|dir| dir.join(name));
            places.find(|place| place.exists())
        });
        let found = found
            .ok_or_else(|| Failure::new(format_args!("{} is not on the path", name.display())))?;
        return serve_or_exec(&real(&found), Some(&found), arguments);
    }
    serve_or_exec(&real(name), Some(name), arguments)
}

/// Returns where the real QEMU is whose place we have.
fn real(name: &Path) -> PathBuf {
    let names = SUFFIXES.map(|suffix| with_suffix(name, suffix));
    let there = names.iter().find(|name| name.exists());
    there.or(names.first()).cloned().unwrap_or_default()
}

/// Serves if that is all that is asked for, and becomes `real` otherwise, by the path `called` if
/// there is one.
///
/// # Errors
/// As for [`called`].
pub fn serve_or_exec(real: &Path, called: Option<&Path>, arguments: &[OsString]) -> Result<()> {
    let Some(wanted) = recognise(arguments) else {
        if let Some(socket) = probe::recognise(arguments).filter(|_| !real.exists()) {
            return probe::answer(socket);
        }
        return become_real(real, called, arguments);
    };
    match look(&wanted) {
        Ok(()) => become_consoled(&wanted),
        Err(why) => {
            log::complain(format_args!("QEMU serves this one: {why}"));
            become_real(real, called, arguments)
        }
    }
}

/// Fails, with the reason, if anything but consoles is QEMU's to serve.
fn look(wanted: &Wanted) -> Result<()> {
    let screen = wanted.vnc.is_some();
    if screen {
        screens_are_ours(Path::new(SCREENS))?;
    }
    let (_, store) = store::open()?;
    let found = discover(&store, wanted.domain, screen).context("the store")?;
    if let Discovered::More(what) = found {
        return Err(Failure::new(one_line(&what)));
    }
    let known = !screen
        || display(&store, wanted.domain)
            .context("the store")?
            .is_some();
    match known {
        true => Ok(()),
        false => Err(Failure::new("its screen's nodes are not known")),
    }
}

/// Fails, with the reason, unless the administrator's file has screens served without QEMU.
fn screens_are_ours(file: &Path) -> Result<()> {
    let name = file.display();
    match std::fs::read_to_string(file) {
        Ok(text) => match text.trim() {
            "consoled" => Ok(()),
            "qemu" => Err(Failure::new(format_args!(
                "{name} has its screens served by QEMU"
            ))),
            _ => Err(Failure::new(format_args!(
                "{name} has neither the word consoled nor qemu"
            ))),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Failure::new(
            format_args!("it has a screen, and there is no {name} with the word consoled"),
        )),
        Err(error) => Err(error).context(name),
    }
}

/// Replaces this process; returns only with an error.
fn become_consoled(wanted: &Wanted) -> Result<()> {
    let own = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(&own);
    command.arg("consoled").arg(wanted.domain.to_string());
    for socket in std::iter::once(&wanted.libxl).chain(&wanted.libxenstat) {
        command.arg("--qmp").arg(socket);
    }
    if let Some(vnc) = wanted.vnc {
        command.arg("--vnc").arg(vnc.to_string());
    }
    let error = command.exec();
    Err(Failure::new(format_args!("{}: {error}", own.display())))
}

/// Replaces this process; returns only with an error.
fn become_real(real: &Path, called: Option<&Path>, arguments: &[OsString]) -> Result<()> {
    // Looked at first: an attempt leaves this process with other signal settings.
    std::fs::metadata(real).context(real.display())?;
    let more = Additions::find(real, arguments);
    // Without the mount QEMU runs all the same, as `real`; doctor names who misses it.
    let by_name = called.filter(|path| keep_path::mount_over(real, path).is_ok());
    let program = by_name.unwrap_or(real);
    let error = Command::new(program)
        .args(arguments)
        .args(&more.arguments)
        .exec();
    Err(Failure::new(format_args!("{}: {error}", program.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_libxls_device_models() {
        for name in [
            "qemu-system-i386",
            "xen-qemu-system-i386",
            "qemu-system-x86_64",
        ] {
            assert!(is_device_model(OsStr::new(name)), "{name}");
        }
        for name in [
            "xen-qemu-system-i386.real",
            "qemu-system-arm",
            "stubdm-run",
            "",
            "my-qemu-system-i386",
        ] {
            assert!(!is_device_model(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn the_real_one_is_where_it_was_put() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("qemu-system-i386");
        assert_eq!(real(&name), with_suffix(&name, ".real"));
        for suffix in [".distrib", ".real"] {
            std::fs::write(with_suffix(&name, suffix), "").unwrap();
            assert_eq!(real(&name), with_suffix(&name, suffix));
        }
    }

    #[test]
    fn screens_are_served_here_only_where_the_file_has_it_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("screens");
        let failure = screens_are_ours(&file).unwrap_err().to_string();
        assert!(failure.contains("with the word"), "{failure}");
        for (text, ours) in [
            ("consoled\n", true),
            (" consoled ", true),
            ("qemu\n", false),
            ("", false),
            ("consoled qemu", false),
            ("Consoled", false),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(screens_are_ours(&file).is_ok(), ours, "{text:?}");
        }
    }

    #[test]
    fn a_missing_qemu_is_one_line() {
        let args = ["/nonexistent/xen-qemu-system-i386", "-version"].map(OsString::from);
        let failure = called(&args).unwrap_err().to_string();
        assert!(
            failure.starts_with("/nonexistent/xen-qemu-system-i386.real: "),
            "{failure}"
        );
    }
}
