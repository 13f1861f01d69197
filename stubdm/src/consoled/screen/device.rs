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
    /// Returns the node of the one ability that this backend writes down.
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
    /// The frontend is closing and waits for its pages to be unmapped.
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

    /// Returns what the frontend published, until it closes.
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

    /// Reads the nodes that the frontend published. A frontend with unusable nodes is refused until
    /// it begins again.
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

    /// Records that no process has mapped the frontend's pages, and answers a frontend that is
    /// closing.
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
    pub(super) fn write(&self, name: &str, value: &str) -> xen_store::Result<()> {
        let folder = &self.paths.path;
        self.store.with_transaction(|t| {
            if t.exists(folder)? {
                t.write(&format!("{folder}/{name}"), value)?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use xen_store::Permissions;
    use xen_store_server::{Config, Server};
    use xen_sys::DomId;

    use super::*;

    const STUB: DomId = DomId::new(8);

    struct Nodes {
        _server: Server,
        dom0: Store,
        frontend: Store,
        paths: Paths,
        now: Instant,
    }

    impl Nodes {
        /// Folders as libxl makes them.
        fn new(kind: &str) -> Self {
            let server = Server::start(Config::new()).unwrap();
            server.add_domain(STUB);
            let dom0 = server.connect(DomId::DOM0).unwrap();
            let paths = Paths {
                path: format!("/local/domain/0/backend/{kind}/8/0"),
                frontend: format!("/local/domain/8/device/{kind}/0"),
            };
            dom0.mkdir(&paths.frontend).unwrap();
            let theirs = Permissions::owner_none(STUB).grant_read(DomId::DOM0);
            dom0.set_permissions(&paths.frontend, &theirs).unwrap();
            dom0.write(&format!("{}/state", paths.path), "1").unwrap();
            let ours = Permissions::owner_none(DomId::DOM0).grant_read(STUB);
            dom0.set_permissions(&paths.path, &ours).unwrap();
            Self {
                frontend: server.connect(STUB).unwrap(),
                _server: server,
                dom0,
                paths,
                now: Instant::now(),
            }
        }

        fn publishes(&self, nodes: &[(&str, &str)]) {
            for (name, value) in nodes {
                let node = format!("{}/{name}", self.paths.frontend);
                self.frontend.write(&node, value).unwrap();
            }
        }

        /// Turns until the watch's event was handled: `holds` is true.
        fn until(&mut self, device: &mut Device, holds: impl Fn(&Device) -> bool) {
            for _ in 0..500 {
                self.now += Duration::from_secs(2);
                device.turn(self.now).unwrap();
                if holds(device) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            panic!("{device:?}");
        }

        fn backend(&self, name: &str) -> Option<String> {
            let node = format!("{}/{name}", self.paths.path);
            let value = self.dom0.read_optional(&node).unwrap();
            value.map(|value| String::from_utf8(value).unwrap())
        }
    }

    const OFFER: &[(&str, &str)] = &[
        ("page-ref", "77"),
        ("event-channel", "5"),
        ("protocol", "x86_64-abi"),
        ("feature-update", "1"),
        ("state", "3"),
    ];

    #[test]
    fn a_frontend_connects_closes_and_begins_anew() {
        let mut nodes = Nodes::new("vfb");
        let mut device = Device::open(&nodes.dom0, Kind::Screen, &nodes.paths).unwrap();
        assert_eq!(nodes.backend("feature-resize").as_deref(), Some("1"));
        assert_eq!(nodes.backend("state").as_deref(), Some("2"));
        assert_eq!(nodes.backend("request-update"), None);
        for _ in 0..2 {
            nodes.publishes(OFFER);
            nodes.until(&mut device, |device| device.offer().is_some());
            let front = device.offer().unwrap();
            assert_eq!((front.page, front.port, front.absolute), (77, 5, false));
            assert_eq!(front.protocol.as_deref(), Some("x86_64-abi"));
            // Before the state, by which the frontend looks for it.
            assert_eq!(nodes.backend("request-update").as_deref(), Some("1"));
            assert_eq!(nodes.backend("state").as_deref(), Some("2"));
            device.handle_connected().unwrap();
            assert_eq!(nodes.backend("state").as_deref(), Some("4"));
            nodes.publishes(&[("state", "5")]);
            nodes.until(&mut device, |device| device.offer().is_none());
            // Not before the pages are unmapped.
            assert_eq!(nodes.backend("state").as_deref(), Some("4"));
            device.handle_unmapped().unwrap();
            assert_eq!(nodes.backend("state").as_deref(), Some("6"));
            nodes.publishes(&[("state", "1")]);
            let is_waiting = |device: &Device| device.handshake.state() == XenbusState::InitWait;
            nodes.until(&mut device, is_waiting);
        }
    }

    #[test]
    fn nodes_that_cannot_be_used_are_refused_until_the_frontend_begins_anew() {
        for change in [
            ("page-ref", "x"),
            ("page-ref", "-1"),
            ("event-channel", "4294967296"),
            ("feature-update", "0"),
        ] {
            let mut nodes = Nodes::new("vfb");
            let mut device = Device::open(&nodes.dom0, Kind::Screen, &nodes.paths).unwrap();
            nodes.publishes(&OFFER[..4]);
            nodes.publishes(&[change, ("state", "3")]);
            let refused = |device: &Device| device.handshake.state() == XenbusState::Closing;
            nodes.until(&mut device, refused);
            assert_eq!(device.offer(), None, "{change:?}");
            nodes.publishes(&[("state", "1")]);
            nodes.until(&mut device, |device| !refused(device));
            nodes.publishes(OFFER);
            nodes.until(&mut device, |device| device.offer().is_some());
        }
    }

    #[test]
    fn a_keyboard_is_offered_positions_and_a_folder_that_is_gone_is_not_made_anew() {
        let mut nodes = Nodes::new("vkbd");
        let mut device = Device::open(&nodes.dom0, Kind::Keyboard, &nodes.paths).unwrap();
        assert_eq!(nodes.backend("feature-abs-pointer").as_deref(), Some("1"));
        nodes.publishes(&[("request-abs-pointer", "1")]);
        nodes.publishes(OFFER);
        nodes.until(&mut device, |device| device.offer().is_some());
        assert!(device.offer().unwrap().absolute);
        nodes.dom0.rm(&nodes.paths.path).unwrap();
        device.handle_connected().unwrap();
        assert_eq!(nodes.backend("state"), None);
    }
}
