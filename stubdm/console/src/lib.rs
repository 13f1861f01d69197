//! PV consoles, both ends, in user space: a frontend that publishes its ring when it is ready to
//! read, and a backend that serves it.
//!
//! ```text
//!   frontend (a domU)                    the store                       backend (dom0)
//!   Frontend::publish ── ring-ref, port, state 3 ──▶ device/console/N ──▶ Backend::turn maps, binds
//!        ▲     │           backend/console/S/N/state 4 ◀──────────────────────┘
//!        │     └── out, 2 KiB ──────────────────────────────────────────────▶ Link::try_read
//!        └──────── in, 1 KiB ◀─────────────────────────────────────────────── Link::try_write
//! ```
//!
//! The frontend publishes nothing before somebody asks for it, and so no backend (QEMU's, ours,
//! any) has a place to put a byte that nobody would read: the rendezvous that the consoles of a
//! stubdomain lack when a tty is in between. No line discipline sees the bytes.
//!
//! | module | what |
//! |---|---|
//! | [`ring`] | the shared page, without I/O |
//! | [`link`](mod@link) | the ring with its event channel |
//! | [`frontend`], [`backend`] | the handshake of either end in the store |
//! | [`ready`] | how a reader that is not a [`Frontend`] says that it reads |
//!
//! A kernel with xen's console driver claims the nodes `device/console/N` of its domain the moment
//! it boots, before any program runs; so in a stubdomain the kernel is the frontend, and
//! [`Frontend`] is what the backend's tests have in its place.

pub mod backend;
pub mod frontend;
pub mod link;
pub mod ready;
pub mod ring;

pub use backend::Backend;
pub use frontend::Frontend;
pub use link::Link;

/// The reason why one end of a console ended or did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ring: the peer broke it, or the page is unfit.
    #[error(transparent)]
    Ring(#[from] ring::Error),
    /// A node of the store says what it cannot.
    #[error("the store's node {node}: {what}")]
    Node {
        /// The whole path.
        node: String,
        /// The fault.
        what: &'static str,
    },
    /// The store's.
    #[error("the store: {0}")]
    Store(#[from] xen_store::Error),
    /// The hypervisor's or the system's.
    #[error(transparent)]
    Xen(#[from] xen_sys::Error),
    /// The system's.
    #[error("waiting: {0}")]
    Wait(#[from] std::io::Error),
}

/// A result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// The states of a device's end in the store: `enum xenbus_state` of Xen's public/io/xenbus.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// 1: the toolstack made the node.
    Initialising = 1,
    /// 2: the backend waits for the frontend.
    InitWait = 2,
    /// 3: the frontend has published.
    Initialised = 3,
    /// 4: in use.
    Connected = 4,
    /// 5: it is about to let go.
    Closing = 5,
    /// 6: it has let go.
    Closed = 6,
}

impl State {
    /// Reads a node's value; `None` for anything that is not one of the six.
    pub fn of(value: &[u8]) -> Option<Self> {
        Some(match value {
            b"1" => Self::Initialising,
            b"2" => Self::InitWait,
            b"3" => Self::Initialised,
            b"4" => Self::Connected,
            b"5" => Self::Closing,
            b"6" => Self::Closed,
            _ => return None,
        })
    }

    /// As a node says it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Initialising => "1",
            Self::InitWait => "2",
            Self::Initialised => "3",
            Self::Connected => "4",
            Self::Closing => "5",
            Self::Closed => "6",
        }
    }
}

/// A node's value, or `None` if there is no such node.
fn read(store: &xen_store::Store, node: &str) -> Result<Option<Vec<u8>>> {
    match store.read(node) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The number in a node; `None` if there is no such node.
fn number(store: &xen_store::Store, node: &str) -> Result<Option<u32>> {
    let Some(value) = read(store, node)? else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&value).ok();
    match text.and_then(|text| text.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(Error::Node {
            node: node.to_owned(),
            what: "is no number",
        }),
    }
}

/// A domain's number in a node that must be there.
fn domid(store: &xen_store::Store, node: &str) -> Result<xen_sys::DomId> {
    let number = number(store, node)?.and_then(|number| u16::try_from(number).ok());
    number.map(xen_sys::DomId::new).ok_or_else(|| Error::Node {
        node: node.to_owned(),
        what: "is no domain's number",
    })
}
