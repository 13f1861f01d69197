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
//! sent to it, at most 768 KiB, most of it for zlib: requests for updates are a state and no queue,
//! damage is a list of at most [`DAMAGE_MAX`] rectangles, and [`Viewer::handle_bytes`] leaves bytes
//! to its caller once [`INPUTS_MAX`] events wait. The caller holds one [`Picture`] for all viewers
//! and one piece of at most [`PIECE_MAX`] bytes for each.
//!
//! A viewer is one of several. So the shared flag, by which a viewer asks to be the only one, is
//! ignored: it would let one viewer disconnect the others. Text for the clipboard is dropped.

mod damage;
mod encode;
mod picture;
mod pixels;
mod viewer;

pub use damage::DAMAGE_MAX;
pub use picture::{Picture, SIDE_MAX};
pub use viewer::{HANDSHAKE, INPUTS_MAX, Input, Options, PIECE_MAX, TEXT_MAX, Viewer, ViewerError};

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

impl Rect {
    /// The rectangle from a corner to the other one, which is behind the last pixel; nothing where
    /// it has no pixel.
    fn between((x, y): (u16, u16), (right, end): (u16, u16)) -> Option<Self> {
        let (width, height) = (right.checked_sub(x)?, end.checked_sub(y)?);
        let rect = Self {
            x,
            y,
            width,
            height,
        };
        (width > 0 && height > 0).then_some(rect)
    }

    /// The column after the last.
    fn right(&self) -> u16 {
        self.x.saturating_add(self.width)
    }

    /// The row after the last.
    fn end(&self) -> u16 {
        self.y.saturating_add(self.height)
    }

    fn area(&self) -> u64 {
        u64::from(self.right() - self.x) * u64::from(self.end() - self.y)
    }

    fn contains(&self, other: &Self) -> bool {
        self.intersection(other) == Self::between((other.x, other.y), (other.right(), other.end()))
    }

    fn intersection(&self, other: &Self) -> Option<Self> {
        Self::between(
            (self.x.max(other.x), self.y.max(other.y)),
            (self.right().min(other.right()), self.end().min(other.end())),
        )
    }

    /// The parts that are not in `part`, which is within: above, below, left and right of it.
    fn without(&self, part: &Self) -> [Option<Self>; 4] {
        let (left, right, end) = (self.x, self.right(), self.end());
        [
            Self::between((left, self.y), (right, part.y)),
            Self::between((left, part.end()), (right, end)),
            Self::between((left, part.y), (part.x, part.end())),
            Self::between((part.right(), part.y), (right, part.end())),
        ]
    }

    /// The smallest rectangle with both in it.
    fn union(&self, other: &Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        Self {
            x,
            y,
            width: self.right().max(other.right()) - x,
            height: self.end().max(other.end()) - y,
        }
    }
}

#[cfg(test)]
mod tests;
