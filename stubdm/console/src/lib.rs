//! PV consoles, both ends, in user space: a frontend that publishes its ring when it is ready to
//! read, and a backend that serves it.
//!
//! ```text
//!   frontend (a domU)                    the store                       backend (dom0)
//!   Frontend::publish ── ring-ref, port, state 3 ──▶ device/console/N ──▶ Backend::turn maps, binds
//!        ▲     │           backend/console/S/N/state 4 ◀──────────────────────┘
//!        │     └── out, 2 KiB ──────────────────────────────────────────────▶ Connection::try_read
//!        └──────── in, 1 KiB ◀─────────────────────────────────────────────── Connection::try_write
//! ```
//!
//! The frontend publishes nothing before somebody asks for it. Until then no backend (QEMU's, ours,
//! any) has a place for a byte that nobody would read. The consoles of a stubdomain lack this
//! rendezvous when a tty is in between. No line discipline sees the bytes.
//!
//! | module | what |
//! |---|---|
//! | [`ring`] | the shared page, without I/O |
//! | [`doorbell`] | an event channel, paced |
//! | [`connection`](mod@connection) | the ring with its event channel |
//! | [`frontend`], [`backend`] | either end, its handshake by [`xen_store::xenbus`] |
//! | [`ready`] | how a reader that is not a [`Frontend`] announces that it reads |
//!
//! A kernel with xen's console driver claims the nodes `device/console/N` of its domain the moment
//! it boots, before any program runs; so in a stubdomain the kernel is the frontend, and
//! [`Frontend`] is what the backend's tests have in its place.

pub mod backend;
pub mod connection;
pub mod doorbell;
pub mod frontend;
pub mod ready;
pub mod ring;

pub use backend::Backend;
pub use connection::Connection;
pub use doorbell::Doorbell;
pub use frontend::Frontend;
pub use xen_store::xenbus::XenbusState;

/// The reason why one end of a console ended or did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ring: the peer broke it, or the page is unfit.
    #[error(transparent)]
    Ring(#[from] ring::Error),
    /// A node of the store has an impossible value.
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

/// Reads the state in a node; `None` if there is no such node.
fn state(store: &xen_store::Store, node: &str) -> Result<Option<XenbusState>> {
    let value = store.read_optional(node)?;
    Ok(value.as_deref().map(XenbusState::from_node))
}

/// The number in a node; `None` if there is no such node.
fn number(store: &xen_store::Store, node: &str) -> Result<Option<u32>> {
    let Some(value) = store.read_optional(node)? else {
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
