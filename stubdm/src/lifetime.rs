//! Whether a domain still lives, as the store tells: for programs on the host that serve one domain and end with it.

use nix::poll::PollFlags;
use tracing::warn;
use xen_store::{Store, Watch};
use xen_sys::DomId;

use crate::error::{Failure, Result};
use crate::event::Interest;

/// Fires when a domain ends.
const RELEASE: &str = "@releaseDomain";

/// One domain's life.
#[derive(Debug)]
pub struct Lifetime {
    store: Store,
    domid: DomId,
    /// Without it (a store that has no such watch) the program only ends by a signal.
    releases: Option<Watch>,
}

impl Lifetime {
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
        // in between. Who may not ask (in a domU) assumes that it lives.
        self.store.is_introduced(self.domid).unwrap_or(true)
            || self
                .store
                .exists(&format!("/local/domain/{}", self.domid))
                .unwrap_or(true)
    }

    /// What to wait for.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        let watch = self
            .releases
            .as_ref()
            .and_then(|watch| watch.poll_fd().ok());
        watch
            .map(|fd| (fd, PollFlags::POLLIN))
            .into_iter()
            .collect()
    }

    /// Whether the domain has ended since the last look.
    pub fn has_ended(&mut self) -> bool {
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
