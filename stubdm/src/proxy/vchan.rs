//! A vchan as a [`Transport`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use tracing::warn;
use xen_evtchn::EventPacer;
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, Client, Error, PeerState};

use crate::consoled::survey::saves_to;
use crate::save::shelf::Shelf;
use crate::transport::{Connect, Peer, Transport};

/// How often a stubdomain that rings for nothing wakes the host's proxy, after a burst.
const PACE: Duration = Duration::from_millis(1);

/// One end of a vchan.
#[derive(Debug)]
pub struct Vchan {
    channel: Channel,
    /// The most room there ever was for writing: the ring's size once it has been empty.
    size: usize,
    /// The byte that goes out before all others.
    marker: Option<u8>,
}

impl Vchan {
    /// Takes a channel over.
    pub fn new(channel: Channel) -> Self {
        Self {
            channel,
            size: 0,
            marker: None,
        }
    }

    /// Sends the marker if it has not gone out.
    fn send_marker(&mut self) -> io::Result<()> {
        if let Some(marker) = self.marker {
            self.channel.try_write(&[marker])?;
            self.marker = None;
        }
        Ok(())
    }
}

impl Transport for Vchan {
    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        self.channel.acknowledge_events()?;
        self.channel.handle_timeout()?;
        // There may be room by now. What else went wrong is found out by whoever reads or writes.
        let _ = self.send_marker();
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.channel.poll_timeout()
    }

    fn peer(&mut self) -> io::Result<Peer> {
        Ok(match self.channel.peer()? {
            PeerState::Connected => Peer::Connected,
            PeerState::Gone => Peer::Gone,
            _ => Peer::Waiting,
        })
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.channel.try_read(buffer) {
            Err(Error::Closed) => Ok(0),
            other => Ok(other?),
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send_marker()?;
        Ok(self.channel.try_write(bytes)?)
    }

    fn unread(&mut self) -> usize {
        match self.channel.space() {
            Ok(space) => {
                self.size = self.size.max(space);
                self.size - space
            }
            // Nobody is left who could take them.
            Err(_) => 0,
        }
    }

    fn next_client(&mut self) -> io::Result<()> {
        Ok(self.channel.next_client()?)
    }
}

/// Connects to the server a domain publishes in the store.
#[derive(Debug)]
pub struct VchanConnect {
    xen: Xen,
    store: Store,
    server: DomId,
    node: String,
    marker: Option<u8>,
    shelf: Option<Shelf>,
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
    fn shelf(&mut self) -> Result<&mut Shelf, String> {
        if self.shelf.is_none() {
            let path = saves_to(&self.store, self.server)
                .map_err(|error| format!("where domain {} saves to: {error}", self.server))?
                .ok_or_else(|| {
                    format!("no file of domain {}'s saved states is known", self.server)
                })?;
            self.shelf = Some(Shelf::new(path));
        }
        self.shelf.as_mut().ok_or_else(String::new)
    }

    /// As [`Connect::stored`]. Where no file is known, no state can be where libxl looks for it.
    fn look(&mut self) -> Result<(), String> {
        let stored = self.shelf().and_then(Shelf::stored);
        if let Err(why) = &stored {
            warn!("the guest is not saved: {why}");
        }
        stored
    }
}

impl Connect for VchanConnect {
    type Link = Vchan;

    fn connect(&mut self) -> io::Result<Vchan> {
        let client = Client::builder(self.server, self.node.as_str());
        let mut channel = client.connect(&self.xen, &self.store)?;
        channel.set_event_pacer(Some(EventPacer::new(PACE)));
        if let Ok(shelf) = self.shelf() {
            shelf.hold();
        }
        let mut vchan = Vchan::new(channel);
        vchan.unread();
        vchan.marker = self.marker;
        match vchan.send_marker() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(vchan),
        }
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
            .set_perms(&node, &Permissions::owner_none(stub))
            .unwrap();
        assert!(connect.look().unwrap_err().contains("no file of domain"));
    }
}
