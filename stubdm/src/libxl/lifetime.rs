//! Whether a domain still lives, as the store tells: for programs on the host that serve one domain
//! and end with it.

use std::io;

use tracing::warn;
use xen_store::{Store, Watch};
use xen_sys::DomId;

use crate::rt::error::{Failure, Result};
use crate::rt::event_loop::Stop;
use crate::rt::poll::{Interest, readable};

/// Fires when a domain ends.
const RELEASE: &str = "@releaseDomain";

/// One domain's life.
#[derive(Debug)]
pub struct DomainWatch {
    store: Store,
    domid: DomId,
    /// Without it (a store that has no such watch) the program only ends by a signal.
    releases: Option<Watch>,
}

impl DomainWatch {
    /// Begins to look.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn of(store: &Store, domid: DomId) -> Result<Self> {
        let lifetime = Self {
            releases: store.watch(RELEASE).ok(),
            store: store.clone(),
            domid,
        };
        if !lifetime.lasts() {
            return Err(Failure::new(format_args!("there is no domain {domid}")));
        }
        Ok(lifetime)
    }

    fn lasts(&self) -> bool {
        // A domain is introduced to the store after its directory is made, and libxl may start us
        // in between. A domU may not ask, and assumes that it lives.
        self.store.is_introduced(self.domid).unwrap_or(true)
            || self
                .store
                .exists(&format!("/local/domain/{}", self.domid))
                .unwrap_or(true)
    }

    fn has_ended(&mut self) -> bool {
        let Some(watch) = &self.releases else {
            return false;
        };
        let mut fired = false;
        loop {
            match watch.try_next() {
                Ok(Some(_)) => fired = true,
                Ok(None) => break,
                Err(error) => {
                    // It would be readable for ever.
                    warn!("the end of domain {} will not be told: {error}", self.domid);
                    self.releases = None;
                    break;
                }
            }
        }
        fired && !self.lasts()
    }
}

/// The domain's end ends a loop.
impl Stop for DomainWatch {
    fn interests(&self) -> Vec<Interest<'_>> {
        let watch = self.releases.as_ref();
        let fd = watch.and_then(|watch| watch.poll_fd().ok());
        fd.map(readable).into_iter().collect()
    }

    fn reason(&mut self) -> io::Result<Option<String>> {
        Ok(self
            .has_ended()
            .then(|| format!("domain {} has ended", self.domid)))
    }
}
