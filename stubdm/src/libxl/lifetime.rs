//! The end of a domain, as the store reports it: for programs on the host that serve one domain and
//! end with it.

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
    /// It was seen in the store's list: from then on its directory proves nothing.
    introduced: bool,
    /// Without it (a store that has no such watch) the program only ends by a signal.
    releases: Option<Watch>,
}

impl DomainWatch {
    /// Begins to look.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn of(store: &Store, domid: DomId) -> Result<Self> {
        let mut lifetime = Self {
            introduced: false,
            releases: store.watch(RELEASE).ok(),
            store: store.clone(),
            domid,
        };
        if !lifetime.lasts() {
            return Err(Failure::new(format_args!("there is no domain {domid}")));
        }
        Ok(lifetime)
    }

    fn lasts(&mut self) -> bool {
        // A domain is introduced to the store after its directory is made, and libxl may start us
        // in between. A domU may not ask, and assumes that it lives.
        let introduced = self.store.is_introduced(self.domid);
        self.introduced |= matches!(introduced, Ok(true));
        introduced.unwrap_or(true)
            || !self.introduced
                && self
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
                    // It would be readable forever.
                    warn!("the end of domain {} goes unnoticed: {error}", self.domid);
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

#[cfg(test)]
mod tests {
    use super::*;
    use xen_store_server::{Config, Server};

    #[test]
    fn a_directory_that_outlives_its_domain_does_not_keep_its_programs() {
        let server = Server::start(Config::new()).unwrap();
        let store = server.connect(DomId::DOM0).unwrap();
        let (domain, other) = (DomId::new(7), DomId::new(8));
        for domain in [domain, other] {
            server.add_domain(domain);
            store.mkdir(&format!("/local/domain/{domain}")).unwrap();
        }
        // Not yet introduced, as when libxl starts a proxy.
        let mut early = DomainWatch::of(&store, domain).unwrap();
        server.introduce(other);
        assert!(early.lasts());
        server.introduce(domain);
        let mut late = DomainWatch::of(&store, domain).unwrap();
        assert!(early.lasts());
        store.release(domain).unwrap();
        assert!(store.exists("/local/domain/7").unwrap());
        assert!(!early.lasts() && !late.lasts(), "it is gone");
    }
}
