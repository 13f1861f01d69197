//! Calls that a rule makes at an end, and their results: plain data, so that an end may be in
//! another domain.
//!
//! Objects (handles, ports, pages, channels) stay where they were made and are named by number.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of an object at its end.
pub(crate) type Id = u64;

/// One call. Times are in microseconds from its arrival.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    // Event channels.
    Channels,
    BindUnbound {
        channels: Id,
        remote: u16,
    },
    BindInterdomain {
        channels: Id,
        remote: u16,
        port: u32,
    },
    BindVirq {
        channels: Id,
        virq: u32,
    },
    Pending {
        channels: Id,
    },
    PendingBatch {
        channels: Id,
        most: usize,
    },
    Wait {
        channels: Id,
        micros: u64,
    },
    /// Whether the descriptor polls readable.
    Readable {
        channels: Id,
        millis: u16,
    },
    Unmask {
        channels: Id,
        port: u32,
    },
    Reset {
        channels: Id,
    },
    Restrict {
        channels: Id,
        to: u16,
    },
    Notify {
        port: Id,
    },
    // Grants. A view is shared or mapped pages, or a slice of them.
    Share {
        to: u16,
        pages: usize,
        write: bool,
    },
    Map {
        from: u16,
        refs: Vec<u32>,
        write: bool,
    },
    OnUnmap {
        pages: Id,
        clear_byte: Option<usize>,
        event: Option<u32>,
    },
    Slice {
        view: Id,
        offset: usize,
        len: usize,
    },
    CopyIn {
        view: Id,
        offset: usize,
        bytes: Vec<u8>,
    },
    CopyOut {
        view: Id,
        offset: usize,
        len: usize,
    },
    Fill {
        view: Id,
        offset: usize,
        len: usize,
        byte: u8,
    },
    // The store, as a client sees it.
    StoreRead {
        path: String,
    },
    StorePerms {
        path: String,
    },
    // The store, byte by byte.
    Wire,
    WireSend {
        wire: Id,
        bytes: Vec<u8>,
    },
    /// No bytes: the other side closed it.
    WireRecv {
        wire: Id,
        millis: u16,
    },
    // vchan.
    Listen {
        peer: u16,
        path: String,
        left: usize,
        right: usize,
    },
    Connect {
        server: u16,
        path: String,
        micros: u64,
    },
    WaitConnected {
        vchan: Id,
        micros: u64,
    },
    NextClient {
        vchan: Id,
    },
    /// Waiting, Connected or Gone.
    Peer {
        vchan: Id,
    },
    /// Waits for an event and takes it.
    WaitEvent {
        vchan: Id,
        micros: u64,
    },
    Read {
        vchan: Id,
        most: usize,
        micros: u64,
    },
    Write {
        vchan: Id,
        bytes: Vec<u8>,
        micros: u64,
    },
    TryRead {
        vchan: Id,
        most: usize,
    },
    /// The end of an object.
    Drop {
        id: Id,
    },
}

/// The result of a call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Made { id: Id },
    Port { id: Id, port: u32 },
    Found { port: Option<u32> },
    Several { ports: Vec<u32> },
    Shared { id: Id, refs: Vec<u32>, len: usize },
    Mapped { id: Id, len: usize },
    Bytes { bytes: Vec<u8> },
    Count { count: usize },
    Text { text: String },
    Is { so: bool },
}

/// Why a call was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// The system's error number, if it was the system.
    pub errno: Option<i32>,
    /// The variant of the library's error, as its `Debug` begins.
    pub kind: String,
    /// The message.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    pub(crate) fn new(errno: Option<i32>, error: &(impl fmt::Debug + fmt::Display)) -> Self {
        let debug = format!("{error:?}");
        let word = |c: char| c.is_alphanumeric() || c == '(' || c == '_';
        let kind = debug.split(|c| !word(c)).next().unwrap_or_default();
        Self {
            errno,
            kind: kind.to_owned(),
            text: error.to_string(),
        }
    }

    pub(crate) fn other(text: impl fmt::Display) -> Self {
        Self {
            errno: None,
            kind: "Other".to_owned(),
            text: text.to_string(),
        }
    }
}

impl From<xen_sys::Error> for Refusal {
    fn from(e: xen_sys::Error) -> Self {
        Self::new(e.errno(), &e)
    }
}

impl From<xen_gnttab::RegionError> for Refusal {
    fn from(e: xen_gnttab::RegionError) -> Self {
        Self::new(None, &e)
    }
}

impl From<xen_store::Error> for Refusal {
    fn from(e: xen_store::Error) -> Self {
        Self::new(None, &e)
    }
}

impl From<xen_vchan::Error> for Refusal {
    fn from(e: xen_vchan::Error) -> Self {
        Self::new(None, &e)
    }
}

impl From<std::io::Error> for Refusal {
    fn from(e: std::io::Error) -> Self {
        Self::new(e.raw_os_error(), &e)
    }
}
