//! The side that finds a published server and maps its memory.

use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use xen_evtchn::EventChannels;
use xen_gnttab::{MappedPages, PageAccess, UnmapNotify, map};
use xen_store::Store;
use xen_sys::{DomId, GrantRef, Xen};

use crate::connecting::Connecting;
use crate::delivery::Delivery;
use crate::domain_watch::{DomainWatch, Watching};
use crate::doorbell::Doorbell;
use crate::handshake::{Address, read_address};
use crate::layout::{
    CLI_LIVE, GRANTS, Geometry, LEFT_ORDER, Place, RIGHT_ORDER, SRV_LIVE, SRV_NOTIFY,
};
use crate::mem::Word8;
use crate::ring::{Cursors, Rings, Role, WRITE};
use crate::session::{CONNECTED, GONE, Session};
use crate::shared::{Pages, Shared};
use crate::spin::Peer;
use crate::sync::Ordering;
use crate::{Channel, Error, Result};

/// Makes the client's end of a channel: finds the server in the store and maps its memory.
///
/// ```no_run
/// use std::io::{Read, Write};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let xen = xen_sys::Xen::open()?;
/// let store = xen_store::Store::open(&xen)?;
/// let server = xen_sys::DomId::new(5);
/// let mut channel = xen_vchan::ClientBuilder::new(server, "/local/domain/5/data/echo").connect(&xen, &store)?;
/// channel.write_all(b"hello")?;
/// # Ok(()) }
/// ```
#[doc(alias = "Client")]
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct ClientBuilder {
    server: DomId,
    path: String,
    wait: bool,
    deadline: Option<Instant>,
    watching: Watching,
}

impl ClientBuilder {
    /// Describes a client of the server that domain `server` published at `path` in the store,
    /// absolute or relative to this domain's own directory.
    #[doc(alias = "libxenvchan_client_init")]
    pub fn new(server: DomId, path: impl Into<String>) -> Self {
        Self {
            server,
            path: path.into(),
            wait: false,
            deadline: None,
            watching: Watching::Ask,
        }
    }

    /// Sets whether [`connect`](Self::connect) sleeps until there is a server. By default it fails
    /// immediately with [`Error::NoServer`].
    pub const fn wait_for_server(mut self, wait: bool) -> Self {
        self.wait = wait;
        self
    }

    /// Sets when to stop waiting for a server. By default it waits forever.
    pub const fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets the deadline, counted from now. A time beyond what the clock can count means forever.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.deadline = Instant::now().checked_add(timeout);
        self
    }

    /// Sets how this side notices the end of the server's whole domain.
    ///
    /// The end of the server's process is noticed in any case. A domain that is destroyed leaves no
    /// trace in the shared page, so by default this side checks every five seconds, while its owner
    /// waits or polls. The channel's descriptor becomes readable for it. Reading then ends with
    /// [`Error::Closed`]:
    ///
    /// * in domain 0, whose question the store answers: within five seconds;
    /// * elsewhere, with a server of this crate's: within ten seconds after its node is removed, as
    ///   toolstacks do;
    /// * elsewhere, with another server or a [`Listener`](crate::Listener): within five seconds
    ///   after the [hypervisor](xen_evtchn::EventChannels::domain_exists) has forgotten the domain.
    ///   It does so only when no other domain maps its pages any more, and this client maps them.
    ///
    /// Domain 0 never ends. A store that fails does not fail the channel. A store that does not
    /// answer holds up a call by 250 ms at most, every five seconds.
    ///
    /// `true`: by two watches. One is on `@releaseDomain`, which the store grants to domain 0 (and
    /// to those to which domain 0 permits it); it reports the end immediately. The other is on any
    /// server's node; it reports the end a second after the node is removed. Not for the servers of
    /// Qubes, which remove their node when their client has connected. The descriptor becomes
    /// readable when *any* domain ends. [`connect`](Self::connect) fails without the watches: a
    /// guest has a quota (128 unless its xenstored has another). Up to 500 such channels can share
    /// a [`Store`]'s connection, and an event loop's epoll can hold 100 of them: Linux nests no
    /// more epolls around one descriptor.
    ///
    /// `false`: not at all. Then only a deadline ends a read from a domain that was destroyed.
    pub const fn watch_peer_domain(mut self, watch: bool) -> Self {
        self.watching = Watching::chosen(watch);
        self
    }

    /// Connects to the server.
    ///
    /// # Errors
    ///
    /// * [`Error::NoServer`]: nothing is published at the path, or the server that published it has
    ///   left;
    /// * [`Error::Unreachable`]: the server is busy with another client, or dead;
    /// * [`Error::TimedOut`]: no server was available before the deadline;
    /// * [`Error::Peer`], [`Error::Node`]: what is published at the path is no vchan;
    /// * [`Error::Os`], [`Error::Store`].
    pub fn connect(self, xen: &Xen, store: &Store) -> Result<Channel> {
        if !self.wait {
            return self.attempt(xen, store);
        }
        let mut connecting = self.start(xen, store)?;
        loop {
            match connecting.try_finish() {
                Err(Error::WouldBlock) => connecting.sleep()?,
                other => return other,
            }
        }
    }

    /// Begins to connect and returns without blocking. The client waits for a server, even if
    /// [`wait_for_server`](Self::wait_for_server) is off.
    ///
    /// # Errors
    ///
    /// [`Error::Os`], [`Error::Store`].
    pub fn start(self, xen: &Xen, store: &Store) -> Result<Connecting> {
        Connecting::new(self, xen, store)
    }

    /// Looks for a server once and tries to connect once.
    pub(crate) fn attempt(&self, xen: &Xen, store: &Store) -> Result<Channel> {
        match read_address(store, &self.path)? {
            Some(address) => self.attach(xen, store, address),
            None => Err(self.nobody()),
        }
    }

    pub(crate) const fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    pub(crate) const fn until(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn place(&self) -> &str {
        &self.path
    }

    fn nobody(&self) -> Error {
        Error::NoServer {
            path: self.path.clone(),
        }
    }

    fn attach(&self, xen: &Xen, store: &Store, address: Address) -> Result<Channel> {
        let events = EventChannels::open(xen)?;
        // The port is bound already, or closed, or belongs to something else by now.
        let refused = |source| match source {
            xen_sys::Error::Os { .. } if !is_shortage(&source) => {
                let path = self.path.clone();
                Error::Unreachable { path, source }
            }
            // No device, or this side has run out of something: not the server's fault.
            other => Error::Os(other),
        };
        let port = events
            .bind_interdomain(self.server, address.port)
            .map_err(refused)?;
        let mut control =
            map(xen, self.server, &[address.control], PageAccess::ReadWrite).map_err(refused)?;
        let page = control.region();

        // Read each value once, into private memory; nothing below reads them again.
        let orders = (page.load_u16(LEFT_ORDER)?, page.load_u16(RIGHT_ORDER)?);
        // A page in the making: a killed server has left its nodes, and another server has just got
        // the same numbers. That server will publish itself.
        if orders == (0, 0) {
            return Err(self.nobody());
        }
        let geometry = Geometry::new(orders.0, orders.1)?;
        let mut list = vec![0; 4 * geometry.grants()];
        page.copy_out(GRANTS, &mut list)?;
        let list: Vec<GrantRef> = list
            .chunks_exact(4)
            .map(|four| GrantRef::new(u32::from_ne_bytes([four[0], four[1], four[2], four[3]])))
            .collect();
        // Xen keeps the first grants to itself.
        if list.contains(&GrantRef::new(0)) {
            return Err(self.nobody());
        }

        let pages = |place: Place, access: PageAccess| -> Result<Option<MappedPages>> {
            let Place::Pages { first, count } = place else {
                return Ok(None);
            };
            Ok(Some(map(
                xen,
                self.server,
                &list[first..first + count],
                access,
            )?))
        };
        let mut left = pages(geometry.left_place(), PageAccess::ReadWrite)?;
        let mut right = pages(geometry.right_place(), PageAccess::ReadOnly)?;
        let short = || Error::Invalid {
            what: "fewer mapped pages than asked for",
        };
        let rings = Rings::new(
            control.take_region(),
            geometry,
            left.as_mut().map(MappedPages::take_region),
            right.as_mut().map(MappedPages::take_region),
        )
        .ok_or_else(short)?;
        let byte = |at| Word8::new(rings.words(), at).ok_or_else(short);
        let (peer, own, told) = (byte(SRV_LIVE)?, byte(CLI_LIVE)?, byte(SRV_NOTIFY)?);
        if peer.get().load(Ordering::Acquire) == GONE {
            return Err(self.nobody());
        }
        // Servers that are not of this crate may remove their nodes while they serve.
        let stays =
            !address.withdraws && (address.accepts_sessions || self.watching == Watching::Watch);
        let path = stays.then_some(&*self.path);
        let domain_watch =
            DomainWatch::watch(self.watching, store, self.server, &events, path, true)?;
        // If this process is killed, the kernel clears the byte and notifies in its place.
        control.set_unmap_notify(UnmapNotify {
            clear_byte: Some(CLI_LIVE),
            event: Some(port.port()),
        })?;
        // Requests of the previous client are void; the first byte is announced.
        told.get().store(WRITE, Ordering::Relaxed);
        own.get().store(CONNECTED, Ordering::Release);
        let shared = Shared {
            published: Mutex::new(None),
            origin: None,
            slot: OnceLock::new(),
            peer: self.server,
            runs: Peer::of(xen),
            cursors: Cursors::new(&rings),
            session: Session::new(Role::Client, peer, own, address.accepts_sessions),
            pages: Pages::Theirs {
                rings: left.into_iter().chain(right).collect(),
                control,
            },
            doorbell: Doorbell::new(events, port, Delivery::default(), domain_watch),
            role: Role::Client,
        };
        shared.doorbell.notify()?;
        let attached = !address.accepts_sessions;
        Ok(Channel::new(shared, rings, attached)?)
    }
}

/// Whether this side has run out of something: ports, pages, memory, descriptors.
fn is_shortage(error: &xen_sys::Error) -> bool {
    let shortages = [Errno::ENOSPC, Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE];
    error
        .errno()
        .is_some_and(|errno| shortages.contains(&Errno::from_raw(errno)))
}
