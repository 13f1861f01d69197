//! A timer of this crate: tokio's would have to be enabled in the runtime.

use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use ::tokio::io::unix::AsyncFd;
use nix::sys::timerfd::TimerFd;

use super::listener::{failed, registered};
use crate::Result;
use crate::connecting::{new_timer, set_timer};

/// A moment at which a task is woken.
#[derive(Debug)]
pub(super) struct Timer {
    timer: TimerFd,
    rings: AsyncFd<OwnedFd>,
    at: Option<Instant>,
}

impl Timer {
    pub(super) fn new() -> Result<Self> {
        let timer = new_timer()?;
        let rings = registered(&timer)?;
        Ok(Self {
            timer,
            rings,
            at: None,
        })
    }

    pub(super) fn set(&mut self, at: Option<Instant>) -> Result<()> {
        self.at = at;
        set_timer(&self.timer, at)
    }

    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            if self.at.is_some_and(|at| at <= Instant::now()) {
                return Poll::Ready(Ok(()));
            }
            let mut rung = ready!(self.rings.poll_read_ready(cx)).map_err(failed)?;
            // From an earlier setting, or a moment too soon; setting the timer again clears the
            // descriptor.
            rung.clear_ready();
            set_timer(&self.timer, self.at)?;
        }
    }
}
