//! One viewer's connection.

use std::time::{Duration, Instant};

use super::{Picture, Rect};

/// The time in which a viewer has to authenticate: a person may type the password meanwhile.
pub const HANDSHAKE: Duration = Duration::from_secs(60);
/// Events that wait for [`Viewer::poll_input`], at most, beside those of
/// [`Viewer::release_keys`].
pub const INPUTS_MAX: usize = 64;
/// Bytes that one call of [`Viewer::poll_output`] appends, at most.
pub const PIECE_MAX: usize = 68 << 10;

/// The server's side of a connection, as it is configured.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The name that viewers show in their title. Its first 200 bytes count.
    pub name: String,
    /// VNC authentication with this password, filled up with zeroes; `None` for none at all.
    pub password: Option<[u8; 8]>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let password = self.password.map(|_| "…");
        f.debug_struct("Options")
            .field("name", &self.name)
            .field("password", &password)
            .finish()
    }
}

/// A viewer's key or pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// A key is pressed, once or once more, or released.
    Key {
        /// Linux's number of the key (`KEY_*`).
        keycode: u16,
        /// It is pressed.
        pressed: bool,
    },
    /// The pointer is here, with these buttons pressed.
    Pointer {
        /// The column, within the picture.
        x: u16,
        /// The row, within the picture.
        y: u16,
        /// 1 left, 2 middle, 4 right.
        buttons: u8,
    },
    /// The wheel was turned.
    Wheel {
        /// Steps, positive away from the person ("up").
        steps: i32,
    },
}

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewerError {
    /// The viewer speaks another protocol.
    #[error("the viewer's version is {0:?}, not one of RFB 003")]
    Version(String),
    /// The viewer chose a type of security that was not offered.
    #[error("the viewer chose security type {0}, which was not offered")]
    Security(u8),
    /// The viewer does not know the password.
    #[error("the viewer's password is wrong")]
    Password,
    /// The viewer did not authenticate within [`HANDSHAKE`].
    #[error("the viewer did not authenticate within {} s", HANDSHAKE.as_secs())]
    TimedOut,
    /// A format of pixels that cannot be.
    #[error("a format of {bits} bits a pixel that is not supported")]
    Format {
        /// Bits of a pixel.
        bits: u8,
    },
    /// A text for the clipboard beyond the limit.
    #[error("a text of {0} bytes")]
    Text(u32),
    /// A message of a type that a viewer does not send.
    #[error("message {0} is none of a viewer's")]
    Message(u8),
}

/// One viewer's connection, without I/O.
///
/// ```text
/// read:   bytes ─▶ handle_bytes ─▶ poll_input until None ─▶ the rest of the bytes, if any
/// write:  poll_output until false, each time after the previous piece was written
/// ```
///
/// An event of either kind may give the other one something to do: call
/// [`poll_output`](Self::poll_output) after [`handle_bytes`](Self::handle_bytes) and
/// [`handle_damage`](Self::handle_damage), and offer the rest of the bytes again after it.
#[derive(Debug)]
pub struct Viewer {
    options: Options,
    deadline: Option<Instant>,
}

impl Viewer {
    /// Begins a connection. `challenge` is random and used once; without a password it is not used.
    pub fn new(options: &Options, challenge: [u8; 16], now: Instant) -> Self {
        let _ = challenge;
        Self {
            options: options.clone(),
            deadline: now.checked_add(HANDSHAKE),
        }
    }

    /// Takes bytes off the viewer, cut anywhere, and returns how many.
    ///
    /// Fewer than all are taken when [`INPUTS_MAX`] events wait, or answers to several fences. The
    /// caller keeps the rest, reads no more, and calls again once
    /// [`poll_input`](Self::poll_input) or [`poll_output`](Self::poll_output) took something.
    ///
    /// # Errors
    /// The viewer violates the protocol or a limit, or does not authenticate. The same error is
    /// returned by all later calls. [`poll_output`](Self::poll_output) still gives the reason for a
    /// refusal, if the protocol has one; then the connection is closed.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<usize, ViewerError> {
        Ok(bytes.len())
    }

    /// Returns the next key or pointer event.
    pub fn poll_input(&mut self) -> Option<Input> {
        None
    }

    /// Notes that a part of the picture changed.
    pub fn handle_damage(&mut self, rect: Rect) {
        let _ = rect;
    }

    /// Notes that the picture has another size, and so other pixels everywhere.
    ///
    /// [`poll_output`](Self::poll_output) sees another size by itself; this call is for a picture
    /// that was replaced by one of the same size.
    pub fn handle_resize(&mut self, width: u16, height: u16) {
        let _ = (width, height);
    }

    /// Appends the next piece of at most [`PIECE_MAX`] bytes to `out` and returns `true`, or
    /// returns `false` when there is nothing to send.
    ///
    /// An update is several pieces. Each is encoded when it is asked for, from the picture as it is
    /// then, so a caller that writes one piece before it asks for the next holds one piece of memory.
    pub fn poll_output(&mut self, picture: &Picture, out: &mut Vec<u8>) -> bool {
        let _ = (picture, out);
        false
    }

    /// Returns whether the handshake is over, with the password where there is one.
    pub fn is_authenticated(&self) -> bool {
        false
    }

    /// Releases all keys and buttons that the viewer holds: [`poll_input`](Self::poll_input)
    /// returns them after what waits already. For a viewer that goes.
    pub fn release_keys(&mut self) {}

    /// Returns the end of the time for the handshake; `None` once it is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Handles the passing of time.
    ///
    /// # Errors
    /// [`ViewerError::TimedOut`]: the handshake is not over within [`HANDSHAKE`]. The connection is
    /// closed.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), ViewerError> {
        match self.deadline {
            Some(deadline) if now >= deadline => Err(ViewerError::TimedOut),
            _ => Ok(()),
        }
    }

    /// Returns the name that viewers show.
    pub fn name(&self) -> &str {
        &self.options.name
    }
}
