//! The side that owns the memory and publishes itself in the store.

use std::sync::{Mutex, OnceLock};

use xen_evtchn::EventChannels;
use xen_gnttab::{PageAccess, SharedPages, UnmapNotify, share};
use xen_store::Store;
use xen_sys::{DomId, Xen};

use crate::delivery::Delivery;
use crate::domain_watch::{DomainWatch, Watching};
use crate::doorbell::Doorbell;
use crate::handshake::{self, Published};
use crate::layout::{
    CLI_LIVE, CLI_NOTIFY, GRANTS, Geometry, LEFT_ORDER, Place, RIGHT_ORDER, RingSize, SRV_LIVE,
};
use crate::mem::Word8;
use crate::ring::{Cursors, Rings, Role, WRITE};
use crate::session::{CONNECTED, EXPECTED, Session};
use crate::shared::{Pages, Renew, Shared};
use crate::spin::Peer;
use crate::sync::Ordering;
use crate::{Channel, Error, Result};

/// Makes the server's end of a channel: grants the memory and publishes it in the store.
///
/// ```no_run
/// use std::io::{Read, Write};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let xen = xen_sys::Xen::open()?;
/// let store = xen_store::Store::open(&xen)?;
/// let mut channel = xen_vchan::ServerBuilder::new(xen_sys::DomId::DOM0, "data/echo").publish(&xen, &store)?;
/// let mut buf = [0; 4096];
/// loop {
///     let n = channel.read(&mut buf)?; // sleeps until a client came and wrote
///     if n == 0 { break } // it left
///     channel.write_all(&buf[..n])?;
/// }
/// # Ok(()) }
/// ```
#[doc(alias = "Server")]
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `publish` is called"]
pub struct ServerBuilder {
    peer: DomId,
    path: String,
    left: RingSize,
    right: RingSize,
    watching: Watching,
    withdraws: bool,
    reuse: bool,
}

impl ServerBuilder {
    /// Describes a server for the domain `peer`, to be published at `path` in the store, absolute
    /// or relative to this domain's directory.
    #[doc(alias = "libxenvchan_server_init")]
    pub fn new(peer: DomId, path: impl Into<String>) -> Self {
        Self {
            peer,
            path: path.into(),
            left: RingSize::SMALLEST,
            right: RingSize::SMALLEST,
            watching: Watching::Ask,
            withdraws: false,
            reuse: false,
        }
    }

    /// Removes the nodes while a client is served.
    pub(crate) const fn withdraws(mut self) -> Self {
        self.withdraws = true;
        self
    }

    /// Sets the least sizes of the two rings: `left`, from the client to the server, and `right`,
    /// from the server to the client.
    ///
    /// The default, 0 and 0, are the rings of 1024 and 2048 bytes inside the control page. A ring
    /// of 64 KiB or more is many times faster for streams.
    pub fn rings(mut self, left: impl Into<RingSize>, right: impl Into<RingSize>) -> Self {
        self.left = left.into();
        self.right = right.into();
        self
    }

    /// Sets how this side notices the end of the peer's whole domain.
    ///
    /// The end of the peer's process is noticed in any case. A domain that is destroyed leaves no
    /// trace in the shared page. So by default this side checks every five seconds, while its owner
    /// waits or polls, whether the peer's domain still exists. It asks the store, or, where the
    /// store denies the question, the [hypervisor](xen_evtchn::EventChannels::domain_exists). The
    /// channel's descriptor becomes readable for it. Reading then ends with [`Error::Closed`]
    /// within five seconds. A peer whose domain is still to be made has not ended, and domain 0
    /// never does.
    ///
    /// A store that fails does not fail the channel: the hypervisor is asked. A store that does not
    /// answer holds up a call by 250 ms at most, every five seconds.
    ///
    /// `true`: by a watch on `@releaseDomain`, which the store grants to domain 0 (and to those to
    /// which domain 0 permits it) and which reports the end immediately; elsewhere as by default.
    /// The descriptor becomes readable when *any* domain ends. [`publish`](Self::publish) fails
    /// without the watch: a guest has a quota (128 unless its xenstored has another). Up to 500
    /// such channels can share a [`Store`]'s connection, and an event loop's epoll can hold 100 of
    /// them: Linux nests no more epolls around one descriptor.
    ///
    /// `false`: not at all. Then only a deadline ends a read from a domain that was destroyed.
    pub const fn watch_peer_domain(mut self, watch: bool) -> Self {
        self.watching = Watching::chosen(watch);
        self
    }

    pub(crate) const fn watching(mut self, watching: Watching) -> Self {
        self.watching = watching;
        self
    }

    /// Sets whether all clients, one after another, are served on the same memory. By default
    /// [`next_client`](Channel::next_client) makes fresh rings, because a client that has left can
    /// keep the old ones mapped and write into them at any time.
    ///
    /// For a server that trusts every program of its client's domain. It then serves a client that
    /// connected before `next_client`, and `next_client` sends no request to the store.
    pub const fn reuse_memory(mut self, reuse: bool) -> Self {
        self.reuse = reuse;
        self
    }

    /// Makes the rings and publishes them: from now on a client can connect. Does not wait for one.
    ///
    /// The channel's state is [`Waiting`](crate::PeerState::Waiting). Reading sleeps until a client
    /// has connected and written; what is written before that stays in the ring for it.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] for a ring above 1 MiB; [`Error::Os`] if memory or an event channel is
    /// not available; [`Error::Store`] if the path cannot be written.
    pub fn publish(self, xen: &Xen, store: &Store) -> Result<Channel> {
        let (shared, rings) = self.publish_after(xen, store, None)?;
        Ok(Channel::new(shared, rings, true)?)
    }

    /// Makes the rings and publishes them in place of those of `former`, if there were any.
    fn publish_after(
        self,
        xen: &Xen,
        store: &Store,
        former: Option<&Shared>,
    ) -> Result<(Shared, Rings)> {
        let geometry = Geometry::choose(self.left, self.right).ok_or(Error::TooLarge {
            what: "ring",
            asked: self.left.max(self.right).bytes(),
            limit: RingSize::LARGEST.bytes(),
        })?;
        handshake::clear(store, &self.path)?;
        let events = match former {
            // The descriptor stays the same, wherever the caller registered it.
            Some(former) => former.doorbell.events().clone(),
            None => EventChannels::open(xen)?,
        };
        let port = events.bind_unbound(self.peer)?;
        let mut control = share(xen, self.peer, 1, PageAccess::ReadWrite)?;

        // The client never reads `left` and never writes `right`, but existing clients map both
        // writable.
        let mut list = Vec::with_capacity(geometry.grants());
        let mut pages = |place: Place| -> Result<Option<SharedPages>> {
            let Place::Pages { count, .. } = place else {
                return Ok(None);
            };
            let pages = share(xen, self.peer, count, PageAccess::ReadWrite)?;
            list.extend(pages.refs().iter().map(|grant| grant.as_u32()));
            Ok(Some(pages))
        };
        let mut left = pages(geometry.left_place())?;
        let mut right = pages(geometry.right_place())?;

        let page = control.region_mut();
        let (left_order, right_order) = geometry.orders();
        page.copy_in(LEFT_ORDER, &left_order.to_ne_bytes())?;
        page.copy_in(RIGHT_ORDER, &right_order.to_ne_bytes())?;
        for (index, grant) in list.iter().enumerate() {
            page.copy_in(GRANTS + 4 * index, &grant.to_ne_bytes())?;
        }
        let short = || Error::Invalid {
            what: "fewer granted pages than asked for",
        };
        let rings = Rings::new(
            control.take_region(),
            geometry,
            left.as_mut().map(SharedPages::take_region),
            right.as_mut().map(SharedPages::take_region),
        )
        .ok_or_else(short)?;
        let byte = |at| Word8::new(rings.words(), at).ok_or_else(short);
        let (peer, own, told) = (byte(CLI_LIVE)?, byte(SRV_LIVE)?, byte(CLI_NOTIFY)?);
        peer.get().store(EXPECTED, Ordering::Relaxed);
        own.get().store(CONNECTED, Ordering::Relaxed);
        told.get().store(WRITE, Ordering::Relaxed);

        // If this process is killed, the kernel clears the byte and notifies in its place.
        control.set_unmap_notify(UnmapNotify {
            clear_byte: Some(SRV_LIVE),
            event: Some(port.port()),
        })?;
        let doorbell = match former {
            Some(former) => former.doorbell.succeeded_by(port),
            None => {
                let domain_watch =
                    DomainWatch::watch(self.watching, store, self.peer, &events, None, false)?;
                Doorbell::new(events, port, Delivery::default(), domain_watch)
            }
        };
        let published = Published::publish(
            store,
            &self.path,
            self.peer,
            control.refs()[0],
            doorbell.port(),
            self.withdraws,
        )?;
        #[cfg(test)]
        crate::test_window::window();
        let sessions = former.map_or(0, |former| former.session.count());
        let origin = Origin {
            builder: self.clone(),
            xen: xen.clone(),
            store: store.clone(),
        };
        let shared = Shared {
            origin: (!self.reuse).then(|| Box::new(origin) as _),
            published: Mutex::new(Some(published)),
            slot: OnceLock::new(),
            peer: self.peer,
            runs: Peer::of(xen),
            cursors: Cursors::new(&rings),
            session: Session::new(Role::Server, peer, own, false).after(sessions),
            pages: Pages::Ours {
                rings: left.into_iter().chain(right).collect(),
                control,
            },
            doorbell,
            role: Role::Server,
        };
        Ok((shared, rings))
    }
}

/// The source of a server's fresh rings for its next client.
#[derive(Debug)]
struct Origin {
    builder: ServerBuilder,
    xen: Xen,
    store: Store,
}

impl Renew for Origin {
    fn renew(&self, former: &Shared) -> Result<(Shared, Rings)> {
        // The old `ring-ref` is removed first, so that no client connects to the old rings any
        // more. Their owner finds another `ring-ref` when it is dropped, and does not remove it.
        let builder = self.builder.clone();
        builder.publish_after(&self.xen, &self.store, Some(former))
    }
}
