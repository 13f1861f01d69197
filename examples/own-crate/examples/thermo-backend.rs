//! The backend of a toy PV device in domain 0: guests ask a thermometer over a ring.

use std::error::Error;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thermometer::device::{NO_SENSOR, Request, Response, create, directory, frontend};
use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::ring::BackRing;
use xen_gnttab::{PageAccess, map};
use xen_store::xenbus::{BackendAction, BackendHandshake, XenbusState};
use xen_store::{Store, Watch};
use xen_sys::{DomId, GrantRef, Port, Xen};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The most requests that are answered before the other descriptors get their turn.
const TURN: usize = 64;

fn main() -> Result<()> {
    let guest: DomId = std::env::args()
        .nth(1)
        .ok_or("usage: thermo-backend DOMID")?
        .parse()?;
    let xen = Xen::open()?;
    let store = Store::open(&xen)?;
    create(&store, guest)?;
    Backend::new(&xen, &store, guest)?.run(|sensor| (sensor == 0).then_some(21_500))
}

/// The device of one guest.
pub struct Backend<'a> {
    xen: &'a Xen,
    store: &'a Store,
    guest: DomId,
    nodes: Watch,
    handshake: BackendHandshake,
    connection: Option<Connection>,
}

/// A connected ring.
struct Connection {
    ring: BackRing<Request, Response>,
    channels: EventChannels,
    port: BoundPort,
}

impl<'a> Backend<'a> {
    pub fn new(xen: &'a Xen, store: &'a Store, guest: DomId) -> Result<Self> {
        let nodes = store.watch(&frontend(guest))?;
        let handshake = BackendHandshake::new(Instant::now());
        Ok(Self {
            xen,
            store,
            guest,
            nodes,
            handshake,
            connection: None,
        })
    }

    /// Serves the guest until its nodes are removed.
    pub fn run(&mut self, measure: impl Fn(u32) -> Option<u32>) -> Result<()> {
        loop {
            while self.nodes.try_next()?.is_some() {
                self.handshake.handle_change();
            }
            if self.handshake.poll_look(Instant::now()) {
                let state = self
                    .store
                    .read_optional(&format!("{}/state", frontend(self.guest)))?;
                let Some(state) = state else { return Ok(()) };
                self.handshake
                    .handle_state(Some(XenbusState::from_node(&state)));
            }
            match self.handshake.poll_action() {
                Some(BackendAction::Connect) => match self.connect() {
                    Ok(connection) => {
                        self.connection = Some(connection);
                        self.handshake.handle_connected();
                    }
                    Err(error) => self.refuse(&*error),
                },
                Some(BackendAction::Disconnect) => {
                    self.connection = None;
                    self.handshake.handle_disconnected();
                }
                _ => {}
            }
            let answered = self
                .connection
                .as_mut()
                .map_or(Ok(false), |connection| connection.answer(&measure));
            if let Err(error) = &answered {
                self.refuse(&**error);
            }
            let more = answered.unwrap_or(false);
            while let Some(state) = self.handshake.poll_write() {
                self.store
                    .write(&format!("{}/state", directory(self.guest)), state.as_str())?;
            }
            // Until the next look, later changes make no difference.
            let stale = self.handshake.is_stale();
            let nodes = (!stale).then(|| self.nodes.poll_fd()).transpose()?;
            let ring = self.connection.as_ref().map(|connection| connection.channels.as_fd());
            let fds = nodes.into_iter().chain(ring);
            let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let look = self
                .handshake
                .poll_timeout()
                .map(|at| at - Instant::now().min(at));
            // In milliseconds, rounded up.
            let wait = look.map(|left| PollTimeout::try_from(left.as_millis() + 1));
            let wait = if more {
                Some(Ok(PollTimeout::ZERO))
            } else {
                wait
            };
            poll(&mut fds, wait.transpose()?.unwrap_or(PollTimeout::NONE))?;
        }
    }

    /// Maps the page and binds the port that the guest has published.
    fn connect(&self) -> Result<Connection> {
        let number = |name| -> Result<u32> {
            let node = format!("{}/{name}", frontend(self.guest));
            Ok(self.store.read_str(&node)?.parse()?)
        };
        let page = GrantRef::new(number("ring-ref")?);
        let mut page = map(self.xen, self.guest, &[page], PageAccess::ReadWrite)?;
        let channels = EventChannels::open(self.xen)?;
        let port = channels.bind_interdomain(self.guest, Port::new(number("event-channel")?))?;
        Ok(Connection {
            ring: BackRing::attach(page.take_region())?,
            channels,
            port,
        })
    }

    /// Ends the connection: another one needs a frontend that begins again.
    fn refuse(&mut self, error: &dyn Error) {
        eprintln!("domain {}: {error}", self.guest);
        self.connection = None;
        self.handshake.handle_refused();
    }
}

impl Connection {
    /// Answers requests, and returns whether there may be more.
    fn answer(&mut self, measure: impl Fn(u32) -> Option<u32>) -> Result<bool> {
        if let Some(port) = self.channels.pending()? {
            self.channels.unmask(port)?;
        }
        let mut more = true;
        for _ in 0..TURN {
            if let Some([id, sensor]) = self.ring.poll_request()? {
                let value = measure(sensor).map_or([id, NO_SENSOR, 0], |value| [id, 0, value]);
                self.ring.push_response(&value)?;
            } else if !self.ring.arm(1)? {
                more = false;
                break;
            }
        }
        if self.ring.publish()? {
            self.port.notify()?;
        }
        Ok(more)
    }
}
