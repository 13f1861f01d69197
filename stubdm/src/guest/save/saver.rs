//! Holds the file QEMU saves to and its console, for [`crate::guest::server`].
//!
//! A record that was begun is sent to its end, even if the client that asked for it has left: the
//! console's reader must find the next record at the end that this one declares.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use stubdm_qmp::client::Client;
use stubdm_qmp::json::{Json, map};
use tracing::{info, warn};

use crate::guest::save::sender::{SaveFile, Sender};
use crate::libxl::state_record::FDSET;
use crate::rt::poll::Interest;
use crate::rt::stream::Stream;

/// The file, the console, and a record on its way.
#[derive(Debug)]
pub struct Saver {
    file: SaveFile,
    console: Stream,
    drain: Option<Sender>,
    /// Why no save can get through any more.
    broken: Option<String>,
    /// QEMU has the file, as far as is known.
    offered: bool,
}

impl Saver {
    /// Returns a saver that writes to `console`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(console: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            file: SaveFile::new()?,
            console: Stream::socket(console)?,
            drain: None,
            broken: None,
            offered: false,
        })
    }

    /// Sends QEMU the file, over a monitor on which nothing waits to be sent. A failure leaves the
    /// conversation unchanged.
    ///
    /// # Errors
    /// `WouldBlock` while the monitor is full: the file is to be offered again when that has room.
    /// After any other error, the monitor's or the system's, it is not, until a save is refused.
    pub fn offer(&mut self, monitor: &mut Stream, client: &mut Client) -> io::Result<()> {
        self.offered = true;
        let file = self.file.for_qemu()?;
        let arguments = map([
            ("fdset-id", Json::Int(FDSET.into())),
            ("opaque", Json::from("stubdm-save")),
        ]);
        client.execute("add-fd", Some(arguments));
        match monitor.write_with(client.poll_transmit(), file.as_fd()) {
            Ok(sent) => {
                client.handle_transmitted(sent);
                Ok(())
            }
            Err(error) => {
                client.take_back();
                self.offered = error.kind() != io::ErrorKind::WouldBlock;
                Err(error)
            }
        }
    }

    /// QEMU refused a save: whoever can remove descriptor sets may have taken the file from it. One
    /// more of it in the set does no harm.
    pub fn was_refused(&mut self) {
        self.offered = false;
    }

    /// Returns whether QEMU is to be given the file.
    pub fn is_to_be_offered(&self) -> bool {
        !self.offered
    }

    /// QEMU is about to be asked for a save.
    pub fn begin(&mut self) {
        if let Err(error) = self.file.rewind() {
            warn!("the file to save to: {error}");
        }
    }

    /// Returns whether a record is on its way.
    pub fn is_busy(&self) -> bool {
        self.drain.is_some()
    }

    /// Returns the descriptors to wait for.
    pub fn interest(&self) -> Vec<Interest<'_>> {
        if self.is_busy() {
            self.console.interest(false, true)
        } else {
            Vec::new()
        }
    }

    /// Moves a record on; begins one if an `answer` waits for it. Tells what became of it at its
    /// end.
    pub fn turn(&mut self, answer: bool) -> Option<Result<(), String>> {
        if self.drain.is_none() {
            if !answer {
                return None;
            }
            let drain = match &self.broken {
                Some(why) => Err(io::Error::other(why.clone())),
                None => self.file.drain(),
            };
            match drain {
                Ok(drain) => self.drain = Some(drain),
                Err(error) => return Some(Err(format!("the saved state: {error}"))),
            }
        }
        let drain = self.drain.as_mut()?;
        let done = drain.turn(&self.file, &mut self.console);
        if matches!(done, Ok(false)) {
            return None;
        }
        let (number, length) = (drain.header().number, drain.header().length);
        self.drain = None;
        Some(match done {
            Ok(_) => {
                info!("save number {number}: {length} bytes of state are out");
                Ok(())
            }
            Err(error) => {
                let why = format!("the console for saved states: {error}");
                warn!("{why}");
                // Half a record is out; what follows it could not be found.
                self.broken = Some(why.clone());
                Err(why)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libxl::state_record::tests::record;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn save(saver: &mut Saver, state: &[u8]) {
        saver.begin();
        let mut copy = File::from(saver.file.for_qemu().unwrap());
        copy.set_len(0).unwrap();
        copy.write_all(state).unwrap();
    }

    fn saver() -> (Saver, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        (Saver::new(near.into()).unwrap(), far)
    }

    #[test]
    fn a_record_is_sent_to_its_end_though_nobody_waits_for_it_any_more() {
        let (mut saver, mut far) = saver();
        let state = [&b"QEVM"[..], &[9; 2_000_000]].concat();
        assert_eq!(saver.turn(false), None);
        save(&mut saver, &state);
        assert_eq!(saver.turn(true), None, "the console is full");
        let mut all = Vec::new();
        while saver.is_busy() {
            let _ = far.read_to_end(&mut all);
            saver.turn(false);
        }
        let _ = far.read_to_end(&mut all);
        assert!(all == record(1, &state));
        assert!(saver.interest().is_empty());
    }

    #[test]
    fn a_full_monitor_gets_the_file_when_it_has_room_and_nothing_before() {
        let (mut saver, _console) = saver();
        let (near, mut far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let mut monitor = Stream::socket(near.into()).unwrap();
        while monitor.write(&[b' '; 4096]).unwrap() > 0 {}
        let mut client = Client::new();
        let error = saver.offer(&mut monitor, &mut client).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(saver.is_to_be_offered());
        assert_eq!(
            client.poll_transmit(),
            b"",
            "without the file it would be refused"
        );
        let mut got = Vec::new();
        let _ = far.read_to_end(&mut got);
        saver.offer(&mut monitor, &mut client).unwrap();
        assert!(!saver.is_to_be_offered());
        got.clear();
        let _ = far.read_to_end(&mut got);
        assert!(got.starts_with(b"{\"execute\":\"add-fd\""));
        assert_eq!(client.poll_transmit(), b"");
    }

    #[test]
    fn a_monitor_that_is_gone_is_not_offered_the_file_again() {
        let (mut saver, _console) = saver();
        let (near, _) = UnixStream::pair().unwrap();
        let mut monitor = Stream::socket(near.into()).unwrap();
        assert!(saver.offer(&mut monitor, &mut Client::new()).is_err());
        assert!(!saver.is_to_be_offered());
        saver.was_refused();
        assert!(saver.is_to_be_offered());
    }

    #[test]
    fn a_save_that_fails_leaves_the_next_one_whole_unless_the_console_broke() {
        let (mut saver, mut far) = saver();
        save(&mut saver, b"no state");
        assert!(saver.turn(true).unwrap().is_err());
        save(&mut saver, b"QEVM good");
        assert_eq!(saver.turn(true), Some(Ok(())));
        let mut all = Vec::new();
        let _ = far.read_to_end(&mut all);
        assert!(all == record(1, b"QEVM good"));
        drop(far);
        for _ in 0..2 {
            save(&mut saver, b"QEVM lost");
            assert!(saver.turn(true).unwrap().is_err());
        }
    }
}
