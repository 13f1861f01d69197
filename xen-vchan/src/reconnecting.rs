//! A client that connects again when its server leaves, and marks where one session ends and the
//! next begins.

use std::ops::ControlFlow;
use std::thread::sleep;
use std::time::Instant;

use xen_store::Store;
use xen_sys::Xen;

use crate::backoff::{Backoff, Schedule};
use crate::client::ClientBuilder;
use crate::session::PeerState;
use crate::{Channel, Error, Result};

/// A client that reconnects. Made by [`ClientBuilder::reconnecting`].
///
/// ```no_run
/// use std::io::{Read, Write};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (xen, store) = (xen_sys::Xen::open()?, xen_store::Store::open(&xen_sys::Xen::open()?)?);
/// # let server = xen_sys::DomId::new(5);
/// let mut line = xen_vchan::ClientBuilder::new(server, "/local/domain/5/data/echo").reconnecting(&xen, &store);
/// loop {
///     let channel = line.session(None)?; // a new one whenever the last has ended
///     let mut answer = [0; 5];
///     if channel.write_all(b"hello").and_then(|()| channel.read_exact(&mut answer)).is_err() {
///         line.disconnect(); // whatever was half said is void; the next session begins clean
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Reconnecting {
    pub(crate) builder: ClientBuilder,
    pub(crate) xen: Xen,
    pub(crate) store: Store,
    pub(crate) schedule: Schedule,
    pub(crate) channel: Option<Channel>,
}

impl ClientBuilder {
    /// Returns a client that connects again whenever its server has left. Nothing is done before
    /// its first [`session`](Reconnecting::session). The builder's deadline is ignored.
    pub fn reconnecting(self, xen: &Xen, store: &Store) -> Reconnecting {
        Reconnecting {
            builder: self,
            xen: xen.clone(),
            store: store.clone(),
            schedule: Schedule::new(Backoff::default()),
            channel: None,
        }
    }
}

impl Reconnecting {
    /// Sets how long it pauses after a session that ended and an attempt that failed. A session
    /// that lasted longer than the longest pause counts as a success, after which the pauses begin
    /// again with the shortest.
    #[must_use]
    pub const fn backoff(mut self, backoff: Backoff) -> Self {
        self.schedule.backoff = backoff;
        self
    }

    /// Returns the present session, or blocks until the next one: until a server has taken note of
    /// this client.
    ///
    /// A session is over when the server is gone and its bytes were read, or when it violated the
    /// protocol. Bytes not read before [`disconnect`](Self::disconnect) are lost; no byte of one
    /// session is seen in the next.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] at the deadline; otherwise the errors of [`ClientBuilder::connect`] for
    /// an attempt. The next call tries again, after a pause.
    pub fn session(&mut self, deadline: Option<Instant>) -> Result<&mut Channel> {
        if self.channel.as_mut().is_some_and(over) {
            self.disconnect();
        }
        while self.channel.is_none() {
            let (wait, late) = self.schedule.poll_timeout(Instant::now(), deadline);
            sleep(wait);
            if late {
                return Err(Error::TimedOut);
            }
            let attempt = self.dial(deadline);
            if let ControlFlow::Break(told) = self.schedule.handle_attempt(attempt, Instant::now())
            {
                self.channel = Some(told?);
            }
        }
        match &mut self.channel {
            Some(channel) => Ok(channel),
            None => unreachable!("the loop ends with a channel"),
        }
    }

    fn dial(&self, deadline: Option<Instant>) -> Result<Channel> {
        let mut builder = self.builder.clone().wait_for_server(true);
        builder.set_deadline(deadline);
        let mut channel = builder.connect(&self.xen, &self.store)?;
        channel.wait_connected(deadline)?;
        Ok(channel)
    }

    /// Ends the present session, if there is one.
    pub fn disconnect(&mut self) {
        self.channel = None;
        self.schedule.handle_end(Instant::now());
    }

    /// Returns how many sessions there have been, the present one included.
    #[must_use]
    pub const fn sessions(&self) -> u64 {
        self.schedule.sessions()
    }
}

/// Returns whether a session can give nothing more.
pub(crate) fn over(channel: &mut Channel) -> bool {
    match channel.peer() {
        Ok(PeerState::Waiting | PeerState::Connected) => false,
        Ok(PeerState::Gone) => channel.bytes_readable().map_or(true, |ready| ready == 0),
        Err(Error::Peer(_)) => true,
        // Not the session's end: the owner's next call meets the error.
        Err(_) => false,
    }
}
