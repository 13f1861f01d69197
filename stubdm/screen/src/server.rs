//! The server's half of the RFB protocol (RFC 6143), which VNC viewers speak, without I/O.
//!
//! ```text
//!  a frame buffer ──rows──▶ Picture ─┐                 ┌──bytes──▶ one viewer
//!                   └─Rect (damage)──▶ Viewer ◀─bytes──┤
//!  a keyboard and a pointer ◀──Input─┘
//! ```
//!
//! | part | supported |
//! |---|---|
//! | versions | 3.3, 3.7 and 3.8 |
//! | security | none; VNC authentication where [`Options`] has a password |
//! | pixels | 8, 16 and 32 bits in either byte order; 8 bits through a colour map |
//! | encodings | Raw, Hextile, ZRLE |
//! | screen size | DesktopSize, ExtendedDesktopSize; a viewer cannot change it |
//! | input | keys by scancode (QEMU's message) or keysym, pointer, wheel |
//! | flow | Fence, ContinuousUpdates |
//!
//! The viewer is on the network and is not trusted. One [`Viewer`] costs bounded memory whatever is
//! sent to it: requests for updates are a state and no queue, damage is a list of at most
//! [`DAMAGE_MAX`] rectangles, and [`Viewer::handle_bytes`] leaves bytes to its caller once
//! [`INPUTS_MAX`] events wait.
//!
//! A viewer is one of several. So the wish to be the only one (the shared flag) is ignored: it would
//! let one viewer disconnect the others. Text for the clipboard is dropped.

mod picture;
mod viewer;

pub use picture::{Picture, SIDE_MAX};
pub use viewer::{HANDSHAKE, INPUTS_MAX, Input, Options, PIECE_MAX, Viewer, ViewerError};

/// Rectangles in the list of what a viewer has not seen yet, at most.
pub const DAMAGE_MAX: usize = 16;

/// A part of a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rect {
    /// Its left edge.
    pub x: u16,
    /// Its upper edge.
    pub y: u16,
    /// Pixels in a row.
    pub width: u16,
    /// Rows.
    pub height: u16,
}
