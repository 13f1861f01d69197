//! The end of a wait.

use std::time::{Duration, Instant};

/// The time until which a call waits: a moment, or without limit.
///
/// Made from an [`Instant`], an `Option<Instant>` (`None` is without limit), or a [`Duration`] from
/// now on.
///
/// ```no_run
/// # fn f(watch: &xen_store::Watch) -> xen_store::Result<()> {
/// use std::time::{Duration, Instant};
/// use xen_store::Deadline;
///
/// watch.next(Duration::from_secs(5))?;
/// watch.next(Instant::now() + Duration::from_secs(5))?;
/// watch.next(Deadline::NEVER)?;
/// watch.next(None)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Without limit.
    pub const NEVER: Self = Self(None);

    /// Returns the deadline that passes after `time`; without limit if no such moment exists.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self(Instant::now().checked_add(time))
    }

    /// Returns the moment; `None` is without limit.
    #[must_use]
    pub const fn instant(self) -> Option<Instant> {
        self.0
    }
}

impl From<Instant> for Deadline {
    fn from(instant: Instant) -> Self {
        Self(Some(instant))
    }
}

impl From<Option<Instant>> for Deadline {
    fn from(instant: Option<Instant>) -> Self {
        Self(instant)
    }
}

impl From<Duration> for Deadline {
    fn from(time: Duration) -> Self {
        Self::after(time)
    }
}
