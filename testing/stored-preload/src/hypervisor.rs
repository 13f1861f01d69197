//! The fake host: one folder, which the daemon's libraries and the test both look at. Safe code.
//!
//! | in the folder | |
//! |---|---|
//! | `kva` | the page of domain 0's ring, in place of `/proc/xen/xsd_kva` |
//! | `port` | the number of domain 0's event channel, in place of `/proc/xen/xsd_port` |
//! | `ring-N` | the page of domain N's ring: its grant 1, or any frame of it |
//! | `domain-N` | domain N exists; it has shut down if the file contains `shutdown`, is dying if `dying` |
//! | `events` | a datagram socket: events for the daemon |
//! | `events-N` | a datagram socket: events for domain N |
//! | `socket` | the daemon's; the folder stands for `/var/run/xenstored` |
//!
//! An event is a datagram of two 32-bit numbers: a domain, and its port. The domain
//! [`VIRQ`] stands for the hypervisor, and the port for the virtual interrupt's number.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::socket::{MsgFlags, recv};

/// The domain that virtual interrupts come from.
pub(crate) const VIRQ: u32 = u32::MAX;

/// The fake host's folder. `None` outside one: then nothing is faked.
pub(crate) fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| env::var_os("XEN_STORED_PRELOAD").map(PathBuf::from));
    folder.as_deref()
}

fn file(name: &str) -> io::Result<PathBuf> {
    let folder = folder().ok_or(io::ErrorKind::NotFound)?;
    Ok(folder.join(name))
}

/// The file of the test's folder that is opened in the place of `path`.
pub(crate) fn instead(path: &[u8]) -> Option<PathBuf> {
    let folder = folder()?;
    match path {
        b"/proc/xen/xsd_kva" => return Some(folder.join("kva")),
        b"/proc/xen/xsd_port" => return Some(folder.join("port")),
        _ => {}
    }
    // Everything of oxenstored's there; xenstored has a variable for it.
    let rest = Path::new(OsStr::from_bytes(path)).strip_prefix("/var/run/xenstored");
    rest.ok().map(|rest| folder.join(rest))
}

/// The page of a domain's ring.
pub(crate) fn ring(domain: u32) -> io::Result<File> {
    let path = file(&format!("ring-{domain}"))?;
    OpenOptions::new().read(true).write(true).open(path)
}

/// The state of a simulated domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DomainState {
    Running,
    Shutdown,
    Dying,
}

fn domain_state(domain: u32) -> Option<DomainState> {
    let text = match file(&format!("domain-{domain}")).and_then(fs::read_to_string) {
        Ok(text) => text,
        Err(_) if domain == 0 => String::new(),
        Err(_) => return None,
    };
    Some(match text.trim_end() {
        "shutdown" => DomainState::Shutdown,
        "dying" => DomainState::Dying,
        _ => DomainState::Running,
    })
}

/// Up to `most` domains from number `first` on, as the hypervisor lists them.
pub(crate) fn domains(first: u32, most: usize) -> Vec<(u32, DomainState)> {
    let mut numbers = vec![0];
    let names = folder().and_then(|folder| fs::read_dir(folder).ok());
    for name in names.into_iter().flatten().flatten() {
        let name = name.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("domain-"));
        numbers.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    numbers.retain(|number| *number >= first);
    numbers.sort_unstable();
    numbers.dedup();
    let seen = |number: u32| domain_state(number).map(|state| (number, state));
    numbers.into_iter().filter_map(seen).take(most).collect()
}

/// `xenevtchn_handle`: the daemon's event channels. A local port is one more than the index of what
/// it is bound to, and is never used twice.
#[derive(Debug)]
pub struct Events {
    socket: UnixDatagram,
    bound: Mutex<Vec<(u32, u32)>>,
}

impl Events {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: UnixDatagram::bind(file("events")?)?,
            bound: Mutex::default(),
        })
    }

    pub(crate) fn fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    pub(crate) fn bind(&self, domain: u32, remote: u32) -> i32 {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        bound.push((domain, remote));
        i32::try_from(bound.len()).unwrap_or(i32::MAX)
    }

    /// Sends an event. If the socket is full the domain has one to take already, and it has no
    /// other port.
    pub(crate) fn notify(&self, port: u32) -> io::Result<()> {
        let index = (port as usize).wrapping_sub(1);
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let &(domain, remote) = bound.get(index).ok_or(io::ErrorKind::NotConnected)?;
        let event = [domain.to_ne_bytes(), remote.to_ne_bytes()].concat();
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let _ = socket.send_to(&event, file(&format!("events-{domain}"))?);
        Ok(())
    }

    /// The port of the next event; 0, which none has, for one that is not bound.
    pub(crate) fn pending(&self) -> io::Result<i32> {
        let mut event = [0; 8];
        recv(self.fd(), &mut event, MsgFlags::empty())?;
        let number = |half: &[u8]| half.try_into().map(u32::from_ne_bytes).unwrap_or_default();
        let event = (number(&event[..4]), number(&event[4..]));
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let index = bound.iter().rposition(|binding| *binding == event);
        Ok(index.map_or(0, |index| i32::try_from(index + 1).unwrap_or(i32::MAX)))
    }
}
