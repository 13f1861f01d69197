//! vchan: a byte channel between two Xen domains, wire-compatible with libxenvchan.
//!
//! One side, the [server](ServerBuilder), grants memory to the other and publishes it in the store;
//! the other, the [client](ClientBuilder), maps it. Both get a [`Channel`], which is
//! [`Read`](std::io::Read) + [`Write`](std::io::Write) with a descriptor to poll.
//!
//! ```text
//!            server's memory, mapped by the client
//!   ┌──────────────────────────────────────────────┐
//!   │ control page: cursors, live and notify bytes │      one event channel
//!   ├──────────────────────┬───────────────────────┤   «something changed, look»
//!   │ left  client→server  │ right  server→client  │ ◀──────────────────────────▶
//!   └──────────────────────┴───────────────────────┘
//! ```
//!
//! Both ends, with a simulated host in place of a real one (feature `sim`; on Xen, `Xen::open()`
//! takes the place of the first three lines). `cargo run -p xen-vchan --features sim --example
//! echo` runs it.
//!
//! ```
//! use std::io::{Read, Write, copy};
//! use xen_store::Store;
//! use xen_store_server::Config;
//! use xen_sys::{DomId, sim::Simulation};
//! use xen_vchan::{ClientBuilder, ServerBuilder};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Simulation::start()?;
//! let _stored = xen_store_server::sim::start(&host, Config::new())?;
//! let xen = host.xen(DomId::DOM0)?;
//! let store = Store::open(&xen)?;
//! let mut server = ServerBuilder::new(DomId::DOM0, "data/echo").publish(&xen, &store)?;
//! let mut client = ClientBuilder::new(DomId::DOM0, "data/echo").connect(&xen, &store)?;
//! std::thread::spawn(move || { let (rx, tx) = server.halves(); copy(rx, tx) });
//! client.write_all(b"hello")?;
//! let mut answer = [0; 5];
//! client.read_exact(&mut answer)?;
//! # assert_eq!(&answer, b"hello");
//! # Ok(()) }
//! ```
//!
//! | to | take |
//! |---|---|
//! | serve many clients at once | [`Listener`] |
//! | come back when the server does | [`Reconnecting`]; feature `tokio`: `tokio::Reconnecting` |
//! | wait without blocking | [`Connecting`], [`Channel::try_read`], `AsFd`; feature `tokio` |
//! | send messages | [`WriteHalf::send`], [`ReadHalf::recv`] |
//! | send many small things | [`WriteHalf::write_chunk`], [`WriteHalf::set_cork`], [`ReadHalf::read_chunk`] |
//! | pass bytes on | [`ReadHalf::try_write_to`], [`WriteHalf::try_read_from`] |
//!
//! # Guarantees
//!
//! * **The peer is not trusted.** Each shared word is read once and judged against private values;
//!   own cursors are never read back. A lie is a typed [`Error::Peer`] with the numbers, which
//!   every later call returns too. There is no `unsafe` in this crate, and no reference into shared
//!   memory leaves it.
//! * **Counts are true.** A write that put bytes into the ring returns how many, whatever happened
//!   next.
//! * **Death is noticed.** Each side registers its live byte and an event with the kernel, so the
//!   other side sees immediately when it is killed ([`PeerState::Gone`], end of file), without
//!   hypercalls (no privcmd). Each side checks every five seconds whether the peer's whole domain
//!   has ended ([`ServerBuilder::watch_peer_domain`]).
//! * **Sessions have edges.** A server serves one client after another on the same memory
//!   ([`Channel::next_client`]) and sees when one was replaced by the next.
//!
//! | C | here |
//! |---|---|
//! | `libxenvchan_server_init` | [`ServerBuilder::new`], [`ServerBuilder::publish`] |
//! | `libxenvchan_client_init` | [`ClientBuilder::new`], [`ClientBuilder::connect`] |
//! | `libxenvchan_read`, `write` | [`std::io::Read`], [`std::io::Write`], [`Channel::try_read`], [`Channel::try_write`] |
//! | `libxenvchan_wait` | [`Channel::wait`] |
//! | `libxenvchan_fd_for_select` | [`AsFd`](std::os::fd::AsFd) |
//! | `libxenvchan_data_ready`, `buffer_space` | [`Channel::arm_read`], [`Channel::arm_write`] |
//! | `libxenvchan_is_open` | [`Channel::peer`] |

#![forbid(unsafe_code)]

mod cursor;
// Public only to the models.
#[cfg(loom)]
#[doc(hidden)]
pub mod delivery;
#[cfg(not(loom))]
mod delivery;
mod error;
#[cfg_attr(
    not(feature = "unstable-ring"),
    allow(
        dead_code,
        unreachable_pub,
        reason = "opened by the feature `unstable-ring`"
    )
)]
mod layout;
#[cfg_attr(
    not(feature = "unstable-ring"),
    allow(
        dead_code,
        unreachable_pub,
        reason = "opened by the feature `unstable-ring`"
    )
)]
mod mem;
// Public only to this workspace's tests, models, fuzz targets and benchmarks.
#[cfg(any(loom, feature = "unstable-ring"))]
#[doc(hidden)]
pub mod ring;
#[cfg(not(any(loom, feature = "unstable-ring")))]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "opened by the feature `unstable-ring`"
)]
mod ring;
mod sync;
mod value;

pub use error::{Error, Result, Violation};
pub use layout::RingSize;
pub use value::NodeValue;
#[cfg(any(loom, feature = "unstable-ring"))]
#[doc(hidden)]
pub use {
    layout::{Geometry, Place},
    mem::Memory,
};

// Everything that needs a hypervisor; loom models the ring alone.
#[cfg(not(loom))]
mod backoff;
#[cfg(not(loom))]
mod channel;
#[cfg(not(loom))]
mod client;
#[cfg(not(loom))]
mod connecting;
#[cfg(not(loom))]
mod domain_watch;
#[cfg(not(loom))]
mod doorbell;
#[cfg(not(loom))]
mod handshake;
#[cfg(not(loom))]
mod listener;
#[cfg(not(loom))]
mod reader;
#[cfg(not(loom))]
mod reconnecting;
#[cfg(not(loom))]
mod server;
#[cfg(not(loom))]
mod session;
#[cfg(not(loom))]
mod shared;
#[cfg(not(loom))]
mod spin;
#[cfg(not(loom))]
mod splice;
#[cfg(all(test, not(loom)))]
mod test_window;
#[cfg(all(feature = "tokio", not(loom)))]
pub mod tokio;
#[cfg(not(loom))]
mod writer;

#[cfg(not(loom))]
pub use crate::{
    backoff::Backoff,
    channel::Channel,
    client::ClientBuilder,
    connecting::Connecting,
    handshake::service_path,
    listener::{Listener, ListenerBuilder},
    reader::{ReadChunk, ReadHalf},
    reconnecting::Reconnecting,
    server::ServerBuilder,
    session::PeerState,
    writer::{WriteChunk, WriteHalf},
};

// The programs in these pages are compiled and run with the examples.
#[cfg(all(doctest, not(loom)))]
#[doc = include_str!("../../docs/xen-vchan.md")]
struct Page;
#[cfg(all(doctest, not(loom)))]
#[doc = include_str!("../../docs/library.md")]
struct LibraryGuide;
