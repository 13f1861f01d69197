//! The monitor of a guest: its memory accesses, registers and instructions as events.
//!
//! Xen lets one program watch a guest. Xen writes *events* into a ring of one page, and usually
//! pauses the virtual CPU until the program has written a *response*.
//!
//! ```text
//!   Privcmd ── enable_monitor(guest) ──> Ring, and a port of the guest to bind to
//!      │                                  │
//!      │ enable_event, set_mem_access     ├── poll_event() ──────────> Event
//!      v                                  └── handle_response(&...) <── Response
//!     Xen <─────────── notification ──────────┘
//! ```
//!
//! [`Ring`] has no I/O. The typed calls are those of [`Privcmd`](crate::privcmd::Privcmd).
//! `xen_evtchn::monitor::Monitor` combines all of it with the event channel, and cleans up.

mod calls;
mod event;
mod page;
mod ring;
#[cfg(test)]
mod tests;

pub use self::calls::{MonitorEvent, MonitorEvents};
pub use self::event::{
    AccessFlags, AccessViolation, ControlRegister, DebugEvent, Event, EventKind, Registers,
    RegsArm, RegsX86, Response,
};
pub use self::ring::Ring;
