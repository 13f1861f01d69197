//! A guest's screen, keyboard and mouse as a VNC client and a VNC server have them, without I/O.
//!
//! In the stubdomain, with the client:
//!
//! ```text
//!  QEMU's VNC server ──bytes──▶ rfb: Client ──rows of pixels──▶ placement ──▶ a frame buffer
//!                   ◀─messages─             ◀──keys, pointer── input ◀──── /dev/input/event*
//! ```
//!
//! The server is QEMU, which a guest may have taken over: every size, rectangle and length it names
//! is checked before it is used. Memory does not depend on what it sends: [`rfb::Client`] keeps one
//! header of at most 24 bytes, and pixels are passed on as they arrive.
//!
//! In dom0, [`server`]: viewers on the network see a frame buffer of a domain. [`framebuffer`] and
//! [`keyboard`] are a backend's ends of a PV frame buffer and a PV keyboard, over pages of
//! [`xen_gnttab::Region`].

mod auth;
mod event_ring;
pub mod framebuffer;
pub mod input;
pub mod keyboard;
pub mod keys;
pub mod keysyms;
pub mod placement;
pub mod rfb;
pub mod server;
#[cfg(test)]
#[path = "../tests/shared/memory.rs"]
mod shared;

/// Width and height, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Size {
    /// Pixels in a row.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Bytes of a pixel: blue, green, red, and one that is not shown.
pub const PIXEL: usize = 4;
