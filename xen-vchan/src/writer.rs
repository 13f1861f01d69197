//! The sending half of a channel.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ring::Producer;
use crate::session::PeerState;
use crate::shared::Shared;
use crate::{Error, Result};

/// The sending half of a [`Channel`](crate::Channel): `Send`, for a thread of its own.
///
/// Made by [`Channel::split`](crate::Channel::split). [`Write`] blocks, up to the
/// [timeout](Self::set_timeout) if one is set. A call that wrote something says how much, whatever
/// happened afterwards; what happened is reported by the next call.
#[derive(Debug)]
pub struct WriteHalf {
    pub(crate) tx: Producer,
    pub(crate) shared: Arc<Shared>,
    /// A client reads the cursors when the session begins, not before.
    pub(crate) attached: bool,
    pub(crate) timeout: Option<Duration>,
}

impl WriteHalf {
    /// Whether bytes may be written now: `false` if that must wait for the session to begin.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the peer is gone.
    fn open(&mut self) -> Result<bool> {
        match self.shared.observe()? {
            PeerState::Gone => Err(Error::Closed),
            // A server may write ahead; the first client finds it in the ring.
            PeerState::Waiting => Ok(self.attached),
            PeerState::Connected => {
                if !self.attached {
                    self.tx = self.checked(self.shared.rings.producer(self.shared.role))?;
                    self.attached = true;
                }
                Ok(true)
            }
        }
    }

    pub(crate) fn checked<T>(&self, result: Result<T, crate::Violation>) -> Result<T> {
        result.map_err(|violation| self.shared.session.break_off(violation))
    }

    /// Copies and publishes what fits, without asking for a notification: how much.
    fn put(&mut self, bytes: &[u8]) -> Result<usize> {
        if !self.open()? {
            return Ok(0);
        }
        let staged = self.tx.stage(bytes);
        let len = self.checked(staged)?;
        if self.tx.publish() {
            self.shared.link.notify();
        }
        Ok(len)
    }

    /// Writes what fits, without blocking; returns how many bytes, at least 1 unless `bytes` is
    /// empty.
    ///
    /// Before [`Error::WouldBlock`] is returned the notification is asked for and the ring looked
    /// at again, so the channel's descriptor becomes readable when space comes or the peer leaves.
    ///
    /// # Errors
    ///
    /// [`Error::WouldBlock`]; [`Error::Closed`] if the peer is gone; [`Error::Peer`];
    /// [`Error::Os`].
    pub fn try_write(&mut self, bytes: &[u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.shared.link.check()?;
        let mut len = self.put(bytes)?;
        if len == 0 {
            self.tx.request();
            len = self.put(bytes)?;
        }
        if len == 0 {
            self.shared.link.unmask()?;
            return Err(Error::WouldBlock);
        }
        Ok(len)
    }

    /// Writes all of `bytes`, sleeping while the ring is full, until `deadline` (`None`: for ever).
    ///
    /// Returns how many bytes were written: all of them, or fewer if the deadline passed or an
    /// error came in between; that error is then returned by the next call.
    ///
    /// # Errors
    ///
    /// Only if nothing was written: [`Error::Timeout`], otherwise as
    /// [`try_write`](Self::try_write).
    #[doc(alias = "libxenvchan_write")]
    pub fn write_deadline(&mut self, bytes: &[u8], deadline: Option<Instant>) -> Result<usize> {
        let mut written = 0;
        if bytes.is_empty() {
            return Ok(0);
        }
        let result = self
            .shared
            .link
            .check()
            .and_then(|()| self.write_on(bytes, &mut written, deadline));
        match result {
            // The cause lasts (a dead peer, a violation, a deadline), so the next call meets it
            // again.
            Err(_) if written != 0 => Ok(written),
            other => other.map(|()| written),
        }
    }

    fn write_on(
        &mut self,
        bytes: &[u8],
        written: &mut usize,
        deadline: Option<Instant>,
    ) -> Result<()> {
        loop {
            *written += self.put(&bytes[*written..])?;
            if *written == bytes.len() {
                return Ok(());
            }
            let seen = self.shared.link.seen();
            self.tx.request();
            let more = self.put(&bytes[*written..])?;
            *written += more;
            if more == 0 {
                self.shared.sleep(seen, deadline)?;
            }
        }
    }

    /// Bytes that can be written now without blocking. Asks for no notification.
    ///
    /// The peer can only add to them.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the peer is gone; [`Error::Peer`].
    #[doc(alias = "libxenvchan_buffer_space")]
    pub fn space(&mut self) -> Result<usize> {
        if !self.open()? {
            return Ok(0);
        }
        let space = self.tx.refresh();
        Ok(self.checked(space)? as usize)
    }

    /// How long [`Write::write`] may block; `None`, the default, is for ever.
    pub const fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }
}

impl Write for WriteHalf {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        Ok(self.write_deadline(buf, deadline)?)
    }

    /// Does nothing: every write is published before it returns.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
