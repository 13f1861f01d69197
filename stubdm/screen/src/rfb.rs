//! The client's half of the RFB protocol 3.8 (RFC 6143), which VNC servers speak.
//!
//! | part | supported |
//! |---|---|
//! | security | none; VNC authentication, for a client with a password |
//! | pixels | 32 bits, little-endian, red, green and blue at 16, 8 and 0: QEMU's own format |
//! | encodings | Raw |
//! | pseudo-encodings | DesktopSize; QEMU's extended key events, which carry scancodes |
//!
//! The client answers each update with one request for the next. An incremental one costs nothing
//! until the picture changes: the server keeps it.

use crate::auth::{CHALLENGE, respond};
use crate::{PIXEL, Size};

/// The only version that is spoken.
const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// The security type without authentication.
const NONE: u8 = 1;
/// The security type with a password, "VNC authentication".
const VNC: u8 = 2;

/// The encoding of uncompressed pixels.
const RAW: i32 = 0;
/// A rectangle of this encoding is the screen's new size.
const DESKTOP_SIZE: i32 = -223;
/// A rectangle of this encoding announces that the server takes scancodes.
const EXTENDED_KEYS: i32 = -258;

/// Bytes of messages that wait to be sent, at most; later ones are dropped.
const OUT_MAX: usize = 16 << 10;
/// Bytes of waiting messages from which on a connection is full: events that were read before that
/// still find room up to [`OUT_MAX`].
const OUT_FULL: usize = 8 << 10;
/// Bytes of the server's name, and of a text it puts on the clipboard, at most.
const TEXT_MAX: u32 = 1 << 20;
/// Bytes of a reason for refusal that are kept.
const REASON_MAX: usize = 200;
/// The longest header: that of `ServerInit`.
const HEADER_MAX: usize = 24;

/// Why a connection failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server uses another version.
    #[error("the server's version is {0:?}, not RFB 003.008")]
    Version(String),
    /// The server refuses the connection, with its reason.
    #[error("the server refuses the connection: {0}")]
    Refused(String),
    /// The server requires an authentication that is not supported.
    #[error("the server offers no connection without authentication")]
    Security,
    /// The server requires a password, and the client has none.
    #[error("the server wants a password")]
    Password,
    /// A screen without pixels, or one that is too large.
    #[error("a screen of {}x{} pixels", .0.width, .0.height)]
    Size(Size),
    /// A rectangle that leaves the screen.
    #[error(
        "a rectangle of {}x{} at {x},{y} on a screen of {}x{}",
        .size.width, .size.height, .screen.width, .screen.height
    )]
    Rectangle {
        /// Its left edge.
        x: u16,
        /// Its upper edge.
        y: u16,
        /// Its size.
        size: Size,
        /// The screen's size.
        screen: Size,
    },
    /// An encoding that was not asked for.
    #[error("encoding {0} was not asked for")]
    Encoding(i32),
    /// A message of a type that a server does not send.
    #[error("message {0} is none of a server's")]
    Message(u8),
    /// A name or text beyond the limit.
    #[error("a text of {0} bytes")]
    Text(u32),
}

/// The meaning of the server's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The screen has this size from now on. All of its pixels follow.
    Size(Size),
    /// Bytes of one row.
    Row {
        /// The row, from the top; always within the screen.
        y: u16,
        /// The first byte's place in the row, counted in bytes. The last is within the row too.
        at: usize,
        /// [`PIXEL`] bytes a pixel. A pixel may be divided between two events.
        bytes: &'a [u8],
    },
    /// The pixels so far are a whole picture.
    Updated,
}

/// A rectangle whose pixels are being received.
#[derive(Clone, Copy, Debug)]
struct Raw {
    x: u16,
    width: u16,
    /// The current row, and the one behind the last.
    y: u16,
    end: u16,
    /// Bytes of the current row that were received.
    at: usize,
}

#[derive(Clone, Debug)]
enum State {
    Version,
    SecurityCount,
    /// The number of types still to be received, and the presence of [`NONE`] and [`VNC`] so far.
    SecurityTypes(u8, [bool; 2]),
    Challenge,
    SecurityResult,
    ReasonLength,
    /// The bytes still to be received, and those that are kept.
    Reason(u32, Vec<u8>),
    Init,
    Name(u32),
    Message,
    UpdateHeader,
    Rectangle,
    Pixels(Raw),
    /// All rectangles of an update were received.
    Updated,
    CutHeader,
    Cut(u32),
    Broken(Error),
}

impl State {
    /// Bytes of the header that this state waits for; zero if it takes bytes as they arrive.
    fn header(&self) -> usize {
        match self {
            Self::Version => VERSION.len(),
            Self::SecurityCount | Self::Message => 1,
            Self::SecurityResult | Self::ReasonLength => 4,
            Self::Challenge => CHALLENGE,
            Self::Init => HEADER_MAX,
            Self::UpdateHeader => 3,
            Self::Rectangle => 12,
            Self::CutHeader => 7,
            Self::SecurityTypes(..)
            | Self::Reason(..)
            | Self::Name(_)
            | Self::Pixels(_)
            | Self::Updated
            | Self::Cut(_)
            | Self::Broken(_) => 0,
        }
    }
}

/// The client's end of a connection.
#[derive(Clone, Debug)]
pub struct Client {
    limit: Size,
    password: Option<Vec<u8>>,
    state: State,
    header: [u8; HEADER_MAX],
    have: usize,
    screen: Size,
    /// The rectangles of this update that are still to be received.
    rectangles: u16,
    /// This update has pixels or a size, so the request is answered.
    answered: bool,
    resized: bool,
    scancodes: bool,
    /// A request that waits for room, and whether it is incremental.
    postponed: Option<bool>,
    out: Vec<u8>,
}

impl Client {
    /// Begins a connection that takes screens up to `limit`.
    pub fn new(limit: Size) -> Self {
        Self {
            limit,
            password: None,
            state: State::Version,
            header: [0; HEADER_MAX],
            have: 0,
            screen: Size::default(),
            rectangles: 0,
            answered: false,
            resized: false,
            scancodes: false,
            postponed: None,
            out: Vec::new(),
        }
    }

    /// Uses this password where the server requires one. Only its first eight bytes are used.
    #[must_use]
    pub fn with_password(mut self, password: impl Into<Vec<u8>>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The screen's size; nothing until the server has named it.
    pub fn screen(&self) -> Option<Size> {
        (self.screen != Size::default()).then_some(self.screen)
    }

    /// Returns whether the server takes scancodes. Until then [`key`](Self::key) sends nothing.
    pub fn takes_scancodes(&self) -> bool {
        self.scancodes
    }

    /// The bytes to send.
    pub fn poll_transmit(&self) -> &[u8] {
        &self.out
    }

    /// Removes the first `count` bytes of [`poll_transmit`](Self::poll_transmit), which were sent.
    pub fn handle_sent(&mut self, count: usize) {
        self.out.drain(..count.min(self.out.len()));
        if let Some(incremental) = self.postponed.take() {
            self.request(incremental);
        }
    }

    /// Returns whether 8 KiB or more wait to be sent. The caller reads no more input events then;
    /// those that it has read already fit into the other 8 KiB.
    pub fn is_full(&self) -> bool {
        self.out.len() >= OUT_FULL
    }

    /// Returns whether 16 KiB or more wait to be sent: further messages are dropped.
    fn refuses(&self) -> bool {
        self.out.len() >= OUT_MAX
    }

    /// Presses or releases the key with this scancode: set 1, `0x80` added for the keys with the
    /// prefix `E0`. Returns whether the message will be sent.
    pub fn key(&mut self, down: bool, scancode: u8) -> bool {
        if !self.scancodes || self.refuses() {
            return false;
        }
        // Type and subtype, then 16 bits, then 32 bits of a symbol, which is left to the server.
        self.out.extend([255, 0, 0, u8::from(down), 0, 0, 0, 0]);
        self.out.extend(u32::from(scancode).to_be_bytes());
        true
    }

    /// Moves the pointer, with these buttons pressed: 1 left, 2 middle, 4 right, 8 wheel up, 16
    /// wheel down. A place beyond the screen is its edge. Returns whether the message will be sent.
    pub fn pointer(&mut self, buttons: u8, x: u16, y: u16) -> bool {
        let Some(screen) = self.screen().filter(|_| !self.refuses()) else {
            return false;
        };
        self.out.extend([5, buttons]);
        self.out.extend(x.min(screen.width - 1).to_be_bytes());
        self.out.extend(y.min(screen.height - 1).to_be_bytes());
        true
    }

    /// Takes bytes off the front of `bytes` up to the next event; returns `None` when all are taken.
    ///
    /// # Errors
    /// The server violates the protocol or a limit, or refuses the connection. The same error
    /// is returned by all later calls.
    pub fn poll_event<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        loop {
            let error = match self.step(bytes) {
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Ok(Step::Starved) => return Ok(None),
                Ok(Step::Next) => continue,
                Err(error) => error,
            };
            self.state = State::Broken(error.clone());
            return Err(error);
        }
    }

    fn step<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Step<'a>, Error> {
        if let State::Broken(error) = &self.state {
            return Err(error.clone());
        }
        let want = self.state.header();
        if want > 0 {
            let taken = take(bytes, want - self.have);
            if let Some(room) = self.header.get_mut(self.have..self.have + taken.len()) {
                room.copy_from_slice(taken);
            }
            self.have += taken.len();
            if self.have < want {
                return Ok(Step::Starved);
            }
            self.have = 0;
            return self.take_header();
        }
        self.take_body(bytes)
    }

    fn u16(&self, at: usize) -> u16 {
        let bytes = self.header.get(at..at + 2);
        bytes.map_or(0, |b| b.iter().fold(0, |n, b| n << 8 | u16::from(*b)))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) << 16 | u32::from(self.u16(at + 2))
    }

    /// Handles a header that is whole.
    fn take_header<'a>(&mut self) -> Result<Step<'a>, Error> {
        let [first, ..] = self.header;
        self.state = match &self.state {
            State::Version => {
                let version = self.header.get(..VERSION.len()).unwrap_or_default();
                if version != VERSION {
                    let version = String::from_utf8_lossy(version).into_owned();
                    return Err(Error::Version(version));
                }
                self.out.extend(VERSION);
                State::SecurityCount
            }
            State::SecurityCount if first == 0 => State::ReasonLength,
            State::SecurityCount => State::SecurityTypes(first, [false; 2]),
            State::Challenge => {
                let password = self.password.as_deref().unwrap_or_default();
                if let Some(challenge) = self.header.first_chunk() {
                    self.out.extend(respond(password, challenge));
                }
                State::SecurityResult
            }
            State::SecurityResult if self.u32(0) == 0 => {
                // Other clients may stay.
                self.out.push(1);
                State::Init
            }
            State::SecurityResult => State::ReasonLength,
            State::ReasonLength => State::Reason(self.u32(0), Vec::new()),
            State::Init => {
                let size = Size {
                    width: self.u16(0),
                    height: self.u16(2),
                };
                let name = self.u32(20);
                if name > TEXT_MAX {
                    return Err(Error::Text(name));
                }
                self.resize(size)?;
                self.greet();
                self.state = State::Name(name);
                return Ok(Step::Event(Event::Size(size)));
            }
            State::Message => match first {
                0 => State::UpdateHeader,
                // A bell.
                2 => State::Message,
                3 => State::CutHeader,
                // 1, a colour map, belongs to other pixels than those asked for.
                other => return Err(Error::Message(other)),
            },
            State::UpdateHeader => {
                self.rectangles = self.u16(1);
                // None at all is an answer.
                self.answered = self.rectangles == 0;
                self.after_rectangle()
            }
            State::Rectangle => return self.take_rectangle(),
            State::CutHeader => {
                let length = self.u32(3);
                if length > TEXT_MAX {
                    return Err(Error::Text(length));
                }
                State::Cut(length)
            }
            other => other.clone(),
        };
        Ok(Step::Next)
    }

    fn take_rectangle<'a>(&mut self) -> Result<Step<'a>, Error> {
        let (x, y) = (self.u16(0), self.u16(2));
        let size = Size {
            width: self.u16(4),
            height: self.u16(6),
        };
        self.rectangles = self.rectangles.saturating_sub(1);
        match i32::from_be_bytes(self.u32(8).to_be_bytes()) {
            RAW => {
                let right = x.checked_add(size.width);
                let end = y.checked_add(size.height);
                let inside = right.is_some_and(|right| right <= self.screen.width);
                let Some(end) = end.filter(|end| inside && *end <= self.screen.height) else {
                    let screen = self.screen;
                    return Err(Error::Rectangle { x, y, size, screen });
                };
                self.answered = true;
                self.state = State::Pixels(Raw {
                    x,
                    width: size.width,
                    y,
                    end,
                    at: 0,
                });
                if size.width == 0 || size.height == 0 {
                    self.state = self.after_rectangle();
                }
                Ok(Step::Next)
            }
            DESKTOP_SIZE => {
                self.resize(size)?;
                (self.answered, self.resized) = (true, true);
                self.state = self.after_rectangle();
                Ok(Step::Event(Event::Size(size)))
            }
            EXTENDED_KEYS => {
                self.scancodes = true;
                self.state = self.after_rectangle();
                Ok(Step::Next)
            }
            other => Err(Error::Encoding(other)),
        }
    }

    /// Handles the bytes between headers, as they arrive.
    fn take_body<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Step<'a>, Error> {
        match &mut self.state {
            State::SecurityTypes(left, found) => {
                let types = take(bytes, usize::from(*left));
                found[0] |= types.contains(&NONE);
                found[1] |= types.contains(&VNC);
                *left -= u8::try_from(types.len()).unwrap_or(*left);
                if *left > 0 {
                    return Ok(Step::Starved);
                }
                let (chosen, next) = match (*found, &self.password) {
                    ([_, true], Some(_)) => (VNC, State::Challenge),
                    ([true, _], _) => (NONE, State::SecurityResult),
                    ([false, true], None) => return Err(Error::Password),
                    ([false, false], _) => return Err(Error::Security),
                };
                self.out.push(chosen);
                self.state = next;
                Ok(Step::Next)
            }
            State::Reason(left, kept) => {
                let text = take(bytes, usize::try_from(*left).unwrap_or(usize::MAX));
                let room = REASON_MAX - kept.len();
                kept.extend(text.iter().take(room));
                *left -= u32::try_from(text.len()).unwrap_or(*left);
                if *left > 0 && kept.len() < REASON_MAX {
                    return Ok(Step::Starved);
                }
                Err(Error::Refused(String::from_utf8_lossy(kept).into_owned()))
            }
            State::Name(left) | State::Cut(left) => {
                let text = take(bytes, usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= u32::try_from(text.len()).unwrap_or(*left);
                if *left > 0 {
                    return Ok(Step::Starved);
                }
                self.state = State::Message;
                Ok(Step::Next)
            }
            State::Pixels(raw) => {
                let row = usize::from(raw.width) * PIXEL;
                let pixels = take(bytes, row - raw.at);
                if pixels.is_empty() {
                    return Ok(Step::Starved);
                }
                let event = Event::Row {
                    y: raw.y,
                    at: usize::from(raw.x) * PIXEL + raw.at,
                    bytes: pixels,
                };
                raw.at += pixels.len();
                if raw.at == row {
                    (raw.at, raw.y) = (0, raw.y + 1);
                }
                if raw.y == raw.end {
                    self.state = self.after_rectangle();
                }
                Ok(Step::Event(event))
            }
            State::Updated => {
                self.state = State::Message;
                if !self.answered {
                    return Ok(Step::Next);
                }
                let resized = std::mem::take(&mut self.resized);
                self.request(!resized);
                Ok(Step::Event(Event::Updated))
            }
            _ => Ok(Step::Starved),
        }
    }

    fn after_rectangle(&self) -> State {
        match self.rectangles {
            0 => State::Updated,
            _ => State::Rectangle,
        }
    }

    fn resize(&mut self, size: Size) -> Result<(), Error> {
        let wide = (1..=self.limit.width).contains(&size.width);
        if !wide || !(1..=self.limit.height).contains(&size.height) {
            return Err(Error::Size(size));
        }
        self.screen = size;
        Ok(())
    }

    /// Sends the format of the pixels and the encodings, and requests all pixels.
    fn greet(&mut self) {
        // SetPixelFormat: 32 bits of which 24 count, little-endian, true colours up to 255 each.
        self.out.extend([0, 0, 0, 0]);
        self.out.extend([32, 24, 0, 1, 0, 255, 0, 255, 0, 255]);
        self.out.extend([16, 8, 0, 0, 0, 0]);
        let encodings = [RAW, DESKTOP_SIZE, EXTENDED_KEYS];
        self.out.extend([2, 0, 0, encodings.len() as u8]);
        self.out
            .extend(encodings.iter().flat_map(|e| e.to_be_bytes()));
        self.request(false);
    }

    /// Requests the next update: all pixels, or those that change.
    fn request(&mut self, incremental: bool) {
        if self.is_full() {
            self.postponed = Some(incremental && self.postponed.unwrap_or(true));
            return;
        }
        self.out.extend([3, u8::from(incremental), 0, 0, 0, 0]);
        self.out.extend(self.screen.width.to_be_bytes());
        self.out.extend(self.screen.height.to_be_bytes());
    }
}

/// The result of some bytes.
enum Step<'a> {
    Event(Event<'a>),
    /// No event yet, but more bytes to look at.
    Next,
    /// More bytes are needed.
    Starved,
}

/// Takes up to `count` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count.min(bytes.len()));
    *bytes = rest;
    taken
}

#[cfg(test)]
mod tests;
