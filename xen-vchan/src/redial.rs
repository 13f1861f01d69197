//! A client that connects again when its server goes, and says where one session ends and the next
//! begins.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use xen_store::Store;
use xen_sys::Xen;

use crate::client::ClientBuilder;
use crate::session::PeerState;
use crate::{Channel, Error, Result};

/// How long to wait between attempts: each pause about twice the one before, within two limits.
///
/// The pauses vary by up to a half, so that many clients of one server do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `shortest` to `longest`.
    #[must_use]
    pub const fn new(shortest: Duration, longest: Duration) -> Self {
        Self {
            shortest,
            longest,
            next: shortest,
        }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let whole = self.next.min(self.longest);
        self.next = self.next.saturating_mul(2).min(self.longest);
        let noise = SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.subsec_nanos() >> 4);
        whole / 2 + whole / 2048 * (noise % 1024)
    }

    /// Begins anew with the shortest.
    pub const fn reset(&mut self) {
        self.next = self.shortest;
    }
}

impl Default for Backoff {
    /// From 10 ms to 5 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_secs(5))
    }
}

/// A client that dials again. Made by [`ClientBuilder::redial`].
///
/// ```no_run
/// use std::io::{Read, Write};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (xen, store) = (xen_sys::Xen::open()?, xen_store::Store::open(&xen_sys::Xen::open()?)?);
/// # let server = xen_sys::DomId::new(5);
/// let mut line = xen_vchan::Client::builder(server, "/local/domain/5/data/echo").redial(&xen, &store);
/// loop {
///     let channel = line.session(None)?; // a new one whenever the last has ended
///     let mut answer = [0; 5];
///     if channel.write_all(b"hello").and_then(|()| channel.read_exact(&mut answer)).is_err() {
///         line.hang_up(); // whatever was half said is void; the next session begins clean
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Redial {
    builder: ClientBuilder,
    xen: Xen,
    store: Store,
    backoff: Backoff,
    not_before: Instant,
    channel: Option<(Channel, Instant)>,
    sessions: u64,
}

impl ClientBuilder {
    /// A client that connects again whenever its server has gone; nothing is done before its first
    /// [`session`](Redial::session). The builder's deadline plays no part.
    pub fn redial(self, xen: &Xen, store: &Store) -> Redial {
        Redial {
            builder: self,
            xen: xen.clone(),
            store: store.clone(),
            backoff: Backoff::default(),
            not_before: Instant::now(),
            channel: None,
            sessions: 0,
        }
    }
}

impl Redial {
    /// How long it pauses after a session that ended and an attempt that failed. A session that
    /// lasted longer than the longest pause counts as a success, after which the pauses begin anew
    /// with the shortest.
    #[must_use]
    pub const fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// The session that runs, or the next one: sleeps until there is a server that has taken note of
    /// this client.
    ///
    /// A session is over when the server is gone and what it had sent was read, or when it broke the
    /// protocol. What was not read before [`hang_up`](Self::hang_up) is gone; no byte of one session
    /// is seen in the next.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] at the deadline; [`Error::Peer`], [`Error::Os`], [`Error::Store`] of an
    /// attempt: the next call tries again, after a pause.
    pub fn session(&mut self, deadline: Option<Instant>) -> Result<&mut Channel> {
        if self
            .channel
            .as_mut()
            .is_some_and(|(channel, _)| over(channel))
        {
            self.hang_up();
        }
        while self.channel.is_none() {
            let wake = deadline.map_or(self.not_before, |at| at.min(self.not_before));
            sleep(wake.saturating_duration_since(Instant::now()));
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Err(Error::Timeout);
            }
            match self.dial(deadline) {
                Ok(channel) => {
                    self.sessions += 1;
                    self.channel = Some((channel, Instant::now()));
                }
                // It went before it had taken note of us.
                Err(Error::Closed) => self.pause(),
                Err(Error::Timeout) => return Err(Error::Timeout),
                Err(error) => {
                    self.pause();
                    return Err(error);
                }
            }
        }
        match &mut self.channel {
            Some((channel, _)) => Ok(channel),
            None => unreachable!("the loop ends with a channel"),
        }
    }

    fn dial(&self, deadline: Option<Instant>) -> Result<Channel> {
        let builder = self
            .builder
            .clone()
            .wait_for_server(true)
            .until_maybe(deadline);
        let mut channel = builder.connect(&self.xen, &self.store)?;
        channel.wait_connected(deadline)?;
        Ok(channel)
    }

    fn pause(&mut self) {
        let now = Instant::now();
        // Beyond what the clock can count is as good as a day.
        let day = Duration::from_secs(86_400);
        self.not_before = now.checked_add(self.backoff.pause()).unwrap_or(now + day);
    }

    /// Ends the session that runs, if one does.
    pub fn hang_up(&mut self) {
        if let Some((_, since)) = self.channel.take() {
            if since.elapsed() > self.backoff.longest {
                self.backoff.reset();
            }
            self.pause();
        }
    }

    /// How many sessions there have been, the one that runs included: its number.
    #[must_use]
    pub const fn sessions(&self) -> u64 {
        self.sessions
    }
}

/// Whether nothing more can come of a session.
fn over(channel: &mut Channel) -> bool {
    match channel.peer() {
        Ok(PeerState::Waiting | PeerState::Connected) => false,
        Ok(PeerState::Gone) => channel.bytes_readable().map_or(true, |ready| ready == 0),
        Err(Error::Peer(_)) => true,
        // Not the session's end: the owner's next call meets it.
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(70));
        for whole in [10, 20, 40, 70, 70] {
            let whole = Duration::from_millis(whole);
            let pause = backoff.pause();
            assert!(
                (whole / 2..=whole).contains(&pause),
                "{pause:?} of {whole:?}"
            );
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(10));
        // No overflow, however long.
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::MAX);
        for _ in 0..100 {
            backoff.pause();
        }
    }
}
