//! The reports of the screen's process, at no more than a rate. It reads from a hostile domain and
//! from the network, and may have been taken over.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::proxy::ipc::{IpcSocket, Received};
use crate::rt::poll::{Interest, readable};
use crate::rt::token_bucket::TokenBucket;

/// Reports at once, and the time of each one after them. A report is a viewer that connects or
/// leaves, or a size, of which there are 4 a second.
const BURST: u64 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// The socket to the process.
#[derive(Debug)]
pub(super) struct Reports {
    ipc: IpcSocket,
    rate: TokenBucket,
    /// The next report is not looked at before.
    next: Option<Instant>,
}

impl Reports {
    pub(super) fn new(ipc: IpcSocket, now: Instant) -> Self {
        Self {
            ipc,
            rate: TokenBucket::new(BURST, 1, PAUSE, now),
            next: None,
        }
    }

    /// Takes the next report. A process that sends too fast has sent nothing until it is time.
    pub(super) fn receive(&mut self, now: Instant) -> io::Result<Received> {
        if self.next.is_some_and(|next| now < next) {
            return Ok(Received::Nothing);
        }
        self.next = None;
        let received = self.ipc.receive()?;
        if let Received::Message(_) = received {
            self.next = self.rate.try_take(now).err();
        }
        Ok(received)
    }

    /// Sends a message to the process.
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        self.ipc.send(message)
    }

    /// Returns the event of a report, if one may be read now.
    pub(super) fn interest(&self) -> Option<Interest<'_>> {
        self.next.is_none().then(|| readable(self.ipc.as_fd()))
    }

    /// Returns when reports may be read again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_reports_is_held_to_the_rate_and_none_is_lost() {
        let (near, far) = IpcSocket::pair().unwrap();
        let start = Instant::now();
        let mut reports = Reports::new(near, start);
        let mut sent = 0_u32;
        let mut seen = 0_u32;
        // As fast as the socket takes them, for a second.
        for millis in 0..1000 {
            let now = start + Duration::from_millis(millis);
            while far.send(&sent.to_le_bytes()).is_ok() {
                sent += 1;
            }
            while let Received::Message(message) = reports.receive(now).unwrap() {
                assert_eq!(message, seen.to_le_bytes());
                seen += 1;
            }
            assert_eq!(reports.interest().is_none(), reports.deadline().is_some());
        }
        let most = BURST + 2 * 1000 / PAUSE.as_millis() as u64;
        assert!(u64::from(seen) > BURST && u64::from(seen) <= most, "{seen}");
        // It ends, and the end is seen after all that it had sent.
        drop(far);
        let mut now = start + Duration::from_secs(1);
        loop {
            now += PAUSE;
            match reports.receive(now).unwrap() {
                Received::Message(message) => assert_eq!(message, seen.to_le_bytes()),
                Received::Nothing => continue,
                Received::End => break,
            }
            seen += 1;
        }
        assert_eq!(seen, sent);
        assert!(
            reports.interest().is_some(),
            "the rest does not outlast the flood"
        );
    }
}
