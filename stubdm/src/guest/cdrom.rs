//! CD-ROM media that the toolstack changes while the guest runs (libxl 4.20 and later).
//!
//! ```text
//!   libxl                       kernel of the stubdomain        here                 QEMU
//!   eject ─────────────────────────────────────────────────────────────────────────▶ closes /dev/xvdX
//!   detaches the disk ────────▶ /dev/xvdX goes
//!   attaches the next one ────▶ /dev/xvdX comes ──uevent──▶ add-fd, opaque ─────────▶ a new fdset
//!   query-fdsets, until `stub-devid:N` is there ◀──────────────────────────────────── fdset F
//!   blockdev-change-medium /dev/fdset/F ───────────────────────────────────────────▶ reads it
//! ```
//!
//! An empty drive is a disk of no size to libxl and gets its fdset as well. A drive's first medium
//! is opened by QEMU by name. We keep no descriptor of our own: old kernels do not remove a disk
//! that somebody has open. (`tools/libs/light/libxl_disk.c`, `docs/misc/stubdom.txt`.)

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket,
};
use stubdm_qmp::client::Client;
use stubdm_qmp::json::{Json, map};
use tracing::{info, warn};

use crate::rt::stream::Stream;

/// The group of the kernel's own messages; a device manager's are in group 2.
const KERNEL: u32 = 1;
/// The longest message there is (`UEVENT_BUFFER_SIZE` of the kernel).
const MESSAGE_MAX: usize = 2048 + 256;
/// How many messages are looked at before anything else has its turn.
const BATCH: usize = 256;

/// A medium in a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Medium {
    /// The drive, by libxl's number of the virtual disk.
    pub drive: u32,
    /// The disk's name, `xvdc`.
    pub disk: String,
}

/// The drives, and the media that arrive in them.
#[derive(Debug)]
pub struct Drives {
    numbers: Vec<u32>,
    events: OwnedFd,
    arrived: VecDeque<Medium>,
}

impl Drives {
    /// Subscribes to the kernel's messages about new disks; `None` without drives.
    ///
    /// # Errors
    /// The system's.
    pub fn listen(numbers: Vec<u32>) -> io::Result<Option<Self>> {
        if numbers.is_empty() {
            return Ok(None);
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let events = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
        bind(events.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
        Ok(Some(Self {
            numbers,
            events,
            arrived: VecDeque::new(),
        }))
    }

    /// Readable when a disk may have been added.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes the kernel's events. Returns `true` if there may be more.
    ///
    /// # Errors
    /// The system's. Messages were lost if it is `ENOBUFS`.
    pub fn handle_events(&mut self) -> io::Result<bool> {
        let mut buffer = [0; MESSAGE_MAX];
        for _ in 0..BATCH {
            match recvfrom::<NetlinkAddr>(self.events.as_raw_fd(), &mut buffer) {
                // Any process in here may send to this socket; the kernel is number 0.
                Ok((count, Some(from))) if from.pid() == 0 => {
                    let message = buffer.get(..count).unwrap_or_default();
                    let medium = medium(message, &self.numbers);
                    self.arrived.extend(medium);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// Hands the next medium to QEMU, over a monitor on which no command is open: QEMU keeps only
    /// the descriptor received last. Returns `true` if a command was sent.
    pub fn offer(&mut self, monitor: &mut Stream, client: &mut Client) -> bool {
        let (medium, path, file) = loop {
            let Some(medium) = self.arrived.pop_front() else {
                return false;
            };
            let path = format!("/dev/{}", medium.disk);
            match File::open(&path) {
                Ok(file) => break (medium, path, file),
                // The disk was removed again.
                Err(error) => warn!("{path}, for drive {}: {error}", medium.drive),
            }
        };
        info!("{path} is in drive {} now", medium.drive);
        let opaque = format!("stub-devid:{}", medium.drive);
        client.execute(
            "add-fd",
            Some(map([("opaque", Json::from(opaque.as_str()))])),
        );
        match monitor.write_with(client.poll_transmit(), file.as_fd()) {
            Ok(count) => client.handle_transmitted(count),
            // The rest is sent as always; without the descriptor QEMU refuses the command.
            Err(error) => warn!("passing {path} to QEMU: {error}"),
        }
        true
    }
}

/// Returns the medium that a kernel message reports, if it was added to one of these drives.
///
/// A message is `add@/devices/vbd-5632/block/xvdc`, and then `KEY=value` words, each ended by a
/// NUL.
fn medium(message: &[u8], drives: &[u32]) -> Option<Medium> {
    let words = || message.split(|byte| *byte == 0);
    let value = |key: &str| {
        let text = words().filter_map(|word| std::str::from_utf8(word).ok());
        text.filter_map(|word| word.split_once('='))
            .find_map(|(k, v)| (k == key).then_some(v))
    };
    if value("ACTION")? != "add" || value("DEVTYPE")? != "disk" {
        return None;
    }
    let disk = value("DEVNAME")?;
    let plain = disk.bytes().all(|b| b.is_ascii_alphanumeric());
    let device = value("DEVPATH")?
        .split('/')
        .find_map(|part| part.strip_prefix("vbd-"))?;
    let drive = device.parse().ok()?;
    (plain && !disk.is_empty() && drives.contains(&drive)).then(|| Medium {
        drive,
        disk: disk.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(device: &str, disk: &str, action: &str, kind: &str) -> Vec<u8> {
        let path = format!("/devices/{device}/block/{disk}");
        format!(
            "{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM=block\0MAJOR=202\0MINOR=32\0\
             DEVNAME={disk}\0DEVTYPE={kind}\0DISKSEQ=9\0SEQNUM=812\0"
        )
        .into_bytes()
    }

    #[test]
    fn only_a_disk_that_comes_into_a_drive_is_a_medium() {
        let come = message("vbd-5632", "xvdc", "add", "disk");
        let found = medium(&come, &[5632, 5696]).unwrap();
        assert_eq!((found.drive, found.disk.as_str()), (5632, "xvdc"));
        assert_eq!(medium(&come, &[5696]), None);
        for other in [
            message("vbd-5632", "xvdc", "remove", "disk"),
            message("vbd-5632", "xvdc", "change", "disk"),
            message("vbd-5632", "xvdc1", "add", "partition"),
            message("vbd-56320", "xvdc", "add", "disk"),
            message("vif-0", "xvdc", "add", "disk"),
            message("vbd-5632", "../xvdc", "add", "disk"),
            message("vbd-5632", "", "add", "disk"),
            b"".to_vec(),
            b"add@/devices/vbd-5632\0".to_vec(),
            vec![0xff; 64],
        ] {
            assert_eq!(medium(&other, &[5632]), None, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn without_drives_nobody_listens_and_with_them_the_socket_is_quiet() {
        assert!(Drives::listen(Vec::new()).unwrap().is_none());
        let mut drives = Drives::listen(vec![5632]).unwrap().unwrap();
        assert!(!drives.handle_events().unwrap());
    }
}
