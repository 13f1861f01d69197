//! Connects the vchan, as a [`Transport`](crate::rt::transport::Transport).

use std::io;
use std::time::Duration;

use xen_evtchn::EventPacer;
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::ClientBuilder;

use crate::proxy::broker::saves::{FileSaves, StateFile};
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
    file: StateFile,
}

impl VchanConnect {
    /// The server `server` publishes at `node`.
    pub fn new(xen: Xen, store: Store, server: DomId, node: String) -> Self {
        Self {
            file: StateFile::new(store.clone(), server),
            xen,
            store,
            server,
            node,
            marker: None,
        }
    }

    /// Begins each connection with the byte `marker`, by which servers that look for it notice that
    /// the client is another one.
    #[must_use]
    pub fn with_marker(self, marker: Option<u8>) -> Self {
        Self { marker, ..self }
    }

    /// The looks at the file that the stubdomain's saves go to.
    pub fn saves(&self) -> FileSaves {
        FileSaves::new(self.file.clone())
    }
}

impl Connect for VchanConnect {
    type Link = Vchan;

    fn connect(&mut self) -> io::Result<Vchan> {
        let client = ClientBuilder::new(self.server, self.node.as_str());
        let mut channel = client.connect(&self.xen, &self.store)?;
        channel.set_event_pacer(Some(EventPacer::new(PACE)));
        self.file.hold();
        Vchan::new(channel).with_marker(self.marker)
    }

    fn may_come(&mut self) -> bool {
        // A store that cannot answer says nothing about the domain.
        self.store.is_introduced(self.server).unwrap_or(true)
    }
}
