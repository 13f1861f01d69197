//! A client that reconnects, in a runtime.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::task::Poll;
use std::time::Instant;

use ::tokio::io::unix::AsyncFd;

use super::Channel;
use super::listener::{failed, finish, registered};
use super::timer::Timer;
use crate::reconnecting::over;
use crate::{Connecting, Error, Result};

/// A [`crate::Reconnecting`] in a tokio runtime.
///
/// ```no_run
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use xen_vchan::{ClientBuilder, tokio::Reconnecting};
/// # async fn run(xen: xen_sys::Xen, store: xen_store::Store) -> Result<(), Box<dyn std::error::Error>> {
/// # let server = xen_sys::DomId::new(5);
/// let line = ClientBuilder::new(server, "/local/domain/5/data/echo").reconnecting(&xen, &store);
/// let mut line = Reconnecting::new(line)?;
/// loop {
///     let channel = line.session(None).await?; // a new one whenever the last has ended
///     let mut answer = [0; 5];
///     if channel.write_all(b"hello").await.is_err() || channel.read_exact(&mut answer).await.is_err() {
///         line.disconnect(); // whatever was half said is void; the next session begins clean
///     }
/// }
/// # }
/// ```
///
/// # Blocking
///
/// Waiting for a server, and pausing, never blocks a thread. Requests to the store do, inside the
/// call: each takes one round trip to the daemon (5 µs or more over its socket). A daemon that does
/// not answer blocks the thread without limit, unless the store was given one with
/// [`Store::with_timeout`](xen_store::Store::with_timeout), which holds for each request. The
/// deadline of [`session`](Self::session) does not end a request.
///
/// | call | requests |
/// |---|---|
/// | [`session`](Self::session) | one when an attempt begins (a watch); one to five for each look at the server's nodes: at once, after each change of them, and every 250 ms while the server is busy |
/// | a channel that [watches the peer's domain](crate::ClientBuilder::watch_peer_domain) | by default one or two each five seconds, limited to 250 ms |
/// | [`disconnect`](Self::disconnect), dropping it | none that is waited for: a watch is withdrawn without its answer |
///
/// A runtime that cannot afford this gives the client a `Store` connection of its own, so that no
/// other user of the connection is waited for, with a limit; or runs the blocking
/// [`crate::Reconnecting`] in a thread or in `tokio::task::spawn_blocking`.
#[derive(Debug)]
pub struct Reconnecting {
    /// The numbers, the pauses and how to connect; its channel is in `stage`.
    line: crate::Reconnecting,
    stage: Stage,
    timer: Timer,
}

/// The stage that a call has reached; after a cancelled call the next one resumes here.
#[derive(Debug)]
enum Stage {
    Pausing,
    Connecting {
        connecting: Box<Connecting>,
        ready: AsyncFd<OwnedFd>,
    },
    /// The server has not taken note of this client yet.
    Arrived(Channel),
    Session(Channel),
}

impl Reconnecting {
    /// Registers a client with the runtime of the calling task, together with its running session,
    /// if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if there is no descriptor left.
    ///
    /// # Panics
    ///
    /// When called outside of a runtime whose I/O driver is enabled.
    pub fn new(mut line: crate::Reconnecting) -> Result<Self> {
        let stage = match line.channel.take() {
            Some(channel) => Stage::Session(Channel::new(channel).map_err(failed)?),
            None => Stage::Pausing,
        };
        let timer = Timer::new()?;
        Ok(Self { line, stage, timer })
    }

    /// Returns the running session, or the next one, as [`crate::Reconnecting::session`] does.
    ///
    /// Cancel-safe: the next call resumes the wait, as the same client if a server was found
    /// already.
    ///
    /// # Errors
    ///
    /// As [`crate::Reconnecting::session`].
    pub async fn session(&mut self, deadline: Option<Instant>) -> Result<&mut Channel> {
        if let Stage::Session(channel) = &mut self.stage {
            if over(channel.get_mut()) {
                self.disconnect();
            }
        }
        while !matches!(self.stage, Stage::Session(_)) {
            let attempt = self.dial(deadline).await;
            if !matches!(attempt, Ok(()) | Err(Error::TimedOut)) {
                self.stage = Stage::Pausing;
            }
            if let ControlFlow::Break(told) =
                self.line.schedule.handle_attempt(attempt, Instant::now())
            {
                told?;
            }
        }
        match &mut self.stage {
            Stage::Session(channel) => Ok(channel),
            _ => unreachable!("the loop ends with a session"),
        }
    }

    /// Continues from the stage reached to a session.
    async fn dial(&mut self, deadline: Option<Instant>) -> Result<()> {
        loop {
            self.stage = match &mut self.stage {
                Stage::Pausing => {
                    let (wait, late) = self.line.schedule.poll_timeout(Instant::now(), deadline);
                    if !wait.is_zero() {
                        self.timer.set(Instant::now().checked_add(wait))?;
                        poll_fn(|cx| self.timer.poll(cx)).await?;
                    }
                    if late {
                        return Err(Error::TimedOut);
                    }
                    let builder = self.line.builder.clone();
                    let connecting = builder.start(&self.line.xen, &self.line.store)?;
                    Stage::Connecting {
                        ready: registered(&connecting)?,
                        connecting: Box::new(connecting),
                    }
                }
                Stage::Connecting { connecting, ready } => {
                    connecting.set_deadline(deadline);
                    Stage::Arrived(finish(connecting, ready).await?)
                }
                Stage::Arrived(channel) => {
                    self.timer.set(deadline)?;
                    poll_fn(|cx| match channel.poll_connected(cx) {
                        Poll::Pending => self
                            .timer
                            .poll(cx)
                            .map(|rung| rung.and(Err(Error::TimedOut))),
                        noted => noted,
                    })
                    .await?;
                    match std::mem::replace(&mut self.stage, Stage::Pausing) {
                        Stage::Arrived(channel) => Stage::Session(channel),
                        other => other,
                    }
                }
                Stage::Session(_) => return Ok(()),
            };
        }
    }

    /// Ends the present session or attempt, if there is one.
    pub fn disconnect(&mut self) {
        self.stage = Stage::Pausing;
        self.line.schedule.handle_end(Instant::now());
    }

    /// Returns how many sessions there have been, the present one included.
    #[must_use]
    pub const fn sessions(&self) -> u64 {
        self.line.sessions()
    }
}
