//! One device of the screen's in the store: its backend's nodes, and its frontend's.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use tracing::warn;
use xen_store::xenbus::{BackendAction, BackendHandshake, XenbusState};
use xen_store::{Store, Watch};

use super::process::Front;
use crate::libxl::discover::Device as Paths;

/// Mishaps of one device that are logged; the domain could fill the log otherwise.
const COMPLAINTS: u32 = 20;

/// The kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `vfb`.
    Screen,
    /// `vkbd`.
    Keyboard,
}

impl Kind {
    /// The node that says what this backend can do, beside what a frontend may ask for.
    fn feature(self) -> &'static str {
        match self {
            Self::Screen => "feature-resize",
            Self::Keyboard => "feature-abs-pointer",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Screen => "vfb",
            Self::Keyboard => "vkbd",
        }
    }
}

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    kind: Kind,
    store: Store,
    paths: Paths,
    nodes: Watch,
    handshake: BackendHandshake,
    /// A state whose write failed.
    unwritten: Option<XenbusState>,
    /// The nodes that the frontend published.
    offer: Option<Front>,
    /// The frontend wants its pages back.
    closing: bool,
    complaints: u32,
}

impl Device {
    /// Takes a device on, and writes what its backend can do.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn open(store: &Store, kind: Kind, paths: &Paths) -> xen_store::Result<Self> {
        let mut device = Self {
            kind,
            store: store.clone(),
            paths: paths.clone(),
            nodes: store.watch(&paths.frontend)?,
            handshake: BackendHandshake::new(Instant::now()),
            unwritten: None,
            offer: None,
            closing: false,
            complaints: 0,
        };
        device.write(kind.feature(), "1")?;
        device.write_state()?;
        Ok(device)
    }

    /// Returns what the frontend published, if it still wants that to be used.
    pub(super) fn offer(&self) -> Option<&Front> {
        self.offer.as_ref()
    }

    /// Looks at the nodes, if they changed.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn turn(&mut self, now: Instant) -> xen_store::Result<()> {
        while self.nodes.try_next()?.is_some() {
            self.handshake.handle_change();
        }
        if self.handshake.poll_look(now) {
            let node = format!("{}/state", self.paths.frontend);
            let theirs = self.store.read_optional(&node)?;
            let theirs = theirs.as_deref().map(XenbusState::from_node);
            let offers = matches!(
                theirs,
                Some(XenbusState::Initialised | XenbusState::Connected)
            );
            if !offers {
                self.offer = None;
            }
            self.handshake.handle_state(theirs);
        }
        match self.handshake.poll_action() {
            Some(BackendAction::Connect) if self.offer.is_none() => self.read_offer()?,
            Some(BackendAction::Disconnect) => (self.offer, self.closing) = (None, true),
            _ => {}
        }
        self.write_state()
    }

    /// Reads the nodes that the frontend published. A frontend whose nodes cannot be used is refused
    /// until it begins anew.
    fn read_offer(&mut self) -> xen_store::Result<()> {
        let read = |name: &str| {
            let value = self
                .store
                .read_optional(&format!("{}/{name}", self.paths.frontend));
            value.map(|value| value.and_then(|value| String::from_utf8(value).ok()))
        };
        let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
        let page = number(read("page-ref")?);
        let port = number(read("event-channel")?).and_then(|port| u32::try_from(port).ok());
        let protocol = read("protocol")?.filter(|text| !text.is_empty());
        let wish = match self.kind {
            Kind::Screen => read("feature-update")?,
            Kind::Keyboard => read("request-abs-pointer")?,
        };
        let wish = wish.as_deref() == Some("1");
        let (Some(page), Some(port)) = (page, port) else {
            return self.refuse("no page-ref and event-channel");
        };
        match self.kind {
            // Without it the whole picture would be compared again and again.
            Kind::Screen if !wish => return self.refuse("no feature-update"),
            Kind::Screen => self.write("request-update", "1")?,
            Kind::Keyboard => {}
        }
        self.offer = Some(Front {
            page,
            port,
            absolute: wish && self.kind == Kind::Keyboard,
            protocol,
        });
        Ok(())
    }

    fn refuse(&mut self, why: &str) -> xen_store::Result<()> {
        self.complain(format_args!("its frontend has {why}"));
        self.handshake.handle_refused();
        self.write_state()
    }

    /// Notes that the process has the frontend's pages.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn handle_connected(&mut self) -> xen_store::Result<()> {
        if self.offer.is_some() && !self.handshake.is_connected() {
            self.handshake.handle_connected();
        }
        self.write_state()
    }

    /// Notes that no process has the frontend's pages, for a frontend that wants them back.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn handle_unmapped(&mut self) -> xen_store::Result<()> {
        if std::mem::take(&mut self.closing) {
            self.handshake.handle_disconnected();
        }
        self.write_state()
    }

    /// The descriptor to be polled for input. Once the store is lost it stays readable.
    pub(super) fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        match self.handshake.is_stale() {
            true => None,
            false => self.nodes.poll_fd().ok(),
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.handshake.poll_timeout()
    }

    pub(super) fn complain(&mut self, what: impl std::fmt::Display) {
        self.complaints = self.complaints.saturating_add(1);
        let name = self.kind.name();
        if self.complaints <= COMPLAINTS {
            warn!("{name}: {what}");
        }
        if self.complaints == COMPLAINTS {
            warn!("{name}: no more of this is logged");
        }
    }

    fn write_state(&mut self) -> xen_store::Result<()> {
        while let Some(state) = self.handshake.poll_write().or(self.unwritten) {
            self.unwritten = Some(state);
            self.write("state", state.as_str())?;
            self.unwritten = None;
        }
        Ok(())
    }

    /// Writes a node of the backend's. The toolstack removes the folder when it likes, and a write
    /// would bring it back.
    fn write(&self, name: &str, value: &str) -> xen_store::Result<()> {
        let folder = &self.paths.path;
        self.store.with_transaction(|t| {
            if t.exists(folder)? {
                t.write(&format!("{folder}/{name}"), value)?;
            }
            Ok(())
        })
    }
}
