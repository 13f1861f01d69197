//! The ready byte: how a console's reader says that it reads, to a host that asks for it.
//!
//! ```text
//!   host      backend/console/S/N/ready-byte = "1"          before it serves the console
//!   domain    opens the console, sets it raw, reads the node, writes one byte 06 (ACK)
//!   host      takes the byte out of the ring and begins to send
//! ```
//!
//! Neither end needs the other to know of it. A domain that does not find the node writes nothing:
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
pub enum Gate {
    /// Not connected.
    #[default]
    Shut,
    /// Connected, and nothing said. Opens by itself at this time.
    Until(Instant),
    /// To be sent.
    Open,
}

impl Gate {
    /// The console is connected, or not. Says whether the gate opened because nobody spoke.
    pub fn turn(&mut self, connected: bool, now: Instant) -> bool {
        match *self {
            Self::Shut if connected => *self = Self::Until(now + PATIENCE),
            Self::Until(at) if at <= now => {
                *self = Self::Open;
                return true;
            }
            _ => {}
        }
        false
    }

    /// The domain wrote these.
    pub fn heard(&mut self, bytes: &[u8]) {
        if bytes.contains(&BYTE) {
            *self = Self::Open;
        }
    }

    /// Whether bytes may be sent.
    pub fn is_open(self) -> bool {
        self == Self::Open
    }

    /// When to call [`Gate::turn`] again.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Self::Until(at) => Some(at),
            Self::Shut | Self::Open => None,
        }
    }
}
