//! A daemon that is gone and started again, for the tests of both clients.

use std::path::PathBuf;
use std::time::Duration;

use xen_store::{Reconnect, Store};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

/// A daemon that can be ended and started at the same place.
pub(crate) struct Restarts {
    server: Option<Server>,
    dir: tempfile::TempDir,
}

impl Restarts {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut this = Self { server: None, dir };
        this.begin();
        this
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn begin(&mut self) {
        let server = Server::start(Config::new()).unwrap();
        server.listen(self.socket()).unwrap();
        self.server = Some(server);
    }

    pub(crate) fn end(&mut self) {
        self.server = None;
    }

    pub(crate) fn restart(&mut self) {
        self.end();
        self.begin();
    }

    /// A client that is not under test.
    pub(crate) fn other(&self) -> Store {
        self.server.as_ref().unwrap().connect(DomId::DOM0).unwrap()
    }
}

pub(crate) fn quick() -> Reconnect {
    Reconnect::new().longest_pause(Duration::from_millis(20))
}
