//! Ends a thread's wait from another thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use crate::client::Store;
use crate::mux::Mux;
use crate::transport::Polled;

/// Ends the waits of the threads that use one handle of a store: see [`Store::cancellable`].
///
/// Clones end the same waits. Dropping a canceller ends none.
#[derive(Clone, Debug)]
pub struct Canceller {
    is_cancelled: Arc<AtomicBool>,
    mux: Weak<Mux<Polled>>,
}

impl Store {
    /// Returns a handle of the same connection whose waits another thread can end.
    ///
    /// After [`Canceller::cancel`], each call that waits through that handle, its clones, watches
    /// and transactions fails with [`Error::Cancelled`](crate::Error::Cancelled), including calls
    /// that wait already. The connection and its other handles stay usable. A request that was sent
    /// may still take effect.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let server = xen_store_server::Server::start(xen_store_server::Config::new())?;
    /// # let store = server.connect(xen_sys::DomId::DOM0)?;
    /// let (waiting, canceller) = store.cancellable();
    /// let watch = waiting.watch("/w")?;
    /// watch.next(None)?; // The first event comes at once.
    /// let waiter = std::thread::spawn(move || watch.next(None));
    /// canceller.cancel();
    /// assert!(matches!(waiter.join().unwrap(), Err(xen_store::Error::Cancelled)));
    /// store.write("/still", "usable")?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn cancellable(&self) -> (Self, Canceller) {
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let canceller = Canceller {
            is_cancelled: Arc::clone(&is_cancelled),
            mux: Arc::downgrade(&self.mux),
        };
        (self.with_cancel(is_cancelled), canceller)
    }
}

impl Canceller {
    /// Ends the waits of the handle, now and in future. Does not block.
    pub fn cancel(&self) {
        match self.mux.upgrade() {
            Some(mux) => mux.cancel_waits(&self.is_cancelled),
            // No thread waits any more.
            None => self.is_cancelled.store(true, Ordering::Release),
        }
    }

    /// Returns whether [`Canceller::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;
    use crate::error::Error;
    use crate::txn::MAX_PAUSE;

    #[test]
    fn a_pause_ends_when_it_is_cancelled() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (store, canceller) = Store::from_fd(ours.into()).unwrap().cancellable();
        let pause = thread::spawn(move || store.pause(MAX_PAUSE));
        canceller.cancel();
        let ended = pause.join().unwrap();
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    }
}
