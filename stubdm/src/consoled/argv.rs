//! Which of QEMU's command lines asks for a stubdomain's consoles, and at most a screen over VNC.
//!
//! libxl writes this one for every stubdomain (libxl_dm.c, 4.14 to 4.22; the words of a guest
//! without a display):
//!
//! ```text
//! QEMU -xen-domid S -no-shutdown
//!      -chardev socket,id=libxl-cmd,path=/var/run/xen/qmp-libxl-S,server=on,wait=off -mon chardev=libxl-cmd,mode=control
//!      -chardev socket,id=libxenstat-cmd,path=…/qmp-libxenstat-S,…                   -mon chardev=libxenstat-cmd,mode=control
//!      -nodefaults -no-user-config -xen-attach -name GUEST-dm -vnc none -display none -nographic -machine xenpv -m MEGABYTES
//! ```
//!
//! With a display, it writes `-vnc ADDRESS:DISPLAY…` ([`Vnc`]) in the place of `-vnc none`, and no
//! `-nographic`. Each word of it is recognised, and may be there once (`-nographic` more than
//! once). Anything else, in whatever place, is not this command line, and is left to QEMU.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use xen_sys::DomId;

use crate::consoled::screen::vnc::Vnc;

/// The contents of such a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The stubdomain.
    pub domain: DomId,
    /// Where libxl asks for QMP.
    pub libxl: PathBuf,
    /// Where statistics are asked for.
    pub libxenstat: Option<PathBuf>,
    /// The screen's VNC server.
    pub vnc: Option<Vnc>,
}

/// Options that may be there once.
#[derive(Debug, Default)]
struct Given {
    domain: Option<DomId>,
    libxl: Option<PathBuf>,
    libxenstat: Option<PathBuf>,
    vnc: Option<Vnc>,
    monitors: [bool; 2],
    attach: bool,
    machine: bool,
    display: bool,
    /// Words that change nothing for us.
    idle: [bool; 6],
}

/// Reads QEMU's arguments, without the program's name. `None` if they ask for anything but
/// consoles.
pub fn recognise(args: &[OsString]) -> Option<Wanted> {
    let mut given = Given::default();
    let mut rest = args.iter();
    while let Some(option) = rest.next() {
        let mut value = || rest.next().map(OsString::as_os_str);
        match option.to_str()? {
            "-xen-domid" => once(&mut given.domain, domain(value()?)?)?,
            "-chardev" => {
                let (id, path) = socket(value()?)?;
                let known = match id {
                    b"libxl-cmd" => &mut given.libxl,
                    b"libxenstat-cmd" => &mut given.libxenstat,
                    _ => return None,
                };
                once(known, path)?;
            }
            "-mon" => match value()?.to_str()? {
                "chardev=libxl-cmd,mode=control" => flag(&mut given.monitors[0])?,
                "chardev=libxenstat-cmd,mode=control" => flag(&mut given.monitors[1])?,
                _ => return None,
            },
            "-xen-attach" => flag(&mut given.attach)?,
            "-machine" => value()
                .filter(|v| *v == "xenpv")
                .map(|_| flag(&mut given.machine))??,
            "-display" => value()
                .filter(|v| *v == "none")
                .map(|_| flag(&mut given.display))??,
            "-vnc" => {
                flag(&mut given.idle[0])?;
                given.vnc = match value()?.to_str()? {
                    "none" => None,
                    words => Some(words.parse().ok()?),
                };
            }
            "-m" => {
                value()?.to_str()?.parse::<u32>().ok()?;
                flag(&mut given.idle[1])?;
            }
            "-name" => {
                // `NAME,process=…` and the like would be an option that is not supported.
                if value()?.as_bytes().contains(&b',') {
                    return None;
                }
                flag(&mut given.idle[2])?;
            }
            "-no-shutdown" => flag(&mut given.idle[3])?,
            "-nodefaults" => flag(&mut given.idle[4])?,
            "-no-user-config" => flag(&mut given.idle[5])?,
            // The same as `-display none` where there is nothing on stdin.
            "-nographic" => {}
            _ => return None,
        }
    }
    let [libxl, libxenstat] = given.monitors;
    let complete = given.attach && given.machine && given.display && libxl;
    // A socket that is no monitor, or a monitor without a socket.
    let paired = libxenstat == given.libxenstat.is_some();
    (complete && paired).then_some(())?;
    Some(Wanted {
        domain: given.domain?,
        libxl: given.libxl?,
        libxenstat: given.libxenstat,
        vnc: given.vnc,
    })
}

fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.is_none().then(|| *place = Some(value))
}

fn flag(place: &mut bool) -> Option<()> {
    (!std::mem::replace(place, true)).then_some(())
}

/// Reads a stubdomain's number.
pub(super) fn domain(text: &OsStr) -> Option<DomId> {
    let domain = DomId::new(text.to_str()?.parse().ok()?);
    (!domain.is_reserved() && domain != DomId::DOM0).then_some(domain)
}

/// The id and the path of a listening socket that nobody waits at, in either of QEMU's spellings. A
/// path with a comma is QEMU's to understand.
fn socket(value: &OsStr) -> Option<(&[u8], PathBuf)> {
    let value = value.as_bytes();
    let value = value
        .strip_suffix(b",server=on,wait=off")
        .or_else(|| value.strip_suffix(b",server,nowait"))?;
    let value = value.strip_prefix(b"socket,id=")?;
    let comma = value.iter().position(|byte| *byte == b',')?;
    let (id, path) = value.split_at(comma);
    let path = path.strip_prefix(b",path=")?;
    let usable = path.first() == Some(&b'/') && !path.contains(&b',');
    usable.then(|| (id, PathBuf::from(OsStr::from_bytes(path))))
}

#[cfg(test)]
mod tests;
