//! A simulated guest's end of its ring: bytes of a socket go into the shared page and back.
//!
//! The page is a file that the daemon has mapped. It is read and written here by system calls,
//! which see and change the same page.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes in each direction's ring.
const SIZE: u32 = 1024;
/// Where the indices are in the page: requests consumed and produced, replies consumed and
/// produced.
const INDICES: [u64; 4] = [2048, 2052, 2056, 2060];

pub(crate) struct Ring {
    page: File,
    events: UnixDatagram,
    daemon: PathBuf,
    domain: u16,
    guest: UnixStream,
    /// From the guest, not in the ring yet.
    waiting: Vec<u8>,
}

impl Ring {
    /// The guest's port.
    pub(crate) const PORT: u32 = 1;

    /// Makes a domain's page and serves it until the guest's socket is closed.
    pub(crate) fn start(folder: &Path, domain: u16, guest: UnixStream) {
        let page = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(folder.join(format!("ring-{domain}")))
            .unwrap();
        page.set_len(4096).unwrap();
        let events = UnixDatagram::bind(folder.join(format!("events-{domain}"))).unwrap();
        events.set_nonblocking(true).unwrap();
        guest.set_nonblocking(true).unwrap();
        let ring = Self {
            page,
            events,
            daemon: folder.join("events"),
            domain,
            guest,
            waiting: Vec::new(),
        };
        thread::spawn(move || {
            // It ends when the guest or the daemon is gone.
            let _ = ring.serve();
        });
    }

    fn serve(mut self) -> io::Result<()> {
        loop {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, self.waiting.is_empty());
            let mut fds = [
                PollFd::new(self.events.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.guest.as_fd(), flags),
            ];
            poll(&mut fds, PollTimeout::NONE)?;
            while self.events.recv(&mut [0; 8]).is_ok() {}
            let mut moved = self.pull_replies()?;
            if self.waiting.is_empty() {
                let mut bytes = [0; 4096];
                match self.guest.read(&mut bytes) {
                    Ok(0) => return Ok(()),
                    Ok(count) => self.waiting.extend_from_slice(&bytes[..count]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            moved |= self.push_requests()?;
            if moved {
                let event = [u32::from(self.domain), Self::PORT].map(u32::to_ne_bytes);
                UnixDatagram::unbound()?.send_to(&event.concat(), &self.daemon)?;
            }
        }
    }

    fn index(&self, which: usize) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.page.read_exact_at(&mut bytes, INDICES[which])?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn set_index(&self, which: usize, value: u32) -> io::Result<()> {
        self.page.write_all_at(&value.to_ne_bytes(), INDICES[which])
    }

    fn push_requests(&mut self) -> io::Result<bool> {
        let mut moved = false;
        while !self.waiting.is_empty() {
            let (consumed, produced) = (self.index(0)?, self.index(1)?);
            let at = produced % SIZE;
            let room = (SIZE - produced.wrapping_sub(consumed)).min(SIZE - at) as usize;
            let count = room.min(self.waiting.len());
            if count == 0 {
                break;
            }
            self.page
                .write_all_at(&self.waiting[..count], u64::from(at))?;
            self.waiting.drain(..count);
            self.set_index(1, produced.wrapping_add(count as u32))?;
            moved = true;
        }
        Ok(moved)
    }

    fn pull_replies(&mut self) -> io::Result<bool> {
        let mut moved = false;
        loop {
            let (consumed, produced) = (self.index(2)?, self.index(3)?);
            let at = consumed % SIZE;
            let count = produced.wrapping_sub(consumed).min(SIZE - at) as usize;
            if count == 0 {
                return Ok(moved);
            }
            let mut bytes = vec![0; count];
            self.page.read_exact_at(&mut bytes, u64::from(SIZE + at))?;
            // The socket has room for more than a test lets wait.
            self.guest.write_all(&bytes)?;
            self.set_index(2, consumed.wrapping_add(count as u32))?;
            moved = true;
        }
    }
}
