//! The ready byte: a console's reader sends it to a host that asks for it.
//!
//! ```text
//!   host      backend/console/S/N/ready-byte = "1"          before it serves the console
//!   domain    opens the console, sets it raw, reads the node, writes one byte 06 (ACK)
//!   host      takes the byte out of the ring and begins to send
//! ```
//!
//! Neither end needs the other to support it. A domain that does not find the node writes nothing:
//! bytes that nobody asked for would be taken for something else. A host sends after [`PATIENCE`]
//! to a domain that has not spoken.

use std::time::{Duration, Instant};

use xen_store::Store;

/// The node's name, in the backend's folder.
const NODE: &str = "ready-byte";
/// The byte: ASCII's ACK.
pub const BYTE: u8 = 0x06;
/// How long a host waits for it once the console is connected.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// For the host: asks for the byte, if the backend's folder `path` is still there.
///
/// # Errors
/// The store's.
pub fn ask(store: &Store, path: &str) -> xen_store::Result<()> {
    store.with_transaction(|transaction| {
        if transaction.exists(path)? {
            transaction.write(&format!("{path}/{NODE}"), "1")?;
        }
        Ok(())
    })
}

/// For the domain: returns whether the byte is asked for on this console. A node that cannot be
/// read asks for nothing.
pub fn is_asked(store: &Store, number: u32) -> bool {
    let backend = store.read_str(&format!("device/console/{number}/backend"));
    let asked = backend.and_then(|path| store.read_str(&format!("{path}/{NODE}")));
    asked.is_ok_and(|word| word == "1")
}

/// Output that a host holds back after it has asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// Not connected.
    #[default]
    Disconnected,
    /// Connected, and nothing was received. Ready without input at this time.
    Until(Instant),
    /// To be sent.
    Ready,
}

impl Readiness {
    /// Handles that the console is connected, or not. Returns whether it became ready because
    /// nothing was received.
    pub fn update(&mut self, connected: bool, now: Instant) -> bool {
        match *self {
            Self::Disconnected if connected => *self = Self::Until(now + PATIENCE),
            Self::Until(at) if at <= now => {
                *self = Self::Ready;
                return true;
            }
            _ => {}
        }
        false
    }

    /// The domain wrote these.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        if bytes.contains(&BYTE) {
            *self = Self::Ready;
        }
    }

    /// Returns whether bytes may be sent.
    pub fn is_ready(self) -> bool {
        self == Self::Ready
    }

    /// Returns when to call [`Readiness::update`] again.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Self::Until(at) => Some(at),
            Self::Disconnected | Self::Ready => None,
        }
    }
}
