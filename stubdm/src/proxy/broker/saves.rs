//! libxl's file of saved states, looked at in a thread of its own: a look reads up to 128 MiB.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use tracing::warn;
use xen_store::Store;
use xen_sys::DomId;

use crate::libxl::discover::saves_to;
use crate::proxy::broker::saved_file::SavedFile;
use crate::proxy::saves::Saves;
use crate::rt::outcome::Outcome;
use crate::rt::poll::Interest;

/// The file of one stubdomain, found when it is needed first. Clones share it.
#[derive(Clone, Debug)]
pub struct StateFile {
    store: Store,
    stubdomain: DomId,
    file: Arc<Mutex<Option<SavedFile>>>,
}

impl StateFile {
    /// Not found yet.
    pub fn new(store: Store, stubdomain: DomId) -> Self {
        Self {
            store,
            stubdomain,
            file: Arc::default(),
        }
    }

    /// Keeps the file open, by [`SavedFile::hold`]. During a check it is already open.
    pub fn hold(&self) {
        let mut file = match self.file.try_lock() {
            Ok(file) => file,
            Err(TryLockError::Poisoned(file)) => file.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if let Ok(file) = self.found(&mut file) {
            file.hold();
        }
    }

    /// Blocks while the file is read. Where no file is known, no state can be where libxl looks for
    /// it.
    ///
    /// # Errors
    /// As [`SavedFile::stored`].
    pub fn look(&self) -> Result<(), String> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = self.found(&mut file).and_then(SavedFile::stored);
        stored.inspect_err(|why| warn!("the guest is not saved: {why}"))
    }

    fn found<'a>(&self, file: &'a mut Option<SavedFile>) -> Result<&'a mut SavedFile, String> {
        let stubdomain = self.stubdomain;
        if file.is_none() {
            let path = saves_to(&self.store, stubdomain)
                .map_err(|error| format!("where domain {stubdomain} saves to: {error}"))?
                .ok_or_else(|| format!("no file of domain {stubdomain}'s saved states is known"))?;
            *file = Some(SavedFile::new(path));
        }
        file.as_mut().ok_or_else(String::new)
    }
}

/// The looks at the file, one at a time.
#[derive(Debug)]
pub struct FileSaves {
    file: StateFile,
    /// The looks that were begun and have no outcome yet.
    open: u32,
    look: Option<io::Result<Outcome>>,
}

impl FileSaves {
    /// At this file.
    pub fn new(file: StateFile) -> Self {
        Self {
            file,
            open: 0,
            look: None,
        }
    }

    fn start(&mut self) {
        if self.open > 0 && self.look.is_none() {
            let file = self.file.clone();
            self.look = Some(Outcome::of("saved-state", move || file.look()));
        }
    }
}

impl Saves for FileSaves {
    fn begin(&mut self) {
        self.open = self.open.saturating_add(1);
        self.start();
    }

    fn outcome(&mut self) -> Option<Result<(), String>> {
        let outcome = match self.look.as_mut()? {
            Ok(look) => look.poll()?,
            Err(error) => Err(format!("the saved state cannot be looked at: {error}")),
        };
        self.look = None;
        self.open -= 1;
        self.start();
        Some(outcome)
    }

    fn interests(&self) -> Vec<Interest<'_>> {
        match &self.look {
            Some(Ok(look)) => look.interest(),
            _ => Vec::new(),
        }
    }
}

impl Drop for FileSaves {
    fn drop(&mut self) {
        if let Some(Ok(look)) = self.look.take() {
            look.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_store::Permissions;
    use xen_store_server::{Config, Server};

    #[test]
    fn a_state_is_not_stored_where_no_file_is_known() {
        let server = Server::start(Config::new()).unwrap();
        let store = server.connect(DomId::DOM0).unwrap();
        let stub = DomId::new(7);
        server.add_domain(stub);
        let file = StateFile::new(store.clone(), stub);
        let why = file.look().unwrap_err();
        assert!(why.contains("no file of domain"), "{why}");
        // A file that the stubdomain names itself is none.
        let node = format!("/local/domain/{stub}/device/console/1/output");
        store.write(&node, "file:/dev/null").unwrap();
        store
            .set_permissions(&node, &Permissions::owner_none(stub))
            .unwrap();
        assert!(file.look().unwrap_err().contains("no file of domain"));
    }

    #[test]
    fn every_look_has_an_outcome() {
        let server = Server::start(Config::new()).unwrap();
        let store = server.connect(DomId::DOM0).unwrap();
        let mut saves = FileSaves::new(StateFile::new(store, DomId::new(7)));
        assert_eq!(saves.outcome(), None);
        for _ in 0..3 {
            saves.begin();
        }
        let mut outcomes = 0;
        while outcomes < 3 {
            match saves.outcome() {
                Some(outcome) => {
                    assert!(outcome.unwrap_err().contains("no file of domain"));
                    outcomes += 1;
                }
                None => crate::rt::poll::sleep(&saves.interests(), None).unwrap(),
            }
        }
        assert_eq!(saves.outcome(), None);
        assert!(saves.interests().is_empty());
    }
}
