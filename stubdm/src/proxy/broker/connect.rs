//! Connects the vchan, as a [`Transport`](crate::rt::transport::Transport).

use std::io;
use std::time::Duration;

use tracing::warn;
use xen_evtchn::EventPacer;
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::ClientBuilder;

use crate::libxl::discover::saves_to;
use crate::proxy::broker::saved_file::SavedFile;
use crate::rt::transport::Connect;
use crate::rt::vchan::Vchan;

/// How often a stubdomain that rings for nothing wakes the host's proxy, after a burst.
const PACE: Duration = Duration::from_millis(1);

/// Connects to the server a domain publishes in the store.
#[derive(Debug)]
pub struct VchanConnect {
    xen: Xen,
    store: Store,
    server: DomId,
    node: String,
    marker: Option<u8>,
    shelf: Option<SavedFile>,
}

impl VchanConnect {
    /// The server `server` publishes at `node`.
    pub fn new(xen: Xen, store: Store, server: DomId, node: String) -> Self {
        Self {
            xen,
            store,
            server,
            node,
            marker: None,
            shelf: None,
        }
    }

    /// Begins each connection with the byte `marker`, by which servers that look for it notice that the client is another one.
    #[must_use]
    pub fn with_marker(self, marker: Option<u8>) -> Self {
        Self { marker, ..self }
    }

    /// The file for saved states.
    fn shelf(&mut self) -> Result<&mut SavedFile, String> {
        if self.shelf.is_none() {
            let path = saves_to(&self.store, self.server)
                .map_err(|error| format!("where domain {} saves to: {error}", self.server))?
                .ok_or_else(|| {
                    format!("no file of domain {}'s saved states is known", self.server)
                })?;
            self.shelf = Some(SavedFile::new(path));
        }
        self.shelf.as_mut().ok_or_else(String::new)
    }

    /// As [`Connect::stored`]. Where no file is known, no state can be where libxl looks for it.
    fn look(&mut self) -> Result<(), String> {
        let stored = self.shelf().and_then(SavedFile::stored);
        if let Err(why) = &stored {
            warn!("the guest is not saved: {why}");
        }
        stored
    }
}

impl Connect for VchanConnect {
    type Link = Vchan;

    fn connect(&mut self) -> io::Result<Vchan> {
        let client = ClientBuilder::new(self.server, self.node.as_str());
        let mut channel = client.connect(&self.xen, &self.store)?;
        channel.set_event_pacer(Some(EventPacer::new(PACE)));
        if let Ok(shelf) = self.shelf() {
            shelf.hold();
        }
        Vchan::new(channel).with_marker(self.marker)
    }

    fn may_come(&mut self) -> bool {
        // A store that cannot answer says nothing about the domain.
        self.store.is_introduced(self.server).unwrap_or(true)
    }

    fn stored(&mut self, _: &mut Vchan) -> Result<(), String> {
        self.look()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_store::Permissions;
    use xen_store_server::{Config, Server};
    use xen_sys::sim::Simulation;

    #[test]
    fn a_state_is_not_stored_where_no_file_is_known() {
        let host = Simulation::start().unwrap();
        let server = Server::start(Config::new()).unwrap();
        let store = server.connect(DomId::DOM0).unwrap();
        let stub = host.add_domain().unwrap();
        server.add_domain(stub);
        let xen = host.xen(DomId::DOM0).unwrap();
        let mut connect = VchanConnect::new(xen, store.clone(), stub, "n/qmp-vchan".to_owned());
        let why = connect.look().unwrap_err();
        assert!(why.contains("no file of domain"), "{why}");
        // A file that the stubdomain names itself is none.
        let node = format!("/local/domain/{stub}/device/console/1/output");
        store.write(&node, "file:/dev/null").unwrap();
        store
            .set_permissions(&node, &Permissions::owner_none(stub))
            .unwrap();
        assert!(connect.look().unwrap_err().contains("no file of domain"));
    }
}
