//! libxl's question which options its QEMU has, answered where there is no QEMU.
//!
//! From Xen 4.20 on, libxl starts QEMU without a machine before it starts one for a domain
//! (`libxl_dm.c`):
//!
//! ```text
//! QEMU -S -no-user-config -nodefaults -nographic -machine none,accel=xen
//!      -chardev socket,id=libxl-cmd,fd=N,server=on,wait=off -mon chardev=libxl-cmd,mode=control
//! ```
//!
//! It connects to the socket that it passes as descriptor N, asks `query-command-line-options`, and
//! ends the process with `quit`. A process that ends before fails the domain's start, that of a
//! stubdomain's consoles too. The only option that libxl looks for is `-run-with`, which it then
//! passes; the answer has none.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::consoled::qmp::{Facts, Session};
use crate::rt::error::{Context, Failure, Result};
use crate::rt::fd::duplicate;

/// The longest pause between two steps of libxl; libxl itself times out after 60 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// The words before the socket's, in libxl's order.
const BEFORE: &[&str] = &[
    "-S",
    "-no-user-config",
    "-nodefaults",
    "-nographic",
    "-machine",
    "none,accel=xen",
    "-chardev",
];

/// Returns the number of the listening socket, if QEMU's `arguments` are libxl's question.
pub(super) fn recognise(arguments: &[OsString]) -> Option<RawFd> {
    let words: Option<Vec<&str>> = arguments.iter().map(|word| word.to_str()).collect();
    let words = words?;
    let (before, after) = words.split_at_checked(BEFORE.len())?;
    let [socket, "-mon", "chardev=libxl-cmd,mode=control"] = after else {
        return None;
    };
    let number = socket
        .strip_prefix("socket,id=libxl-cmd,fd=")?
        .strip_suffix(",server=on,wait=off")?;
    (before == BEFORE).then_some(number)?.parse().ok()
}

/// Answers on the listening socket `number` until libxl sends `quit` or closes its connection.
///
/// # Errors
/// The descriptor is no listening socket, or no client connects or sends anything for a minute.
pub(super) fn answer(number: RawFd) -> Result<()> {
    let what = format!("libxl's socket, descriptor {number}");
    let listener = UnixListener::from(duplicate(number).context(&what)?);
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, timeout)
        .map_err(std::io::Error::from)
        .context(&what)?
        == 0
    {
        return Err(Failure::new(format_args!(
            "{what}: no client connected for a minute"
        )));
    }
    let (mut stream, _) = listener.accept().context(&what)?;
    stream.set_nonblocking(false).context(&what)?;
    stream.set_read_timeout(Some(PATIENCE)).context(&what)?;
    stream.set_write_timeout(Some(PATIENCE)).context(&what)?;
    stream.write_all(&Session::greeting()).context(&what)?;
    let (mut session, mut bytes) = (Session::default(), [0; 4096]);
    while !session.has_quit() {
        let count = stream.read(&mut bytes).context(&what)?;
        if count == 0 {
            break;
        }
        let answers = session.push(&bytes[..count], &Facts::default());
        stream.write_all(&answers).context(&what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consoled::exec::serve_or_exec;
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    fn question(fd: RawFd) -> Vec<OsString> {
        let socket = format!("socket,id=libxl-cmd,fd={fd},server=on,wait=off");
        let after = [&*socket, "-mon", "chardev=libxl-cmd,mode=control"];
        BEFORE
            .iter()
            .copied()
            .chain(after)
            .map(OsString::from)
            .collect()
    }

    #[test]
    fn only_libxls_question_is_recognised() {
        assert_eq!(recognise(&question(7)), Some(7));
        for at in 0..question(7).len() {
            let mut other = question(7);
            other[at] = "-version".into();
            assert_eq!(recognise(&other), None, "word {at}");
            other.remove(at);
            assert_eq!(recognise(&other), None, "without word {at}");
        }
        assert_eq!(recognise(&[]), None);
    }

    #[test]
    fn libxl_learns_of_no_options_and_ends_the_answering() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("qmp")).unwrap();
        let asked = question(listener.as_raw_fd());
        let no_qemu = dir.path().join("qemu.real");
        let answering = std::thread::spawn(move || serve_or_exec(&no_qemu, None, &asked));
        let mut stream = UnixStream::connect(dir.path().join("qmp")).unwrap();
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().starts_with(r#"{"QMP":"#));
        let mut ask = |command: &str| {
            let line = format!("{{\"execute\":\"{command}\",\"id\":7}}\r\n");
            stream.write_all(line.as_bytes()).unwrap();
            lines.next().unwrap().unwrap()
        };
        assert!(ask("qmp_capabilities").contains("return"));
        let options = ask("query-command-line-options");
        let options: serde_json::Value = serde_json::from_str(&options).unwrap();
        assert_eq!(options["return"], serde_json::json!([]), "{options}");
        assert!(ask("quit").contains("return"));
        answering.join().unwrap().unwrap();
    }
}
